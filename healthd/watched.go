package healthd

import (
	"context"
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/healthd/probe"
	"github.com/sluice-lb/sluice/healthd/verdict"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
)

// key names a backend of a service.
type key struct{ service, backend string }

// watched is one backend of one service. All of it is guarded by Daemon.mu.
type watched struct {
	key
	address       netip.Addr
	checked       bool     // its service has a check
	check, ready  *monitor // nil: none; several backends may have the same
	passive       config.Passive
	out           bool // it is to take no new flows anyway
	judged        verdict.Backend
	settings      verdict.Settings
	observedUntil time.Time // with passive: observe, until when its traffic counts as bad
	observed      string    // and what was seen
	// Since when the forwarder has had no way to it, and when it was last told that it has none, or news.
	unreachedSince, unreachedLast time.Time
	dirty                         bool // not told since it changed
}

// monitor is one probe, which is made over and over, for all backends that have it in common: a machine that several services
// name, with equal checks, is probed once.
type monitor struct {
	id     string
	how    string // identity of check
	target probe.Target
	check  *config.Check

	// Guarded by schedule.mu.
	due   time.Time
	phase float64 // of the interval, 0 to 1
	place int     // in the heap
	ctx   context.Context
	stop  context.CancelFunc

	// Guarded by Daemon.mu.
	users     []user
	good, bad uint64
	last      time.Time
	lastError string
	latency   latencies
}

// user is a backend that a monitor probes, and which of its checks that is.
type user struct {
	*watched
	readiness bool
}

func (m *monitor) interval() time.Duration     { return time.Duration(m.check.Interval) }
func (m *monitor) fastInterval() time.Duration { return time.Duration(m.check.FastInterval) }

// settingsOf is how backends of a service are judged.
func settingsOf(s *control.TargetService) (out verdict.Settings) {
	out.Damped = true
	if c := s.Check; c != nil {
		out.Rise, out.Fall, out.Interval = c.Rise, c.Fall, time.Duration(c.Interval)
	}
	if c := s.Readiness; c != nil {
		out.ReadyRise, out.ReadyFall = c.Rise, c.Fall
	}
	if s.Passive.Mode == config.PassiveEject {
		out.Eject, out.Longest = time.Duration(s.Passive.Ejection), time.Duration(s.Passive.Longest)
	}
	return out
}

// step takes an event. It returns what an operator wants to hear of, if anything; ok says so.
func (w *watched) step(e verdict.Event, now time.Time) (t verdict.Transition, ok bool) {
	before := w.judged.View()
	w.judged, t, ok = w.judged.Next(e, now)
	w.dirty = w.dirty || w.judged.View() != before
	return t, ok
}

// answer is a probe's result as the verdict takes it.
func answer(r *probe.Result) verdict.Answer {
	return verdict.Answer{Good: r.Good, Nothing: r.Nothing, Weight: max(r.Asks, 0), HasWeight: r.Asks >= 0, Evidence: r.Evidence}
}

// fast says whether one of a monitor's backends is about to change.
func (m *monitor) fast() bool {
	for _, u := range m.users {
		if u.judged.Fast() {
			return true
		}
	}
	return false
}

// health is what is told of a backend. known is false while there is nothing to be told.
func (w *watched) health(now time.Time) (h control.Health, known bool) {
	v := w.judged.View()
	switch {
	case !w.checked:
		h.State = control.StateNone
	case !v.Decided:
		return h, false
	default:
		h = control.Health{State: control.State(v.State.String()), Since: v.Since.Round(0), Cause: control.CauseProbe, Evidence: v.Evidence}
	}
	if v.State.Alive() && !v.Ready {
		h.Unready = v.ReadyEvidence
	}
	if v.Weight != 100 {
		h.Asks = &v.Weight
	}
	switch {
	case now.Before(v.EjectedUntil):
		h.EjectedMS, h.Ejected = max(1, v.EjectedUntil.Sub(now).Milliseconds()), v.EjectedEvidence
	case now.Before(w.observedUntil):
		h.Ejected = w.observed
	}
	return h, true
}

// stats are those of a backend's probes.
func (w *watched) stats() (list []control.ProbeStats) {
	for i, m := range []*monitor{w.check, w.ready} {
		if m == nil || m.good+m.bad == 0 {
			continue
		}
		list = append(list, control.ProbeStats{
			Service: w.service, Backend: w.backend, Readiness: i == 1, Good: m.good, Bad: m.bad, Last: m.last, LastError: m.lastError,
			P50: m.latency.percentile(0.5), P90: m.latency.percentile(0.9), P99: m.latency.percentile(0.99),
		})
	}
	return list
}
