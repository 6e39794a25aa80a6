package control

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// The rules of health, as pure functions of what is known and of the time. They combine what the file wants (its
// services, checks and backends) with what health says:
//
//   - A service without check takes all of its backends.
//   - Of a service with one, backends that are up take traffic. Those that are down, or of which nothing is known yet,
//     take none.
//   - If that leaves a service no backend at all, health is ignored for it and all take traffic (it fails open): at once,
//     but not before three intervals of its check have passed since it appeared, at the start of the daemon or by a
//     reload. In that time a health daemon finds out more; and where none runs, the service is not lost.
//   - What is known stays until a report says otherwise, however long that takes. It is kept over reloads, and on disk
//     over restarts. A backend whose address has changed is a new one. A service that gets a check was taking all of its
//     backends: they count as up until a report says otherwise.

// Admission is what a backend takes now.
type Admission string

// The admissions.
const (
	AdmitUp   Admission = "up"   // all traffic that is meant for it
	AdmitDown Admission = "down" // none
)

// graceIntervals is how many intervals of its check a service that appeared may be without a backend.
const graceIntervals = 3

// Admit is the rule for one service: what its backends take, given what health says about each, and whether it fails
// open. waited tells that its first three intervals are over. The states of a service without check are StateNone.
func Admit(health []State, waited bool) (admissions []Admission, failOpen bool) {
	admissions = make([]Admission, len(health))
	some := false
	for i, h := range health {
		admissions[i] = AdmitDown
		if h == StateUp || h == StateNone {
			admissions[i] = AdmitUp
			some = true
		}
	}
	if some || !waited || len(health) == 0 {
		return admissions, false
	}
	for i := range admissions {
		admissions[i] = AdmitUp
	}
	return admissions, true
}

// BackendKey names a backend.
type BackendKey struct{ Service, Backend string }

// ledger holds what is known about the backends of one configuration. It has no lock: its Book has.
type ledger struct {
	services []ledgerService
	index    map[BackendKey]*ledgerBackend
}

type ledgerService struct {
	name     string
	check    *config.Check // nil: none
	opens    time.Time     // from when on it fails open rather than be without a backend
	backends []*ledgerBackend
}

type ledgerBackend struct {
	name    string
	address netip.Addr
	health  Health
	// restored tells that nothing newer than what was on disk at the start is known.
	restored bool
}

// saved is what was known about a backend when a daemon ended.
type saved struct {
	Service string     `json:"service"`
	Backend string     `json:"backend"`
	Address netip.Addr `json:"address"`
	Health
}

// next returns the ledger of a new configuration. It keeps what l knows; l may be nil, at the start, when restored has
// what was on disk. l stays as it is and shares nothing with the new one.
func (l *ledger) next(services []config.Service, restored []saved, now time.Time) *ledger {
	disk := make(map[BackendKey]saved, len(restored))
	for _, s := range restored {
		disk[BackendKey{s.Service, s.Backend}] = s
	}
	before := make(map[string]*ledgerService)
	if l != nil {
		for i := range l.services {
			before[l.services[i].name] = &l.services[i]
		}
	}
	n := &ledger{index: make(map[BackendKey]*ledgerBackend)}
	for _, c := range services {
		s := ledgerService{name: c.Name, check: c.Check}
		old := before[c.Name]
		switch {
		case c.Check == nil:
		case old != nil && old.check != nil:
			s.opens = old.opens
		case old == nil:
			s.opens = now.Add(graceIntervals * c.Check.Interval)
		}
		for _, cb := range c.Backends {
			b := &ledgerBackend{name: cb.Name, address: cb.Address, health: Health{State: StateNone}}
			key := BackendKey{c.Name, cb.Name}
			if c.Check != nil {
				b.health.State = StateUnknown
				if was, ok := disk[key]; ok && was.Address == cb.Address {
					b.health, b.restored = was.Health, true
				}
				if was := l.at(key); was != nil && was.address == cb.Address {
					*b = *was
					if old.check == nil {
						b.health = Health{State: StateUp, Since: now, Evidence: "not probed yet since the service got a check"}
					}
				}
			}
			s.backends = append(s.backends, b)
			n.index[key] = b
		}
		n.services = append(n.services, s)
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
			changes = append(changes, transition{key, b.health.State, h})
		}
		b.health, b.restored = h, false
	}
	return changes
}

// admissions returns what every backend takes at the time now.
func (l *ledger) admissions(now time.Time) map[BackendKey]Admission {
	all := make(map[BackendKey]Admission, len(l.index))
	for i := range l.services {
		s := &l.services[i]
		admissions, _ := s.admit(now)
		for j, b := range s.backends {
			all[BackendKey{s.name, b.name}] = admissions[j]
		}
	}
	return all
}

func (s *ledgerService) admit(now time.Time) ([]Admission, bool) {
	states := make([]State, len(s.backends))
	for i, b := range s.backends {
		states[i] = b.health.State
	}
	return Admit(states, !now.Before(s.opens))
}

// waiting returns the services that have no backend at the time now, because they appeared a short time ago.
func (l *ledger) waiting(now time.Time) (names []string) {
	for i := range l.services {
		s := &l.services[i]
		if admissions, _ := s.admit(now); !slices.Contains(admissions, AdmitUp) {
			names = append(names, s.name)
		}
	}
	return names
}

// targets returns what is to be probed.
func targets(services []config.Service) []Target {
	list := []Target{}
	for _, s := range services {
		if s.Check == nil {
			continue
		}
		for _, b := range s.Backends {
			list = append(list, Target{
				Service: s.Name, Backend: b.Name, Address: b.Address.String(), VIP: s.VIP.String(), Protocol: string(s.Protocol),
				Check: Check{
					Type: string(s.Check.Type), Port: s.Check.Port, Path: s.Check.Path,
					Interval: Duration(s.Check.Interval), Timeout: Duration(s.Check.Timeout),
					Rise: s.Check.Rise, Fall: s.Check.Fall,
				},
			})
		}
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
