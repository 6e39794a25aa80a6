//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/bench/report"
)

// tableOf is a table of two rows.
func tableOf(name string) report.Table {
	row := func(system, reference string, values ...float64) report.Row {
		return report.Row{Labels: []report.Label{{Name: "workers", Value: system}}, Reference: reference, Rounds: values}
	}
	return report.Table{Name: name, Title: "A table.", Metric: "rate", Unit: "Mpps", Higher: true,
		Rows: []report.Row{row("1", "", 10, 10, 10), row("2", "1", 15, 15, 15)}}
}

// TestBenchAllKeepsWhatRan: a benchmark fails, the next is interrupted; what they had measured is in the report, and why they ended.
func TestBenchAllKeepsWhatRan(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	nic := []report.NIC{{Driver: "veth", Mode: "copy"}}
	list := []benchmark{
		{"worker", nil, func(context.Context, report.Effort) ([]report.Table, error) {
			return []report.Table{tableOf("worker-scaling")}, nil
		}},
		{"veth", nic, func(context.Context, report.Effort) ([]report.Table, error) {
			return []report.Table{tableOf("veth")}, errors.New("no carrier")
		}},
		{"cost", nil, func(context.Context, report.Effort) ([]report.Table, error) {
			broken := tableOf("cost-cpu")
			broken.Unit = ""
			return []report.Table{broken}, nil
		}},
		{"tcp", nic, func(ctx context.Context, _ report.Effort) ([]report.Table, error) {
			interrupt()
			return nil, ctx.Err()
		}},
		{"churn", nil, func(context.Context, report.Effort) ([]report.Table, error) {
			t.Error("it went on after the interruption")
			return nil, nil
		}},
	}
	dir := t.TempDir()
	var out bytes.Buffer
	r := &report.Report{Environment: report.ReadEnvironment("test"), Effort: report.Smoke}
	r.Environment.Load = 0
	err := runAll(ctx, r, list, dir, false, &out, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "veth, cost, tcp, churn failed") {
		t.Errorf("%v, wanted that veth, cost, tcp and churn failed", err)
	}
	read, err := report.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	if read.Table("worker-scaling") == nil || read.Table("veth") == nil || len(read.Tables) != 2 {
		t.Errorf("tables: %+v", read.Tables)
	}
	if n := read.Environment.NICs; len(n) != 1 || n[0] != nic[0] {
		t.Errorf("NICs: %v", n)
	}
	notes := strings.Join(read.Notes, "\n")
	for _, want := range []string{"Benchmark veth failed: no carrier", "Benchmark cost failed: table \"cost-cpu\" has no name, no metric or no unit",
		"Benchmark tcp failed: context canceled", "Not run, since it was interrupted: churn."} {
		if !strings.Contains(notes, want) || !strings.Contains(out.String(), want) {
			t.Errorf("no %q in the notes\n%s\nor in what was printed\n%s", want, notes, out.String())
		}
	}
}

func TestBenchAllChecks(t *testing.T) {
	table := tableOf("worker-scaling")
	list := []benchmark{{"worker", nil, func(context.Context, report.Effort) ([]report.Table, error) {
		return []report.Table{table}, nil
	}}}
	run := func(effort report.Effort) error {
		return runAll(t.Context(), &report.Report{Effort: effort}, list, t.TempDir(), true, io.Discard, io.Discard)
	}
	want := "scaling (two workers over one): missed by 21 %: expected ≥ 1.90 ×, found 1.50 at 2"
	if err := run(report.Full); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "testpmd") {
		t.Errorf("full: %v, wanted %q, and nothing of veth, which did not run", err, want)
	}
	if err := run(report.Smoke); err == nil || strings.Contains(err.Error(), "scaling") {
		t.Errorf("smoke: %v, wanted nothing of scaling", err)
	}
}

func TestBenchAllChooses(t *testing.T) {
	list := []benchmark{{name: "worker"}, {name: "veth"}, {name: "tcp"}}
	if got, err := chosen(list, []string{"tcp", "worker"}); err != nil || strings.Join(names(got), " ") != "worker tcp" {
		t.Errorf("%v, %v", names(got), err)
	}
	if _, err := chosen(list, []string{"wörker"}); err == nil || !strings.Contains(err.Error(), `found "wörker", expected some of worker, veth, tcp`) {
		t.Errorf("%v", err)
	}
}

// TestBenchCompare runs the command: it fails if something is worse, and refuses another machine's report.
func TestBenchCompare(t *testing.T) {
	write := func(change func(r *report.Report)) string {
		dir := t.TempDir()
		r := &report.Report{Environment: report.Environment{Machine: "a"}, Effort: report.Full, Tables: []report.Table{tableOf("worker-scaling")}}
		for i := range r.Tables[0].Rows {
			row := &r.Tables[0].Rows[i]
			row.Rounds = append(row.Rounds, row.Rounds...)
		}
		change(r)
		if err := r.WriteFiles(dir); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "report.json")
	}
	before := write(func(*report.Report) {})
	for _, c := range []struct {
		name   string
		change func(r *report.Report)
		want   string // the error's beginning; empty: none
	}{
		{"the same", func(*report.Report) {}, ""},
		{"better", func(r *report.Report) { r.Tables[0].Rows[1].Rounds = []float64{19, 19, 19, 19.5, 19, 19} }, ""},
		{"worse", func(r *report.Report) { r.Tables[0].Rows[1].Rounds = []float64{11, 11, 11, 11.5, 11, 11} },
			"1 worse; the first: worker-scaling 2"},
		{"all slower", func(r *report.Report) {
			r.Tables[0].Rows[0].Rounds, r.Tables[0].Rows[1].Rounds = []float64{5, 5, 5, 5, 5, 5}, []float64{7.5, 7.5, 7.5, 7.5, 7.5, 7.5}
		}, ""},
		{"another machine", func(r *report.Report) { r.Environment.Machine = "b" }, "results of different machines"},
	} {
		command := benchCompareCommand()
		command.SilenceErrors, command.SilenceUsage = true, true
		command.SetArgs([]string{before, write(c.change)})
		command.SetOut(io.Discard)
		err := command.Execute()
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, wanted %q", c.name, err, c.want)
		}
	}
}
