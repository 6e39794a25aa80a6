package conntrack

import (
	"fmt"
	"testing"
)

// Benchmarks report a packet (a hash) per operation, worked off in batches of 64 as a worker does.
const batch = 64

var benchLives = []Life{{Probation: 30, Established: 3000, Closing: 10}}

// flows holds this many flows, number 0 … n−1.
func flows(tb testing.TB, n int, s State) *Table {
	tb.Helper()
	words, err := WordsFor(uint64(n))
	if err != nil {
		tb.Fatal(err)
	}
	t, err := New(make([]uint64, words))
	if err != nil {
		tb.Fatal(err)
	}
	var hashes [batch]uint64
	for i := 0; i < n; i += batch {
		part := hashes[:min(batch, n-i)]
		for k := range part {
			part[k] = hashOf(uint64(i + k))
		}
		t.Prefetch(part)
		for _, hash := range part {
			t.Insert(hash, 0, 0, s, benchLives)
		}
	}
	return t
}

// runBatches draws numbers from first on, below first + n, in random order, and gives their hashes to f, 64 at a time.
// It goes through the same 2M draws again and again.
func runBatches(b *testing.B, first, n uint64, f func(hashes []uint64)) {
	draws := make([]uint64, 1<<21)
	for i := range draws {
		draws[i] = hashOf(first + hashOf(uint64(i)+1<<40)%n)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += batch {
		at := done % len(draws)
		f(draws[at : at+batch])
	}
}

func BenchmarkLookup(b *testing.B) {
	var index [batch]int
	var words [batch]Word
	for _, n := range []int{1_000, 100_000, 1_000_000, 10_000_000} {
		t := flows(b, n, Established)
		b.Run(fmt.Sprintf("hit/%d", n), func(b *testing.B) {
			misses := 0
			runBatches(b, 0, uint64(n), func(hashes []uint64) {
				t.Prefetch(hashes)
				t.LookupBatch(hashes, index[:], words[:])
				for _, w := range words {
					if w == 0 {
						misses++
					}
				}
			})
			if misses != 0 {
				b.Fatalf("%d look-ups of present flows found nothing", misses)
			}
		})
		b.Run(fmt.Sprintf("miss/%d", n), func(b *testing.B) {
			runBatches(b, 1<<50, 1<<40, func(hashes []uint64) {
				t.Prefetch(hashes)
				t.LookupBatch(hashes, index[:], words[:])
			})
		})
		b.Run(fmt.Sprintf("refresh/%d", n), func(b *testing.B) {
			tick := uint16(0)
			left := 0
			runBatches(b, 0, uint64(n), func(hashes []uint64) {
				// A new tick each n packets, so that nearly every packet writes.
				if left -= batch; left <= 0 {
					tick, left = tick+1, n
				}
				t.Prefetch(hashes)
				t.LookupBatch(hashes, index[:], words[:])
				for i, w := range words {
					t.Refresh(index[i], w, tick, false)
				}
			})
		})
	}
}

func BenchmarkInsert(b *testing.B) {
	var index [batch]int
	var found [batch]Word
	for _, n := range []int{100_000, 10_000_000} {
		words, _ := WordsFor(uint64(n))
		memory := make([]uint64, words)
		t, _ := New(memory)
		b.Run(fmt.Sprintf("free/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			var hashes [batch]uint64
			for done := 0; done < b.N; done += batch {
				if done%(n/batch*batch) == 0 {
					b.StopTimer()
					clear(memory)
					b.StartTimer()
				}
				for i := range hashes {
					hashes[i] = hashOf(uint64(done + i))
				}
				t.Prefetch(hashes[:])
				t.LookupBatch(hashes[:], index[:], found[:])
				for _, hash := range hashes {
					t.Insert(hash, 0, 0, Probation, benchLives)
				}
			}
		})
		for i := range memory {
			memory[i] = uint64(MakeWord(uint32(hashOf(uint64(i))), 0, 0, Probation))
		}
		b.Run(fmt.Sprintf("evict/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			var hashes [batch]uint64
			for done := 0; done < b.N; done += batch {
				for i := range hashes {
					hashes[i] = hashOf(uint64(done+i) + 1<<50)
				}
				t.Prefetch(hashes[:])
				t.LookupBatch(hashes[:], index[:], found[:])
				for _, hash := range hashes {
					t.Insert(hash, 0, 0, Probation, benchLives)
				}
			}
		})
	}
}

func BenchmarkSweep(b *testing.B) {
	t := flows(b, 1_000_000, Established)
	c := Census{Slots: make([]SlotCensus, 1)}
	b.ReportAllocs()
	for line := 0; b.Loop(); {
		line = t.Sweep(line, 64, 1, benchLives, &c)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/line")
}
