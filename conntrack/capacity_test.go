package conntrack

import (
	"fmt"
	"math"
	"testing"
)

// N flows in a table for N flows: at most one in ten thousand finds no word, and each other is found again.
func TestCapacity(t *testing.T) {
	sizes := []int{1 << 13, 100_000, 1 << 18, 1 << 20}
	if raceEnabled {
		sizes = sizes[:1]
	}
	for _, n := range sizes {
		words, _ := WordsFor(uint64(n))
		refused, present := 0, 0
		const seeds = 3
		for seed := range uint64(seeds) {
			table := newTable(t, int(words))
			lives := []Life{{0, MaxLife, MaxLife, MaxLife}}
			before := refused
			for i := range uint64(n) {
				switch o := table.Insert(hashOf(seed<<40+i), 0, 5, Established, lives); o {
				case Inserted:
				case Refused:
					refused++
				case Present:
					present++
				default:
					t.Fatalf("%d flows: %v", n, o)
				}
			}
			found := 0
			for i := range uint64(n) {
				if _, w := table.Lookup(hashOf(seed<<40 + i)); w != 0 {
					found++
				}
			}
			if found != n-(refused-before) {
				t.Errorf("%d flows: %d found, %d refused", n, found, refused-before)
			}
		}
		t.Logf("%8d flows in %8d words (%d bytes a flow), %d times: %d refused, %d took another's word",
			n, words, words*8/uint64(n), seeds, refused, present)
		if limit := float64(seeds*n) / 10_000; float64(refused) > limit {
			t.Errorf("%d flows: %d refused of %d", n, refused, seeds*n)
		}
		if present > 2 {
			t.Errorf("%d flows: %d took another's word; 64-bit hashes should not collide", n, present)
		}
	}
}

// A look-up of an unknown flow hits somebody else's word as often as theory says. With fingerprints drawn from few
// values it is often enough to count: N flows are thrown at random on (pairs of lines) × (fingerprints) cells, and a
// stranger's cell is taken with probability 1 − (1 − 1/cells)^N.
func TestFalseHits(t *testing.T) {
	n, queries := uint64(1<<17), uint64(1<<20)
	if raceEnabled {
		n, queries = 1<<13, 1<<16
	}
	words, _ := WordsFor(n)
	lives := []Life{{0, MaxLife, MaxLife, MaxLife}}
	for _, bits := range []int{8, 10, 12} {
		narrow := func(i uint64) uint64 { // a hash with one of 2^bits fingerprints
			r := hashOf(i)
			return hashOf(r>>(64-bits)+1<<60)<<32 | r&0xffffffff
		}
		table := newTable(t, int(words))
		for i := range n {
			if o := table.Insert(narrow(i), 0, 5, Established, lives); o != Inserted && o != Present {
				t.Fatalf("insert: %v", o)
			}
		}
		hits := 0
		for i := range queries {
			if _, w := table.Lookup(narrow(i + 1<<40)); w != 0 {
				hits++
			}
		}
		cells := float64(table.Lines()) / 2 * math.Exp2(float64(bits))
		p := -math.Expm1(float64(n) * math.Log1p(-1/cells))
		want := p * float64(queries)
		sigma := math.Sqrt(want * (1 - p))
		t.Logf("%2d bits of fingerprint: %d of %d unknown flows hit a word, theory %.0f ± %.0f", bits, hits, queries, want, sigma)
		if math.Abs(float64(hits)-want) > 5*sigma {
			t.Errorf("%d bits: %d false hits, want %.0f ± %.0f", bits, hits, want, sigma)
		}
	}

	// With all 32 bits: 2^22 look-ups, each among 8 words, expect 0.008.
	table := flows(t, int(n), Established)
	for i := range 4 * queries {
		if at, w := table.Lookup(hashOf(i + 1<<40)); w != 0 {
			t.Errorf("unknown flow %d hits %#x at %d", i, w, at)
		}
	}
}

// A flood of new flows fills every free word and then only displaces itself: flows that are alive keep their words for as
// long as they have a packet every 5 minutes.
func TestFloodSparesEstablishedFlows(t *testing.T) {
	const n = 1 << 12
	lives := []Life{{Probation: 14, Established: 1400, Closing: 14}}
	table := newTable(t, 2*n)
	tick := uint16(4000) // wraps during the test
	for i := range uint64(n) {
		table.Insert(hashOf(i), 0, tick, Established, lives)
	}
	next := uint64(1 << 32)
	var outcomes [NumOutcomes]int
	for step := range 300 {
		tick = (tick + 1) & 0xfff
		for range n / 8 {
			outcomes[table.Insert(hashOf(next), 0, tick, Probation, lives)]++
			next++
		}
		if step%130 != 0 {
			continue
		}
		for i := range uint64(n) {
			at, w := table.Lookup(hashOf(i))
			if w == 0 || w.State() != Established {
				t.Fatalf("step %d: flow %d has %#x", step, i, w)
			}
			table.Refresh(at, w, tick, false)
		}
	}
	if used := table.used(); used != 2*n {
		t.Errorf("%d words of %d are used: any free word may be on probation", used, 2*n)
	}
	if outcomes[EvictedIdle] != 0 || outcomes[EvictedProbation]+outcomes[EvictedExpired] == 0 {
		t.Errorf("the flood's outcomes: %v", outcomes)
	}
	text := ""
	for o, count := range outcomes {
		text += fmt.Sprintf(" %v %d", Outcome(o), count)
	}
	t.Logf("%d new flows against %d established ones in %d words:%s", next-1<<32, n, 2*n, text)
}
