package control

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// hand is what an operator has set for a backend. The zero hand is nothing.
type hand struct {
	since       time.Time // of the drain; zero: it is not drained
	until       time.Time // by the wall clock; zero: without end
	cut         bool      // until is over
	maintenance time.Time // since when it is in maintenance; zero: it is not
}

func (h hand) state() Hand {
	switch {
	case h.since.IsZero():
		return HandNone
	case h.cut:
		return HandCut
	}
	return HandDrain
}

// waits says whether the drain has an end that has not come.
func (h hand) waits() bool { return !h.until.IsZero() && !h.cut }

// timeout is the end of the drain, for the log.
func (h hand) timeout() string {
	if h.until.IsZero() {
		return "none"
	}
	return h.until.Format(time.RFC3339)
}

// due says whether the drain's time is over at the time now.
func (h hand) due(now time.Time) bool { return !h.until.IsZero() && !now.Before(h.until) }

// status is h as the API shows it; nil when nothing is set.
func (h hand) status() *HandStatus {
	if h == (hand{}) {
		return nil
	}
	return &HandStatus{Since: h.since, Until: h.until, Cut: h.cut, Maintenance: h.maintenance}
}

// savedMark is what was set by hand, on disk. It belongs to the backend's address, too.
type savedMark struct {
	Service     string     `json:"service"`
	Backend     string     `json:"backend"`
	Address     netip.Addr `json:"address"`
	Since       time.Time  `json:"since,omitzero"` // of the drain; left out when it is not drained
	Until       time.Time  `json:"until,omitzero"`
	Maintenance time.Time  `json:"maintenance,omitzero"` // since when; left out when it is not
}

func (s *savedMark) hand(now time.Time) hand {
	h := hand{since: s.Since, until: s.Until, maintenance: s.Maintenance}
	h.cut = h.due(now)
	return h
}

// empty says that there is nothing to be kept.
func (s *savedMark) empty() bool { return s.Since.IsZero() && s.Maintenance.IsZero() }

// marks returns all that was set by hand, in a stable order.
func (l *ledger) marks() []savedMark {
	list := []savedMark{}
	for _, s := range l.services {
		for i := range s.backends {
			b := &s.backends[i]
			m := savedMark{s.name, b.name, b.address, b.hand.since, b.hand.until, b.hand.maintenance}
			if !m.empty() {
				list = append(list, m)
			}
		}
	}
	sortMarks(list)
	return list
}

func sortMarks(list []savedMark) {
	slices.SortFunc(list, func(a, b savedMark) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend), a.Address.Compare(b.Address))
	})
}

// with returns list, in its order, with m in the place of what it has about the same backend. One for which nothing is set
// is left out.
func with(list []savedMark, m savedMark) []savedMark {
	out := slices.DeleteFunc(slices.Clone(list), func(d savedMark) bool { return d.Service == m.Service && d.Backend == m.Backend })
	if !m.empty() {
		out = append(out, m)
	}
	sortMarks(out)
	return out
}

// cut ends the drains whose time is over at the time now, and returns their backends.
func (s *ledgerService) cut(now time.Time) (places []int) {
	for i := range s.backends {
		if b := &s.backends[i]; !b.hand.cut && b.hand.due(now) {
			b.hand.cut = true
			places = append(places, i)
		}
	}
	return places
}

// find returns a backend, or an error that names what there is instead.
func (l *ledger) find(key BackendKey) (*ledgerBackend, error) {
	if b := l.backend(key); b != nil {
		return b, nil
	}
	s, err := l.findService(key.Service)
	if err != nil {
		return nil, err
	}
	var backends []string
	for i := range s.backends {
		backends = append(backends, s.backends[i].name)
	}
	return nil, notFound("service %s has no backend %q; it has %s", s.name, key.Backend, some(backends))
}

// findService returns a service, or an error that names what there is instead.
func (l *ledger) findService(name string) (*ledgerService, error) {
	if s := l.byName[name]; s != nil {
		return s, nil
	}
	var services []string
	for _, s := range l.services {
		services = append(services, s.name)
	}
	return nil, notFound("there is no service %q; there is %s", name, some(services))
}

func notFound(format string, args ...any) error {
	return &APIError{Code: http.StatusNotFound, Message: fmt.Sprintf(format, args...)}
}

// some joins names, but not thousands.
func some(names []string) string {
	const most = 20
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// Drain takes a backend out by hand: it gets no new flows, and those that it has finish. After timeout, if that is not
// zero, those that are left are ended. Draining it again sets another timeout, from now.
//
// The drain is on disk when Drain returns. If it cannot be written, Drain fails, and nothing has changed. A service or a
// backend that is not configured is an *APIError that says what is.
func (b *Book) Drain(service, backend string, timeout time.Duration) error {
	if timeout < 0 {
		return badRequest("timeout: found %s, expected no less than 0", timeout)
	}
	now := time.Now().Round(0) // the wall clock: it goes on while the daemon does not
	return b.setHand(BackendKey{service, backend}, func(h *hand) string {
		if h.since.IsZero() {
			h.since = now
		}
		h.until, h.cut = time.Time{}, false
		if timeout > 0 {
			h.until = now.Add(timeout)
		}
		return "drained"
	})
}

// Undrain takes back what Drain did. It is like Drain, and does nothing to a backend that is not drained.
func (b *Book) Undrain(service, backend string) error {
	return b.setHand(BackendKey{service, backend}, func(h *hand) string {
		*h = hand{maintenance: h.maintenance}
		return "undrained"
	})
}

// Maintenance puts a backend into maintenance, or ends that. It gets no new flows then, as if it were drained; it is probed
// and shown, but nobody is alarmed by it, and it counts neither as wanted nor as lost. It is like Drain, and a mark beside
// it: both may be set.
func (b *Book) Maintenance(service, backend string, on bool) error {
	now := time.Now().Round(0)
	return b.setHand(BackendKey{service, backend}, func(h *hand) string {
		switch {
		case !on:
			h.maintenance = time.Time{}
			return "out of maintenance"
		case h.maintenance.IsZero():
			h.maintenance = now
		}
		return "in maintenance"
	})
}

// setHand changes what is set for a backend. set returns what it has done, in a few words.
func (b *Book) setHand(key BackendKey, set func(*hand) string) error {
	b.hands.Lock() // over the writing, so that the file and the ledger change alike
	defer b.hands.Unlock()

	b.mu.Lock()
	known, err := b.ledger.find(key)
	if err != nil {
		b.mu.Unlock()
		return err
	}
	was, address := known.hand, known.address
	list := b.ledger.marks()
	b.mu.Unlock()

	is := was
	done := set(&is)
	if is == was {
		return nil
	}
	list = with(list, savedMark{key.Service, key.Backend, address, is.since, is.until, is.maintenance})
	if err := b.writeMarks(list); err != nil {
		return fmt.Errorf("%s/%s stays as it was: %w", key.Service, key.Backend, err)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	// They are there still: only Commit, which waits for us, could have removed them.
	s, i := b.ledger.byName[key.Service], b.ledger.index[key]
	b.tell(b.ledger.pass(s, now), now) // what it was up to now
	from := s.facts[i].Phase()
	s.backends[i].hand = is
	s.touch(i, now)
	changes := b.ledger.settle(s, now, CauseOperator)
	done += " by hand"
	b.log.Info("backend "+done, "service", key.Service, "backend", key.Backend, "timeout", is.timeout())
	if is.waits() {
		done += ", flows that are left are ended at " + is.timeout()
	}
	b.happened(Event{
		Kind: KindHand, Service: key.Service, Backend: key.Backend, From: string(from), To: string(s.facts[i].Phase()),
		Cause: CauseOperator, Evidence: done,
	}, now)
	b.tell(changes, now)
	b.retarget()
	return nil
}

// writeMarks puts list on disk. b.hands is held, b.mu is not.
func (b *Book) writeMarks(list []savedMark) error {
	if b.dir != "" {
		if err := writeState("drains", filepath.Join(b.dir, handFile), list); err != nil {
			return err
		}
	}
	b.marks = list
	return nil
}

// forgotten says which of the marks in list are no longer in force, since the configuration has changed. Both locks are
// held.
func (b *Book) forgotten(list []savedMark) {
	for _, m := range list {
		known := b.ledger.backend(BackendKey{m.Service, m.Backend})
		if known != nil && known.address == m.Address {
			continue
		}
		what := "drain"
		if m.Since.IsZero() {
			what = "maintenance"
		}
		b.log.Warn(what+" by hand forgotten: the configuration no longer has this backend at this address",
			"service", m.Service, "backend", m.Backend, "address", m.Address)
		b.happened(Event{
			Kind: KindHand, Service: m.Service, Backend: m.Backend, Cause: CauseConfig,
			Evidence: fmt.Sprintf("%s by hand forgotten: the configuration no longer has it at %v", what, m.Address),
		}, time.Now())
	}
}

// forget takes off the disk what is no longer in force. If that fails Run tries again: it matters to a start only.
// b.hands is held, b.mu is not.
func (b *Book) forget() error {
	b.mu.Lock()
	list, configured := b.ledger.marks(), b.configured
	b.mu.Unlock()
	if !configured || slices.Equal(list, b.marks) {
		return nil
	}
	err := b.writeMarks(list)
	if err != nil {
		b.log.Warn("a forgotten drain is still on disk", "error", err)
	}
	return err
}
