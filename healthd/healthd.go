// Package healthd finds out which backends are healthy and tells the forwarder. It runs as a process of its own, beside
// the forwarder (`sluice-healthd run`), so that a slow or crashed probe never meets a packet: when it ends, the
// forwarder keeps the last health it knew.
//
// A [Daemon] asks the forwarder's control API what to watch, and follows that list by long poll (targets.go). What it learns comes
// from three sides:
//
//   - Probes (package probe), which a schedule runs at their times (schedule.go). Backends that several services share are probed once
//     for all of them, where the checks are equal. Those with `via: tunnel` go as data goes (package tunnel).
//   - The forwarder's counts of how new connections fare, a line each tenth of a second (signals.go), in which package outlier looks
//     for backends that do worse than the others of their service.
//   - Agents on backends, which are asked what they can (package capability), where a service may answer SYNs with cookies.
//
// What that means for a backend, the state machine in package verdict says. Changes are told to the forwarder at once, and signs of
// life every two seconds (report.go). It is told everything after it or this process has started again, and after any doubt.
//
// A process that was stopped, or got no CPU, takes no failure of a probe in that time for the backend's (pause.go). All times are
// differences by the monotonic clock; a step of the wall clock changes nothing.
//
// One mutex guards what is known; nothing is waited for under it. Privileges are needed by two things only: `via: tunnel` needs
// CAP_NET_RAW, and so does `ping` where net.ipv4.ping_group_range does not admit the process.
package healthd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/healthd/probe"
	"github.com/sluice-lb/sluice/healthd/tunnel"
	"github.com/sluice-lb/sluice/healthd/verdict"
	"github.com/sluice-lb/sluice/internal/control"
)

// Forwarder is the control API as far as health is concerned. [control.Client] is one.
type Forwarder interface {
	// Targets returns what to watch, as soon as that is not what boot and generation name, or after wait.
	Targets(ctx context.Context, boot string, generation uint64, wait time.Duration) (control.Targets, error)
	// Report hands over what is known. After control.ErrBoot (the forwarder has started again) and control.ErrResync (it lacks what the
	// report builds on) it wants everything. While another health daemon reports, the error is a control.APIError of code 423.
	Report(ctx context.Context, report control.HealthReport) (control.HealthAnswer, error)
	// Signals calls each with the lines of the forwarder's counts until ctx ends, the forwarder does, or each fails.
	Signals(ctx context.Context, each func(control.SignalsLine) error) error
}

const (
	longPoll   = 30 * time.Second // how long the forwarder may sit on a question for targets
	firstProbe = time.Second      // a new backend is probed first within this time, or its interval
	firstRate  = 5000             // but of very many no more than so many a second
)

// Options are what a Daemon is made with.
type Options struct {
	Name    string // who reports, usually the node's name
	Version string // is told to HTTP servers
	// MostProbes is how many probes may be under way at once; see ProbesFor.
	MostProbes int
	Log        *slog.Logger
}

// Daemon watches the backends of one forwarder.
type Daemon struct {
	forwarder Forwarder
	log       *slog.Logger
	source    string
	most      int
	probe     func(context.Context, *probe.Target) probe.Result
	tunnel    dialer
	pulse     pulse
	schedule  *schedule // made by Run

	mu         sync.Mutex
	boot       string // of the forwarder whose targets these are; empty: none yet
	generation uint64 // of the targets
	watched    map[key]*watched
	order      []*watched // all of them, in the order of the targets
	monitors   map[string]*monitor
	passive    map[string]*passive // by service
	ending     map[*watched]bool   // those whose ejection, or observation, ends some time
	agents     map[string]*asked   // by address and port
	askAgain   context.CancelFunc  // interrupts the question for targets that is under way

	news  chan struct{} // capacity 1: something has changed since the last report was made up
	there chan struct{} // capacity 1: there is a forwarder that was not there before
	asked sync.WaitGroup
}

// dialer is a tunnel.Dialer that is made when it is first used: most nodes need none.
type dialer struct {
	once sync.Once
	*tunnel.Dialer
	err error
}

// DialContext is that of tunnel.Dialer.
func (d *dialer) DialContext(ctx context.Context, network string, path tunnel.Path, port uint16) (net.Conn, error) {
	d.once.Do(func() { d.Dialer, d.err = tunnel.New() })
	if d.err != nil {
		return nil, d.err
	}
	return d.Dialer.DialContext(ctx, network, path, port)
}

func (d *dialer) close() {
	d.once.Do(func() { d.err = net.ErrClosed })
	if d.Dialer != nil {
		_ = d.Dialer.Close()
	}
}

// New makes a daemon.
func New(f Forwarder, o Options) *Daemon {
	id := make([]byte, 4)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	d := &Daemon{
		forwarder: f,
		log:       o.Log,
		// Another one at each start: the forwarder tells the reports of a new process, which begin anew, from late ones of the old.
		source:   o.Name + "/" + hex.EncodeToString(id),
		most:     o.MostProbes,
		watched:  map[key]*watched{},
		monitors: map[string]*monitor{},
		passive:  map[string]*passive{},
		ending:   map[*watched]bool{},
		agents:   map[string]*asked{},
		askAgain: func() {},
		news:     make(chan struct{}, 1),
		there:    make(chan struct{}, 1),
	}
	d.probe = probe.New(probe.Options{UserAgent: "sluice-healthd/" + o.Version}).Probe
	return d
}

// Run watches and reports until ctx is done, and returns when every probe has ended. The forwarder need not be there:
// it is looked for as long as it takes.
func (d *Daemon) Run(ctx context.Context) error {
	d.schedule = newSchedule(ctx, d.most, d.probeOnce, d.crowded)
	d.pulse.base = time.Now()
	var all sync.WaitGroup
	all.Go(func() { d.pulse.serve(ctx, d.resumed) })
	all.Go(d.schedule.serve)
	all.Go(func() { d.follow(ctx) })
	all.Go(func() { d.report(ctx) })
	all.Go(func() { d.readSignals(ctx) })
	all.Go(func() { d.end(ctx) })
	all.Wait() // from here on nobody asks an agent
	d.asked.Wait()
	d.tunnel.close()
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
				d.log.Warn("the forwarder does not say what to watch; what is known is watched on", "error", err)
			}
			backoff = longer(backoff)
			sleep(ctx, backoff)
			continue
		case backoff > 0:
			d.log.Info("the forwarder says what to watch again")
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

// probeOnce makes one probe, and says whether the next one is to come fast.
func (d *Daemon) probeOnce(ctx context.Context, m *monitor) (fast bool) {
	began := time.Now()
	r := d.probe(ctx, &m.target)
	if !r.Good && !r.Nothing && d.pulse.pausedSince(began) {
		r = probe.Result{Nothing: true, Evidence: "this process was stopped meanwhile: " + r.Evidence, Asks: -1}
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	m.count(&r, now)
	a := answer(&r)
	for _, u := range m.users {
		if u.readiness {
			d.step(u.watched, verdict.Readiness(a), now)
		} else {
			d.step(u.watched, verdict.Probe(a), now)
		}
	}
	return m.fast()
}

// count counts a probe.
func (m *monitor) count(r *probe.Result, now time.Time) {
	switch {
	case r.Nothing:
		m.lastError = r.Evidence
		return
	case r.Good:
		m.good++
		m.latency.add(r.Latency)
	default:
		m.bad++
		m.lastError = r.Evidence
	}
	m.last = now.Round(0)
}

// step takes an event of a backend, and logs what an operator wants to hear of. d.mu is held.
func (d *Daemon) step(w *watched, e verdict.Event, now time.Time) {
	t, ok := w.step(e, now)
	if w.dirty {
		signal(d.news)
		d.place(w)
	}
	if ok {
		level := slog.LevelInfo
		switch {
		case t.To == "down", t.To == "ejected":
			level = slog.LevelWarn
		case t.From == "unknown" && t.To == "up": // at a start there are as many as backends
			level = slog.LevelDebug
		}
		d.log.Log(context.Background(), level, "backend is "+t.To, "service", w.service, "backend", w.backend, "address", w.address,
			"was", t.From, "cause", string(t.Cause), "evidence", t.Evidence)
	}
}

// crowded is called when probes begin to wait for others.
func (d *Daemon) crowded() {
	d.log.Warn("as many probes are under way as may be, and others come late: raise the limit on open files, the intervals, or look why probes take long",
		"most", d.most)
}

// resumed is called after a pause of the process.
func (d *Daemon) resumed(gap time.Duration) {
	d.log.Warn("this process did not run for a while: probes that failed meanwhile do not count", "pause", gap.Round(time.Millisecond))
}

// longer is the next backoff after one; 0: there was none.
func longer(backoff time.Duration) time.Duration {
	return min(max(firstBackoff, 2*backoff), maxBackoff)
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
