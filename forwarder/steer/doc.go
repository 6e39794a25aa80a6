// Package steer puts an XDP program in front of the kernel's network stack that takes the frames of the VIPs, and leaves
// everything else alone.
//
// The program (bpf/steer.c) looks at the destination of every frame an interface receives. A packet to a VIP, whatever
// its protocol, goes to the AF_XDP socket of its receive queue: that is how a worker gets it. Where the queue has no
// socket it is dropped and counted, never given to the stack, which would answer it with a reset. All else passes: ARP,
// BGP, SSH, health probes, VLAN-tagged frames, and frames addressed to another host's MAC.
//
// A [Steer] holds what all interfaces share: the set of VIPs and the counters. Each [Steer.Attach] loads the program
// once more, with a socket map of its own, and gives a [Link], which is the attachment. The attachment lives exactly as
// long as its Link: nothing is pinned, so when the process dies in whatever way the kernel detaches the program within
// some 50 ms. Another's program on the interface is never replaced.
//
// Memory: the maps are the kernel's; this package keeps only the set of VIPs that it last wrote. Any goroutine may call
// any method. Attach and Queues mean the interface of that number or name in the network namespace of the calling thread.
//
// Needs Linux 5.9 (XDP links), CAP_BPF and CAP_NET_ADMIN.
package steer
