// Package control is the daemon's local API: HTTP with JSON under /v1 on a unix socket, its server and its client, and
// the book of what is known about backends' health.
//
// api.go has the types that go over the wire; docs/openapi.yaml describes them, and a test compares the two. server.go
// serves whatever implements Daemon; client.go is what the command line and healthd use. ledger.go has the rules of
// health as pure functions, and health.go the Book, which adds to them the lock, the clock and the file on disk.
// Package metrics, below this one, shows the same Status to Prometheus.
//
// Values that are given or returned belong to the receiver: nothing here keeps or changes them afterwards. All
// exported functions and methods may be called from any goroutine, but never from a worker: they lock and allocate.
package control
