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
	since time.Time // zero: it is not drained
	until time.Time // by the wall clock; zero: without end
	cut   bool      // until is over
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

// due says whether the drain's time is over at the time now.
func (h hand) due(now time.Time) bool { return !h.until.IsZero() && !now.Before(h.until) }

// status is h as the API shows it; nil when nothing is set.
func (h hand) status() *HandStatus {
	if h.since.IsZero() {
		return nil
	}
	return &HandStatus{Since: h.since, Until: h.until, Cut: h.cut}
}

// savedDrain is a drain on disk. It belongs to the backend's address, too.
type savedDrain struct {
	Service string     `json:"service"`
	Backend string     `json:"backend"`
	Address netip.Addr `json:"address"`
	Since   time.Time  `json:"since"`
	Until   time.Time  `json:"until,omitzero"`
}

func (s *savedDrain) hand(now time.Time) hand {
	h := hand{since: s.Since, until: s.Until}
	h.cut = h.due(now)
	return h
}

// drains returns all drains, in a stable order.
func (l *ledger) drains() []savedDrain {
	list := []savedDrain{}
	for i := range l.services {
		s := &l.services[i]
		for _, b := range s.backends {
			if !b.hand.since.IsZero() {
				list = append(list, savedDrain{s.name, b.name, b.address, b.hand.since, b.hand.until})
			}
		}
	}
	sortDrains(list)
	return list
}

func sortDrains(list []savedDrain) {
	slices.SortFunc(list, func(a, b savedDrain) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend), a.Address.Compare(b.Address))
	})
}

// with returns list, in its order, with s in the place of what it has about the same backend. One that is not drained
// is left out.
func with(list []savedDrain, s savedDrain) []savedDrain {
	out := slices.DeleteFunc(slices.Clone(list), func(d savedDrain) bool { return d.Service == s.Service && d.Backend == s.Backend })
	if !s.Since.IsZero() {
		out = append(out, s)
	}
	sortDrains(out)
	return out
}

// cut ends the drains whose time is over at the time now, and returns their backends.
func (l *ledger) cut(now time.Time) (keys []BackendKey) {
	for i := range l.services {
		s := &l.services[i]
		for _, b := range s.backends {
			if !b.hand.cut && b.hand.due(now) {
				b.hand.cut = true
				keys = append(keys, BackendKey{s.name, b.name})
			}
		}
	}
	return keys
}

// find returns a backend, or an error that names what there is instead.
func (l *ledger) find(key BackendKey) (*ledgerBackend, error) {
	if b := l.index[key]; b != nil {
		return b, nil
	}
	var services []string
	for i := range l.services {
		s := &l.services[i]
		services = append(services, s.name)
		if s.name == key.Service {
			var backends []string
			for _, b := range s.backends {
				backends = append(backends, b.name)
			}
			return nil, notFound("service %s has no backend %q; it has %s", s.name, key.Backend, some(backends))
		}
	}
	return nil, notFound("there is no service %q; there is %s", key.Service, some(services))
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
	return b.setHand(BackendKey{service, backend}, func(h *hand) {
		if h.since.IsZero() {
			h.since = now
		}
		h.until, h.cut = time.Time{}, false
		if timeout > 0 {
			h.until = now.Add(timeout)
		}
	})
}

// Undrain takes back what Drain did. It is like Drain, and does nothing to a backend that is not drained.
func (b *Book) Undrain(service, backend string) error {
	return b.setHand(BackendKey{service, backend}, func(h *hand) { *h = hand{} })
}

func (b *Book) setHand(key BackendKey, set func(*hand)) error {
	b.hands.Lock() // over the writing, so that the file and the ledger change alike
	defer b.hands.Unlock()

	b.mu.Lock()
	known, err := b.ledger.find(key)
	if err != nil {
		b.mu.Unlock()
		return err
	}
	was, address := known.hand, known.address
	list := b.ledger.drains()
	b.mu.Unlock()

	is := was
	set(&is)
	if is == was {
		return nil
	}
	list = with(list, savedDrain{key.Service, key.Backend, address, is.since, is.until})
	if err := b.writeDrains(list); err != nil {
		return fmt.Errorf("%s/%s stays as it was: %w", key.Service, key.Backend, err)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	taking := b.ledger.taking(now)
	b.ledger.index[key].hand = is // it is there still: only Commit, which waits for us, could have removed it
	b.ledger.rise(taking, now)
	b.notice()
	switch {
	case is.since.IsZero():
		b.log.Info("backend undrained by hand", "service", key.Service, "backend", key.Backend)
	case is.until.IsZero():
		b.log.Info("backend drained by hand", "service", key.Service, "backend", key.Backend, "timeout", "none")
	default:
		b.log.Info("backend drained by hand", "service", key.Service, "backend", key.Backend, "until", is.until)
	}
	return nil
}

// writeDrains puts list on disk. b.hands is held, b.mu is not.
func (b *Book) writeDrains(list []savedDrain) error {
	if b.dir != "" {
		if err := writeState("drains", filepath.Join(b.dir, drainFile), list); err != nil {
			return err
		}
	}
	b.drains = list
	return nil
}

// forgotten says in the log which of the drains in list are no longer in force, since the configuration has changed. Both
// locks are held.
func (b *Book) forgotten(list []savedDrain) {
	for _, d := range list {
		known := b.ledger.index[BackendKey{d.Service, d.Backend}]
		if known == nil || known.address != d.Address {
			b.log.Warn("drain by hand forgotten: the configuration no longer has this backend at this address",
				"service", d.Service, "backend", d.Backend, "address", d.Address)
		}
	}
}

// forget takes off the disk what is no longer in force. If that fails Run tries again: it matters to a start only.
// b.hands is held, b.mu is not.
func (b *Book) forget() error {
	b.mu.Lock()
	list, configured := b.ledger.drains(), b.configured
	b.mu.Unlock()
	if !configured || slices.Equal(list, b.drains) {
		return nil
	}
	err := b.writeDrains(list)
	if err != nil {
		b.log.Warn("a forgotten drain is still on disk", "error", err)
	}
	return err
}
