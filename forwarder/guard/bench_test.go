package guard

import (
	"math/bits"
	"testing"
	"time"
)

// Benchmarks report a packet per operation, worked off in batches of 64 as a worker does, of sources in random order. The clock
// goes on by 64 × 100 ns a batch.
const batch = 64

var benchSink uint64

// runBatches gives f the numbers of 64 sources at a time, and the time.
func runBatches(b *testing.B, sources uint64, f func(numbers *[batch]uint64, now int64)) {
	var numbers [batch]uint64
	state := uint64(1)
	now := int64(time.Hour)
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += batch {
		for i := range numbers {
			state = state*6364136223846793005 + 1442695040888963407
			numbers[i] = 0xffff_00000000 | state>>33%sources
		}
		now += 6400
		f(&numbers, now)
	}
}

// One limit for each packet, as the worker keeps it: lots, hash, prefetch, AdmitSome. The sources stay within it, or each is ten
// times over it.
func BenchmarkLimiter(b *testing.B) {
	for _, c := range []struct {
		name    string
		sources uint64
		rate    Rate
	}{
		{"sources=1k/within", 1000, NewRate(50_000, 100*time.Millisecond)},
		{"sources=1k/within,each", 1000, NewRate(50_000, 10*time.Millisecond)},
		{"sources=1k/over", 1000, NewRate(1_000, 100*time.Millisecond)},
		{"sources=1M/within", 1_000_000, NewRate(1_000, 100*time.Millisecond)},
		{"sources=2000M/flood", 2_000_000_000, NewRate(200, 100*time.Millisecond)},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLimiter(b, 1<<21)
			var hashes, halves [batch]uint64
			var asked [batch]uint8
			refused, lots := uint64(0), new(Lots)
			runBatches(b, c.sources, func(numbers *[batch]uint64, now int64) {
				drawn, look := lots.Draw(batch, c.rate, now)
				n := 0
				for ; look != 0; look &= look - 1 {
					i := bits.TrailingZeros64(look)
					half := l.Half(0, numbers[i])
					if drawn>>i&1 == 0 && !lots.Refused(half) {
						continue
					}
					halves[n], hashes[n], asked[n] = half, l.Whole(half, 1), uint8(i)
					n++
				}
				l.Prefetch(hashes[:n])
				for k, i := range asked[:n] {
					if v := l.AdmitSome(hashes[k], c.rate, now, drawn>>i&1 != 0); !v.OK {
						lots.Refuse(halves[k])
						refused++
					}
				}
			})
			b.ReportMetric(float64(refused)/float64(b.N), "refused/op")
		})
	}
}

func BenchmarkCeiling(b *testing.B) {
	for _, c := range []struct {
		name string
		rate Rate
	}{{"below", NewRate(100_000_000, 100*time.Millisecond)}, {"above", NewRate(1_000_000, 100*time.Millisecond)}} {
		b.Run(c.name, func(b *testing.B) {
			limit := NewCeiling(2)
			runBatches(b, 1000, func(numbers *[batch]uint64, now int64) {
				for range numbers {
					limit.Admit(1, c.rate, now)
				}
			})
		})
	}
}

func BenchmarkProved(b *testing.B) {
	p, err := NewProved(make([]uint64, 1<<21), [2]uint64{1, 2})
	if err != nil {
		b.Fatal(err)
	}
	for n := range uint64(500_000) {
		p.Add(p.Hash(0, 0xffff_00000000|n), int64(time.Hour))
	}
	var hashes [batch]uint64
	found := uint64(0)
	runBatches(b, 1_000_000, func(numbers *[batch]uint64, now int64) {
		for i, n := range numbers {
			hashes[i] = p.Hash(0, n)
		}
		p.Prefetch(hashes[:])
		for _, h := range hashes {
			if p.Has(h, int64(time.Hour)) {
				found++
			}
		}
	})
	benchSink = found
}

func BenchmarkChallenge(b *testing.B) {
	c := NewChallenge([32]byte{1, 2, 3})
	for _, f := range []struct {
		name     string
		src, dst [2]uint64
	}{
		{"IPv4", [2]uint64{0, 0xffff_0a010203}, [2]uint64{0, 0xffff_c000020a}},
		{"IPv6", [2]uint64{0x20010db8_00000000, 1}, [2]uint64{0x20010db8_00000000, 2}},
	} {
		b.Run(f.name+"/Number", func(b *testing.B) {
			sum := uint32(0)
			for b.Loop() {
				sum += c.Number(f.src, f.dst, 40000, 443, sum, 7)
			}
			benchSink = uint64(sum)
		})
		b.Run(f.name+"/Proves-none", func(b *testing.B) {
			seq := uint32(0)
			for b.Loop() {
				if c.Proves(seq, f.src, f.dst, 40000, 443, 1000) {
					benchSink++
				}
				seq++
			}
		})
	}
}
