package guard

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

type source [2]uint64

// exact is what a Top approximates: all counts, halved like its own.
type exact map[source]uint64

func (e exact) halve() {
	for s := range e {
		e[s] /= 2
	}
}

// setOf is the number of the set in which a source is counted.
func setOf(t *Top, s source) uint64 { return t.hash(s[0], s[1]) % sets }

// inSet returns n sources that share set number set under t's key.
func inSet(t *Top, set uint64, n int) []source {
	var found []source
	for i := uint64(0); len(found) < n; i++ {
		if s := (source{0, 0xffff<<32 | i}); setOf(t, s) == set {
			found = append(found, s)
		}
	}
	return found
}

// check fails unless all that the doc of Top promises holds. halved says that Halve was called: then the total may be
// larger than the sum.
func check(t *testing.T, top *Top, want exact, halved bool) {
	t.Helper()
	counts := top.AppendTo(nil)
	if len(counts) > Counters {
		t.Fatalf("%d counts, at most %d are held", len(counts), Counters)
	}
	var sum uint64
	there := make(map[source]Count)
	for _, c := range counts {
		s := source{c.Hi, c.Lo}
		if _, twice := there[s]; twice {
			t.Fatalf("source %x is counted twice", s)
		}
		there[s] = c
		sum += c.N
		if f := want[s]; c.N == 0 || c.Error > c.N || f > c.N || f < c.N-c.Error {
			t.Fatalf("source %x: N %d, error %d; truly %d", s, c.N, c.Error, f)
		}
	}
	if total := top.Total(); sum > total || sum != total && !halved {
		t.Fatalf("the counts' sum is %d, the total %d", sum, total)
	}

	var all [sets]uint64
	for s, f := range want {
		all[setOf(top, s)] += f
	}
	var least [sets]uint64
	for i, set := range &top.sets {
		least[i] = slices.Min(set.n[:])
		// Rounding down loses less in a sum than in its parts, hence this only before Halve.
		if !halved && least[i] > all[i]/ways {
			t.Fatalf("set %d: smallest count %d with %d additions", i, least[i], all[i])
		}
	}
	if floor := slices.Max(least[:]); top.Floor() != floor {
		t.Fatalf("floor %d, want %d", top.Floor(), floor)
	}
	for s, f := range want {
		if _, is := there[s]; !is && f > least[setOf(top, s)] {
			t.Fatalf("source %x was added %d times and is not there; the smallest count of its set is %d", s, f, least[setOf(top, s)])
		}
	}
}

// With a counter for each source, counts are exact.
func TestExactBelowCapacity(t *testing.T) {
	top, want := NewTop(1), exact{}
	for set := range uint64(sets) {
		for i, s := range inSet(top, set, ways) {
			want[s] = set + 10*uint64(i) + 1
		}
	}
	// In turns, so that sources come and come again in every order.
	for round := range uint64(200) {
		for s, f := range want {
			if round < f {
				top.Add(s[0], s[1])
			}
		}
	}
	check(t, top, want, false)
	counts := top.AppendTo(make([]Count, 0, Counters))
	if len(counts) != len(want) {
		t.Errorf("%d sources of %d", len(counts), len(want))
	}
	for _, c := range counts {
		if c.Error != 0 || c.N != want[source{c.Hi, c.Lo}] {
			t.Errorf("%+v, want %d exactly", c, want[source{c.Hi, c.Lo}])
		}
	}
}

// The bounds hold for streams of every shape, with and without halving.
func TestBounds(t *testing.T) {
	const n = 100_000
	type draw func() uint64
	streams := map[string]func(r *rand.Rand) draw{
		"one":      func(*rand.Rand) draw { return func() uint64 { return 7 } },
		"few":      func(r *rand.Rand) draw { return func() uint64 { return r.Uint64N(100) } },
		"uniform":  func(r *rand.Rand) draw { return func() uint64 { return r.Uint64N(5_000) } },
		"many":     func(r *rand.Rand) draw { return func() uint64 { return r.Uint64N(1 << 40) } },
		"zipf 1.1": func(r *rand.Rand) draw { return rand.NewZipf(r, 1.1, 1, 1<<20).Uint64 },
		"zipf 1.5": func(r *rand.Rand) draw { return rand.NewZipf(r, 1.5, 1, 1<<20).Uint64 },
		"in order": func(*rand.Rand) draw { i := uint64(0); return func() uint64 { i++; return i / 50 } },
	}
	for name, stream := range streams {
		for _, halve := range []int{0, 9_001} {
			t.Run(fmt.Sprintf("%s/%d", name, halve), func(t *testing.T) {
				t.Parallel()
				next := stream(rand.New(rand.NewPCG(1, 2)))
				top, want := NewTop(rand.Uint64()), exact{}
				for i := range n {
					v := next()
					s := source{v, 0} // 0 too: the address that a free counter has
					if v%2 == 1 {
						s = source{0, 0xffff<<32 | v}
					}
					top.Add(s[0], s[1])
					want[s]++
					if halve > 0 && i%halve == halve-1 {
						top.Halve()
						want.halve()
					}
					if i == 1000 || i == n/2 {
						check(t, top, want, i >= halve && halve > 0)
					}
				}
				check(t, top, want, halve > 0)
			})
		}
	}
}

// Any order of additions and halvings of 24 sources that share two sets keeps the bounds.
func FuzzTop(f *testing.F) {
	f.Add([]byte("aaaabbbbccdefghijklmnopqrstuv\xffabcdabcd\xff\xffzyx"))
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0xff, 11, 10, 9, 8, 0xff, 0xff, 0xff, 0})
	sources := append(inSet(NewTop(3), 0, 12), inSet(NewTop(3), 63, 11)...)
	sources = append(sources, source{})
	f.Fuzz(func(t *testing.T, steps []byte) {
		top, want, halved := NewTop(3), exact{}, false
		for i, b := range steps[:min(len(steps), 1000)] {
			if b == 0xff {
				top.Halve()
				want.halve()
				halved = true
			} else {
				s := sources[int(b)%len(sources)]
				n := uint64(1 + i%7)
				top.AddN(s[0], s[1], n)
				want[s] += n
			}
			if i%16 == 0 {
				check(t, top, want, halved)
			}
		}
		check(t, top, want, halved)
	})
}

// Sources with 1 % each of a flood of random ones are all found, first, and stay so from minute to minute.
func TestHeavySourcesSurviveAFlood(t *testing.T) {
	const heavy, minute = 10, 100_000
	r := rand.New(rand.NewPCG(3, 4))
	top := NewTop(5)
	for m := 1; m <= 5; m++ {
		for i := range minute {
			if i%100 < heavy {
				top.Add(uint64(i%100)+1, 0)
			} else {
				top.Add(0, 0xffff<<32|uint64(r.Uint32()))
			}
		}
		first := Merge(top.AppendTo(nil))[:heavy]
		for _, c := range first {
			if c.Hi == 0 || c.Hi > heavy {
				t.Errorf("minute %d: %+v is among the first %d", m, c, heavy)
			}
			if c.N-c.Error < minute/100/2 || c.N > 2*minute/100+top.Floor() {
				t.Errorf("minute %d: %+v, with %d additions a minute", m, c, minute/100)
			}
		}
		top.Halve()
	}
}

func TestHalveForgets(t *testing.T) {
	top := NewTop(0)
	for range 100 {
		top.Add(1, 0)
	}
	for _, want := range []uint64{50, 25, 12, 6, 3, 1} {
		top.Halve()
		if got := top.AppendTo(nil); len(got) != 1 || got[0] != (Count{1, 0, want, 0}) || top.Total() != want {
			t.Fatalf("%v and a total of %d, want a count of %d", got, top.Total(), want)
		}
	}
	top.Halve()
	if got := top.AppendTo(nil); len(got) != 0 || top.Total() != 0 || top.Floor() != 0 {
		t.Errorf("%v, total %d, floor %d after all was halved away", got, top.Total(), top.Floor())
	}
	top.Add(1, 0)
	if got := top.AppendTo(nil); len(got) != 1 || got[0] != (Count{1, 0, 1, 0}) {
		t.Errorf("%v when the source came back", got)
	}
}

// Sources that share a set under one key do not under another, and neighbours in address space share none by rule.
func TestSetsDependOnTheKey(t *testing.T) {
	const each = 512
	aimed := inSet(NewTop(1), 0, each*8)
	ipv4, ipv6 := make([]source, each*sets), make([]source, each*sets)
	for i := range ipv4 {
		ipv4[i] = source{0, 0xffff_0a00_0000 + uint64(i)}
		ipv6[i] = source{0x2001_0db8_0000_0000 + uint64(i)<<8, 0}
	}
	for name, list := range map[string][]source{"aimed": aimed, "ipv4": ipv4, "ipv6": ipv6} {
		for _, key := range []uint64{0, 2, 1 << 63, 0x123456789abcdef0} {
			var n [sets]int
			top := NewTop(key)
			for _, s := range list {
				n[setOf(top, s)]++
			}
			// Six standard deviations and more.
			if mean, least, most := len(list)/sets, slices.Min(n[:]), slices.Max(n[:]); most > 2*mean || least < mean/4 {
				t.Errorf("%s, key %#x: %d to %d of %d sources in a set", name, key, least, most, len(list))
			}
		}
	}
}

func TestSource(t *testing.T) {
	for _, c := range []struct{ in, want source }{
		{source{0, 0xffff_c000_0201}, source{0, 0xffff_c000_0201}},
		{source{0x2001_0db8_0001_0002, 0x0003_0004_0005_0006}, source{0x2001_0db8_0001_0002, 0}},
		{source{0, 1}, source{}},
		{source{0, 0x1_ffff_c000_0201}, source{}},
		{source{1, 0xffff_c000_0201}, source{1, 0}},
	} {
		if hi, lo := Source(c.in[0], c.in[1]); (source{hi, lo}) != c.want {
			t.Errorf("%x: %x %x, want %x", c.in, hi, lo, c.want)
		}
	}
}

func TestMerge(t *testing.T) {
	a := []Count{{1, 0, 10, 2}, {2, 0, 5, 0}, {0, 9, 7, 7}}
	b := []Count{{2, 0, 20, 3}, {3, 0, 7, 1}}
	got := Merge(a, nil, b)
	want := []Count{{2, 0, 25, 3}, {1, 0, 10, 2}, {0, 9, 7, 7}, {3, 0, 7, 1}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if !slices.Equal(Merge(b, a), want) {
		t.Errorf("the order of the lists matters: %v", Merge(b, a))
	}
	if a[0] != (Count{1, 0, 10, 2}) || b[0] != (Count{2, 0, 20, 3}) {
		t.Error("a list was changed")
	}
	if got := Merge(); len(got) != 0 {
		t.Errorf("%v from nothing", got)
	}
}

// A stream that workers with different keys share: the lower bound holds, and the upper one with the floors of the lists
// that lack a source.
func TestMergeOfWorkersKeepsItsBounds(t *testing.T) {
	zipf := rand.NewZipf(rand.New(rand.NewPCG(5, 6)), 1.2, 1, 1<<16)
	tops, want := []*Top{NewTop(1), NewTop(2), NewTop(3)}, exact{}
	for i := range 100_000 {
		s := source{zipf.Uint64(), 0}
		tops[i*i%7%3].Add(s[0], s[1])
		want[s]++
	}
	var lists [][]Count
	missing := make(map[source]uint64) // how many more there may be
	for s := range want {
		for _, top := range tops {
			missing[s] += top.Floor()
		}
	}
	for _, top := range tops {
		lists = append(lists, top.AppendTo(nil))
		for _, c := range lists[len(lists)-1] {
			missing[source{c.Hi, c.Lo}] -= top.Floor()
		}
	}
	merged := Merge(lists...)
	if !slices.IsSortedFunc(merged, func(a, b Count) int { return int(b.N) - int(a.N) }) {
		t.Error("not sorted")
	}
	for _, c := range merged {
		if s := (source{c.Hi, c.Lo}); want[s] < c.N-c.Error || want[s] > c.N+missing[s] {
			t.Errorf("%+v: truly %d, and missing lists explain %d", c, want[s], missing[s])
		}
		delete(want, source{c.Hi, c.Lo})
	}
	for s, f := range want {
		if f > missing[s] {
			t.Errorf("source %x was added %d times and is in no list; that explains %d", s, f, missing[s])
		}
	}
}

func BenchmarkTopAdd(b *testing.B) {
	for _, c := range []struct {
		name    string
		sources uint64
	}{{"one", 1}, {"200", 200}, {"random", 1 << 62}} {
		b.Run(c.name, func(b *testing.B) {
			draws := make([]uint64, 1<<16)
			r := rand.New(rand.NewPCG(7, 8))
			for i := range draws {
				draws[i] = r.Uint64N(c.sources)
			}
			top := NewTop(9)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				top.Add(draws[i%len(draws)], 0)
			}
		})
	}
}

func BenchmarkTopAppend(b *testing.B) {
	top := NewTop(9)
	for i := range uint64(100_000) {
		top.Add(i, 0)
	}
	counts := make([]Count, 0, Counters)
	b.ReportAllocs()
	for b.Loop() {
		counts = top.AppendTo(counts[:0])
	}
}
