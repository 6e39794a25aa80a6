package metrics

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/control"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

// status returns a Status in which every metric has a sample.
func status() control.Status {
	worker := forwarder.WorkerStats{ID: 1, Received: 100, Forwarded: 90, NewFlows: 5, Restarts: 2, Frames: 4096}
	worker.Dropped[packet.NoRoute] = 10
	svc := forwarder.ServiceStats{
		Name: "web", Forwarded: forwarder.Counts{Packets: 90, Bytes: 9000}, NewFlows: 5,
		Defence:   forwarder.DefenceStats{Mode: "auto", Active: true, Switches: 1, SYNs: 9, Challenged: 8, Proofs: 7},
		Scheduler: "p2c", TableSize: 65537, TableHash: "0123", Flows: 4,
		Backends: []forwarder.BackendStats{
			{Name: "a", Address: "10.0.0.1", Leaving: true, Admit: "down", Hop: "ready", Forwarded: forwarder.Counts{Packets: 7}},
			{Name: "a", Address: "10.0.0.2", Admit: "up", Fraction: 0.25, LongestIdle: 12.5, Hop: "no_route", Forwarded: forwarder.Counts{Packets: 60, Bytes: 6000}, Flows: 3},
			{Name: "gone", Address: "10.0.0.3", Leaving: true, Admit: "down", Hop: "ready", Flows: 1},
		},
	}
	svc.Dropped[packet.NoBackend] = 8
	s := control.Status{
		Node: "lb1", Version: "1.2.3", Started: time.UnixMilli(1_000_500), Ready: true,
		Config: control.ConfigStatus{Hash: "abc", Generation: 3, Loaded: time.Unix(2000, 0), Refused: []control.Problem{{}}},
		Health: control.HealthStatus{AgeMS: 1500, Stale: true},
		Traffic: control.NewTraffic(forwarder.Stats{
			Steer:   forwarder.SteerStats{ToVIPs: 12, Redirected: 11, NoSocket: 1},
			Shed:    []forwarder.ShedStats{{Service: "web", Class: "syn", Share: 0.5, Packets: 7}},
			Workers: []forwarder.WorkerStats{worker},
			Interfaces: []forwarder.InterfaceStats{{
				Name: "eth0", Up: true, Attach: "native", Problem: "x",
				Queues: []forwarder.QueueStats{{Queue: 3, Mode: "zerocopy", SocketStats: forwarder.SocketStats{Received: 50, RXRingFull: 4}}},
				Closed: forwarder.SocketStats{Received: 49},
			}},
			Services: []forwarder.ServiceStats{svc},
			Table: forwarder.TableStats{Words: 16, Bytes: 128, HugePages: true, Probation: 1, Established: 2, Closing: 3, Inserted: 4, Refused: 5, Flows: 6,
				Evicted: forwarder.Evictions{Expired: 1, Closing: 2, Probation: 3, Established: 4},
				Ages:    []forwarder.AgeCount{{Below: 2.15, Flows: 5}, {Below: 0, Flows: 1}}},
		}),
	}
	web := &s.Traffic.Services[0]
	web.FailOpen = true
	web.Cookies = control.CookiesReady
	web.Backends[1].Health.State = control.StateDown
	web.Backends[1].Weight = 70
	asks := 40
	web.Backends[1].Hand = &control.HandStatus{Since: time.Unix(1, 0)}
	web.Backends[1].Phase, web.Backends[1].Switches = control.PhaseDraining, 6
	web.Backends[1].Health.Asks, web.Backends[1].Health.EjectedMS, web.Backends[1].Health.Unready = &asks, 500, "HTTP 503"
	web.Backends[1].Probes = []control.ProbeStats{{Good: 9, Bad: 2, P50: 1500, P90: 2500, P99: 20_000}, {Readiness: true, Good: 4}}
	web.Checked, web.Wanted, web.Ejected, web.Quorum = true, 3, 1, control.Quorum{Need: 2, Have: 1}
	web.ReadinessIgnored, web.EjectionsIgnored = true, true
	s.Events = map[string]uint64{"health": 12, "flood": 0}
	s.Health.Source = "lb1/1"
	return s
}

func get(t *testing.T, s *http.Server, path string) (code int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

func newServer(ready func() (bool, string)) *http.Server {
	return NewServer(status, ready, slog.New(slog.NewTextHandler(io.Discard, nil)))
}

func TestScrape(t *testing.T) {
	code, body := get(t, newServer(func() (bool, string) { return true, "" }), "/metrics")
	if code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	for _, want := range []string{
		`sluice_info{node="lb1",version="1.2.3"} 1`,
		`sluice_start_time_seconds 1000.5`,
		`sluice_ready 1`,
		`sluice_config_info{hash="abc"} 1`,
		`sluice_config_generation 3`,
		`sluice_config_loaded_time_seconds 2000`,
		`sluice_config_refused 1`,
		`sluice_xdp_packets_total 12`,
		`sluice_xdp_redirected_packets_total 11`,
		`sluice_xdp_dropped_packets_total{reason="no_socket"} 1`,
		`sluice_shed_share{class="syn",service="web"} 0.5`,
		`sluice_service_cookies_ready{service="web"} 1`,
		`sluice_interface_up{interface="eth0"} 1`,
		`sluice_interface_native{interface="eth0"} 1`,
		`sluice_interface_problem{interface="eth0"} 1`,
		`sluice_queue_zero_copy{interface="eth0",queue="3"} 1`,
		`sluice_queue_received_packets_total{interface="eth0",queue="3"} 50`,
		`sluice_queue_received_packets_total{interface="eth0",queue="closed"} 49`,
		`sluice_queue_rx_ring_full_packets_total{interface="eth0",queue="3"} 4`,
		`sluice_worker_received_packets_total{worker="1"} 100`,
		`sluice_worker_forwarded_packets_total{worker="1"} 90`,
		`sluice_worker_dropped_packets_total{reason="no_route",worker="1"} 10`,
		`sluice_worker_restarts_total{worker="1"} 2`,
		`sluice_flow_table_words 16`,
		`sluice_flow_table_flows{state="established"} 2`,
		`sluice_flow_table_refused_total 5`,
		`sluice_flow_table_live_flows 6`,
		`sluice_flow_table_evicted_total{class="probation"} 3`,
		`sluice_flow_table_idle_flows{below_seconds="2"} 5`,
		`sluice_flow_table_idle_flows{below_seconds="+Inf"} 1`,
		`sluice_service_flows{service="web"} 4`,
		`sluice_service_table_info{hash="0123",scheduler="p2c",service="web",size="65537"} 1`,
		`sluice_backend_weight{backend="a",service="web"} 70`,
		`sluice_backend_fraction{backend="a",service="web"} 0.25`,
		`sluice_backend_longest_idle_seconds{backend="a",service="web"} 12.5`,
		`sluice_backend_drained_by_hand{backend="a",service="web"} 1`,
		`sluice_health_stale 1`,
		`sluice_health_reporting 0`,
		`sluice_events_total{kind="health"} 12`,
		`sluice_events_total{kind="flood"} 0`,
		`sluice_service_wanted_backends{service="web"} 3`,
		`sluice_service_healthy_backends{service="web"} 1`,
		`sluice_service_ejected_backends{service="web"} 1`,
		`sluice_service_quorum_met{service="web"} 0`,
		`sluice_service_readiness_ignored{service="web"} 1`,
		`sluice_service_ejections_ignored{service="web"} 1`,
		`sluice_backend_maintenance{backend="a",service="web"} 0`,
		`sluice_backend_phase{backend="a",phase="draining",service="web"} 1`,
		`sluice_backend_switches_total{backend="a",service="web"} 6`,
		`sluice_backend_ready{backend="a",service="web"} 0`,
		`sluice_backend_asks_percent{backend="a",service="web"} 40`,
		`sluice_backend_ejected{backend="a",service="web"} 1`,
		`sluice_probe_good_total{backend="a",check="check",service="web"} 9`,
		`sluice_probe_good_total{backend="a",check="readiness",service="web"} 4`,
		`sluice_probe_bad_total{backend="a",check="check",service="web"} 2`,
		`sluice_probe_latency_seconds{backend="a",check="check",quantile="0.5",service="web"} 0.0015`,
		`sluice_probe_latency_seconds{backend="a",check="check",quantile="0.99",service="web"} 0.02`,
		`sluice_health_report_age_seconds 1.5`,
		`sluice_service_forwarded_packets_total{service="web"} 90`,
		`sluice_service_dropped_packets_total{reason="no_backend",service="web"} 8`,
		`sluice_service_fail_open{service="web"} 1`,
		// The backend that has come, not the one of the same name that is leaving.
		`sluice_backend_forwarded_packets_total{backend="a",service="web"} 60`,
		`sluice_backend_takes_new_flows{backend="a",service="web"} 1`,
		`sluice_backend_reachable{backend="a",service="web"} 0`,
		`sluice_backend_health{backend="a",service="web",state="down"} 1`,
		`sluice_backend_health{backend="a",service="web",state="up"} 0`,
		`sluice_backend_flows{backend="gone",service="web"} 1`,
	} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	for _, m := range table {
		if !strings.Contains(body, "\n"+m.name) {
			t.Errorf("%s has no sample in a Status that has everything", m.name)
		}
	}
	for _, other := range []string{"go_goroutines", "process_open_fds"} {
		if !strings.Contains(body, "\n"+other) {
			t.Errorf("no %s", other)
		}
	}
}

func TestScrapeOfNothing(t *testing.T) {
	s := NewServer(func() control.Status { return control.Status{} }, nil, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if code, body := get(t, s, "/metrics"); code != 200 || !strings.Contains(body, "\nsluice_ready 0\n") {
		t.Errorf("%d %s", code, body)
	}
}

func TestReady(t *testing.T) {
	ok, why := false, "waiting for health of web"
	s := newServer(func() (bool, string) { return ok, why })
	if code, body := get(t, s, "/readyz"); code != 503 || body != "not ready: waiting for health of web\n" {
		t.Errorf("%d %q", code, body)
	}
	ok = true
	if code, body := get(t, s, "/readyz"); code != 200 || body != "ready\n" {
		t.Errorf("%d %q", code, body)
	}
	if code, _ := get(t, s, "/"); code != 404 {
		t.Errorf("/ has %d", code)
	}
}

func TestScrapesAtOnce(t *testing.T) {
	s := newServer(func() (bool, string) { return true, "" })
	var wg sync.WaitGroup
	for range maxScrapes {
		wg.Go(func() {
			for range 5 {
				if code, _ := get(t, s, "/metrics"); code != 200 && code != 503 {
					t.Errorf("got %d", code)
				}
			}
		})
	}
	wg.Wait()
}

// Names follow the rules of Prometheus, and every metric is documented.
func TestTable(t *testing.T) {
	name := regexp.MustCompile(`^sluice_[a-z0-9_]+$`)
	seen := make(map[string]bool)
	for _, m := range table {
		if !name.MatchString(m.name) || seen[m.name] {
			t.Errorf("%s: a bad name, or there twice", m.name)
		}
		seen[m.name] = true
		if strings.HasSuffix(m.name, "_total") != (m.kind == counter) {
			t.Errorf("%s: a counter ends with _total, and nothing else does", m.name)
		}
		for _, text := range []string{m.help, m.use} {
			if len(text) < 10 || !strings.HasSuffix(text, ".") {
				t.Errorf("%s: %q is no sentence", m.name, text)
			}
		}
	}
}

// docs/metrics.md is made from the table and says what the table says.
func TestReference(t *testing.T) {
	path := filepath.Join("..", "..", "..", "docs", "metrics.md")
	want := reference()
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/metrics.md does not say what the table says; go test ./internal/control/metrics -run TestReference -update writes it anew")
	}
}

// reference returns docs/metrics.md.
func reference() []byte {
	var b bytes.Buffer
	b.WriteString(`# Metrics

Made from the table in internal/control/metrics by ` + "`go test ./internal/control/metrics -run TestReference -update`" + `; a test
compares them.

The daemon serves Prometheus metrics at ` + "`/metrics`, and its readiness at `/readyz`, on `metrics.listen`" + ` (127.0.0.1:9545 by
default). Counters begin at zero when the daemon starts and only grow while it lives; the metrics of a service or backend
vanish with it. What the sockets of an interface had counted before it went away is under the queue ` + "`closed`" + `. Beside these
there are the ` + "`go_*` and `process_*`" + ` metrics of every Go program.

| metric | type | labels | what it is | what it means |
|---|---|---|---|---|
`)
	for _, m := range table {
		kind := "gauge"
		if m.kind == counter {
			kind = "counter"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", m.name, kind, strings.Join(m.labels, ", "), m.help, m.use)
	}
	b.WriteString(`
## Reasons

The label ` + "`reason`" + ` says why a packet was not forwarded:

| reason | meaning |
|---|---|
`)
	for _, r := range packet.Reasons() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", r, r.Sentence())
	}
	return b.Bytes()
}
