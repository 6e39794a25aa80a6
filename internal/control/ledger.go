package control

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

// The ledger: the three facts about each backend, as pure functions of what was told and of the time. What the file
// wants comes with each configuration, what an operator set by hand through setHand, what health says through report. No
// one of them changes another; Admit combines them, for one service at a time, in settle. In addition to its rules:
//
//   - A service without check takes all of its backends that are wanted.
//   - Health is ignored for a service that it would leave without backend (it fails open) at once, but not before three
//     intervals of its check have passed since it appeared, at the start of the daemon or by a reload. In that time a
//     health daemon finds out more; and where none runs, the service is not lost.
//   - What is known stays until a report says otherwise, however long that takes. It is kept over reloads, and on disk
//     over restarts. Only an ejection ends by itself. A backend whose address has changed is a new one. A service that gets
//     a check was taking all of its backends: they count as up until a report says otherwise.
//   - A backend that begins to take new flows in a running service starts slowly, whatever kept it from them before. Those
//     that come with the start of the daemon, or with their service, do not, nor does one that takes flows since something
//     is ignored.

// graceIntervals is how many intervals of its check a service that appeared may be without a backend.
const graceIntervals = 3

// BackendKey names a backend.
type BackendKey struct{ Service, Backend string }

// ledger holds what is known about the backends of one configuration. It has no lock: its Book has.
type ledger struct {
	services []*ledgerService
	byName   map[string]*ledgerService
	index    map[BackendKey]int // the backend's place in its service
	// changed are the services of which Book.Changed has to tell something; news, that there is more than at the last notice.
	changed []*ledgerService
	news    bool
	scratch []maglev.Admit
}

type ledgerService struct {
	name      string
	check     *config.Check // nil: none
	readiness *config.Check // likewise
	threshold int           // percent: Policy.PanicThreshold
	quorum    int
	opens     time.Time     // from when on it fails open rather than be without a backend
	slowStart time.Duration // 0: none
	backends  []ledgerBackend

	// What settle keeps, by backend: the facts, and what came of them.
	facts   []Facts
	admits  []maglev.Admit
	verdict Verdict
	touched []int // backends whose facts are new, for the next settle
	settled bool  // settle has seen it at least once
	opening bool  // it appeared a short time ago
	timers  int   // backends of which something changes as time goes by
	// What Book.Changed has to tell of: these backends, and what its SYN cookies may offer.
	tell    []int
	telling []bool // by backend: it is in tell
	offers  bool
	listed  bool // it is in ledger.changed
	named   bool // a report that is being taken names it
}

type ledgerBackend struct {
	name    string
	address netip.Addr
	weight  int
	hand    hand
	health  Health // EjectedMS is not kept up: ejected is
	// ejected is until when, by the monotonic clock, it gets no new flows for its traffic; zero: it is not ejected.
	ejected time.Time
	// firm is health when it was last up or down, not on its way.
	firm Health
	// restored tells that nothing newer than what was on disk at the start is known.
	restored bool
	// fresh tells that it came with its service, and nothing was ever known of it.
	fresh bool
	// rose is when its slow start began; zero: it has none.
	rose time.Time

	timed     bool      // it counts in ledgerService.timers
	condition Phase     // as settle saw it last; empty: it never did
	since     time.Time // of condition
	switches  uint64    // how often it came into rotation or went out of it
	history   []Event   // the last, the oldest first
	probes    []ProbeStats
}

// saved is what was known about a backend when a daemon ended.
type saved struct {
	Service string     `json:"service"`
	Backend string     `json:"backend"`
	Address netip.Addr `json:"address"`
	Health
}

// savedState is all that was on disk at the start.
type savedState struct {
	health []saved
	marks  []savedMark
}

// next returns the ledger of a new configuration, and what changes by it. It keeps what l knows; l may be nil, at the
// start, when disk has what was there. l stays as it is and shares nothing with the new one.
func (l *ledger) next(services []config.Service, disk savedState, now time.Time) (*ledger, []change) {
	health := make(map[BackendKey]saved, len(disk.health))
	for _, s := range disk.health {
		health[BackendKey{s.Service, s.Backend}] = s
	}
	hands := make(map[BackendKey]savedMark, len(disk.marks))
	for _, s := range disk.marks {
		hands[BackendKey{s.Service, s.Backend}] = s
	}
	n := &ledger{byName: make(map[string]*ledgerService, len(services)), index: make(map[BackendKey]int)}
	var changes []change
	for k := range services {
		c := &services[k]
		old := l.service(c.Name)
		s := newLedgerService(c, old, now)
		took := old.at(now)
		for i := range c.Backends {
			cb, b := &c.Backends[i], &s.backends[i]
			*b = ledgerBackend{name: cb.Name, address: cb.Address, health: Health{State: StateUnknown}, fresh: old == nil}
			key := BackendKey{c.Name, cb.Name}
			if was, ok := health[key]; ok && was.Address == cb.Address {
				b.health, b.restored = was.Health, true
			}
			if was, ok := hands[key]; ok && was.Address == cb.Address {
				b.hand = was.hand(now)
			}
			if place, ok := l.place(key); ok && old.backends[place].address == cb.Address {
				b.keep(old, place, now)
				s.admits[i] = took[place]
			}
			if c.Check == nil {
				b.health, b.restored, b.probes = Health{State: StateNone, Ejected: b.health.Ejected}, false, nil
			}
			if c.Readiness == nil {
				b.health.Unready = ""
				b.probes = slices.DeleteFunc(b.probes, func(p ProbeStats) bool { return p.Readiness })
			}
			b.weight = cb.Weight
			n.index[key] = i
		}
		n.services, n.byName[c.Name] = append(n.services, s), s
		for i := range s.backends {
			n.tellOf(s, i) // whatever was told of a configuration that was only prepared
		}
		s.touchAll(now)
		changes = append(changes, n.settle(s, now, CauseConfig)...)
	}
	return n, changes
}

// newLedgerService returns a service with room for its backends. old is the one of its name before; nil: there was none.
func newLedgerService(c *config.Service, old *ledgerService, now time.Time) *ledgerService {
	s := &ledgerService{
		name: c.Name, check: c.Check, readiness: c.Readiness, threshold: c.PanicThreshold, quorum: c.Quorum, slowStart: c.SlowStart,
		backends: make([]ledgerBackend, len(c.Backends)), facts: make([]Facts, len(c.Backends)), admits: make([]maglev.Admit, len(c.Backends)),
		telling: make([]bool, len(c.Backends)),
	}
	switch {
	case c.Check == nil:
	case old != nil && old.check != nil:
		s.opens = old.opens
	case old == nil:
		s.opens = now.Add(graceIntervals * time.Duration(c.Check.Interval))
	}
	if old != nil {
		s.settled, s.verdict = old.settled, old.verdict
	}
	return s
}

// keep makes b what it was in the service before.
func (b *ledgerBackend) keep(old *ledgerService, place int, now time.Time) {
	*b = old.backends[place]
	b.timed = false
	b.history, b.probes = slices.Clone(b.history), slices.Clone(b.probes)
	if old.rising(b, now) == 1 {
		b.rose = time.Time{} // however long a slow start takes from now on
	}
	if old.check == nil {
		b.health = Health{State: StateUp, Since: now, Cause: CauseConfig, Evidence: "not probed yet since the service got a check", Ejected: b.health.Ejected}
	}
}

// service returns a service, or nil. l may be nil.
func (l *ledger) service(name string) *ledgerService {
	if l == nil {
		return nil
	}
	return l.byName[name]
}

// place returns where in its service a backend is. l may be nil.
func (l *ledger) place(key BackendKey) (place int, ok bool) {
	if l == nil {
		return 0, false
	}
	place, ok = l.index[key]
	return place, ok
}

// backend returns a backend, or nil.
func (l *ledger) backend(key BackendKey) *ledgerBackend {
	i, ok := l.index[key]
	if !ok {
		return nil
	}
	return &l.byName[key.Service].backends[i]
}

// waited says whether the time is over in which the service rather is without a backend than fails open.
func (s *ledgerService) waited(now time.Time) bool { return !now.Before(s.opens) }

// waiting returns the services that have no backend at the time now, because they appeared a short time ago.
func (l *ledger) waiting(now time.Time) (names []string) {
	for _, s := range l.services {
		if !s.waited(now) && s.verdict.failing() {
			names = append(names, s.name)
		}
	}
	return names
}

// met says whether as many backends are alive as the service wants at least.
func (s *ledgerService) met() bool { return s.verdict.Alive >= s.quorum }

// ejections is how many backends are ejected now.
func (s *ledgerService) ejections() (n int) {
	for i := range s.facts {
		n += one(s.facts[i].Ejected)
	}
	return n
}

// targets returns what a health daemon is to look at.
func (l *ledger) targets(services []config.Service) []TargetService {
	list := []TargetService{}
	for i := range services {
		s := &services[i]
		if s.Check == nil && s.Passive.Mode == config.PassiveOff {
			continue
		}
		t := TargetService{
			Name: s.Name, VIP: s.VIP, Protocol: string(s.Protocol), Forward: string(s.Forward), Scheduler: string(s.Scheduler),
			Check: s.Check, Readiness: s.Readiness, Passive: s.Passive, Backends: []TargetBackend{},
		}
		known := l.byName[s.Name]
		for j, b := range s.Backends {
			t.Backends = append(t.Backends, TargetBackend{Name: b.Name, Address: b.Address, Out: !known.facts[j].wanted()})
		}
		list = append(list, t)
	}
	return list
}

// save returns what is worth to be known at the next start, in a stable order: of a backend on its way up or down, what it
// comes from.
func (l *ledger) save() []saved {
	list := []saved{}
	for _, s := range l.services {
		for i := range s.backends {
			b := &s.backends[i]
			h := b.firm
			switch {
			case b.health.State == StateUp, b.health.State == StateDown:
				h = b.health
			case b.health.State == StateGoingDown:
				h.State = StateUp
			case b.health.State == StateGoingUp:
				h.State = StateDown
			default:
				continue
			}
			list = append(list, saved{s.name, b.name, b.address, Health{State: h.State, Since: h.Since, Evidence: h.Evidence}})
		}
	}
	slices.SortFunc(list, func(a, b saved) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend))
	})
	return list
}
