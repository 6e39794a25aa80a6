//go:build linux

package main

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
)

// detail is a node on which something is wrong: a service that fails open, one that has lost its quorum, and a quiet one.
func detail(now time.Time) control.HealthDetail {
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	service := func(name string, need, have, wanted int, phases map[control.Phase]int) control.ServiceHealth {
		return control.ServiceHealth{
			Name: name, VIP: netip.MustParseAddr("192.0.2.10"), Check: "http port 8080, GET /healthz; direct; every 2s, 500ms while it changes, timeout 1s, rise 2, fall 3",
			Passive: "off", Quorum: control.Quorum{Need: need, Have: have, Met: have >= need}, Wanted: wanted, Phases: phases,
		}
	}
	web := service("web", 2, 1, 3, map[control.Phase]int{control.PhaseUp: 1, control.PhaseDown: 1, control.PhaseUnready: 1, control.PhaseMaintenance: 1})
	web.PanicThreshold, web.FailOpen = 50, true
	bad := control.BackendDetail{
		Service: "web", Backend: "web-2", Address: netip.MustParseAddr("10.0.0.12"), Phase: control.PhaseDown, Since: ago(3 * time.Minute), Why: "connection refused",
		Health: control.Health{State: control.StateDown, Since: ago(3 * time.Minute), Evidence: "connection refused"}, Admit: "up", Fraction: 1, Weight: 100, Flows: 12, Switches: 3,
		Hand: &control.HandStatus{Since: ago(time.Hour), Maintenance: ago(time.Minute)},
		Probes: []control.ProbeStats{
			{Good: 200, Bad: 5, Last: ago(500 * time.Millisecond), LastError: "connection refused", P50: 1234, P90: 2500, P99: 20_000},
		},
		History: []control.Event{
			{Seq: 7, Time: ago(4 * time.Minute), Kind: control.KindHealth, From: "up", To: "going_down", Cause: control.CauseProbe, Evidence: "HTTP 500"},
			{Seq: 9, Time: ago(3 * time.Minute), Kind: control.KindHealth, From: "going_down", To: "down", Cause: control.CauseProbe, Evidence: "connection refused"},
		},
	}
	return control.HealthDetail{
		Health:   control.HealthStatus{Source: "lb1/4f2a", AgeMS: 300},
		Services: []control.ServiceHealth{service("dns", 1, 2, 2, map[control.Phase]int{control.PhaseUp: 2}), web},
		Backends: []control.BackendDetail{
			{Service: "dns", Backend: "dns-1", Phase: control.PhaseUp, Admit: "up", Fraction: 1},
			{Service: "web", Backend: "web-1", Phase: control.PhaseMaintenance, Admit: "draining", Why: "set by hand", Since: ago(time.Hour)},
			bad,
			{Service: "web", Backend: "web-3", Phase: control.PhaseUnready, Admit: "up", Fraction: 0.25, Why: "HTTP 503"},
		},
	}
}

// inOrder says which of the texts is not in out after those before it.
func inOrder(t *testing.T, out string, texts ...string) {
	t.Helper()
	rest := out
	for _, text := range texts {
		_, after, ok := strings.Cut(rest, text)
		if !ok {
			t.Errorf("no %q, or not there, in\n%s", text, out)
			return
		}
		rest = after
	}
}

// What is wrong comes first.
func TestPrintHealth(t *testing.T) {
	now := time.Now()
	var b strings.Builder
	if err := printHealth(&b, detail(now), control.EventFilter{}, now); err != nil {
		t.Fatal(err)
	}
	inOrder(t, b.String(),
		"health: reported by lb1/4f2a 300 ms ago\n",
		"web  192.0.2.10  4 backends: 1 down, 1 unready, 1 maintenance, 1 up; 1 of 3 wanted are alive\n",
		"HEALTH IS IGNORED: fewer than 50 % are alive. All 3 wanted backends get flows.\n", "QUORUM LOST: 2 backends have to be alive, 1 are.\n",
		"dns  192.0.2.10  2 backends: 2 up; 2 of 2 wanted are alive\n",
		"SERVICE", "WHY\n", "web-2", "down", "3m0s", "100 %", "12", "1.23ms", "20ms", "connection refused\n",
		"web-3", "unready", "25 %", "HTTP 503\n", "web-1", "maintenance", "none", "set by hand\n", "dns-1")
	if strings.Contains(b.String(), "check:") {
		t.Errorf("checks of all services:\n%s", b.String())
	}

	b.Reset()
	d := detail(now)
	d.Services, d.Health = d.Services[1:], control.HealthStatus{Stale: true, AgeMS: 65_000}
	if err := printHealth(&b, d, control.EventFilter{Service: "web"}, now); err != nil {
		t.Fatal(err)
	}
	inOrder(t, b.String(), "health: NO REPORT FOR 1m5s", "web", "check: http port 8080, GET /healthz", "passive: off", "panic threshold: 50 %, quorum: 2")
}

// About one backend, everything: how it stands, its checks, the hand on it, what happened.
func TestPrintBackendHealth(t *testing.T) {
	now := time.Now()
	d := detail(now)
	d.Services, d.Backends = d.Services[1:], d.Backends[2:3]
	var b strings.Builder
	if err := printBackendHealth(&b, d, now); err != nil {
		t.Fatal(err)
	}
	inOrder(t, b.String(),
		"web/web-2 (10.0.0.12): DOWN for 3m0s: connection refused\n", "HEALTH IS IGNORED",
		"takes", "all of its share of new flows\n", "flows", "12, weight 100\n", "by hand", "in maintenance for 1m0s; drained for 1h0m\n",
		"check", "http port 8080", "200 probes good, 5 bad, the last 500ms ago\n", "half below 1.23ms, 90 % below 2.5ms, 99 % below 20ms\n",
		"the last bad one: connection refused\n", "down for 3m0s: connection refused\n", "readiness", "none\n", "passive", "off\n",
		"1 of 3 wanted backends are alive, quorum 2, panic threshold 50 %\n", "3 times in or out of rotation",
		"WHAT HAPPENED, THE LAST FIRST\n", "3m0s ago", "going_down -> down", "probe", "connection refused\n", "4m0s ago", "up -> going_down", "HTTP 500\n")
}

func TestPrintEvents(t *testing.T) {
	e := control.Events{Missed: 3, Events: []control.Event{
		{Seq: 4, Time: time.Now(), Kind: control.KindHealth, Service: "web", Backend: "web-1", From: "up", To: "down", Cause: control.CauseProbe, Evidence: "HTTP 500"},
		{Seq: 5, Time: time.Now(), Kind: control.KindHealthd, From: "lb1/1", To: "reports", Evidence: "lb1/2 reports"},
	}}
	var b strings.Builder
	if err := printEvents(&b, e, false); err != nil {
		t.Fatal(err)
	}
	inOrder(t, b.String(), "3 events are no longer known\n", "health", "web/web-1", "up -> down", "probe", "HTTP 500\n", "healthd", "-", "lb1/1 -> reports", "lb1/2 reports\n")

	b.Reset()
	if err := printEvents(&b, e, true); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	var got control.Event
	if len(lines) != 3 || lines[0] != `{"missed":3}` || json.Unmarshal([]byte(lines[1]), &got) != nil || got.Backend != "web-1" {
		t.Errorf("got %q", lines)
	}
}

func TestParseFilter(t *testing.T) {
	for text, want := range map[string]control.EventFilter{"web": {Service: "web"}, "web/a": {Service: "web", Backend: "a"}} {
		if f, err := parseFilter([]string{text}); err != nil || f != want {
			t.Errorf("%s: %+v, %v", text, f, err)
		}
	}
	for _, text := range []string{"", "/", "/a", "web/"} {
		if _, err := parseFilter([]string{text}); err == nil || !strings.Contains(err.Error(), "expected SERVICE") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
