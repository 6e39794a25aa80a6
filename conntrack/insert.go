package conntrack

import (
	"math/bits"
	"sync/atomic"
)

// Outcome is what an insert came to.
type Outcome uint8

const (
	Inserted         Outcome = iota // a free word was taken
	Present                         // a live word with the fingerprint is there and was left; look it up for its slot
	Replaced                        // an expired word with the fingerprint was overwritten
	EvictedExpired                  // both lines were full; an expired word was overwritten
	EvictedClosing                  // … a closing word that had idled for 2 ticks or more
	EvictedProbation                // … the oldest word on probation
	EvictedIdle                     // … the established word that had idled longest, for more than 5 minutes
	Refused                         // … and none of them could be given up: nothing was written
	NumOutcomes                     // how many there are
)

// String returns the outcome's name in snake case.
func (o Outcome) String() string {
	names := [NumOutcomes]string{"inserted", "present", "replaced", "evicted_expired", "evicted_closing",
		"evicted_probation", "evicted_idle", "refused"}
	if o < NumOutcomes {
		return names[o]
	}
	return "invalid"
}

const (
	homeFill        = 6   // a home line that holds this many words sends further flows to the emptier line
	closingIdle     = 2   // ticks: a closing word may be evicted from this age on
	establishedIdle = 140 // ticks, 5 minutes: an established word may be evicted beyond this age
)

// Insert writes a word for the flow with this hash: into its home line while that holds fewer than six words, else into
// the emptier of its two lines, at the place where a look-up begins if that is free. With both lines full it overwrites,
// in this order: an expired word; a closing word idle for 2 ticks or more; the oldest on probation; the longest-idle
// established word, if that is idle for more than 5 minutes. Of several the longest idle is taken.
//
// lives is indexed by slot and says which words are expired. s is Probation or Established. When another worker inserts
// the same flow at the same time, one word stays; the worker whose word gave way gets Present, whatever it overwrote.
func (t *Table) Insert(hash uint64, slot uint32, tick uint16, s State, lives []Life) Outcome {
	fp := hash >> 32
	home := t.home(hash)
	alt := t.alternate(home, fp)
	next := uint64(MakeWord(uint32(fp), slot, tick, s))
	// A swap fails only because another worker's succeeded, so somebody always gets on.
	for {
		at, old, outcome := t.place(home, alt, fp, tick, lives)
		if outcome == Present || outcome == Refused {
			return outcome
		}
		if !atomic.CompareAndSwapUint64(&t.words[at], old, next) {
			continue
		}
		t.swapped(old, next)
		if kept, found := t.settle(home, alt, fp); found && kept != at {
			return Present
		}
		return outcome
	}
}

// InsertBatch is Insert for each of these flows; the same one may be among them twice, and the first gets the word then. slots and
// outcomes, what each came to, have the length of hashes or more. Words for which there is room are written together, so that nothing
// that is read waits for a swap. As with several workers, a home line may get one word more by that before flows go to the emptier line.
func (t *Table) InsertBatch(hashes []uint64, slots []uint32, tick uint16, s State, lives []Life, outcomes []Outcome) {
	for len(hashes) > 0 {
		n := min(len(hashes), together)
		t.insertTogether(hashes[:n], slots[:n], tick, s, lives, outcomes[:n])
		hashes, slots, outcomes = hashes[n:], slots[n:], outcomes[n:]
	}
}

// insertTogether is InsertBatch for at most 64 flows.
func (t *Table) insertTogether(hashes []uint64, slots []uint32, tick uint16, s State, lives []Life, outcomes []Outcome) {
	var at [together]uint64
	left := t.places(hashes, &at) // a bit for each flow that is inserted alone afterwards
	for k, hash := range hashes {
		if left>>(k%together)&1 != 0 {
			continue
		}
		next := MakeWord(uint32(hash>>32), slots[k], tick, s)
		if !atomic.CompareAndSwapUint64(&t.words[at[k%together]], 0, uint64(next)) {
			left |= 1 << (k % together)
			continue
		}
		t.count(next, 1)
		outcomes[k] = Inserted
	}
	others := t.alone(hashes, &at)
	if left|others == 0 {
		return
	}
	for k, hash := range hashes {
		if left>>k&1 != 0 {
			outcomes[k] = t.Insert(hash, slots[k], tick, s, lives)
		} else if others>>k&1 != 0 {
			home, fp := t.home(hash), hash>>32
			if kept, found := t.settle(home, t.alternate(home, fp), fp); found && kept != at[k] {
				outcomes[k] = Present
			}
		}
	}
}

// place finds where a word with this fingerprint goes: its index, the word that is there now, and what putting it there
// amounts to.
func (t *Table) place(home, alt, fp uint64, tick uint16, lives []Life) (at, old uint64, o Outcome) {
	same, empty := t.scan(home, alt, fp)
	for ; same != 0; same &= same - 1 {
		at = wordOf(home, alt, same)
		if w := atomic.LoadUint64(&t.words[at]); matches(w, fp) { // else it has gone since
			if expired(Word(w), tick, lives) {
				return at, w, Replaced
			}
			return at, w, Present
		}
	}
	base, free := home, uint8(empty)
	if used := lineWords - bits.OnesCount8(free); used >= homeFill {
		other := uint8(empty >> lineWords)
		if used == lineWords && other == 0 {
			return t.victim(home, alt, tick, lives)
		}
		if used > lineWords-bits.OnesCount8(other) {
			base, free = alt, other
		}
	}
	// The free word nearest after the preferred place.
	p := preferred(fp)
	return base + (p+uint64(bits.TrailingZeros8(bits.RotateLeft8(free, -int(p)))))%lineWords, 0, Inserted
}

// wordOf is the index of the word of the lowest bit that scan has set for the lines a and b.
func wordOf(a, b uint64, found uint16) uint64 {
	i := uint64(bits.TrailingZeros16(found))
	if i < lineWords {
		return a + i
	}
	return b + i - lineWords
}

// victim finds the word to overwrite in two full lines. The outcomes of evictions are in the order in which words are
// given up.
func (t *Table) victim(home, alt uint64, tick uint16, lives []Life) (at, old uint64, o Outcome) {
	o = Refused
	var idlest uint16
	for _, base := range [2]uint64{home, alt} {
		line := t.line(base)
		for i := range line {
			w := Word(atomic.LoadUint64(&line[i]))
			age := Age(tick, w.Tick())
			c := Refused
			switch w.State() {
			case Empty: // freed since they were scanned
				return base + uint64(i), 0, Inserted
			case Probation:
				c = EvictedProbation
			case Established:
				if age > establishedIdle {
					c = EvictedIdle
				}
			case Closing:
				if age >= closingIdle {
					c = EvictedClosing
				}
			}
			if expired(w, tick, lives) {
				c = EvictedExpired
			}
			if c < o || c == o && age > idlest {
				at, old, o, idlest = base+uint64(i), uint64(w), c, age
			}
		}
	}
	return at, old, o
}

// settle removes all words with this fingerprint from the two lines but the one with the lowest index, which it
// returns. See the package documentation for why this leaves exactly one.
func (t *Table) settle(home, alt, fp uint64) (kept uint64, found bool) {
	low, high := min(home, alt), max(home, alt)
	for same, _ := t.scan(low, high, fp); same != 0; same &= same - 1 {
		at := wordOf(low, high, same)
		w := atomic.LoadUint64(&t.words[at])
		if !matches(w, fp) {
			continue
		}
		if !found {
			kept, found = at, true
			continue
		}
		for ; matches(w, fp); w = atomic.LoadUint64(&t.words[at]) {
			if atomic.CompareAndSwapUint64(&t.words[at], w, 0) {
				t.swapped(w, 0)
				break
			}
		}
	}
	return kept, found
}
