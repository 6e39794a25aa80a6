//go:build linux

package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/bench/sim"
)

func simCommand() *cobra.Command {
	o := sim.DefaultOptions()
	var flows string
	var asJSON, list, quiet bool
	c := &cobra.Command{
		Use:   "sim",
		Short: "Simulate what happens to connections when nodes and backends come and go",
		Long: `Simulate what happens to connections when nodes and backends come, go, drain and are attacked. No root, no network.

The engine, the worker, the lookup and the flow table are those of the daemon, on an in-process NIC and a simulated clock. The
same events are played to plain Maglev, to Maglev with a table on each node, and to hash mod N. A flow is broken when a packet of
it reaches another backend than the one that accepted it, or none.

The exit status is 1 if a promise does not hold. A full run takes some minutes on two cores.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			out := c.OutOrStdout()
			if list {
				w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				for _, s := range sim.Scenarios() {
					fmt.Fprintf(w, "%s\t%s\n", s.Name, s.Text)
				}
				return w.Flush()
			}
			var err error
			if o.Flows, err = parseCount(flows); err != nil {
				return fmt.Errorf("--flows: %w", err)
			}
			if !quiet {
				stderr := c.ErrOrStderr()
				o.Started = func(scenario string) { fmt.Fprintln(stderr, scenario) }
			}
			report, err := sim.Run(o)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(out, report.Results)
			} else {
				err = report.Print(out)
			}
			if failed := report.Failed(); err == nil && len(failed) > 0 {
				v := failed[0]
				return fmt.Errorf("%d of %d promises do not hold; the first: %s: %s: %s, bound %s", len(failed), len(report.Verdicts),
					v.Scenario, v.Promise, v.Measured, v.Bound)
			}
			return err
		},
	}
	f := c.Flags()
	f.StringArrayVar(&o.Scenarios, "scenario", nil, "a scenario, or the beginning of names of scenarios; may be repeated (default all)")
	f.StringVar(&flows, "flows", "1M", "flows of each scenario: a number such as 100k or 1M")
	f.Uint64Var(&o.Seed, "seed", o.Seed, "where everything random comes from")
	f.DurationVar(&o.Attack, "attack-time", o.Attack, "how long each attack takes")
	f.BoolVar(&asJSON, "json", false, "print JSON: an array of scenario, scheme, flows, broken, unavoidable")
	f.BoolVar(&list, "list", false, "list the scenarios")
	f.BoolVarP(&quiet, "quiet", "q", false, "do not name the scenarios on standard error as they begin")
	return c
}
