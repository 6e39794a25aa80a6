//go:build !amd64 || race

package conntrack

// lookupHome looks for the word of each flow in its home line, and returns of how many there is none: their found is zero.
// index and found have the length of hashes or more, and there is one hash at least.
func (t *Table) lookupHome(hashes []uint64, index []int, found []Word) (misses int) {
	return t.lookupHomeEach(hashes, index, found)
}

// scan looks at the two lines of a flow, whose first words have the indices a and b. It returns, with a bit for each word, those of a
// first, which have this fingerprint and which are empty. Each word is read once and whole, but not all at the same moment.
func (t *Table) scan(a, b, fp uint64) (same, empty uint16) { return t.scanEach(a, b, fp) }
