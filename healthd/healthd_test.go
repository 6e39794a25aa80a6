package healthd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
)

// fake stands for the control API of a forwarder that can be changed, stopped and started again.
type fake struct {
	mu      sync.Mutex
	gone    bool
	boot    int
	gen     uint64
	list    []Target
	agents  []string
	changed chan struct{}
	reports []control.HealthReport
	times   []time.Time
	asked   int
}

var errGone = errors.New("dial unix: no such file; is sluice running?")

func newFake(list ...Target) *fake {
	return &fake{gen: 1, list: list, changed: make(chan struct{})}
}

// servicesOf is a list as the control API has it: a service for each backend whose check or name differs.
func servicesOf(list []Target) (services []control.TargetService) {
	for _, t := range list {
		addr, _ := netip.ParseAddr(t.Address)
		services = append(services, control.TargetService{
			Name: t.Service, Check: &t.Check, Backends: []control.TargetBackend{{Name: t.Backend, Address: addr}},
		})
	}
	return services
}

// change applies f and wakes whoever waits for targets.
func (f *fake) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) reload(list ...Target) {
	f.change(func() { f.list, f.gen = list, f.gen+1 })
}

func (f *fake) Targets(ctx context.Context, boot string, generation uint64, wait time.Duration) (control.Targets, error) {
	deadline := time.After(wait)
	f.mu.Lock()
	f.asked++
	f.mu.Unlock()
	for {
		f.mu.Lock()
		changed, gone := f.changed, f.gone
		t := control.Targets{Boot: fmt.Sprint("boot", f.boot), Generation: f.gen, Services: servicesOf(f.list), Agents: slices.Clone(f.agents)}
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
	if f.gone {
		return control.HealthAnswer{}, errGone
	}
	boot := fmt.Sprint("boot", f.boot)
	if r.Boot != boot {
		return control.HealthAnswer{}, control.ErrBoot
	}
	f.reports = append(f.reports, r)
	f.times = append(f.times, time.Now())
	return control.HealthAnswer{Boot: boot, Generation: f.gen}, nil
}

// last returns the last report's states: "service/backend" → "up: evidence".
func (f *fake) last(t *testing.T) map[string]string {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.reports) == 0 {
		t.Fatal("no report came")
	}
	r := f.reports[len(f.reports)-1]
	out := map[string]string{}
	for _, b := range r.Backends {
		out[b.Service+"/"+b.Backend] = string(b.State) + ": " + b.Evidence
	}
	return out
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

// world answers probes: what a backend's address says now, and how often it was asked.
type world struct {
	mu     sync.Mutex
	bad    map[string]string // address → evidence
	probed map[string]int
	took   time.Duration
	active int
}

func newWorld() *world { return &world{bad: map[string]string{}, probed: map[string]int{}} }

func (w *world) probe(ctx context.Context, addr netip.AddrPort, _ config.Check) result {
	w.mu.Lock()
	w.probed[addr.String()]++
	w.active++
	evidence, took := w.bad[addr.Addr().String()], w.took
	w.mu.Unlock()
	sleep(ctx, took)
	w.mu.Lock()
	w.active--
	w.mu.Unlock()
	switch evidence {
	case "":
		return result{good: true, evidence: "connected"}
	case "no file descriptors":
		return result{nothing: true, evidence: evidence}
	}
	return result{evidence: evidence}
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

func web(n int) Target {
	return Target{
		Service: "web", Backend: fmt.Sprintf("web-%d", n), Address: fmt.Sprintf("10.0.0.%d", n),
		Check: config.Check{Type: "tcp", Port: 80, Interval: config.Duration(2 * time.Second),
			Timeout: config.Duration(time.Second), Rise: 2, Fall: 3},
	}
}

// start runs a daemon in the bubble until the test ends.
func start(t *testing.T, f Forwarder, w *world) (logs *logBook) {
	logs = &logBook{}
	d := New(f, "lb1", "test", slog.New(slog.NewTextHandler(logs, nil)))
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

func TestLearnsAndReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1), web(2)), newWorld()
		w.set("10.0.0.2", "connection refused")
		start(t, f, w)
		time.Sleep(1200 * time.Millisecond) // one probe each: the good one decides, the bad one does not
		same(t, "after the first probes", f.last(t), "web/web-1", "up: connected")
		time.Sleep(7 * time.Second)
		same(t, "after three bad ones", f.last(t), "web/web-1", "up: connected", "web/web-2", "down: connection refused")
		reports, _ := f.taken()
		if n := len(reports); n > 10 {
			t.Errorf("%d reports in 8 s for two changes", n)
		}
		r := reports[len(reports)-1]
		if !strings.HasPrefix(r.Source, "lb1/") || r.Boot != "boot0" || r.Generation != 1 || r.Version != uint64(len(reports)) {
			t.Errorf("report %+v", r)
		}
		if since := r.Backends[1].Since; time.Since(since) > 5*time.Second || since.IsZero() {
			t.Errorf("down since %v", since)
		}
	})
}

// A verdict reaches the forwarder at once, and without news a report comes every two seconds.
func TestNewsAtOnceAndHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1)), newWorld()
		start(t, f, w)
		time.Sleep(20 * time.Second)
		_, times := f.taken()
		for i := 3; i < len(times); i++ {
			if gap := times[i].Sub(times[i-1]); gap != heartbeat {
				t.Errorf("%v between two reports without news, want %v", gap, heartbeat)
			}
		}
		w.set("10.0.0.1", "HTTP 503")
		time.Sleep(10 * time.Second)
		same(t, "after it broke", f.last(t), "web/web-1", "down: HTTP 503")
		reports, times := f.taken()
		for i, r := range reports {
			if b := r.Backends; len(b) == 1 && b[0].State == control.StateDown {
				if late := times[i].Sub(b[0].Since); late > 10*time.Millisecond {
					t.Errorf("the news came %v late", late)
				}
				return
			}
		}
		t.Error("it was never reported down")
	})
}

func TestReloadTouchesOnlyWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1), web(2), web(3)), newWorld()
		w.set("10.0.0.1", "connection refused")
		start(t, f, w)
		time.Sleep(10 * time.Second)
		same(t, "to begin with", f.last(t), "web/web-1", "down: connection refused", "web/web-2", "up: connected", "web/web-3", "up: connected")

		// 2 gets another check, of which it fails every probe; 3 goes; 4 comes; 5 comes and is dead.
		other := web(2)
		other.Check.Port = 81
		w.set("10.0.0.2", "HTTP 404")
		w.set("10.0.0.5", "no answer within 1s")
		before := w.count("10.0.0.1:80")
		f.reload(web(1), other, web(4), web(5))
		synctest.Wait()
		time.Sleep(20 * time.Millisecond)
		same(t, "right after the reload", f.last(t), "web/web-1", "down: connection refused", "web/web-2", "up: connected")
		gone := w.count("10.0.0.3:80")
		time.Sleep(10 * time.Second)
		same(t, "a while later", f.last(t), "web/web-1", "down: connection refused", "web/web-2", "down: HTTP 404",
			"web/web-4", "up: connected", "web/web-5", "down: no answer within 1s")
		if n := w.count("10.0.0.3:80"); n != gone {
			t.Errorf("a backend that was removed was probed %d times more", n-gone)
		}
		if n := w.count("10.0.0.1:80") - before; n < 4 || n > 6 {
			t.Errorf("a backend that stayed was probed %d times in 10 s", n)
		}

		// A new address under an old name is a new backend: nothing is known about it.
		moved := web(1)
		moved.Address = "10.0.0.77"
		w.set("10.0.0.77", "connection refused")
		f.reload(moved)
		time.Sleep(50 * time.Millisecond)
		same(t, "after the move", f.last(t))

		f.reload()
		time.Sleep(5 * time.Second)
		same(t, "without targets", f.last(t))
	})
}

// A forwarder that starts again gets everything known with the first report, long before any new probe could decide.
func TestForwarderStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1), web(2)), newWorld()
		w.set("10.0.0.2", "connection refused")
		logs := start(t, f, w)
		time.Sleep(10 * time.Second)

		f.change(func() { f.gone = true })
		time.Sleep(time.Minute)
		probes := w.count("10.0.0.1:80")
		if probes < 30 {
			t.Errorf("%d probes while the forwarder was gone, want them to go on", probes)
		}
		f.mu.Lock()
		if f.asked > 80 {
			t.Errorf("asked %d times in a minute", f.asked)
		}
		f.reports, f.times = nil, nil
		f.mu.Unlock()
		if n := strings.Count(logs.String(), "level=WARN"); n > 4 {
			t.Errorf("%d warnings about one missing forwarder:\n%s", n, logs)
		}

		f.change(func() { f.gone, f.boot, f.gen = false, 1, 1 })
		time.Sleep(maxBackoff + 10*time.Millisecond)
		same(t, "a second after the start", f.last(t), "web/web-1", "up: connected", "web/web-2", "down: connection refused")
	})
}

// A forwarder that was replaced while the question for targets hangs on the old process is noticed by the refused report.
func TestForwarderReplacedWhileTheQuestionHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1)), newWorld()
		start(t, f, w)
		time.Sleep(5 * time.Second)
		f.mu.Lock()
		f.boot++ // and nobody is told
		f.reports = nil
		f.mu.Unlock()
		time.Sleep(heartbeat + 500*time.Millisecond)
		same(t, "after the next report", f.last(t), "web/web-1", "up: connected")
	})
}

// With a thousand backends the first probes are spread, and so are the later ones.
func TestProbesSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var list []Target
		for i := range 1000 {
			b := web(1)
			b.Backend, b.Address = fmt.Sprint("b", i), fmt.Sprintf("10.1.%d.%d", i/250, i%250)
			list = append(list, b)
		}
		f, w := newFake(list...), newWorld()
		start(t, f, w)
		most := 0
		for range 100 {
			before := w.total()
			time.Sleep(100 * time.Millisecond)
			most = max(most, w.total()-before)
		}
		if most > 200 { // a hundred on average to begin with
			t.Errorf("%d of 1000 probes within 100 ms", most)
		}
		if n := w.total(); n < 4500 || n > 6000 {
			t.Errorf("%d probes of 1000 backends in 10 s every 2 s", n)
		}
		if got := len(f.last(t)); got != 1000 {
			t.Errorf("%d backends reported", got)
		}
	})
}

func (w *world) total() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.probed {
		n += c
	}
	return n
}

// Probes that this node could not make change nothing, however many they are.
func TestProbesThatCouldNotBeMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1), web(2)), newWorld()
		w.set("10.0.0.2", "connection refused")
		start(t, f, w)
		time.Sleep(10 * time.Second)
		w.set("10.0.0.1", "no file descriptors")
		w.set("10.0.0.2", "no file descriptors")
		time.Sleep(time.Minute)
		same(t, "without file descriptors", f.last(t), "web/web-1", "up: connected", "web/web-2", "down: connection refused")
	})
}

// A target that makes no sense is said, and does not keep the others from being probed.
func TestTargetsThatCannotBeProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spoil := func(n int, f func(*Target)) Target {
			b := web(n)
			f(&b)
			return b
		}
		f := newFake(
			spoil(1, func(b *Target) { b.Address = "web-1.example" }),
			spoil(2, func(b *Target) { b.Check.Type = "icmp" }),
			spoil(3, func(b *Target) { b.Check.Port = 0 }),
			spoil(4, func(b *Target) { b.Check.Interval = 0 }),
			spoil(5, func(b *Target) { b.Check.Timeout = -1 }),
			web(6))
		w := newWorld()
		logs := start(t, f, w)
		time.Sleep(5 * time.Second)
		same(t, "beside bad targets", f.last(t), "web/web-6", "up: connected")
		for n := 1; n <= 5; n++ {
			if !strings.Contains(logs.String(), fmt.Sprintf("backend=web-%d error=", n)) {
				t.Errorf("nothing was said about web-%d:\n%s", n, logs)
			}
		}
	})
}

// A probe that takes its whole timeout does not lengthen the interval, and ends with the daemon.
func TestSlowProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1)), newWorld()
		w.took = time.Second
		w.set("10.0.0.1", "no answer within 1s")
		start(t, f, w)
		time.Sleep(20 * time.Second)
		if n := w.count("10.0.0.1:80"); n < 9 || n > 11 {
			t.Errorf("%d probes in 20 s, one is due every 2 s", n)
		}
	})
}
