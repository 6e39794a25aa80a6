// Package maglev chooses a backend for a flow: by default the same on every node of a group, with no state, and without
// moving other flows when a backend comes, goes, drains or starts slowly.
//
// There are four parts. A Table maps each of its entries to a backend and depends on the names and weights of the
// backends alone; it is populated as in Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
// NSDI 2016, section 3.4. An Admit word per backend says what the backend takes now. A Pool brings both together: a
// flow's hash gives up to eight candidates from the table, and the first that admits the flow gets it; or another
// Scheduler gives out new flows. A Service is the pool now, and for a while the pool before the last change. Health is
// not in the table, so a health change is one atomic store to an admit word; the table is rebuilt only when the backends
// or their weights change.
//
// # What schedulers promise
//
// All of them give a new flow to a backend that is up and whose fraction is not zero, if there is one, and go by weights.
// None matters for a packet without a word that opens no flow: that goes by hash.
//
//   - Maglev: nodes with the same table, key and admit words choose alike. So a flow whose word is lost, or that comes to
//     another node, goes on where it was, unless its first candidate refused it when it was opened or refuses it now. Over
//     many flows each backend has its share.
//   - Source: the same for a hash that the caller makes of the client's address alone. A client stays with a backend, and
//     a client with many flows weighs on one backend.
//   - WRR: over a round each backend has exactly its share of a worker's new flows, evenly spread over the round. Nodes
//     do not agree.
//   - LeastConn: flows last differently long, and each backend still has its share of those that there are: within what
//     a worker cannot know, which is what changed in the last millisecond. Nodes do not agree, and each goes by its own
//     flows.
//   - P2C: nearly as even as LeastConn. Nodes do not agree, but what another node would choose by the hash is one of the
//     two candidates: two of three flows are where another node sends their packets.
//
// Where nodes do not agree, a flow depends on its word: it breaks when the word is lost or the flow comes to another node,
// unless the hash happens to give the same backend.
//
// # Who owns what
//
// Tables are immutable; any number of goroutines may use them. So are pools but for what each worker has in them for
// itself, on cache lines of its own: its place in the turns, and the loads as it knows them. A worker's number is used by
// one goroutine at a time. Slots belong to the caller, who writes them atomically; choosing only reads them. Nothing here
// allocates, locks or waits except Build and NewPool.
//
// # What it costs
//
// A Table holds two bytes an entry: 128 KiB for DefaultSize, which stays in a core's second-level cache. A choice is
// usually one Mix (two multiplications), one load from the table, one of the slot and one of the admit word; each
// candidate that refuses adds as much. Only if all eight refuse is the list of backends searched. P2C takes two candidates
// and two loads, LeastConn some five to ten times as long as Maglev. WRR has four bytes a turn and pool, as many as the
// table has entries at most, and LeastConn 24 bytes a backend, pool and worker.
//
// # Weights, and go-maglev
//
// The algorithm has backends take entries in turns, each the first free one of a permutation of its own, and is weighted
// by giving a backend more turns. The turns are spread evenly, so each backend has its exact share of the entries, rounded
// up or down. More turns along one permutation move less when a weight changes than a permutation for each turn would:
// of 100 backends one that is doubled moves half again what it has to, not five times.
//
// The permutations are those of the dgryski/go-maglev module, and tests compare tables with its own, with equal weights
// and with any: there they are equal, entry by entry. It does not populate them itself, since its only way to give a
// backend more turns is to name it more often. Each place in its list walks the backend's permutation anew, past all that
// the others have taken: two backends of weights 1 and 16,383 take 8 s for 65,537 entries, 1,000 backends of one heavy and
// many light ones over a minute for 655,373. One position for each backend finds the same entries in 2 and 120 ms, so this
// is how it is done here, for all weights. It also never returns for an empty list, for more names than entries, or for a
// size that is not prime, since its permutations then miss entries, and its result depends on the order of the names:
// Build makes an empty table of the first, refuses the next two, and sorts the names.
package maglev
