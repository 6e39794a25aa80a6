//go:build !race

package guard

import "testing"

// 10 million sources that come once each cost nothing but time. The race detector would only make this slow.
func TestTopAllocatesNothing(t *testing.T) {
	const each = 1_000_000
	top, counts := NewTop(1), make([]Count, 0, Counters)
	next := uint64(0)
	// AllocsPerRun runs it once more, to warm up.
	allocs := testing.AllocsPerRun(9, func() {
		for range each {
			next++
			top.Add(Source(next*0x9e3779b97f4a7c15, 0)) // an odd factor: no source comes twice
		}
		counts = top.AppendTo(counts[:0])
	})
	if allocs != 0 {
		t.Errorf("%v allocations in %d additions", allocs, each)
	}
	if top.Total() != 10*each || len(counts) != Counters {
		t.Errorf("%d additions, want %d; %d counts", top.Total(), 10*each, len(counts))
	}
	var sum uint64
	for _, c := range counts {
		sum += c.N
	}
	if sum != top.Total() {
		t.Errorf("the counts' sum is %d after %d additions", sum, top.Total())
	}
	top.Halve()
}
