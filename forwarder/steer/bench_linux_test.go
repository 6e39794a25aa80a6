package steer

import (
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
