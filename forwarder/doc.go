// Package forwarder is the engine: it turns frames that carry packets to a VIP into frames that carry them to a backend.
//
// # The way of a packet
//
// A [Worker] is one goroutine, locked to a thread and pinned to a core. It owns a UMEM and the queues dealt out to it, and
// treats every batch of up to 64 frames in the same order, each stage a loop over the batch (stages.go):
//
//	receive   frames from a queue's RX ring; one snapshot and one clock reading for all of them
//	parse     frame → packet.Meta, and the service that the destination names
//	touch     prefetch each flow's line of the table, so that cache misses overlap
//	lookup    flow → word → slot
//	decide    on a miss only: choose a backend, insert a word (decide.go)
//	rewrite   the target's ready-made header into the frame
//	transmit  to the TX ring of the target's interface; what was not sent goes back to the UMEM under its reason
//
// # Who owns what
//
// An [Engine] holds what all workers share: the flow table, the admit words, and the [Snapshot], which is immutable and
// swapped by an atomic pointer. Engine methods may be called from any goroutine; they never wait for a worker. A worker's
// counters are plain words that it alone writes and publishes at most once a millisecond. A [Node] is an Engine attached
// to this machine's interfaces: it loads the XDP program, opens the sockets, follows routes and neighbours, and runs the
// workers and the sweeper. Engine and Worker alone run on the memory NIC, without root.
//
// # Books
//
// Every frame that a worker receives is either forwarded, or answered by the worker itself (echo requests to a VIP), or
// counted under exactly one [packet.Reason]: received = forwarded + answered + Σ reasons, exactly, whenever the worker is at
// rest.
package forwarder
