package maglev

import (
	"fmt"
	"math"
	"math/big"
	"slices"

	gomaglev "github.com/dgryski/go-maglev"
)

// DefaultSize is the number of entries of a table that suits up to some 650 backends: with a hundred entries or more
// for each, their shares differ by at most 1 % (section 3.4 of the paper). It is prime.
const DefaultSize = 65537

// Table maps entries to backends. It is immutable.
type Table struct {
	names   []string // sorted
	entries []uint16 // indices of names
}

// Build returns the table of the backends with the given names. The order of the names does not matter; a backend's
// index is the position of its name among the sorted names (see Names). Every backend gets the same number of entries,
// give or take one. It fails if names is empty or names one backend twice, and if size is not a prime number of at
// least len(names).
func Build(names []string, size int) (*Table, error) {
	sorted := slices.Sorted(slices.Values(names))
	switch {
	case len(sorted) == 0:
		return nil, fmt.Errorf("build lookup table: no backends; name at least one")
	case len(sorted) > math.MaxUint16:
		return nil, fmt.Errorf("build lookup table: %d backends; at most %d fit", len(sorted), math.MaxUint16)
	case size < len(sorted):
		return nil, fmt.Errorf("build lookup table: size %d is less than the %d backends; take %d or more", size, len(sorted), DefaultSize)
	case !big.NewInt(int64(size)).ProbablyPrime(0): // exact below 2^64
		return nil, fmt.Errorf("build lookup table: size %d is not prime; take a prime number like %d", size, DefaultSize)
	}
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return nil, fmt.Errorf("build lookup table: two backends are called %q; names must be unique", sorted[i])
		}
	}

	// Keys below the size are looked up as they are, which gives the entries in order.
	m := gomaglev.New(sorted, uint64(size))
	t := &Table{names: sorted, entries: make([]uint16, size)}
	for i := range t.entries {
		t.entries[i] = uint16(m.Lookup(uint64(i)))
	}
	return t, nil
}

// Names returns the sorted names: the backend with index i is Names()[i]. The caller must not change it.
func (t *Table) Names() []string { return t.names }

// at returns the index of the backend that the high half of a mix points to. Multiplying and shifting spreads 32 bits
// over the entries as evenly as a remainder would, without dividing.
func (t *Table) at(mix uint64) uint16 {
	return t.entries[(mix>>32)*uint64(len(t.entries))>>32]
}
