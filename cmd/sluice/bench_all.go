//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/asavie"
	"github.com/sluice-lb/sluice/bench/churn"
	"github.com/sluice-lb/sluice/bench/cost"
	"github.com/sluice-lb/sluice/bench/memnic"
	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/bench/users"
	"github.com/sluice-lb/sluice/bench/veth"
)

// benchmark is one of `sluice bench all`. The names of its tables begin with its own.
type benchmark struct {
	name   string
	nics   []report.NIC // that it makes
	tables func(ctx context.Context, effort report.Effort) ([]report.Table, error)
}

// benchmarks are all of them, in their order.
func benchmarks() []benchmark {
	cable := []report.NIC{{Driver: "veth", Mode: "copy"}}
	return []benchmark{
		{"worker", []report.NIC{{Driver: "none", Mode: "memory"}}, memnic.Tables},
		{"worker-rings", cable, asavie.Tables},
		{"veth", cable, func(ctx context.Context, effort report.Effort) ([]report.Table, error) {
			self, err := os.Executable()
			if err != nil {
				return nil, err
			}
			return veth.Tables(ctx, effort, self)
		}},
		{"tcp", cable, withPrograms(users.Tables)},
		{"churn", nil, func(ctx context.Context, effort report.Effort) ([]report.Table, error) {
			o := churn.OptionsFor(effort)
			o.Load = loadSpec
			return churn.Tables(ctx, o)
		}},
		{"cost", cable, func(ctx context.Context, effort report.Effort) ([]report.Table, error) {
			return cost.Tables(ctx, effort, costNeeds())
		}},
	}
}

// withPrograms gives a benchmark the directory of sluice and sluice-agent.
func withPrograms(tables func(context.Context, report.Effort, string) ([]report.Table, error)) func(context.Context, report.Effort) (
	[]report.Table, error) {
	return func(ctx context.Context, effort report.Effort) ([]report.Table, error) {
		bin, err := siblings()
		if err != nil {
			return nil, err
		}
		return tables(ctx, effort, bin)
	}
}

const benchAllHelp = `Run all benchmarks, each of which compares Sluice with its peers in turns within one run, and write DIR/report.json and
DIR/report.md after each. Benchmarks that use the network make network namespaces, which needs root; peers that are not
installed are left out, and the report says which Debian package has them.

What ran when it is interrupted, or when a benchmark fails, is kept; the report says what failed, and the exit status is 1.

With --check the exit status is 1 too if an aim is not met; with --smoke as well, only ratios and counts are asserted, by
looser bounds, since a run of seconds beside others can tell no more.`

func benchAllCommand() *cobra.Command {
	var smoke, check bool
	var only []string
	var dir string
	c := &cobra.Command{
		Use:   "all",
		Short: "Run all benchmarks, and write one report",
		Long:  benchAllHelp,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := chosen(benchmarks(), only)
			if err != nil {
				return fmt.Errorf("--only: %w", err)
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			r := &report.Report{Environment: report.ReadEnvironment(version), Effort: report.Full}
			if smoke {
				r.Effort = report.Smoke
			}
			return runAll(ctx, r, list, dir, check, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.BoolVar(&smoke, "smoke", false, "the short form: two minutes instead of an hour; for CI")
	f.BoolVar(&check, "check", false, "exit with 1 if an aim is not met")
	f.StringSliceVar(&only, "only", nil, "which: "+strings.Join(names(benchmarks()), ", ")+" (default all)")
	f.StringVar(&dir, "out", "bench-results", "the directory of report.json and report.md")
	return c
}

func names(list []benchmark) []string {
	var out []string
	for _, b := range list {
		out = append(out, b.name)
	}
	return out
}

// chosen returns those of the benchmarks that are asked for, in their own order.
func chosen(list []benchmark, only []string) ([]benchmark, error) {
	for _, name := range only {
		if !slices.Contains(names(list), name) {
			return nil, fmt.Errorf("found %q, expected some of %s", name, strings.Join(names(list), ", "))
		}
	}
	if len(only) == 0 {
		return list, nil
	}
	return slices.DeleteFunc(slices.Clone(list), func(b benchmark) bool { return !slices.Contains(only, b.name) }), nil
}

// runAll runs benchmarks in turn, adds their tables to r, prints them, and writes r into dir after each.
func runAll(ctx context.Context, r *report.Report, list []benchmark, dir string, check bool, out, progress io.Writer) error {
	if busy := 0.25 * float64(r.Environment.Cores); r.Environment.Load > busy {
		r.Notes = append(r.Notes, fmt.Sprintf("Something else ran before, and perhaps still did: the load average was %.2f on %d cores.",
			r.Environment.Load, r.Environment.Cores))
	}
	for _, b := range list {
		for _, nic := range b.nics {
			if !slices.Contains(r.Environment.NICs, nic) {
				r.Environment.NICs = append(r.Environment.NICs, nic)
			}
		}
	}
	var failed []string
	for i, b := range list {
		fmt.Fprintf(progress, "%s …\n", b.name)
		tables, err := b.tables(ctx, r.Effort)
		for _, t := range tables {
			if wrong := t.Validate(); wrong != nil {
				err = errors.Join(err, wrong)
				continue
			}
			r.Tables = append(r.Tables, t)
			if err := printTables(out, []report.Table{t}, false); err != nil {
				return err
			}
		}
		if err == nil && ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		if err != nil {
			failed = append(failed, b.name)
			r.Notes = append(r.Notes, fmt.Sprintf("Benchmark %s failed: %v", b.name, err))
		}
		if rest := names(list[i+1:]); ctx.Err() != nil && len(rest) > 0 {
			failed = append(failed, rest...)
			r.Notes = append(r.Notes, fmt.Sprintf("Not run, since it was interrupted: %s.", strings.Join(rest, ", ")))
		}
		if err := r.WriteFiles(dir); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err := r.Print(out); err != nil {
		return err
	}
	fmt.Fprintf(progress, "written: %s, report.md\n", filepath.Join(dir, "report.json"))
	var errs []error
	if len(failed) > 0 {
		errs = append(errs, fmt.Errorf("%s failed; the report says why", strings.Join(failed, ", ")))
	}
	if check {
		errs = append(errs, r.Check(func(table string) bool { return belongs(table, list) }))
	}
	return errors.Join(errs...)
}

// belongs says whether a table is one of a benchmark's in the list: its name begins with the benchmark's, and with no longer one.
func belongs(table string, list []benchmark) bool {
	owner := ""
	for _, name := range names(benchmarks()) {
		if (table == name || strings.HasPrefix(table, name+"-")) && len(name) > len(owner) {
			owner = name
		}
	}
	return slices.Contains(names(list), owner)
}
