//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// newHealthSystem makes a system of one node whose client has eight addresses, so that a backend which fails all of them is not
// taken for a client that fails.
func newHealthSystem(t testing.TB, backends int) *system {
	t.Helper()
	return newSystemWith(t, rigOptions{nodes: 1, backends: backends, queues: 2, sources: 8})
}

// checked returns a service on a port of the IPv4 VIP, with a check and further lines of its configuration.
func (s *system) checked(name string, port int, check string, lines ...string) rigService {
	v := s.service(testVIP4, "tcp", fmt.Sprint(port), "ipip", false)
	v.Name, v.Check, v.Options = name, check, strings.Join(lines, "\n    ")
	return v
}

// waitFor waits until a node is as wanted.
func (s *system) waitFor(n *rigNode, limit time.Duration, what string, as func(*control.Status) error) {
	s.t.Helper()
	err := n.daemon.WaitUntil(limit, what, func() error {
		st, err := n.status()
		if err != nil {
			return err
		}
		return as(&st)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// admits is what all backends of a service are to take: "up", "draining", "down".
func admits(service string, want ...string) func(*control.Status) error {
	return func(st *control.Status) error {
		for i := range st.Traffic.Services {
			v := &st.Traffic.Services[i]
			if v.Name != service {
				continue
			}
			for j, b := range v.Backends {
				if b.Admit != want[j] {
					return fmt.Errorf("%s/%s is %s (health: %s, %s), not %s", service, b.Name, b.Admit, b.Health.State, b.Health.Evidence, want[j])
				}
			}
			return nil
		}
		return fmt.Errorf("there is no service %s", service)
	}
}

// known is what health is to say about all backends of a service.
func known(service string, want ...control.State) func(*control.Status) error {
	return func(st *control.Status) error {
		for i, state := range want {
			b := findBackend(st, service, fmt.Sprintf("web-%d", i+1))
			if b == nil || b.Health.State != state {
				return fmt.Errorf("web-%d of %s is not %s: %+v", i+1, service, state, b)
			}
		}
		return nil
	}
}

// all is the same want for so many backends.
func all[T any](n int, want T) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = want
	}
	return out
}

// turn is a change of what a backend takes.
type turn struct {
	at       time.Time
	backend  control.BackendKey
	from, to string
}

// watch sees every change of what backends take that lasts for some milliseconds.
type watch struct {
	stop  chan struct{}
	ended sync.WaitGroup
	mu    sync.Mutex
	turns []turn
}

// startWatch looks at backends every ten milliseconds until it is stopped. Who cannot be asked is asked again.
func startWatch(t testing.TB, look func() (map[control.BackendKey]string, error)) *watch {
	w := &watch{stop: make(chan struct{})}
	t.Cleanup(func() { w.end() })
	w.ended.Go(func() {
		var last map[control.BackendKey]string
		for {
			if now, err := look(); err == nil {
				at := time.Now()
				w.mu.Lock()
				for b, to := range now {
					if from := last[b]; from != "" && from != to {
						w.turns = append(w.turns, turn{at, b, from, to})
					}
				}
				w.mu.Unlock()
				last = now
			}
			select {
			case <-w.stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	return w
}

// takes is how a node's status has it.
func (n *rigNode) takes() (map[control.BackendKey]string, error) {
	st, err := n.status()
	if err != nil {
		return nil, err
	}
	out := map[control.BackendKey]string{}
	for _, v := range st.Traffic.Services {
		for _, b := range v.Backends {
			out[control.BackendKey{Service: v.Name, Backend: b.Name}] = b.Admit
		}
	}
	return out, nil
}

// since returns the turns since a time, of one service or of all for "".
func (w *watch) since(start time.Time, service string) (out []turn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.turns {
		if !n.at.Before(start) && (service == "" || n.backend.Service == service) {
			out = append(out, n)
		}
	}
	return out
}

// left tells when a backend first ceased to be up; zero: it has not.
func (w *watch) left(service, backend string, start time.Time) time.Time {
	for _, n := range w.since(start, service) {
		if n.backend.Backend == backend && n.from == "up" {
			return n.at
		}
	}
	return time.Time{}
}

// end stops the watch and returns all turns.
func (w *watch) end() []turn {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	w.ended.Wait()
	return w.turns
}

func (n turn) String() string {
	return fmt.Sprintf("%s/%s: %s to %s", n.backend.Service, n.backend.Backend, n.from, n.to)
}

// healthEvent is an event as `sluice events --json` prints it.
type healthEvent struct {
	Time                                              time.Time
	Kind, Service, Backend, From, To, Cause, Evidence string
}

// events returns what a node tells of its past.
func (s *system) events(n *rigNode) (list []healthEvent) {
	s.t.Helper()
	for line := range strings.Lines(s.sluice(n, "events", "--json")) {
		var e healthEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			s.t.Fatalf("sluice events --json: %q: %v", line, err)
		}
		list = append(list, e)
	}
	return list
}

// noneLost fails the test if a request since a time was lost.
func (s *system) noneLost(what string, requests []attempt, since time.Time) losses {
	s.t.Helper()
	n := lossesBetween(requests, since, time.Now())
	s.t.Logf("%s: %d requests, %d lost, %d slow", what, n.requests, n.lost, n.slow)
	if n.lost != 0 || n.requests == 0 {
		s.t.Errorf("%s: %d of %d requests were lost: %v", what, n.lost, n.requests, n.why)
	}
	return n
}

// healthdAt starts one more health daemon beside that of a node.
func (s *system) healthdAt(n *rigNode, name string) *testenv.Process {
	s.t.Helper()
	p, err := n.Start(testenv.Cmd{Path: s.bin + "/sluice-healthd", Args: []string{"run", "--socket", n.socket, "--name", name}})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// on is an address of the IPv4 VIP.
func on(port uint16) netip.AddrPort { return netip.AddrPortFrom(testVIP4, port) }
