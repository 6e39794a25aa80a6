package steer

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/testenv"
)

// BenchmarkVerdict is the time that the program takes for a frame, as the kernel's test run measures it, with the frame in
// the cache and no socket.
func BenchmarkVerdict(b *testing.B) {
	testenv.RequireRoot(b)
	eth := ether(ownMAC, layers.EthernetTypeIPv4)
	toVIP := build(b, eth, ip4(vip4, layers.IPProtocolTCP), tcp, payload)
	toVIP6 := build(b, ether(ownMAC, layers.EthernetTypeIPv6), ip6(vip6, layers.IPProtocolTCP), tcp, payload)
	toNode := build(b, eth, ip4(other4, layers.IPProtocolTCP), tcp, payload)
	reply := build(b, eth, from4(backend4, other4, protoTCP), tcpPorts(80, 40000), payload)
	loop := build(b, eth, ip4(node4, layers.IPProtocolIPv4), ip4(vip4, layers.IPProtocolTCP), tcp)

	thousand := []Source{{Addr: backend4, Proto: 6, First: 80, Last: 80}}
	for i := range 999 {
		thousand = append(thousand, Source{netip.AddrFrom4([4]byte{10, 3, byte(i >> 8), byte(i)}), 6, 80, 80})
	}
	ranges := []Source{{backend4, 6, 80, 80}, {backend4, 6, 8000, 8999}}
	for _, c := range []struct {
		name    string
		frame   []byte
		sources []Source
		own     []netip.Prefix
	}{
		{"VIP", toVIP, nil, nil},
		{"VIP, IPv6", toVIP6, nil, nil},
		{"VIP, 1000 sources, own", toVIP, thousand, ownPrefixes},
		{"node", toNode, nil, nil},
		{"node, own", toNode, nil, ownPrefixes},
		{"node, 1000 sources, own", toNode, thousand, ownPrefixes},
		{"reply, 1000 sources", reply, thousand, nil},
		{"reply, 1000 sources, own", reply, thousand, ownPrefixes},
		{"reply, ports with gaps", reply, ranges, nil},
		{"loop", loop, nil, ownPrefixes},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newSizedRig(b, 16, 1000, AttachOptions{Queues: 1}, vip4, vip6)
			if err := r.SetReplies(c.sources); err != nil {
				b.Fatal(err)
			}
			if err := r.SetLoops(c.own, 6080); err != nil {
				b.Fatal(err)
			}
			_, took, err := r.link.objects.SluiceSteer.Benchmark(c.frame, b.N, b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took)/float64(time.Nanosecond), "ns/frame")
		})
	}
}

// manySources is so many entries that deny a /32 or /64 each, one in five of IPv6, as of a list by file.
func manySources(n int) (entries []Entry) {
	random := rand.New(rand.NewPCG(19, 20))
	for i := range n {
		a := random.Uint32()
		addr, bits := netip.AddrFrom4([4]byte{byte(11 + a>>24%180), byte(a >> 16), byte(a >> 8), byte(a)}), 32
		if i%5 == 0 {
			addr, bits = netip.AddrFrom16([16]byte{0x20, byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}), 64
		}
		p, _ := addr.Prefix(bits)
		entries = append(entries, Entry{p, true})
	}
	return entries
}

// BenchmarkRefusals is the time that the program takes for a frame where sources are refused: of one source, of which the way
// through the lists is in the cache.
func BenchmarkRefusals(b *testing.B) {
	testenv.RequireRoot(b)
	frame := build(b, ether(ownMAC, layers.EthernetTypeIPv4), ip4(vip4, layers.IPProtocolTCP), tcp, payload)
	frame6 := build(b, ether(ownMAC, layers.EthernetTypeIPv6), ip6(vip6, layers.IPProtocolTCP), tcp, payload)
	many := manySources(300_000)
	among := from4(netip.MustParseAddr("60.1.2.3"), vip4, protoTCP) // where many lie close together
	frameAmong := build(b, ether(ownMAC, layers.EthernetTypeIPv4), among, tcp, payload)
	list := []List{{"a", vip4, 6, []PortRange{{80, 80}}, deny("203.0.113.0/24")}}
	for _, c := range []struct {
		name  string
		frame []byte
		acl   *ACL
		ban   string
	}{
		{"nothing", frame, nil, ""},
		{"nothing, IPv6", frame6, nil, ""},
		{"one entry", frame, &ACL{Global: deny("203.0.113.0/24")}, ""},
		{"one entry and a list", frame, &ACL{Global: deny("203.0.113.0/24"), Lists: list}, ""},
		{"one entry, denied", frame, &ACL{Global: deny("198.51.100.0/24")}, ""},
		{"300000 entries", frame, &ACL{Global: many}, ""},
		{"300000 entries, among them", frameAmong, &ACL{Global: many}, ""},
		{"300000 entries, one of them", frameAmong, &ACL{Global: join(many, deny("60.1.2.3/32"))}, ""},
		{"300000 entries, IPv6", frame6, &ACL{Global: many}, ""},
		{"300000 entries, denied", frame, &ACL{Global: join(many, deny("198.51.100.1/32"))}, ""},
		{"300000 entries and a list", frame, &ACL{Global: many, Lists: list}, ""},
		{"a ban of another", frame, nil, "203.0.113.1"},
		{"banned", frame, nil, "198.51.100.1"},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newSizedRig(b, 16, 1, AttachOptions{Queues: 1}, vip4, vip6)
			setACL(b, r.Steer, c.acl)
			if c.ban != "" {
				if err := r.Ban(netip.MustParseAddr(c.ban), monotonic(b)+hour); err != nil {
					b.Fatal(err)
				}
			}
			_, took, err := r.link.objects.SluiceSteer.Benchmark(c.frame, b.N, b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took)/float64(time.Nanosecond), "ns/frame")
		})
	}
}

// BenchmarkSetACL is the time until so many new entries are in force, and until one more is.
func BenchmarkSetACL(b *testing.B) {
	testenv.RequireRoot(b)
	many := &ACL{Global: manySources(300_000)}
	for b.Loop() {
		s, err := New(1, 1, 0)
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		setACL(b, s, many)
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/load")
		start = time.Now()
		setACL(b, s, &ACL{Global: join(many.Global, deny("198.51.100.1/32"))})
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/reload")
		start = time.Now()
		setACL(b, s, nil)
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/clear")
		s.Close()
	}
}
