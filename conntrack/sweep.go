package conntrack

import (
	"math/bits"
	"sync/atomic"
)

// NumAges is the number of classes in which a census counts ages; see AgeClass.
const NumAges = 13

// AgeClass is the class of an age in ticks: 0 is class 0, and class k holds the ages from 2^(k−1) to below 2^k.
func AgeClass(age uint16) int { return bits.Len16(age & tickMask) }

// Census is what a walk over the table found. The caller zeroes it before a full round and reads it after.
type Census struct {
	States  [4]uint64       // live words by State; Empty counts the other ones
	Ages    [NumAges]uint64 // live words by AgeClass: how long their flows have had no packet
	Expired uint64          // words found whose time is over; Sweep has freed them
	Slots   []SlotCensus    // by slot; the caller gives its length, slots beyond it are not counted
}

// SlotCensus is what a census found of one slot: live words only.
type SlotCensus struct {
	States [4]uint32 // by State; nothing is Empty
	Ages   [NumAges]uint32
	Oldest uint16 // the highest age, ticks
}

// Flows is the number of words.
func (s *SlotCensus) Flows() uint32 {
	return s.States[Probation] + s.States[Established] + s.States[Closing]
}

// Sweep removes the expired words of the given number of lines from line on and adds what it found to c. It returns the
// line to go on with, 0 after the last one. lives is indexed by slot. One goroutine sweeps, a few thousand lines at a
// time, and gets round at least every 20 minutes.
//
// A word that is written while the sweep passes is counted as it was before or after. Once no worker can write a word
// that names a slot, the next full sweep counts every word that still does.
func (t *Table) Sweep(line, lines int, tick uint16, lives []Life, c *Census) (next int) {
	return t.walk(line, lines, tick, lives, c, true)
}

// Walk is Sweep for somebody who only looks: it frees nothing. Any goroutine may walk at any time.
func (t *Table) Walk(line, lines int, tick uint16, lives []Life, c *Census) (next int) {
	return t.walk(line, lines, tick, lives, c, false)
}

func (t *Table) walk(line, lines int, tick uint16, lives []Life, c *Census, free bool) (next int) {
	end := min(line+lines, t.Lines())
	for ; line < end; line++ {
		words := t.line(uint64(line) * lineWords)
		for i := range words {
			w := Word(atomic.LoadUint64(&words[i]))
			for w != 0 && expired(w, tick, lives) {
				if !free || atomic.CompareAndSwapUint64(&words[i], uint64(w), 0) {
					if free {
						t.swapped(uint64(w), 0)
					}
					c.Expired++
					w = 0
					break
				}
				w = Word(atomic.LoadUint64(&words[i]))
			}
			c.add(w, tick)
		}
	}
	if end == t.Lines() {
		return 0
	}
	return end
}

// add counts one word that is free or live.
func (c *Census) add(w Word, tick uint16) {
	state := w.State()
	c.States[state]++
	if state == Empty {
		return
	}
	age := Age(tick, w.Tick())
	c.Ages[AgeClass(age)]++
	if slot := uint64(w.Slot()); slot < uint64(len(c.Slots)) {
		s := &c.Slots[slot]
		s.States[state]++
		s.Ages[AgeClass(age)]++
		s.Oldest = max(s.Oldest, age)
	}
}
