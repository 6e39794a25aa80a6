package maglev

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	gomaglev "github.com/dgryski/go-maglev"
)

func TestBuildRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		list []Backend
		size int
		want string
	}{
		{"twice the same name", []Backend{{"a", 1}, {"b", 1}, {"a", 2}}, DefaultSize, `"a"`},
		{"twice the same name without weight", []Backend{{"a", 0}, {"b", 1}, {"a", 0}}, DefaultSize, `"a"`},
		{"more backends than entries", backends(12), 11, "less than the 12 backends; take 65537"},
		{"more backends than the default", backends(65535), 131, "less than the 65535 backends; take 65537"},
		{"not prime", backends(3), 65536, "not prime; take a prime number like 65537"},
		{"product of two primes", backends(3), 251 * 257, "not prime"},
		{"size one", backends(1), 1, "not prime"},
		{"size zero", backends(1), 0, "size 0"},
		{"size zero, no backend", nil, 0, "not prime; take a prime number like 2"},
		{"size below zero", backends(1), -7, "size -7"},
		{"too large", backends(1), 16777259, "more than 16777216"},
		{"more than fit", backends(65536), LargeSize, "at most 65535"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Build(c.list, c.size); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

// Nothing is chosen from a table without backends, whatever the scheduler. (go-maglev never returns for an empty list.)
func TestEmptyTable(t *testing.T) {
	for _, list := range [][]Backend{nil, weighted(0), weighted(0, 0, 0)} {
		table := mustBuild(t, list, 31)
		if len(table.Names())+len(table.Weights())+len(table.Shares()) != 0 || table.Size() != 31 || len(table.Hash()) != 16 {
			t.Errorf("table of %v: %v, %v, %v, %d, %q", list, table.Names(), table.Weights(), table.Shares(), table.Size(), table.Hash())
		}
		for _, s := range []Scheduler{Maglev, WRR, LeastConn, P2C, Source} {
			p := NewPool(table, nil, s, 2)
			v := Service{Pool: p, Past: []Past{{p, 1}}}
			_, ok1 := v.New(testKey, 1, &Slots{}, 1, 0)
			_, ok2 := v.Existing(testKey, 1, &Slots{}, 0)
			_, ok3 := v.Datagram(testKey, 1, &Slots{}, 1, 0)
			if ok1 || ok2 || ok3 {
				t.Errorf("%v: a backend was chosen from an empty table: %v, %v, %v", s, ok1, ok2, ok3)
			}
		}
	}
}

// A backend of weight zero is as if it were not in the list.
func TestWeightZero(t *testing.T) {
	with := mustBuild(t, weighted(3, 0, 5, 0, 9), DefaultSize)
	without := mustBuild(t, slices.DeleteFunc(weighted(3, 0, 5, 0, 9), func(b Backend) bool { return b.Weight == 0 }), DefaultSize)
	if !slices.Equal(with.entries, without.entries) || !slices.Equal(with.Names(), without.Names()) || with.Hash() != without.Hash() {
		t.Errorf("tables of %v and %v differ", with.Names(), without.Names())
	}
	if !slices.Equal(with.Weights(), []uint16{3, 5, 9}) {
		t.Errorf("weights %v", with.Weights())
	}
	if _, err := Build(append(backends(11), weighted(make([]uint16, 500)...)[11:]...), 11); err != nil {
		t.Errorf("backends without a weight take entries: %v", err)
	}
}

// The table is the same for any order of the backends, and Build does not touch the caller's list.
func TestBuildOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{1, 2, 3, 10, 100} {
		list := backends(n)
		for i := range list {
			list[i].Weight = uint16(1 + i%5*i)
		}
		want := mustBuild(t, list, DefaultSize)
		if !slices.IsSorted(want.Names()) || len(want.Names()) != n {
			t.Errorf("%d backends: names %v", n, want.Names())
		}
		for i, name := range want.Names() {
			if b := list[slices.IndexFunc(list, func(b Backend) bool { return b.Name == name })]; b.Weight != want.Weights()[i] {
				t.Errorf("%s has weight %d, want %d", name, want.Weights()[i], b.Weight)
			}
		}
		for range 5 {
			mixed := shuffled(rng, list)
			before := slices.Clone(mixed)
			got := mustBuild(t, mixed, DefaultSize)
			if !slices.Equal(got.entries, want.entries) || !slices.Equal(got.Names(), want.Names()) || got.Hash() != want.Hash() {
				t.Errorf("%d backends: the table depends on their order", n)
			}
			if !slices.Equal(mixed, before) {
				t.Errorf("%d backends: Build changed the caller's list", n)
			}
		}
	}
}

// A table must not change between versions or machines, or the nodes of a group disagree during an upgrade.
func TestBuildIsPinned(t *testing.T) {
	for _, c := range []struct {
		list []Backend
		want []uint16
		hash string
	}{
		{[]Backend{{"blue", 7}, {"green", 7}, {"red", 7}},
			[]uint16{2, 0, 0, 1, 2, 1, 0, 2, 0, 2, 0, 0, 2, 1, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 2, 0, 0, 2}, "eca590c47f343c0f"},
		{[]Backend{{"blue", 1}, {"green", 20}, {"red", 10}},
			[]uint16{1, 1, 1, 1, 2, 1, 2, 2, 2, 1, 0, 1, 2, 1, 1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 2, 1, 1, 2}, "e285991c48505477"},
	} {
		table := mustBuild(t, c.list, 31)
		if !slices.Equal(table.entries, c.want) || table.Hash() != c.hash {
			t.Errorf("%v: %s, entries\n got %v\nwant %v", c.list, table.Hash(), table.entries, c.want)
		}
	}
	for _, c := range []struct {
		list []Backend
		want string
	}{
		{backends(100), "589a7e3c7999a931"},
		{weightedBy(100, weightings[3].of), "8f3e4b5922b2cf4f"},
		{weightedBy(10, weightings[4].of), "75e6c80820395141"},
	} {
		if got := mustBuild(t, c.list, DefaultSize).Hash(); got != c.want {
			t.Errorf("table of %d backends is called %s, want %s", len(c.list), got, c.want)
		}
	}
}

// The hash tells names, entries and sizes apart.
func TestHash(t *testing.T) {
	seen := map[string]string{}
	for name, table := range map[string]*Table{
		"empty":           mustBuild(t, nil, 31),
		"empty, large":    mustBuild(t, nil, 37),
		"one":             mustBuild(t, []Backend{{"a", 1}}, 31),
		"another":         mustBuild(t, []Backend{{"b", 1}}, 31),
		"large":           mustBuild(t, []Backend{{"a", 1}}, 37),
		"two":             mustBuild(t, []Backend{{"a", 1}, {"b", 1}}, 31),
		"two, weighted":   mustBuild(t, []Backend{{"a", 1}, {"b", 2}}, 31),
		"names, shifted":  mustBuild(t, []Backend{{"ab", 1}, {"c", 1}}, 31),
		"names, shifted2": mustBuild(t, []Backend{{"a", 1}, {"bc", 1}}, 31),
	} {
		h := table.Hash()
		if other, ok := seen[h]; ok {
			t.Errorf("%q and %q are both called %s", name, other, h)
		}
		if seen[h] = name; len(h) != 16 || strings.Trim(h, "0123456789abcdef") != "" {
			t.Errorf("hash %q is not 16 hex digits", h)
		}
	}
	double := func(k uint16) string { return mustBuild(t, weighted(k, 2*k, 3*k), DefaultSize).Hash() }
	if double(1) != double(100) {
		t.Error("weights in the same proportion give other tables")
	}
}

// With equal weights the table is that of go-maglev for the sorted names.
func TestEqualsGoMaglev(t *testing.T) {
	for _, c := range []struct{ n, size int }{{1, 2}, {2, 2}, {3, 31}, {31, 31}, {10, DefaultSize}, {100, DefaultSize}, {1000, DefaultSize}, {700, LargeSize}} {
		if raceEnabled && c.size == LargeSize {
			continue
		}
		table := mustBuild(t, backends(c.n), c.size)
		theirs := gomaglev.New(table.Names(), uint64(c.size))
		for e, b := range table.entries {
			if int(b) != theirs.Lookup(uint64(e)) {
				t.Fatalf("%d backends, entry %d of %d: %d, go-maglev has %d", c.n, e, c.size, b, theirs.Lookup(uint64(e)))
			}
		}
	}
}

// With weights it is that of go-maglev for a list in which each backend is named once for each of its turns.
func TestEqualsGoMaglevWeighted(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for range 100 {
		size := NextPrime(2 + rng.IntN(600))
		list := backends(1 + rng.IntN(min(size, 40)))
		for i := range list {
			list[i].Weight = uint16(1 + rng.IntN(1<<rng.IntN(16)))
		}
		table := mustBuild(t, list, size)
		var names []string
		var owner []uint16
		for _, b := range turns(table.Weights(), size) {
			names, owner = append(names, table.Names()[b]), append(owner, b)
		}
		theirs := gomaglev.New(names, uint64(size))
		for e, b := range table.entries {
			if want := owner[theirs.Lookup(uint64(e))]; b != want {
				t.Fatalf("%v, entry %d of %d: %d, go-maglev has %d", list, e, size, b, want)
			}
		}
	}
}

// Backends of equal weight take entries in turns, so their numbers differ by one at most.
func TestBalance(t *testing.T) {
	for _, c := range []struct {
		n, size int
		most    float64 // of the busiest's share over the mean
	}{{1, 2, 1}, {2, 2, 1}, {3, 31, 1.1}, {31, 31, 1}, {10, DefaultSize, 1.03}, {100, DefaultSize, 1.03}, {1000, DefaultSize, 1.03}} {
		s := mustBuild(t, backends(c.n), c.size).Shares()
		least, most := slices.Min(s), slices.Max(s)
		ratio := float64(most) * float64(c.n) / float64(c.size)
		t.Logf("%d backends, %d entries: busiest/mean %.4f", c.n, c.size, ratio)
		if most-least > 1 || least < 1 || ratio > c.most {
			t.Errorf("%d backends, %d entries: from %d to %d entries a backend", c.n, c.size, least, most)
		}
	}
}

// weighting is a way to have weights: of gives that of backend i.
type weighting struct {
	name string
	of   func(rng *rand.Rand, i int) int
}

var weightings = []weighting{
	{"up to 10", func(rng *rand.Rand, _ int) int { return 1 + rng.IntN(10) }},
	{"up to 100", func(rng *rand.Rand, _ int) int { return 1 + rng.IntN(100) }},
	{"up to 65535", func(rng *rand.Rand, _ int) int { return 1 + rng.IntN(65535) }},
	{"Zipf", func(_ *rand.Rand, i int) int { return 65535 / (i + 1) }},
	{"one against all", func(_ *rand.Rand, i int) int { return max(1, 65535*(1-i)) }},
}

func weightedBy(n int, of func(*rand.Rand, int) int) []Backend {
	rng := rand.New(rand.NewPCG(uint64(n), 4))
	list := backends(n)
	for i := range list {
		list[i].Weight = uint16(of(rng, i))
	}
	return list
}

// Every backend has its exact share, rounded up or down; but where some are too light for an entry and have one
// nevertheless, it is the others' exact share of the rest.
func TestWeights(t *testing.T) {
	for _, size := range []int{DefaultSize, LargeSize} {
		if raceEnabled && size == LargeSize {
			break // one goroutine: the detector only makes it slow
		}
		for _, w := range weightings {
			for _, n := range []int{2, 10, 100, 1000} {
				table := mustBuild(t, weightedBy(n, w.of), size)
				worst := checkShares(t, table)
				t.Logf("%d entries, %d backends, weights %s: worst share of 200 entries or more off by %.2f %%", size, n, w.name, 100*worst)
				if worst > 0.02 {
					t.Errorf("%d entries, %d backends, weights %s: a share is off by %.2f %%, more than 2 %%", size, n, w.name, 100*worst)
				}
			}
		}
	}
}

// checkShares checks the shares of a table, and returns by how much the worst of those that should have 200 entries or
// more is off, relative to what it should have.
func checkShares(t *testing.T, table *Table) (worst float64) {
	t.Helper()
	total, rest := 0, table.Size()
	for _, w := range table.Weights() {
		total += int(w)
	}
	all := total
	light := make([]bool, len(table.Weights()))
	for again := true; again; {
		again = false
		lightest := -1
		for i, w := range table.Weights() {
			if !light[i] && (lightest < 0 || w < table.Weights()[lightest]) {
				lightest = i
			}
		}
		if lightest >= 0 && int(table.Weights()[lightest])*rest < total {
			light[lightest], again = true, true
			total -= int(table.Weights()[lightest])
			rest--
		}
	}
	sum := 0
	for i, share := range table.Shares() {
		sum += share
		w := int(table.Weights()[i])
		if light[i] && share != 1 {
			t.Errorf("a backend with %d/%d of the weight has %d of %d entries, want 1", w, all, share, table.Size())
		}
		if !light[i] && (share < w*rest/total || share > (w*rest+total-1)/total) {
			t.Errorf("a backend with %d/%d of the weight has %d of %d entries", w, total, share, rest)
		}
		if exact := float64(w) * float64(table.Size()) / float64(all); exact >= 200 {
			worst = max(worst, math.Abs(float64(share)-exact)/exact)
		}
	}
	if sum != table.Size() {
		t.Errorf("shares add up to %d of %d", sum, table.Size())
	}
	counted := make([]int, len(table.Names()))
	for _, b := range table.entries {
		counted[b]++
	}
	if !slices.Equal(counted, table.Shares()) {
		t.Errorf("shares are %v, counted %v", table.Shares(), counted)
	}
	return worst
}

// After any number of turns each backend has had its exact share of them, rounded up or down; and as many as its weight
// when the round is over.
func TestTurns(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	for range 300 {
		weights := make([]uint16, 1+rng.IntN(30))
		total := 0
		for i := range weights {
			weights[i] = uint16(1 + rng.IntN(1<<rng.IntN(11)))
			total += int(weights[i])
		}
		had := make([]int, len(weights))
		for n, b := range turns(weights, total) {
			had[b]++
			for i, w := range weights {
				if exact := int(w) * (n + 1); had[i] < exact/total || had[i] > (exact+total-1)/total {
					t.Fatalf("weights %v: backend %d had %d of %d turns", weights, i, had[i], n+1)
				}
			}
		}
		for i, w := range weights {
			if had[i] != int(w) {
				t.Fatalf("weights %v: backend %d had %d of %d turns", weights, i, had[i], total)
			}
		}
	}
}

func TestPrimes(t *testing.T) {
	for n := -3; n < 2000; n++ {
		prime := n > 1
		for d := 2; d < n; d++ {
			prime = prime && n%d != 0
		}
		if IsPrime(n) != prime {
			t.Errorf("IsPrime(%d) = %v", n, !prime)
		}
		next := NextPrime(n)
		if next < n || !IsPrime(next) {
			t.Errorf("NextPrime(%d) = %d", n, next)
		}
		for between := max(n, 2); between < next; between++ {
			if IsPrime(between) {
				t.Errorf("NextPrime(%d) = %d leaves out %d", n, next, between)
			}
		}
	}
	if !IsPrime(DefaultSize) || !IsPrime(LargeSize) || NextPrime(65536) != DefaultSize {
		t.Error("a size that is offered is not prime")
	}
}

// Any list of backends is refused with a reason, or gives a table with exact shares that does not depend on the order.
func FuzzBuild(f *testing.F) {
	f.Add([]byte{1, 0, 2, 0, 3, 0}, uint16(31), uint64(1))
	f.Add([]byte{255, 255, 1, 0, 0, 0, 7}, uint16(7), uint64(2))
	f.Add([]byte{}, uint16(2), uint64(3))
	f.Add(make([]byte, 100), uint16(4099), uint64(4))
	f.Fuzz(func(t *testing.T, weights []byte, size uint16, seed uint64) {
		list := backends(min(len(weights)/2, 2000))
		some := 0
		for i := range list {
			list[i].Weight = uint16(weights[2*i]) | uint16(weights[2*i+1])<<8
			some += min(1, int(list[i].Weight))
		}
		n := int(size) % 8192
		table, err := Build(list, n)
		if (err == nil) != (IsPrime(n) && some <= n) {
			t.Fatalf("%d backends with a weight, %d entries: error %v", some, n, err)
		}
		if err != nil {
			return
		}
		if len(table.Names()) != some {
			t.Fatalf("%d names, want %d", len(table.Names()), some)
		}
		if some > 0 {
			checkShares(t, table)
		}
		again, err := Build(shuffled(rand.New(rand.NewPCG(seed, 0)), list), n)
		if err != nil || again.Hash() != table.Hash() || !slices.Equal(again.entries, table.entries) {
			t.Fatalf("%v in another order give another table, error %v", list, err)
		}
		if moved, least := Moved(table, again); moved != 0 || least != 0 {
			t.Fatalf("%d entries move to the same table, %d of them have to", moved, least)
		}
	})
}
