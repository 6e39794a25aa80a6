//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/asavie"
	"github.com/sluice-lb/sluice/bench/memnic"
	"github.com/sluice-lb/sluice/bench/report"
)

func benchWorkerCommand() *cobra.Command {
	var flows []string
	var axes memnic.Axes
	var o memnic.Options
	var rings, asJSON bool
	c := &cobra.Command{
		Use:   "worker",
		Short: "Measure the worker on an in-process NIC, beside a bare MAC swap on the same rings",
		Long: `Measure the worker on an in-process NIC, beside a bare MAC swap on the same rings and frames, and beside reads of random
cache lines of the flow table. No network; no root but for --table bpf and --rings.

Modes are ipip, l2, gue and nat; families v4 and v6. Mixes say what the packets are:

  hits       of flows that have a word
  misses     SYNs of unknown flows, which leave no word
  new10      hits, but one packet in ten is of a new flow: its SYN, or its ACK, which gets it a word
  new        SYNs of new flows, and their ACKs, which get them words: two packets a flow
  evict      as new, but the table is full, and each word takes another's place
  cookie     SYNs, answered with cookies
  challenge  SYNs, answered with challenges
  limits     hits, each counted against a limit of its source
  replies    of nat backends

Without --modes, --families, --mixes, --batches and --workers it measures all mixes with ipip and v4, and hits of the other modes and
families. With any of them it measures their combinations; those not named are ipip, v4, hits, 64 and 1.

All cases take turns within one run, so their ratios are good on a machine whose speed changes. Nanoseconds are this machine's, now,
and do not carry over.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, text := range flows {
				n, err := parseCount(text)
				if err != nil {
					return fmt.Errorf("--flows: %w", err)
				}
				axes.Flows = append(axes.Flows, n)
			}
			o.Cases = memnic.Usual(axes.Flows, axes.Table)
			for _, name := range []string{"modes", "families", "mixes", "batches", "workers"} {
				if c.Flags().Changed(name) {
					o.Cases = memnic.Combine(axes)
				}
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			if rings {
				return benchRings(ctx, c.OutOrStdout(), o.Duration, asJSON)
			}
			m, err := memnic.Measure(ctx, o)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), m.Results())
			}
			return printTables(c.OutOrStdout(), m.Tables(), false)
		},
	}
	f := c.Flags()
	f.StringSliceVar(&flows, "flows", []string{"1k", "100k", "1M"}, "flows in the table: numbers such as 1k, 100k, 1M, 10M, 100M (16 bytes each, and more)")
	f.StringSliceVar(&axes.Modes, "modes", []string{memnic.IPIP}, "ways of forwarding: ipip, l2, gue, nat")
	f.StringSliceVar(&axes.Families, "families", []string{memnic.V4}, "v4, v6")
	f.StringSliceVar(&axes.Mixes, "mixes", []string{memnic.Hits}, "what the packets are; see above")
	f.IntSliceVar(&axes.Batches, "batches", []int{64}, "frames that the worker finds at a time")
	f.IntSliceVar(&axes.Workers, "workers", []int{1}, "workers at the same time, which share the table")
	f.StringVar(&axes.Table, "table", memnic.Memfd, "what the flow table lies on: memfd, or bpf (a BPF array map; root)")
	f.IntVar(&o.Frames, "frames", memnic.DefaultFrames, "frames in circulation, a power of two: what the receive ring of a NIC holds")
	f.BoolVar(&rings, "rings", false, "instead, compare our rings with those of asavie/xdp under the same forwarder, on veth pairs (root)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.DurationVar(&o.Duration, "duration", 10*time.Second, "how long to measure, beyond setting the flows up")
	return c
}

// benchRings is --rings.
func benchRings(ctx context.Context, out io.Writer, duration time.Duration, asJSON bool) error {
	t, err := asavie.Compare(ctx, duration)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, t)
	}
	return report.Print(out, *t)
}

func benchScalingCommand() *cobra.Command {
	var count string
	var workers int
	var asJSON bool
	var duration time.Duration
	c := &cobra.Command{
		Use:   "scaling",
		Short: "Measure what several workers do that share the flow table, beside one alone",
		Long: `Measure what several workers do that share the flow table, beside one alone: known flows, on in-process NICs. No
root, no network. One worker and all of them take turns; give it as many cores that have nothing else to do.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			flows, err := parseCount(count)
			if err != nil {
				return fmt.Errorf("--flows: %w", err)
			}
			if workers < 2 || workers > 64 {
				return fmt.Errorf("--workers: found %d, expected 2 to 64", workers)
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			s, err := memnic.MeasureScaling(ctx, flows, workers, duration)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), s)
			}
			return report.Print(c.OutOrStdout(), s.Table())
		},
	}
	f := c.Flags()
	f.StringVar(&count, "flows", "1M", "flows in the table: a number such as 100k or 1M")
	f.IntVar(&workers, "workers", 2, "workers at once")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.DurationVar(&duration, "duration", 10*time.Second, "how long to measure, beyond setting the flows up")
	return c
}
