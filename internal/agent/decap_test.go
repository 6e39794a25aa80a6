//go:build linux

package agent

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// Verdicts of the program, as the kernel returns them.
const (
	next = 0xffffffff // TCX_NEXT
	drop = 2          // TC_ACT_SHOT
)

// load loads the programs for the test's VIPs and addresses, GUE on its port, and an MTU of 1500.
func load(t testing.TB, sources ...netip.Prefix) *programs {
	t.Helper()
	return loadWith(t, nil, sources...)
}

// loadWith is load with a secret of SYN cookies.
func loadWith(t testing.TB, secret *[32]byte, sources ...netip.Prefix) *programs {
	t.Helper()
	testenv.RequireRoot(t)
	d, err := loadPrograms([]netip.Addr{vip4, vip6}, nil, sources, secret)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	if err := d.setAddresses([]netip.Addr{here4, here6}); err != nil {
		t.Fatal(err)
	}
	if err := d.setParameters(parameters{GUEPort: DefaultGUEPort, MSS: clampFor(ClampAuto, 1500)}); err != nil {
		t.Fatal(err)
	}
	return d
}

// run runs the ingress program on a frame. What it did is its verdict, the frame after it, and the change of the counters.
func (p *programs) run(t testing.TB, frame []byte, context []byte) (verdict uint32, out []byte, counted Counters) {
	t.Helper()
	return p.runOne(t, p.objs.SluiceDecap, frame, context)
}

func (p *programs) runOne(t testing.TB, program *ebpf.Program, frame []byte, context []byte) (verdict uint32, out []byte, counted Counters) {
	t.Helper()
	before, err := p.counters()
	if err != nil {
		t.Fatal(err)
	}
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	if context != nil {
		opts.Context = context
	}
	verdict, err = program.Run(&opts)
	if err != nil {
		t.Fatalf("run program on %d bytes, type %x: %v", len(frame), frame[12:14], err)
	}
	after, err := p.counters()
	if err != nil {
		t.Fatal(err)
	}
	return verdict, opts.DataOut, minus(after, before)
}

func minus(a, b Counters) Counters {
	return Counters{
		a.DecapsulatedIPv4 - b.DecapsulatedIPv4, a.DecapsulatedIPv6 - b.DecapsulatedIPv6, a.NotVIP - b.NotVIP,
		a.Fragment - b.Fragment, a.Malformed - b.Malformed, a.Merged - b.Merged, a.Source - b.Source, a.ECN - b.ECN,
		a.Failed - b.Failed, a.Clamped - b.Clamped,
		a.CookieAccepted - b.CookieAccepted, a.CookieBad - b.CookieBad, a.CookieTimeWait - b.CookieTimeWait,
		a.CookieRefused - b.CookieRefused, a.CookieNoMemory - b.CookieNoMemory, a.CookieFailed - b.CookieFailed,
	}
}

// decapsulated is what is counted for n packets of this pair.
func (p pair) decapsulated(n uint64) Counters {
	if p.inner6 {
		return Counters{DecapsulatedIPv6: n}
	}
	return Counters{DecapsulatedIPv4: n}
}

// runnable reports whether the kernel runs a program on the frame for a test: not without the IP header that the
// Ethernet type speaks of.
func runnable(frame []byte) bool {
	if len(frame) < 15 || len(frame) > 1500 {
		return false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		return len(frame) >= 14+20
	case unix.ETH_P_IPV6:
		return len(frame) >= 14+40
	}
	return true
}

// expect runs the program and compares. A nil frame: as it came.
func (p *programs) expect(t *testing.T, frame []byte, verdict uint32, want []byte, counted Counters) {
	t.Helper()
	if want == nil {
		want = frame
	}
	v, out, c := p.run(t, frame, nil)
	if v != verdict {
		t.Errorf("verdict %#x, want %#x", v, verdict)
	}
	if !bytes.Equal(out, want) {
		t.Errorf("frame after:\n%x\nwant:\n%x", out, want)
	}
	if c != counted {
		t.Errorf("counted %+v, want %+v", c, counted)
	}
}

func TestDecapsulated(t *testing.T) {
	d := load(t)
	options := []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}} // router alert
	most := slices.Repeat(options, 10)
	for _, c := range []struct {
		name   string
		pairs  []pair
		change func(*testPacket)
	}{
		{"plain", pairs, func(*testPacket) {}},
		{"outer options", pairs[:2], func(p *testPacket) { p.o4.Options = options }},
		{"outer options, all 40 bytes", pairs[:2], func(p *testPacket) { p.o4.Options = most }},
		{"inner options", []pair{pairs[0], pairs[2]}, func(p *testPacket) { p.i4.Options = options }},
		{"inner UDP", pairs, func(p *testPacket) { p.i4.Protocol, p.i6.NextHeader = 17, 17 }},
		{"inner ICMP", pairs, func(p *testPacket) { p.i4.Protocol, p.i6.NextHeader = 1, 58 }},
		{"inner fragment", []pair{pairs[0], pairs[2]}, func(p *testPacket) { p.i4.FragOffset = 185 }},
		{"nothing in the inner packet", pairs, func(p *testPacket) { p.payload = nil }},
		{"a full frame", pairs, func(p *testPacket) { p.payload = make([]byte, 1500-48-40) }},
		{"outer reserved flag", pairs[:2], func(p *testPacket) { p.o4.Flags = layers.IPv4EvilBit }},
	} {
		for _, p := range tunnels(c.pairs) {
			t.Run(fmt.Sprint(c.name, "/", p), func(t *testing.T) {
				pkt := newTestPacket(p)
				c.change(pkt)
				d.expect(t, pkt.frame(), next, pkt.bare(), p.decapsulated(1))
			})
		}
	}
}

func TestUntouched(t *testing.T) {
	d := load(t)
	other4, other6 := netip.MustParseAddr("192.0.2.11").AsSlice(), netip.MustParseAddr("2001:db8::11").AsSlice()
	patch := func(at int, b byte) func([]byte) { return func(f []byte) { f[at] = b } }
	for _, c := range []struct {
		name    string
		pairs   []pair
		change  func(*testPacket)
		patch   func([]byte) // of the finished frame
		counted Counters
	}{
		{"inner destination is no VIP", tunnels(pairs), func(p *testPacket) { p.i4.DstIP, p.i6.DstIP = other4, other6 }, nil, Counters{NotVIP: 1}},
		{"outer destination is not here", tunnels(pairs), func(p *testPacket) { p.o4.DstIP, p.o6.DstIP = other4, other6 }, nil, Counters{}},
		{"outer destination is a VIP", tunnels(pairs), func(p *testPacket) { p.o4.DstIP, p.o6.DstIP = vip4.AsSlice(), vip6.AsSlice() }, nil, Counters{}},
		{"outer protocol ICMP", tunnels(pairs), func(p *testPacket) { p.o4.Protocol, p.o6.NextHeader = 1, 58 }, nil, Counters{}},
		{"outer protocol GRE", tunnels(pairs), func(p *testPacket) { p.o4.Protocol, p.o6.NextHeader = 47, 47 }, nil, Counters{}},
		{"outer extension header", tunnels(pairs[2:]), func(p *testPacket) { p.o6.NextHeader = 60 }, nil, Counters{}},
		{"ARP", tunnels(pairs), func(p *testPacket) { p.eth.EthernetType = layers.EthernetTypeARP }, nil, Counters{}},
		{"VLAN tag", tunnels(pairs), func(p *testPacket) { p.eth.EthernetType = layers.EthernetTypeDot1Q }, nil, Counters{}},
		{"outer first fragment", tunnels(pairs[:2]), func(p *testPacket) { p.o4.Flags = layers.IPv4MoreFragments }, nil, Counters{Fragment: 1}},
		{"outer checksum", tunnels(pairs[:2]), nil, patch(24, 0xaa), Counters{Malformed: 1}},
		{"outer header length 4 words", pairs[:2], nil, patch(14, 0x44), Counters{Malformed: 1}},
		{"outer header length 15 words, not so long", pairs[:2], func(p *testPacket) { p.payload = nil }, patch(14, 0x4f), Counters{Malformed: 1}},
		{"outer version 5", tunnels(pairs[:2]), nil, patch(14, 0x55), Counters{Malformed: 1}},
		{"outer version 4 in IPv6", tunnels(pairs[2:]), nil, patch(14, 0x40), Counters{Malformed: 1}},
		{"IPv6 announced, IPv4 inside", []pair{pairs[0], pairs[2]}, func(p *testPacket) { p.o4.Protocol, p.o6.NextHeader = 41, 41 }, nil, Counters{Malformed: 1}},
		{"IPv4 announced, IPv6 inside", []pair{pairs[1], pairs[3]}, func(p *testPacket) { p.o4.Protocol, p.o6.NextHeader = 4, 4 }, nil, Counters{Malformed: 1}},
		{"inner header length 4 words, 4in4", pairs[:1], nil, patch(34, 0x44), Counters{Malformed: 1}},
		{"inner header length 4 words, 4in6", pairs[2:3], nil, patch(54, 0x44), Counters{Malformed: 1}},
	} {
		for _, p := range c.pairs {
			t.Run(fmt.Sprint(c.name, "/", p), func(t *testing.T) {
				pkt := newTestPacket(p)
				if c.change != nil {
					c.change(pkt)
				}
				frame := pkt.frame()
				if c.patch != nil {
					c.patch(frame)
				}
				d.expect(t, frame, next, nil, c.counted)
			})
		}
	}

	t.Run("not encapsulated", func(t *testing.T) {
		for _, p := range pairs {
			d.expect(t, newTestPacket(p).bare(), next, nil, Counters{})
		}
	})
	t.Run("each fragment offset bit", func(t *testing.T) {
		for bit := range 13 {
			pkt := newTestPacket(pairs[0])
			pkt.o4.FragOffset = 1 << bit
			d.expect(t, pkt.frame(), next, nil, Counters{Fragment: 1})
		}
	})
	t.Run("cut short anywhere", func(t *testing.T) {
		for _, p := range tunnels(pairs) {
			pkt := newTestPacket(p)
			whole := pkt.frame()
			outer := 14 + p.outerLen()
			headers := outer + 20
			if p.inner6 {
				headers += 20
			}
			for n := map[bool]int{false: 14 + 20, true: 14 + 40}[p.outer6]; n < len(whole); n++ {
				switch {
				case n < outer: // no UDP header, or no port
					d.expect(t, whole[:n], next, nil, Counters{})
				case n < headers:
					d.expect(t, whole[:n], next, nil, Counters{Malformed: 1})
				default: // what is missing is the kernel's to find out
					d.expect(t, whole[:n], next, pkt.bare()[:14+n-outer], p.decapsulated(1))
				}
			}
		}
	})
}

func TestSources(t *testing.T) {
	allowed := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28"), netip.MustParsePrefix("fd00::/120"), netip.MustParsePrefix("10.9.9.9/32")}
	d := load(t, allowed...)
	for _, c := range []struct {
		from string
		ok   bool
	}{
		{"10.0.0.0", true}, {"10.0.0.15", true}, {"10.0.0.16", false}, {"9.255.255.255", false},
		{"10.9.9.9", true}, {"10.9.9.8", false}, {"fd00::", true}, {"fd00::ff", true}, {"fd00::100", false},
		{"203.0.113.5", false}, {"2001:db8:c::5", false}, {"::10.0.0.1", false},
	} {
		from := netip.MustParseAddr(c.from)
		for _, p := range tunnels(pairs) {
			if p.outer6 != from.Is6() {
				continue
			}
			t.Run(fmt.Sprint(c.from, "/", p), func(t *testing.T) {
				pkt := newTestPacket(p)
				pkt.o4.SrcIP, pkt.o6.SrcIP = from.AsSlice(), from.AsSlice()
				if c.ok {
					d.expect(t, pkt.frame(), next, pkt.bare(), p.decapsulated(1))
					return
				}
				d.expect(t, pkt.frame(), drop, nil, Counters{Source: 1})
				// What is not to a VIP is somebody else's tunnel.
				pkt.i4.DstIP, pkt.i6.DstIP = here4.AsSlice(), here6.AsSlice()
				d.expect(t, pkt.frame(), next, nil, Counters{NotVIP: 1})
			})
		}
	}
}

// TestECN compares with figure 4 of RFC 6040.
func TestECN(t *testing.T) {
	const dropped = 0xff
	// By inner and outer: Not-ECT, ECT(1), ECT(0), CE.
	figure := [4][4]uint8{
		0: {0, 0, 0, dropped},
		1: {1, 1, 1, 3},
		2: {2, 1, 2, 3},
		3: {3, 3, 3, 3},
	}
	d := load(t)
	const dscp = 46 << 2
	for inner, row := range figure {
		for outer, want := range row {
			for _, p := range tunnels(pairs) {
				t.Run(fmt.Sprintf("inner %d outer %d/%s", inner, outer, p), func(t *testing.T) {
					pkt := newTestPacket(p)
					pkt.o4.TOS, pkt.o6.TrafficClass = uint8(outer), uint8(outer)
					pkt.i4.TOS, pkt.i6.TrafficClass = dscp|uint8(inner), dscp|uint8(inner)
					frame := pkt.frame()
					if want == dropped {
						d.expect(t, frame, drop, nil, Counters{ECN: 1})
						return
					}
					pkt.i4.TOS, pkt.i6.TrafficClass = dscp|want, dscp|want
					d.expect(t, frame, next, pkt.bare(), p.decapsulated(1)) // checksum included
				})
			}
		}
	}
}

// TestMerged runs the program on packets that GRO would have merged.
func TestMerged(t *testing.T) {
	d := load(t)
	context := make([]byte, 192)                     // struct __sk_buff
	binary.NativeEndian.PutUint32(context[164:], 40) // gso_segs
	for _, p := range tunnels(pairs) {
		pkt := newTestPacket(p)
		if v, out, c := d.run(t, pkt.frame(), context); v != next || !bytes.Equal(out, pkt.bare()) || c != p.decapsulated(40) {
			t.Errorf("%s of 40 packets: verdict %#x, counted %+v", p, v, c)
		}
	}

	// A segment size without a kind of segments is what the kernel refuses to touch.
	binary.NativeEndian.PutUint32(context[176:], 100) // gso_size
	for _, p := range tunnels(pairs) {
		if v, _, c := d.run(t, newTestPacket(p).frame(), context); v != drop || c != (Counters{Failed: 40}) {
			t.Errorf("%s refused by the kernel: verdict %#x, counted %+v", p, v, c)
		}
	}

	// Datagrams that were merged: the first inner packet is one of several.
	for _, p := range inGUE(pairs) {
		pkt := newTestPacket(p)
		pkt.udp.extra = 500
		frame := append(pkt.frame(), make([]byte, 500)...)
		if v, out, c := d.run(t, frame, context); v != next || !bytes.Equal(out, frame) || c != (Counters{Merged: 40}) {
			t.Errorf("%s merged: verdict %#x, counted %+v", p, v, c)
		}
	}
}

func TestSetAddresses(t *testing.T) {
	d := load(t)
	old := newTestPacket(pairs[0])
	fresh := newTestPacket(pairs[0])
	fresh.o4.DstIP = []byte{10, 0, 0, 3}
	d.expect(t, fresh.frame(), next, nil, Counters{})
	if err := d.setAddresses([]netip.Addr{netip.MustParseAddr("10.0.0.3"), here6}); err != nil {
		t.Fatal(err)
	}
	d.expect(t, fresh.frame(), next, fresh.bare(), Counters{DecapsulatedIPv4: 1})
	d.expect(t, old.frame(), next, nil, Counters{})
	if err := d.setAddresses(nil); err != nil {
		t.Fatal(err)
	}
	d.expect(t, fresh.frame(), next, nil, Counters{})

	// More than the map holds is an error that says what to do, and no panic.
	var many []netip.Addr
	for a := netip.MustParseAddr("10.1.0.0"); len(many) < 1025; a = a.Next() {
		many = append(many, a)
	}
	if err := d.setAddresses(many); err == nil {
		t.Error("1,025 addresses fit into a map of 1,024")
	}
}

// FuzzDecap holds the program to what may happen at all: a frame is left as it is, or loses exactly its outer header, or
// is dropped; and at most one counter moves, by one.
func FuzzDecap(f *testing.F) {
	for _, p := range tunnels(pairs) {
		pkt := newTestPacket(p)
		f.Add(pkt.frame())
		pkt.o4.TOS, pkt.o6.TrafficClass, pkt.i4.TOS, pkt.i6.TrafficClass = 3, 3, 1, 1
		f.Add(pkt.frame())
	}
	d := load(f)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if !runnable(frame) {
			return
		}
		checkProperty(t, d, frame)
	})
}

// TestRandomChanges is the same property over good packets with a few bytes changed. With a secret too: nobody listens, and
// what looks for cookies then changes nothing.
func TestRandomChanges(t *testing.T) {
	for _, secret := range []*[32]byte{nil, new([32]byte)} {
		testRandomChanges(t, loadWith(t, secret))
	}
}

func testRandomChanges(t *testing.T, d *programs) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	var sum Counters
	for range 5000 {
		frame := newTestPacket(tunnels(pairs)[r.IntN(8)]).frame()
		for range 1 + r.IntN(2) {
			frame[r.IntN(min(len(frame), 102))] ^= 1 << r.IntN(8)
		}
		if !runnable(frame) {
			continue
		}
		c := checkProperty(t, d, frame)
		sum.DecapsulatedIPv4 += c.DecapsulatedIPv4
		sum.DecapsulatedIPv6 += c.DecapsulatedIPv6
		sum.Malformed += c.Malformed
		sum.NotVIP += c.NotVIP
	}
	if sum.DecapsulatedIPv4 == 0 || sum.DecapsulatedIPv6 == 0 || sum.Malformed == 0 || sum.NotVIP == 0 {
		t.Errorf("the changes reach too little: %+v", sum)
	}
}

func checkProperty(t *testing.T, d *programs, frame []byte) Counters {
	t.Helper()
	frame = bytes.Clone(frame)
	verdict, out, c := d.run(t, frame, nil)
	total := c.DecapsulatedIPv4 + c.DecapsulatedIPv6 + c.NotVIP + c.Fragment + c.Malformed + c.Merged + c.Source + c.ECN + c.Failed + c.Clamped
	if total > 1 {
		t.Fatalf("counted %+v for one frame %x", c, frame)
	}
	switch {
	case verdict == drop && c.ECN == 1:
	case verdict == next && c.DecapsulatedIPv4+c.DecapsulatedIPv6 == 1:
		outer, proto := 40, frame[14+6]
		if binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IP {
			outer, proto = int(frame[14]&15)*4, frame[14+9]
		}
		if proto == unix.IPPROTO_UDP {
			outer += 8
		}
		want := slices.Concat(frame[:14], frame[14+outer:])
		binary.BigEndian.PutUint16(want[12:], unix.ETH_P_IP)

		if c.DecapsulatedIPv6 == 1 {
			binary.BigEndian.PutUint16(want[12:], unix.ETH_P_IPV6)
		}
		if len(out) != len(want) {
			t.Fatalf("%x became %x, %d bytes instead of %d", frame, out, len(out), len(want))
		}
		for i := range want {
			may := i == 14+1 || c.DecapsulatedIPv4 == 1 && (i == 14+10 || i == 14+11)
			if out[i] != want[i] && !may {
				t.Fatalf("%x became %x: byte %d is not %#x", frame, out, i, want[i])
			}
		}
	case verdict == next && bytes.Equal(out, frame):
	default:
		t.Fatalf("%x became %x with verdict %#x, counted %+v", frame, out, verdict, c)
	}
	return c
}
