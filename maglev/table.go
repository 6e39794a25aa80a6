package maglev

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/big"
	"slices"

	"github.com/dchest/siphash"
)

// Sizes of a table, in entries. All but MaxSize are prime.
const (
	// DefaultSize suits up to some 650 backends of equal weight: with a hundred entries or more for each, their shares
	// differ by at most 1 % (section 3.4 of the paper).
	DefaultSize = 65537
	// LargeSize suits thousands of backends, and weights that are far apart. It takes 1.3 MB.
	LargeSize = 655373
	// MaxSize is the most that Build accepts: 32 MiB, built in seconds.
	MaxSize = 1 << 24
)

// Backend is a backend of a table: its name, and its share relative to the others'.
type Backend struct {
	Name   string
	Weight uint16 // zero: it gets no entry, and is not among the table's names
}

// Table maps entries to backends. It is immutable.
type Table struct {
	names   []string // sorted
	weights []uint16 // by index of names
	shares  []int    // likewise: how many entries
	entries []uint16 // indices of names; nil if there is no backend
	size    int
	hash    string
}

// Build returns the table of these backends. Their order does not matter; a backend's index is the position of its name
// among the sorted names of those with a weight (see Names). Each gets its share of the entries by weight, rounded up or
// down, but one at least. Without a backend that has a weight the table is empty, and nothing is chosen from it.
//
// It fails if two backends have one name, if there are more with a weight than entries or than 65,535, and if size is
// not a prime number up to MaxSize.
func Build(backends []Backend, size int) (*Table, error) {
	sorted := slices.SortedFunc(slices.Values(backends), func(a, b Backend) int { return cmp.Compare(a.Name, b.Name) })
	for i := 1; i < len(sorted); i++ {
		if sorted[i].Name == sorted[i-1].Name {
			return nil, fmt.Errorf("build lookup table: two backends are called %q; names must be unique", sorted[i].Name)
		}
	}
	sorted = slices.DeleteFunc(sorted, func(b Backend) bool { return b.Weight == 0 })
	switch {
	case len(sorted) > math.MaxUint16:
		return nil, fmt.Errorf("build lookup table: %d backends; at most %d fit", len(sorted), math.MaxUint16)
	case size > MaxSize:
		return nil, fmt.Errorf("build lookup table: size %d is more than %d; take a prime number like %d", size, MaxSize, LargeSize)
	case size < len(sorted):
		return nil, fmt.Errorf("build lookup table: size %d is less than the %d backends; take %d or more", size, len(sorted), NextPrime(max(len(sorted), DefaultSize)))
	case !IsPrime(size):
		return nil, fmt.Errorf("build lookup table: size %d is not prime; take a prime number like %d", size, NextPrime(size))
	}
	t := &Table{
		names:   make([]string, len(sorted)),
		weights: make([]uint16, len(sorted)),
		shares:  make([]int, len(sorted)),
		size:    size,
	}
	for i, b := range sorted {
		t.names[i], t.weights[i] = b.Name, b.Weight
	}
	if len(sorted) > 0 {
		t.entries = populate(t.names, turns(t.weights, size))
		for _, b := range t.entries {
			t.shares[b]++
		}
	}
	t.hash = t.sum()
	return t, nil
}

// populate gives out the entries of a table of len(order) entries, a prime number: whose turn it is takes the first
// entry of its permutation that is free. order holds indices of names.
//
// The permutations are those of go-maglev, so the table is the one that go-maglev.New(list, len(order)) makes of the
// list of names in this order: there each place in the list has a position of its own in the permutation of its name,
// but what lies between two such positions is taken, so one position for all of them finds the same entries.
func populate(names []string, order []uint16) []uint16 {
	const free = math.MaxUint16 // no index: Build accepts one backend less
	size := uint64(len(order))
	type walk struct{ at, skip uint32 }
	walks := make([]walk, len(names))
	for i, name := range names {
		h := siphash.Hash(0xdeadbeefcafebabe, 0, []byte(name))
		walks[i] = walk{uint32((h >> 32) % size), uint32((h&math.MaxUint32)%(size-1) + 1)}
	}
	entries := make([]uint16, size)
	for i := range entries {
		entries[i] = free
	}
	for _, b := range order {
		w := &walks[b]
		at := w.at
		for entries[at] != free {
			if at += w.skip; at >= uint32(size) {
				at -= uint32(size)
			}
		}
		entries[at] = b
		w.at = at
	}
	return entries
}

// sum makes the text of Hash.
func (t *Table) sum() string {
	var b []byte
	b = binary.BigEndian.AppendUint64(b, uint64(t.size))
	for _, name := range t.names {
		b = binary.BigEndian.AppendUint64(b, uint64(len(name)))
		b = append(b, name...)
	}
	b = slices.Grow(b, 2*len(t.entries))
	for _, e := range t.entries {
		b = binary.BigEndian.AppendUint16(b, e)
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:8])
}

// Names returns the sorted names of the backends with a weight: the one with index i is Names()[i]. The caller must not
// change it.
func (t *Table) Names() []string { return t.names }

// Weights returns the weights, by index. The caller must not change it.
func (t *Table) Weights() []uint16 { return t.weights }

// Size returns the number of entries.
func (t *Table) Size() int { return t.size }

// Entries returns the table itself: of each entry the index of its backend in Names. It must not be changed.
func (t *Table) Entries() []uint16 { return t.entries }

// Shares returns how many entries each backend has, by index. The caller must not change it.
func (t *Table) Shares() []int { return t.shares }

// Hash returns 16 hex digits that name what flows depend on: the names, and who has which entry. It is equal on all
// nodes that have the same backends, weights and size, whatever their order and whatever the machine, and for weights
// that differ by a factor alone.
func (t *Table) Hash() string { return t.hash }

// IsPrime says whether n is a prime number.
func IsPrime(n int) bool {
	return n > 1 && big.NewInt(int64(n)).ProbablyPrime(0) // exact below 2^64
}

// NextPrime returns the least prime number from n on.
func NextPrime(n int) int {
	for n = max(n, 2); !IsPrime(n); n++ {
	}
	return n
}
