//go:build linux

package main

import (
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/churn"
	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/maglev"
)

func benchChurnCommand() *cobra.Command {
	o := churn.OptionsFor(report.Full)
	o.Load = loadSpec
	var flows string
	var asJSON bool
	c := &cobra.Command{
		Use:   "churn",
		Short: "Measure new flows at a full table, rebuilds, and how long packets wait while things change",
		Long: `Measure what change costs, on an in-process NIC: how many new flows a worker takes when the flow table is full, how long lookup
tables take to be made, and how long packets are in the worker while lookup tables are rebuilt, the configuration is reloaded, the flow
table is swept, or garbage is collected. No root, no network.

Times are this machine's, now. A worker that shares its core with other programs waits for these too: see the row quiet.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if o.Flows, err = parseCount(flows); err != nil {
				return fmt.Errorf("--flows: %w", err)
			}
			if o.Rounds < 1 || o.Duration < 10*time.Millisecond || o.Backends < 1 || o.Backends > 10_000 {
				return fmt.Errorf("--rounds %d, --duration %v, --backends %d: expected 1 or more, 10ms or more, 1 to 10000", o.Rounds, o.Duration, o.Backends)
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			tables, err := churn.Tables(ctx, o)
			if err != nil {
				return err
			}
			return printTables(c.OutOrStdout(), tables, asJSON)
		},
	}
	f := c.Flags()
	f.StringVar(&flows, "flows", "1M", "flows that the table is made for")
	f.IntVar(&o.Backends, "backends", o.Backends, "backends of each of ten services, while latency is measured")
	f.IntVar(&o.Rounds, "rounds", o.Rounds, "how many rounds")
	f.DurationVar(&o.Duration, "duration", o.Duration, "of each event in a round, and a tenth of it for new flows")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// loadSpec reads a configuration as the daemon does at a reload, with all backends up.
func loadSpec(yaml []byte) (forwarder.Spec, error) {
	cfg, _, err := config.Parse("bench.yaml", yaml)
	if err != nil {
		return forwarder.Spec{}, err
	}
	return control.Spec(cfg, func(string, string) maglev.Admit { return maglev.MakeAdmit(maglev.Up, maglev.All) }), nil
}
