package maglev

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
)

// deviation returns by how many standard deviations the chi-square statistic of counts differs from that of an even
// distribution.
func deviation(counts []int) float64 {
	total := 0
	for _, c := range counts {
		total += c
	}
	mean := float64(total) / float64(len(counts))
	var chi float64
	for _, c := range counts {
		d := float64(c) - mean
		chi += d * d / mean
	}
	df := float64(len(counts) - 1)
	return (chi - df) / math.Sqrt(2*df)
}

// sequences are kinds of hashes, good and degenerate. Real ones are from SipHash, so the degenerate ones only show how
// much room there is.
var sequences = map[string]func(i uint64) uint64{
	"random":      func(i uint64) uint64 { return randomHashes[i] },
	"counting":    func(i uint64) uint64 { return i },
	"fingerprint": func(i uint64) uint64 { return i<<32 | 0x1234567 }, // flows of one table line
	"line":        func(i uint64) uint64 { return 0x89abcdef<<32 | i },
	"reversed":    func(i uint64) uint64 { return bits.Reverse64(i) },
	"gray":        func(i uint64) uint64 { return i ^ i>>1 },
}

const samples = 1 << 19

var randomHashes = hashes(samples)

// Each candidate spreads flows evenly over the entries, also flows that share a table line or a fingerprint.
func TestMixEven(t *testing.T) {
	counts := make([]int, DefaultSize)
	for name, hash := range sequences {
		for i := range candidates {
			clear(counts)
			for n := range uint64(samples) {
				counts[Mix(testKey, hash(n), i)>>32*DefaultSize>>32]++
			}
			if d := deviation(counts); math.Abs(d) > 5 {
				t.Errorf("%s hashes, candidate %d: entries deviate by %.1f standard deviations from an even spread", name, i, d)
			}
		}
	}
}

// What is taken from a flow's hash and its mixes is pairwise independent: the entries of two candidates, an entry and
// the fraction's bits, an entry and the table line, an entry and the fingerprint.
func TestMixIndependent(t *testing.T) {
	const buckets = 64
	entry := func(hash uint64, i int) int { return int(Mix(testKey, hash, i) >> 32 * buckets >> 32) }
	check := func(name string, hash func(uint64) uint64, a, b func(hash uint64) int) {
		counts := make([]int, buckets*buckets)
		for n := range uint64(samples / 2) {
			h := hash(n)
			counts[a(h)*buckets+b(h)]++
		}
		if d := deviation(counts); math.Abs(d) > 5 {
			t.Errorf("%s: pairs deviate by %.1f standard deviations from an even spread", name, d)
		}
	}
	for _, name := range []string{"random", "counting"} {
		hash := sequences[name]
		for i := range candidates {
			ei := func(h uint64) int { return entry(h, i) }
			for j := range i {
				check("entries of two candidates, "+name, hash, ei, func(h uint64) int { return entry(h, j) })
			}
			for shift := 0; shift <= 10; shift += 5 {
				check("entry and fraction, "+name, hash, ei, func(h uint64) int { return int(Mix(testKey, h, i) >> shift % buckets) })
			}
		}
	}
	random := sequences["random"]
	for i := range candidates {
		ei := func(h uint64) int { return entry(h, i) }
		for _, shift := range []int{0, 6, 12, 20, 26, 32, 40, 50, 58} {
			check("entry and bits of the hash", random, ei, func(h uint64) int { return int(h >> shift % buckets) })
		}
	}
	// Another key gives another choice.
	check("entries under two keys", random, func(h uint64) int { return entry(h, 0) },
		func(h uint64) int { return int(Mix(testKey+1, h, 0) >> 32 * buckets >> 32) })
}

// Every bit of the hash flips each bit of the mix in about half of all cases. (Bits of the key act alike: it is xored.)
func TestMixAvalanche(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	const n = 1000
	for bit := range 64 {
		for i := range candidates {
			var flips [64]int
			for range n {
				h := rng.Uint64()
				d := Mix(testKey, h, i) ^ Mix(testKey, h^1<<bit, i)
				for ; d != 0; d &= d - 1 {
					flips[bits.TrailingZeros64(d)]++
				}
			}
			for out, f := range flips {
				if math.Abs(float64(f)-n/2) > 6*math.Sqrt(n)/2 {
					t.Errorf("candidate %d: bit %d flips bit %d in %d of %d cases", i, bit, out, f, n)
				}
			}
		}
	}
}

// The mix must not change between versions or architectures: the nodes of a group and the XDP program share it. The
// first values for key 0 are those of SplitMix64 with the seed -0x9e3779b97f4a7c15.
func TestMixIsPinned(t *testing.T) {
	for _, c := range []struct {
		key, hash uint64
		i         int
		want      uint64
	}{
		{0, 0, 0, 0},
		{0, 0, 1, 0xe220a8397b1dcdaf}, // SplitMix64 of seed 0: first and second output
		{0, 0, 2, 0x6e789e6aa1b965f4},
		{0, 0, 3, 0x06c45d188009454f},
		{1, 1, 1, 0xe220a8397b1dcdaf},
	} {
		if got := Mix(c.key, c.hash, c.i); got != c.want {
			t.Errorf("Mix(%#x, %#x, %d) = %#x, want %#x", c.key, c.hash, c.i, got, c.want)
		}
	}
}

func BenchmarkMix(b *testing.B) {
	var sum uint64
	for i := 0; b.Loop(); i++ {
		sum += Mix(testKey, uint64(i), 0)
	}
	sink = uint32(sum)
}
