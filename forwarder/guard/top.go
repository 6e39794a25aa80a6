package guard

import (
	"cmp"
	"math/bits"
	"slices"
)

const (
	sets = 64 // a power of two
	ways = 8
)

// Counters is how many sources a Top holds at most, hence how many counts [Top.AppendTo] appends at most.
const Counters = sets * ways

// Top counts how often each source was added, in a fixed 17 KiB: exactly while the sources are few, and for the heavy ones
// within known bounds however many there are. The method is Space-Saving (Metwally, Agrawal and El Abbadi, "Efficient
// computation of frequent and top-k elements in data streams", ICDT 2005), in sets: a keyed hash of the source names one of
// 64 sets of eight counters, and in that set it gets a counter of its own, or takes over the smallest one with its count.
//
// What holds at any time, with f the number of times that a source was added, T the same for all sources of its set
// together, and m the smallest count of the set (0 while a counter is free):
//
//   - a source that is there has N − Error ≤ f ≤ N;
//   - a source that is not there has f ≤ m;
//   - m ≤ T/8, so a source with more than an eighth of its set's additions is there.
//
// The sets share the sources evenly, so under a flood of very many random sources 1/450 of all additions suffices. A source
// that shares its set with eight very heavy ones needs more. Whoever does not know the key cannot choose sources that fall
// into one set.
//
// After [Top.Halve] the same holds with f being what an exact counter would show that is halved at the same moments, rounded
// down, and T such a counter of the whole set.
//
// A Top is used by one goroutine at a time.
type Top struct {
	key   [4]uint64
	total uint64
	// For each set eight bytes, one for each counter, the lowest for the first: a part of its source's hash, so that one
	// look says which counters may be the source's.
	tags [sets]uint64
	sets [sets]set
}

// set is eight counters. One is free if its n is 0; its error is then 0 too. An address is in one of them at most.
type set struct {
	n, error, hi, lo [ways]uint64
}

// Count is how often a source was added: at most N times, and at least N − Error times.
type Count struct{ Hi, Lo, N, Error uint64 }

// NewTop returns an empty Top. The key decides which sources share a set: it should be random, and secret to those who send.
// Each worker may have another one.
func NewTop(key uint64) *Top {
	t := new(Top)
	for i := range t.key {
		// The generator SplitMix64 (Steele, Lea and Flood, 2014). Multipliers are odd, so that they lose nothing.
		key += 0x9e3779b97f4a7c15
		z := (key ^ key>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		t.key[i] = (z ^ z>>31) | 1
	}
	return t
}

// Source returns what of an address, as two big-endian words, counts as one source: an IPv4 address (mapped, ::ffff:a.b.c.d)
// whole, and of an IPv6 address the first 64 bits, since whoever has one address of a link has all of them.
func Source(hi, lo uint64) (uint64, uint64) {
	if hi == 0 && lo>>32 == 0xffff {
		return hi, lo
	}
	return hi, 0
}

// PrefixBits4 and PrefixBits6 are how many bits of an address [Prefix] leaves.
const (
	PrefixBits4 = 16
	PrefixBits6 = 32
)

// Prefix returns the first bits of an address, as two big-endian words: what a network that attacks has in common.
func Prefix(hi, lo uint64) (uint64, uint64) {
	if hi == 0 && lo>>32 == 0xffff {
		return hi, lo >> (32 - PrefixBits4) << (32 - PrefixBits4)
	}
	return hi >> (64 - PrefixBits6) << (64 - PrefixBits6), 0
}

// Add counts one for a source, an address as two words; see [Source]. It looks at one set only.
func (t *Top) Add(hi, lo uint64) { t.AddN(hi, lo, 1) }

// AddN adds a source so many times.
func (t *Top) AddN(hi, lo, times uint64) {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	t.total += times
	hash := t.hash(hi, lo)
	tag, number := hash>>56, hash%sets
	s := &t.sets[number]

	// The high bit of each byte that is zero, hence whose tag is equal; also of some above such a byte, which does no harm.
	diff := t.tags[number] ^ tag*ones
	for m := (diff - ones) &^ diff & highs; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m) / 8 % ways
		if s.hi[i] == hi && s.lo[i] == lo {
			s.n[i] += times // also if it is free: then the address is there from before it was halved to nothing
			return
		}
	}

	// The smallest count, and the first of several, without branches: the counter's number is in the lowest bits.
	least := min(
		min(min(s.n[0]*ways, s.n[1]*ways+1), min(s.n[2]*ways+2, s.n[3]*ways+3)),
		min(min(s.n[4]*ways+4, s.n[5]*ways+5), min(s.n[6]*ways+6, s.n[7]*ways+7)))
	i, n := least%ways, least/ways
	// Who is not there may have been there before, with at most the smallest count.
	s.n[i], s.error[i], s.hi[i], s.lo[i] = n+times, n, hi, lo
	t.tags[number] = t.tags[number]&^(0xff<<(8*i)) | tag<<(8*i)
}

// Halve halves all counts, and the total, rounding down. Its owner calls it at a steady pace, so that counts are about the
// recent past: once a minute, a count is about the last two. A source that has halved to nothing is no longer there.
func (t *Top) Halve() {
	t.total /= 2
	for k := range t.sets {
		s := &t.sets[k]
		for i := range ways {
			// Both bounds are rounded down like what they enclose. Halving the error itself could raise the lower one.
			sure := (s.n[i] - s.error[i]) / 2
			s.n[i] /= 2
			s.error[i] = s.n[i] - sure
		}
	}
}

// Total returns how often anything was added, halved with the counts. It is at least the sum of all counts, and the same
// before the first Halve.
func (t *Top) Total() uint64 { return t.total }

// Floor returns the largest of the sets' smallest counts: a source that is not there was added at most that often. It is 0
// if every set has a free counter.
func (t *Top) Floor() uint64 {
	var floor uint64
	for k := range t.sets {
		floor = max(floor, slices.Min(t.sets[k].n[:]))
	}
	return floor
}

// AppendTo appends all counts to dst, in no particular order, and returns the longer slice. It does not allocate if dst has
// room for [Counters] more.
func (t *Top) AppendTo(dst []Count) []Count {
	for k := range t.sets {
		s := &t.sets[k]
		for i, n := range s.n {
			if n > 0 {
				dst = append(dst, Count{s.hi[i], s.lo[i], n, s.error[i]})
			}
		}
	}
	return dst
}

// Merge adds up the counts of each source over several lists, and returns them by N, the largest first; equal ones are in
// the order of their addresses. It allocates, and leaves the lists as they are.
//
// N − Error of the result is still a lower bound. N is an upper bound only for a source that is in every list: in each list
// where it is missing it may have had as many more as the [Top.Floor] of the Top from which that list came. Nothing is added
// for this, since it would raise every light source by what it most likely never had.
func Merge(lists ...[]Count) []Count {
	var all []Count
	at := make(map[[2]uint64]int)
	for _, list := range lists {
		for _, c := range list {
			source := [2]uint64{c.Hi, c.Lo}
			i, found := at[source]
			if !found {
				at[source] = len(all)
				all = append(all, c)
				continue
			}
			all[i].N += c.N
			all[i].Error += c.Error
		}
	}
	slices.SortFunc(all, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Hi, b.Hi), cmp.Compare(a.Lo, b.Lo))
	})
	return all
}

// hash mixes a source with the key: two products of 128 bits, each folded. SipHash costs several times as much and is not
// needed: nothing that a sender sees depends on this hash, so nobody can learn the key by trying, and who guessed it would
// gain a place out of sight, no more. What must not be is sources that fall together whatever the key, and every difference
// of two sources is multiplied by a secret word here.
func (t *Top) hash(hi, lo uint64) uint64 {
	a, b := bits.Mul64(hi^t.key[0], lo^t.key[1])
	a, b = bits.Mul64(a^b^t.key[2], t.key[3])
	return a ^ b
}
