package control

import (
	"context"
	"log/slog"
	"time"
)

// What has happened, in a ring of bounded memory.

const (
	maxEvents  = 4096 // that the Book remembers
	maxHistory = 8    // that it remembers of each backend beside these
)

// Kind is what an event is about.
type Kind string

// The kinds of events.
const (
	KindHealth  Kind = "health"  // a backend: what health makes of it
	KindHand    Kind = "hand"    // a backend: what an operator set by hand, and the end of a drain's time
	KindService Kind = "service" // fail open, quorum, what is ignored
	KindFlood   Kind = "flood"   // floods of SYNs, overload
	KindConfig  Kind = "config"  // reloads
	KindHealthd Kind = "healthd" // who reports health
)

// Kinds are all kinds of events.
var Kinds = []Kind{KindHealth, KindHand, KindService, KindFlood, KindConfig, KindHealthd}

// Event is one thing that has happened.
type Event struct {
	Seq      uint64    `json:"seq"`  // 1 is the first since the daemon started
	Time     time.Time `json:"time"` // of day
	Kind     Kind      `json:"kind"`
	Service  string    `json:"service,omitempty"`
	Backend  string    `json:"backend,omitempty"`
	From     string    `json:"from,omitempty"` // how it stood: of a backend, a phase
	To       string    `json:"to,omitempty"`
	Cause    Cause     `json:"cause,omitempty"`
	Evidence string    `json:"evidence,omitempty"` // in words
}

// events is a ring of the last ones. Its Book has the lock.
type events struct {
	ring   []Event // event n is at (n-1) % maxEvents
	last   uint64  // Seq of the newest; 0: there was none
	counts map[Kind]uint64
	news   chan struct{} // closed and replaced when there is another one
}

func newEvents() events {
	return events{counts: make(map[Kind]uint64), news: make(chan struct{})}
}

// add numbers an event and keeps it.
func (r *events) add(e Event) Event {
	r.last++
	e.Seq = r.last
	if i := (e.Seq - 1) % maxEvents; i < uint64(len(r.ring)) {
		r.ring[i] = e
	} else {
		r.ring = append(r.ring, e)
	}
	r.counts[e.Kind]++
	close(r.news)
	r.news = make(chan struct{})
	return e
}

// since returns the events after number n that f leaves in, and how many are no longer there.
func (r *events) since(n uint64, f EventFilter) (list []Event, missed uint64) {
	oldest := r.last - uint64(len(r.ring)) // the last one that is not there
	if n < oldest {
		missed = oldest - n
	}
	list = []Event{}
	for seq := max(n, oldest) + 1; seq <= r.last; seq++ {
		if e := &r.ring[(seq-1)%maxEvents]; f.in(e) {
			list = append(list, *e)
		}
	}
	return list, missed
}

func (f EventFilter) in(e *Event) bool {
	return (f.Service == "" || e.Service == f.Service) && (f.Backend == "" || e.Backend == f.Backend)
}

// Events returns what has happened after event after of the daemon's start boot, as far as f leaves it in; with another
// boot, or none, all that is known. If there is nothing, it waits until there is, or ctx ends.
func (b *Book) Events(ctx context.Context, boot string, after uint64, f EventFilter) Events {
	if boot != b.boot {
		after = 0
	}
	answer := Events{Boot: b.boot}
	for {
		b.mu.Lock()
		list, missed := b.events.since(after, f)
		last, news := b.events.last, b.events.news
		b.mu.Unlock()
		answer.Events, answer.Last, after = list, last, last
		answer.Missed += missed
		if len(list) > 0 || answer.Missed > 0 {
			return answer
		}
		select {
		case <-news:
		case <-ctx.Done():
			return answer
		}
	}
}

// Happened keeps an event that somebody else has seen and logged. Its time is now.
func (b *Book) Happened(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.happened(e, time.Now())
}

// happened keeps an event. The lock is held.
func (b *Book) happened(e Event, now time.Time) {
	e.Time = now.Round(0)
	e = b.events.add(e)
	if e.Backend == "" {
		return
	}
	if known := b.ledger.backend(BackendKey{e.Service, e.Backend}); known != nil {
		if len(known.history) == maxHistory {
			copy(known.history, known.history[1:])
			known.history = known.history[:maxHistory-1]
		}
		known.history = append(known.history, e)
	}
}

// tell keeps what has changed, says it in the log, and gives notice if Changed has something. The lock is held.
func (b *Book) tell(changes []change, now time.Time) {
	for i := range changes {
		c := &changes[i]
		level := slog.LevelInfo
		if c.out {
			level = slog.LevelWarn
		}
		if c.Kind == KindHealth {
			b.log.Log(context.Background(), level, "backend health", "service", c.Service, "backend", c.Backend,
				"was", c.From, "is", c.To, "cause", string(c.Cause), "evidence", c.Evidence)
			b.dirty = true
		} else {
			b.log.Log(context.Background(), level, "service health", "service", c.Service,
				"was", c.From, "is", c.To, "cause", string(c.Cause), "evidence", c.Evidence)
		}
		b.happened(c.Event, now)
	}
	if b.ledger.news {
		b.ledger.news = false
		b.notice()
	}
}
