package maglev

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func backends(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("web-%d", i+1)
	}
	return names
}

func shuffled(rng *rand.Rand, names []string) []string {
	names = slices.Clone(names)
	rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names
}

func mustBuild(t testing.TB, names []string, size int) *Table {
	t.Helper()
	table, err := Build(names, size)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// Each refused list is one for which go-maglev would loop for ever, panic or depend on the order.
func TestBuildRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		names []string
		size  int
		want  string
	}{
		{"no backends", nil, DefaultSize, "no backends"},
		{"twice the same name", []string{"a", "b", "a"}, DefaultSize, `"a"`},
		{"more backends than entries", backends(12), 11, "less than the 12 backends"},
		{"not prime", backends(3), 65536, "not prime"},
		{"product of two primes", backends(3), 251 * 257, "not prime"},
		{"size one", backends(1), 1, "not prime"},
		{"size zero", backends(1), 0, "size 0"},
		{"size below zero", backends(1), -7, "size -7"},
		{"more than fit", backends(65536), 655373, "at most 65535"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Build(c.names, c.size); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

// The table is the same for any order of the names, and Build does not touch the caller's list.
func TestBuildOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{1, 2, 3, 10, 100} {
		names := backends(n)
		want := mustBuild(t, names, DefaultSize)
		if !slices.IsSorted(want.Names()) || len(want.Names()) != n {
			t.Errorf("%d backends: names %v", n, want.Names())
		}
		for range 5 {
			mixed := shuffled(rng, names)
			before := slices.Clone(mixed)
			got := mustBuild(t, mixed, DefaultSize)
			if !slices.Equal(got.entries, want.entries) || !slices.Equal(got.Names(), want.Names()) {
				t.Errorf("%d backends: the table depends on their order", n)
			}
			if !slices.Equal(mixed, before) {
				t.Errorf("%d backends: Build changed the order of the caller's list", n)
			}
		}
	}
}

// A table must not change between versions, or the nodes of a group disagree during an upgrade.
func TestBuildIsPinned(t *testing.T) {
	table := mustBuild(t, []string{"blue", "green", "red"}, 31)
	want := []uint16{2, 0, 0, 1, 2, 1, 0, 2, 0, 2, 0, 0, 2, 1, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 2, 0, 0, 2}
	if !slices.Equal(table.entries, want) {
		t.Errorf("entries\n got %v\nwant %v", table.entries, want)
	}
}

// shares counts the entries of each backend.
func shares(t *Table) []int {
	n := make([]int, len(t.names))
	for _, e := range t.entries {
		n[e]++
	}
	return n
}

// Backends take entries in turns, so their numbers differ by one at most.
func TestBalance(t *testing.T) {
	for _, c := range []struct{ n, size int }{{1, 2}, {2, 2}, {3, 31}, {31, 31}, {10, DefaultSize}, {100, DefaultSize}, {1000, DefaultSize}} {
		s := shares(mustBuild(t, backends(c.n), c.size))
		least, most := slices.Min(s), slices.Max(s)
		t.Logf("%d backends, %d entries: busiest/mean %.4f", c.n, c.size, float64(most)*float64(c.n)/float64(c.size))
		if most-least > 1 || least < 1 {
			t.Errorf("%d backends, %d entries: from %d to %d entries a backend", c.n, c.size, least, most)
		}
	}
}

// Removing one backend moves its own entries, 1/n of them, and few others.
func TestRemovalMovesFewOthers(t *testing.T) {
	for _, n := range []int{2, 10, 100} {
		names := backends(n)
		before := mustBuild(t, names, DefaultSize)
		var worst float64
		for _, gone := range []int{0, n / 2, n - 1} {
			after := mustBuild(t, slices.Delete(slices.Clone(names), gone, gone+1), DefaultSize)
			others := 0
			for i, e := range before.entries {
				was, is := before.names[e], after.names[after.entries[i]]
				if was != names[gone] && was != is {
					others++
				}
			}
			worst = max(worst, float64(others)/DefaultSize)
		}
		t.Logf("%d backends: removing one moves %.2f %% of the entries of others (and its own %.2f %%)", n, 100*worst, 100/float64(n))
		if worst > 0.05 {
			t.Errorf("%d backends: removing one moves %.2f %% of the entries of others, more than 5 %%", n, 100*worst)
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		b.Run(fmt.Sprintf("backends=%d", n), func(b *testing.B) {
			names := backends(n)
			for b.Loop() {
				mustBuild(b, names, DefaultSize)
			}
		})
	}
}
