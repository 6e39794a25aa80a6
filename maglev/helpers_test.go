package maglev

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// backends returns n backends of equal weight.
func backends(n int) []Backend {
	list := make([]Backend, n)
	for i := range list {
		list[i] = Backend{fmt.Sprintf("web-%d", i+1), 100}
	}
	return list
}

// weighted returns backends of these weights.
func weighted(weights ...uint16) []Backend {
	list := backends(len(weights))
	for i, w := range weights {
		list[i].Weight = w
	}
	return list
}

func shuffled(rng *rand.Rand, list []Backend) []Backend {
	list = slices.Clone(list)
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

func mustBuild(t testing.TB, list []Backend, size int) *Table {
	t.Helper()
	table, err := Build(list, size)
	if err != nil {
		t.Fatal(err)
	}
	return table
}
