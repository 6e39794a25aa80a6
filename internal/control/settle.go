package control

import (
	"fmt"
	"time"

	"github.com/sluice-lb/sluice/maglev"
)

// Settling a service: whatever changes a fact about a backend touches it, and settle then finds out what its service makes
// of that. Only services of which something has changed are settled, so one change costs the same however many services
// there are.

// change is something that an operator wants to know of: it becomes an event and a line in the log.
type change struct {
	Event
	out     bool // a backend went out of rotation, or a service lost something
	nothing bool // what there was before is not known: nothing has changed
}

// The words for how a service stands, in Event.From and Event.To.
const (
	FailOpen         = "fail_open"         // health is ignored
	HealthCounts     = "health_counts"     // no longer
	ReadinessIgnored = "readiness_ignored" // none of those that live is ready
	ReadinessCounts  = "readiness_counts"
	EjectionsIgnored = "ejections_ignored" // all that live are ejected
	EjectionsCount   = "ejections_count"
	QuorumLost       = "quorum_lost" // fewer live than the service wants
	QuorumMet        = "quorum_met"
)

// fact is what is known about b, a backend of s, at the time now.
func (s *ledgerService) fact(b *ledgerBackend, now time.Time) Facts {
	return Facts{
		Weight: b.weight, Hand: b.hand.state(), Maintenance: !b.hand.maintenance.IsZero(), Health: b.health.State,
		Unready: b.health.Unready != "", Asks: b.health.Asks, Ejected: now.Before(b.ejected), Rising: s.rising(b, now),
	}
}

// touch tells that something about a backend has changed.
func (s *ledgerService) touch(i int, now time.Time) {
	s.facts[i] = s.fact(&s.backends[i], now)
	s.touched = append(s.touched, i)
}

func (s *ledgerService) touchAll(now time.Time) {
	for i := range s.backends {
		s.touch(i, now)
	}
}

func (s *ledgerService) policy(now time.Time) Policy {
	return Policy{Waited: s.waited(now), PanicThreshold: s.threshold}
}

// at returns what the backends of s would take at the time now. It changes nothing. s may be nil.
func (s *ledgerService) at(now time.Time) []maglev.Admit {
	if s == nil {
		return nil
	}
	facts := make([]Facts, len(s.backends))
	for i := range s.backends {
		facts[i] = s.fact(&s.backends[i], now)
	}
	admits, _ := Admit(nil, facts, s.policy(now))
	return admits
}

// rising returns how far b, a backend of s, is through its slow start: 0 to 1.
func (s *ledgerService) rising(b *ledgerBackend, now time.Time) float64 {
	if elapsed := now.Sub(b.rose); !b.rose.IsZero() && elapsed < s.slowStart {
		return max(0, elapsed.Seconds()/s.slowStart.Seconds())
	}
	return 1
}

// timed says whether something of s changes as time goes by.
func (s *ledgerService) timed() bool { return s.opening || s.timers > 0 }

// pass settles a service of which something changes as time goes by.
func (l *ledger) pass(s *ledgerService, now time.Time) []change {
	if !s.timed() {
		return nil
	}
	s.touchAll(now)
	return l.settle(s, now, CauseTime)
}

// settle brings what s has found out about its backends up to date, and returns what has changed. cause is what touched
// them; a report is CauseProbe.
func (l *ledger) settle(s *ledgerService, now time.Time, cause Cause) (changes []change) {
	policy, before := s.policy(now), s.verdict
	l.scratch, s.verdict = Admit(l.scratch[:0], s.facts, policy)
	if s.rise(l.scratch, now) {
		l.scratch, s.verdict = Admit(l.scratch[:0], s.facts, policy)
	}
	for i, a := range l.scratch {
		if a != s.admits[i] {
			s.admits[i] = a
			l.tellOf(s, i)
		}
	}
	s.opening = !policy.Waited
	for _, i := range s.touched {
		if c := s.look(i, now, cause); !c.nothing {
			changes = append(changes, c)
		}
	}
	s.touched = s.touched[:0]
	if s.settled {
		changes = s.judged(changes, &before, cause)
	}
	s.settled = true
	return changes
}

// rise begins and ends slow starts, by what backends took before and what they would take now. It says whether one begins.
func (s *ledgerService) rise(admits []maglev.Admit, now time.Time) (begins bool) {
	for i, a := range admits {
		up, took := a.State() == maglev.Up, s.admits[i].State() == maglev.Up
		b := &s.backends[i]
		switch {
		case up == took:
			continue
		case !up:
			b.rose = time.Time{}
		case !s.verdict.ignores() && !b.fresh && s.slowStart > 0:
			b.rose, begins = now, true
		}
		s.touch(i, now)
	}
	for _, i := range s.touched {
		b := &s.backends[i]
		b.fresh = b.fresh && b.health.State == StateUnknown
	}
	return begins
}

// look compares the condition of a backend with the one that it was in.
func (s *ledgerService) look(i int, now time.Time, cause Cause) change {
	b, f := &s.backends[i], &s.facts[i]
	if f.Rising == 1 {
		b.rose = time.Time{}
	}
	if !f.Ejected {
		b.ejected, b.health.Ejected = time.Time{}, ""
	}
	if timed := !b.rose.IsZero() || f.Ejected || b.hand.waits(); timed != b.timed {
		b.timed = timed
		s.timers += one(timed) - one(!timed)
	}
	from, to := b.condition, f.condition()
	if from == to {
		return change{nothing: true}
	}
	b.condition, b.since = to, now
	if from == "" {
		return change{nothing: true}
	}
	c := change{Event: Event{Kind: KindHealth, Service: s.name, Backend: b.name, From: string(from), To: string(to), Cause: cause}}
	switch {
	case cause == CauseProbe:
		c.Cause, c.Evidence = b.why(from, to)
	case cause == CauseTime && from == PhaseEjected:
		c.Evidence = "the time of its ejection is over"
	case cause == CauseTime && from == PhaseSlowStart:
		c.Evidence = "the time of its slow start is over"
	}
	if from.Takes() != to.Takes() {
		b.switches++
	}
	c.out = f.wanted() && !to.Takes() && (from.Takes() || from == PhaseUnknown && to == PhaseDown)
	return c
}

// why says by what a report brought a backend from one condition to another.
func (b *ledgerBackend) why(from, to Phase) (Cause, string) {
	h := &b.health
	asksNothing := h.Asks != nil && *h.Asks == 0
	switch {
	case to == PhaseEjected:
		return CausePassive, h.Ejected
	case to == PhaseUnready && h.Unready != "":
		return CauseReadiness, h.Unready
	case to == PhaseUnready && asksNothing:
		return CauseWeight, "it asks for 0 % of its share"
	case from == PhaseEjected && to.Takes():
		return CausePassive, "it is no longer ejected"
	case from == PhaseUnready && to.Takes() && h.Asks != nil:
		return CauseWeight, fmt.Sprintf("it is ready, and asks for %d %% of its share", *h.Asks)
	case from == PhaseUnready && to.Takes():
		return CauseReadiness, "it is ready"
	case h.Cause == "":
		return CauseProbe, h.Evidence
	}
	return h.Cause, h.Evidence
}

// judged adds what has changed about the service as a whole.
func (s *ledgerService) judged(changes []change, before *Verdict, cause Cause) []change {
	if cause == CauseProbe || cause == CauseTime {
		cause = CauseHealth
	}
	v := &s.verdict
	alive := fmt.Sprintf("%d of %d wanted backends are alive", v.Alive, v.Wanted)
	why := alive
	if v.Alive > 0 && v.FailOpen {
		why = fmt.Sprintf("%s, less than the panic threshold of %d %%", alive, s.threshold)
	}
	for _, x := range []struct {
		was, is     bool
		bad, good   string
		why, better string
	}{
		{before.FailOpen, v.FailOpen, FailOpen, HealthCounts, why, alive},
		{before.EjectionsIgnored, v.EjectionsIgnored, EjectionsIgnored, EjectionsCount, "all backends that are alive are ejected", alive},
		{before.ReadinessIgnored, v.ReadinessIgnored, ReadinessIgnored, ReadinessCounts, "none of the backends that are alive is ready", alive},
		{before.Alive < s.quorum, !s.met(), QuorumLost, QuorumMet, fmt.Sprintf("%s, %d have to be", alive, s.quorum), alive},
	} {
		if x.was == x.is {
			continue
		}
		c := change{Event: Event{Kind: KindService, Service: s.name, From: x.bad, To: x.good, Cause: cause, Evidence: x.better}}
		if x.is {
			c.From, c.To, c.Evidence, c.out = x.good, x.bad, x.why, true
		}
		changes = append(changes, c)
	}
	return changes
}

// tellOf notes that Book.Changed has to tell of a backend.
func (l *ledger) tellOf(s *ledgerService, i int) {
	if !s.telling[i] {
		s.telling[i], s.tell = true, append(s.tell, i)
	}
	l.tellOfOffer(s)
}

// tellOfOffer notes that Book.Changed has to find out what the SYN cookies of a service offer.
func (l *ledger) tellOfOffer(s *ledgerService) {
	s.offers, l.news = true, true
	if !s.listed {
		s.listed, l.changed = true, append(l.changed, s)
	}
}
