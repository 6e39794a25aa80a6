package control

import (
	"fmt"
	"net/http"
	"time"
)

// One writer: of all health daemons that may run on a node, one reports. Two would take backends up and down in turn.

// staleAfter is how old the last report may be, in a daemon to which a health daemon reports every two seconds.
const staleAfter = 10 * time.Second

// writer is the health daemon that reported last.
type writer struct {
	source   string // empty: nobody has since the start
	version  uint64 // of what it knows, as taken last
	reported time.Time
	gone     bool   // its connections are closed
	refused  string // another one that was told to keep away
}

// holds says whether w is to be the only one that reports.
func (w *writer) holds(now time.Time) bool {
	return w.source != "" && !w.gone && now.Sub(w.reported) <= staleAfter
}

// claim decides whether a report is taken. taken says that it is known already: it was sent again, or what came after it
// is here. The lock is held.
func (b *Book) claim(r *HealthReport, now time.Time) (taken bool, err error) {
	w := &b.writer
	if r.Source != w.source {
		if w.holds(now) {
			return false, b.refuse(r.Source, now)
		}
		if r.Base != 0 {
			return false, ErrResync
		}
		b.happened(Event{Kind: KindHealthd, From: w.source, To: "reports", Evidence: r.Source + " reports"}, now)
		b.log.Info("health daemon reports", "source", r.Source)
		*w = writer{source: r.Source}
	}
	switch silent := now.Sub(w.reported); {
	case r.Version <= w.version:
		taken = true
	case r.Base != 0 && r.Base != w.version:
		return false, ErrResync
	case !w.reported.IsZero() && (w.gone || silent > staleAfter):
		b.happened(Event{Kind: KindHealthd, From: "silent", To: "reports", Evidence: fmt.Sprintf("%s reports again, after %v", r.Source, silent.Round(time.Millisecond))}, now)
		b.log.Info("health daemon reports again", "source", r.Source, "silent", silent)
	}
	w.version, w.reported, w.gone = max(r.Version, w.version), now, false
	return taken, nil
}

// refuse keeps a second health daemon away.
func (b *Book) refuse(source string, now time.Time) error {
	w := &b.writer
	ago := fmt.Sprintf("%.1fs", now.Sub(w.reported).Seconds())
	if w.refused != source {
		w.refused = source
		b.happened(Event{Kind: KindHealthd, From: w.source, To: "refused", Evidence: source + " is refused: " + w.source + " reports already"}, now)
		b.log.Warn("a second health daemon is refused", "source", source, "reports", w.source)
	}
	return &APIError{
		Code:    http.StatusLocked,
		Message: fmt.Sprintf("%s reports already, last %s ago; only one sluice-healthd may report", w.source, ago),
	}
}

// Release says that all connections of a health daemon are closed: another one may report at once. What it has reported
// stays in use. One that does not report is ignored.
func (b *Book) Release(source string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w := &b.writer; source == w.source && !w.gone {
		w.gone = true
		b.happened(Event{Kind: KindHealthd, From: "reports", To: "gone", Evidence: source + " has closed its connections; the last known health stays in use"}, time.Now())
		b.log.Info("the health daemon has gone; the last known health stays in use", "source", source)
	}
}
