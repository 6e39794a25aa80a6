// Package conformance is what the forwarder does to packets, as data: the files in testdata hold cases of frames that come
// in, under a config, and what becomes of them. It has no code but tests; TestConformance replays each case in three ways:
//
//   - engine: a forwarder.Engine and a Worker between slices, on a clock that moves when the worker sleeps;
//   - memory: a running worker on the rings of an xsk.MemoryNIC;
//   - veth: the real daemon in a network namespace, with packet sockets at the other ends of its cables. This takes root,
//     and is left out under -short.
//
// Frames that go out are compared with what was expected byte for byte. They are also checked without looking at that:
// gopacket decodes all of them, all checksums and lengths, outer, inner and quoted, are right when calculated anew, and over
// veth a kernel to which every address is its own receives them and finds no fault. After each case the books must balance,
// and no reason may be counted but those that the case names.
//
//	go test ./forwarder/conformance -run 'TestConformance/nat4/' -v
//
// # A file
//
// Comments (#) and directives first:
//
//	mtu: 1600                  of all interfaces; `mtu eth1: 1400` of one; 1500 without it
//	config:                    as users write it, indented by two spaces; what every daemon needs besides is added
//	  services: …              (node, state_dir …), and interfaces: [{name: eth0}] if there is none
//	silent: 10.0.0.11          addresses that do not answer ARP or neighbour discovery
//	down: web/web-1            service/backend that health has found down; all others are up
//	by: veth                   the ways to replay the file's cases; all without it
//	let web: ip4 …             from here on $web stands for this
//
// The node is 10.0.0.1 and 2001:db8:1::1 on eth0, 10.0.1.1 and 2001:db8:2::1 on eth1, both with all of the /24 or /64 on the
// link. Its default route leads to peer, the router on eth0. A backend's MAC is made of its address, and called by its name.
//
// Then the cases. A case begins with its name, and everything is expected that it has lines for:
//
//	== SYN with an MSS for jumbo frames
//	in:   ip4 198.51.100.1 > 192.0.2.10 | tcp 40002 > 80 S mss=8960
//	out:  eth dst=web-1 | ip4 198.51.100.1 > 10.0.0.11 ttl=63 | tcp 40002 > 8080 S mss=1460
//
//	in:       a frame that comes in, from peer to node if it does not say otherwise
//	raw:      the same in hex digits
//	pause:    so much time passes before the next one
//	out:      a frame that goes out, from node to whom it says
//	answer:   a frame that goes out, from node to peer
//	reason:   a packet was counted under this reason; `reason: too_big x2`
//	kernel:   the XDP program leaves the frames to the kernel: replayed over veth only
//	veth:     kernel: the same over veth, where a worker that gets such a frame has a reason
//	by:       engine memory: the ways to replay the case
//
// `in eth1:` is about another interface than eth0, `in x100:` about a hundred such frames. Frames must go out in the order
// of their lines, on each interface.
//
// # A frame
//
// Layers from the outside to the inside, separated by |. Lengths, checksums, types and protocol numbers are filled in; a key
// sets a field to something else, and csum=bad to something wrong.
//
//	eth dst=web-1 src=node type=0x88cc
//	vlan 100 prio=5                       qinq is the same with the service tag's type
//	ip4 A > B ttl=64 tos=0 id=0 df mf rf off=0 opts=94040000 proto= version= ihl= len= csum=
//	ip6 A > B hop=64 tc=0 flow=0 next= version= len=
//	hbh, dstopts                          an extension header, with these options (hex) or padding; len= next=
//	routing type=2 left=0 ADDRESS…
//	frag id=7 off=0 mf                    off counts eight bytes, as in ip4
//	ext 135                               an extension header of another number; proto 132 is a transport protocol
//	tcp P > Q SA seq=0 ack=0 win=1000 mss=1460 opts=0101 doff= csum=
//	udp P > Q len= csum=0                 an ip4 or ip6 layer behind it is GUE
//	icmp4 3/4 mtu=1400, icmp6 128/0 id=1 seq=2, icmp4 12/0 rest=0x14000000    an ip layer behind it is what is quoted
//	data 100, hex 00ff                    payload: so many bytes of a pattern, or these
//	piece 0-1480                          of the innermost IP packet the fragment with these bytes of payload; IPv6: id=
//	cut 28                                of the innermost IP packet only so many bytes are there
//	pad 6, trunc 33                       bytes behind the packet; all that is left of the frame
//
// In out and answer a port, a number or an address may be *, an address a prefix, a MAC web-* or same, which is where the
// first frame of the case went. $in is the packet that came in, without Ethernet and padding; of several the last one, and
// $in1, $in2 … each.
package conformance
