package forwarder

import (
	"context"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
)

const (
	// sweepPeriod is how long a full sweep of the table takes; of a large one, as long as it takes to pass over so many lines
	// a second. It must stay below 20 minutes (package conntrack), which the largest table does.
	sweepPeriod = 10 * time.Second
	sweepLines  = 1 << 20
	// leastSteps is in how many steps at least, and stepLines how many lines one has at most. More would wake an idle node more
	// often, fewer would take longer at a time.
	leastSteps = 20
	stepLines  = 1 << 18
	// limitRounds is in how many rounds the words of the limits are swept once, which must be within an hour (package guard).
	limitRounds = 60
)

// roundTime is how long a full sweep takes.
func (e *Engine) roundTime() time.Duration {
	return max(sweepPeriod, time.Duration(e.table.Lines()/sweepLines)*time.Second)
}

// sweepSteps is in how many steps the table is swept.
func (e *Engine) sweepSteps() int { return max(leastSteps, e.table.Lines()/stepLines) }

// Sweep removes expired words from the flow table, all the time, a little at a time, until ctx is done. After each full
// round it takes back the slots that nothing names any more. One goroutine calls it.
func (e *Engine) Sweep(ctx context.Context) {
	timer := time.NewTicker(e.roundTime() / time.Duration(e.sweepSteps()))
	defer timer.Stop()
	for {
		stop := e.sweepRound(func() bool {
			select {
			case <-ctx.Done():
				return false
			case <-timer.C:
				return true
			}
		})
		if stop {
			return
		}
	}
}

// SweepNow sweeps the whole table at once, as one round of Sweep does in its time. It is for those whose clock is not the
// machine's: simulations and tests. Not while Sweep runs.
func (e *Engine) SweepNow() { e.sweepRound(func() bool { return true }) }

// sweepRound makes one round, asking before each step whether to go on.
func (e *Engine) sweepRound(next func() bool) (stopped bool) {
	round := e.beginRound()
	for line := 0; ; {
		if !next() {
			return true
		}
		if line = e.sweepStep(round, line); line == 0 {
			break
		}
	}
	e.endRound(round)
	return false
}

// sweepRound is one walk over the whole table.
type sweepRound struct {
	census conntrack.Census
	began  int64  // CLOCK_MONOTONIC ns
	acked  uint64 // the oldest snapshot that any worker used when the round began
}

func (e *Engine) beginRound() *sweepRound {
	e.mu.Lock()
	defer e.mu.Unlock()
	acked := e.generation
	for _, w := range e.workers {
		acked = min(acked, w.acked.Load())
	}
	return &sweepRound{
		census: conntrack.Census{Slots: make([]conntrack.SlotCensus, len(e.slots.states))},
		began:  e.clock(),
		acked:  acked,
	}
}

func (e *Engine) sweepStep(r *sweepRound, line int) (next int) {
	steps := e.sweepSteps()
	if l := e.limiter; l != nil {
		e.limitLine, _ = l.Sweep(e.limitLine, l.Lines()/(steps*limitRounds)+1, e.clock())
	}
	lines := (e.table.Lines() + steps - 1) / steps
	return e.table.Sweep(line, lines, conntrack.Tick(e.clock()), e.snapshot.Load().lives, &r.census)
}

func (e *Engine) endRound(r *sweepRound) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.census = r.census
	if e.onSwept != nil {
		e.onSwept(e.clock())
	}
	done := e.slots.swept(r.census.Slots, r.acked, r.began)
	if len(done) == 0 {
		return
	}
	for _, slot := range done {
		st := &e.slots.states[slot]
		for _, s := range e.services {
			if s.number == st.key.service {
				c := e.sumSlot(slot)
				c.sub(st.base)
				s.retired.add(c)
			}
		}
		e.slots.quarantine(slot, e.clock(), e.generation+1)
	}
	e.rebuild()
}
