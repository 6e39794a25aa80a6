package packet

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// gueTest is one encapsulation of a random packet.
type gueTest struct {
	inner    []byte // the IP packet
	m        Meta
	mem      []byte
	start    int
	src, dst netip.Addr
}

func newGUETest(t testing.TB, rng *rand.Rand, inner6, outer6 bool) gueTest {
	g := gueTest{src: randomAddr(rng, !outer6), dst: randomAddr(rng, !outer6)}
	for g.dst.IsMulticast() || g.dst.IsUnspecified() {
		g.dst = randomAddr(rng, !outer6)
	}
	f := icmpFamilies[0]
	if inner6 {
		f = icmpFamilies[1]
	}
	ip := network(f.client, f.vip, layers.IPProtocolTCP)
	tcp := &layers.TCP{SrcPort: layers.TCPPort(rng.Uint32()), DstPort: 80, ACK: true}
	_ = tcp.SetNetworkLayerForChecksum(ip)
	payload := make([]byte, rng.IntN(1400))
	for i := range payload {
		payload[i] = byte(rng.Uint32())
	}
	g.inner = build(t, ip, tcp, gopacket.Payload(payload))
	frame := append(build(t, ethernet(!inner6)), g.inner...)
	frame = append(frame[:ethLen], g.inner...)
	g.mem = make([]byte, 64+len(frame)+64)
	g.start = copy(g.mem, make([]byte, 64))
	copy(g.mem[g.start:], frame)
	Parse(g.mem[g.start:g.start+len(frame)], &testKey, &g.m)
	if g.m.Reason != None {
		t.Fatalf("%+v", g.m)
	}
	return g
}

// What Apply makes with GUE is, byte for byte, what gopacket makes, for all pairs of families, with and without checksum and
// with varying sources.
func TestGUE(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	ports, sources := map[uint16]bool{}, map[netip.Addr]bool{}
	for i := range 4000 {
		inner6, outer6, checksum, vary := i&1 != 0, i&2 != 0, i&4 != 0, i&8 != 0
		g := newGUETest(t, rng, inner6, outer6)
		e, err := NewGUE(nextMAC, ownMAC, g.src, g.dst, 6080, checksum)
		if err != nil {
			t.Fatal(err)
		}
		prefix := netip.MustParsePrefix("10.7.0.0/16")
		if outer6 {
			prefix = netip.MustParsePrefix("fd00:7::/64")
		}
		if vary {
			e.VarySource(prefix)
		}
		if want := map[bool]int{false: 28, true: 48}[outer6]; e.Overhead() != want {
			t.Fatalf("overhead %d, want %d", e.Overhead(), want)
		}
		start, length := e.Apply(g.mem, g.start, &g.m)
		got := g.mem[start : start+length]

		p := gopacket.NewPacket(got, layers.LayerTypeEthernet, gopacket.Default)
		udp, _ := p.TransportLayer().(*layers.UDP)
		if udp == nil || udp.DstPort != 6080 || udp.SrcPort < 0xc000 {
			t.Fatalf("%v", p)
		}
		source, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
		if vary && !prefix.Contains(source) || !vary && source != g.src {
			t.Fatalf("the outer source is %v", source)
		}
		ports[uint16(udp.SrcPort)] = true
		sources[source] = true

		ip := network(source, g.dst, layers.IPProtocolUDP)
		switch l := ip.(type) {
		case *layers.IPv4:
			l.TTL, l.Flags, l.TOS = 64, layers.IPv4DontFragment, g.m.Class
		case *layers.IPv6:
			l.HopLimit, l.TrafficClass = 64, g.m.Class
		}
		want := &layers.UDP{SrcPort: udp.SrcPort, DstPort: 6080}
		_ = want.SetNetworkLayerForChecksum(ip)
		eth := &layers.Ethernet{SrcMAC: net.HardwareAddr(ownMAC[:]), DstMAC: net.HardwareAddr(nextMAC[:]), EthernetType: layers.EthernetTypeIPv4}
		if outer6 {
			eth.EthernetType = layers.EthernetTypeIPv6
		}
		wanted := build(t, eth, ip, want, gopacket.Payload(g.inner))
		if !checksum {
			at := length - len(g.inner) - 2
			wanted[at], wanted[at+1] = 0, 0
		}
		if !bytes.Equal(got, wanted) {
			t.Fatalf("inner6=%v outer6=%v checksum=%v vary=%v\n got %x\nwant %x", inner6, outer6, checksum, vary, got, wanted)
		}
	}
	if len(ports) < 2000 || len(sources) < 3500 {
		t.Errorf("%d source ports and %d sources for 4000 flows: they do not vary", len(ports), len(sources))
	}
}

// IPIP with a varying source has a right checksum, and keeps a flow on one source.
func TestVarySourceOfIPIP(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	sources := map[netip.Addr]bool{}
	for range 1000 {
		g := newGUETest(t, rng, false, false)
		e, err := NewIPIP(nextMAC, ownMAC, g.src, g.dst)
		if err != nil {
			t.Fatal(err)
		}
		e.VarySource(netip.MustParsePrefix("10.8.4.0/22"))
		var before netip.Addr
		for range 2 {
			start, length := e.Apply(g.mem, g.start, &g.m)
			h := bytes.Clone(g.mem[start+ethLen : start+ethLen+ipv4Len])
			setChecksum(h)
			if !bytes.Equal(h, g.mem[start+ethLen:start+ethLen+ipv4Len]) || !bytes.Equal(g.mem[start+length-len(g.inner):start+length], g.inner) {
				t.Fatalf("%x", g.mem[start:start+length])
			}
			source, _ := netip.AddrFromSlice(h[12:16])
			if before.IsValid() && source != before {
				t.Fatalf("a flow has the sources %v and %v", before, source)
			}
			before = source
			sources[source] = true
		}
	}
	if len(sources) < 500 || len(sources) > 1024 {
		t.Errorf("%d sources of 1,022 for 1000 flows", len(sources))
	}
}
