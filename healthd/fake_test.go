package healthd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/healthd/probe"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
)

// fake stands for the control API of a forwarder that can be changed, stopped and started again. It is as strict as the real one
// about what a report builds on.
type fake struct {
	mu      sync.Mutex
	gone    bool
	other   bool // another health daemon reports
	loses   bool // the answer to a report, after taking it
	boot    int
	gen     uint64
	list    []control.TargetService
	agents  []string
	changed chan struct{}
	lines   chan control.SignalsLine

	version  uint64
	known    map[string]control.Health // "service/backend"
	answered map[string]control.AgentReport
	stats    map[string]control.ProbeStats
	reports  []control.HealthReport
	times    []time.Time
	asked    int
}

var errGone = errors.New("dial unix: no such file; is sluice running?")

func newFake(list ...control.TargetService) *fake {
	f := &fake{gen: 1, list: list, changed: make(chan struct{}), lines: make(chan control.SignalsLine)}
	f.forget()
	return f
}

// forget is what a forwarder does that starts again.
func (f *fake) forget() {
	f.version, f.known = 0, map[string]control.Health{}
	f.answered, f.stats = map[string]control.AgentReport{}, map[string]control.ProbeStats{}
}

// change applies do and wakes whoever waits for targets.
func (f *fake) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) reload(list ...control.TargetService) {
	f.change(func() {
		f.list, f.gen = list, f.gen+1
		there := map[string]bool{}
		for _, s := range list {
			for _, b := range s.Backends {
				there[s.Name+"/"+b.Name] = true
			}
		}
		maps.DeleteFunc(f.known, func(k string, _ control.Health) bool { return !there[k] })
	})
}

func (f *fake) Targets(ctx context.Context, boot string, generation uint64, wait time.Duration) (control.Targets, error) {
	deadline := time.After(wait)
	f.mu.Lock()
	f.asked++
	f.mu.Unlock()
	for {
		f.mu.Lock()
		changed, gone := f.changed, f.gone
		t := control.Targets{Boot: fmt.Sprint("boot", f.boot), Generation: f.gen, Services: slices.Clone(f.list), Agents: slices.Clone(f.agents)}
		f.mu.Unlock()
		if gone {
			return control.Targets{}, errGone
		}
		if t.Boot != boot || t.Generation != generation {
			return t, nil
		}
		select {
		case <-changed:
		case <-deadline:
			return t, nil
		case <-ctx.Done():
			return control.Targets{}, ctx.Err()
		}
	}
}

func (f *fake) Report(_ context.Context, r control.HealthReport) (control.HealthAnswer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	boot := fmt.Sprint("boot", f.boot)
	switch {
	case f.gone:
		return control.HealthAnswer{}, errGone
	case f.other:
		return control.HealthAnswer{}, &control.APIError{Code: http.StatusLocked, Message: "lb1/1111 reports already"}
	case r.Boot != boot, r.Base != 0 && r.Base != f.version:
		return control.HealthAnswer{}, control.ErrBoot
	}
	f.version = r.Version
	for _, b := range r.Backends {
		f.known[b.Service+"/"+b.Backend] = b.Health
	}
	for _, a := range r.Agents {
		f.answered[a.Agent] = a
	}
	for _, p := range r.Probes {
		f.stats[fmt.Sprint(p.Service, "/", p.Backend, " ", p.Readiness)] = p
	}
	f.reports = append(f.reports, r)
	f.times = append(f.times, time.Now())
	if f.loses {
		return control.HealthAnswer{}, errGone
	}
	return control.HealthAnswer{Boot: boot, Generation: f.gen}, nil
}

func (f *fake) Signals(ctx context.Context, each func(control.SignalsLine) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case line := <-f.lines:
			if err := each(line); err != nil {
				return err
			}
		}
	}
}

// states is what was told of each backend: "service/backend" → "up: evidence".
func (f *fake) states() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]string{}
	for k, h := range f.known {
		out[k] = string(h.State) + ": " + h.Evidence
	}
	return out
}

// health is what was told of one backend.
func (f *fake) health(name string) control.Health {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known[name]
}

// stat is the statistics that were told last of a backend's check, or readiness check.
func (f *fake) stat(name string, readiness bool) control.ProbeStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats[fmt.Sprint(name, " ", readiness)]
}

// taken returns all reports so far, and when they came.
func (f *fake) taken() ([]control.HealthReport, []time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.reports), slices.Clone(f.times)
}

// logBook is a log that may be read while it is written.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// world answers probes: what is said about a backend's address and port now, and how often it was asked.
type world struct {
	mu     sync.Mutex
	bad    map[string]string // address, or address and port → evidence
	asks   map[string]int    // address → percent
	probed map[string]int    // address and port
	took   time.Duration
	active int
	most   int
}

func newWorld() *world {
	return &world{bad: map[string]string{}, asks: map[string]int{}, probed: map[string]int{}}
}

func (w *world) probe(ctx context.Context, t *probe.Target) probe.Result {
	addr := netip.AddrPortFrom(t.Address, t.Check.Port).String()
	w.mu.Lock()
	w.probed[addr]++
	w.active++
	w.most = max(w.most, w.active)
	took := w.took
	w.mu.Unlock()
	if took > 0 { // no timers for nothing: there are many probes
		sleep(ctx, took)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.active--
	evidence := w.bad[addr]
	if evidence == "" {
		evidence = w.bad[t.Address.String()]
	}
	asks, ok := w.asks[t.Address.String()]
	if !ok {
		asks = -1
	}
	switch evidence {
	case "":
		return probe.Result{Good: true, Evidence: "connected", Asks: asks, Latency: 3 * time.Millisecond}
	case "no file descriptors":
		return probe.Result{Nothing: true, Evidence: evidence, Asks: -1}
	}
	return probe.Result{Evidence: evidence, Asks: -1}
}

func (w *world) set(addr, evidence string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bad[addr] = evidence
}

func (w *world) count(addr string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.probed[addr]
}

func (w *world) total() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.probed {
		n += c
	}
	return n
}

func check(port uint16) *config.Check {
	return &config.Check{
		Type: config.CheckTCP, Port: port, Via: config.ViaDirect, Interval: config.Duration(2 * time.Second), FastInterval: config.Duration(500 * time.Millisecond),
		Timeout: config.Duration(time.Second), Jitter: 10, Rise: 2, Fall: 3,
	}
}

// web is a service whose backends web-N have the addresses 10.0.0.N.
func web(numbers ...int) control.TargetService {
	s := control.TargetService{
		Name: "web", VIP: netip.MustParseAddr("192.0.2.10"), Protocol: "tcp", Forward: "ipip", Scheduler: "maglev", Check: check(80),
		Passive: config.Passive{Mode: config.PassiveEject, Ejection: config.Duration(10 * time.Second), Longest: config.Duration(5 * time.Minute), MaxShare: 50},
	}
	for _, n := range numbers {
		s.Backends = append(s.Backends, control.TargetBackend{Name: fmt.Sprint("web-", n), Address: netip.AddrFrom4([4]byte{10, 0, byte(n / 250), byte(n % 250)})})
	}
	return s
}

// start runs a daemon in the bubble until the test ends.
func start(t *testing.T, f Forwarder, w *world) (logs *logBook) {
	logs = &logBook{}
	d := New(f, Options{Name: "lb1", Version: "test", MostProbes: 100, Log: slog.New(slog.NewTextHandler(logs, nil))})
	d.probe = w.probe
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		if w.active != 0 {
			t.Errorf("%d probes are still under way after Run", w.active)
		}
		if t.Failed() {
			text := logs.String()
			t.Logf("the end of the log:\n%s", text[max(0, len(text)-4000):])
		}
	})
	return logs
}

func same(t *testing.T, what string, got map[string]string, want ...string) {
	t.Helper()
	m := map[string]string{}
	for i := 0; i < len(want); i += 2 {
		m[want[i]] = want[i+1]
	}
	if !maps.Equal(got, m) {
		t.Errorf("%s: %v, want %v", what, got, m)
	}
}
