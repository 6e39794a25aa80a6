//go:build linux

package users

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/testenv"
)

func TestMeasure(t *testing.T) {
	testenv.RequireRoot(t)
	dir, err := testenv.Build("../../cmd/sluice", "../../cmd/sluice-agent")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	t.Run("every system", func(t *testing.T) { everySystem(t, dir) })
	t.Run("interrupted", func(t *testing.T) { interrupted(t, dir) })
}

// broken is what notes say of connections that broke.
var broken = regexp.MustCompile(`errors.* (to connect|to read|to write|with a bad status)`)

// Every system carries requests, and no connection breaks; what is not installed says so.
func everySystem(t *testing.T, dir string) {
	o := Options{Programs: dir, Duration: time.Second, Rounds: 1, Measures: []string{"requests", "latency"}}
	tables, err := Measure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) != 2 {
		t.Fatalf("%d tables, want 2", len(tables))
	}
	for _, table := range tables {
		for _, name := range Systems() {
			r := table.Find(name + "/" + strings.TrimPrefix(table.Name, "tcp-"))
			switch {
			case r == nil:
				t.Errorf("%s has no row of %s", table.Name, name)
			case r.Missing != "":
				if !strings.HasPrefix(r.Missing, "needs Debian package ") {
					t.Errorf("%s of %s is missing: %s", table.Name, name, r.Missing)
				}
				t.Logf("%s of %s: %s", table.Name, name, r.Missing)
			case len(r.Rounds) != 1 || r.Rounds[0] <= 0:
				t.Errorf("%s of %s: %v, want one round", table.Name, name, r.Rounds)
			}
		}
		for _, note := range table.Notes { // a machine that is busy with other things may make requests late
			if broken.MatchString(note) {
				t.Errorf("%s: %s", table.Name, note)
			}
		}
	}
	leftNothing(t)
}

// An end of the context in the middle of a measurement ends it at once, keeps what was complete, and leaves nothing.
func interrupted(t *testing.T, dir string) {
	if missing := needs([]program{nginx, wrk, iperf3}); missing != "" {
		t.Fatalf("%s; .ci/test installs it", missing)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ended time.Time
	tables, err := Measure(ctx, Options{Programs: dir, Duration: 2 * time.Second, Rounds: 1, Systems: []string{"direct"},
		Measures: []string{"requests", "throughput"}, Done: func(report.Table) {
			time.AfterFunc(300*time.Millisecond, func() { ended = time.Now(); cancel() })
		}})
	if !errors.Is(err, context.Canceled) || len(tables) != 1 || tables[0].Name != "tcp-requests" {
		t.Errorf("%d tables, %v; want that of the requests, and context.Canceled", len(tables), err)
	}
	if took := time.Since(ended); took > 10*time.Second {
		t.Errorf("it took %v to end", took)
	}
	leftNothing(t)
}

// leftNothing looks for namespaces of this process.
func leftNothing(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), fmt.Sprintf("sluice-%d-", os.Getpid())) {
			t.Errorf("namespace %s is left", e.Name())
		}
	}
}

func TestOptions(t *testing.T) {
	good := Options{Duration: time.Second, Rounds: 1}
	for _, c := range []struct {
		name   string
		change func(*Options)
		want   string // in the error; empty: none
	}{
		{"everything", func(*Options) {}, ""},
		{"some", func(o *Options) { o.Systems, o.Measures = []string{"nft"}, []string{"idle"} }, ""},
		{"unknown system", func(o *Options) { o.Systems = []string{"envoy"} }, `found "envoy", expected some of direct, sluice-ipip`},
		{"unknown measure", func(o *Options) { o.Measures = []string{"speed"} }, `found "speed"`},
		{"latency without a rate", func(o *Options) { o.Measures = []string{"latency"} }, "give both"},
		{"half a second", func(o *Options) { o.Duration = 1500 * time.Millisecond }, "whole seconds"},
		{"no rounds", func(o *Options) { o.Rounds = 0 }, "rounds: found 0"},
	} {
		o := good
		c.change(&o)
		err := o.check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	for _, effort := range []report.Effort{report.Smoke, report.Full} {
		o := OptionsFor(effort, "")
		if err := o.check(); err != nil {
			t.Errorf("effort %d: %v", effort, err)
		}
	}
}

func TestNeeds(t *testing.T) {
	absent := program{"sluice-no-such-program", "some-package"}
	file := program{"/nowhere/module.so", "some-module"}
	for _, c := range []struct {
		programs []program
		want     string
	}{
		{nil, ""},
		{[]program{{"sh", "dash"}}, ""},
		{[]program{{"sh", "dash"}, absent}, "needs Debian package some-package"},
		{[]program{file}, "needs Debian package some-module"},
	} {
		if got := needs(c.programs); got != c.want {
			t.Errorf("%v: %q, want %q", c.programs, got, c.want)
		}
	}
}

func TestCPUMask(t *testing.T) {
	for core, want := range map[int]string{0: "1", 1: "2", 5: "20", 31: "80000000", 32: "1,00000000", 70: "40,00000000,00000000"} {
		if got := cpuMask(core); got != want {
			t.Errorf("core %d: %s, want %s", core, got, want)
		}
	}
}
