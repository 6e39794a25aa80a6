package maglev

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	gomaglev "github.com/dgryski/go-maglev"
)

// Between tables of one size, Moved counts the entries.
func TestMoved(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	for range 50 {
		list := backends(1 + rng.IntN(30))
		for i := range list {
			list[i].Weight = uint16(1 + rng.IntN(100))
		}
		from := mustBuild(t, list, 1009)
		list = shuffled(rng, list)[rng.IntN(len(list)):]
		list = append(list, Backend{"another", uint16(rng.IntN(100))})
		list[0].Weight = uint16(1 + rng.IntN(100))
		to := mustBuild(t, list, 1009)
		wantMoved, wantLeast := movedNames(namesOf(from), namesOf(to))
		if moved, least := Moved(from, to); moved != wantMoved || least != wantLeast {
			t.Fatalf("%v to %v: moved %d, least %d; want %d, %d", from.Names(), to.Names(), moved, least, wantMoved, wantLeast)
		}
	}
}

// namesOf returns the name of each entry's backend.
func namesOf(t *Table) []string {
	names := make([]string, len(t.entries))
	for i, b := range t.entries {
		names[i] = t.names[b]
	}
	return names
}

func movedNames(from, to []string) (moved, least int) {
	surplus := map[string]int{}
	for i := range from {
		if from[i] != to[i] {
			moved++
		}
		surplus[from[i]]++
		surplus[to[i]]--
	}
	for _, n := range surplus {
		least += max(0, n)
	}
	return moved, least
}

// Between tables of two sizes, Moved counts the share of hashes that go elsewhere.
func TestMovedSizes(t *testing.T) {
	from, to := mustBuild(t, backends(10), DefaultSize), mustBuild(t, backends(12)[2:], 30011)
	moved, least := Moved(from, to)
	slots := make([]uint32, 12)
	for i := range slots {
		slots[i] = uint32(i)
	}
	a, b := NewPool(from, slots[:10], Maglev, 1), NewPool(to, slots[:10], Maglev, 1)
	differ := 0
	hs := hashes(200000)
	for _, h := range hs {
		if from.names[a.at(h)] != to.names[b.at(h)] {
			differ++
		}
	}
	if got, want := float64(moved)/30011, float64(differ)/float64(len(hs)); math.Abs(got-want) > 0.005 {
		t.Errorf("%.4f of the hashes move, but a sample shows %.4f", got, want)
	}
	if want := 2 * 30011 / 10; least < want || least > want+10 {
		t.Errorf("at least %d entries have to move, want %d: those of two backends of ten", least, want)
	}
	empty := mustBuild(t, nil, 31)
	for _, c := range []struct {
		from, to     *Table
		moved, least int
	}{{from, from, 0, 0}, {empty, to, 0, 0}, {from, empty, 31, 31}, {empty, empty, 0, 0}} {
		if moved, least := Moved(c.from, c.to); moved != c.moved || least != c.least {
			t.Errorf("%d to %d backends: moved %d, least %d; want %d, %d", len(c.from.names), len(c.to.names), moved, least, c.moved, c.least)
		}
	}
}

// A change of one backend moves little more than it has to; and less than with the other way to have weights, in which
// each turn has a name, and so a permutation, of its own.
func TestChangesMoveLittle(t *testing.T) {
	const n, at = 100, 37
	ways := append(slices.Clone(weightings[:4]), weighting{"equal", func(*rand.Rand, int) int { return 100 }})
	if raceEnabled {
		ways = ways[:1] // one goroutine: the detector only makes it slow
	}
	for _, w := range ways {
		list := weightedBy(n, w.of)
		before := mustBuild(t, list, DefaultSize)
		for _, c := range []struct {
			name   string
			weight float64 // factor
			add    bool
		}{{"removed", 0, false}, {"added", 1, true}, {"doubled", 2, false}, {"less by a tenth", 0.9, false}} {
			changed := slices.Clone(list)
			if c.add {
				changed = append(changed, Backend{"another", list[at].Weight})
			} else {
				changed[at].Weight = uint16(max(min(1, c.weight), min(math.MaxUint16, c.weight*float64(list[at].Weight))))
			}
			moved, least := Moved(before, mustBuild(t, changed, DefaultSize))
			t.Logf("weights %s, one of %d %s: %d entries move, %d have to", w.name, n, c.name, moved, least)
			if moved < least || moved-least > DefaultSize/50 {
				t.Errorf("weights %s, one of %d %s: %d entries move, %d have to", w.name, n, c.name, moved, least)
			}
			if c.name == "doubled" {
				theirs, theirLeast := movedNames(ownNames(list), ownNames(changed))
				t.Logf("    with a name for each turn: %d move, %d have to", theirs, theirLeast)
				if theirs-theirLeast <= moved-least {
					t.Errorf("weights %s: %d too many move; with a name for each turn it is %d", w.name, moved-least, theirs-theirLeast)
				}
			}
		}
	}
}

// ownNames returns the name of each entry's backend if each turn of some thousand has a name of its own.
func ownNames(list []Backend) []string {
	var weights []uint16
	total := 0
	for _, b := range list {
		weights = append(weights, b.Weight)
		total += int(b.Weight)
	}
	var names []string
	had := make([]int, len(list))
	for _, b := range turns(weights, min(total, 4096)) {
		names = append(names, fmt.Sprintf("%s#%d", list[b].Name, had[b]))
		had[b]++
	}
	slices.Sort(names)
	m := gomaglev.New(names, DefaultSize)
	owners := make([]string, DefaultSize)
	for i := range owners {
		owners[i], _, _ = strings.Cut(names[m.Lookup(uint64(i))], "#")
	}
	return owners
}
