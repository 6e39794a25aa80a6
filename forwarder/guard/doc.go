// Package guard holds what a worker keeps about the senders of packets, so that a few of them cannot spoil the service for
// the others, and so that an operator sees who they are. It is pure: no I/O, no clock, no goroutine of its own, and it knows
// no packets, only addresses as two words. It builds on any system.
//
//   - [Limiter] holds each source to a rate, in words that the caller gives, one a source and limit. [Lots] spares it most events
//     where there are very many.
//   - [Ceiling] holds everything of one kind to a rate, whoever sends it: one word, of which workers take some events at once.
//   - [Challenge] makes numbers by which a client shows that it receives what is sent to its address, and [Proved] is the set of
//     those that did, one word a source.
//   - [Top] answers who sends the most of something, such as flows that enter the flow table, whose words hold no addresses: a
//     bounded sketch, 16 KiB however many sources there are.
//
// # Limits when there are more sources than words
//
// The words of a Limiter lie in lines of eight, and a keyed hash gives each (source, limit) its line: nobody can choose sources
// that share one. A word holds how far its source is ahead of its rate (GCRA). Once it is no longer ahead the word says nothing
// that an empty one would not, and is free to take. If all eight of a line say something, a newcomer takes the one by whose loss
// the fewest events are forgiven: events that the source is ahead by, counted by its own rate, and lately refused ones. So:
//
//   - Nobody is refused for want of a word. A source without one is as good as one that has been silent.
//   - A flood from millions of addresses can only have regular users' words forgotten, which is in the users' favour: they get
//     their burst anew.
//   - It cannot have those forgotten that matter, of sources over their limits: one event from each address is worth nothing
//     against them, whatever the limit. To displace them, most of a line's addresses would have to be over a limit too, hence in
//     all of the table: with a million words and 200 events a second each, that takes 200 M events a second. Even then each keeps
//     to the limit for as long as its word stays, and what else comes is for a Ceiling.
//   - A source that has just begun may lose its word before its second event, if the flood is so strong that a line's words
//     last for less than its interval. The table should have room for the addresses of one interval.
//
// What remains is chance: two sources have the same word if line, tag (16 bits) and scale of the rate agree. A regular user
// shares that of a given heavy source in the same line with probability 2^-16, and is then refused with it, until that source
// is gone or the process starts again with another key. Random addresses that hit a user's word count one event each against
// it: with a million words and 10 M addresses a second that is one event in a quarter of an hour.
//
// # Who may call
//
// Limiter and Proved may be used by all workers at once, and other goroutines: each change is one compare-and-swap. They keep
// nothing outside the words, so several over the same words under the same key are one. Of a Ceiling each worker uses its own
// share, by its number. A Challenge is immutable. Each worker has its own Lots. A Top belongs to one goroutine, as a rule a worker, which adds to it for every
// packet that counts; the same goroutine halves it once a minute and copies it out when somebody asks; what it hands out is a
// copy and anybody's. [Merge] puts the copies of several workers together, on any goroutine. None of what runs for each packet
// takes a lock, allocates, or calls through an interface.
package guard
