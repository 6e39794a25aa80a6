package steer

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	backend4 = netip.MustParseAddr("10.2.0.1")
	backend6 = netip.MustParseAddr("fd02::1")
	gappy4   = netip.MustParseAddr("10.2.0.2") // a backend whose ports have gaps

	replySources = []Source{
		{backend4, 6, 80, 80},
		{backend4, 17, 5000, 5999},
		{backend6, 6, 80, 80},
		{backend6, 17, 0, 65535},
		{gappy4, 6, 1000, 1000}, {gappy4, 6, 1279, 1281}, {gappy4, 6, 1282, 1290}, {gappy4, 6, 40000, 40000},
	}
	ownPrefixes = []netip.Prefix{netip.PrefixFrom(node4, 32), netip.PrefixFrom(node6, 128),
		netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("fd09::/64")}
)

// newReplyRig is a rig with VIPs, sources of replies and own addresses.
func newReplyRig(t *testing.T, o AttachOptions) *rig {
	t.Helper()
	r := newSizedRig(t, 4, 16, o, vip4, vip6)
	if err := r.SetReplies(replySources); err != nil {
		t.Fatal(err)
	}
	if err := r.SetLoops(ownPrefixes, 6080); err != nil {
		t.Fatal(err)
	}
	return r
}

func from4(src, dst netip.Addr, proto layers.IPProtocol) *layers.IPv4 {
	h := ip4(dst, proto)
	h.SrcIP = src.AsSlice()
	return h
}

func from6(src, dst netip.Addr, next layers.IPProtocol) *layers.IPv6 {
	h := ip6(dst, next)
	h.SrcIP = src.AsSlice()
	return h
}

func tcpPorts(src, dst uint16) *layers.TCP {
	return &layers.TCP{SrcPort: layers.TCPPort(src), DstPort: layers.TCPPort(dst), ACK: true, Window: 65535}
}

func udpPorts(src, dst uint16) *layers.UDP {
	return &layers.UDP{SrcPort: layers.UDPPort(src), DstPort: layers.UDPPort(dst)}
}

// fragment6 is an IPv6 fragment header, as bytes; the offset is in units of eight bytes.
func fragment6(next layers.IPProtocol, offset uint16, more bool, id byte) gopacket.Payload {
	low := byte(offset << 3)
	if more {
		low |= 1
	}
	return gopacket.Payload{byte(next), 0, byte(offset >> 5), low, 0, 0, 0, id}
}

const (
	protoTCP = layers.IPProtocolTCP
	protoUDP = layers.IPProtocolUDP
)

// verdictCase is a frame, and from how many of its bytes on it is taken; 0: it never is.
type verdictCase struct {
	name  string
	taken int
	frame []byte
}

func replyCases(t testing.TB) []verdictCase {
	t.Helper()
	eth4, eth6 := ether(ownMAC, layers.EthernetTypeIPv4), ether(ownMAC, layers.EthernetTypeIPv6)
	v4 := func(h *layers.IPv4, rest ...gopacket.SerializableLayer) []byte {
		return build(t, append([]gopacket.SerializableLayer{eth4, h}, rest...)...)
	}
	v6 := func(h *layers.IPv6, rest ...gopacket.SerializableLayer) []byte {
		return build(t, append([]gopacket.SerializableLayer{eth6, h}, rest...)...)
	}
	options := from4(backend4, other4, protoTCP)
	options.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	// With a header of 16 bytes the destination would be the ports, and the source's one 80.
	badIHL := v4(from4(backend4, netip.MustParseAddr("0.80.0.1"), protoTCP), tcpPorts(80, 40000))
	badIHL[14] = 0x44
	badVersion := v4(from4(backend4, other4, protoTCP), tcpPorts(80, 40000))
	badVersion[14] = 0x65
	mapped := v6(from6(backend6, other6, protoTCP), tcpPorts(80, 40000))
	copy(mapped[14+8:], net.IP(backend4.AsSlice()).To16())
	tagged := ether(ownMAC, layers.EthernetTypeDot1Q)
	priority := &layers.Dot1Q{Priority: 3, Type: layers.EthernetTypeIPv4}
	stranger := net.HardwareAddr{2, 0, 0, 0, 0, 9}

	return []verdictCase{
		{"IPv4 TCP", 38, v4(from4(backend4, other4, protoTCP), tcpPorts(80, 40000), payload)},
		{"IPv4 TCP with options", 42, v4(options, tcpPorts(80, 40000), payload)},
		{"IPv4 TCP with a priority tag", 42, build(t, tagged, priority, from4(backend4, other4, protoTCP), tcpPorts(80, 40000))},
		{"IPv4 UDP, first port", 38, v4(from4(backend4, other4, protoUDP), udpPorts(5000, 40000), payload)},
		{"IPv4 UDP, last port", 38, v4(from4(backend4, other4, protoUDP), udpPorts(5999, 40000), payload)},
		{"IPv6 TCP", 58, v6(from6(backend6, other6, protoTCP), tcpPorts(80, 40000), payload)},
		{"IPv6 UDP, lowest port", 58, v6(from6(backend6, other6, protoUDP), udpPorts(0, 40000), payload)},
		{"IPv6 UDP, highest port", 58, v6(from6(backend6, other6, protoUDP), udpPorts(65535, 40000), payload)},
		{"IPv6 TCP, a fragment that is all", 66, v6(from6(backend6, other6, layers.IPProtocolIPv6Fragment),
			fragment6(protoTCP, 0, false, 1), gopacket.Payload{0, 80, 1, 1}, payload)},
		{"ports with gaps, first", 38, v4(from4(gappy4, other4, protoTCP), tcpPorts(1000, 40000))},
		{"ports with gaps, last of a block", 38, v4(from4(gappy4, other4, protoTCP), tcpPorts(1279, 40000))},
		{"ports with gaps, first of a block", 38, v4(from4(gappy4, other4, protoTCP), tcpPorts(1280, 40000))},
		{"ports with gaps, last", 38, v4(from4(gappy4, other4, protoTCP), tcpPorts(40000, 40000))},

		{"another port", 0, v4(from4(backend4, other4, protoTCP), tcpPorts(81, 80))},
		{"another protocol", 0, v4(from4(backend4, other4, protoUDP), udpPorts(80, 80))},
		{"port below the range", 0, v4(from4(backend4, other4, protoUDP), udpPorts(4999, 5000))},
		{"port above the range", 0, v4(from4(backend4, other4, protoUDP), udpPorts(6000, 5000))},
		{"port in a gap", 0, v4(from4(gappy4, other4, protoTCP), tcpPorts(1278, 1000))},
		{"port in a block that has none", 0, v4(from4(gappy4, other4, protoTCP), tcpPorts(20000, 1000))},
		{"another address", 0, v4(from4(other4, backend4, protoTCP), tcpPorts(80, 80))},
		{"SCTP", 0, v4(from4(backend4, other4, layers.IPProtocolSCTP), gopacket.Payload{0, 80, 1, 1}, payload)},
		{"IPv6 from another address", 0, v6(from6(other6, backend6, protoTCP), tcpPorts(80, 80))},
		{"IPv6 hop-by-hop", 0, v6(from6(backend6, other6, layers.IPProtocolIPv6HopByHop),
			gopacket.Payload{6, 0, 1, 4, 0, 0, 0, 0}, gopacket.Payload{0, 80, 1, 1}, payload)},
		{"IPv6, v4-mapped source", 0, mapped},
		{"IHL 4", 0, badIHL},
		{"version 6 in IPv4", 0, badVersion},
		{"to another MAC", 0, build(t, ether(stranger, layers.EthernetTypeIPv4),
			from4(backend4, other4, protoTCP), tcpPorts(80, 40000))},
		{"IPv4 to the node", 0, v4(from4(backend4, node4, protoTCP), tcpPorts(80, 40000))},
		{"IPv4 to an outer source", 0, v4(from4(backend4, netip.MustParseAddr("10.9.8.7"), protoTCP), tcpPorts(80, 40000))},
		{"IPv6 to the node", 0, v6(from6(backend6, node6, protoTCP), tcpPorts(80, 40000))},
	}
}

// complaintCases are ICMP errors about packets to backends, and what looks like them.
func complaintCases(t testing.TB) []verdictCase {
	t.Helper()
	var cases []verdictCase
	quote4 := func(h *layers.IPv4, rest ...gopacket.SerializableLayer) []byte {
		return build(t, append([]gopacket.SerializableLayer{h}, rest...)...)
	}
	add4 := func(name string, taken int, typ uint8, dst netip.Addr, quoted []byte) {
		icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0)}
		cases = append(cases, verdictCase{name, taken, build(t, ether(ownMAC, layers.EthernetTypeIPv4),
			from4(netip.MustParseAddr("10.2.0.254"), dst, layers.IPProtocolICMPv4), icmp, gopacket.Payload(quoted))})
	}
	add6 := func(name string, taken int, typ uint8, dst netip.Addr, quoted []byte) {
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, 0)}
		cases = append(cases, verdictCase{name, taken, build(t, ether(ownMAC, layers.EthernetTypeIPv6),
			from6(netip.MustParseAddr("fd02::ff"), dst, layers.IPProtocolICMPv6),
			icmp, gopacket.Payload{0, 0, 0, 0}, gopacket.Payload(quoted))})
	}
	sent4 := quote4(from4(other4, backend4, protoTCP), tcpPorts(40000, 80))
	for typ, taken := range map[uint8]int{3: 66, 11: 66, 12: 66, 0: 0, 4: 0, 5: 0, 8: 0} {
		add4("ICMP type "+layers.CreateICMPv4TypeCode(typ, 0).String(), taken, typ, other4, sent4)
	}
	options := from4(other4, backend4, protoTCP)
	options.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	add4("ICMP quoting options", 70, 3, other4, quote4(options, tcpPorts(40000, 80)))
	first, later := from4(other4, backend4, protoUDP), from4(other4, backend4, protoUDP)
	first.Flags, later.FragOffset = layers.IPv4MoreFragments, 1
	add4("ICMP quoting a first fragment", 66, 11, other4, quote4(first, udpPorts(40000, 5000)))
	add4("ICMP quoting a later fragment", 0, 11, other4, quote4(later, udpPorts(40000, 5000)))
	add4("ICMP quoting another port", 0, 3, other4, quote4(from4(other4, backend4, protoTCP), tcpPorts(80, 81)))
	add4("ICMP quoting another protocol", 0, 3, other4, quote4(from4(other4, backend4, protoUDP), udpPorts(80, 80)))
	gre := quote4(from4(other4, backend4, layers.IPProtocolGRE), gopacket.Payload{0, 80, 0, 80})
	add4("ICMP quoting GRE", 0, 3, other4, gre)
	add4("ICMP quoting a reply", 0, 3, other4, quote4(from4(backend4, other4, protoTCP), tcpPorts(80, 80)))
	add4("ICMP to the node", 0, 3, node4, quote4(from4(node4, backend4, protoTCP), tcpPorts(40000, 80)))
	add4("ICMP quoting IPv6", 0, 3, other4, build(t, from6(other6, backend6, protoTCP), tcpPorts(40000, 80)))
	fragmented := build(t, ether(ownMAC, layers.EthernetTypeIPv4), from4(other4, other4, layers.IPProtocolICMPv4),
		gopacket.Payload{3, 0, 0, 0, 0, 0, 0, 0}, gopacket.Payload(sent4))
	fragmented[14+6] = 0x20
	cases = append(cases, verdictCase{"ICMP in fragments", 0, fragmented})

	sent6 := build(t, from6(other6, backend6, protoTCP), tcpPorts(40000, 80))
	for typ, taken := range map[uint8]int{1: 106, 2: 106, 3: 106, 4: 106, 0: 0, 5: 0, 128: 0, 135: 0} {
		add6("ICMPv6 type "+layers.CreateICMPv6TypeCode(typ, 0).String(), taken, typ, other6, sent6)
	}
	add6("ICMPv6 quoting a first fragment", 114, 3, other6, build(t, from6(other6, backend6, layers.IPProtocolIPv6Fragment),
		fragment6(protoUDP, 0, true, 1), gopacket.Payload{0, 1, 0, 53}, payload))
	add6("ICMPv6 quoting a later fragment", 0, 3, other6, build(t, from6(other6, backend6, layers.IPProtocolIPv6Fragment),
		fragment6(protoUDP, 1, true, 1), gopacket.Payload{0, 1, 0, 53}, payload))
	add6("ICMPv6 quoting another port", 0, 1, other6, build(t, from6(other6, backend6, protoTCP), tcpPorts(80, 81)))
	add6("ICMPv6 to the node", 0, 1, node6, build(t, from6(node6, backend6, protoTCP), tcpPorts(40000, 80)))
	// The other family's protocol number means nothing.
	cases = append(cases, verdictCase{"ICMP in IPv6", 0, build(t, ether(ownMAC, layers.EthernetTypeIPv6),
		from6(other6, other6, layers.IPProtocolICMPv4), gopacket.Payload{3, 0, 0, 0, 0, 0, 0, 0}, gopacket.Payload(sent6))})
	return cases
}

// checkCases shows the program each frame, whole and cut at every length. What is taken has no socket, or is in a loop, and
// so is dropped; it adds a packet of the given counts.
func checkCases(t *testing.T, r *rig, cases []verdictCase, each Stats) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before, taken := r.stats(t), uint64(0)
			for length := 14; length <= len(c.frame); length++ {
				want := uint32(xdpPass)
				if c.taken != 0 && length >= c.taken {
					want = xdpDrop
					taken++
				}
				if got := r.run(t, c.frame[:length]); got != want {
					t.Fatalf("%d of %d bytes: verdict %d, want %d: %x", length, len(c.frame), got, want, c.frame[:length])
				}
			}
			after := r.stats(t)
			want := Stats{ToVIPs: before.ToVIPs + taken*each.ToVIPs, Replies: before.Replies + taken*each.Replies,
				Loops: before.Loops + taken*each.Loops, NoSocket: before.NoSocket + taken*each.NoSocket}
			if after != want {
				t.Errorf("counted %+v, want %+v", after, want)
			}
			if c.taken != 0 && taken == 0 {
				t.Errorf("the frame of %d bytes is too short for the case", len(c.frame))
			}
		})
	}
}

func TestReplyVerdicts(t *testing.T) {
	r := newReplyRig(t, AttachOptions{Queues: 1})
	cases := append(replyCases(t), complaintCases(t)...)
	checkCases(t, r, cases, Stats{Replies: 1, NoSocket: 1})

	t.Run("with a socket", func(t *testing.T) {
		before := r.stats(t)
		r.giveSocket(t)
		if got := r.run(t, cases[0].frame); got != xdpRedirect {
			t.Errorf("verdict %d", got)
		}
		before.Replies++
		before.Redirected++
		if got := r.stats(t); got != before {
			t.Errorf("counted %+v, want %+v", got, before)
		}
	})
	t.Run("no sources", func(t *testing.T) {
		before := r.stats(t)
		if err := r.SetReplies(nil); err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			if got := r.run(t, c.frame); got != xdpPass {
				t.Errorf("%s: verdict %d", c.name, got)
			}
		}
		if got := r.stats(t); got != before {
			t.Errorf("counted %+v, want %+v", got, before)
		}
	})
}

// Later fragments of a reply go where the first went, once that has come.
func TestReplyFragments(t *testing.T) {
	r := newReplyRig(t, AttachOptions{Queues: 1})
	v4 := func(src, dst netip.Addr, proto layers.IPProtocol, id, offset uint16, port uint16) []byte {
		h := from4(src, dst, proto)
		h.Id, h.FragOffset = id, offset
		if offset < 20 {
			h.Flags = layers.IPv4MoreFragments
		}
		return build(t, ether(ownMAC, layers.EthernetTypeIPv4), h, gopacket.Payload{byte(port >> 8), byte(port), 0, 1}, payload)
	}
	v6 := func(src, dst netip.Addr, proto layers.IPProtocol, id byte, offset uint16, port uint16) []byte {
		return build(t, ether(ownMAC, layers.EthernetTypeIPv6), from6(src, dst, layers.IPProtocolIPv6Fragment),
			fragment6(proto, offset, offset < 20, id), gopacket.Payload{byte(port >> 8), byte(port), 0, 1}, payload)
	}
	replies := uint64(0)
	step := func(what string, frame []byte, taken bool) {
		t.Helper()
		want := uint32(xdpPass)
		if taken {
			want = xdpDrop
			replies++
		}
		if got := r.run(t, frame); got != want {
			t.Errorf("%s: verdict %d, want %d", what, got, want)
		}
	}
	// The port of a later fragment is data, and means nothing.
	step("IPv4 later, before its first", v4(backend4, other4, protoUDP, 7, 10, 5000), false)
	step("IPv4 first", v4(backend4, other4, protoUDP, 7, 0, 5000), true)
	step("IPv4 second", v4(backend4, other4, protoUDP, 7, 10, 1), true)
	step("IPv4 last", v4(backend4, other4, protoUDP, 7, 20, 1), true)
	step("IPv4 of another datagram", v4(backend4, other4, protoUDP, 8, 10, 5000), false)
	step("IPv4 of another protocol", v4(backend4, other4, protoTCP, 7, 10, 80), false)
	step("IPv4 from another", v4(gappy4, other4, protoUDP, 7, 10, 5000), false)
	step("IPv4 to another", v4(backend4, client4, protoUDP, 7, 10, 5000), false)
	step("IPv4 first to the node", v4(backend4, node4, protoUDP, 7, 0, 5000), false)
	step("IPv4 later to the node", v4(backend4, node4, protoUDP, 7, 10, 5000), false)
	step("IPv4 first of no reply, same number", v4(backend4, other4, protoUDP, 7, 0, 4999), false)
	step("IPv4 later of no reply", v4(backend4, other4, protoUDP, 7, 10, 5000), false)

	step("IPv6 later, before its first", v6(backend6, other6, protoUDP, 7, 10, 53), false)
	step("IPv6 first", v6(backend6, other6, protoUDP, 7, 0, 53), true)
	step("IPv6 second", v6(backend6, other6, protoUDP, 7, 10, 1), true)
	step("IPv6 last", v6(backend6, other6, protoUDP, 7, 20, 1), true)
	step("IPv6 of another datagram", v6(backend6, other6, protoUDP, 8, 10, 53), false)
	step("IPv6 from another", v6(client6, other6, protoUDP, 7, 10, 53), false)
	step("IPv6 to another", v6(backend6, client6, protoUDP, 7, 10, 53), false)
	step("IPv6 first of no reply, same number", v6(backend6, other6, protoTCP, 7, 0, 81), false)
	step("IPv6 later of no reply", v6(backend6, other6, protoUDP, 7, 10, 53), false)
	if got := r.stats(t); got != (Stats{Replies: replies, NoSocket: replies}) {
		t.Errorf("counted %+v, want %d replies", got, replies)
	}
}
