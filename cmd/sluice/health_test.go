//go:build linux

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/control"
)

// quick is the pace of checks in tests that wait for their verdicts.
const quick = "interval: 200ms, fast_interval: 100ms, timeout: 150ms, rise: 2, fall: 2"

// must ends the test after an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A backend whose port is closed is out of the rotation within a second, at twenty connections a second to each, long before
// its next probe. It comes back once it answers again.
func TestHealthEjectsClosedPort(t *testing.T) {
	t.Parallel()
	s := newHealthSystem(t, 3)
	servers := s.serveOn(8080)
	s.up(s.checked("web", 8080, "{type: tcp, interval: 30s, timeout: 1s}", "passive: {mode: eject, ejection: 1s, longest: 1s}"))
	node := s.nodes[0]
	s.waitFor(node, 15*time.Second, "all up", known("web", all(3, control.StateUp)...))
	w := startWatch(t, node.takes)
	s.startLoad(on(8080), 75)
	time.Sleep(2 * time.Second)
	const rounds = 3 // a busy machine is slow, but not each time
	fastest := time.Hour
	for range rounds {
		closed := time.Now()
		must(t, servers["web-2"].do("close 8080"))
		s.waitFor(node, 10*time.Second, "web-2 is out", func(*control.Status) error {
			if w.left("web", "web-2", closed).IsZero() {
				return errors.New("it takes all")
			}
			return nil
		})
		took := w.left("web", "web-2", closed).Sub(closed)
		t.Logf("out after %v", took.Round(time.Millisecond))
		fastest = min(fastest, took)
		must(t, servers["web-2"].do("listen 8080"))
		s.waitFor(node, 60*time.Second, "all take flows", admits("web", all(3, "up")...))
		if fastest <= time.Second {
			break
		}
	}
	if fastest > time.Second {
		t.Errorf("the backend was out %v after its port was closed", fastest)
	}
	s.down()
}

// When all probes fail at once, it is the probes: traffic goes on, and none is lost. The same when no backend is ready.
func TestHealthFailsOpen(t *testing.T) {
	t.Parallel()
	s := newHealthSystem(t, 3)
	servers := s.serveOn(8080, 8081)
	s.up(s.checked("web", 8080, "{type: http, port: 8081, path: /health, "+quick+"}", "readiness: {type: http, port: 8081, path: /ready, "+quick+"}"))
	node := s.nodes[0]
	s.waitFor(node, 15*time.Second, "all up", known("web", all(3, control.StateUp)...))
	began := time.Now()
	requests := s.startLoad(on(8080), 75)
	for _, fault := range []struct {
		what, begin, end string
		seen             func(*control.Status) error
	}{
		{"all probes fail", "status /health 500", "status /health 200", known("web", all(3, control.StateDown)...)},
		{"none is ready", "status /ready 503", "status /ready 200", func(st *control.Status) error {
			for _, b := range st.Traffic.Services[0].Backends {
				if b.Health.Unready == "" {
					return fmt.Errorf("%s is ready", b.Name)
				}
			}
			return nil
		}},
	} {
		for _, w := range servers {
			must(t, w.do(fault.begin))
		}
		s.waitFor(node, 15*time.Second, fault.what, fault.seen)
		s.waitFor(node, 5*time.Second, fault.what+": traffic goes on", admits("web", all(3, "up")...))
		time.Sleep(time.Second)
		for _, w := range servers {
			must(t, w.do(fault.end))
		}
		s.waitFor(node, 15*time.Second, fault.what+": no longer", func(st *control.Status) error {
			for _, b := range st.Traffic.Services[0].Backends {
				if b.Health.State != control.StateUp || b.Health.Unready != "" || st.Traffic.Services[0].FailOpen {
					return fmt.Errorf("%s: %+v", b.Name, b.Health)
				}
			}
			return nil
		})
	}
	s.noneLost("failing open", requests.wait(), began)
	s.down()
}

// A health daemon that is stopped, and goes on much later with probes that have long had no answer, changes nothing.
func TestHealthdStopped(t *testing.T) {
	t.Parallel()
	s := newHealthSystem(t, 3)
	s.serveOn(8080)
	s.up(s.checked("web", 8080, "{type: http, path: /name, "+quick+"}"))
	stoppedHealthd(s, 12*time.Second)
}

// stoppedHealthd stops healthd for some time, longer than it takes to be stale.
func stoppedHealthd(s *system, stopped time.Duration) ([]turn, losses) {
	t, node := s.t, s.nodes[0]
	s.waitFor(node, 15*time.Second, "all up", known("web", all(3, control.StateUp)...))
	w := startWatch(t, node.takes)
	began := time.Now()
	requests := s.startLoad(on(8080), 30)
	must(t, node.healthd.Signal(unix.SIGSTOP))
	s.waitFor(node, 30*time.Second, "health is stale", func(st *control.Status) error {
		if !st.Health.Stale {
			return fmt.Errorf("the last report is %d ms old", st.Health.AgeMS)
		}
		return nil
	})
	time.Sleep(time.Until(began.Add(stopped)))
	must(t, node.healthd.Signal(unix.SIGCONT))
	s.waitFor(node, 15*time.Second, "healthd reports again", func(st *control.Status) error {
		if st.Health.Stale {
			return errors.New("it does not")
		}
		return nil
	})
	time.Sleep(2 * time.Second)
	turns := w.end()
	if len(turns) != 0 {
		t.Errorf("what backends take has changed: %v", turns)
	}
	n := s.noneLost(fmt.Sprintf("healthd stopped for %v", stopped), requests.wait(), began)
	s.down()
	return turns, n
}

// While one health daemon reports, another one is refused, and is told who does. When that ends, the other takes over.
func TestHealthdTwice(t *testing.T) {
	t.Parallel()
	s := newHealthSystem(t, 1)
	s.serveOn(8080)
	s.up(s.checked("web", 8080, "{type: http, path: /name, "+quick+"}"))
	node := s.nodes[0]
	s.waitFor(node, 15*time.Second, "up", known("web", control.StateUp))
	first := s.status(node).Health.Source
	second := s.healthdAt(node, "second")
	must(t, second.WaitOutput(10*time.Second, first+" reports already"))
	time.Sleep(500 * time.Millisecond)
	if source := s.status(node).Health.Source; source != first {
		t.Errorf("%s reports, beside %s", source, first)
	}
	must(t, node.healthd.Kill())
	s.waitFor(node, 15*time.Second, "the second one reports", func(st *control.Status) error {
		if !strings.HasPrefix(st.Health.Source, "second/") || st.Health.Stale {
			return fmt.Errorf("%s reports", st.Health.Source)
		}
		return nil
	})
	s.down()
}

// Maintenance holds over a restart, takes a backend out without a lost connection, and keeps its failing probes out of the log's
// warnings.
func TestHealthMaintenance(t *testing.T) {
	t.Parallel()
	s := newHealthSystem(t, 2)
	servers := s.serveOn(8080)
	s.up(s.checked("web", 8080, "{type: http, path: /name, "+quick+"}"))
	node := s.nodes[0]
	s.waitFor(node, 15*time.Second, "all up", known("web", all(2, control.StateUp)...))
	began := time.Now()
	requests := s.startLoad(on(8080), 30)
	time.Sleep(300 * time.Millisecond)
	s.sluice(node, "maintenance", "web/web-2", "on")
	s.waitFor(node, 5*time.Second, "web-2 takes nothing new", admits("web", "up", "draining"))
	time.Sleep(500 * time.Millisecond)
	must(t, servers["web-2"].do("close 8080"))
	s.waitFor(node, 15*time.Second, "web-2 is down", known("web", control.StateUp, control.StateDown))
	s.noneLost("maintenance", requests.wait(), began)
	warned := func() {
		t.Helper()
		for line := range strings.Lines(node.daemon.Output()) {
			if strings.Contains(line, "WARN") && strings.Contains(line, "web-2") {
				t.Errorf("a warning in maintenance: %s", line)
			}
		}
	}
	warned()

	must(t, node.daemon.Kill())
	must(t, s.start(node))
	s.waitFor(node, 15*time.Second, "web-2 is down", known("web", control.StateUp, control.StateDown))
	must(t, servers["web-2"].do("listen 8080"))
	s.waitFor(node, 15*time.Second, "all up", known("web", all(2, control.StateUp)...))
	s.waitFor(node, 5*time.Second, "web-2 takes nothing new", admits("web", "up", "draining"))
	if out := s.sluice(node, "health", "web/web-2"); !strings.Contains(out, "maintenance") {
		t.Errorf("sluice health says\n%s", out)
	}
	warned()
	s.sluice(node, "maintenance", "web/web-2", "off")
	s.waitFor(node, 5*time.Second, "web-2 takes flows", admits("web", "up", "up"))
	s.down()
}

// A probe through the tunnel sees what a direct one does not: the agent has ended, and the clients' packets with it. What has
// happened, and why, is in the events.
func TestHealthThroughTunnel(t *testing.T) {
	t.Parallel()
	s := newHealthSystem(t, 2)
	s.serveOn(8080, 8081)
	s.up(s.checked("tunnel", 8080, "{type: http, path: /name, via: tunnel, "+quick+"}", "passive: {mode: 'off'}"),
		s.checked("direct", 8081, "{type: http, path: /name, via: direct, "+quick+"}", "passive: {mode: 'off'}"))
	node := s.nodes[0]
	const up, down = control.StateUp, control.StateDown
	s.waitFor(node, 15*time.Second, "all up through the tunnel", known("tunnel", up, up))
	s.waitFor(node, 15*time.Second, "all up", known("direct", up, up))
	must(t, s.backends[1].agent.Stop(10*time.Second))
	s.waitFor(node, 15*time.Second, "web-2 down through the tunnel", known("tunnel", up, down))
	must(t, known("direct", up, up)(new(s.status(node))))
	s.waitFor(node, 5*time.Second, "web-2 out", admits("tunnel", "up", "down"))
	began := time.Now()
	requests := s.startLoad(on(8080), 30)
	time.Sleep(time.Second)
	s.noneLost("without the agent of web-2", requests.wait(), began)
	events := s.events(node)
	if !slices.ContainsFunc(events, func(e healthEvent) bool {
		return e.Service == "tunnel" && e.Backend == "web-2" && e.To == "down" && e.Cause == "probe" && e.Evidence != ""
	}) {
		t.Errorf("no event tells why web-2 is down: %+v", events)
	}
	s.down()
}
