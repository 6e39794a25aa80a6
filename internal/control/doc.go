// Package control is the daemon's local API: HTTP with JSON under /v1 on a unix socket, its server and its client, and
// the book of what is known about backends: what the file wants, what an operator set by hand, what health says.
//
// The files api*.go have the types that go over the wire; docs/openapi.yaml describes them, and a test compares the two.
// server.go and serve_*.go serve whatever implements Daemon; client*.go are what the command line and healthd use.
//
// admit.go has the one rule by which the facts about backends become what these take, and phase.go the one word for how a
// backend stands. ledger.go keeps the facts, report.go takes what a health daemon says, and settle.go finds out what
// changes by it, all as pure functions of what was told and of the time. book.go has the Book, which adds to them the lock
// and the clock: hand.go is its part for operators, writer.go sees to it that one health daemon reports, events.go remembers
// what has happened, detail.go tells everything, and turn.go does what time brings, such as the files on disk (state.go).
// signals.go passes on what the engine counts of connections to backends. spec.go translates a configuration for the engine.
// Package metrics, below this one, shows the same Status to Prometheus.
//
// Values that are given or returned belong to the receiver: nothing here keeps or changes them afterwards. All
// exported functions and methods may be called from any goroutine, but never from a worker: they lock and allocate.
package control
