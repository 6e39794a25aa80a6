package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	nextMAC = MAC{0x02, 0, 0, 0, 0, 0xaa}
	ownMAC  = MAC{0x02, 0, 0, 0, 0, 0xbb}
)

type testEncap struct {
	name     string
	encap    Encap
	src, dst netip.Addr // of the outer header; zero for L2
}

// testEncaps returns one header of each kind.
func testEncaps(t testing.TB) []testEncap {
	list := []testEncap{
		{name: "l2"},
		{name: "in IPv4", src: netip.MustParseAddr("10.0.0.1"), dst: netip.MustParseAddr("10.0.0.11")},
		{name: "in IPv6", src: netip.MustParseAddr("fd00::1"), dst: netip.MustParseAddr("fd00::11")},
	}
	list[0].encap = NewL2(nextMAC, ownMAC)
	for i := range list[1:] {
		e, err := NewIPIP(nextMAC, ownMAC, list[i+1].src, list[i+1].dst)
		if err != nil {
			t.Fatal(err)
		}
		list[i+1].encap = e
	}
	return list
}

// checkApply applies e to a frame, and checks the outcome with gopacket and against the bytes of the frame.
func checkApply(t testing.TB, e *testEncap, frame []byte) {
	t.Helper()
	m := parse(frame)
	if m.Reason != None {
		t.Fatalf("%x: %v", frame, m.Reason)
	}
	inner := append([]byte(nil), frame[m.L3:m.End]...)
	const start = 96
	mem := bytes.Repeat([]byte{0xa5}, start+len(frame)+32)
	copy(mem[start:], frame)
	e.encap.Apply(mem, start, &m)
	copy(mem[start:], frame) // as after a repeat on the same frame: nothing depends on what Apply overwrote
	newStart, newLen := e.encap.Apply(mem, start, &m)

	overhead, tag := e.encap.Overhead(), int(m.L3)-ethLen // which the new frame does not have
	if newStart != start+tag-overhead || newLen != ethLen+overhead+len(inner) {
		t.Fatalf("%s: frame at %d, %d bytes; want %d, %d", e.name, newStart, newLen, start+tag-overhead, ethLen+overhead+len(inner))
	}
	if len(bytes.Trim(mem[:min(newStart, start)], "\xa5")) != 0 || !bytes.Equal(mem[start+int(m.End):start+len(frame)], frame[m.End:]) ||
		len(bytes.Trim(mem[start+len(frame):], "\xa5")) != 0 {
		t.Fatalf("%s: bytes outside the new frame were written", e.name)
	}
	out := mem[newStart : newStart+newLen]
	if !bytes.Equal(out[ethLen+overhead:], inner) {
		t.Fatalf("%s: the packet inside has changed:\n got %x\nwant %x", e.name, out[ethLen+overhead:], inner)
	}

	p := gopacket.NewPacket(out, layers.LayerTypeEthernet, gopacket.NoCopy)
	if f := p.ErrorLayer(); f != nil && overhead > 0 {
		if l := p.Layers(); len(l) < 3 { // the payload of a packet inside may be anything
			t.Fatalf("%s: %v", e.name, f.Error())
		}
	}
	eth := p.Layers()[0].(*layers.Ethernet)
	if !bytes.Equal(eth.DstMAC, nextMAC[:]) || !bytes.Equal(eth.SrcMAC, ownMAC[:]) {
		t.Fatalf("%s: Ethernet %v to %v", e.name, eth.SrcMAC, eth.DstMAC)
	}
	wantProto, class := layers.IPProtocolIPv4, inner[1]
	wantType := layers.EthernetTypeIPv4
	if inner[0]>>4 == 6 {
		wantProto, class = layers.IPProtocolIPv6, inner[0]<<4|inner[1]>>4
		wantType = layers.EthernetTypeIPv6
	}
	switch overhead {
	case 0:
		if eth.EthernetType != wantType {
			t.Fatalf("%s: Ethernet type %v, want %v", e.name, eth.EthernetType, wantType)
		}
	case 20:
		ip := p.Layers()[1].(*layers.IPv4)
		if eth.EthernetType != layers.EthernetTypeIPv4 || ip.Version != 4 || ip.IHL != 5 || ip.TOS != class ||
			int(ip.Length) != 20+len(inner) || ip.Id != 0 || ip.Flags != layers.IPv4DontFragment || ip.FragOffset != 0 ||
			ip.TTL != 64 || ip.Protocol != wantProto || !ip.SrcIP.Equal(net.IP(e.src.AsSlice())) || !ip.DstIP.Equal(net.IP(e.dst.AsSlice())) {
			t.Fatalf("%s: outer header %+v for class %#02x, protocol %v, %d bytes", e.name, ip, class, wantProto, len(inner))
		}
		again := append([]byte(nil), out[ethLen:ethLen+20]...)
		setChecksum(again)
		if want := binary.BigEndian.Uint16(again[10:]); ip.Checksum != want {
			t.Fatalf("%s: checksum %#04x, want %#04x", e.name, ip.Checksum, want)
		}
	case 40:
		ip := p.Layers()[1].(*layers.IPv6)
		if eth.EthernetType != layers.EthernetTypeIPv6 || ip.Version != 6 || ip.TrafficClass != class || ip.FlowLabel != 0 ||
			int(ip.Length) != len(inner) || ip.NextHeader != wantProto || ip.HopLimit != 64 ||
			!ip.SrcIP.Equal(net.IP(e.src.AsSlice())) || !ip.DstIP.Equal(net.IP(e.dst.AsSlice())) {
			t.Fatalf("%s: outer header %+v for class %#02x, next header %v, %d bytes", e.name, ip, class, wantProto, len(inner))
		}
	}

	m.L3, m.L4, m.End = ethLen, m.L4-uint16(tag), m.End-uint16(tag)
	// What a backend does: its Parse accepts the outer header, and takes it off to find the same flow.
	if overhead > 0 {
		if o := parse(out); o.Reason != Protocol || o.Dst != FromNetip(e.dst) || int(o.End) != newLen || o.Proto != uint8(wantProto) {
			t.Fatalf("%s: the new frame parses as %+v", e.name, o)
		}
		off := binary.BigEndian.AppendUint16(append([]byte(nil), out[:12]...), uint16(wantType))
		if o := parse(append(off, out[ethLen+overhead:]...)); o != m {
			t.Fatalf("%s: decapsulated: %+v, want %+v", e.name, o, m)
		}
	} else if o := parse(out); o != m {
		t.Fatalf("%s: %+v, want %+v", e.name, o, m)
	}
}

// Random packets of both families under all headers: the four pairs of IP in IP, and plain L2; with and without tags,
// extension headers, and as fragments.
func TestApply(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	encaps := testEncaps(t)
	for range 2000 {
		p := randomPacket(t, rng)
		if rng.IntN(2) == 0 {
			p.dress(rng)
		}
		for i := range encaps {
			checkApply(t, &encaps[i], p.frame)
		}
	}
}

// All 256 values of DSCP and ECN go through, in all pairs of families.
func TestApplyTrafficClass(t *testing.T) {
	v4 := fromHex(t, eth4+ip4TCP+tcpSYN)
	v6 := fromHex(t, eth6+"60 00 00 00  00 14 06 40"+ip6Addrs+tcpSYN)
	encaps := testEncaps(t)
	for class := range 256 {
		v4[15] = byte(class)
		setChecksum(v4[14:34])
		binary.BigEndian.PutUint32(v6[14:], 6<<28|uint32(class)<<20|0x54321)
		for i := range encaps {
			checkApply(t, &encaps[i], v4)
			checkApply(t, &encaps[i], v6)
		}
	}
}

// The checksum of the outer header holds for every length that a frame can have and for many addresses.
func TestApplyChecksum(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	mem := make([]byte, 10000)
	for length := 28; length <= 9000; length++ {
		src, dst := randomAddr(rng, true), randomAddr(rng, true)
		if dst.IsMulticast() {
			continue
		}
		e, err := NewIPIP(nextMAC, ownMAC, src, dst)
		if err != nil {
			t.Fatal(err)
		}
		m := Meta{L3: 14, L4: 34, End: uint16(14 + length), Class: uint8(rng.Uint32()), Flags: V6 * uint16(length&1)}
		start, _ := e.Apply(mem, 64, &m)
		h := append([]byte(nil), mem[start+ethLen:start+ethLen+20]...)
		setChecksum(h)
		if !bytes.Equal(h, mem[start+ethLen:start+ethLen+20]) {
			t.Fatalf("%v to %v, %d bytes: %x, want %x", src, dst, length, mem[start+ethLen:start+ethLen+20], h)
		}
	}
}

func TestNewIPIPRefuses(t *testing.T) {
	a4, a6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for _, c := range []struct {
		src, dst netip.Addr
		want     string
	}{
		{netip.Addr{}, a4, "missing"},
		{a4, netip.Addr{}, "missing"},
		{a4, a6, "families differ"},
		{a6, a4, "families differ"},
		{a4, netip.IPv4Unspecified(), "no host"},
		{a6, netip.MustParseAddr("ff02::1"), "no host"},
		{a4, netip.MustParseAddr("224.0.0.1"), "no host"},
	} {
		if _, err := NewIPIP(nextMAC, ownMAC, c.src, c.dst); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v to %v: error %v, want %q", c.src, c.dst, err, c.want)
		}
	}
	mapped := netip.MustParseAddr("::ffff:10.0.0.11")
	if e, err := NewIPIP(nextMAC, ownMAC, a4, mapped); err != nil || e.Overhead() != 20 {
		t.Errorf("to %v: overhead %d, error %v; want IPv4", mapped, e.Overhead(), err)
	}
}
