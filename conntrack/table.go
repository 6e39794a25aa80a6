package conntrack

import (
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/sluice-lb/sluice/internal/prefetch"
)

const (
	lineWords = 8       // words in a line: 64 bytes
	maxLines  = 1 << 32 // a home line is named by 32 bits
	minLines  = 2       // the alternate line must differ from the home line
)

// Table is a flow table over words that the caller gave. Its methods may be called from any goroutine.
type Table struct {
	words []uint64 // read and written with sync/atomic only
	mask  uint64   // number of lines − 1
	// flows counts the words that name each slot; whoever swaps a word in or out counts it there. Empty: nobody counts.
	flows []atomic.Int32
}

// New returns the table that the words hold. Their number must be what [WordsFor] returns: a power of two, 16 or more.
// The first word must lie on a 64-byte boundary, which is the caller's promise: on another one everything works, and
// each look-up costs up to two cache lines. Words that are not zero are taken as they are.
func New(words []uint64) (*Table, error) {
	n := uint64(len(words))
	if bits.OnesCount64(n) != 1 || n < minLines*lineWords || n > maxLines*lineWords {
		return nil, fmt.Errorf("flow table of %d words: the number of words must be a power of two from 16 to 2^35; take it from WordsFor", n)
	}
	return &Table{words: words, mask: n/lineWords - 1}, nil
}

// Count has the table keep, from now on, how many words name each slot: whatever writes, replaces or frees a word adds to
// and subtracts from the count of its slot, in the caller's memory, where anybody may read it. A word that names a slot
// beyond flows is not counted. Before the table is used; the counts must be those of the words that it holds (see Walk).
func (t *Table) Count(flows []atomic.Int32) { t.flows = flows }

// count adds n to the count of w's slot.
func (t *Table) count(w Word, n int32) {
	if slot := uint64(w.Slot()); slot < uint64(len(t.flows)) {
		t.flows[slot].Add(n)
	}
}

// swapped counts what a successful swap of old for next did.
func (t *Table) swapped(old, next uint64) {
	if old != 0 {
		t.count(Word(old), -1)
	}
	if next != 0 {
		t.count(Word(next), 1)
	}
}

// WordsFor returns how many words a table for this many flows takes: two a flow, rounded up to a power of two.
func WordsFor(flows uint64) (words uint64, err error) {
	const most = maxLines * lineWords / 2
	if flows == 0 || flows > most {
		return 0, fmt.Errorf("flow table for %d flows: the number must be from 1 to %d", flows, uint64(most))
	}
	words = max(2*flows, minLines*lineWords)
	return 1 << bits.Len64(words-1), nil
}

// Lines is the number of lines, which [Table.Sweep] counts in.
func (t *Table) Lines() int { return len(t.words) / lineWords }

// home returns the index of the first word of a flow's home line.
func (t *Table) home(hash uint64) uint64 { return (hash & t.mask) * lineWords }

// alternate returns the index of the first word of the other line of a flow whose one line is at base. The step between
// the two depends on the fingerprint alone and is odd, so it is never 0 and leads back again.
func (t *Table) alternate(base, fp uint64) uint64 {
	step := fp*0x9e3779b97f4a7c15>>32 | 1
	return base ^ (step&t.mask)*lineWords
}

// preferred is the place in a line at which a fingerprint's word is looked for first.
func preferred(fp uint64) uint64 { return fp % lineWords }

// line returns the eight words from base on.
func (t *Table) line(base uint64) *[lineWords]uint64 {
	return (*[lineWords]uint64)(t.words[base:])
}

// matches reports whether w is a word with this fingerprint. An empty word has none.
func matches(w, fp uint64) bool { return w>>32 == fp && w != 0 }

// Prefetch asks the processor for the home line of each hash, so that the cache misses of a batch overlap. Call it in a
// pass of its own, some way before the look-ups.
func (t *Table) Prefetch(hashes []uint64) { prefetch.Lines(t.words, t.mask, hashes) }

// Lookup returns the word of the flow with this hash and its index in the table, or a zero word if it has none. The
// word may be expired (see [Life.Expired]). It looks into the home line and, only if nothing is there, into the
// alternate. Workers use [Table.LookupBatch].
func (t *Table) Lookup(hash uint64) (index int, w Word) {
	home, fp := t.home(hash), hash>>32
	if i, w := t.find(home, fp); w != 0 {
		return i, w
	}
	return t.find(t.alternate(home, fp), fp)
}

// LookupBatch is Lookup for each of the hashes; index and words have their length or more. All home lines are looked
// at before any alternate line, and the alternate lines are prefetched together, so that their cache misses overlap.
// After it, both lines of each flow without a word are in the cache for an insert.
func (t *Table) LookupBatch(hashes []uint64, index []int, words []Word) {
	for len(hashes) > 0 {
		n := min(len(hashes), together)
		if missing := t.lookupHome(hashes[:n], index, words); missing != 0 {
			t.lookupAlternates(missing, hashes[:n], index, words)
		}
		hashes, index, words = hashes[n:], index[n:], words[n:]
	}
}

// together is how many hashes are looked up together at most, as many as a word has bits.
const together = 64

// lookupAlternates looks for the flows with the numbers of the bits in missing in their alternate lines.
func (t *Table) lookupAlternates(missing uint64, hashes []uint64, index []int, words []Word) {
	var (
		alternates [together]uint64 // hashes with the same fingerprints whose home lines these are
		which      [together]uint8  // and their places in the batch
		at         [together]int
		found      [together]Word
	)
	misses := 0
	for ; missing != 0; missing &= missing - 1 {
		i := bits.TrailingZeros64(missing)
		hash := hashes[i]
		fp := hash >> 32
		alternates[misses%together] = fp<<32 | t.alternate(t.home(hash), fp)/lineWords
		which[misses%together] = uint8(i)
		misses++
	}
	prefetch.Lines(t.words, t.mask, alternates[:misses])
	t.lookupHome(alternates[:misses], at[:], found[:])
	for k, i := range which[:misses] {
		index[i], words[i] = at[k], found[k]
	}
}

// lookupHomeEach is lookupHome one by one.
func (t *Table) lookupHomeEach(hashes []uint64, index []int, found []Word) (missing uint64) {
	for i, hash := range hashes {
		if index[i], found[i] = t.find(t.home(hash), hash>>32); found[i] == 0 {
			missing |= 1 << i
		}
	}
	return missing
}

// scanEach is scan word by word.
func (t *Table) scanEach(a, b, fp uint64) (same, empty uint16) {
	for k, base := range [2]uint64{a, b} {
		line := t.line(base)
		for i := range line {
			bit := uint16(1) << (k*lineWords + i)
			w := atomic.LoadUint64(&line[i])
			if w == 0 {
				empty |= bit
			} else if w>>32 == fp {
				same |= bit
			}
		}
	}
	return same, empty
}

// find returns the word with this fingerprint in one line and its index.
func (t *Table) find(base, fp uint64) (int, Word) {
	line := t.line(base)
	p := preferred(fp)
	if v := atomic.LoadUint64(&line[p]); matches(v, fp) {
		return int(base + p), Word(v)
	}
	// Written out, since of an unknown flow all of it is looked at, twice. An empty word passes for one of fingerprint 0.
	switch fp {
	case atomic.LoadUint64(&line[0]) >> 32, atomic.LoadUint64(&line[1]) >> 32,
		atomic.LoadUint64(&line[2]) >> 32, atomic.LoadUint64(&line[3]) >> 32,
		atomic.LoadUint64(&line[4]) >> 32, atomic.LoadUint64(&line[5]) >> 32,
		atomic.LoadUint64(&line[6]) >> 32, atomic.LoadUint64(&line[7]) >> 32:
	default:
		return 0, 0
	}
	for i := range line {
		if v := atomic.LoadUint64(&line[i]); matches(v, fp) {
			return int(base) + i, Word(v)
		}
	}
	return 0, 0
}

// Refresh notes a packet of the flow whose word w was found at index. closing says that the packet carries FIN or RST.
// It writes only if the tick has changed or the word must become Closing. The first packet in a later tick makes a word
// on probation Established; a closing word stays Closing. If the word has been changed by another worker meanwhile, the
// new word is taken as long as it is still the same flow's with the same slot; otherwise nothing is written.
func (t *Table) Refresh(index int, w Word, tick uint16, closing bool) {
	if w.Tick() == tick && !closing {
		return
	}
	t.refresh(index, w, tick, closing)
}

func (t *Table) refresh(index int, w Word, tick uint16, closing bool) {
	fp, slot := w.Fingerprint(), w.Slot()
	for {
		state, then := w.State(), w.Tick()
		if Age(tick, then) > 0 {
			then = tick
			if state == Probation {
				state = Established
			}
		}
		if closing {
			state = Closing
		}
		next := MakeWord(fp, slot, then, state)
		if next == w || atomic.CompareAndSwapUint64(&t.words[index], uint64(w), uint64(next)) {
			return
		}
		w = Word(atomic.LoadUint64(&t.words[index]))
		if w == 0 || w.Fingerprint() != fp || w.Slot() != slot {
			return
		}
	}
}

// Replace gives the flow of the word old, found at index, another slot, in place. It reports false, and changes
// nothing, if the word is not old any more; look the flow up again then.
func (t *Table) Replace(index int, old Word, slot uint32, tick uint16, s State) bool {
	next := MakeWord(old.Fingerprint(), slot, tick, s)
	if !atomic.CompareAndSwapUint64(&t.words[index], uint64(old), uint64(next)) {
		return false
	}
	t.swapped(uint64(old), uint64(next))
	return true
}

// Remove frees the word w, found at index. A word that another worker has refreshed meanwhile is freed too; one that is
// no longer the same flow's, with the same slot, is left alone.
func (t *Table) Remove(index int, w Word) {
	fp, slot := w.Fingerprint(), w.Slot()
	for w != 0 && w.Fingerprint() == fp && w.Slot() == slot {
		if atomic.CompareAndSwapUint64(&t.words[index], uint64(w), 0) {
			t.swapped(uint64(w), 0)
			return
		}
		w = Word(atomic.LoadUint64(&t.words[index]))
	}
}

// Clear frees all words, as for a table that was not swept for so long that ages mean nothing any more. Nobody else may
// use the table meanwhile.
func (t *Table) Clear() {
	clear(t.words)
	for i := range t.flows {
		t.flows[i].Store(0)
	}
}
