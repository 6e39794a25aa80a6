//go:build linux

package main

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/bench"
)

func benchCommand() *cobra.Command {
	c := &cobra.Command{Use: "bench", Short: "Measure this machine"}
	c.AddCommand(
		benchAllCommand(), benchCompareCommand(), benchImportCommand(),
		benchWorkerCommand(), benchScalingCommand(), benchVethCommand(), benchTCPCommand(), benchCostCommand(),
		benchInstructionsCommand(), benchCountedCommand(),
	)
	return c
}

func benchWorkerCommand() *cobra.Command {
	var list []string
	var asJSON bool
	var duration time.Duration
	c := &cobra.Command{
		Use:   "worker",
		Short: "Measure the worker on an in-process NIC, beside a bare MAC swap on the same rings",
		Long: `Measure the worker on an in-process NIC, beside a bare MAC swap on the same rings. No root, no network.

Modes: swap, the bare swap; ipip, packets of flows that have a word; syn, SYNs of unknown flows, which leave none; new,
packets of unknown flows, each of which gets a word; limits, as ipip with a limit of each source; challenge and cookie,
SYNs that are answered so. All modes and flow counts take turns within one run, so their ratios are good on a machine whose speed changes.
Nanoseconds are this machine's, now, and do not carry over.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var flows []int
			for _, text := range list {
				n, err := parseCount(text)
				if err != nil {
					return fmt.Errorf("--flows: %w", err)
				}
				flows = append(flows, n)
			}
			results, err := bench.Worker(flows, duration)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), results)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', tabwriter.AlignRight)
			fmt.Fprint(w, "MODE\tFLOWS\tNS/PACKET\tMPPS\tALLOCS/PACKET\t\n")
			for _, r := range results {
				fmt.Fprintf(w, "%s\t%d\t%.1f\t%.2f\t%.3g\t\n", r.Mode, r.Flows, r.NanosPerPacket, r.Mpps, r.AllocsPerPacket)
			}
			return w.Flush()
		},
	}
	f := c.Flags()
	f.StringSliceVar(&list, "flows", []string{"1k", "100k", "1M"}, "flows in the table: numbers such as 1k, 100k, 1M, 10M (16 bytes each)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.DurationVar(&duration, "duration", 10*time.Second, "how long to measure, beyond setting the flows up")
	return c
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
			s, err := bench.MeasureScaling(flows, workers, duration)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), s)
			}
			fmt.Fprintf(c.OutOrStdout(), "%d flows: one worker %.2f Mpps, %d workers %.2f Mpps: %.2f times as much (%.2f to %.2f in %d rounds)\n",
				s.Flows, s.One, s.Workers, s.All, s.Ratio, s.Each[0], s.Each[len(s.Each)-1], len(s.Each))
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&count, "flows", "1M", "flows in the table: a number such as 100k or 1M")
	f.IntVar(&workers, "workers", 2, "workers at once")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.DurationVar(&duration, "duration", 10*time.Second, "how long to measure, beyond setting the flows up")
	return c
}

// parseCount reads a number such as 500, 100k or 4M.
func parseCount(text string) (int, error) {
	digits, factor := text, 1
	switch {
	case strings.HasSuffix(text, "k"):
		digits, factor = text[:len(text)-1], 1000
	case strings.HasSuffix(text, "M"):
		digits, factor = text[:len(text)-1], 1_000_000
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || n > 1_000_000_000/factor {
		return 0, fmt.Errorf("found %q, expected a number from 1 to 1000M, such as 500, 100k or 4M", text)
	}
	return n * factor, nil
}
