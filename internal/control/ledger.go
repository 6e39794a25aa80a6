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
// wants comes with each configuration, what an operator set by hand through drain, what health says through report. No
// one of them changes another; Admit combines them. In addition to its rules:
//
//   - A service without check takes all of its backends that are wanted.
//   - Health is ignored for a service that it would leave without backend (it fails open) at once, but not before three
//     intervals of its check have passed since it appeared, at the start of the daemon or by a reload. In that time a
//     health daemon finds out more; and where none runs, the service is not lost.
//   - What is known stays until a report says otherwise, however long that takes. It is kept over reloads, and on disk
//     over restarts. A backend whose address has changed is a new one. A service that gets a check was taking all of its
//     backends: they count as up until a report says otherwise.
//   - A backend that begins to take new flows in a running service starts slowly, whatever kept it from them before. Those
//     that come with the start of the daemon, or with their service, do not, nor does one that took all flows until the
//     service ceased to fail open.

// graceIntervals is how many intervals of its check a service that appeared may be without a backend.
const graceIntervals = 3

// BackendKey names a backend.
type BackendKey struct{ Service, Backend string }

// ledger holds what is known about the backends of one configuration. It has no lock: its Book has.
type ledger struct {
	services []ledgerService
	index    map[BackendKey]*ledgerBackend
}

type ledgerService struct {
	name      string
	check     *config.Check // nil: none
	opens     time.Time     // from when on it fails open rather than be without a backend
	slowStart time.Duration // 0: none
	backends  []*ledgerBackend
}

type ledgerBackend struct {
	name    string
	address netip.Addr
	weight  int
	hand    hand
	health  Health
	// restored tells that nothing newer than what was on disk at the start is known.
	restored bool
	// fresh tells that it came with its service, and nothing was ever known of it.
	fresh bool
	// rose is when its slow start began; zero: it has none.
	rose time.Time
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
	drains []savedDrain
}

// next returns the ledger of a new configuration. It keeps what l knows; l may be nil, at the start, when disk has what
// was there. l stays as it is and shares nothing with the new one.
func (l *ledger) next(services []config.Service, disk savedState, now time.Time) *ledger {
	health := make(map[BackendKey]saved, len(disk.health))
	for _, s := range disk.health {
		health[BackendKey{s.Service, s.Backend}] = s
	}
	hands := make(map[BackendKey]savedDrain, len(disk.drains))
	for _, s := range disk.drains {
		hands[BackendKey{s.Service, s.Backend}] = s
	}
	before := make(map[string]*ledgerService)
	if l != nil {
		for i := range l.services {
			before[l.services[i].name] = &l.services[i]
		}
	}
	n := &ledger{index: make(map[BackendKey]*ledgerBackend)}
	for _, c := range services {
		s := ledgerService{name: c.Name, check: c.Check, slowStart: c.SlowStart}
		old := before[c.Name]
		switch {
		case c.Check == nil:
		case old != nil && old.check != nil:
			s.opens = old.opens
		case old == nil:
			s.opens = now.Add(graceIntervals * time.Duration(c.Check.Interval))
		}
		for _, cb := range c.Backends {
			b := &ledgerBackend{name: cb.Name, address: cb.Address, health: Health{State: StateUnknown}, fresh: old == nil}
			key := BackendKey{c.Name, cb.Name}
			if was, ok := health[key]; ok && was.Address == cb.Address {
				b.health, b.restored = was.Health, true
			}
			if was, ok := hands[key]; ok && was.Address == cb.Address {
				b.hand = was.hand(now)
			}
			if was := l.at(key); was != nil && was.address == cb.Address {
				*b = *was
				if old.rising(was, now) == 1 {
					b.rose = time.Time{} // however long a slow start takes from now on
				}
				if old.check == nil {
					b.health = Health{State: StateUp, Since: now, Evidence: "not probed yet since the service got a check"}
				}
			}
			if c.Check == nil {
				b.health, b.restored = Health{State: StateNone}, false
			}
			b.weight = cb.Weight
			s.backends = append(s.backends, b)
			n.index[key] = b
		}
		n.services = append(n.services, s)
	}
	taking := l.taking(now)
	for i := range n.services {
		if s := &n.services[i]; before[s.name] != nil {
			s.rise(taking, now)
		} else {
			s.begin()
		}
	}
	return n
}

func (l *ledger) at(key BackendKey) *ledgerBackend {
	if l == nil {
		return nil
	}
	return l.index[key]
}

// transition is a backend whose state changed.
type transition struct {
	BackendKey
	from State
	to   Health
}

// report takes what a health daemon says, and returns what changed by it. Backends that l does not have, or does not
// check, are ignored.
func (l *ledger) report(list []BackendHealth, now time.Time) (changes []transition) {
	var taking map[BackendKey]netip.Addr
	for _, r := range list {
		key := BackendKey{r.Service, r.Backend}
		b := l.index[key]
		if b == nil || b.health.State == StateNone {
			continue
		}
		h := r.Health
		if h.Since.IsZero() {
			h.Since = now
			if b.health.State == h.State {
				h.Since = b.health.Since
			}
		}
		if b.health.State != h.State {
			if taking == nil {
				taking = l.taking(now)
			}
			changes = append(changes, transition{key, b.health.State, h})
		}
		b.health, b.restored = h, false
	}
	if len(changes) > 0 {
		l.rise(taking, now)
	}
	return changes
}

// admits returns what every backend takes at the time now.
func (l *ledger) admits(now time.Time) map[BackendKey]maglev.Admit {
	all := make(map[BackendKey]maglev.Admit, len(l.index))
	for i := range l.services {
		s := &l.services[i]
		admits, _ := s.admit(now)
		for j, b := range s.backends {
			all[BackendKey{s.name, b.name}] = admits[j]
		}
	}
	return all
}

func (s *ledgerService) admit(now time.Time) ([]maglev.Admit, bool) {
	return Admit(s.facts(now), s.waited(now))
}

// waited says whether the time is over in which the service rather is without a backend than fails open.
func (s *ledgerService) waited(now time.Time) bool { return !now.Before(s.opens) }

func (s *ledgerService) facts(now time.Time) []Facts {
	facts := make([]Facts, len(s.backends))
	for i, b := range s.backends {
		facts[i] = Facts{Weight: b.weight, Hand: b.hand.state(), Health: b.health.State, Rising: s.rising(b, now)}
	}
	return facts
}

// waiting returns the services that have no backend at the time now, because they appeared a short time ago.
func (l *ledger) waiting(now time.Time) (names []string) {
	for i := range l.services {
		if s := &l.services[i]; !s.waited(now) && failing(s.facts(now)) {
			names = append(names, s.name)
		}
	}
	return names
}

// targets returns what a health daemon is to look at.
func targets(services []config.Service) []TargetService {
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
		for _, b := range s.Backends {
			t.Backends = append(t.Backends, TargetBackend{Name: b.Name, Address: b.Address, Out: b.Weight == 0})
		}
		list = append(list, t)
	}
	return list
}

// save returns what is worth to be known at the next start, in a stable order.
func (l *ledger) save() []saved {
	list := []saved{}
	for i := range l.services {
		for _, b := range l.services[i].backends {
			if b.health.State == StateUp || b.health.State == StateDown {
				list = append(list, saved{l.services[i].name, b.name, b.address, b.health})
			}
		}
	}
	slices.SortFunc(list, func(a, b saved) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend))
	})
	return list
}
