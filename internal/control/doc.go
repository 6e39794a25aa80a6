// Package control is the daemon's local API: HTTP with JSON under /v1 on a unix socket, its server and its client, and
// the book of what is known about backends: what the file wants, what an operator set by hand, what health says.
//
// api.go, api_flows.go, api_health.go and api_events.go have the types that go over the wire; docs/openapi.yaml describes them, and a test compares the
// two. server.go and serve_flows.go serve whatever implements Daemon; client.go and client_flows.go are what the command
// line and healthd use.
//
// admit.go has the one rule by which the facts about backends become what these take. ledger.go keeps the facts, rise.go
// finds out who starts slowly, both as pure functions of what was told and of the time; health.go has the Book, which adds
// to them the lock, the clock and the files on disk (state.go), and hand.go its part for operators. spec.go translates a
// configuration for the engine. Package metrics, below this one, shows the same Status to Prometheus.
//
// Values that are given or returned belong to the receiver: nothing here keeps or changes them afterwards. All
// exported functions and methods may be called from any goroutine, but never from a worker: they lock and allocate.
package control
