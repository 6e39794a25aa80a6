package control

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
)

// What a health daemon says.

const (
	maxSource   = 128       // bytes of a report's source
	maxEvidence = 256       // bytes of evidence that are kept
	maxReported = 1<<18 + 1 // backends in a report
	// maxEjection is how long an ejection can last, as configurations have it.
	maxEjection = time.Hour
)

// The errors of a report that cannot be taken as it is. In both cases its sender reports all that it knows.
var (
	// ErrBoot: it answers the targets of an earlier start of the daemon. They are to be asked for again first.
	ErrBoot = errors.New("the report is meant for an earlier start of the daemon; get the targets again")
	// ErrResync: it has what changed since something else than what the daemon has taken last.
	ErrResync = errors.New("the report does not follow the one that was taken last; send everything")
)

// Report takes what a health daemon says. It fails with ErrBoot, ErrResync, an *APIError while another health daemon
// reports, or says what is wrong with the report; in all cases nothing of it is taken.
func (b *Book) Report(r HealthReport) (HealthAnswer, error) {
	if err := checkReport(&r); err != nil {
		return HealthAnswer{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.Boot != b.boot {
		return HealthAnswer{}, ErrBoot
	}
	now := time.Now()
	taken, err := b.claim(&r, now)
	if err != nil {
		return HealthAnswer{}, err
	}
	if !taken {
		b.learn(r.Agents)
		b.ledger.learn(r.Probes)
		b.tell(b.ledger.report(r.Backends, now), now)
	}
	return HealthAnswer{Boot: b.boot, Generation: b.generation}, nil
}

// checkReport says what is wrong with r, and makes its words fit to be shown: short and on one line.
func checkReport(r *HealthReport) error {
	switch {
	case r.Source == "" || len(r.Source) > maxSource:
		return fmt.Errorf("health report: source has %d bytes, 1 to %d are expected", len(r.Source), maxSource)
	case r.Version <= r.Base:
		return fmt.Errorf("health report: version %d, more than its base %d is expected", r.Version, r.Base)
	case len(r.Backends) > maxReported:
		return fmt.Errorf("health report: %d backends, at most %d are expected", len(r.Backends), maxReported)
	case len(r.Probes) > 2*maxReported:
		return fmt.Errorf("health report: statistics of %d checks, at most %d are expected", len(r.Probes), 2*maxReported)
	case len(r.Agents) > maxAgents:
		return fmt.Errorf("health report: %d agents, at most %d are expected", len(r.Agents), maxAgents)
	}
	for i := range r.Agents {
		r.Agents[i].Error = printable(r.Agents[i].Error)
	}
	for i := range r.Probes {
		r.Probes[i].LastError = printable(r.Probes[i].LastError)
	}
	for i := range r.Backends {
		if err := r.Backends[i].check(); err != nil {
			return err
		}
	}
	return nil
}

func (h *BackendHealth) check() error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("health report: %s/%s: %s", h.Service, h.Backend, fmt.Sprintf(format, args...))
	}
	switch h.State {
	case StateUp, StateGoingDown, StateDown, StateGoingUp, StateNone:
	default:
		return wrong("state %q, %s, %s, %s or %s is expected, or %s without a check; leave out what is not known",
			h.State, StateUp, StateGoingDown, StateDown, StateGoingUp, StateNone)
	}
	if h.Asks != nil && (*h.Asks < 0 || *h.Asks > 100) {
		return wrong("it asks for %d %%, 0 to 100 are expected", *h.Asks)
	}
	if h.EjectedMS < 0 || h.EjectedMS > maxEjection.Milliseconds() {
		return wrong("ejected for %d ms, 0 to %d are expected", h.EjectedMS, maxEjection.Milliseconds())
	}
	for _, words := range []*string{&h.Evidence, &h.Unready, &h.Ejected, (*string)(&h.Cause)} {
		*words = printable(*words)
	}
	return nil
}

// printable makes words fit to be shown: a backend may have written them, and they end up on a terminal.
func printable(words string) string {
	if len(words) > maxEvidence {
		words = words[:maxEvidence] + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, words)
}

// report takes what a health daemon says of backends, and returns what changed by it. Backends that l does not have are
// ignored; of those that it does not check, only ejections are taken.
func (l *ledger) report(list []BackendHealth, now time.Time) (changes []change) {
	var named []*ledgerService
	for k := range list {
		r := &list[k]
		i, ok := l.index[BackendKey{r.Service, r.Backend}]
		if !ok {
			continue
		}
		s := l.byName[r.Service]
		if !s.named {
			s.named, named = true, append(named, s)
			changes = append(changes, l.pass(s, now)...) // what it was up to now
		}
		s.backends[i].take(&r.Health, now)
		s.touch(i, now)
	}
	for _, s := range named {
		s.named = false
		changes = append(changes, l.settle(s, now, CauseProbe)...)
	}
	return changes
}

// take makes h what is known of b.
func (b *ledgerBackend) take(h *Health, now time.Time) {
	b.ejected = time.Time{}
	if h.EjectedMS > 0 {
		b.ejected = now.Add(time.Duration(h.EjectedMS) * time.Millisecond)
	}
	if b.health.State == StateNone || h.State == StateNone { // or the health daemon does not know yet that there is a check, or none
		b.health.Ejected = h.Ejected
		return
	}
	was := b.health
	b.health, b.restored = *h, false
	b.health.EjectedMS = 0
	if h.Since.IsZero() {
		b.health.Since = now
		if was.State == h.State {
			b.health.Since = was.Since
		}
	}
	if h.State == StateUp || h.State == StateDown {
		b.firm = b.health
	}
}

// learn takes statistics of probes.
func (l *ledger) learn(list []ProbeStats) {
	for _, p := range list {
		b := l.backend(BackendKey{p.Service, p.Backend})
		if b == nil {
			continue
		}
		if s := l.byName[p.Service]; s.check == nil || p.Readiness && s.readiness == nil {
			continue
		}
		i := slices.IndexFunc(b.probes, func(o ProbeStats) bool { return o.Readiness == p.Readiness })
		if i < 0 {
			i, b.probes = len(b.probes), append(b.probes, p)
		}
		b.probes[i] = p
	}
}
