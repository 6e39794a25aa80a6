package maglev

// maxSkips is how many turns of backends that do not take a flow are passed over for it.
const maxSkips = 64

// cursor is a worker's place in the turns. Padding keeps those of two workers on different cache lines, wherever the
// list begins.
type cursor struct {
	_    [64]byte
	next int // index in Pool.turns; only the worker touches it
	_    [56]byte
}

// slotTurns returns the slots in the order in which they take turns: one round in which each has as many as its weight,
// with what all weights have in common divided out, or as many turns as the table has entries if that is less.
func slotTurns(t *Table, slots []uint32) []uint32 {
	total, divisor := 0, 0
	for _, w := range t.weights {
		total += int(w)
		for a, b := divisor, int(w); ; a, b = b, a%b {
			if b == 0 {
				divisor = a
				break
			}
		}
	}
	order := turns(t.weights, min(total/divisor, t.size))
	list := make([]uint32, len(order))
	for i, b := range order {
		list[i] = slots[b]
	}
	return list
}

// newCursors returns the cursors of the workers, as far apart in n turns as possible.
func newCursors(n, workers int) []cursor {
	c := make([]cursor, workers)
	for w := range c {
		c[w].next = n * w / workers
	}
	return c
}

// newByTurn returns the slot whose turn it is at this worker. Turns of backends that do not take the flow are lost to
// them, and not given to a neighbour, who has its own. If maxSkips of them do not take it, the first that is open at all
// has to, so that backends that all start slowly go round too; if none is, the hash chooses.
func (p *Pool) newByTurn(key, hash uint64, s *Slots, worker int) (slot uint32, ok bool) {
	if len(p.turns) == 0 {
		return 0, false
	}
	c := &p.cursors[worker]
	next, afterSpare := c.next, 0
	var spare uint32
	for i := range maxSkips {
		slot = p.turns[next]
		if next++; next == len(p.turns) {
			next = 0
		}
		a := Admit(s.Admit[slot].Load())
		if a.takesNew(Mix(key, hash, i)) {
			c.next = next
			return slot, true
		}
		if !ok && a.open() {
			spare, afterSpare, ok = slot, next, true
		}
	}
	if ok {
		c.next = afterSpare
		return spare, true
	}
	c.next = next
	return p.newByHash(key, hash, s)
}
