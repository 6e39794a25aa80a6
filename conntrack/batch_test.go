package conntrack

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// A batch of one is an insert, whatever is in the lines.
func TestInsertBatchOfOne(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var outcomes [NumOutcomes]int
	for range 200_000 {
		a := newTable(t, []int{16, 32, 64}[r.IntN(3)])
		full, prints, ages, slots, states := r.IntN(12), 1<<(2*r.IntN(9)), 1<<r.IntN(9), 1+r.IntN(20)/19, r.Perm(3)[:1+r.IntN(3)]
		for i := range a.words {
			if r.IntN(8) < full {
				state := State(1 + states[r.IntN(len(states))])
				a.words[i] = uint64(MakeWord(uint32(r.IntN(prints)), uint32(r.IntN(slots)), uint16(testNow-r.IntN(ages)), state))
			}
		}
		b := newTable(t, len(a.words))
		copy(b.words, a.words)
		hash := uint64([]int{0, 1, 2, 0x8000_0007}[r.IntN(4)])<<32 | uint64(r.IntN(8))
		want := a.Insert(hash, 0, testNow, Probation, testLives)
		var got [1]Outcome
		b.InsertBatch([]uint64{hash}, []uint32{0}, testNow, Probation, testLives, got[:])
		if got[0] != want || !slices.Equal(a.words, b.words) {
			t.Fatalf("hash %#x: %v instead of %v, and words\n%x instead of\n%x", hash, got[0], want, b.words, a.words)
		}
		outcomes[want]++
	}
	if slices.Contains(outcomes[:], 0) {
		t.Errorf("not every outcome occurred: %v", outcomes)
	}
}

// Each flow of a batch has one word afterwards, also if it is in it several times, or if others insert it at the same time: that of whoever
// was told so.
func TestInsertBatch(t *testing.T) {
	const workers, flows, together = 3, 100, 150
	r := rand.New(rand.NewPCG(3, 4))
	rounds := stressOps(t, 3_600_000) / 5000
	for round := range rounds {
		table := newTable(t, 512)
		table.Count(make([]atomic.Int32, workers*together))
		lives := slices.Repeat([]Life{testLives[0]}, workers*together)
		var hashes [workers][]uint64
		var slots [workers][]uint32
		var outcomes [workers][together]Outcome
		for id := range workers {
			for i := range together {
				hash := hashOf(uint64(round*flows + r.IntN(flows)))
				if hash%flows == 0 {
					hash = 5 // with a fingerprint like that of an empty word
				}
				hashes[id], slots[id] = append(hashes[id], hash), append(slots[id], uint32(id*together+i))
			}
		}
		start := newBarrier(workers)
		var wg sync.WaitGroup
		for id := range workers {
			wg.Go(func() {
				start.wait()
				table.InsertBatch(hashes[id], slots[id], testNow, Probation, lives, outcomes[id][:])
			})
		}
		wg.Wait()
		inserted := map[uint64]uint32{}
		for id := range workers {
			for i, hash := range hashes[id] {
				switch o := outcomes[id][i]; o {
				case Inserted:
					if _, twice := inserted[hash]; twice {
						t.Fatalf("flow %#x was inserted twice", hash)
					}
					inserted[hash] = slots[id][i]
				case Present:
				default:
					t.Fatalf("flow %#x: %v, though there is room", hash, o)
				}
			}
		}
		for _, hash := range slices.Concat(hashes[:]...) {
			slot, ok := inserted[hash]
			if _, w := table.Lookup(hash); !ok || w.Slot() != slot || len(table.holders(hash)) != 1 {
				t.Fatalf("flow %#x: words at %v, the first of slot %d; want one, of slot %d (%v)", hash, table.holders(hash), w.Slot(), slot, ok)
			}
		}
		table.checkPlaces(t)
		table.checkCounts(t)
	}
}
