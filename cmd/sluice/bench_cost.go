//go:build linux

package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/bench/cost"
)

// countedCommand is the hidden command of the process whose instructions are counted.
const countedCommand = "counted"

func benchInstructionsCommand() *cobra.Command {
	var modes, mixes, families []string
	var flows string
	var batch, batches, top int
	var lines, asJSON bool
	c := &cobra.Command{
		Use:   "instructions",
		Short: "Count the machine instructions that the worker executes for a packet, and where",
		Long: `Count the machine instructions that the worker executes for a packet on an in-process NIC, and where: one by one, with
ptrace, in a child of this process. No hardware counters, no root, no network; amd64 only.

The numbers are the same on a busy machine and from run to run; an instruction takes some 30 µs. They are no times: cache misses are
not in them. Stages are the functions that the worker's Poll calls, with all that they call; functions, and lines of source with
--lines, are without. Batches that are counted follow others, which use every frame and ring entry once.

Mixes: hits, of flows that have a word; renewed, likewise, the first of its flow in 2 s; misses, SYNs of unknown flows, which leave no
word; new, SYNs and then ACKs of unknown flows, each of which gets a word; evict, likewise in a full table; cookie and challenge, SYNs that
are answered so; limits, hits with a limit of each source; replies, those of backends to nat.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			n, err := parseCount(flows)
			if err != nil {
				return fmt.Errorf("--flows: %w", err)
			}
			var all []*cost.Instructions
			for _, family := range families {
				for _, mode := range modes {
					for _, mix := range mixes {
						if mode == "swap" && mix != mixes[0] || mix == "replies" && mode != "nat" && len(mixes) > 1 {
							continue
						}
						i, err := cost.Count(c.Context(), cost.Case{Mode: mode, Family: family, Mix: mix, Flows: n, Batch: batch, Batches: batches},
							"bench", countedCommand)
						if err != nil {
							return err
						}
						if all = append(all, i); !asJSON {
							if err := printInstructions(c.OutOrStdout(), i, top, lines); err != nil {
								return err
							}
						}
					}
				}
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), all)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringSliceVar(&modes, "modes", []string{"swap", "ipip"}, "swap (a bare swap of MAC addresses), ipip, l2, gue, nat")
	f.StringSliceVar(&families, "families", []string{"v4"}, "v4, v6")
	f.StringSliceVar(&mixes, "mixes", []string{"hits"}, "what the packets are, see above")
	f.StringVar(&flows, "flows", "1k", "flows in the table")
	f.IntVar(&batch, "batch", 64, "frames that the worker finds when it looks, 1 to 64")
	f.IntVar(&batches, "batches", 2, "how many of these are counted; even, for mixes of SYNs and ACKs")
	f.IntVar(&top, "top", 20, "how many functions and lines to print")
	f.BoolVar(&lines, "lines", false, "print lines of source too")
	f.BoolVar(&asJSON, "json", false, "print JSON: everything")
	return c
}

func benchCountedCommand() *cobra.Command {
	return &cobra.Command{
		Use: countedCommand, Hidden: true, Args: cobra.ExactArgs(1),
		Run: func(_ *cobra.Command, args []string) { cost.Child(args[0]) },
	}
}

func printInstructions(out io.Writer, i *cost.Instructions, top int, lines bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s %s %s, %d flows, batch %d: %.1f instructions a packet\n", i.Mode, i.Family, i.Mix, i.Flows, i.Batch, i.PerPacket)
	list := func(title string, shares []cost.Share) {
		fmt.Fprintf(w, "  %s\n", title)
		for _, s := range shares[:min(len(shares), top)] {
			fmt.Fprintf(w, "  %8.1f\t%4.1f %%\t%s\t%s\n", s.PerPacket, 100*s.PerPacket/i.PerPacket, s.Name, s.Function)
		}
	}
	list("stages, with what they call", i.Stages)
	list("functions, without", i.Functions)
	if lines {
		list("lines", i.Lines)
	}
	fmt.Fprintln(w)
	return w.Flush()
}
