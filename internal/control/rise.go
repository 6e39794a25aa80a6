package control

import (
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/maglev"
)

// Slow start: a backend that begins to take new flows in a running service takes few at first. The ledger finds out who
// begins by comparing what backends took before a change of any fact with what they take after it.

// taking returns the backends that take new flows at the time now, with their addresses. l may be nil.
func (l *ledger) taking(now time.Time) map[BackendKey]netip.Addr {
	if l == nil {
		return nil
	}
	list := make(map[BackendKey]netip.Addr, len(l.index))
	for i := range l.services {
		s := &l.services[i]
		admits, _ := s.admit(now)
		for j, b := range s.backends {
			if admits[j].State() == maglev.Up {
				list[BackendKey{s.name, b.name}] = b.address
			}
		}
	}
	return list
}

// rise begins the slow starts of all services after a change at the time now. before is what taking returned before it.
func (l *ledger) rise(before map[BackendKey]netip.Addr, now time.Time) {
	for i := range l.services {
		l.services[i].rise(before, now)
	}
}

func (s *ledgerService) rise(before map[BackendKey]netip.Addr, now time.Time) {
	admits, failOpen := s.admit(now)
	for i, b := range s.backends {
		up := admits[i].State() == maglev.Up
		switch took := before[BackendKey{s.name, b.name}] == b.address; {
		case !up:
			b.rose = time.Time{}
		case !took && !failOpen && !b.fresh && s.slowStart > 0:
			b.rose = now
		}
	}
	s.begin()
}

// begin notes which backends something is known of now: from here on they are like those that were added later.
func (s *ledgerService) begin() {
	for _, b := range s.backends {
		b.fresh = b.fresh && b.health.State == StateUnknown
	}
}

// rising returns how far b, a backend of s, is through its slow start: 0 to 1.
func (s *ledgerService) rising(b *ledgerBackend, now time.Time) float64 {
	if elapsed := now.Sub(b.rose); !b.rose.IsZero() && elapsed < s.slowStart {
		return max(0, elapsed.Seconds()/s.slowStart.Seconds())
	}
	return 1
}

// settle ends the slow starts that are over at the time now. It says whether there were such, or are others still.
func (l *ledger) settle(now time.Time) (rising bool) {
	for i := range l.services {
		s := &l.services[i]
		for _, b := range s.backends {
			if b.rose.IsZero() {
				continue
			}
			rising = true
			if s.rising(b, now) == 1 {
				b.rose = time.Time{}
			}
		}
	}
	return rising
}
