package guard

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
	"time"
)

// Every event is as likely to be drawn, whatever the batches, and so is each k-th one.
func TestDraw(t *testing.T) {
	for _, perSecond := range []uint64{1, 511, 512, 1024, 2048, 4096, 100_000} {
		r := NewRate(perSecond, time.Second)
		lots, rng := new(Lots), rand.New(rand.NewPCG(1, 2))
		const events = 1 << 20
		var every [40]int // of events whose number is a multiple of k
		for at := 0; at < events; {
			n := 1 + rng.IntN(64)
			drawn, look := lots.Draw(n, r, 0)
			if drawn>>(n-1)>>1 != 0 || look != drawn {
				t.Fatalf("of %d events %x are drawn, to look at are %x", n, drawn, look)
			}
			for ; drawn != 0; drawn &= drawn - 1 {
				i := at + bits.TrailingZeros64(drawn)
				for k := 1; k < len(every); k++ {
					if i%k == 0 {
						every[k]++
					}
				}
			}
			at += n
		}
		for k := 1; k < len(every); k++ {
			mean := events / float64(k) / float64(r.every)
			if slack := 5*math.Sqrt(mean) + 2*64; math.Abs(float64(every[k])-mean) > slack || r.every == 1 && float64(every[k]) < mean {
				t.Errorf("%d a second: of each %d. event %d are drawn, want %.0f", perSecond, k, every[k], mean)
			}
		}
	}
}

// What was refused is remembered for some seconds, then no more, and then nothing but the lots is looked at.
func TestRefusedLately(t *testing.T) {
	r := NewRate(10_000, time.Second)
	for _, start := range []int64{0, 1, 1 << 40, 1<<63 - 1<<36} {
		lots, rng := new(Lots), rand.New(rand.NewPCG(3, 4))
		lots.Draw(64, r, start)
		var halves [1000]uint64
		for i := range halves {
			halves[i] = rng.Uint64()
			lots.Refuse(halves[i])
		}
		for _, half := range halves {
			if !lots.Refused(half) {
				t.Fatal("a refused source is not known")
			}
		}
		if _, look := lots.Draw(64, r, start); look != ^uint64(0) {
			t.Fatalf("only %x are looked at", look)
		}
		others := 0
		for range 100_000 {
			if lots.Refused(rng.Uint64()) {
				others++
			}
		}
		if others > 2000 {
			t.Errorf("%d of 100000 other sources pass for refused, with 1000 that were", others)
		}
		for step := int64(0); step < refusedWords<<forgetShift; step += 1e6 {
			lots.Draw(64, r, start+step)
		}
		if drawn, look := lots.Draw(64, r, start+refusedWords<<forgetShift); drawn != look || lots.refused != [refusedWords]uint64{} {
			t.Errorf("from %d: %d bits are left", start, lots.count)
		}
		lots.Refuse(1)
		if lots.Draw(64, r, start+10*refusedWords<<forgetShift); lots.count != 0 || lots.Refused(1) { // after a long pause
			t.Errorf("from %d: %d bits are left after a pause", start, lots.count)
		}
	}
}

// Sources above their limit get their limit, within some per cent, however far above and whichever worker sees their packets;
// those within it lose nothing, whether or not somebody has filled the filters.
func TestLotsKeepRates(t *testing.T) {
	if raceEnabled { // which has nothing to see here
		t.Skip("the race detector has one goroutine to look at, and takes minutes; .ci/test runs this package without it too")
	}
	want := 200_000.0
	if testing.Short() {
		want = 20_000
	}
	for _, c := range []struct {
		name    string
		r       uint64
		burst   time.Duration
		workers int
		full    bool
	}{
		{"one worker", 5000, time.Second, 1, false},
		{"two workers", 5000, time.Second, 2, false},
		{"filters full", 5000, time.Second, 2, true},
		{"one in two is drawn", 600, time.Second, 2, false},
		{"a long burst", 500, 10 * time.Second, 2, false},
		{"a high limit", 20_000, 100 * time.Millisecond, 2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := NewRate(c.r, c.burst)
			if r.every == 1 {
				t.Fatal("each packet is counted")
			}
			l, rng := newLimiter(t, 1<<10), rand.New(rand.NewPCG(5, 6))
			workers := make([]Lots, c.workers)
			// How many times their limit sources send. A burst is behind them when what they get is counted.
			times := []float64{0.5, 0.8, 0.9, 2, 10, 100}
			var sent, admitted [6]int
			var credit [6]float64
			const step = 100e3 // ns between batches
			begin := int64(time.Hour)
			from := begin + int64(2*c.burst+time.Second)
			for now := begin; now < from+int64(want/float64(c.r)*1e9); now += step {
				for w := range workers {
					if c.full && rng.IntN(100) == 0 {
						for bit := range uint64(1 << (64 - refusedShift)) {
							workers[w].Refuse(bit << refusedShift)
						}
					}
				}
				for s := range times {
					for credit[s] += times[s] * float64(c.r) * step / 1e9; credit[s] >= 1; credit[s]-- {
						v := admitSome(l, &workers[rng.IntN(c.workers)], 0, 0xffff_0a000000|uint64(s), 1, r, now)
						if times[s] < 1 && !v.OK {
							t.Fatalf("at %v times its limit a source is refused", times[s])
						}
						if now >= from {
							sent[s]++
							if v.OK {
								admitted[s]++
							}
						}
					}
				}
			}
			// As many of those that are drawn are admitted, each once on average in what it counts for; and there is what passes
			// when the filters forget.
			slack := 3.5*math.Sqrt(want*float64(r.every)) + 0.01*want
			for s := range times {
				if got := float64(admitted[s]); times[s] > 1 && math.Abs(got-want) > slack {
					t.Errorf("at %v times its limit %.0f of %d are admitted, want %.0f ± %.0f", times[s], got, sent[s], want, slack)
				}
			}
		})
	}
}
