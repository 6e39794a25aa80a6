//go:build linux

package xsk

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
)

// ringAt is both ends of a ring whose indices stand at start.
func ringAt(start uint32, size int) (producer[uint64], consumer[uint64]) {
	words, slots := memoryWords(), make([]uint64, size)
	*words.producer, *words.consumer = start, start
	return newProducer(words, slots), newConsumer(words, slots)
}

func TestRingAgainstQueue(t *testing.T) {
	for _, start := range []uint32{0, 5, 1<<31 - 3, 1<<32 - 1, 1<<32 - 17} {
		for _, size := range []int{1, 2, 16, 64} {
			t.Run(fmt.Sprintf("start %d size %d", start, size), func(t *testing.T) {
				p, c := ringAt(start, size)
				var model []uint64 // submitted, not released
				next, r := uint64(1), rand.New(rand.NewPCG(uint64(start), uint64(size)))
				for range 20_000 {
					want := r.Uint32N(uint32(size) + 3)
					if r.IntN(2) == 0 {
						n := p.reserve(want)
						if room := size - len(model); n != min(want, uint32(room)) {
							t.Fatalf("reserve(%d) = %d with room for %d", want, n, room)
						}
						n = min(n, r.Uint32N(uint32(size)+1)) // submit less than was reserved
						for i := range n {
							*p.slot(i) = next
							model = append(model, next)
							next++
						}
						p.submit(n)
					} else {
						n := c.peek(want)
						if n != min(want, uint32(len(model))) {
							t.Fatalf("peek(%d) = %d with %d entries", want, n, len(model))
						}
						n = min(n, r.Uint32N(uint32(size)+1)) // release less than was seen
						for i := range n {
							if got := *c.slot(i); got != model[i] {
								t.Fatalf("entry %d: got %d, want %d", i, got, model[i])
							}
						}
						c.release(n)
						model = slices.Delete(model, 0, int(n))
					}
					if got := p.pending(); got != uint32(len(model)) {
						t.Fatalf("pending() = %d with %d entries", got, len(model))
					}
				}
				if *p.producer-start < 1000 {
					t.Fatalf("only %d entries went through: the test tests little", *p.producer-start)
				}
			})
		}
	}
}

// TestRingOrder passes numbers between two goroutines. Under -race it also shows that the indices order the accesses to
// the entries.
func TestRingOrder(t *testing.T) {
	const numbers = 300_000
	p, c := ringAt(1<<32-1000, 64)
	go func() {
		for next := uint64(0); next < numbers; {
			n := p.reserve(17)
			for i := range n {
				*p.slot(i) = next
				next++
			}
			if n > 0 {
				p.submit(n)
			}
		}
	}()
	for next := uint64(0); next < numbers; {
		n := c.peek(23)
		for i := range n {
			if got := *c.slot(i); got != next {
				t.Fatalf("got %d, want %d", got, next)
			}
			next++
		}
		if n > 0 {
			c.release(n)
		}
	}
}

func TestRingContinuesWhereItStands(t *testing.T) {
	words, slots := memoryWords(), make([]uint64, 8)
	*words.consumer, *words.producer = 1<<32-3, 2 // five entries, across the wrap
	for i := range uint32(5) {
		slots[(*words.consumer+i)%8] = uint64(100 + i)
	}
	p, c := newProducer(words, slots), newConsumer(words, slots)
	if got := p.reserve(8); got != 3 {
		t.Errorf("reserve(8) = %d, want 3", got)
	}
	if got := c.peek(8); got != 5 {
		t.Errorf("peek(8) = %d, want 5", got)
	}
	for i := range uint32(5) {
		if got := *c.slot(i); got != uint64(100+i) {
			t.Errorf("entry %d = %d, want %d", i, got, 100+i)
		}
	}
}

func TestRingFlags(t *testing.T) {
	w := memoryWords()
	for flags, want := range map[uint32]bool{0: false, 1: true, 2: false, 3: true, 1 << 31: false} {
		atomic.StoreUint32(w.flags, flags)
		if got := w.wantsWakeup(); got != want {
			t.Errorf("flags %#x: wantsWakeup() = %v, want %v", flags, got, want)
		}
	}
}

func TestClosedRing(t *testing.T) {
	p, c := closedProducer[Desc](), closedConsumer[Desc]()
	if p.reserve(64) != 0 || p.pending() != 0 || p.wantsWakeup() || c.peek(64) != 0 {
		t.Error("a closed ring takes or gives entries")
	}
}
