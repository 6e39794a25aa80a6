//go:build linux

// Package tunnel dials a backend the way its data goes: with the outer headers that the forwarder puts around a client's
// packets, from the same outer sources, to the VIP. A probe through it sees what a client would see and a probe of the
// backend's own address would not: an agent that does not run, a VIP that is missing on the backend, a firewall that drops
// what is encapsulated.
//
//	Dialer ── netstack: TCP and UDP in this process ── WritePackets: outer headers by package packet ── raw socket ─► backend
//	                      ▲                                                                                             │
//	                      └── inject ◄── packet socket ◄── kernel's receive path ◄── from the VIP, as it is (DSR) ──────┘
//
// The kernel cannot have these connections: their remote address, the VIP, is on no interface and has a blackhole route here. So
// the connections are those of a TCP/IP stack in this process (gvisor.dev/gvisor's netstack). Each has a local port from
// [firstPort] on, above those that Linux gives out by default, which names its flow: the way of its packets out, and whose
// packets come in.
//
// Answers come in through packet sockets, with a filter in the kernel that copies only what goes to these ports. A raw or
// UDP socket would not get them where rp_filter is on: it drops what comes from an address with a blackhole route. The kernel
// sees the answers, too, and knows no connection of theirs. Its RST, or ICMP error, goes to the VIP and ends in the blackhole
// route that the daemon keeps in the main table (package forwarder/nexthop). Without that route it would leave by the
// default route, and from a router that sends VIPs to nodes it may come to a backend and end a connection there: do not dial
// without it.
//
// Packets out pass the kernel's routing and netfilter, which data packets do not: a firewall in the node's OUTPUT chain must let
// them pass. Don't-fragment is set. Inner packets have at most [mtu] bytes, so a LAN too narrow for a client's full packet
// with its outer headers does not show.
//
// A connection that is closed is reset: it lingers in neither stack. Its port rests for a while before it is used again.
//
// A Dialer and its connections may be used by any number of goroutines. It has a goroutine for each address family, which
// reads answers, and those of netstack, whose number does not depend on that of connections. Its sockets belong to the network
// namespace of the thread that called New.
package tunnel
