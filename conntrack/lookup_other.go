//go:build !amd64 || race

package conntrack

// lookupHome looks for the word of each flow in its home line, and returns a bit for each that has none there: its found is zero.
// index and found have the length of hashes or more, and there is one hash at least, and at most 64.
func (t *Table) lookupHome(hashes []uint64, index []int, found []Word) (missing uint64) {
	return t.lookupHomeEach(hashes, index, found)
}

// scan returns, with a bit for each word of a line, which have this fingerprint and which are empty. Each word is read once and whole,
// but not all at the same moment.
func scan(line *[lineWords]uint64, fp uint64) (same, empty uint8) { return scanEach(line, fp) }
