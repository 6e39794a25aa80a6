package healthd

import (
	"context"
	"time"

	"github.com/sluice-lb/sluice/healthd/outlier"
	"github.com/sluice-lb/sluice/healthd/verdict"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
)

// unreachedTime is how long the node has to have had no way to a backend: neighbours are resolved meanwhile.
const unreachedTime = 500 * time.Millisecond

// endingTurn is how often is looked whether ejections are over. The forwarder ends them by itself.
const endingTurn = 250 * time.Millisecond

// passive is what watches the traffic of one service. Guarded by Daemon.mu.
type passive struct {
	settings outlier.Settings
	detector *outlier.Detector
	samples  []outlier.Sample // of the line that is being read
}

// applyPassive makes the detectors those of services. d.mu is held, and d.watched is of the new targets, and
// no longer has what is gone.
func (d *Daemon) applyPassive(services []control.TargetService, gone []*watched) {
	before := d.passive
	d.passive = map[string]*passive{}
	for i := range services {
		s := &services[i]
		if s.Passive.Mode == config.PassiveOff {
			continue
		}
		settings := outlier.Settings{MaxShare: float64(s.Passive.MaxShare) / 100, BySource: s.Scheduler == string(config.SchedulerSource)}
		p := before[s.Name]
		if p == nil || p.settings != settings {
			p = &passive{settings: settings, detector: outlier.New(settings)}
		}
		d.passive[s.Name] = p
		for _, b := range s.Backends {
			d.place(d.watched[key{s.Name, b.Name}])
		}
	}
	for _, w := range gone {
		delete(d.ending, w)
		if p := d.passive[w.service]; p != nil && d.watched[w.key] == nil {
			p.detector.Remove(w.backend)
		}
	}
}

// place tells the detector of a backend's service what the backend takes. d.mu is held.
func (d *Daemon) place(w *watched) {
	p := d.passive[w.service]
	if p == nil {
		return
	}
	v, state := w.judged.View(), outlier.In
	switch {
	case w.out, w.checked && !v.Decided, !v.Ready:
		state = outlier.Idle
	case v.State.Dead(), !v.EjectedUntil.IsZero(), !w.observedUntil.IsZero():
		state = outlier.Out
	}
	p.detector.Set(w.backend, state)
}

// readSignals reads the forwarder's counts until ctx is done, and looks for backends that do badly.
func (d *Daemon) readSignals(ctx context.Context) {
	backoff := time.Duration(0)
	for ctx.Err() == nil {
		err := d.forwarder.Signals(ctx, func(line control.SignalsLine) error {
			if backoff > 0 {
				d.log.Info("the forwarder tells how connections fare again")
				backoff = 0
			}
			d.observe(&line, time.Now())
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		if backoff == 0 {
			d.log.Warn("the forwarder does not tell how connections fare: backends are watched by probes alone", "error", err)
		}
		backoff = longer(backoff)
		sleep(ctx, backoff)
	}
}

// observe takes one line of counts.
func (d *Daemon) observe(line *control.SignalsLine, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range line.Backends {
		b := &line.Backends[i]
		w, p := d.watched[key{b.Service, b.Backend}], d.passive[b.Service]
		if w == nil || p == nil {
			continue
		}
		switch {
		case b.HopReady:
			w.unreachedSince = time.Time{}
		case w.unreachedSince.IsZero() || now.Sub(w.unreachedLast) > time.Second: // while it lasts, each line says so
			w.unreachedSince = now
		}
		w.unreachedLast = now
		p.samples = append(p.samples, outlier.Sample{
			Backend: b.Backend, SYNs: b.SYNs, Completed: b.Completed, Retransmitted: b.Retransmitted, Resets: b.Resets,
			Unreachable: b.Unreachable, Sources: b.Sources, NoHop: !b.HopReady && now.Sub(w.unreachedSince) >= unreachedTime,
		})
	}
	suspended := map[string]bool{}
	for _, name := range line.Suspended {
		suspended[name] = true
	}
	for name, p := range d.passive {
		for _, v := range p.detector.Observe(now, p.samples, suspended[name]) {
			if w := d.watched[key{name, v.Backend}]; w != nil {
				d.suspect(w, &v, now)
			}
		}
		p.samples = p.samples[:0]
	}
}

// suspect acts on what a detector found about a backend. d.mu is held.
func (d *Daemon) suspect(w *watched, v *outlier.Verdict, now time.Time) {
	switch {
	case v.Held:
		d.log.Warn("new connections fail at a backend, but too many are out to eject it", "service", w.service, "backend", w.backend,
			"evidence", v.Evidence)
		return
	case w.passive.Mode == config.PassiveObserve:
		w.observedUntil, w.observed, w.dirty = now.Add(time.Duration(w.passive.Ejection)), "would be ejected: "+v.Evidence, true
		d.log.Warn("new connections fail at a backend; passive.mode is observe, so it stays", "service", w.service, "backend", w.backend,
			"evidence", v.Evidence)
		signal(d.news)
	default:
		d.step(w, verdict.Outlier{Evidence: v.Evidence}, now)
	}
	d.ending[w] = true
	if w.check != nil {
		d.schedule.hurry(w.check)
	}
	d.place(w) // one that was not ejected after all is In again
}

// end ends ejections whose time is over, until ctx is done.
func (d *Daemon) end(ctx context.Context) {
	tick := time.NewTicker(endingTurn)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d.endDue(time.Now())
	}
}

func (d *Daemon) endDue(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for w := range d.ending {
		if !w.observedUntil.IsZero() && !now.Before(w.observedUntil) {
			w.observedUntil, w.observed, w.dirty = time.Time{}, "", true
			signal(d.news)
		}
		d.step(w, verdict.Tick{}, now)
		d.place(w)
		if w.judged.View().EjectedUntil.IsZero() && w.observedUntil.IsZero() {
			delete(d.ending, w)
		}
	}
}
