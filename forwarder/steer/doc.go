// Package steer puts an XDP program in front of the kernel's network stack that takes the frames of the VIPs and the replies
// of NAT backends, and leaves everything else alone.
//
// The program (bpf/steer.c) looks at every frame an interface receives that is addressed to the interface's own MAC and is
// in its VLAN: has the one 802.1Q tag of that number, or, without a VLAN, no tag but perhaps one with a priority. It asks
//
//   - Is the destination a VIP ([Steer.SetVIPs])? A packet to a VIP, whatever its protocol, goes to the AF_XDP socket of its
//     receive queue: that is how a worker gets it. Where the queue has no socket it is dropped and counted, never given to
//     the stack, which would answer it with a reset.
//   - Is the source of such a packet banned for a while ([Steer.Ban]), or denied by an access list, the global one or that of
//     the VIP's port ([Steer.SetACL])? Then it is dropped and counted instead.
//   - Is it a plain packet of a flow that the workers have decided about, to a service that they publish for that
//     ([Steer.ShareFlows], [Steer.PublishFast])? Then the program forwards it itself, from the workers' flow table: the fast path. While no
//     daemon runs it forwards others too, by lookup tables ([Steer.SetTables]).
//   - Is it a tunnelled packet to a VIP, to or from the node itself ([Steer.SetLoops])? It would go round in circles, and is
//     dropped and counted.
//   - Does it come from where a NAT backend replies, or is it an ICMP error about a packet to there ([Steer.SetReplies])?
//     Then it goes the way of a packet to a VIP, unless it is addressed to the node itself.
//
// All else passes: ARP, BGP, SSH, health probes and what answers them, frames of other VLANs or to other hosts' MACs. An
// IPv6 packet with extension headers, other than a fragment header, is no reply and no tunnel. A later fragment of a reply is
// known by its first, so that it passes if it comes before that.
//
// A [Steer] holds what all interfaces share: these sets, the access lists, the bans and the counters. Each [Steer.Attach]
// loads the program once more, with a socket map of its own, and gives a [Link], which is the attachment. The attachment
// lives as long as its Link: when the process dies in whatever way the kernel detaches the program within some 50 ms. Or it is pinned
// ([AttachOptions].Pin): then it stays, and who attaches next by the same pin takes its place. Another's program on the interface is never
// replaced.
//
// Memory: the maps are the kernel's; this package keeps only a copy of what it last wrote, 28 bytes for an
// entry of an access list. Any goroutine may call
// any method. Attach and Queues mean the interface of that number or name in the network namespace of the calling thread.
//
// Needs Linux 5.15 (XDP links, the coarse clock, functions that are verified by themselves, batches of maps), CAP_BPF and CAP_NET_ADMIN.
package steer
