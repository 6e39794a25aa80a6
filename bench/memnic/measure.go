//go:build linux

package memnic

import (
	"context"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/affinity"
)

// DefaultFrames is Options.Frames if it is zero: what the receive ring of a NIC's queue has by default, between 512 (ixgbe, i40e)
// and 2,048 (ice). It matters: all headers lie at the same place in pages of 4 KiB, so beyond some ten frames they evict each
// other from a first-level cache, and beyond some hundred from a second-level one. With these numbers a worker finds them where a
// NIC that writes to the cache (DDIO) leaves them, in the last level; with many more it would look for them in memory.
const DefaultFrames = 1024

// Options say what to measure.
type Options struct {
	Cases    []Case
	Duration time.Duration // beyond making the tables; there is one round at least
	Frames   int           // in circulation on each NIC, a power of two; 0: DefaultFrames
}

// Measurement is what was measured.
type Measurement struct {
	Frames int
	Busy   string // see Table.Notes; empty: the machine had nothing else to do
	runs   []*run
}

// run is one case, and what it took.
type run struct {
	Case
	node    *node
	clock   time.Duration // see clockCost
	missing string        // why it cannot be measured
	rounds  []float64     // ns a packet or read, of each worker's own time
	packets uint64
	allocs  uint64
	seed    uint64 // of the next reads: what the last ones read is in it, so that they are made
}

// Measure measures. What the machine has no memory, privilege or CPUs for is missing, with the reason. On an error, or when ctx is
// done, nothing stays behind.
func Measure(ctx context.Context, o Options) (*Measurement, error) {
	if o.Frames == 0 {
		o.Frames = DefaultFrames
	}
	if bits.OnesCount(uint(o.Frames)) != 1 || o.Frames < 64 || o.Frames > 1<<16 {
		return nil, fmt.Errorf("%d frames in circulation: expected a power of two from 64 to 65536", o.Frames)
	}
	if len(o.Cases) == 0 {
		return nil, fmt.Errorf("nothing to measure: no combination of what was named has a meaning (replies are those of nat)")
	}
	cpus, err := affinity.Allowed()
	if err != nil {
		return nil, err
	}
	m := &Measurement{Frames: o.Frames, Busy: busy()}
	workers, clock := 1, clockCost()
	for _, c := range o.Cases {
		if err := c.validate(o.Frames / burstShare); err != nil {
			return nil, err
		}
		r := &run{Case: c, clock: clock}
		if c.Workers > len(cpus) {
			r.missing = fmt.Sprintf("needs %d CPUs, there are %d", c.Workers, len(cpus))
		} else {
			workers = max(workers, c.Workers)
		}
		m.runs = append(m.runs, r)
	}
	err = onThread(cpus, workers, func() error {
		c, err := newCrew(cpus[1:workers])
		if err != nil {
			return err
		}
		defer c.close()
		return m.measure(ctx, c, o.Duration)
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// clockCost is what reading the clock twice adds to what is between: the least that was seen.
func clockCost() time.Duration {
	least := time.Second
	for range 1000 {
		start := time.Now()
		least = min(least, time.Since(start))
	}
	return least
}

// measure makes the nodes and goes round. It runs on the first worker's thread.
func (m *Measurement) measure(ctx context.Context, c *crew, duration time.Duration) (err error) {
	nodes := map[nodeKey]*node{}
	defer func() {
		for _, n := range nodes {
			if cerr := n.close(); err == nil {
				err = cerr
			}
		}
	}()
	if err := m.makeNodes(ctx, nodes); err != nil {
		return err
	}
	for deadline := time.Now().Add(duration); ; {
		for _, r := range m.runs {
			if r.missing != "" {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := r.round(c); err != nil {
				return fmt.Errorf("%s: %w", r.name(), err)
			}
		}
		if time.Now().After(deadline) {
			return nil
		}
	}
}

// makeNodes makes a node for all cases of a key. A case whose node cannot be made is missing.
func (m *Measurement) makeNodes(ctx context.Context, nodes map[nodeKey]*node) error {
	refused := map[nodeKey]string{}
	for _, r := range m.runs {
		key := r.Case.node()
		if r.missing == "" && nodes[key] == nil && refused[key] == "" {
			if err := ctx.Err(); err != nil {
				return err
			}
			var cases []Case
			for _, other := range m.runs {
				if other.Case.node() == key && other.missing == "" {
					cases = append(cases, other.Case)
				}
			}
			n, err := newNode(key, cases, m.Frames)
			if err != nil {
				refused[key] = err.Error()
			} else {
				nodes[key] = n
			}
		}
		if r.missing == "" {
			r.node, r.missing = nodes[key], refused[key]
		}
	}
	if len(nodes) == 0 && len(refused) > 0 {
		return fmt.Errorf("nothing can be measured: %s: %s", m.runs[0].name(), m.runs[0].missing)
	}
	return nil
}

// Bursts of a round, and reads of a round, each at most some milliseconds.
const (
	bursts           = 16
	independentReads = 1 << 16
	dependentReads   = 1 << 13
)

// round measures a case for a moment.
func (r *run) round(c *crew) error {
	if r.Mode == Memory {
		r.read()
		return nil
	}
	if r.Mode != Swap {
		if err := r.node.apply(r.setting()); err != nil {
			return err
		}
	}
	lanes := r.node.lanes
	if r.floods() {
		lanes = r.node.floods
	}
	s := &session{run: r, parts: make([]part, r.Workers)}
	s.together.members = int32(r.Workers)
	for i := range s.parts {
		s.parts[i] = part{session: s, lane: lanes[i], ended: make(chan struct{})}
		s.parts[i].start = s.parts[i].run
	}
	runtime.ReadMemStats(&s.before)
	for i := 1; i < r.Workers; i++ {
		c.asked[i-1] <- s.parts[i].start
	}
	s.parts[0].run()
	for i := range s.parts {
		<-s.parts[i].ended
	}
	runtime.ReadMemStats(&s.after)
	var nanos float64
	for i := range s.parts {
		p := &s.parts[i]
		if p.err != nil {
			return p.err
		}
		nanos += float64(p.took.Nanoseconds()) / float64(p.packets) / float64(r.Workers)
		r.packets += uint64(p.packets)
	}
	r.rounds = append(r.rounds, nanos)
	r.allocs += s.after.Mallocs - s.before.Mallocs
	return nil
}

// session is one round of a case: its workers, all at the same time.
type session struct {
	run           *run
	together      barrier
	parts         []part
	before, after runtime.MemStats
}

// part is one worker of a session.
type part struct {
	session *session
	lane    *lane
	start   func() // run, made a value before allocations are counted
	packets int
	took    time.Duration
	err     error
	ended   chan struct{}
}

// run forwards some bursts; the first is not counted, since it finds the caches full of another case's memory.
func (p *part) run() {
	defer close(p.ended)
	l, r := p.lane, p.session.run
	work := l.forward
	if r.Mode == Swap {
		work = l.swap
	}
	first := p == &p.session.parts[0]
	running := first && slices.Contains([]string{Hits, Limits, New10}, r.Mix)
	for i := range 1 + bursts {
		l.write(r.Mix)
		l.deliver(r.Batch)
		if running {
			l.node.clock.run()
		}
		p.session.together.wait()
		start := time.Now()
		n := work()
		took := time.Since(start)
		p.session.together.wait()
		if running {
			l.node.clock.stop()
		}
		if err := l.collect(n); p.err == nil {
			p.err = err
		}
		if r.Mix != Evict {
			l.forget()
		}
		if i > 0 {
			p.packets, p.took = p.packets+n, p.took+took-r.clock
		}
	}
}

// read times reads of random lines of the node's table.
func (r *run) read() {
	lines := uint64(len(r.node.words)/8) - 1
	count, read := independentReads, readIndependent
	if r.Mix == Dependent {
		count, read = dependentReads, readDependent
	}
	r.seed = read(r.node.words, lines, r.seed, count/8) // some, to get its pages known
	start := time.Now()
	r.seed = read(r.node.words, lines, r.seed, count)
	took := time.Since(start)
	r.rounds = append(r.rounds, float64(took.Nanoseconds())/float64(count))
	r.packets += uint64(count)
}

// A linear congruential generator (Knuth's MMIX); its upper bits choose the line.
const (
	multiplier = 6364136223846793005
	increment  = 1442695040888963407
)

// readIndependent reads a word of each of so many random lines; which they are does not depend on what is read.
func readIndependent(words []uint64, mask, seed uint64, count int) (sum uint64) {
	for range count {
		seed = seed*multiplier + increment
		sum += words[(seed>>32&mask)*8]
	}
	return sum + seed
}

// readDependent reads likewise, but each line is known only when the one before has been read.
func readDependent(words []uint64, mask, seed uint64, count int) uint64 {
	for range count {
		seed = (seed+words[(seed>>32&mask)*8])*multiplier + increment
	}
	return seed
}
