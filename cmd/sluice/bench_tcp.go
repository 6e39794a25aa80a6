//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/bench/users"
)

const benchTCPHelp = `Measure what TCP users see through Sluice (ipip and nat), HAProxy in TCP mode, nginx stream and the kernel's
DNAT by nft, beside no balancer at all: connections a second, requests a second, throughput and latency, by wrk, h2load and iperf3.

All systems are in one network of namespaces, before the same three backends, and take turns round after round; clients and
backends have one core, the system under test the other. So ratios are good on a machine whose speed changes. Absolute values
are this machine's, now.

Needs root and two cores. What is not installed is left out, and the tables say which Debian package has it. Nothing outside of the
namespaces is touched, and everything is taken down at the end and on Ctrl-C.`

// tcpRow is a row of the tables as --json prints it.
type tcpRow struct {
	System    string             `json:"system"`
	Measure   string             `json:"measure"`
	Value     float64            `json:"value,omitempty"` // the median of the rounds
	Unit      string             `json:"unit"`
	Rounds    []float64          `json:"rounds,omitempty"`
	Reference string             `json:"reference,omitempty"` // a system
	Ratio     float64            `json:"ratio,omitempty"`     // to the reference, the median of the rounds
	Extra     map[string]float64 `json:"extra,omitempty"`
	Missing   string             `json:"missing,omitempty"`
}

func benchTCPCommand() *cobra.Command {
	o := users.OptionsFor(report.Full, "")
	var asJSON bool
	c := &cobra.Command{
		Use:   "tcp",
		Short: "Measure what TCP users see through Sluice, HAProxy, nginx and nft (root)",
		Long:  benchTCPHelp,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			if o.Programs, err = siblings(); err != nil {
				return fmt.Errorf("bench tcp: %w", err)
			}
			out := c.OutOrStdout()
			var printing error
			if !asJSON {
				o.Done = func(t report.Table) {
					if err := report.Print(out, t); err != nil && printing == nil {
						printing = err
					}
				}
			}
			tables, err := users.Measure(ctx, o)
			if ctx.Err() != nil {
				return errors.New("bench tcp: interrupted; everything is taken down")
			}
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(out, tcpRows(tables))
			}
			return printing
		},
	}
	f := c.Flags()
	f.StringSliceVar(&o.Systems, "systems", nil, "which systems: "+strings.Join(users.Systems(), ", ")+" (default all)")
	f.StringSliceVar(&o.Measures, "measures", nil, "which measures: "+strings.Join(users.Measures(), ", ")+" (default all)")
	f.DurationVar(&o.Duration, "duration", o.Duration, "how long each measurement of a system takes: whole seconds")
	f.IntVar(&o.Rounds, "rounds", o.Rounds, "how many turns each system has, in each measure")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// tcpRows returns the rows of all tables.
func tcpRows(tables []report.Table) []tcpRow {
	rows := []tcpRow{}
	for _, t := range tables {
		for _, r := range t.Rows {
			row := tcpRow{
				System: r.Labels[0].Value, Measure: r.Labels[1].Value, Unit: t.Unit,
				Rounds: r.Rounds, Extra: r.Extra, Missing: r.Missing,
			}
			if len(r.Rounds) > 0 {
				row.Value = report.SpreadOf(r.Rounds).Median
			}
			if ratio, ok := t.Ratio(&r); ok {
				row.Reference, _, _ = strings.Cut(r.Reference, "/")
				row.Ratio = ratio.Median
			}
			rows = append(rows, row)
		}
	}
	return rows
}
