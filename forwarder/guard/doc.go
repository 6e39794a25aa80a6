// Package guard holds what a worker keeps about the senders of packets, so that a few of them cannot spoil the service for
// the others, and so that an operator sees who they are. It is pure: no I/O, no clock, no goroutine of its own, and it knows
// no packets, only addresses as two words. It builds on any system.
//
// [Top] answers who sends the most of something, such as flows that enter the flow table, whose words hold no addresses: a
// bounded sketch, 16 KiB however many sources there are.
//
// # Who may call
//
// A Top belongs to one goroutine, as a rule a worker, which adds to it for every packet that counts: without lock, map,
// allocation or interface call. The same goroutine halves it once a minute and copies it out when somebody asks; what it
// hands out is a copy and anybody's. [Merge] puts the copies of several workers together, on any goroutine.
package guard
