//go:build !amd64 || race

package conntrack

// lookupHome looks for the word of each flow in its home line, and returns a bit for each that has none there: its found is zero.
// index and found have the length of hashes or more, and there is one hash at least, and at most 64.
func (t *Table) lookupHome(hashes []uint64, index []int, found []Word) (missing uint64) {
	return t.lookupHomeEach(hashes, index, found)
}

// scan looks at the two lines of a flow, whose first words have the indices a and b. It returns, with a bit for each word, those of a
// first, which have this fingerprint and which are empty. Each word is read once and whole, but not all at the same moment.
func (t *Table) scan(a, b, fp uint64) (same, empty uint16) { return t.scanEach(a, b, fp) }

// places finds, for each of at most 64 flows, the free word that an insert takes. For those whose bits are set in others it takes more
// than that: they have a word, or their lines are full, or nothing is said.
func (t *Table) places([]uint64, *[together]uint64) (others uint64) { return ^uint64(0) }

// alone says of each of at most 64 flows whether the word at its index is the only one of its fingerprint. Those whose bits are set in
// others may have several.
func (t *Table) alone([]uint64, *[together]uint64) (others uint64) { return ^uint64(0) }
