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
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/cost"
	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/testenv"
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

Mixes: hits, of flows that have an established word; renewed, likewise, the first of its flow in 2 s; misses, SYNs of unknown flows,
which leave no word; new, SYNs and then ACKs of unknown flows, each of which gets a word; evict, likewise in a full table; cookie and
challenge, SYNs that are answered so; limits, hits with a limit of each source; replies, those of backends to nat.`,
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

func benchCostCommand() *cobra.Command {
	var asJSON, smoke bool
	c := &cobra.Command{
		Use:   "cost",
		Short: "Measure what the worker and the daemon take: instructions, processor time, memory",
		Long: `Measure what the worker and the daemon take: instructions a packet (as sluice bench instructions), processor time, and memory of
flows, services and backends. The daemon itself is measured in a network namespace, which needs root; the rest is measured without.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			effort := report.Full
			if smoke {
				effort = report.Smoke
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			tables, err := cost.Tables(ctx, effort, costNeeds())
			if err != nil {
				return err
			}
			return printTables(c.OutOrStdout(), tables, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&smoke, "smoke", false, "the least that tells something: some seconds")
	return c
}

// costNeeds is what package cost takes from this program.
func costNeeds() cost.Needs {
	return cost.Needs{Child: []string{"bench", countedCommand}, Daemon: measureDaemon}
}

// printTables prints what a benchmark has measured.
func printTables(out io.Writer, tables []report.Table, asJSON bool) error {
	if asJSON {
		return printJSON(out, tables)
	}
	for _, t := range tables {
		if err := report.Print(out, t); err != nil {
			return err
		}
		fmt.Fprintln(out)
	}
	return nil
}

// measureDaemon starts a daemon on a node without traffic, and says what it takes for so long.
func measureDaemon(ctx context.Context, services, backends int, duration time.Duration) (u cost.Usage, err error) {
	if os.Geteuid() != 0 {
		return u, errors.New("needs root, for network namespaces")
	}
	self, err := os.Executable()
	if err != nil {
		return u, err
	}
	dir, err := os.MkdirTemp("", "sluice-bench-")
	if err != nil {
		return u, err
	}
	defer os.RemoveAll(dir)
	env, err := testenv.New("bench")
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, env.Close()) }()
	r, err := newRig(env, rigOptions{dir: dir, nodes: 1, queues: 1})
	if err != nil {
		return u, err
	}
	node := r.nodes[0]
	if err := r.configure(node); err != nil {
		return u, err
	}
	if err := addIdleServices(node.config, services, backends); err != nil {
		return u, err
	}
	if node.daemon, err = node.Start(testenv.Cmd{Path: self, Args: []string{"run", "--config", node.config}}); err != nil {
		return u, err
	}
	if err := node.daemon.WaitUntil(30*time.Second, "node is ready", node.ready); err != nil {
		return u, err
	}
	pause := func(d time.Duration) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
	if err := pause(time.Second); err != nil { // the first probes of neighbours are over
		return u, err
	}
	before, err := threadsTime(node.daemon.PID())
	if err != nil {
		return u, err
	}
	if err := pause(duration); err != nil {
		return u, err
	}
	after, err := threadsTime(node.daemon.PID())
	if err != nil {
		return u, err
	}
	if duration > 0 {
		u.CPU = 100 * (after - before).Seconds() / duration.Seconds()
	}
	if u.RSS, err = residentMemory(node.daemon.PID()); err != nil {
		return u, err
	}
	return u, node.daemon.Stop(10 * time.Second)
}

// addIdleServices writes so many services into a configuration that has none, each with so many backends. These are behind the
// router, so that nobody looks for them one by one.
func addIdleServices(file string, services, backends int) error {
	var b strings.Builder
	for i := range services {
		fmt.Fprintf(&b, "  - name: service-%d\n    vip: 192.0.2.10\n    protocol: tcp\n    ports: %d\n    forward: ipip\n    backends:\n", i, i+1)
		for k := range backends {
			fmt.Fprintf(&b, "      - {name: backend-%d, address: 100.64.%d.%d}\n", k, k>>8, k&0xff)
		}
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(b.String())
	return errors.Join(err, f.Close())
}

// threadsTime is the processor time of a process.
func threadsTime(pid int) (sum time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		return 0, fmt.Errorf("process %d has no threads: %w", pid, os.ErrProcessDone)
	}
	for _, path := range threads {
		var ns int64
		if data, err := os.ReadFile(path); err == nil { // a thread may have ended
			_, _ = fmt.Sscan(string(data), &ns)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// residentMemory is how many bytes of a process are resident that are neither of files nor shared.
func residentMemory(pid int) (float64, error) {
	file := fmt.Sprintf("/proc/%d/status", pid)
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "RssAnon: %f kB", &kib); err == nil {
			return kib * 1024, nil
		}
	}
	return 0, fmt.Errorf("%s: no RssAnon", file)
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
