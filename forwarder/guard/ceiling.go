package guard

import (
	"sync/atomic"
	"time"
)

const (
	maxLease  = 64                          // events that a worker takes at once, at the most
	leaseSpan = uint64(1e6) << fraction     // and not more than come in this time: 1 ms, in units of a Rate
	leaseLife = int64(4 * time.Millisecond) // after which what is left of a lease is void
)

// Ceiling limits all events of one kind, of whatever source, to one rate. Workers take some events from it at once, so that they
// do not fight for its word: at first one, and twice as many each time that they were used up within 4 ms, to at most 64 and
// at most what the rate allows in 1 ms. What is not used within 4 ms is lost.
//
// So a Ceiling of a rate R admits in any time T at most what GCRA does, R × T + R × burst + 1, and beside that what workers had
// in hand when T began: less than 64 each, and less than a 1,000th of R each; below 2,000 events a second nothing. A worker whose
// events stop loses as many, once. Over the limit, leases are as small as what is left, hence single events.
type Ceiling struct {
	leases []lease // one each worker
	_      [128]byte
	// arrival is the theoretical arrival time in units of a Rate; all workers change it, by compare-and-swap. It wraps after
	// 2.3 years, and what is more than maxAhead in the future is in the past.
	arrival atomic.Uint64
	_       [120]byte
}

// lease is what a worker has in hand; only that worker reads and writes it.
type lease struct {
	left, size uint64
	until      int64 // ns
	_          [104]byte
}

// NewCeiling returns a ceiling for workers with numbers from 0 up to this number, exclusive.
func NewCeiling(workers int) *Ceiling { return &Ceiling{leases: make([]lease, workers)} }

// Admit counts an event against the ceiling and says whether it is below. The rate may be another one each time, as after a
// change of the configuration. now is ns of a monotonic clock, the same for all workers. Each worker calls it with its own number
// only.
func (c *Ceiling) Admit(worker int, r Rate, now int64) bool {
	if r.Interval == 0 {
		return true
	}
	l := &c.leases[worker]
	if l.left > 0 && now < l.until {
		l.left--
		return true
	}
	return c.take(l, r, now)
}

// take gets a new lease, and uses one event of it.
func (c *Ceiling) take(l *lease, r Rate, now int64) bool {
	size := uint64(1)
	if now < l.until { // it was used up in time
		size = min(2*l.size, maxLease, max(1, leaseSpan/r.Interval))
	}
	t := uint64(now) << fraction
	for {
		old := c.arrival.Load()
		ahead := old - t
		if ahead > maxAhead {
			ahead = 0
		}
		if ahead > r.Tolerance {
			l.left, l.until = 0, 0
			return false
		}
		// No more than the tolerance leaves room for: the word itself is plain GCRA, in steps of several events.
		size = min(size, (r.Tolerance-ahead)/r.Interval+1)
		if c.arrival.CompareAndSwap(old, t+ahead+size*r.Interval) {
			l.left, l.size, l.until = size-1, size, now+leaseLife
			return true
		}
	}
}
