package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// scratch returns the checksum of a TCP, UDP or ICMPv6 message, computed from nothing.
func scratch(src, dst []byte, proto uint8, message []byte) uint16 {
	all := append(append(bytes.Clone(src), dst...), 0, proto)
	all = append(binary.BigEndian.AppendUint16(all, uint16(len(message))), message...)
	return ^naiveSum(append(all, make([]byte, len(message)&1)...))
}

// checkSums checks, from scratch, all checksums of a frame that a right sender fills in. UDP may have none.
func checkSums(t testing.TB, frame []byte) {
	t.Helper()
	m := parse(frame)
	ip := frame[m.L3:m.L4]
	src, dst := ip[8:24], ip[24:40]
	if m.Flags&V6 == 0 {
		src, dst = ip[12:16], ip[16:20]
		if naiveSum(ip) != 0xffff {
			t.Fatalf("%x: wrong header checksum", frame)
		}
	}
	if m.Flags&(First|Later) != 0 {
		return // covers more than there is
	}
	proto, at := m.Proto, 16
	switch {
	case m.Flags&ICMPError != 0 && m.Flags&V6 != 0:
		proto, at = ProtoICMPv6, 2
	case m.Flags&ICMPError != 0:
		if data := append(bytes.Clone(frame[m.L4:m.End]), make([]byte, (m.End-m.L4)&1)...); naiveSum(data) != 0xffff {
			t.Fatalf("%x: wrong ICMP checksum", frame)
		}
		return
	case proto == ProtoUDP:
		at = 6
	}
	data := bytes.Clone(frame[m.L4:m.End])
	got := binary.BigEndian.Uint16(data[at:])
	if proto == ProtoUDP && got == 0 {
		return
	}
	data[at], data[at+1] = 0, 0
	want := scratch(src, dst, proto, data)
	if proto == ProtoUDP && want == 0 {
		want = 0xffff
	}
	if got != want {
		t.Fatalf("%x: checksum %#04x, want %#04x", frame, got, want)
	}
}

// rewritten has rewrite work on a copy of a frame, in the midst of memory whose other bytes must not change but for the
// headroom before, and returns the new frame.
func rewritten(t testing.TB, frame []byte, headroom int, rewrite func(mem []byte, start int, m *Meta) (int, int)) []byte {
	t.Helper()
	const start = 96
	m := parse(frame)
	mem := bytes.Repeat([]byte{0xa5}, start+len(frame)+32)
	copy(mem[start:], frame)
	at, n := rewrite(mem, start, &m)
	if at < start-headroom || n < ethLen || at+n > start+len(frame) {
		t.Fatalf("%x: the new frame is at %d, %d bytes; it was at %d, %d bytes", frame, at, n, start, len(frame))
	}
	if len(bytes.Trim(mem[:start-headroom], "\xa5"))+len(bytes.Trim(mem[start+len(frame):], "\xa5")) > 0 {
		t.Fatalf("%x: bytes outside the frame were written", frame)
	}
	if !bytes.Equal(mem[start+int(m.End):start+len(frame)], frame[m.End:]) {
		t.Fatalf("%x: bytes behind the packet were written", frame)
	}
	return mem[at : at+n]
}

// forth returns what e makes of a frame.
func forth(t testing.TB, frame []byte, e *Encap) []byte { return rewritten(t, frame, 0, e.Apply) }

// back returns the reply that a frame of a backend becomes.
func back(t testing.TB, frame []byte, vip Addr, port, mss uint16) []byte {
	var macs [12]byte
	copy(macs[:], nextMAC[:])
	copy(macs[6:], ownMAC[:])
	return rewritten(t, frame, 0, func(mem []byte, start int, m *Meta) (int, int) {
		return Untranslate(mem, start, m, &macs, vip, port, mss)
	})
}

// turned returns a frame without a tag, parsed as m, that goes the other way: addresses and ports have changed places, which
// leaves all checksums right.
func turned(frame []byte, m *Meta) []byte {
	frame = bytes.Clone(frame)
	ip := frame[ethLen:]
	swap(source.addr(ip, m.Flags&V6 != 0), destination.addr(ip, m.Flags&V6 != 0))
	if m.Flags&Later == 0 {
		t := ip[m.L4-m.L3:]
		swap(t[0:2], t[2:4])
	}
	return frame
}

// lowered returns the packet of a frame, without Ethernet, with its TTL lowered and a new header checksum.
func lowered(frame []byte, by uint8) []byte {
	m := parse(frame)
	ip := bytes.Clone(frame[m.L3:m.End])
	if m.Flags&V6 != 0 {
		ip[7] -= by
		return ip
	}
	ip[8] -= by
	setChecksum(ip[:m.L4-m.L3])
	return ip
}

// Of random valid packets, with options, extension headers, tags and as fragments: the translation has the new address and
// port and right checksums, and is the packet again when it is translated back, with a TTL that is two lower.
func TestNATBothWays(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 11))
	seen := map[uint16]int{}
	for i := range 20000 {
		p := randomPacket(t, rng)
		whole := parse(p.frame)
		if whole.Proto == ProtoUDP && rng.IntN(4) == 0 {
			copy(p.frame[whole.L4+6:], []byte{0, 0})
		}
		plain := p
		plain.frame = bytes.Clone(p.frame)
		if i%2 == 1 {
			p.dress(rng)
		}
		m := parse(p.frame)
		if m.Reason != None {
			t.Fatalf("%x: %v", p.frame, m.Reason)
		}
		seen[m.Flags&(First|Later|V6)]++
		backend := randomHost(rng, p.src.Is4())
		port, vipPort := uint16(0), uint16(0)
		if rng.IntN(4) > 0 {
			port, vipPort = uint16(1+rng.IntN(65535)), whole.DstPort
		}
		e := NewNAT(nextMAC, ownMAC, backend, port, 0)
		out := forth(t, p.frame, &e)
		if !bytes.Equal(out[:12], append(nextMAC[:], ownMAC[:]...)) {
			t.Fatalf("Ethernet addresses %x", out[:12])
		}
		checkSums(t, out)

		got, want := parse(out), m
		want.Dst, want.DstPort, want.Hash = FromNetip(backend), got.DstPort, got.Hash
		want.L3, want.L4, want.End = ethLen, m.L4-m.L3+ethLen, m.End-m.L3+ethLen
		if got != want || Source(out, &got) != FromNetip(p.src) || TTL(out, &got) != TTL(p.frame, &m)-1 {
			t.Fatalf("%x\nbecame %x:\n got %+v\nwant %+v", p.frame, out, got, want)
		}
		switch {
		case m.Flags&Later != 0:
			if !bytes.Equal(out[got.L4:], p.frame[m.L4:m.End]) {
				t.Fatalf("the data of a further fragment has changed: %x, was %x", out[got.L4:], p.frame[m.L4:m.End])
			}
		case port != 0 && got.DstPort != port, port == 0 && got.DstPort != m.DstPort:
			t.Fatalf("port %d became %d, want %d", m.DstPort, got.DstPort, port)
		case m.Flags&First != 0: // as the start of the whole packet's
			all := forth(t, plain.frame, &e)
			if !bytes.HasPrefix(all[whole.L4:], out[got.L4:]) {
				t.Fatalf("first fragment:\n got %x\nwant %x", out[got.L4:], all[whole.L4:])
			}
		case m.Proto == ProtoUDP:
			a, b := p.frame[m.L4+6:m.L4+8], out[got.L4+6:got.L4+8]
			if bytes.Equal(a, []byte{0, 0}) != bytes.Equal(b, []byte{0, 0}) {
				t.Fatalf("UDP checksum %x became %x", a, b)
			}
		}

		again := turned(back(t, turned(out, &m), m.Dst, vipPort, 0), &m)
		if want := lowered(p.frame, 2); !bytes.Equal(again[ethLen:], want) {
			t.Fatalf("there and back:\n got %x\nwant %x", again[ethLen:], want)
		}
	}
	for _, flags := range []uint16{0, First, Later, V6, V6 | First, V6 | Later} {
		if seen[flags] < 500 {
			t.Errorf("flags %#02x seen %d times only: the test has grown blunt", flags, seen[flags])
		}
	}
}

// A UDP checksum that comes out as zero is written as 0xffff; one that was 0xffff goes on being right.
func TestNATChecksumZero(t *testing.T) {
	for _, f := range icmpFamilies {
		backend := randomHost(rand.New(rand.NewPCG(1, 2)), f.vip.Is4())
		udp := func(dst netip.Addr, port uint16, word uint16) []byte {
			ip := network(f.client, dst, layers.IPProtocolUDP)
			l := &layers.UDP{SrcPort: 40000, DstPort: layers.UDPPort(port)}
			_ = l.SetNetworkLayerForChecksum(ip)
			return build(t, ethernet(f.vip.Is4()), ip, l, gopacket.Payload{byte(word >> 8), byte(word)})
		}
		at := ethLen + f.header + 6
		for _, c := range []struct {
			dst  netip.Addr // for which it is 0xffff
			port uint16
		}{{f.vip, 53}, {backend, 5353}} {
			word := binary.BigEndian.Uint16(udp(c.dst, c.port, 0)[at:]) // makes the sum what it must be
			frame := udp(f.vip, 53, word)
			e := NewNAT(nextMAC, ownMAC, backend, 5353, 0)
			if c.dst == f.vip {
				copy(frame[at:], []byte{0xff, 0xff}) // gopacket leaves the zero
			}
			out := forth(t, frame, &e)
			checkSums(t, out)
			if got := binary.BigEndian.Uint16(out[at:]); (got == 0xffff) != (c.dst == backend) || got == 0 {
				t.Errorf("%v: checksum %#04x", c.dst, got)
			}
			m := parse(out)
			again := back(t, turned(out, &m), FromNetip(f.vip), 53, 0)
			if !bytes.Equal(turned(again, &m)[ethLen+f.header:], frame[ethLen+f.header:ethLen+f.header+10]) {
				t.Errorf("there and back: %x, was %x", again, frame)
			}
		}
	}
}

// addDifference gives what a computation from scratch gives, near the carries too.
func TestAddDifference(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 12))
	for range 200000 {
		data := make([]byte, 20)
		for i := range data {
			data[i] = []byte{0xff, 0xff, 0x00, 0x00, 0x01, byte(rng.Uint32())}[rng.IntN(6)]
		}
		data[0] |= 1 // never all zero, as no header is
		setChecksum(data)
		sum, d := bytes.Clone(data[10:12]), uint64(0)
		for range 1 + rng.IntN(4) {
			at := 2 + 2*rng.IntN(4)
			old := binary.BigEndian.Uint16(data[at:])
			copy(data[at:], randomBytes(rng, 2))
			if rng.IntN(2) == 0 {
				copy(data[at:], [][]byte{{0, 0}, {0xff, 0xff}}[rng.IntN(2)])
			}
			d += difference(uint32(old), uint32(binary.BigEndian.Uint16(data[at:])))
		}
		before := binary.BigEndian.Uint16(sum)
		own := addDifference(sum, d)
		setChecksum(data)
		if !bytes.Equal(sum, data[10:12]) {
			t.Fatalf("%x: %x", data, sum)
		}
		if fold(own)%0xffff != fold(difference(uint32(before), uint32(binary.BigEndian.Uint16(sum))))%0xffff {
			t.Fatalf("the difference of %#04x to %x is not %#x", before, sum, own)
		}
	}
}

// The MSS is lowered in SYNs and SYN-ACKs only, in both directions.
func TestNATClampsMSS(t *testing.T) {
	for _, f := range icmpFamilies {
		for _, c := range []struct {
			syn, ack  bool
			mss, want uint16
		}{
			{true, false, 1400, 1400}, {true, false, 0, 1460}, {true, false, 1500, 1460},
			{true, true, 1400, 1400}, {false, true, 1400, 1460},
		} {
			ip := network(f.client, f.vip, layers.IPProtocolTCP)
			l := &layers.TCP{SrcPort: 40000, DstPort: 80, SYN: c.syn, ACK: c.ack, Options: []layers.TCPOption{
				{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{1460 >> 8, 1460 & 0xff}}}}
			_ = l.SetNetworkLayerForChecksum(ip)
			frame := build(t, ethernet(f.vip.Is4()), ip, l)
			e := NewNAT(nextMAC, ownMAC, f.router, 8080, c.mss)
			reverse := back(t, frame, FromNetip(f.router), 8080, c.mss)
			for _, out := range [][]byte{forth(t, frame, &e), reverse} {
				checkSums(t, out)
				g := gopacket.NewPacket(out, layers.LayerTypeEthernet, gopacket.Default)
				if got := binary.BigEndian.Uint16(g.TransportLayer().(*layers.TCP).Options[0].OptionData); got != c.want {
					t.Errorf("SYN %v, ACK %v, to %d: %d, want %d", c.syn, c.ack, c.mss, got, c.want)
				}
			}
		}
	}
}

func TestRouted(t *testing.T) {
	for _, e := range testEncaps(t) {
		e.encap.VarySource(netip.MustParsePrefix("10.7.0.0/16"))
		if e.encap.Routed() {
			t.Errorf("%s counts as a hop", e.name)
		}
	}
	e := NewNAT(nextMAC, ownMAC, netip.MustParseAddr("10.0.0.1"), 0, 0)
	e.VarySource(netip.MustParsePrefix("10.7.0.0/16"))
	if !e.Routed() || e.Overhead() != 0 {
		t.Errorf("NAT: routed %v, overhead %d", e.Routed(), e.Overhead())
	}
}

// No rewriter allocates.
func TestRewritingDoesNotAllocate(t *testing.T) {
	mem, out := make([]byte, 4096), make([]byte, 4096)
	var macs [12]byte
	for _, text := range []string{eth4 + ip4TCP + tcpSYN, eth6 + "60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN} {
		frame := fromHex(t, text)
		m := parse(frame)
		e := NewNAT(nextMAC, ownMAC, m.Dst.Netip(), 8080, 1400)
		long := m
		long.End += 100
		for name, f := range map[string]func(){
			"Apply":        func() { e.Apply(mem, 96, &m) },
			"Untranslate":  func() { Untranslate(mem, 96, &m, &macs, m.Dst, 80, 1400) },
			"Reset":        func() { Reset(mem, 96, &m) },
			"PacketTooBig": func() { PacketTooBig(mem, 96, &long, 1400) },
			"Split":        func() { m.Flags &^= V6; Split(mem[96:], &m, 1400, 0, out) },
		} {
			copy(mem[96:], frame)
			if n := testing.AllocsPerRun(10, f); n != 0 {
				t.Errorf("%s allocates %v times", name, n)
			}
		}
	}
}

func BenchmarkNAT(b *testing.B) {
	for _, c := range []struct{ name, text string }{
		{"IPv4", eth4 + ip4TCP + tcpSYN},
		{"IPv6", eth6 + "60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN},
	} {
		b.Run(c.name, func(b *testing.B) {
			const stride = 256
			mem, frames := benchFrames(b, stride, c.text)
			var metas [batch]Meta
			for i, f := range frames {
				Parse(f, &testKey, &metas[i])
			}
			e := NewNAT(nextMAC, ownMAC, metas[0].Dst.Netip(), 8080, 0)
			b.ReportAllocs()
			for b.Loop() {
				for i := range metas {
					e.Apply(mem, i*stride+64, &metas[i])
				}
			}
			perPacket(b)
		})
	}
}

// fold is the remainder modulo 65535, which for all sums but zero is 65535 rather than zero.
func TestFold(t *testing.T) {
	rng := rand.New(rand.NewPCG(17, 17))
	for i := range uint64(1 << 20) {
		sum := rng.Uint64() >> rng.IntN(64)
		switch i % 4 {
		case 1:
			sum -= sum % 0xffff
		case 2:
			sum = ^uint64(0) - i/4
		case 3:
			sum = i / 4
		}
		want := uint16(sum % 0xffff)
		if want == 0 && sum > 0 {
			want = 0xffff
		}
		if got := fold(sum); got != want {
			t.Fatalf("fold(%#x) = %#04x, want %#04x", sum, got, want)
		}
	}
}
