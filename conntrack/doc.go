// Package conntrack is the flow table: it remembers which slot (a service's backend) a flow was given, in one 64-bit
// word a flow, in memory that the caller owns and may share with other workers, other processes or BPF programs.
//
// # Memory
//
// [New] takes a slice of words and keeps no other state, so two tables over the same memory are the same table, also
// in two processes. What [Table.Count] counts is beside it: a successor counts anew, by a walk. The slice must begin on a
// 64-byte boundary (package internal/shm sees to that) and outlive the table. All zero is an empty table. Eight consecutive words are a line, which is one cache line. A [Word] holds, from
// the top, 32 bits of fingerprint, 18 of slot, 12 of tick and 2 of state.
//
// A flow is known by its keyed 64-bit hash alone: the low half names its home line, the high half is its fingerprint.
// It has its word in the home line or in one alternate line, home XOR a non-zero mix of the fingerprint, and nowhere
// else. A word never moves. Two flows with the same pair of lines and the same fingerprint share a word: a look-up of
// an unknown flow finds somebody else's word with probability (words in its two lines) / 2³², some 2·10⁻⁹ at the
// intended load of one half.
//
// # Who may call
//
// Every method may be called from any goroutine at any time; there is no lock and nobody waits. Insert, refresh,
// replace and expire are one compare-and-swap of one word each, look-ups are loads. Time comes in as a tick
// (see [Tick]), which a worker reads once a batch.
//
// A worker calls [Table.Prefetch] when it has the hashes of a batch, then [Table.LookupBatch]; for each packet with a
// word that has not expired [Table.Refresh] (or, for a SYN that must go elsewhere, [Table.Replace]); for the flows
// without one that must be remembered [Table.InsertBatch], or [Table.Insert] for one alone; for a flow that is ended
// [Table.Remove]. One goroutine calls [Table.Sweep]; any may call [Table.Walk], which only looks.
//
// # Why duplicates go away
//
// Two workers that see the first packets of a flow at once may both find no word and both write one, at different
// places of the same line or in the two lines. Therefore [Table.Insert], after its successful swap, reads both lines
// again, removes every equal fingerprint but the one with the lowest index, and so every inserter does.
// Let P write at i and Q write at j > i. Swaps and loads of sync/atomic have one total order; whichever swap comes
// second, its owner's second reading comes later still and sees the other's word, unless that is gone already. If it is
// Q, Q removes its own word; if it is P, P removes Q's word. The order of indices is the same for all, so nobody
// removes the lowest, and of three or more the lowest remains. A removal is a swap of exactly the word that was read:
// if a refresh comes between, it is read and tried again; a word of another flow that took the place is left alone.
// A refresh cannot bring a removed word back, because it too swaps only what it has read; a Replace or Remove of a word
// that gives way is lost with it. In the short time between, a reader finds either word, the one at home first; or none,
// if it looks where the one word goes before it is written, and where the other was after that was removed. Its packet
// then goes by hash.
//
// One loss remains possible: the lowest word is evicted (both lines full), removed or expired between the moment it was
// seen and the removal of the other. The flow then has no word, and its packets go by hash like those of any evicted flow.
//
// # Time
//
// Ticks are 2.15 s and wrap after 2.4 h. A word's age is the difference modulo 4096, except that the last 64 values
// mean a word written by a worker whose clock reading is newer than ours, and count as 0. Lives are at most
// [MaxLife] (2 h) and [Table.Sweep] must pass over every line at least every 20 minutes, so a word is removed well
// before its age would look small again.
package conntrack
