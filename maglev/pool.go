package maglev

import (
	"fmt"
	"sync/atomic"
)

// Slots is what is known of slots now, indexed by slot. Others write it, atomically; choosing reads it. Both lists reach
// past every slot of every pool that is used with them.
type Slots struct {
	Admit []atomic.Uint32 // Admit words
	Flows []atomic.Int32  // how many words in the flow table name the slot; only LeastConn and P2C read it
}

// Scheduler is how a new flow gets its backend.
type Scheduler uint8

// The schedulers. All give new flows only to backends that take them, and in proportion to weights.
const (
	Maglev    Scheduler = iota // by the hash of the flow
	WRR                        // in turns
	LeastConn                  // to the backend with the fewest flows for its weight
	P2C                        // to the one of two candidates by hash that has fewer flows for its weight
	Source                     // like Maglev; the caller's hash is of the client's address alone
)

// Agrees says whether the choice depends on the hash, the table and the admit words alone, so that it is alike on every
// node that has the same.
func (s Scheduler) Agrees() bool { return s == Maglev || s == Source }

// String returns the scheduler's name in the configuration: maglev, wrr, least-conn, p2c or source.
func (s Scheduler) String() string {
	switch s {
	case Maglev:
		return "maglev"
	case WRR:
		return "wrr"
	case LeastConn:
		return "least-conn"
	case P2C:
		return "p2c"
	case Source:
		return "source"
	}
	return fmt.Sprintf("scheduler(%d)", uint8(s))
}

// Pool is the backends of one service: their table, the slot of each, and how new flows are given out. It is immutable
// but for what each worker keeps in it for itself.
type Pool struct {
	entries   []uint16 // of table
	slots     []uint32 // by index of table
	scheduler Scheduler
	turns     []uint32 // WRR: slots
	cursors   []cursor // WRR: by worker
	loads     []loads  // LeastConn: by worker
	table     *Table
}

// NewPool returns the pool of table t, whose backend with index i has slots[i], for workers numbered from zero. The
// caller must not change slots afterwards. It panics if t has more or fewer backends than there are slots, or if there is
// no worker.
func NewPool(t *Table, slots []uint32, s Scheduler, workers int) *Pool {
	if len(slots) != len(t.names) || workers < 1 {
		panic(fmt.Sprintf("maglev: pool of %d slots for %d backends, and %d workers", len(slots), len(t.names), workers))
	}
	p := &Pool{entries: t.entries, slots: slots, scheduler: s, table: t}
	if len(slots) == 0 {
		return p
	}
	switch s {
	case WRR:
		p.turns = slotTurns(t, slots)
		p.cursors = newCursors(len(p.turns), workers)
	case LeastConn:
		p.loads = newLoads(t, slots, workers)
	}
	return p
}

// Table returns the pool's table.
func (p *Pool) Table() *Table { return p.table }

// Slots returns the slots, by index of the table. The caller must not change it.
func (p *Pool) Slots() []uint32 { return p.slots }

// Scheduler returns how new flows are given out.
func (p *Pool) Scheduler() Scheduler { return p.scheduler }

// New returns the slot for a new flow, as a SYN opens one, by the pool's scheduler. worker is the caller's number, less
// than the workers that NewPool was told of; no two goroutines may use one number at once. now is CLOCK_MONOTONIC in
// nanoseconds. ok is false if no backend takes new flows.
func (p *Pool) New(key, hash uint64, s *Slots, worker int, now int64) (slot uint32, ok bool) {
	switch p.scheduler {
	case WRR:
		return p.newByTurn(key, hash, s, worker)
	case LeastConn:
		return p.newByLoad(key, hash, s, worker, now)
	case P2C:
		return p.newOfTwo(key, hash, s)
	}
	return p.newByHash(key, hash, s)
}
