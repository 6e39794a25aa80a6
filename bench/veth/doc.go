//go:build linux

// Package veth measures whole load balancers on a cable in this machine, beside each other: how many packets a second they
// forward, at which rate they begin to lose some, and how much later packets arrive.
//
//	world                                  system
//	┌──────────────────────────┐           ┌─────────────────┐
//	│ generator, sink     eth0 ├───────────┤ eth0   a System │
//	└──────────────────────────┘           └─────────────────┘
//
// The rig is two network namespaces and a veth pair with one queue. Frames are made in the kernel (bench.Generator) at one end.
// The system takes them in at the other, and sends them back out of the same interface, as a load balancer with one arm does; where
// they came from a bench.Sink counts them. A system that is no load balancer just sends back what it gets.
//
// All systems obey one rule. The first core makes the frames and receives them: live frames are handed to the other end of a
// veth pair on the core that they were made on, so what is done there up to an XDP program, be it copying into an AF_XDP socket,
// making a socket buffer or all that a system in XDP does, is paid for by that core. The second core has everything else of the
// system, its threads and what they send, through the sink: processes are bound to it, and the kernel's own forwarding is brought
// there by receive packet steering. The generator goes before everything else on the first core; no part of a system has a thread
// there, and softirqs run in the generator's own thread as soon as it has handed its frames over, so it starves nobody.
//
// A System is started for its turn, measured in all settings, and stopped. Functions may be called from any goroutine, but
// one measurement at a time is made on a machine, which a lock sees to.
package veth
