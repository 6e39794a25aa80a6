package steer

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// loopCases are tunnelled packets; taken are those to a VIP from or to the node itself.
func loopCases(t testing.TB) []verdictCase {
	t.Helper()
	outer4, outer6 := netip.MustParseAddr("10.9.8.7"), netip.MustParseAddr("fd09::7") // of the node
	inner := func(dst netip.Addr) []byte {
		if dst.Is4() {
			return build(t, ip4(dst, protoTCP), tcp)
		}
		return build(t, ip6(dst, protoTCP), tcp)
	}
	var cases []verdictCase
	// taken is counted from the end of the outer IP header.
	add := func(name string, taken int, src, dst netip.Addr, proto layers.IPProtocol, rest ...gopacket.SerializableLayer) {
		t.Helper()
		parts := []gopacket.SerializableLayer{ether(ownMAC, layers.EthernetTypeIPv6), from6(src, dst, proto)}
		outer := 14 + 40
		if dst.Is4() {
			parts = []gopacket.SerializableLayer{ether(ownMAC, layers.EthernetTypeIPv4), from4(src, dst, proto)}
			outer = 14 + 20
		}
		if taken != 0 {
			taken += outer
		}
		cases = append(cases, verdictCase{name, taken, build(t, append(parts, rest...)...)})
	}
	tunnel := func(dst netip.Addr) layers.IPProtocol {
		if dst.Is4() {
			return layers.IPProtocolIPv4
		}
		return layers.IPProtocolIPv6
	}
	size := func(dst netip.Addr) int { // of the IP header that has it
		if dst.Is4() {
			return 20
		}
		return 40
	}
	for _, f := range []struct {
		name                         string
		node, source, other, backend netip.Addr
	}{
		{"IPv4", node4, outer4, other4, client4},
		{"IPv6", node6, outer6, other6, client6},
	} {
		for _, to := range []struct {
			name  string
			taken bool
			dst   netip.Addr
		}{
			{"to IPv4 VIP", true, vip4}, {"to IPv6 VIP", true, vip6},
			{"to no IPv4 VIP", false, other4}, {"to no IPv6 VIP", false, other6},
		} {
			ipip, gue := 0, 0
			if to.taken {
				ipip, gue = size(to.dst), 8+size(to.dst)
			}
			packet := gopacket.Payload(inner(to.dst))
			name := to.name + " in " + f.name
			add("IPIP towards the node, "+name, ipip, f.other, f.node, tunnel(to.dst), packet)
			add("IPIP back from where it went, "+name, ipip, f.source, f.backend, tunnel(to.dst), packet)
			add("IPIP on its way, "+name, 0, f.other, f.backend, tunnel(to.dst), packet)
			add("GUE towards the node, "+name, gue, f.other, f.node, protoUDP, udpPorts(50000, 6080), packet)
			add("GUE back from where it went, "+name, gue, f.source, f.backend, protoUDP, udpPorts(50000, 6080), packet)
			add("GUE on its way, "+name, 0, f.other, f.backend, protoUDP, udpPorts(50000, 6080), packet)
			add("UDP to another port, "+name, 0, f.other, f.node, protoUDP, udpPorts(6080, 6081), packet)
		}
		add("GUE of variant 0 in "+f.name, 0, f.other, f.node, protoUDP, udpPorts(50000, 6080),
			gopacket.Payload{0, 4, 0, 0}, gopacket.Payload(inner(vip4)))
		five := gopacket.Payload(inner(vip6))
		five[0] = 0x50
		add("GUE of IP version 5 in "+f.name, 0, f.other, f.node, protoUDP, udpPorts(50000, 6080), five)
		add("TCP in "+f.name, 0, f.other, f.node, protoTCP, tcpPorts(50000, 6080), gopacket.Payload(inner(vip4)))
		add("GRE in "+f.name, 0, f.other, f.node, layers.IPProtocolGRE, gopacket.Payload(inner(vip4)))
		// The letter E begins with the same four bits as an IPv4 header, but has no VIP where that has one.
		add("UDP that is no tunnel in "+f.name, 0, f.other, f.node, protoUDP, udpPorts(50000, 6080),
			gopacket.Payload("Enough of a text to read an address."))
	}

	options := from4(other4, node4, layers.IPProtocolIPv4)
	options.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	first, later := from4(other4, node4, layers.IPProtocolIPv4), from4(other4, node4, layers.IPProtocolIPv4)
	first.Flags, later.FragOffset = layers.IPv4MoreFragments, 10
	eth := ether(ownMAC, layers.EthernetTypeIPv4)
	packet := gopacket.Payload(inner(vip4))
	mapped := inner(vip6)
	copy(mapped[24:], net.IP(vip4.AsSlice()).To16())
	add("v4-mapped destination inside", 0, other4, node4, layers.IPProtocolIPv6, gopacket.Payload(mapped))
	return append(cases,
		verdictCase{"IPIP with options", 14 + 24 + 20, build(t, eth, options, packet)},
		verdictCase{"IPIP, first fragment", 14 + 20 + 20, build(t, eth, first, packet)},
		verdictCase{"IPIP, later fragment", 0, build(t, eth, later, packet)},
		verdictCase{"IPIP to another MAC", 0, build(t, ether(routerMAC, layers.EthernetTypeIPv4),
			from4(other4, node4, layers.IPProtocolIPv4), packet)})
}

func TestLoopVerdicts(t *testing.T) {
	r := newReplyRig(t, AttachOptions{Queues: 1})
	r.giveSocket(t) // a packet in a loop reaches no socket
	cases := loopCases(t)
	checkCases(t, r, cases, Stats{ToVIPs: 1, Loops: 1})

	passes := func(t *testing.T, only func(verdictCase) bool) {
		t.Helper()
		before := r.stats(t)
		for _, c := range cases {
			if got := r.run(t, c.frame); only(c) && got != xdpPass {
				t.Errorf("%s: verdict %d", c.name, got)
			}
		}
		if got := r.stats(t); only(verdictCase{}) && got != before {
			t.Errorf("counted %+v, want %+v", got, before)
		}
	}
	t.Run("no GUE", func(t *testing.T) {
		if err := r.SetLoops(ownPrefixes, 0); err != nil {
			t.Fatal(err)
		}
		passes(t, func(c verdictCase) bool { return len(c.name) > 3 && c.name[:3] == "GUE" })
	})
	t.Run("no own addresses", func(t *testing.T) {
		if err := r.SetLoops(nil, 6080); err != nil {
			t.Fatal(err)
		}
		passes(t, func(verdictCase) bool { return true })
	})
	t.Run("refused", func(t *testing.T) {
		if err := r.SetLoops(ownPrefixes, 6080); err != nil {
			t.Fatal(err)
		}
		loop := cases[0].frame
		if err := r.SetLoops([]netip.Prefix{{}}, 6080); err == nil {
			t.Error("a prefix that is none was accepted")
		}
		if err := r.SetLoops([]netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}, 6080); err == nil {
			t.Error("a v4-mapped prefix was accepted")
		}
		if got := r.run(t, loop); got != xdpDrop {
			t.Errorf("a refused set has changed the one before: verdict %d", got)
		}
	})
}
