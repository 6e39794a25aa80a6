//go:build !race

package conntrack

import "golang.org/x/sys/cpu"

var hasAVX2 = cpu.X86.HasAVX2 && cpu.X86.HasBMI2

// lookupHomeAVX2 is lookupHome. It compares the fingerprints of all eight words of a line at once, so that nothing is left to be
// predicted of where a flow's word lies. What this finds is but a hint: of the word itself all eight bytes are read at once, and
// compared again.
//
//go:noescape
func lookupHomeAVX2(words *uint64, mask uint64, hashes *uint64, n int, index *int, found *Word) (missing uint64)

// lookupHome looks for the word of each flow in its home line, and returns a bit for each that has none there: its found is zero.
// index and found have the length of hashes or more, and there is one hash at least, and at most 64.
func (t *Table) lookupHome(hashes []uint64, index []int, found []Word) (missing uint64) {
	if !hasAVX2 {
		return t.lookupHomeEach(hashes, index, found)
	}
	_, _ = index[len(hashes)-1], found[len(hashes)-1]
	return lookupHomeAVX2(&t.words[0], t.mask, &hashes[0], len(hashes), &index[0], &found[0])
}

// scanAVX2 is scan.
//
//go:noescape
func scanAVX2(words *uint64, a, b, fp uint64) (same, empty uint16)

// scan looks at the two lines of a flow, whose first words have the indices a and b. It returns, with a bit for each word, those of a
// first, which have this fingerprint and which are empty. Each word is read once and whole, but not all at the same moment.
func (t *Table) scan(a, b, fp uint64) (same, empty uint16) {
	if !hasAVX2 {
		return t.scanEach(a, b, fp)
	}
	return scanAVX2(&t.words[0], a, b, fp)
}

// placesAVX2 is places. n is from 1 to 64.
//
//go:noescape
func placesAVX2(words *uint64, mask uint64, hashes *uint64, n int, at *uint64) (others uint64)

// aloneAVX2 is alone. n is from 1 to 64.
//
//go:noescape
func aloneAVX2(words *uint64, mask uint64, hashes *uint64, n int, at *uint64) (others uint64)

// places finds, for each of at most 64 flows, the free word that an insert takes. For those whose bits are set in others it takes more
// than that: they have a word, or their lines are full, or nothing is said.
func (t *Table) places(hashes []uint64, at *[together]uint64) (others uint64) {
	if !hasAVX2 || len(hashes) == 0 {
		return ^uint64(0)
	}
	return placesAVX2(&t.words[0], t.mask, &hashes[0], len(hashes), &at[0])
}

// alone says of each of at most 64 flows whether the word at its index is the only one of its fingerprint. Those whose bits are set in
// others may have several.
func (t *Table) alone(hashes []uint64, at *[together]uint64) (others uint64) {
	if !hasAVX2 || len(hashes) == 0 {
		return ^uint64(0)
	}
	return aloneAVX2(&t.words[0], t.mask, &hashes[0], len(hashes), &at[0])
}
