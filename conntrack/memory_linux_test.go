package conntrack

import (
	"slices"
	"testing"

	"github.com/sluice-lb/sluice/internal/shm"
	"github.com/sluice-lb/sluice/testenv"
)

// onMemory does over the given zero words what tests of this package do over the Go heap: fill, find, stress, and find
// again through a second table over the same words.
func onMemory(t *testing.T, words []uint64) {
	t.Helper()
	stress(t, words, len(words)/4, 100_000) // ends with an empty table

	table, err := New(words)
	if err != nil {
		t.Fatal(err)
	}
	n := len(words) / 2
	lives := []Life{{0, MaxLife, MaxLife, MaxLife}}
	refused := 0
	for i := range uint64(n) {
		switch o := table.Insert(hashOf(i), 0, 5, Probation, lives); o {
		case Inserted:
		case EvictedProbation:
			refused++ // a free word was not to be had
		default:
			t.Fatalf("insert %d: %v", i, o)
		}
	}
	if refused*10_000 > n {
		t.Errorf("%d of %d flows found no free word", refused, n)
	}
	successor, err := New(words)
	if err != nil {
		t.Fatal(err)
	}
	hashes := make([]uint64, n)
	for i := range hashes {
		hashes[i] = hashOf(uint64(i))
	}
	index, found := make([]int, n), make([]Word, n)
	successor.Prefetch(hashes)
	successor.LookupBatch(hashes, index, found)
	for i, w := range found {
		successor.Refresh(index[i], w, 6, false)
	}
	c := Census{Slots: make([]SlotCensus, 1)}
	if next := table.Sweep(0, table.Lines(), 6, lives, &c); next != 0 {
		t.Errorf("full sweep ends at line %d", next)
	}
	if want := uint64(n - refused); c.States[Established] != want || c.Slots[0].Flows() != uint32(want) || c.Expired != 0 {
		t.Errorf("after a refresh of %d flows: %+v", want, c)
	}
	table.checkPlaces(t)
}

func TestOnMemfd(t *testing.T) {
	m, err := shm.NewMemfd("sluice-test-flows", 8<<13)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	onMemory(t, m.Words())
}

// The words of a table in a BPF array are what the kernel, and so a BPF program, sees in the map.
func TestOnArrayMap(t *testing.T) {
	testenv.RequireRoot(t)
	m, array, err := shm.NewArrayMap("sluice_flows", 1<<13)
	if err != nil {
		t.Fatal(err)
	}
	defer array.Close()
	defer m.Close()
	onMemory(t, m.Words())

	for _, line := range []uint32{0, 1, 1<<10 - 1} {
		var kernel [lineWords]uint64
		if err := array.Lookup(line, &kernel); err != nil {
			t.Fatal(err)
		}
		if mine := m.Words()[line*lineWords:][:lineWords]; !slices.Equal(mine, kernel[:]) {
			t.Errorf("line %d: the kernel has %#x, we have %#x", line, kernel, mine)
		}
	}
	// And the other way round: what the kernel's side writes is found here.
	const hash = 0x1234_5678_0000_0003
	line := [lineWords]uint64{2: uint64(MakeWord(hash>>32, 9, 7, Established))}
	if err := array.Put(uint32(3), &line); err != nil {
		t.Fatal(err)
	}
	table, err := New(m.Words())
	if err != nil {
		t.Fatal(err)
	}
	if at, w := table.Lookup(hash); at != 3*lineWords+2 || w.Slot() != 9 {
		t.Errorf("found %#x at %d", w, at)
	}
}
