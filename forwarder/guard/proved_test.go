package guard

import (
	"math/rand/v2"
	"testing"
	"time"
)

func newProved(tb testing.TB, words int) *Proved {
	tb.Helper()
	p, err := NewProved(make([]uint64, words), [2]uint64{0x0123456789abcdef, 0xfedcba9876543210})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// A source is there from its proof on for a minute, not before and not after; another proof makes it longer, asking does not.
func TestProvedLife(t *testing.T) {
	const step = 1 << provedShift
	for _, start := range []int64{0, 1, time.Hour.Nanoseconds(), 1<<58 - 30e9, 1 << 60} {
		p := newProved(t, 16)
		hash := p.Hash(0, 0xffff_01020304)
		if p.Has(hash, start) || p.Has(0, start) {
			t.Fatalf("from %d: who has not proved anything passes", start)
		}
		p.Add(hash, start)
		for at := int64(0); at < 60e9-step; at += 1e8 {
			if !p.Has(hash, start+at) {
				t.Fatalf("from %d: gone after %d ns", start, at)
			}
		}
		if !p.Has(hash, start-20e6) {
			t.Errorf("from %d: not there on a worker whose clock is 20 ms behind", start)
		}
		for _, at := range []int64{60e9 + step, 61e9, 1e12, 1e15, 1e17} {
			if p.Has(hash, start+at) {
				t.Errorf("from %d: still there after %d ns", start, at)
			}
		}
		p.Add(hash, start+40e9)
		if !p.Has(hash, start+90e9) {
			t.Errorf("from %d: a second proof did not help", start)
		}
		used := 0
		for _, w := range p.words {
			if w != 0 {
				used++
			}
		}
		if used != 1 {
			t.Errorf("from %d: %d words for one source", start, used)
		}
		if p.Has(p.Hash(0, 0xffff_01020305), start+40e9) {
			t.Errorf("from %d: another source passes", start)
		}
	}
}

// In a line that is full the oldest gives way, so the latest eight of a line are always there.
func TestProvedForgetsTheOldest(t *testing.T) {
	p := newProved(t, 16)
	name := func(i int) uint64 { return uint64(i+1) << 32 }
	for i := range 100 {
		now := int64(i) * 1e9
		p.Add(name(i), now)
		for k := max(0, i-7); k <= i; k++ {
			if !p.Has(name(k), now) {
				t.Fatalf("%d is gone after %d", k, i)
			}
		}
		if i >= 8 && p.Has(name(i-8), now) {
			t.Fatalf("%d and the eight after it are there", i-8)
		}
	}
}

// Random sources do not pass, however full the set is.
func TestProvedNobodyElse(t *testing.T) {
	p, rng := newProved(t, 1<<12), rand.New(rand.NewPCG(3, 4))
	now := int64(time.Hour)
	for range 1 << 16 {
		p.Add(p.Hash(rng.Uint64(), 0), now)
	}
	for _, w := range p.words {
		if w == 0 {
			t.Fatal("the set is not full")
		}
	}
	passed := 0
	tries := 5_000_000 // 2^-29 each: 0.01 in all
	if testing.Short() || raceEnabled {
		tries = 100_000
	}
	for range tries {
		if p.Has(p.Hash(rng.Uint64(), 1), now) {
			passed++
		}
	}
	if passed > 1 {
		t.Errorf("%d of %d random sources pass", passed, tries)
	}
}
