package maglev

import "math"

const (
	// maxLooks is how many backends, the least loaded first, are asked whether they take a flow.
	maxLooks = 16
	// loadsNanos and loadsNanosEach say how long the loads that a worker has read are good for: the former, and with
	// many backends the latter for each. Reading costs some ten nanoseconds a backend, so about 1 % of a worker's time.
	loadsNanos     = 1_000_000
	loadsNanosEach = 1_000
)

// loads is what a worker knows of the loads of a pool's backends. Only the worker touches it. Padding keeps those of two
// workers on different cache lines, wherever the list begins.
type loads struct {
	_    [64]byte
	heap []load  // the least key is first; a node's children are at 2i+1 and 2i+2
	due  int64   // CLOCK_MONOTONIC ns: when to read again
	ours float64 // how many flows one of ours stands for: the other workers give out as many in the meantime
	_    [64]byte
}

// load is a backend in the heap.
type load struct {
	key    float64 // flows that it would have with one more, for each unit of what it takes; infinite if it takes none
	step   float64 // how much the key grows by a flow of ours
	slot   uint32
	weight uint16
}

// newLoads returns the loads of each worker. Of equal backends each worker begins with another. Nothing has been read yet.
func newLoads(t *Table, slots []uint32, workers int) []loads {
	const pad = 3 // 72 bytes: two workers' heaps share no cache line
	all := make([]loads, workers)
	for w := range all {
		heap := make([]load, pad+len(slots)+pad)[pad : pad+len(slots)]
		for i := range heap {
			b := (i + len(slots)*w/workers) % len(slots)
			heap[i] = load{slot: slots[b], weight: t.weights[b]}
		}
		all[w].heap, all[w].ours, all[w].due = heap, float64(workers), math.MinInt64
	}
	return all
}

// newByLoad returns the slot of the backend that has the fewest flows for what it takes, its weight times its fraction,
// among those that take the flow. The fraction is also compared with bits of the flow, or a backend that has just come
// back would be given every new flow until it had its share. If none of the sixteen least loaded takes the flow, it is
// the first of them that is open at all, else the hash chooses.
func (p *Pool) newByLoad(key, hash uint64, s *Slots, worker int, now int64) (slot uint32, ok bool) {
	if len(p.loads) == 0 {
		return 0, false
	}
	l := &p.loads[worker]
	if now >= l.due {
		l.read(s)
		l.due = now + max(loadsNanos, loadsNanosEach*int64(len(l.heap)))
	}
	// edge holds the nodes of the heap whose parents have been asked: the least loaded of the others is among them.
	var edge [maxLooks + 1]int
	n, spare := 1, -1
	for look := 0; look < maxLooks && n > 0; look++ {
		least := 0
		for j := 1; j < n; j++ {
			if l.heap[edge[j]].key < l.heap[edge[least]].key {
				least = j
			}
		}
		i := edge[least]
		a := Admit(s.Admit[l.heap[i].slot].Load())
		if a.takesNew(Mix(key, hash, look)) {
			return l.give(i), true
		}
		if spare < 0 && a.open() {
			spare = i
		}
		n--
		edge[least] = edge[n]
		for child := 2*i + 1; child <= 2*i+2 && child < len(l.heap); child++ {
			edge[n] = child
			n++
		}
	}
	if spare >= 0 {
		return l.give(spare), true
	}
	return p.newByHash(key, hash, s)
}

// read takes over the loads as they are, and what backends take.
func (l *loads) read(s *Slots) {
	for i := range l.heap {
		b := &l.heap[i]
		b.key, b.step = math.Inf(1), 0
		if a := Admit(s.Admit[b.slot].Load()); a.open() {
			each := 1 / (float64(b.weight) * float64(a.Fraction()))
			b.key, b.step = each*float64(flows(s, b.slot)+1), each*l.ours
		}
	}
	for i := len(l.heap)/2 - 1; i >= 0; i-- {
		l.sink(i)
	}
}

// give counts a flow to the backend at node i of the heap, and returns its slot.
func (l *loads) give(i int) uint32 {
	slot := l.heap[i].slot
	l.heap[i].key += l.heap[i].step
	l.sink(i)
	return slot
}

// sink puts node i, whose key may be greater than those of its children, where it belongs.
func (l *loads) sink(i int) {
	h := l.heap
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(h); child++ {
			if h[child].key < h[least].key {
				least = child
			}
		}
		if least == i {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// flows returns how many flows a slot has. Counts may fall short for a moment, so they may be negative.
func flows(s *Slots, slot uint32) int64 { return max(0, int64(s.Flows[slot].Load())) }

// newOfTwo returns the slot for a new flow: of the first two different candidates that take it, the one with fewer flows
// for its weight, and the first if they are even. If only one takes it, it is that; if none does, the hash chooses.
func (p *Pool) newOfTwo(key, hash uint64, s *Slots) (slot uint32, ok bool) {
	if len(p.entries) == 0 {
		return 0, false
	}
	var first uint16
	for i := range candidates {
		mix := Mix(key, hash, i)
		b := p.entries[scale(mix, len(p.entries))]
		if ok && b == first || !Admit(s.Admit[p.slots[b]].Load()).takesNew(mix) {
			continue
		}
		if !ok {
			first, ok = b, true
			continue
		}
		w := p.table.weights
		if flows(s, p.slots[b])*int64(w[first]) < flows(s, p.slots[first])*int64(w[b]) {
			first = b
		}
		return p.slots[first], true
	}
	if ok {
		return p.slots[first], true
	}
	return p.newByHash(key, hash, s)
}
