package control

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

// Detail returns everything about the health of the services and backends that f leaves in, but for what the traffic tells.
// A service or a backend that is not configured is an *APIError that says what is.
func (b *Book) Detail(f EventFilter) (HealthDetail, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	d := HealthDetail{Health: b.status(now), Services: []ServiceHealth{}, Backends: []BackendDetail{}}
	if f.Service != "" {
		if _, err := b.ledger.findService(f.Service); err != nil {
			return HealthDetail{}, err
		}
	}
	if f.Backend != "" {
		if _, err := b.ledger.find(BackendKey(f)); err != nil {
			return HealthDetail{}, err
		}
	}
	for k, s := range b.ledger.services {
		if f.Service != "" && s.name != f.Service {
			continue
		}
		d.Services = append(d.Services, s.detail(&b.services[k]))
		for i := range s.backends {
			if f.Backend == "" || s.backends[i].name == f.Backend {
				d.Backends = append(d.Backends, s.backendDetail(i, now))
			}
		}
	}
	return d, nil
}

func (s *ledgerService) detail(c *config.Service) ServiceHealth {
	v := &s.verdict
	h := ServiceHealth{
		Name: s.name, VIP: c.VIP, Check: checkLine(c.Check), Readiness: checkLine(c.Readiness), Passive: passiveLine(&c.Passive),
		PanicThreshold: s.threshold, FailOpen: v.FailOpen, ReadinessIgnored: v.ReadinessIgnored, EjectionsIgnored: v.EjectionsIgnored,
		Quorum: Quorum{Need: s.quorum, Have: v.Alive, Met: s.met()}, Wanted: v.Wanted, Ejected: s.ejections(), Phases: map[Phase]int{},
	}
	for i := range s.facts {
		h.Phases[s.facts[i].Phase()]++
	}
	return h
}

func (s *ledgerService) backendDetail(i int, now time.Time) BackendDetail {
	b, f := &s.backends[i], &s.facts[i]
	d := BackendDetail{
		Service: s.name, Backend: b.name, Address: b.address, Phase: f.Phase(), Health: b.shown(now), Hand: b.hand.status(),
		Admit: s.admits[i].State().String(), Weight: b.weight, Switches: b.switches,
		Probes: append([]ProbeStats{}, b.probes...), History: append([]Event{}, b.history...),
	}
	if s.admits[i].State() == maglev.Up {
		d.Fraction = float64(s.admits[i].Fraction()) / maglev.All
	}
	d.Since, d.Why = b.standing(d.Phase, f)
	return d
}

// standing tells since when b is in its phase, and why.
func (b *ledgerBackend) standing(p Phase, f *Facts) (since time.Time, why string) {
	h := &b.health
	since = b.since.Round(0)
	switch p {
	case PhaseMaintenance:
		return b.hand.maintenance, "set by hand" + b.aside(f)
	case PhaseDraining:
		if f.Hand == HandNone {
			return time.Time{}, "weight 0" + b.aside(f)
		}
		if b.hand.cut {
			return b.hand.since, "drained by hand; flows that were left are ended" + b.aside(f)
		}
		return b.hand.since, "drained by hand" + b.aside(f)
	case PhaseUnknown:
		return since, "nothing is known of it yet"
	case PhaseEjected:
		return since, h.Ejected
	case PhaseUnready:
		if h.Unready == "" {
			return since, "it asks for 0 % of its share"
		}
		return since, h.Unready
	case PhaseSlowStart:
		return since, fmt.Sprintf("%.0f %% of it", 100*f.Rising)
	}
	if !h.Since.IsZero() {
		since = h.Since
	}
	return since, h.Evidence
}

// aside tells what is wrong beside what the hand has set.
func (b *ledgerBackend) aside(f *Facts) string {
	c := f.condition()
	if c.Takes() {
		return ""
	}
	aside := fmt.Sprintf("; it is %s", c)
	if _, why := b.standing(c, f); why != "" {
		aside += ": " + why
	}
	return aside
}

// checkLine tells what a check does, in one line; nothing if there is none.
func checkLine(c *config.Check) string {
	if c == nil {
		return ""
	}
	var b strings.Builder
	b.WriteString(string(c.Type))
	if c.Port != 0 {
		fmt.Fprintf(&b, " port %d", c.Port)
	}
	if c.TLS != nil && c.Type != config.CheckHTTPS {
		b.WriteString(" over TLS")
	}
	if c.Type.HTTP() {
		b.WriteString(", GET " + c.Path)
		if c.Host != "" {
			b.WriteString(" of " + c.Host)
		}
	}
	switch {
	case c.Query != nil:
		b.WriteString(", " + c.Query.Name + " " + c.Query.Type)
	case c.GRPCService != "":
		b.WriteString(", service " + c.GRPCService)
	case len(c.Command) > 0:
		b.WriteString(", " + strings.Join(c.Command, " "))
	}
	if expect := expectations(&c.Expect); expect != "" {
		b.WriteString(", expects " + expect)
	}
	fmt.Fprintf(&b, "; %s; every %v, %v while it changes, timeout %v, rise %d, fall %d", c.Via, c.Interval, c.FastInterval, c.Timeout, c.Rise, c.Fall)
	return b.String()
}

func expectations(e *config.Expect) string {
	list := slices.Clone(e.Headers)
	if len(e.Status) > 0 {
		list = append([]string{strings.Join(e.Status, " ")}, list...)
	}
	if e.Body != "" {
		list = append(list, fmt.Sprintf("%q", e.Body))
	}
	if e.BodyRegexp != "" {
		list = append(list, "/"+e.BodyRegexp+"/")
	}
	return strings.Join(list, ", ")
}

// passiveLine tells what becomes of backends whose traffic looks bad, in one line.
func passiveLine(p *config.Passive) string {
	switch p.Mode {
	case config.PassiveEject:
		return fmt.Sprintf("ejected for %v, each time twice as long, up to %v; up to %d %% of the backends", p.Ejection, p.Longest, p.MaxShare)
	case config.PassiveObserve:
		return "observed only"
	}
	return "off"
}
