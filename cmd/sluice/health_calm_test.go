//go:build linux && health

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// hasty is a pace at which a second is long.
var hasty = checkPace{interval: 200 * time.Millisecond, fast: 100 * time.Millisecond, timeout: 150 * time.Millisecond, rise: 2, fall: 2}

// calmTime is how long each of these scenarios takes.
const calmTime = 60 * time.Second

// table is shared by scenarios that run side by side.
type table struct {
	io.Writer
	mu sync.Mutex
}

func (t *table) row(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t, format, args...)
}

// TestHealthCalm does what must not make health nervous, and prints how often backends left the rotation or came back, and what
// clients lost.
func TestHealthCalm(t *testing.T) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "SCENARIO\tSYSTEM\tTURNS\tLOST\tSLOW\tOF\n")
	out := &table{Writer: w}
	t.Run("all", func(t *testing.T) {
		for _, scenario := range []struct {
			name string
			run  func(*testing.T, *table, string)
		}{
			{"flapping at the usual pace", func(t *testing.T, out *table, name string) { flapping(t, out, name, usual) }},
			{"flapping at a hasty pace", func(t *testing.T, out *table, name string) { flapping(t, out, name, hasty) }},
			{"30 % of probes' packets lost", lossyProbes},
			{"daemon killed and started", restarts},
			{"healthd killed", killedHealthd},
			{"healthd stopped", stoppedFor},
		} {
			t.Run(scenario.name, func(t *testing.T) {
				t.Parallel()
				scenario.run(t, out, scenario.name)
			})
		}
	})
	w.Flush()
	t.Logf("turns: how often a backend left the rotation or came back in %v\n%s", calmTime, &text)
}

// stoppedFor stops healthd for a minute.
func stoppedFor(t *testing.T, out *table, name string) {
	s := newHealthSystem(t, 3)
	s.serveOn(8080)
	s.up(s.checked("web", 8080, fmt.Sprintf("{type: http, path: /name, %v}", usual)))
	turns, n := stoppedHealthd(s, calmTime)
	out.row("%s\t%s\t%d\t%d\t%d\t%d\n", name, systemPassive, len(turns), n.lost, n.slow, n.requests)
}

// flapping has a backend that is up for a second and down for a second. A turn every time would be sixty.
func flapping(t *testing.T, out *table, name string, p checkPace) {
	const mostTurns = 12
	r := newDetectRig(t, "ipip", p)
	server := r.servers["web-2"]
	began := time.Now()
	loads := map[string]*steadyLoad{}
	for system, to := range r.to {
		loads[system] = r.startLoad(to, 30)
	}
	for up := true; time.Since(began) < calmTime; up = !up {
		must(t, server.each(map[bool]string{true: "close", false: "listen"}[up], server.ports...))
		time.Sleep(time.Second)
	}
	for _, system := range []string{systemActive, systemPassive, systemHAProxy} {
		turns := r.watches[system].since(began, strings.ReplaceAll(system, "+", "-"))
		n := lossesBetween(loads[system].wait(), began, time.Now())
		out.row("%s\t%s\t%d\t%d\t%d\t%d\n", name, system, len(turns), n.lost, n.slow, n.requests)
		if system != systemHAProxy && len(turns) > mostTurns {
			t.Errorf("%s: %d turns, want at most %d: %v", system, len(turns), mostTurns, turns)
		}
		for _, turn := range turns {
			if turn.backend.Backend != "web-2" {
				t.Errorf("%v, which was always there", turn)
			}
		}
	}
	for _, w := range r.watches {
		w.end()
	}
	r.down()
}

// nft gives a namespace rules of nftables.
func (s *system) nft(ns *testenv.Namespace, rules string) {
	s.t.Helper()
	out, err := ns.Run(10*time.Second, testenv.Cmd{Path: "nft", Args: []string{"-f", "-"}, Stdin: strings.NewReader(rules)})
	if err != nil {
		s.t.Fatalf("nft %s: %v\n%s", rules, err, out)
	}
}

// lossyProbes loses 30 of 100 packets of probes on their way to all backends, and none of the clients'.
func lossyProbes(t *testing.T, out *table, name string) {
	s := newHealthSystem(t, 3)
	s.serveOn(8080, 8081)
	node := s.nodes[0]
	services := []rigService{
		s.checked("http", 8080, fmt.Sprintf("{type: http, port: 8080, path: /name, %v}", usual)),
		s.checked("tcp", 8081, fmt.Sprintf("{type: tcp, port: 8081, %v}", usual)),
	}
	s.up(services...)
	for _, v := range services {
		s.waitFor(node, 20*time.Second, "all up", known(v.Name, all(3, control.StateUp)...))
	}
	w := startWatch(t, node.takes)
	for _, b := range s.backends {
		s.nft(b.Namespace, fmt.Sprintf(`table ip loss { chain in { type filter hook prerouting priority 0; ip saddr %v ip protocol tcp numgen random mod 100 < 30 drop; }; }`, node.IPv4))
	}
	began := time.Now()
	loads := []*steadyLoad{s.startLoad(on(8080), 30), s.startLoad(on(8081), 30)}
	time.Sleep(calmTime)
	for i, v := range services {
		turns := w.since(began, v.Name)
		n := lossesBetween(loads[i].wait(), began, time.Now())
		out.row("%s\t%s\t%d\t%d\t%d\t%d\n", name, v.Name+" checks", len(turns), n.lost, n.slow, n.requests)
		if len(turns) != 0 || n.lost != 0 {
			t.Errorf("%s: %d lost %v, turns %v", v.Name, n.lost, n.why, turns)
		}
	}
	w.end()
	s.down()
}

// restarts kills the daemon again and again while one backend is down. What was known holds: that one gets nothing, the others
// all the time.
func restarts(t *testing.T, out *table, name string) {
	s := newHealthSystem(t, 3)
	servers := s.serveOn(8080)
	s.up(s.checked("web", 8080, fmt.Sprintf("{type: http, path: /name, %v}", usual)))
	node := s.nodes[0]
	const up, down = control.StateUp, control.StateDown
	s.waitFor(node, 20*time.Second, "all up", known("web", up, up, up))
	must(t, servers["web-3"].do("close 8080"))
	s.waitFor(node, 20*time.Second, "web-3 down", known("web", up, up, down))
	time.Sleep(2 * time.Second) // it is on disk
	w := startWatch(t, node.takes)
	sum := losses{}
	began := time.Now()
	for time.Since(began) < calmTime {
		must(t, node.daemon.Kill())
		must(t, s.start(node))
		must(t, admits("web", "up", "up", "down")(new(s.status(node))))
		started := time.Now()
		l := s.startLoad(on(8080), 30)
		time.Sleep(8 * time.Second)
		n := lossesBetween(l.wait(), started, time.Now())
		sum.requests, sum.lost, sum.slow = sum.requests+n.requests, sum.lost+n.lost, sum.slow+n.slow
		if n.lost != 0 {
			t.Errorf("%d of %d requests were lost after a start: %v", n.lost, n.requests, n.why)
		}
	}
	turns := w.end()
	out.row("%s\t%s\t%d\t%d\t%d\t%d\n", name, systemPassive, len(turns), sum.lost, sum.slow, sum.requests)
	if len(turns) != 0 {
		t.Errorf("what backends take has changed: %v", turns)
	}
	s.down()
}

// killedHealthd leaves the node without a health daemon: what was known holds, and a new one changes nothing.
func killedHealthd(t *testing.T, out *table, name string) {
	s := newHealthSystem(t, 3)
	s.serveOn(8080)
	s.up(s.checked("web", 8080, fmt.Sprintf("{type: http, path: /name, %v}", usual)))
	node := s.nodes[0]
	s.waitFor(node, 20*time.Second, "all up", known("web", all(3, control.StateUp)...))
	w := startWatch(t, node.takes)
	began := time.Now()
	l := s.startLoad(on(8080), 30)
	must(t, node.healthd.Kill())
	time.Sleep(calmTime / 2)
	if !s.status(node).Health.Stale {
		t.Error("it is not told that health is stale")
	}
	second := s.healthdAt(node, "second")
	s.waitFor(node, 15*time.Second, "a new one reports", func(st *control.Status) error {
		if st.Health.Stale {
			return errors.New("it does not")
		}
		return nil
	})
	time.Sleep(time.Until(began.Add(calmTime)))
	turns := w.end()
	n := lossesBetween(l.wait(), began, time.Now())
	out.row("%s\t%s\t%d\t%d\t%d\t%d\n", name, systemPassive, len(turns), n.lost, n.slow, n.requests)
	if len(turns) != 0 || n.lost != 0 {
		t.Errorf("%d lost %v, turns %v", n.lost, n.why, turns)
	}
	must(t, second.Stop(10*time.Second))
	s.down()
}

// TestHealthTunnelFaults breaks what only packets through the tunnel meet, in three ways. A probe through the tunnel sees each, and a
// direct one none.
func TestHealthTunnelFaults(t *testing.T) {
	s := newHealthSystem(t, 2)
	s.serveOn(8080, 8081)
	s.up(s.checked("tunnel", 8080, fmt.Sprintf("{type: http, port: 8080, path: /name, via: tunnel, %v}", hasty), "passive: {mode: 'off'}"),
		s.checked("direct", 8081, fmt.Sprintf("{type: http, port: 8081, path: /name, via: direct, %v}", hasty), "passive: {mode: 'off'}"))
	node, victim := s.nodes[0], s.backends[1]
	const up, down = control.StateUp, control.StateDown
	wait := func(what string, want ...control.State) {
		t.Helper()
		s.waitFor(node, 60*time.Second, what, known("tunnel", want...))
	}
	vip := netip.PrefixFrom(testVIP4, 32)
	for _, fault := range []struct {
		what       string
		begin, end func()
	}{
		{"no VIP on the backend", func() { // which the agent would put back
			must(t, victim.agent.Signal(unix.SIGSTOP))
			must(t, victim.DelAddr("lo", vip))
		}, func() { must(t, victim.agent.Signal(unix.SIGCONT)) }},
		{"a firewall that drops IPIP", func() {
			s.nft(s.net.Router.Namespace, fmt.Sprintf(`table netdev wall { chain in { type filter hook ingress device %s priority 0; ip daddr %v ip protocol 4 drop; }; }`,
				node.Port(), victim.IPv4))
		}, func() { s.nft(s.net.Router.Namespace, "delete table netdev wall") }},
		{"no agent", func() { must(t, victim.agent.Stop(10*time.Second)) }, nil},
	} {
		wait("all up through the tunnel", up, up)
		began := time.Now()
		fault.begin()
		wait(fault.what+": web-2 down through the tunnel", up, down)
		took := time.Since(began)
		time.Sleep(time.Second) // direct probes would have seen it by now
		st := s.status(node)
		must(t, known("direct", up, up)(&st))
		t.Logf("%s: down after %v: %s", fault.what, took.Round(10*time.Millisecond), findBackend(&st, "tunnel", "web-2").Health.Evidence)
		if fault.end != nil {
			fault.end()
		}
	}
	s.down()
}
