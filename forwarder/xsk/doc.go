//go:build linux

// Package xsk is the AF_XDP socket layer: packet memory, the four rings, and sockets on the queues of network
// interfaces.
//
// # The way of a frame
//
// A [Umem] is one piece of memory cut into frames of [ChunkSize] bytes. A [Socket] is bound to one receive and transmit
// queue of an interface and has four rings, each with one producer and one consumer, the program on one side and the
// kernel on the other:
//
//	free ──Receive──► fill ──kernel──► RX ──Receive──► worker ──Transmit──► TX ──kernel──► completion ──► free
//	  ▲                                                  │                                                │
//	  └──────────────────── Recycle ─────────────────────┘◄─────────── Receive, Transmit ─────────────────┘
//
// Any number of sockets share one Umem, on any interfaces and in any mix of zero-copy and copy mode: a frame received
// on one can be transmitted on another as it is. At every moment every frame is in exactly one place; [Umem.Audit]
// checks that from the rings themselves.
//
// # Who may call
//
// A Umem and its sockets belong to one goroutine, the worker. It alone calls every method, except those that say that
// any goroutine may ([Socket.Counts], [Socket.Stats], and what never changes: [Socket.FD], [Socket.Mode] and so on).
// Nothing is locked, because nothing is shared but the rings, and the rings synchronise by the acquire and release
// order of their indices.
//
// # Who owns the memory
//
// A descriptor from [Socket.Receive] gives its frame to the worker: the bytes Memory()[d.Addr:d.Addr+d.Len], the
// headroom in front of them and the rest of the chunk behind. The worker gives it back by [Socket.Transmit] (only the
// descriptors that were taken) or [Socket.Recycle], with Addr anywhere inside the same chunk, and must not touch it
// afterwards. Nothing checks that each frame is given back once, except under Options.Audit, for tests.
//
// # Packets in several frames
//
// Where the MTU is above what one frame holds ([Options.MaxFrame]), Options.MultiBuffer lets a packet lie in several: all
// their descriptors but the last say [Continued]. Receive and Transmit never split such a packet, and it shares its fate:
// all of it is taken, or none.
//
// # Without a kernel
//
// A [MemoryNIC] is the kernel's side of the same rings in ordinary memory, driven by a test or a benchmark. What runs
// on it is [Socket] itself; only its few system calls are replaced. It needs no privileges.
package xsk
