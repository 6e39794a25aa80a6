// Package healthd finds out which backends are healthy and tells the forwarder. It runs as a process of its own, beside
// the forwarder (`sluice-healthd run`), so that a slow or crashed probe never meets a packet: when it ends, the
// forwarder keeps the last health it knew.
//
// A [Daemon] asks the forwarder's control API what to probe, and follows that list by long poll. Each backend has a
// goroutine that probes it ([net.Dialer] or [net/http], always a fresh connection to the backend's own address) and a
// hysteresis. Whenever a verdict changes, and every two seconds anyway, one report with everything known goes to the
// forwarder. Reports carry whole states, not changes, so a lost one does no harm.
//
// Agents on backends are asked what they can (package capability), where a service may answer SYNs with cookies; their answers go
// along with the reports.
//
// Verdicts belong to the Daemon and outlive the forwarder: one that restarts gets everything known with its first
// report. They end with the process; a new one learns anew, while the forwarder keeps what it has.
//
// Nothing here needs privileges.
package healthd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
)

// Forwarder is the control API as far as health is concerned. [control.Client] is one.
type Forwarder interface {
	// Targets returns what to probe, as soon as that is not what boot and generation name, or after wait.
	Targets(ctx context.Context, boot string, generation uint64, wait time.Duration) (control.Targets, error)
	// Report hands over everything known. It fails with control.ErrBoot if the forwarder is no longer the one whose
	// targets the report answers.
	Report(ctx context.Context, report control.HealthReport) (control.HealthAnswer, error)
}

const (
	heartbeat     = 2 * time.Second       // a report is sent so often, news or not
	coalesce      = 5 * time.Millisecond  // news wait so long for other news
	longPoll      = 30 * time.Second      // how long the forwarder may sit on a question for targets
	firstBackoff  = 50 * time.Millisecond // after the first failure to reach the forwarder
	maxBackoff    = time.Second           // and after many
	reportTimeout = 5 * time.Second       // for one report
	firstProbe    = time.Second           // a new backend is probed first after a random part of this, or of its interval
	jitter        = 0.1                   // of the interval, by which each wait is longer or shorter
	minInterval   = 10 * time.Millisecond // less is taken for a mistake
)

// Target is one backend to probe on behalf of one service.
type Target struct {
	Service, Backend, Address string
	Check                     config.Check
}

// Daemon probes the backends of one forwarder.
type Daemon struct {
	forwarder Forwarder
	log       *slog.Logger
	probe     func(context.Context, netip.AddrPort, config.Check) result
	source    string

	mu         sync.Mutex
	boot       string // of the forwarder whose targets these are; empty: none yet
	generation uint64 // of the targets
	monitors   map[key]*monitor
	agents     map[string]*asked  // by address and port
	askAgain   context.CancelFunc // interrupts the question for targets that is under way

	news   chan struct{}  // capacity 1: the state has changed since the last report was made up
	probes sync.WaitGroup // the monitors' goroutines
}

// key names a backend of a service.
type key struct{ service, backend string }

// monitor is one backend that is probed.
type monitor struct {
	target Target
	addr   netip.AddrPort
	stop   context.CancelFunc

	// Guarded by Daemon.mu.
	state    hysteresis
	since    time.Time // when the verdict was reached
	evidence string    // of the probe that decided it
}

// New makes a daemon. name says who reports, usually the node's name; version is told to HTTP servers.
func New(f Forwarder, name, version string, log *slog.Logger) *Daemon {
	id := make([]byte, 4)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	return &Daemon{
		forwarder: f,
		log:       log,
		probe:     newProber("sluice-healthd/" + version).probe,
		// Another one at each start: the forwarder tells the reports of a new process, which count from 1 again, from
		// late ones of the old.
		source:   name + "/" + hex.EncodeToString(id),
		monitors: map[key]*monitor{},
		agents:   map[string]*asked{},
		askAgain: func() {},
		news:     make(chan struct{}, 1),
	}
}

// Run probes and reports until ctx is done, and returns when every probe has ended. The forwarder need not be there:
// it is looked for as long as it takes.
func (d *Daemon) Run(ctx context.Context) error {
	var both sync.WaitGroup
	both.Go(func() { d.follow(ctx) })
	both.Go(func() { d.report(ctx) })
	both.Wait() // from here on nobody starts a monitor
	d.probes.Wait()
	return nil
}

// follow keeps the targets those of the forwarder.
func (d *Daemon) follow(ctx context.Context) {
	backoff := time.Duration(0)
	for {
		targets, err := d.ask(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, context.Canceled): // by askAgain
			continue
		case err != nil:
			if backoff == 0 {
				d.log.Warn("the forwarder does not say what to probe; what is known is probed on", "error", err)
			}
			backoff = min(max(firstBackoff, 2*backoff), maxBackoff)
			sleep(ctx, backoff)
			continue
		case backoff > 0:
			d.log.Info("the forwarder says what to probe again")
			backoff = 0
		}
		if !d.apply(ctx, targets) {
			sleep(ctx, firstBackoff) // so that a forwarder which does not wait is not asked all the time
		}
	}
}

// ask waits for targets that are not those which are known already.
func (d *Daemon) ask(ctx context.Context) (control.Targets, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.mu.Lock()
	d.askAgain = cancel
	boot, generation := d.boot, d.generation
	d.mu.Unlock()
	return d.forwarder.Targets(ctx, boot, generation, longPoll)
}

// apply starts and stops monitors so that they are those of targets. A backend that stays keeps its verdict, also when
// its check has changed: the new check has to speak against it often enough. One that has moved to another address is a
// new backend. It reports false when targets are those that there are already.
func (d *Daemon) apply(ctx context.Context, targets control.Targets) (news bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.boot == targets.Boot && d.generation == targets.Generation {
		return false
	}
	started := d.boot != targets.Boot
	d.boot, d.generation = targets.Boot, targets.Generation

	wanted := make(map[key]Target)
	for _, s := range targets.Services {
		if s.Check == nil {
			continue
		}
		for _, b := range s.Backends {
			wanted[key{s.Name, b.Name}] = Target{s.Name, b.Name, b.Address.String(), *s.Check}
		}
	}
	added, changed, removed := 0, 0, 0
	for k, m := range d.monitors {
		if _, ok := wanted[k]; !ok {
			m.stop()
			delete(d.monitors, k)
			removed++
		}
	}
	for k, t := range wanted {
		old := d.monitors[k]
		if old != nil && old.target.Address == t.Address && reflect.DeepEqual(old.target.Check, t.Check) {
			continue // whatever else has changed is nothing to the probes
		}
		addr, err := target(t)
		if err != nil {
			d.log.Error("a backend cannot be probed; its health stays as the forwarder knows it",
				"service", t.Service, "backend", t.Backend, "error", err)
		}
		if old != nil {
			old.stop()
			delete(d.monitors, k)
		}
		if err != nil {
			continue
		}
		m := &monitor{target: t, addr: addr}
		if old != nil && old.target.Address == t.Address {
			m.state, m.since, m.evidence = hysteresis{verdict: old.state.verdict}, old.since, old.evidence
			changed++
		} else {
			added++
		}
		var watch context.Context
		watch, m.stop = context.WithCancel(ctx)
		d.monitors[k] = m
		d.probes.Go(func() { d.watch(watch, m) })
	}
	d.applyAgents(ctx, targets.Agents)
	d.log.Info("backends to probe", "total", len(d.monitors), "added", added, "changed", changed, "removed", removed,
		"agents", len(d.agents), "generation", targets.Generation, "forwarder_started", started)
	signal(d.news)
	return true
}

// target checks what the forwarder wants to have probed.
func target(t Target) (netip.AddrPort, error) {
	addr, err := netip.ParseAddr(t.Address)
	switch {
	case err != nil:
		return netip.AddrPort{}, err
	case t.Check.Type != config.CheckTCP && t.Check.Type != config.CheckHTTP:
		return netip.AddrPort{}, fmt.Errorf("check type %q: this version knows %s and %s; is sluice-healthd older than sluice?",
			t.Check.Type, config.CheckTCP, config.CheckHTTP)
	case t.Check.Port == 0:
		return netip.AddrPort{}, errors.New("check port 0: expected 1 to 65535")
	case time.Duration(t.Check.Interval) < minInterval:
		return netip.AddrPort{}, fmt.Errorf("check interval %v: expected at least %v", time.Duration(t.Check.Interval), minInterval)
	case t.Check.Timeout <= 0:
		return netip.AddrPort{}, fmt.Errorf("check timeout %v: expected more than 0", time.Duration(t.Check.Timeout))
	}
	return netip.AddrPortFrom(addr, t.Check.Port), nil
}

// watch probes one backend until ctx is done.
func (d *Daemon) watch(ctx context.Context, m *monitor) {
	interval := time.Duration(m.target.Check.Interval)
	// At a start, and after a reload that adds many, the first probes spread instead of coming in one burst.
	wait := mathrand.N(min(interval, firstProbe))
	for sleep(ctx, wait) {
		start := time.Now()
		r := d.probe(ctx, m.addr, m.target.Check)
		d.take(m, r)
		spread := time.Duration((2*mathrand.Float64() - 1) * jitter * float64(interval))
		wait = max(interval+spread-time.Since(start), minInterval)
	}
}

// take is told of each probe.
func (d *Daemon) take(m *monitor, r result) {
	t := &m.target
	if r.nothing {
		d.log.Debug("probe without a result", "service", t.Service, "backend", t.Backend, "evidence", r.evidence)
		return
	}
	d.mu.Lock()
	before := m.state.verdict
	m.state = m.state.next(r.good, t.Check.Rise, t.Check.Fall)
	after := m.state.verdict
	if after != before {
		m.since, m.evidence = time.Now(), r.evidence
	}
	current := d.monitors[key{t.Service, t.Backend}] == m
	d.mu.Unlock()
	if after == before || !current {
		return
	}
	level := slog.LevelInfo
	if after == down {
		level = slog.LevelWarn
	}
	d.log.Log(context.Background(), level, "backend is "+after.String(), "service", t.Service, "backend", t.Backend,
		"address", m.addr, "was", before.String(), "evidence", r.evidence)
	signal(d.news)
}

// report sends what is known to the forwarder: soon after news, every heartbeat, and again soon after a failure.
func (d *Daemon) report(ctx context.Context) {
	beat := time.NewTimer(heartbeat)
	defer beat.Stop()
	backoff := time.Duration(0)
	var sequence uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.news:
			if !sleep(ctx, coalesce) {
				return
			}
		case <-beat.C:
		}
		wait := heartbeat
		if r, ok := d.known(); ok {
			sequence++
			r.Version = sequence
			if err := d.send(ctx, r); err != nil {
				if backoff == 0 && ctx.Err() == nil {
					d.log.Warn("a health report was not taken; sending again", "error", err)
				}
				backoff = min(max(firstBackoff, 2*backoff), maxBackoff)
				wait = backoff
			} else if backoff > 0 {
				d.log.Info("health reports are taken again")
				backoff = 0
			}
		}
		beat.Reset(wait)
	}
}

func (d *Daemon) send(ctx context.Context, r control.HealthReport) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	_, err := d.forwarder.Report(ctx, r)
	if errors.Is(err, control.ErrBoot) {
		// The new forwarder answers at once. The question that is under way may hang on the old one, as it drains.
		d.mu.Lock()
		d.askAgain()
		d.mu.Unlock()
	}
	return err
}

// known makes up a report. Before the targets are known there is none.
func (d *Daemon) known() (r control.HealthReport, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.boot == "" {
		return r, false
	}
	r = control.HealthReport{Boot: d.boot, Generation: d.generation, Source: d.source, Backends: []control.BackendHealth{}, Agents: d.knownAgents()}
	for k, m := range d.monitors {
		state := control.StateUp
		switch m.state.verdict {
		case unknown:
			continue
		case down:
			state = control.StateDown
		}
		r.Backends = append(r.Backends, control.BackendHealth{
			Service: k.service, Backend: k.backend,
			Health: control.Health{State: state, Since: m.since, Evidence: m.evidence},
		})
	}
	slices.SortFunc(r.Backends, func(a, b control.BackendHealth) int {
		if c := strings.Compare(a.Service, b.Service); c != 0 {
			return c
		}
		return strings.Compare(a.Backend, b.Backend)
	})
	return r, true
}

// signal leaves a note in a channel of capacity 1.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep reports false when ctx is done before d is over.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
