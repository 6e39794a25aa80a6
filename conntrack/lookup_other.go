//go:build !amd64 || race

package conntrack

// lookupHome looks for the word of each flow in its home line, and returns of how many there is none: their found is zero.
// index and found have the length of hashes or more, and there is one hash at least.
func (t *Table) lookupHome(hashes []uint64, index []int, found []Word) (misses int) {
	return t.lookupHomeEach(hashes, index, found)
}
