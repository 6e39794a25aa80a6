// Package packet reads and rewrites frames. It is pure: functions on bytes, with no I/O, no clock, no state and no
// operating system behind it.
//
// Parse turns a received Ethernet frame into a Meta: where its headers are, what flow it belongs to, and, when it
// cannot be forwarded, why (a Reason). Of a fragment ReadFragment tells the datagram; only the first one has ports, and
// Meta.SetPorts gives them to the others. An Encap is the ready-made outer header of one target, built once by NewL2, NewIPIP,
// NewGUE or NewNAT whenever the configuration or a neighbour changes, and put before any number of packets by Encap.Apply.
// Untranslate is the other direction of NAT. PacketTooBig, TimeExceeded, Unreachable, Reset and EchoReply turn a packet into
// the answer to its sender, and Split cuts one that is too big into fragments.
//
// Decoding is total: every sequence of bytes gives a Meta, never an error, a panic or an allocation. A bad packet is a
// verdict to be counted, since anybody can send one.
//
// The memory belongs to the caller. Parse only reads the frame and keeps no reference to it; Apply writes the headroom
// before the packet and, for L2, its Ethernet addresses, and leaves every byte of the IP packet as it is, but for NAT,
// which changes what it translates and no more. Meta and Encap hold no pointers.
//
// Any goroutine may call anything here. An Encap, a Key and a Meta may be read by many goroutines at once, and a Meta
// or a frame may be written by one only.
//
// Checksums of TCP, UDP and ICMP are not verified: whoever receives the packet does that, and what changes it on the way
// changes them by as much.
package packet
