package guard

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// newLimiter returns a limiter in so many words, under a fixed key.
func newLimiter(tb testing.TB, words int) *Limiter {
	tb.Helper()
	l, err := NewLimiter(make([]uint64, words), [2]uint64{0x0123456789abcdef, 0xfedcba9876543210})
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// admitSome asks about one packet as a worker does about those of a batch.
func admitSome(l *Limiter, lots *Lots, hi, lo uint64, limit uint32, r Rate, now int64) Verdict {
	drawn, look := lots.Draw(1, r, now)
	half := l.Half(hi, lo)
	if look == 0 || drawn == 0 && !lots.Refused(half) {
		return Verdict{OK: true}
	}
	v := l.AdmitSome(l.Whole(half, limit), r, now, drawn != 0)
	if !v.OK {
		lots.Refuse(half)
	}
	return v
}

func TestNewRate(t *testing.T) {
	for _, c := range []struct {
		perSecond uint64
		burst     time.Duration
		want      Rate
	}{
		{0, time.Second, Rate{}},
		{1, 0, Rate{1e9 << 8, 1e9 << 8, 1}},
		{1000, -time.Second, Rate{1e6 << 8, 1e6 << 8, 1}},
		{1000, time.Hour, Rate{1e6 << 8, 10e9 << 8, 16}},
		{3, time.Second, Rate{85333333333, 1e9 << 8, 1}},
		{512, time.Second, Rate{500000000, 1e9 << 8, 2}},
		{511, time.Second, Rate{500978474, 1e9 << 8, 1}},
		{1e9, time.Millisecond, Rate{256, 1e6 << 8, 16}},
		{1<<64 - 1, 0, Rate{1, 1, 1}},
		{1 << 63, time.Millisecond, Rate{1, 1e6 << 8, 16}},
	} {
		if got := NewRate(c.perSecond, c.burst); got != c.want {
			t.Errorf("%d a second, burst %v: %+v, want %+v", c.perSecond, c.burst, got, c.want)
		}
	}
}

func TestWordsOfLimits(t *testing.T) {
	for _, c := range []struct{ n, words uint64 }{{1, 16}, {8, 16}, {9, 32}, {1 << 20, 1 << 21}, {1<<20 + 1, 1 << 22}, {1 << 34, 1 << 35}} {
		if words, err := LimiterWords(c.n); err != nil || words != c.words {
			t.Errorf("%d sources take %d words (%v), want %d", c.n, words, err, c.words)
		}
	}
	for _, n := range []uint64{0, 1<<34 + 1, 1 << 63} {
		if _, err := LimiterWords(n); err == nil {
			t.Errorf("limits for %d sources are allowed", n)
		}
	}
	for _, n := range []int{0, 1, 8, 15, 17, 48} {
		if _, err := NewLimiter(make([]uint64, n), [2]uint64{}); err == nil {
			t.Errorf("a limiter in %d words is allowed", n)
		}
		if _, err := NewProved(make([]uint64, n), [2]uint64{}); err == nil {
			t.Errorf("a set of proved sources in %d words is allowed", n)
		}
	}
}

// A source gets its burst and one more, then one event an interval, and is told when the next will be admitted; refused events
// use up nothing. That holds at any time, as where the word's time wraps.
func TestAdmitOneSource(t *testing.T) {
	const interval, burst = 64 * 1000, 64 * 20_000 // ns; multiples of the word's unit, so that nothing is rounded
	r := Rate{Interval: interval << fraction, Tolerance: burst << fraction}
	const wraps = 64 << scaleShift // ns
	for _, start := range []int64{0, 64, 1 << 40, wraps - 64*10_000, wraps, 1 << 55, 1<<63 - 1<<35} {
		l := newLimiter(t, 16)
		hash := l.Hash(0, 0xffff_01020304, 7)
		now := start
		for i := range 21 {
			if v := l.Admit(hash, r, now); v != (Verdict{OK: true}) {
				t.Fatalf("from %d: event %d of a burst: %+v", start, i, v)
			}
		}
		for i := range 100 {
			v := l.Admit(hash, r, now)
			if v.OK || v.Over != interval || v.Far != (i >= far-1) {
				t.Fatalf("from %d: event %d after the burst: %+v", start, i, v)
			}
		}
		for i := range 100 {
			now += interval
			if v := l.Admit(hash, r, now-128); v.OK || v.Over != 128 {
				t.Fatalf("from %d: 128 ns before interval %d: %+v", start, i, v)
			}
			if v := l.Admit(hash, r, now); !v.OK {
				t.Fatalf("from %d: interval %d: %+v", start, i, v)
			}
		}
		now += burst + interval + 1000 // the bucket has run empty
		for i := range 21 {
			if v := l.Admit(hash, r, now); !v.OK {
				t.Fatalf("from %d: event %d of the second burst: %+v", start, i, v)
			}
		}
		if v := l.Admit(hash, r, now); v.OK || v.Far {
			t.Fatalf("from %d: after the second burst: %+v", start, v)
		}
	}
}

func TestNoLimit(t *testing.T) {
	l, lots := newLimiter(t, 16), new(Lots)
	for range 100 {
		if !l.Admit(1, Rate{}, 5).OK || !admitSome(l, lots, 0, 1, 0, Rate{}, 5).OK || !NewCeiling(1).Admit(0, Rate{}, 5) {
			t.Fatal("the zero rate refuses")
		}
	}
	for _, w := range l.words {
		if w != 0 {
			t.Fatal("the zero rate writes a word")
		}
	}
}

// Who sends 1.5 times what he may is refused but never far over; at 3 times he soon is; and he no longer is after he has gone
// back below his limit.
func TestFar(t *testing.T) {
	r := NewRate(1000, 10*time.Millisecond)
	l := newLimiter(t, 16)
	now := int64(0)
	send := func(perSecond int64, n int) (refused, isFar int) {
		for range n {
			now += 1e9 / perSecond
			if v := l.Admit(9<<wayShift, r, now); !v.OK {
				refused++
				if v.Far {
					isFar++
				}
			}
		}
		return refused, isFar
	}
	if refused, isFar := send(1500, 3000); refused < 900 || isFar > 0 {
		t.Errorf("at 1.5 times the rate %d refused, %d far", refused, isFar)
	}
	if refused, isFar := send(3000, 3000); refused < 1900 || isFar < 1800 {
		t.Errorf("at 3 times the rate %d refused, %d far", refused, isFar)
	}
	if refused, _ := send(900, 1000); refused > 1 {
		t.Errorf("at 0.9 times the rate %d refused", refused)
	}
	if _, isFar := send(1500, 300); isFar > 0 {
		t.Errorf("again at 1.5 times the rate %d far", isFar)
	}
}

// Rates are kept within a hundredth, or some events, also those whose interval is no multiple of the word's unit or less than it,
// whether each event is counted or lots are drawn.
func TestRatesAreKept(t *testing.T) {
	for _, perSecond := range []uint64{1, 7, 200, 3000, 50_000, 999_999, 7_000_000, 40_000_000, 300_000_000} {
		for _, some := range []bool{false, true} {
			r := NewRate(perSecond, 50*time.Millisecond)
			l, lots := newLimiter(t, 16), new(Lots)
			events := int64(400_000)
			if raceEnabled {
				events = 20_000
			}
			step := max(1, int64(1e9/perSecond/3)) // about 3 times the rate
			admitted, now := uint64(0), int64(12345)
			for i := range events {
				if perSecond < 1000 {
					now += step
				} else if i%8 == 0 { // as batches have one time
					now += 8 * step
				}
				ok := false
				if some {
					ok = admitSome(l, lots, 0, 77, 0, r, now).OK
				} else {
					ok = l.Admit(77, r, now).OK
				}
				if ok {
					admitted++
				}
			}
			want := float64(perSecond) * (float64(events*step)/1e9 + 0.050)
			got, slack := float64(admitted), 0.01*want+2
			if some && r.every > 1 {
				slack = 0.05*want + 16*16
			}
			if want < float64(events)/2 && (got < want-slack || got > want+slack) {
				t.Errorf("%d a second, lots %v: %.0f of %d admitted, want %.0f", perSecond, some, got, events, want)
			}
		}
	}
}

// Regular sources, each below its rate, are never refused, and heavy ones are held to theirs, while there are hundreds of times
// more random sources than words; whether these are seen once each under the same limit or under one whose interval is much longer.
func TestFloodOfSources(t *testing.T) {
	const (
		perTick = 100 // random sources each 100 µs, 1 M/s: 61 a second for each word
		regular = 300
		heavy   = 40
	)
	seconds := int64(5)
	if testing.Short() {
		seconds = 2
	}
	if raceEnabled { // which has nothing to see here
		t.Skip("the race detector has one goroutine to look at, and takes minutes; .ci/test runs this package without it too")
	}
	for name, c := range map[string]struct{ source, flood Rate }{
		"one limit":       {NewRate(10, time.Second), NewRate(10, time.Second)},
		"small burst":     {NewRate(100, 20*time.Millisecond), NewRate(100, 20*time.Millisecond)},
		"no burst":        {NewRate(20, 0), NewRate(20, 0)},
		"a longer one":    {NewRate(100, 100*time.Millisecond), NewRate(1, 10*time.Second)},
		"a much shorter":  {NewRate(100, 100*time.Millisecond), NewRate(1_000_000, 100*time.Millisecond)},
		"packets, by lot": {NewRate(2000, time.Second), NewRate(2000, time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLimiter(t, 1<<14)
			rng, lots := rand.New(rand.NewPCG(1, 2)), new(Lots)
			gap := int64(c.source.Interval >> fraction)
			var next [regular]int64
			for i := range next {
				next[i] = rng.Int64N(2 * gap)
			}
			var nextHeavy [heavy]int64
			var admitted, far [heavy]int
			shared := 0
			for now := int64(0); now < seconds*1e9; now += 100_000 {
				for range perTick {
					v := admitSome(l, lots, rng.Uint64(), 0, 2, c.flood, now)
					if !v.OK {
						shared++ // it has line and tag of another source
					}
				}
				for i := range next {
					if now >= next[i] {
						next[i] = now + gap + rng.Int64N(gap) // never faster than the rate
						if v := admitSome(l, lots, 0, 0xffff_0a000000|uint64(i), 1, c.source, now); !v.OK {
							t.Fatalf("regular source %d is refused at %d: %+v", i, now, v)
						}
					}
				}
				for i := range nextHeavy {
					for now >= nextHeavy[i] {
						nextHeavy[i] += gap / 10
						v := admitSome(l, lots, 0, 0xffff_0b000000|uint64(i), 1, c.source, now)
						if v.OK {
							admitted[i]++
						} else if v.Far {
							far[i]++
						}
					}
				}
			}
			// One in 65,536 of those that come to the line of a heavy source.
			if want := float64(seconds) * 1e4 * perTick * heavy / 2048.0 / 65536; float64(shared) > 3*want+5 {
				t.Errorf("%d new sources are refused, want %.1f", shared, want)
			}
			perSecond := 1e9 / float64(gap)
			want := perSecond*(float64(seconds)+float64(c.source.Tolerance>>fraction)/1e9) + 1
			most, slack := 0, max(0.07*want, 4*math.Sqrt(float64(c.source.every)*want)) // of lots, four standard deviations
			for i := range admitted {
				if got := float64(admitted[i]); got < want-slack-2 || got > want+slack+4 {
					t.Errorf("heavy source %d: %.0f admitted, want %.0f", i, got, want)
				}
				if far[i] == 0 {
					t.Errorf("heavy source %d is not far over its limit", i)
				}
				most = max(most, admitted[i])
			}
			t.Logf("each heavy source should get %.0f, at most %d were admitted", want, most)
		})
	}
}

// A line that is full of busy words gives up the one that holds the fewest events against its source, and none with refusals.
func TestWhoGivesWay(t *testing.T) {
	r := NewRate(10, time.Second) // ten events and one at once
	l := newLimiter(t, 16)
	const now = int64(time.Hour)
	name := func(tag uint64) uint64 { return tag<<tagShift | 3<<wayShift } // all in line 0
	for tag := uint64(1); tag <= 8; tag++ {
		for range 2 * (10 - tag) { // the lower the tag, the more events, so 8 has the fewest
			l.Admit(name(tag), r, now)
		}
	}
	has := func(tag uint64) bool {
		for _, w := range l.words[:lineWords] {
			if w>>tagShift == tag {
				return true
			}
		}
		return false
	}
	for newcomer := uint64(100); newcomer < 110; newcomer++ {
		if v := l.Admit(name(newcomer), r, now); !v.OK {
			t.Fatalf("newcomer: %+v", v)
		}
		for tag := uint64(1); tag <= 7; tag++ {
			if !has(tag) {
				t.Fatalf("%d is forgotten for newcomer %d", tag, newcomer)
			}
		}
		if !has(newcomer) || has(8) || newcomer > 100 && has(newcomer-1) {
			t.Fatalf("after newcomer %d: %x", newcomer, l.words[:lineWords])
		}
	}
	for _, w := range l.words[lineWords:] {
		if w != 0 {
			t.Fatal("another line was written")
		}
	}
}

// Without any tolerance all words hold one event; then the refusals say who stays.
func TestWhoIsRefusedStays(t *testing.T) {
	r := Rate{Interval: 1e9 << fraction}
	l := newLimiter(t, 16)
	now := int64(time.Hour)
	heavy := uint64(1) << tagShift
	l.Admit(heavy, r, now)
	l.Admit(heavy, r, now)
	for newcomer := range uint64(100) {
		now += 1e6
		if !l.Admit((newcomer+2)<<tagShift, r, now).OK {
			t.Fatal("a newcomer is refused")
		}
		if newcomer%10 == 0 && l.Admit(heavy, r, now).OK {
			t.Fatalf("after newcomer %d who is over the limit is admitted", newcomer)
		}
	}
}

func TestSweep(t *testing.T) {
	r := NewRate(10, time.Second)
	l := newLimiter(t, 256)
	for i := range uint64(100) {
		l.Admit(l.Hash(i, 0, 0), r, int64(i)*1e9)
	}
	all := func(now int64) (live int) {
		for next := 0; ; {
			var n int
			next, n = l.Sweep(next, 7, now)
			live += n
			if next == 0 {
				return live
			}
		}
	}
	if live := all(99e9 + 1); live != 1 {
		t.Errorf("%d words are live, want 1", live)
	}
	if live := all(100e9); live != 0 {
		t.Errorf("%d words are live after the last has ended", live)
	}
	for _, w := range l.words {
		if w != 0 {
			t.Fatal("an idle word is left")
		}
	}
}

// Lines, places and tags are used evenly by sources that differ in a few bits only.
func TestHashSpreads(t *testing.T) {
	l := newLimiter(t, 1<<13)
	for name, source := range map[string]func(i uint64) (hi, lo uint64, limit uint32){
		"IPv4":         func(i uint64) (uint64, uint64, uint32) { return 0, 0xffff_0a000000 | i, 0 },
		"IPv4, by /16": func(i uint64) (uint64, uint64, uint32) { return 0, 0xffff_00000000 | i<<16, 0 },
		"IPv6":         func(i uint64) (uint64, uint64, uint32) { return 0x20010db8_00000000 | i, 0, 0 },
		"limits":       func(i uint64) (uint64, uint64, uint32) { return 0x20010db8_00000000, 0, uint32(i) },
	} {
		const n = 1 << 16
		var lines [1024]int
		var ways [8]int
		var tags [256]int
		for i := range uint64(n) {
			h := l.Hash(source(i))
			lines[h&l.mask]++
			ways[h>>wayShift%8]++
			tags[h>>56]++
		}
		for what, counts := range map[string][]int{"line": lines[:], "place": ways[:], "tag": tags[:]} {
			// The sum of squares of deviations from the mean, over the mean, is len(counts) − 1 on average.
			mean, chi := float64(n)/float64(len(counts)), 0.0
			for _, c := range counts {
				chi += (float64(c) - mean) * (float64(c) - mean) / mean
			}
			if chi > 1.6*float64(len(counts))+20 {
				t.Errorf("%s: each %s: %.0f where %d would be random", name, what, chi, len(counts)-1)
			}
		}
	}
}

// Several workers that share one source admit together what its limit says, whether they count each packet or draw lots.
func TestWorkersShareALimit(t *testing.T) {
	const workers, each = 4, 50_000
	for _, c := range []struct {
		perSecond   uint64
		step        int64 // ns
		least, most int64
	}{
		{1000, 10_000, 2090, 2110 + 101}, // 2 s will pass. Two workers may both begin a word, once.
		{200_000, 1_000, 55_000, 65_000}, // 200 ms
	} {
		r := NewRate(c.perSecond, 100*time.Millisecond)
		l := newLimiter(t, 16)
		var admitted atomic.Int64
		var clock atomic.Int64
		var group sync.WaitGroup
		for range workers {
			group.Go(func() {
				lots := new(Lots)
				for range each {
					if admitSome(l, lots, 0, 42, 0, r, clock.Add(c.step)).OK {
						admitted.Add(1)
					}
				}
			})
		}
		group.Wait()
		if n := admitted.Load(); n < c.least || n > c.most {
			t.Errorf("%d a second: %d admitted, want %d to %d", c.perSecond, n, c.least, c.most)
		}
	}
}

// FuzzLimiter: whatever happens in a line of words, nobody is refused who has not used up his rate, as an exact count of what
// he was admitted says; and as long as nobody has to give way, nobody is admitted who has.
func FuzzLimiter(f *testing.F) {
	f.Add(uint64(0), []byte{0, 0, 0, 0, 1, 1, 1, 200, 2, 3, 255, 4})
	f.Add(uint64(63)<<scaleShift, []byte{9, 9, 9, 8, 8, 8, 7, 6, 5, 4, 3, 2, 1, 0, 250, 251, 252})
	f.Fuzz(func(t *testing.T, start uint64, steps []byte) {
		rates := [2]Rate{
			{Interval: 64 * 100 << fraction, Tolerance: 64 * 350 << fraction},
			{Interval: 64 * 9000 << fraction, Tolerance: 0},
		}
		l := newLimiter(t, 16)
		now := int64(start >> 2 &^ 63)
		var until [16]int64 // exact theoretical arrival times; distinct tags, so no two sources share a word
		seen := 0
		for _, b := range steps {
			if b >= 128 {
				now += 64 << (b & 15)
				continue
			}
			source := uint64(b % 16)
			seen |= 1 << source
			r := rates[source%2]
			v := l.Admit((source+1)<<tagShift|uint64(b>>4)<<wayShift, r, now)
			early := until[source] - now - int64(r.Tolerance>>fraction)
			if !v.OK && early <= 0 {
				t.Fatalf("%x: source %d is refused at %d, %+v, though its time is %d", steps, source, now, v, until[source])
			}
			few := true
			for n, s := 0, seen; s != 0; s &= s - 1 {
				n++
				few = n <= lineWords
			}
			if v.OK && early > 64 && few { // a unit of the word is forgiven
				t.Fatalf("%x: source %d is admitted at %d though its time is %d", steps, source, now, until[source])
			}
			if v.OK {
				until[source] = max(until[source], now) + int64(r.Interval>>fraction)
			}
		}
	})
}

// FuzzLimiterWords: any words do no harm: a verdict comes, and it makes sense.
func FuzzLimiterWords(f *testing.F) {
	f.Add(make([]byte, 128), uint64(1), int64(0), uint64(100), uint64(1000))
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255}, ^uint64(0), int64(1)<<62, uint64(1), uint64(0))
	f.Fuzz(func(t *testing.T, content []byte, hash uint64, now int64, interval, tolerance uint64) {
		l := newLimiter(t, 16)
		for i := range l.words {
			if len(content) >= 8*i+8 {
				l.words[i] = binary.LittleEndian.Uint64(content[8*i:])
			}
		}
		r := Rate{Interval: interval % (1e9 << fraction), Tolerance: tolerance % (10e9 << fraction), every: 1 << (interval & 3)}
		for i := range 100 {
			v := l.AdmitSome(hash, r, now, i%int(r.every) == 0)
			if v.OK && (v.Over != 0 || v.Far) || v.Over<<fraction > r.Interval+skewed {
				t.Fatalf("%+v", v)
			}
		}
		if next, live := l.Sweep(0, 5, now); next != 0 || live > len(l.words) {
			t.Fatalf("sweep: %d, %d", next, live)
		}
	})
}
