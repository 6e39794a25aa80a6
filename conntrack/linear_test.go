package conntrack

import (
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
)

// stressOps is how many operations a test under stress makes: ordinary, or as many as the environment asks for.
func stressOps(t *testing.T, ordinary int) int {
	t.Helper()
	const name = "SLUICE_STRESS_OPS"
	text, set := os.LookupEnv(name)
	if !set {
		return ordinary
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: must be a number of operations, such as 100000000", name, text)
	}
	return n
}

// checkCounts fails if the count of a slot is not the number of words that name it. Nobody may write meanwhile.
func (t *Table) checkCounts(tb testing.TB) {
	tb.Helper()
	words := make([]int32, len(t.flows))
	for _, w := range t.words {
		if slot := int(Word(w).Slot()); w != 0 && slot < len(words) {
			words[slot]++
		}
	}
	for slot, n := range words {
		if count := t.flows[slot].Load(); count != n {
			tb.Errorf("slot %d: %d words and a count of %d", slot, n, count)
		}
	}
}

// barrier has workers wait for each other. At first it spins, so that all go on at the same moment; if one is late, the
// others leave the processor to it.
type barrier struct {
	workers int32
	here    atomic.Int32
	round   atomic.Uint32
	mu      sync.Mutex
	next    sync.Cond
}

func newBarrier(workers int32) *barrier {
	b := &barrier{workers: workers}
	b.next.L = &b.mu
	return b
}

func (b *barrier) wait() {
	round := b.round.Load()
	if b.here.Add(1) == b.workers {
		b.here.Store(0)
		b.mu.Lock()
		b.round.Add(1)
		b.mu.Unlock()
		b.next.Broadcast()
		return
	}
	for range 200 {
		if b.round.Load() != round {
			return
		}
		runtime.Gosched()
	}
	b.mu.Lock()
	for b.round.Load() == round {
		b.next.Wait()
	}
	b.mu.Unlock()
}

const (
	linearFlows = 4
	linearCalls = 64 // of a worker in a round
	linearSlots = 1 + maxWorkers*linearCalls
)

// linear is a table on which workers make calls in rounds. Each round has new flows in an emptied table, and each call
// that writes writes a slot of its own.
type linear struct {
	table  *Table
	flows  []atomic.Int32 // its counts
	lives  []Life
	stamp  atomic.Uint32
	hashes [linearFlows]uint64
	fill   [16]uint64 // the table at the beginning of a round: words of flows that nobody touches
}

// prepare begins a round. The flows share two lines, of which one or the other or both are half full already, so that a
// word goes home or not as other flows come and go. Their fingerprints prefer the same two places.
func (l *linear) prepare(r *rand.Rand) {
	table := l.table
	place := r.Uint32() & 7
	fp := func(n int) uint32 { return r.Uint32()&^0xff | uint32(n)<<3 | (place+r.Uint32()&1)&7 }
	for i := range l.hashes {
		l.hashes[i] = uint64(fp(i))<<32 | r.Uint64()&1
	}
	l.fill = [16]uint64{}
	for n := range 6 {
		at := r.IntN(len(l.fill))
		l.fill[at] = uint64(MakeWord(fp(linearFlows+n), 0, testNow, Established))
	}
	table.Clear()
	for i, w := range l.fill {
		table.words[i] = w
		table.swapped(0, w)
	}
	l.stamp.Store(0)
}

// linearWorker is one worker on a linear.
type linearWorker struct {
	*linear
	id    int
	r     *rand.Rand
	calls [linearFlows][]call // by flow, of this round
	last  [linearFlows]struct {
		index int
		word  Word // what the last look-up found
	}
	writes int // slots used in this round
}

func (w *linearWorker) now() uint32 { return w.stamp.Add(1) - 1 }

func (w *linearWorker) slot() uint32 {
	w.writes++
	return uint32(w.id*linearCalls + w.writes)
}

// insert is Table.Insert, or a batch of one, or, since another worker seldom gets far in the middle of that, the same with pauses.
func (w *linearWorker) insert(hash uint64, slot uint32) Outcome {
	switch w.r.IntN(4) {
	case 0, 1:
		return w.table.Insert(hash, slot, testNow, Established, w.lives)
	case 2:
		var outcome [1]Outcome
		w.table.InsertBatch([]uint64{hash}, []uint32{slot}, testNow, Established, w.lives, outcome[:])
		return outcome[0]
	}
	t, fp := w.table, hash>>32
	home := t.home(hash)
	alt := t.alternate(home, fp)
	next := uint64(MakeWord(uint32(fp), slot, testNow, Established))
	for {
		at, old, o := t.place(home, alt, fp, testNow, w.lives)
		if o == Present || o == Refused {
			return o
		}
		runtime.Gosched()
		if !atomic.CompareAndSwapUint64(&t.words[at], old, next) {
			continue
		}
		t.swapped(old, next)
		runtime.Gosched()
		if kept, found := t.settle(home, alt, fp); found && kept != at {
			return Present
		}
		return o
	}
}

// lookup is Table.Lookup or the same with a pause.
func (w *linearWorker) lookup(hash uint64) (int, Word) {
	if w.r.IntN(4) > 0 {
		return w.table.Lookup(hash)
	}
	home := w.table.home(hash)
	if at, found := w.table.find(home, hash>>32); found != 0 {
		return at, found
	}
	runtime.Gosched()
	return w.table.find(w.table.alternate(home, hash>>32), hash>>32)
}

// step makes one call, of all flows or of one, and records it.
func (w *linearWorker) step(t *testing.T) {
	flow := w.r.IntN(linearFlows)
	hash, last := w.hashes[flow], &w.last[flow]
	dice := w.r.IntN(16)
	if dice >= 8 && last.word == 0 {
		dice -= 8 // nothing is known of the flow
	}
	c := call{worker: w.id, word: last.word}
	switch {
	case dice == 0:
		var index [linearFlows]int
		var words [linearFlows]Word
		c.begin = w.now()
		w.table.LookupBatch(w.hashes[:], index[:], words[:])
		c.end = w.now()
		for i, word := range words {
			c.kind, c.word = lookup, word
			w.found(t, i, index[i], word)
			w.calls[i] = append(w.calls[i], c)
		}
		return
	case dice < 4:
		c.kind = lookup
		c.begin = w.now()
		at, word := w.lookup(hash)
		c.end = w.now()
		c.word = word
		w.found(t, flow, at, word)
	case dice < 8:
		c.kind, c.slot = insert, w.slot()
		c.begin = w.now()
		c.told = w.insert(hash, c.slot)
		c.end = w.now()
	case dice < 11:
		c.kind, c.slot = replace, w.slot()
		c.begin = w.now()
		c.ok = w.table.Replace(last.index, last.word, c.slot, testNow, Established)
		c.end = w.now()
	case dice < 15:
		c.kind = remove
		c.begin = w.now()
		w.table.Remove(last.index, last.word)
		c.end = w.now()
		last.word = 0
	default:
		c.kind = refresh
		c.begin = w.now()
		w.table.Refresh(last.index, last.word, testNow, true)
		c.end = w.now()
	}
	w.calls[flow] = append(w.calls[flow], c)
}

// found notes what a look-up found, of which the slot and the state are the checker's matter.
func (w *linearWorker) found(t *testing.T, flow, at int, word Word) {
	if word != 0 && (uint64(word.Fingerprint()) != w.hashes[flow]>>32 || word.Tick() != testNow) {
		t.Errorf("flow %#x was found to have the word %#x at %d", w.hashes[flow], uint64(word), at)
	}
	w.last[flow].index, w.last[flow].word = at, word
}

// atRest checks, while nobody writes, that the words of other flows are as they were, that a flow has one word at most,
// and that the counts are those of the words.
func (l *linear) atRest(t *testing.T) {
	for i, v := range l.table.words {
		if f := l.fill[i]; f != 0 && v != f {
			t.Errorf("word %d, of another flow, was %#x and is %#x", i, f, v)
		}
	}
	for _, hash := range l.hashes {
		if at := l.table.holders(hash); len(at) > 1 {
			t.Errorf("flow %#x has words at %v", hash, at)
		}
	}
	l.table.checkCounts(t)
}

// linearTally is what a run came to.
type linearTally struct {
	ops, overlapping, missed, lost int
}

// Four workers look up, insert, replace, refresh and remove four flows of two lines with room. What they saw can be
// explained by what the package documentation says of words.
func TestLinearizable(t *testing.T) {
	ordinary := 2_000_000
	if raceEnabled {
		ordinary /= 4
	}
	ops := stressOps(t, ordinary)
	l := &linear{table: newTable(t, 16), flows: make([]atomic.Int32, linearSlots), lives: make([]Life, linearSlots)}
	l.table.Count(l.flows)
	for i := range l.lives {
		l.lives[i] = Life{0, MaxLife, MaxLife, MaxLife}
	}
	var workers [maxWorkers]*linearWorker
	for id := range workers {
		workers[id] = &linearWorker{linear: l, id: id, r: rand.New(rand.NewPCG(uint64(id), 11))}
	}
	meet := newBarrier(maxWorkers)
	var tallies [maxWorkers]linearTally
	var made atomic.Int64
	stop := false // written by worker 0, between the last barrier of a round and the first of the next
	var running sync.WaitGroup
	for id, w := range workers {
		running.Go(func() {
			var c checker
			var history []call
			for {
				if id == 0 {
					stop = t.Failed() || made.Load() >= int64(ops)
					l.prepare(w.r)
				}
				meet.wait()
				if stop {
					return
				}
				w.writes = 0
				clear(w.last[:])
				for i := range w.calls {
					w.calls[i] = w.calls[i][:0]
				}
				for range linearCalls {
					w.step(t)
				}
				meet.wait()
				if id == 0 {
					l.atRest(t)
				}
				// Each worker checks one flow, with a look-up after all.
				history = history[:0]
				for _, other := range workers {
					history = append(history, other.calls[id]...)
				}
				made.Add(int64(len(history)))
				_, word := l.table.Lookup(l.hashes[id])
				end := l.stamp.Load() + uint32(2*id)
				history = append(history, call{kind: lookup, worker: id, begin: end, end: end + 1, word: word})
				tallies[id].check(t, &c, history)
				meet.wait()
			}
		})
	}
	running.Wait()
	var sum linearTally
	for _, tally := range tallies {
		sum.ops += tally.ops
		sum.overlapping += tally.overlapping
		sum.missed += tally.missed
		sum.lost += tally.lost
	}
	t.Logf("%d operations checked, %d of them beside another one of the same flow; in %d histories a search missed both words of a displacement, in %d the word that was kept was removed and the others lost",
		sum.ops, sum.overlapping, sum.missed, sum.lost)
	if !t.Failed() && sum.overlapping == 0 {
		t.Error("no calls for one flow met")
	}
}

// check checks one history and adds it to the tally.
func (s *linearTally) check(t *testing.T, c *checker, history []call) {
	s.ops += len(history)
	if !c.check(history, strict) {
		last, all := c.text(24), c.text(len(history))
		switch {
		case c.check(history, missed):
			if s.missed++; s.missed == 1 {
				t.Logf("a search missed both words of a displacement:\n%s", last)
			}
		case c.check(history, missed|lost):
			if s.lost++; s.lost == 1 {
				t.Logf("the word that was kept was removed, and the others lost:\n%s", last)
			}
		default:
			t.Errorf("without explanation:\n%s", all)
		}
	}
	for i := range c.events {
		e := &c.events[i]
		if e.ended {
			continue
		}
		for worker, other := range e.open {
			if other != nil && worker != e.call.worker {
				s.overlapping++
				break
			}
		}
	}
}
