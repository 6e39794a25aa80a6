//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/bench/veth"
)

const benchVethHelp = `Measure the daemon on a veth pair in copy mode, beside its peers on the same rig: frames are made in the kernel, pass the
system, and are counted where they come back out. Needs root and two cores; everything happens in network namespaces of its own.

Measures: throughput, of as many frames as can be sent; lossfree, the highest rate at which (almost) nothing is lost; latency, how
long packets are under way at 10, 50 and 90 % of that. The systems take turns, round after round, so their ratios are good on a
machine whose speed changes. A peer that is not installed has a row that names the package.

Systems: `

func benchVethCommand() *cobra.Command {
	var (
		o            veth.Options
		flows, sizes []string
		asJSON       bool
	)
	c := &cobra.Command{
		Use:   "veth",
		Short: "Measure the daemon on a veth pair, beside DPDK, asavie/xdp and the kernel's own forwarding",
		Long:  benchVethHelp + strings.Join(veth.Names(), ", ") + ".",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, text := range flows {
				n, err := parseCount(text)
				if err != nil {
					return fmt.Errorf("--flows: %w", err)
				}
				o.Flows = append(o.Flows, n)
			}
			for _, text := range sizes {
				size, err := veth.ParseSize(text)
				if err != nil {
					return fmt.Errorf("--sizes: %w", err)
				}
				o.Sizes = append(o.Sizes, size)
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			return benchVeth(ctx, c.OutOrStdout(), o, asJSON)
		},
	}
	f := c.Flags()
	f.StringSliceVar(&o.Systems, "systems", nil, "systems to measure; all by default")
	f.StringSliceVar(&o.Measures, "measure", []string{veth.Throughput}, "what to measure: throughput, lossfree, latency")
	f.StringSliceVar(&flows, "flows", []string{"1k", "100k", "1M"},
		"numbers of flows, such as 1k, 100k, 1M; lossfree and latency take the least")
	f.StringSliceVar(&sizes, "sizes", []string{"64", "512", "1500", "imix"},
		"sizes of frames in bytes, or imix; the first one with all numbers of flows, the others with the middle one")
	f.IntVar(&o.Rounds, "rounds", 3, "turns of each system")
	f.DurationVar(&o.Duration, "duration", time.Second, "of each measurement and trial")
	f.Float64Var(&o.Tolerance, "tolerance", 0.001, "fraction of packets that a trial may lose and still count as free of loss; 0 is RFC 2544")
	f.IntVar(&o.Generators, "generators", 1, "cores that make frames for throughput; 2 shows how reflect and sluice-fastpath scale")
	f.BoolVar(&asJSON, "json", false, "print an array of rows as JSON")
	c.AddCommand(benchVethSystemCommand())
	return c
}

func benchVeth(ctx context.Context, out io.Writer, o veth.Options, asJSON bool) (err error) {
	if o.Program, err = os.Executable(); err != nil {
		return err
	}
	tables, err := veth.Measure(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted; everything is taken down")
		}
		return err
	}
	if asJSON {
		rows := []map[string]any{}
		for i := range tables {
			rows = append(rows, vethRows(&tables[i])...)
		}
		return printJSON(out, rows)
	}
	for _, t := range tables {
		if err := report.Print(out, t); err != nil {
			return err
		}
	}
	return nil
}

// vethRows are a table's rows as flat objects: labels, the median under "mpps" or "p99_us", the values of the rounds, extras
// (the loss as a fraction), and what the median ratio to the peer is.
func vethRows(t *report.Table) []map[string]any {
	measure, value := veth.Throughput, "mpps"
	switch t.Name {
	case "veth-lossfree":
		measure = veth.LossFree
	case "veth-latency":
		measure, value = veth.Latency, "p99_us"
	}
	var rows []map[string]any
	for i := range t.Rows {
		r := &t.Rows[i]
		row := map[string]any{"measure": measure}
		for _, l := range r.Labels {
			row[l.Name] = l.Value
			if n, err := strconv.Atoi(l.Value); err == nil && l.Name == "flows" {
				row[l.Name] = n
			}
		}
		for name, v := range r.Extra {
			if name == "loss_percent" {
				name, v = "loss", v/100
			}
			row[name] = v
		}
		if r.Missing != "" {
			row["missing"] = r.Missing
		}
		if len(r.Rounds) > 0 {
			row[value], row["rounds"] = report.SpreadOf(r.Rounds).Median, r.Rounds
		}
		if ratio, ok := t.Ratio(r); ok {
			row["reference"], row["ratio"] = r.Reference, ratio.Median
		}
		rows = append(rows, row)
	}
	return rows
}

// benchVethSystemCommand is some of the systems that are measured.
func benchVethSystemCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "system reflect|forward INTERFACE FLOWS",
		Short:  "Be a system that is measured: asavie/xdp as a reflector, or below the worker",
		Hidden: true,
		Args:   cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			flows, err := parseCount(args[2])
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			switch args[0] {
			case "reflect":
				return veth.Reflect(ctx, args[1])
			case "forward":
				return veth.Forward(ctx, args[1], flows)
			}
			return fmt.Errorf("found %q, expected reflect or forward", args[0])
		},
	}
}
