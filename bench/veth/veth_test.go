//go:build linux

package veth

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/testenv"
)

// All systems that are installed forward, and nothing is left of them.
func TestSystems(t *testing.T) {
	testenv.RequireRoot(t)
	bin, err := testenv.Build("../../cmd/sluice")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(bin)
	tables, err := Measure(t.Context(), Options{
		Program: filepath.Join(bin, "sluice"), Measures: []string{Throughput}, Flows: []int{1000}, Sizes: []Size{smallest, {Name: "imix"}},
		Rounds: 1, Duration: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) != 1 || len(tables[0].Rows) != 2*len(systems) {
		t.Fatalf("tables: %+v", tables)
	}
	check(t, &tables[0])

	tables, err = Measure(t.Context(), Options{
		Program: filepath.Join(bin, "sluice"), Measures: []string{LossFree, Latency}, Systems: []string{"direct", "sluice"},
		Flows: []int{1000}, Sizes: []Size{smallest}, Rounds: 1, Duration: 50 * time.Millisecond, Tolerance: 0.1,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) != 2 || len(tables[0].Rows) != 2 || len(tables[1].Rows) != 2*len(loads) {
		t.Fatalf("tables: %+v", tables)
	}
	check(t, &tables[0])
	check(t, &tables[1])
	for _, r := range tables[1].Rows {
		last := 0.0
		for _, p := range percentiles {
			if v := r.Extra[p.name]; v < last || v <= 0 {
				t.Errorf("%s: %v", r.Key(), r.Extra)
			}
			last = r.Extra[p.name]
		}
	}
	nothingLeft(t)
}

// check is what holds for each table.
func check(t *testing.T, table *report.Table) {
	t.Helper()
	if err := table.Validate(); err != nil {
		t.Error(err)
	}
	for i := range table.Rows {
		r := &table.Rows[i]
		if strings.HasPrefix(r.Missing, "needs Debian package ") {
			t.Logf("%s: %s", r.Key(), r.Missing)
			continue
		}
		if r.Missing != "" || len(r.Rounds) != 1 || r.Rounds[0] <= 0 {
			t.Errorf("%s %s: %v %s", table.Name, r.Key(), r.Rounds, r.Missing)
		}
		if loss := r.Extra["loss_percent"]; loss < 0 || loss > 100 {
			t.Errorf("%s: loss of %v %%", r.Key(), loss)
		}
		if r.Reference != "" && table.Find(r.Reference) == nil {
			t.Errorf("%s: there is no row %s", r.Key(), r.Reference)
		}
	}
}

func nothingLeft(t *testing.T) {
	t.Helper()
	left, err := filepath.Glob(fmt.Sprintf("/run/netns/sluice-%d-*", os.Getpid()))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// Whoever interrupts a run gets an error soon, and finds nothing left.
func TestInterrupted(t *testing.T) {
	testenv.RequireRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := Measure(ctx, Options{Systems: []string{"reflect"}, Flows: []int{10}, Sizes: []Size{smallest}, Rounds: 1000, Duration: time.Minute})
	if err == nil || ctx.Err() == nil || time.Since(start) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	nothingLeft(t)
}

func TestRefusedOptions(t *testing.T) {
	good := func() Options {
		return Options{Flows: []int{1000}, Sizes: []Size{smallest}, Rounds: 1, Duration: time.Second}
	}
	for name, spoil := range map[string]func(*Options){
		"measure":   func(o *Options) { o.Measures = []string{"speed"} },
		"system":    func(o *Options) { o.Systems = []string{"sluice", "abacus"} },
		"no flows":  func(o *Options) { o.Flows = nil },
		"flows":     func(o *Options) { o.Flows = []int{0} },
		"no sizes":  func(o *Options) { o.Sizes = nil },
		"rounds":    func(o *Options) { o.Rounds = 0 },
		"duration":  func(o *Options) { o.Duration = time.Hour },
		"tolerance": func(o *Options) { o.Tolerance = 0.5 },
	} {
		o := good()
		spoil(&o)
		if _, err := Measure(t.Context(), o); err == nil || !strings.Contains(err.Error(), "measure on a veth pair: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := good()
	o.Flows = []int{100, 10, 1000}
	if err := o.check(); err != nil || !slices.Equal(o.Flows, []int{10, 100, 1000}) || len(o.Measures) != 3 {
		t.Errorf("%+v; %v", o, err)
	}
}

func TestSettings(t *testing.T) {
	imix := Size{Name: "imix"}
	o := Options{Flows: []int{1, 2, 3}, Sizes: []Size{smallest, imix}}
	want := []Setting{{1, smallest}, {2, smallest}, {3, smallest}, {2, imix}}
	if got := o.settings(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestParseSize(t *testing.T) {
	for text, bytes := range map[string]int{"64": 64, "1514": 1514, "imix": 0, "63": -1, "1515": -1, "": -1, "large": -1} {
		size, err := ParseSize(text)
		if (err == nil) != (bytes >= 0) || err == nil && (size.bytes != bytes || size.Name != text) {
			t.Errorf("%q: %+v, %v", text, size, err)
		}
	}
}

func TestBusy(t *testing.T) {
	const stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 4 800 16 32 64 128 1 0\ncpu1 7 0 0 5 0 0 0 0 0 0\nintr 5\n"
	for core, want := range []time.Duration{1030 * time.Millisecond, 70 * time.Millisecond} {
		if got, err := busyOf(stat, core); err != nil || got != want {
			t.Errorf("core %d: %v, want %v; %v", core, got, want, err)
		}
	}
	if _, err := busyOf(stat, 2); err == nil {
		t.Error("there is no core 2")
	}
}

func TestLoss(t *testing.T) {
	for _, c := range []struct {
		sent, delivered uint64
		loss            float64
	}{{100, 75, 0.25}, {100, 100, 0}, {100, 103, 0}, {0, 0, 1}, {0, 1, 0}} {
		if got := (sample{sent: c.sent, delivered: c.delivered}).loss(); got != c.loss {
			t.Errorf("%d of %d: %v, want %v", c.delivered, c.sent, got, c.loss)
		}
	}
}

// Rows name their peer only if it was measured; what is missing says so.
func TestRows(t *testing.T) {
	b := &board{systems: []*System{direct, sluice, testpmd, nftStateful}, missing: map[*System]string{testpmd: "needs Debian package x"}}
	s := Setting{1000, smallest}
	for system, want := range map[*System]string{direct: "", sluice: "", testpmd: "", nftStateful: "sluice/1000/64"} {
		if r := b.row(system, s); r.Reference != want || r.Missing != b.missing[system] || r.Key() != system.Name+"/1000/64" {
			t.Errorf("%s: %+v, want a reference to %q", system.Name, r, want)
		}
	}
	b.missing = nil
	r := b.row(sluice, s, report.Label{Name: "load", Value: "50"})
	if r.Reference != "testpmd/1000/64/50" {
		t.Errorf("%+v", r)
	}
}

func TestMissing(t *testing.T) {
	s := &System{needs: []need{{"a", "go"}, {"b", "no-such-program"}, {"c", "/no/such/*.so"}, {"d", "/proc/sel?/stat"}}}
	if got := s.missing(); got != "needs Debian package b, c" {
		t.Error(got)
	}
	s.needs = s.needs[:1]
	if got := s.missing(); got != "" {
		t.Error(got)
	}
}

func TestLatencyFigures(t *testing.T) {
	round := func(p99 float64) pacedRound {
		return pacedRound{latency: []map[string]float64{nil, {"p99_us": p99, "p50_us": 2}}}
	}
	p99, extra := latencyFigures([]pacedRound{round(30), round(50), round(60)}, []pacedRound{round(5), round(10), round(20)}, 1)
	if !slices.Equal(p99, []float64{30, 50, 60}) || extra["p99_us"] != 50 || extra["added_p99_us"] != 40 || extra["p50_us"] != 2 {
		t.Errorf("%v, %v", p99, extra)
	}
	if _, extra = latencyFigures([]pacedRound{round(30)}, nil, 1); math.IsNaN(extra["p99_us"]) || len(extra) != 2 {
		t.Errorf("%v", extra)
	}
}
