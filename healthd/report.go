package healthd

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
)

const (
	heartbeat     = 2 * time.Second       // a report is sent so often, news or not
	coalesce      = 5 * time.Millisecond  // news wait so long for other news
	firstBackoff  = 50 * time.Millisecond // after the first failure to reach the forwarder
	maxBackoff    = time.Second           // and after many
	reportTimeout = 5 * time.Second       // for one report
	statsReports  = 5                     // heartbeats in which the statistics of all probes are sent
)

// teller is what the daemon remembers about its reports. Only report's goroutine has one.
type teller struct {
	version uint64 // of the last report
	taken   uint64 // of the last that was taken; 0: the next one holds everything
	place   int    // in the statistics, where the next heartbeat goes on
	backoff time.Duration
	refused string // why, said once
}

// report tells the forwarder what is known: news soon, and a sign of life every heartbeat. After a failure everything is
// told anew, since nobody knows what was taken.
func (d *Daemon) report(ctx context.Context) {
	timer := time.NewTimer(heartbeat)
	defer timer.Stop()
	var t teller
	for {
		beats := false
		select {
		case <-ctx.Done():
			return
		case <-d.news:
			if !sleep(ctx, coalesce) {
				return
			}
		case <-timer.C:
			beats = true
		}
		if r, ok := d.compose(&t, beats); ok && !d.tell(ctx, &t, r) {
			// The next one holds everything, soon.
			signal(d.news)
			select {
			case <-ctx.Done():
				return
			case <-d.there:
			case <-time.After(t.backoff):
			}
		}
		timer.Reset(heartbeat)
	}
}

// compose makes up the next report. Before the targets are known there is none.
func (d *Daemon) compose(t *teller, beats bool) (r control.HealthReport, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.boot == "" {
		return r, false
	}
	t.version++
	r = control.HealthReport{Boot: d.boot, Generation: d.generation, Source: d.source, Base: t.taken, Version: t.version}
	now := time.Now()
	for _, w := range d.order {
		if t.taken > 0 && !w.dirty {
			continue
		}
		w.dirty = false
		if h, known := w.health(now); known {
			r.Backends = append(r.Backends, control.BackendHealth{Service: w.service, Backend: w.backend, Health: h})
		}
	}
	r.Agents = d.knownAgents(t.taken == 0)
	if beats || t.taken == 0 {
		n := (len(d.order) + statsReports - 1) / statsReports
		for range min(n, len(d.order)) {
			t.place = (t.place + 1) % len(d.order)
			r.Probes = append(r.Probes, d.order[t.place].stats()...)
		}
	}
	return r, true
}

// tell sends a report, and says whether it was taken.
func (d *Daemon) tell(ctx context.Context, t *teller, r control.HealthReport) bool {
	limited, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	_, err := d.forwarder.Report(limited, r)
	var api *control.APIError
	switch {
	case err == nil:
		if t.backoff > 0 {
			d.log.Info("health reports are taken again")
		}
		t.taken, t.backoff, t.refused = r.Version, 0, ""
		return true
	case ctx.Err() != nil:
		return false
	case errors.Is(err, control.ErrResync): // it lacks a report, or has started again without our notice
	case errors.Is(err, control.ErrBoot):
		// The new forwarder answers at once, while the question for targets that is under way may hang on the old one as it drains.
		d.mu.Lock()
		d.askAgain()
		d.mu.Unlock()
	case errors.As(err, &api) && api.Code == http.StatusLocked:
		if t.refused != err.Error() {
			d.log.Error("this health daemon is not listened to; it goes on probing, and tries again", "error", err)
			t.refused = err.Error()
		}
		t.backoff = maxBackoff
	default:
		if t.backoff == 0 {
			d.log.Warn("a health report was not taken; sending again", "error", err)
		}
	}
	t.taken = 0
	t.backoff = longer(t.backoff)
	return false
}
