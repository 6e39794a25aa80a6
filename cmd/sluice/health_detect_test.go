//go:build linux && health

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// checkPace is that of checks, alike in all systems.
type checkPace struct {
	interval, fast, timeout time.Duration
	rise, fall              int
}

// usual is the defaults.
var usual = checkPace{interval: 2 * time.Second, fast: 500 * time.Millisecond, timeout: time.Second, rise: 2, fall: 3}

func (p checkPace) String() string {
	return fmt.Sprintf("interval: %v, fast_interval: %v, timeout: %v, rise: %d, fall: %d", p.interval, p.fast, p.timeout, p.rise, p.fall)
}

// atMost is how long it takes to see a fault: the rest of an interval, lengthened by chance, and bad probes that each take their
// timeout or the faster interval.
func (p checkPace) atMost() time.Duration {
	const slack = time.Second
	return p.interval*11/10 + time.Duration(p.fall)*max(p.timeout, p.fast*11/10) + slack
}

// The systems that are compared: services of the same node, and HAProxy. Each has a port of the same server processes, and clients
// of its own.
const (
	systemActive  = "active"
	systemPassive = "active+passive"
	systemHAProxy = "haproxy"
)

// detectRate is new connections a second to a system: 25 to each of its three backends.
const detectRate = 75

// healthFault is what befalls a backend, and how it is over.
type healthFault struct {
	name       string
	begin, end func(*detectRig, *webServer) error
	passive    bool // new connections fail, so that passive health sees it within a second
}

var healthFaults = []healthFault{
	{"SIGKILL", func(_ *detectRig, w *webServer) error { return w.process.Kill() }, func(_ *detectRig, w *webServer) error { return w.start() }, true},
	{"SIGSTOP", func(_ *detectRig, w *webServer) error { return w.process.Signal(unix.SIGSTOP) }, func(_ *detectRig, w *webServer) error { return w.process.Signal(unix.SIGCONT) }, false},
	{"black hole", (*detectRig).blackhole, (*detectRig).whitehole, true},
	{"cable pulled", func(r *detectRig, w *webServer) error { return r.net.Router.LinkDown(w.backend.Port()) }, func(r *detectRig, w *webServer) error { return r.net.Router.LinkUp(w.backend.Port()) }, true},
	{"port closed", func(_ *detectRig, w *webServer) error { return w.each("close", w.ports...) }, func(_ *detectRig, w *webServer) error { return w.each("listen", w.ports...) }, true},
	{"status 500", func(_ *detectRig, w *webServer) error { return w.do("status /name 500") }, func(_ *detectRig, w *webServer) error { return w.do("status /name 200") }, false},
}

// detectRig is a node with two services, and HAProxy beside it, before the same backends.
type detectRig struct {
	*system
	servers map[string]*webServer
	peer    *haproxy // nil: none
	watches map[string]*watch
	to      map[string]netip.AddrPort
}

// newDetectRig sets it up, with services that are forwarded by IPIP, or by NAT and then without HAProxy.
func newDetectRig(t *testing.T, forward string, p checkPace) *detectRig {
	const ports, peers = 8080, 8090
	s := newSystemWith(t, rigOptions{nodes: 2, backends: 3, queues: 2, sources: 8})
	host := s.nodes[1].Host
	s.nodes = s.nodes[:1]
	must(t, s.net.Announce(s.vips, s.nodes[0].Host))
	r := &detectRig{system: s, watches: map[string]*watch{}, to: map[string]netip.AddrPort{}}
	r.servers = s.serveOn(ports, ports+1, peers)
	if forward == "nat" {
		s.throughNodes()
	}
	var services []rigService
	for i, system := range []string{systemActive, systemPassive} {
		mode := []string{"'off'", "eject"}[i]
		port := ports + i
		v := s.checked(system, port, fmt.Sprintf("{type: http, port: %d, path: /name, %v}", port, p), "passive: {mode: "+mode+"}")
		if v.Name = strings.ReplaceAll(system, "+", "-"); forward == "nat" {
			v.Forward, v.BackendPort = "nat", port
		}
		services = append(services, v)
		r.to[system] = on(uint16(port))
	}
	s.up(services...)
	node := s.nodes[0]
	for _, v := range services {
		s.waitFor(node, 20*time.Second, "all up", known(v.Name, all(3, control.StateUp)...))
	}
	sluice := startWatch(t, node.takes)
	r.watches[systemActive], r.watches[systemPassive] = sluice, sluice
	if forward != "nat" {
		r.peer = s.startHAProxy(host, peers, p)
		r.to[systemHAProxy] = r.peer.address()
		r.watches[systemHAProxy] = startWatch(t, r.peer.takes)
	}
	return r
}

// blackhole has all packets vanish that a backend sends to clients and balancers.
func (r *detectRig) blackhole(w *webServer) error {
	var errs error
	for _, p := range r.away() {
		errs = errors.Join(errs, w.backend.AddRoute(testenv.Route{Dst: p, Kind: testenv.Blackhole}))
	}
	return errs
}

// whitehole ends it.
func (r *detectRig) whitehole(w *webServer) error {
	var errs error
	for _, p := range r.away() {
		errs = errors.Join(errs, w.backend.DelRoute(p))
	}
	return errs
}

// away is who backends speak to.
func (r *detectRig) away() []netip.Prefix {
	hosts := []netip.Prefix{netip.PrefixFrom(r.nodes[0].IPv4, 32)}
	if r.peer != nil {
		hosts = append(hosts, netip.PrefixFrom(r.peer.host.IPv4, 32))
	}
	for _, a := range r.net.Sources4 {
		hosts = append(hosts, netip.PrefixFrom(a, 32))
	}
	return hosts
}

// TestHealthDetection has one backend of three, in turn, fail in one way after the other, and prints until when clients lose new connections, in
// three systems at once: with probes alone, with passive health too, and with HAProxy.
func TestHealthDetection(t *testing.T) {
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "FAULT\tFORWARD\tSYSTEM\tOUT AFTER\tLAST LOST AFTER\tLAST SLOW AFTER\tLOST\tSLOW\tOF\tBACK AFTER\tLOST SINCE\tWHY\n")
	for _, forward := range []string{"ipip", "nat"} {
		r := newDetectRig(t, forward, usual)
		for i, f := range healthFaults {
			if forward == "ipip" || f.name == "SIGKILL" || f.name == "black hole" {
				t.Run(f.name+", "+forward, func(t *testing.T) { r.detect(t, f, r.backends[i%len(r.backends)].name, w, forward) })
			}
		}
		for _, watch := range r.watches {
			watch.end()
		}
		r.down()
	}
	w.Flush()
	t.Logf("a backend of three, %d new connections a second to each system; checks: %v\n%s", detectRate, usual, &table)
}

// detect does one fault to a backend, and measures.
func (r *detectRig) detect(t *testing.T, f healthFault, victim string, table *tabwriter.Writer, forward string) {
	const (
		calm    = 3 * time.Second
		faulty  = 12 * time.Second
		back    = 90 * time.Second // until it takes flows again, at the most
		settled = 2 * time.Second  // after that
	)
	server := r.servers[victim]
	systems := []string{systemActive, systemPassive, systemHAProxy}[:len(r.to)]
	loads := map[string]*steadyLoad{}
	began := time.Now()
	for _, system := range systems {
		loads[system] = r.startLoad(r.to[system], detectRate)
	}
	time.Sleep(calm)
	fault := time.Now()
	must(t, f.begin(r, server))
	time.Sleep(time.Until(fault.Add(faulty)))
	over := time.Now()
	must(t, f.end(r, server))
	first := map[string]time.Time{} // when it answered again
	for deadline := over.Add(back); len(first) < len(systems) && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		for _, system := range systems {
			if at := loads[system].answeredBy(victim, over.Add(10*time.Millisecond)); !at.IsZero() {
				first[system] = at
			}
		}
	}
	time.Sleep(settled)

	for _, system := range systems {
		requests := loads[system].wait()
		name := strings.ReplaceAll(system, "+", "-")
		out := r.watches[system].left(name, victim, fault)
		before := lossesBetween(requests, began, fault.Add(-lostAfter))
		during := lossesBetween(requests, fault.Add(-slowAfter), over.Add(-slowAfter))
		answered := first[system]
		since := losses{}
		if !answered.IsZero() {
			since = lossesBetween(requests, answered, time.Now())
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%d\t%v\n", f.name, forward, system, after(out, fault), after(during.lastLost, fault), after(during.lastSlow, fault),
			during.lost, during.slow, during.requests, after(answered, over), since.lost, during.why)
		if before.lost != 0 {
			t.Errorf("%s: %d lost before the fault: %v", system, before.lost, before.why)
		}
		if system == systemHAProxy {
			continue // as it is
		}
		limit := usual.atMost()
		if system == systemPassive && f.passive {
			limit = time.Second
		}
		switch {
		case out.IsZero():
			t.Errorf("%s: %s was never out", system, victim)
		case out.Sub(fault) > limit:
			t.Errorf("%s: out after %v, want at most %v", system, out.Sub(fault), limit)
		}
		if answered.IsZero() {
			t.Errorf("%s: %s was back for %v and takes no flows", system, victim, back)
		}
		if since.lost != 0 {
			t.Errorf("%s: %d lost since it takes flows again, the last one %s after that: %v", system, since.lost, after(since.lastLost, answered), since.why)
		}
	}
}

// after is a time since another, for the table.
func after(at, since time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return fmt.Sprintf("%.2f s", max(at.Sub(since), 0).Seconds())
}
