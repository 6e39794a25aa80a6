//go:build linux

package nexthop

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fullTable makes n routes like those of the Internet: most of them /24, the rest shorter, by eight gateways.
func fullTable(n int) *rib {
	rnd := rand.New(rand.NewPCG(1, 2))
	gateways := make([]entry, 8)
	for i := range gateways {
		gateways[i] = entry{table: tableMain, metric: 20, hops: []nextHop{{1, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1}}}
	}
	r := newRib()
	r.add(netip.MustParsePrefix("0.0.0.0/0"), gateways[0])
	for seen := 0; seen < n; seen++ {
		bits := 24
		if rnd.IntN(5) < 2 {
			bits = 16 + rnd.IntN(8)
		}
		p, _ := netip.AddrFrom4([4]byte{byte(1 + rnd.IntN(222)), byte(rnd.IntN(256)), byte(rnd.IntN(256)), 0}).Prefix(bits)
		r.add(p, gateways[rnd.IntN(8)])
	}
	return r
}

// BenchmarkFind looks random addresses up. With a million routes and more destinations than the caches hold, it is their
// misses that are measured.
func BenchmarkFind(b *testing.B) {
	for _, size := range []int{10, 1_000_000} {
		routes := newLayer(fullTable(size)).compile(map[int]LinkInfo{1: {Up: true, Ethernet: true}}, nil, nil)
		for _, n := range []int{1 << 4, 1 << 12, 1 << 20} {
			rnd := rand.New(rand.NewPCG(3, 4))
			addrs := make([]netip.Addr, n)
			for i := range addrs {
				addrs[i] = netip.AddrFrom4([4]byte{byte(1 + rnd.IntN(222)), byte(rnd.IntN(256)), byte(rnd.IntN(256)), 1})
			}
			b.Run(fmt.Sprintf("routes=%d/destinations=%d", size, n), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					routes.Find(addrs[i&(n-1)], uint64(i))
				}
			})
		}
	}
}

// BenchmarkFullTable builds a million routes, and then changes one and publishes.
func BenchmarkFullTable(b *testing.B) {
	links := map[int]LinkInfo{1: {Up: true, Ethernet: true}}
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		r := fullTable(1_000_000)
		l := newLayer(r)
		routes := l.compile(links, nil, nil)
		b.ReportMetric(time.Since(start).Seconds(), "s/build")
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB")
		b.ReportMetric(float64(routes.table.Size()), "routes")
		start = time.Now()
		const changes = 1000
		for i := range changes {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(1 + i%200), byte(i), 7, 0}), 24)
			e := entry{table: tableMain, metric: 20, hops: []nextHop{{1, netip.AddrFrom4([4]byte{10, 0, 0, byte(i % 8)}), 1}}}
			r.apply(&change{dst: p, entry: e, flags: unix.NLM_F_REPLACE})
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/changes, "µs/change")
		start = time.Now()
		l.compile(links, nil, routes)
		b.ReportMetric(float64(time.Since(start).Microseconds()), "µs/publish")
	}
}
