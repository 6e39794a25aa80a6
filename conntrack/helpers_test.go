package conntrack

import (
	"sync/atomic"
	"testing"
)

// hashOf is a bijective mix (splitmix64's), so different numbers have different hashes.
func hashOf(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// newTable returns an empty table on the Go heap.
func newTable(tb testing.TB, words int) *Table {
	tb.Helper()
	t, err := New(make([]uint64, words))
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// fill writes words into the line at base, from its first word on.
func (t *Table) fill(base uint64, words ...Word) {
	for i, w := range words {
		t.words[base+uint64(i)] = uint64(w)
	}
}

// repeat returns n words like w, with fingerprints counted up from w's.
func repeat(n int, w Word) []Word {
	var ws []Word
	for i := range n {
		ws = append(ws, w+Word(i)<<32)
	}
	return ws
}

// holders returns the indices of the words with the flow's fingerprint in its two lines.
func (t *Table) holders(hash uint64) (at []int) {
	home := t.home(hash)
	for _, base := range []uint64{home, t.alternate(home, hash>>32)} {
		for i := base; i < base+lineWords; i++ {
			if matches(atomic.LoadUint64(&t.words[i]), hash>>32) {
				at = append(at, int(i))
			}
		}
	}
	return at
}

// used counts the words that are not empty.
func (t *Table) used() (n int) {
	for i := range t.words {
		if atomic.LoadUint64(&t.words[i]) != 0 {
			n++
		}
	}
	return n
}

// checkPlaces fails if a word lies where no look-up finds it, or if a fingerprint is twice in a pair of lines.
func (t *Table) checkPlaces(tb testing.TB) {
	tb.Helper()
	for i := range t.words {
		w := Word(atomic.LoadUint64(&t.words[i]))
		if w == 0 {
			continue
		}
		if w.State() == Empty {
			tb.Errorf("word %d is %#x: not zero, yet its state is empty", i, w)
		}
		hash := uint64(w.Fingerprint())<<32 | uint64(i/lineWords)
		if at := t.holders(hash); len(at) != 1 {
			tb.Errorf("fingerprint %#x is at %v", w.Fingerprint(), at)
		}
	}
}
