package conntrack

import "sync/atomic"

// Census is what sweeps found. The caller zeroes it before a full sweep and reads it after.
type Census struct {
	States  [4]uint64 // words by State; Empty counts free words, with those that the sweep freed
	Removed uint64    // expired words that the sweep freed
	Slots   []uint32  // live words by slot; the caller gives its length, slots beyond it are not counted
}

// Sweep removes the expired words of the given number of lines from line on and adds what remains to c. It returns the
// line to go on with, 0 after the last one. lives is indexed by slot. One goroutine sweeps, a few thousand lines at a
// time, and gets round at least every 20 minutes.
//
// A word that is written while the sweep passes is counted as it was before or after. Once no worker can write a word
// that names a slot, the next full sweep counts every word that still does.
func (t *Table) Sweep(line, lines int, tick uint16, lives []Life, c *Census) (next int) {
	end := min(line+lines, t.Lines())
	for ; line < end; line++ {
		words := t.line(uint64(line) * lineWords)
		for i := range words {
			w := Word(atomic.LoadUint64(&words[i]))
			for w != 0 && expired(w, tick, lives) {
				if atomic.CompareAndSwapUint64(&words[i], uint64(w), 0) {
					c.Removed++
					w = 0
					break
				}
				w = Word(atomic.LoadUint64(&words[i]))
			}
			c.States[w.State()]++
			if slot := w.Slot(); w != 0 && uint64(slot) < uint64(len(c.Slots)) {
				c.Slots[slot]++
			}
		}
	}
	if end == t.Lines() {
		return 0
	}
	return end
}
