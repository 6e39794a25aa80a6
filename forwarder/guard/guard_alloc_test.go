//go:build !race

package guard

import (
	"os"
	"strconv"
	"testing"
	"time"
)

const raceEnabled = false

// Millions of sources that come once each cost nothing but time: no allocation, in words whose number is given. SLUICE_STRESS_OPS
// sets how many.
func TestGuardAllocatesNothing(t *testing.T) {
	sources := 2_000_000
	if s := os.Getenv("SLUICE_STRESS_OPS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 10 {
			t.Fatalf("SLUICE_STRESS_OPS is %q, not a number of sources", s)
		}
		sources = n
	}
	l, p, ceiling, c := newLimiter(t, 1<<16), newProved(t, 1<<16), NewCeiling(2), NewChallenge(testSecret)
	r, many, lots := NewRate(200, time.Second), NewRate(10_000, time.Second), new(Lots)
	next, refused, proved := uint64(0), 0, 0
	// AllocsPerRun runs it once more, to warm up.
	allocs := testing.AllocsPerRun(9, func() {
		for range sources / 10 {
			next++
			source, now := next*0x9e3779b97f4a7c15, int64(next)*1000 // an odd factor: no source comes twice
			hash := [1]uint64{l.Hash(source, 0, 1)}
			l.Prefetch(hash[:])
			if !l.Admit(hash[0], r, now).OK || !admitSome(l, lots, source, 0, 2, r, now).OK ||
				!admitSome(l, lots, source, 0, 3, many, now).OK {
				refused++
			}
			ceiling.Admit(1, r, now)
			name := p.Hash(source, 0)
			if p.Has(name, now) {
				proved++
			}
			n := c.Number([2]uint64{source, 0}, vip6, 40000, 443, 7, 9)
			if c.Proves(n, [2]uint64{source, 0}, vip6, 40000, 443, 9<<epochShift) {
				p.Add(name, now)
			}
		}
		l.Sweep(0, l.Lines(), int64(next)*1000)
	})
	if allocs != 0 {
		t.Errorf("%v allocations in %d sources", allocs, sources/10)
	}
	// Some share line and tag with another; a word of one event refuses nobody here.
	if refused > 0 || proved > sources/100_000+1 {
		t.Errorf("of %d sources %d are refused, %d have proved their address", next, refused, proved)
	}
}
