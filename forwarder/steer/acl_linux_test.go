package steer

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func deny(prefixes ...string) (entries []Entry)  { return entriesOf(true, prefixes) }
func allow(prefixes ...string) (entries []Entry) { return entriesOf(false, prefixes) }

func entriesOf(deny bool, prefixes []string) (entries []Entry) {
	for _, p := range prefixes {
		entries = append(entries, Entry{netip.MustParsePrefix(p), deny})
	}
	return entries
}

func join(entries ...[]Entry) (all []Entry) {
	for _, e := range entries {
		all = append(all, e...)
	}
	return all
}

var all = []PortRange{{0, 65535}}

// sent is a packet to a VIP, or elsewhere, of which the source may be refused.
func sent(t testing.TB, src, dst string, proto layers.IPProtocol, sport, dport uint16) []byte {
	t.Helper()
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	ports := gopacket.Payload{byte(sport >> 8), byte(sport), byte(dport >> 8), byte(dport), 0, 0, 0, 0}
	if s.Is4() {
		return build(t, ether(ownMAC, layers.EthernetTypeIPv4), from4(s, d, proto), ports)
	}
	return build(t, ether(ownMAC, layers.EthernetTypeIPv6), from6(s, d, proto), ports)
}

func setACL(t testing.TB, s *Steer, a *ACL) {
	t.Helper()
	if err := s.SetACL(a); err != nil {
		t.Fatal(err)
	}
}

// dies reports whether a frame to a VIP is dropped, and checks that it is counted as what becomes of it; counter is that of the
// cause.
func (r *rig) dies(t *testing.T, frame []byte, counter func(*Stats) *uint64) bool {
	t.Helper()
	want := r.stats(t)
	verdict := r.run(t, frame)
	got := r.stats(t)
	want.ToVIPs++
	dropped := *counter(&got) > *counter(&want)
	if dropped {
		*counter(&want)++
	} else {
		want.Redirected++
	}
	if got != want || (verdict == xdpDrop) != dropped || !dropped && verdict != xdpRedirect {
		t.Fatalf("verdict %d, counted %+v, want %+v", verdict, got, want)
	}
	return dropped
}

// denied reports whether a packet to a VIP dies by a list.
func (r *rig) denied(t *testing.T, frame []byte) bool {
	t.Helper()
	return r.dies(t, frame, func(s *Stats) *uint64 { return &s.Denied })
}

func newSourceRig(t *testing.T, o AttachOptions) *rig {
	t.Helper()
	o.Queues = 1
	r := newSizedRig(t, 4, 4, o, vip4, vip6)
	r.giveSocket(t)
	return r
}

func TestACLVerdicts(t *testing.T) {
	r := newSourceRig(t, AttachOptions{})
	tcp, udp := layers.IPProtocolTCP, layers.IPProtocolUDP
	setACL(t, r.Steer, &ACL{
		Global: join(
			deny("10.0.0.0/8", "10.1.2.0/24", "203.0.113.7/32", "2001:db8:bad::/48", "2001:db8:bad:1:2::3/128"),
			allow("10.1.0.0/16", "10.1.2.3/32", "2001:db8:bad:1::/64")),
		Lists: []List{
			{"web", vip4, 6, []PortRange{{80, 80}, {8000, 8999}}, join(deny("0.0.0.0/0"), allow("198.51.100.0/24", "10.0.0.0/8"))},
			{"dns", vip4, 17, all, deny("198.51.100.0/24")},
			{"web6", vip6, 6, []PortRange{{443, 443}}, join(deny("::/0"), allow("2001:db8:1::/48"))},
			{"none", vip6, 17, all, nil},
		},
	})
	const four, six = "192.0.2.10", "2001:db8::10"
	for _, c := range []struct {
		src, dst string
		proto    layers.IPProtocol
		port     uint16
		want     bool
	}{
		{"192.0.2.1", four, tcp, 22, false}, // in no entry
		{"10.9.9.9", four, tcp, 22, true},
		{"10.1.1.1", four, tcp, 22, false},
		{"10.1.2.1", four, tcp, 22, true},
		{"10.1.2.3", four, tcp, 22, false},
		{"9.255.255.255", four, tcp, 22, false},
		{"11.0.0.0", four, tcp, 22, false},
		{"203.0.113.7", four, tcp, 22, true},
		{"203.0.113.6", four, tcp, 22, false},
		{"10.9.9.9", four, layers.IPProtocolICMPv4, 0, true},
		{"10.9.9.9", four, layers.IPProtocolGRE, 0, true},
		{"2001:db8:bad::1", six, tcp, 22, true},
		{"2001:db8:bad:1::1", six, tcp, 22, false},
		{"2001:db8:bad:1:2::3", six, tcp, 22, true},
		{"2001:db8:bae::1", six, tcp, 22, false},
		{"2001:db8:bad::1", six, layers.IPProtocolICMPv6, 0, true},

		{"192.0.2.1", four, tcp, 79, false},
		{"192.0.2.1", four, tcp, 80, true},
		{"192.0.2.1", four, tcp, 81, false},
		{"192.0.2.1", four, tcp, 7999, false},
		{"192.0.2.1", four, tcp, 8000, true},
		{"192.0.2.1", four, tcp, 8500, true},
		{"192.0.2.1", four, tcp, 8999, true},
		{"192.0.2.1", four, tcp, 9000, false},
		{"192.0.2.1", four, udp, 80, false},
		{"192.0.2.1", four, layers.IPProtocolSCTP, 80, false},
		{"192.0.2.1", four, layers.IPProtocolICMPv4, 80, false},
		{"198.51.100.1", four, tcp, 80, false},
		{"198.51.100.1", four, udp, 80, true},
		{"198.51.100.1", four, udp, 0, true},
		{"198.51.100.1", four, udp, 65535, true},
		{"10.9.9.9", four, tcp, 80, true}, // a list cannot allow what the global one denies
		{"10.1.1.1", four, tcp, 80, false},
		{"2001:db8:1::1", six, tcp, 443, false},
		{"2001:db8:2::1", six, tcp, 443, true},
		{"2001:db8:2::1", six, tcp, 444, false},
		{"2001:db8:2::1", six, udp, 443, false},
	} {
		if got := r.denied(t, sent(t, c.src, c.dst, c.proto, 4000, c.port)); got != c.want {
			t.Errorf("from %s to %s protocol %d port %d: denied %v, want %v", c.src, c.dst, c.proto, c.port, got, c.want)
		}
		other := map[string]string{four: other4.String(), six: other6.String()}[c.dst]
		if got := r.run(t, sent(t, c.src, other, c.proto, 4000, c.port)); got != xdpPass {
			t.Errorf("from %s to %s, no VIP: verdict %d", c.src, other, got)
		}
	}
}

// What stands before the ports, and what has none. Everything is denied on one port of each VIP.
func TestACLFindsPorts(t *testing.T) {
	lists := []List{
		{"4", vip4, 17, []PortRange{{53, 53}}, deny("0.0.0.0/0")},
		{"6", vip6, 17, []PortRange{{53, 53}}, deny("::/0")},
	}
	to53, to54 := gopacket.Payload{1, 1, 0, 53, 0, 8, 0, 0}, gopacket.Payload{0, 53, 0, 54, 0, 8, 0, 0}
	v4 := func(change func(*layers.IPv4), rest ...gopacket.SerializableLayer) []byte {
		h := ip4(vip4, protoUDP)
		change(h)
		return build(t, append([]gopacket.SerializableLayer{h}, rest...)...)
	}
	v6 := func(next layers.IPProtocol, rest ...gopacket.SerializableLayer) []byte {
		return build(t, append([]gopacket.SerializableLayer{ip6(vip6, next)}, rest...)...)
	}
	// Options headers: of eight bytes, and of so many times eight more.
	options := func(next layers.IPProtocol, more int) gopacket.Payload {
		return append(gopacket.Payload{byte(next), byte(more), 1, 4, 0, 0, 0, 0}, make([]byte, 8*more)...)
	}
	chain := func(n, more int) []byte {
		rest := []gopacket.SerializableLayer{}
		for range n - 1 {
			rest = append(rest, options(layers.IPProtocolIPv6Destination, more))
		}
		return v6(layers.IPProtocolIPv6Destination, append(rest, options(protoUDP, more), to53)...)
	}
	const hop, dest, frag = layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Destination, layers.IPProtocolIPv6Fragment
	cases := []struct {
		name   string
		denied bool
		packet []byte
	}{
		{"IPv4", true, v4(func(*layers.IPv4) {}, to53)},
		{"IPv4, another port", false, v4(func(*layers.IPv4) {}, to54)},
		{"IPv4, 4 bytes of options", true, v4(func(h *layers.IPv4) {
			h.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
		}, to53)},
		{"IPv4, 40 bytes of options", true, v4(func(h *layers.IPv4) {
			h.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 39, OptionData: make([]byte, 37)}}
		}, to53)},
		{"IPv4, first fragment", true, v4(func(h *layers.IPv4) { h.Flags = layers.IPv4MoreFragments }, to53)},
		{"IPv4, further fragment", false, v4(func(h *layers.IPv4) {
			h.Flags, h.FragOffset = layers.IPv4MoreFragments, 1
		}, to53)},
		{"IPv4, last fragment", false, v4(func(h *layers.IPv4) { h.FragOffset = 4096 }, to53)},
		{"IPv4, don't fragment", true, v4(func(h *layers.IPv4) { h.Flags = layers.IPv4DontFragment }, to53)},
		{"IPv4 TCP", false, v4(func(h *layers.IPv4) { h.Protocol = protoTCP }, to53)},
		{"IPv4 in a packet cut before the ports", false, v4(func(*layers.IPv4) {}, to53[:3])},
		{"IPv6", true, v6(protoUDP, to53)},
		{"IPv6, another port", false, v6(protoUDP, to54)},
		{"IPv6, hop-by-hop", true, v6(hop, options(protoUDP, 0), to53)},
		{"IPv6, hop-by-hop, another port", false, v6(hop, options(protoUDP, 0), to54)},
		{"IPv6, destination options", true, v6(dest, options(protoUDP, 3), to53)},
		{"IPv6, routing", true, v6(layers.IPProtocolIPv6Routing, gopacket.Payload{17, 0, 4, 0, 0, 0, 0, 0}, to53)},
		{"IPv6, first fragment", true, v6(frag, fragment6(protoUDP, 0, true, 1), to53)},
		{"IPv6, a fragment that is all", true, v6(frag, fragment6(protoUDP, 0, false, 1), to53)},
		{"IPv6, further fragment", false, v6(frag, fragment6(protoUDP, 1, true, 1), to53)},
		{"IPv6, last fragment", false, v6(frag, fragment6(protoUDP, 8191, false, 1), to53)},
		{"IPv6, all at once", true, v6(hop, options(dest, 0), options(layers.IPProtocolIPv6Routing, 1),
			gopacket.Payload{44, 0, 4, 0, 0, 0, 0, 0}, fragment6(dest, 0, true, 1), options(protoUDP, 2), to53)},
		{"IPv6, options behind a further fragment", false, v6(frag, fragment6(dest, 2, true, 1), options(protoUDP, 0), to53)},
		{"IPv6, 8 headers", true, chain(8, 0)},
		{"IPv6, 9 headers, which the worker refuses", false, chain(9, 0)},
		{"IPv6, 256 bytes of headers", true, chain(8, 3)},
		{"IPv6, 264 bytes of headers, which the worker refuses", false, chain(1, 32)},
		{"IPv6, headers cut short", false, v6(hop, options(protoUDP, 3)[:16])},
		{"IPv6, authentication, which the worker refuses", false, v6(layers.IPProtocolAH, options(protoUDP, 0), to53)},
		{"IPv6 ICMP", false, v6(layers.IPProtocolICMPv6, to53)},
	}
	for _, vlan := range []uint16{0, 5} {
		t.Run(fmt.Sprint("VLAN ", vlan), func(t *testing.T) {
			r := newSourceRig(t, AttachOptions{VLAN: vlan})
			for _, global := range []bool{false, true} {
				a := &ACL{Lists: lists}
				if global {
					a.Global = deny("0.0.0.0/0", "::/0")
				}
				setACL(t, r.Steer, a)
				for _, c := range cases {
					typ := layers.EthernetTypeIPv4
					if c.packet[0]>>4 == 6 {
						typ = layers.EthernetTypeIPv6
					}
					parts := []gopacket.SerializableLayer{ether(ownMAC, typ), gopacket.Payload(c.packet)}
					if vlan != 0 {
						parts = []gopacket.SerializableLayer{ether(ownMAC, layers.EthernetTypeDot1Q),
							&layers.Dot1Q{VLANIdentifier: vlan, Type: typ}, gopacket.Payload(c.packet)}
					}
					if got := r.denied(t, build(t, parts...)); got != (c.denied || global) {
						t.Errorf("%s, global %v: denied %v", c.name, global, got)
					}
				}
			}
		})
	}
}

// Lists are about packets to VIPs: not replies of backends, nor packets in a loop.
func TestACLLeavesRepliesAlone(t *testing.T) {
	r := newReplyRig(t, AttachOptions{Queues: 1})
	setACL(t, r.Steer, &ACL{Global: deny("0.0.0.0/0", "::/0"), Lists: []List{{"x", vip4, 6, all, deny("0.0.0.0/0")}}})
	for _, a := range []netip.Addr{backend4, backend6} {
		if err := r.Ban(a, 1<<62); err != nil {
			t.Fatal(err)
		}
	}
	checkCases(t, r, replyCases(t), Stats{Replies: 1, NoSocket: 1})
	checkCases(t, r, loopCases(t), Stats{ToVIPs: 1, Loops: 1})
	for name, frame := range stackFrames(t) {
		if got := r.run(t, frame); got != xdpPass {
			t.Errorf("%s: verdict %d", name, got)
		}
	}
}

// A v4-mapped source is one of no IPv4 entry or ban; the worker refuses it whatever the lists say.
func TestACLMappedSource(t *testing.T) {
	r := newSourceRig(t, AttachOptions{})
	frame := sent(t, "2001:db8::1", vip6.String(), protoTCP, 1, 80)
	copy(frame[14+8:], net.IP{198, 51, 100, 1}.To16())
	setACL(t, r.Steer, &ACL{Global: deny("198.51.100.1/32", "::/0")})
	if r.denied(t, frame) {
		t.Error("denied")
	}
}

// model is what the documentation of ACL says, in Go.
func (a *ACL) model(src, dst netip.Addr, proto uint8, port uint16) (denied bool) {
	judge := func(entries []Entry) bool {
		best, deny := -1, false
		for _, e := range entries {
			if e.Prefix.Contains(src) && e.Prefix.Bits() > best {
				best, deny = e.Prefix.Bits(), e.Deny
			}
		}
		return deny
	}
	if judge(a.Global) {
		return true
	}
	for _, l := range a.Lists {
		for _, p := range l.Ports {
			if l.VIP == dst && l.Proto == proto && p.First <= port && port <= p.Last && judge(l.Entries) {
				return true
			}
		}
	}
	return false
}

// randomACL is of few bits, so that much contains, follows and contradicts each other.
func randomACL(random *rand.Rand, entries int) *ACL {
	list := func(n int) (list []Entry) {
		seen := make(map[netip.Prefix]bool)
		for range n {
			addr := netip.AddrFrom4([4]byte{10, byte(random.IntN(4)), 0, byte(random.Uint32())})
			if random.IntN(2) == 0 {
				addr = netip.AddrFrom16([16]byte{0x20, 1, byte(random.IntN(4)), 15: byte(random.Uint32())})
			}
			p, _ := addr.Prefix(random.IntN(addr.BitLen() + 1))
			if random.IntN(2) == 0 {
				p, _ = addr.Prefix(addr.BitLen() - random.IntN(6))
			}
			if !seen[p] {
				seen[p] = true
				list = append(list, Entry{p, random.IntN(2) == 0})
			}
		}
		return list
	}
	a := &ACL{Global: list(random.IntN(entries + 1))}
	first := uint32(0)
	for i := range random.IntN(6) { // of one destination, beside each other
		last := first + uint32(random.IntN(1<<random.IntN(15)))
		if last > 65535 {
			break
		}
		vip := []netip.Addr{vip4, vip6}[random.IntN(2)]
		a.Lists = append(a.Lists, List{fmt.Sprint(i), vip, 6, []PortRange{{uint16(first), uint16(last)}}, list(random.IntN(entries + 1))})
		first = last + 1 + uint32(random.IntN(3))
	}
	return a
}

// Whatever lists follow whichever, the packets denied are exactly those of the last ones.
func TestACLAgainstModel(t *testing.T) {
	r := newSourceRig(t, AttachOptions{})
	random := rand.New(rand.NewPCG(13, 14))
	for round := range 25 {
		a := randomACL(random, 1<<random.IntN(8))
		r.acl.sources.single, r.acl.destinations.single = round%2 == 1, round%2 == 1
		setACL(t, r.Steer, a)
		for range 150 {
			src, dst := netip.AddrFrom4([4]byte{10, byte(random.IntN(5)), 0, byte(random.Uint32())}), vip4
			if random.IntN(2) == 0 {
				src, dst = netip.AddrFrom16([16]byte{0x20, 1, byte(random.IntN(5)), 15: byte(random.Uint32())}), vip6
			}
			port := uint16(random.IntN(1 << random.IntN(17)))
			if len(a.Lists) > 0 && random.IntN(2) == 0 {
				p := a.Lists[random.IntN(len(a.Lists))].Ports[0]
				port = []uint16{p.First - 1, p.First, p.Last, p.Last + 1}[random.IntN(4)]
			}
			frame := sent(t, src.String(), dst.String(), protoTCP, 1, port)
			if got, want := r.denied(t, frame), a.model(src, dst, 6, port); got != want {
				t.Fatalf("round %d: from %s to %s port %d: denied %v, want %v, with %+v", round, src, dst, port, got, want, a)
			}
		}
	}
	// Nothing stays behind in the kernel.
	setACL(t, r.Steer, nil)
	checkHeld(t, r.Steer, 0, 0)
	if r.watched.Refusals != 0 {
		t.Errorf("programs still look for %b", r.watched.Refusals)
	}
}

// checkHeld counts what the kernel holds.
func checkHeld(t *testing.T, s *Steer, sources, destinations int) {
	t.Helper()
	for name, want := range map[string]int{steerMapAcl: sources, steerMapAclDestinations: destinations} {
		var key trieKey
		var value trieValue
		n := 0
		for i := s.maps[name].Iterate(); i.Next(&key, &value); n++ {
		}
		if n != want {
			t.Errorf("%s holds %d elements, want %d", name, n, want)
		}
	}
}
