package conntrack

import (
	"slices"
	"sync/atomic"
	"testing"
)

// counted is a table that counts the words of its slots, and a check of these counts.
func counted(t *testing.T, words, slots int) (*Table, func(when string)) {
	table := newTable(t, words)
	flows := make([]atomic.Int32, slots)
	table.Count(flows)
	return table, func(when string) {
		t.Helper()
		want := make([]int32, slots)
		for _, w := range table.words {
			if slot := Word(w).Slot(); w != 0 && int(slot) < slots {
				want[slot]++
			}
		}
		for i := range want {
			if got := flows[i].Load(); got != want[i] {
				t.Fatalf("%s: slot %d: %d words are counted, there are %d", when, i, got, want[i])
			}
		}
	}
}

// Whatever writes or frees a word keeps the count of its slot: inserts of every outcome, replacing, removing, sweeping.
func TestCount(t *testing.T) {
	const slots = 5
	lives := make([]Life, slots) // slot 5 is beyond what is counted, and beyond the lives
	for i := range lives {
		lives[i] = Life{0, 20, 400, 10}
	}
	table, check := counted(t, 256, slots)
	var outcomes [NumOutcomes]int
	tick := uint16(0)
	for i := range uint64(20_000) {
		r := hashOf(i)
		hash := hashOf(r % 600)
		state := State(1 + r>>20%2)
		switch at, w := table.Lookup(hash); {
		case w == 0 || r>>32%8 == 0:
			outcomes[table.Insert(hash, uint32(r>>40%(slots+1)), tick, state, lives)]++
		case r>>32%8 == 1:
			table.Replace(at, w, uint32(r>>40%slots), tick, Probation)
		case r>>32%8 == 2:
			table.Remove(at, w)
			if _, again := table.Lookup(hash); again != 0 {
				t.Fatalf("after its removal the flow has the word %x", again)
			}
		default:
			table.Refresh(at, w, tick, r>>36%4 == 0)
		}
		if r>>44%16 == 0 {
			tick = (tick + 1) & tickMask
		}
		if i%512 == 0 {
			var c Census
			table.Sweep(0, table.Lines(), tick, lives, &c)
			check("after a sweep")
		}
	}
	check("in the end")
	for o, n := range outcomes {
		if n == 0 && Outcome(o) != Refused && Outcome(o) != EvictedIdle {
			t.Errorf("no insert came to %v", Outcome(o))
		}
	}
	table.Clear()
	check("cleared")
	if table.used() != 0 {
		t.Errorf("%d words are left", table.used())
	}
}

// A word that another worker has refreshed meanwhile is removed; that of another flow, or with another slot, is not.
func TestRemove(t *testing.T) {
	lives := []Life{{0, 30, 30, 30}, {0, 30, 30, 30}}
	table := newTable(t, 64)
	table.Insert(testHash, 0, 1, Probation, lives)
	at, w := table.Lookup(testHash)
	table.Refresh(at, w, 5, false)
	table.Remove(at, w)
	if _, w := table.Lookup(testHash); w != 0 {
		t.Errorf("the refreshed word %x is still there", w)
	}
	table.Insert(testHash, 0, 1, Probation, lives)
	at, w = table.Lookup(testHash)
	table.Replace(at, w, 1, 1, Probation)
	before := slices.Clone(table.words)
	table.Remove(at, w)
	if !slices.Equal(table.words, before) {
		t.Error("a word with another slot was removed")
	}
}

// The classes of ages are without gap, and each is as long as all before it.
func TestAgeClass(t *testing.T) {
	for age := range uint16(1 << 12) {
		k := AgeClass(age)
		if k >= NumAges || age >= 1<<k || k > 0 && age < 1<<(k-1) {
			t.Fatalf("age %d is in class %d", age, k)
		}
	}
}
