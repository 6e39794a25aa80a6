//go:build linux

package sim

import (
	"fmt"
	"math/bits"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
)

const (
	tableFlows    = 4_000_000 // "flows: 4M"
	tableSeconds  = 60        // the table is in its steady state after some 40: closing words live for 30
	flowSeconds   = 5         // life of a flow: an ACK, a packet a second, a FIN at the end
	stepsASecond  = 10
	longLived     = 10_000
	longPeriod    = 10 // seconds between two packets of a long-lived flow
	lostBound     = 0.0001
	tableSlots    = 100
	prefetchBatch = 64 // as many hashes as a worker looks up at a time
)

// tableLife is how long words of a TCP service live, as forwarder has it.
var tableLife = conntrack.Life{
	conntrack.Probation:   conntrack.Ticks(2 * time.Hour),
	conntrack.Established: conntrack.Ticks(2 * time.Hour),
	conntrack.Closing:     conntrack.Ticks(30 * time.Second),
}

// tableRow is what a load does to the flow table.
type tableRow struct {
	rate     int                        // new flows a second
	scale    int                        // everything is divided by it, the table too
	packets  int                        // of short flows, but for their first ones, in the second half
	missed   int                        // that found no word
	outcomes [conntrack.NumOutcomes]int // of inserts
	fill     float64                    // of the table's words, at the end
	long     int                        // long-lived flows that began before the load came
	late     int                        // long-lived flows that began under the load
	lost     int                        // of both, those that lost their word once they were established
	young    int                        // of the late ones, those that lost it before
}

// deathRow is what the death of a node, whose flows all come here at once, does to the flow table.
type deathRow struct {
	scale        int
	own, came    int // flows that were here, flows that came
	ownKept      int // of those, with a word when all had come
	cameKept     int
	ownKeptLate  int // when all had sent packets in later ticks
	cameKeptLate int
	words        int // that the table has
}

// scaleFor is what to divide the table's load by, so that it fits a run with this many flows: a power of two, for the size of a
// table is one.
func scaleFor(flows int) int {
	if flows >= 1_000_000 {
		return 1
	}
	return 1 << bits.Len(uint(1_000_000/flows))
}

// tableLoad is a flow table under load; its clock is simulated.
type tableLoad struct {
	seed  uint64
	table *conntrack.Table
	words []uint64
	lives []conntrack.Life
	now   int64
	swept int

	hashes  [prefetchBatch]uint64
	indices [prefetchBatch]int
	found   [prefetchBatch]conntrack.Word
}

func newTableLoad(flows int, seed uint64) (*tableLoad, error) {
	n, err := conntrack.WordsFor(uint64(flows))
	if err != nil {
		return nil, err
	}
	l := &tableLoad{seed: seed, words: make([]uint64, n), lives: make([]conntrack.Life, tableSlots), now: bootTime}
	for i := range l.lives {
		l.lives[i] = tableLife
	}
	l.table, err = conntrack.New(l.words)
	return l, err
}

func (l *tableLoad) tick() uint16 { return conntrack.Tick(l.now) }

// step lets a step's time go by; the sweep does its part, a full round in 10 s as in the engine.
func (l *tableLoad) step() {
	l.now += int64(time.Second / stepsASecond)
	var c conntrack.Census
	lines := l.table.Lines()/(int(sweepEvery/int64(time.Second))*stepsASecond) + 1
	l.swept = l.table.Sweep(l.swept, lines, l.tick(), l.lives, &c)
}

// packets sends one packet of each of the flows from..to-1, as a worker treats it: a word is refreshed, and a flow without one
// gets one unless the packet is its last. It returns how many found a word. insert, if not nil, is told of inserts.
func (l *tableLoad) packets(from, to int, last bool, insert func(conntrack.Outcome)) (found int) {
	tick := l.tick()
	for ; from < to; from += prefetchBatch {
		n := min(to-from, prefetchBatch)
		for i := range n {
			l.hashes[i] = l.hash(from + i)
		}
		l.table.Prefetch(l.hashes[:n])
		l.table.LookupBatch(l.hashes[:n], l.indices[:n], l.found[:n])
		for i := range n {
			w, slot := l.found[i], uint32((from+i)%tableSlots)
			if w != 0 && !tableLife.Expired(w, tick) && w.Slot() == slot {
				found++
				l.table.Refresh(l.indices[i], w, tick, last)
				continue
			}
			if last {
				continue
			}
			o := l.table.Insert(l.hashes[i], slot, tick, conntrack.Probation, l.lives)
			if insert != nil {
				insert(o)
			}
		}
	}
	return found
}

// hash is the flow hash of a flow; flows are numbered in the order of their opening, long-lived ones from longFirst on.
func (l *tableLoad) hash(flow int) uint64 { return mix(mix(uint64(flow)+1) ^ l.seed) }

const longFirst = 1 << 40

// runTableLoad has new flows of five seconds come at a rate, beside long-lived ones: half of them before, half of them under load.
func runTableLoad(rate, flows int, seed uint64) (row tableRow, err error) {
	row = tableRow{rate: rate, scale: scaleFor(flows), long: longLived, late: longLived}
	row.long /= row.scale
	row.late /= row.scale
	l, err := newTableLoad(tableFlows/row.scale, seed)
	if err != nil {
		return row, err
	}
	perStep := rate / row.scale / stepsASecond
	watch := longWatch{began: make([]bool, row.long+row.late), established: make([]bool, row.long+row.late), lost: make([]bool, row.long+row.late), young: make([]bool, row.long+row.late)}
	// Each of the first long-lived flows has its own step of the period.
	const period = longPeriod * stepsASecond
	talk := func(step int) { watch.packets(l, row.long*(step%period)/period, row.long*(step%period+1)/period) }
	for step := range 3 * period { // they become established, without other load
		talk(step)
		l.step()
	}
	steps, half := tableSeconds*stepsASecond, tableSeconds*stepsASecond/2
	count := func(o conntrack.Outcome) { row.outcomes[o]++ }
	for step := range steps {
		l.packets(step*perStep, (step+1)*perStep, false, count)
		for second := 1; second <= flowSeconds; second++ {
			opened := step - second*stepsASecond
			if opened < 0 {
				continue
			}
			found := l.packets(opened*perStep, (opened+1)*perStep, second == flowSeconds, count)
			if step >= half {
				row.packets += perStep
				row.missed += perStep - found
			}
		}
		talk(step)
		// The late ones begin over ten seconds of the steady state, and send a packet a second.
		const beginnings = 10 * stepsASecond
		for j := range min(step-half+1, beginnings) {
			if (step-half-j)%stepsASecond == 0 {
				watch.packets(l, row.long+row.late*j/beginnings, row.long+row.late*(j+1)/beginnings)
			}
		}
		l.step()
	}
	for i := range watch.lost {
		if watch.lost[i] {
			row.lost++
		}
		if watch.young[i] {
			row.young++
		}
	}
	row.fill = float64(used(l.words)) / float64(len(l.words))
	return row, nil
}

// longWatch looks after long-lived flows, by number.
type longWatch struct {
	began       []bool
	established []bool // a word was found that is
	lost        []bool // then none was found
	young       []bool // none was found before that, but at the flow's first packet
}

// packets sends one packet of each of the long-lived flows from..to-1.
func (w *longWatch) packets(l *tableLoad, from, to int) {
	for i := from; i < to; i++ {
		_, word := l.table.Lookup(l.hash(longFirst + i))
		switch {
		case word.State() == conntrack.Established:
			w.established[i] = true
		case word == 0 && w.established[i]:
			w.lost[i] = true
		case word == 0 && w.began[i]:
			w.young[i] = true
		}
		w.began[i] = true
	}
	l.packets(longFirst+from, longFirst+to, false, nil)
}

// runDeath fills the table with established flows, as many as it is made for, and has as many established flows of another node
// come within one tick.
func runDeath(flows int, seed uint64) (row deathRow, err error) {
	row = deathRow{scale: scaleFor(flows)}
	row.own = tableFlows / row.scale
	row.came = row.own
	l, err := newTableLoad(row.own, seed)
	if err != nil {
		return row, err
	}
	row.words = len(l.words)
	nextTick := func() {
		for t := l.tick(); l.tick() == t; {
			l.step()
		}
	}
	all := row.own + row.came
	for range 3 {
		l.packets(0, row.own, false, nil)
		nextTick()
	}
	l.packets(row.own, all, false, nil)
	row.ownKept, row.cameKept = l.kept(0, row.own), l.kept(row.own, all)
	for range 3 {
		nextTick()
		l.packets(0, all, false, nil)
	}
	row.ownKeptLate, row.cameKeptLate = l.kept(0, row.own), l.kept(row.own, all)
	return row, nil
}

// kept counts the flows from..to-1 that have a word.
func (l *tableLoad) kept(from, to int) (n int) {
	for ; from < to; from++ {
		if _, w := l.table.Lookup(l.hash(from)); w != 0 && w.Slot() == uint32(from%tableSlots) {
			n++
		}
	}
	return n
}

// name is that of the row's scenario.
func (row *tableRow) name() string { return rateName(row.rate) }

func rateName(rate int) string { return fmt.Sprintf("table-%dk-new-flows", rate/1000) }

// judge is the row as flows and as a promise: flows are the long-lived ones.
func (row *tableRow) judge() (Result, Verdict) {
	r := Result{Scenario: row.name(), Scheme: "sluice", Flows: row.long + row.late, Broken: row.lost}
	return r, lostVerdict(r, "active long-lived flows that lose their words")
}

// judge is the row as flows and as a promise: flows are those that were here.
func (row *deathRow) judge() (Result, Verdict) {
	r := Result{Scenario: deathName, Scheme: "sluice", Flows: row.own, Broken: row.own - min(row.ownKept, row.ownKeptLate)}
	return r, lostVerdict(r, "flows that were here and lose their words")
}

const deathName = "table-node-death"

func lostVerdict(r Result, promise string) Verdict {
	share := float64(r.Broken) / float64(r.Flows)
	return Verdict{Scenario: r.Scenario, Promise: promise, Measured: percent(share), Bound: "<= " + percent(lostBound), OK: share <= lostBound}
}
