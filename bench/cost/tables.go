//go:build linux

package cost

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-lb/sluice/bench/report"
)

// Needs is what Tables takes from the program that it is part of.
type Needs struct {
	// Child is the arguments with which this executable comes to the function Child, with a case as a further one.
	Child []string
	// Daemon measures a daemon without traffic.
	Daemon func(ctx context.Context, services, backends int, duration time.Duration) (Usage, error)
}

// Usage is what a daemon without traffic took.
type Usage struct {
	CPU float64 // % of a core
	RSS float64 // bytes resident, without those of files and of shared memory
}

// Tables measures the tables cost-instructions, cost-cpu and cost-memory.
func Tables(ctx context.Context, effort report.Effort, needs Needs) ([]report.Table, error) {
	instructions, err := instructionsTable(ctx, effort, needs.Child)
	if err != nil {
		return nil, err
	}
	cpu, err := cpuTable(ctx, effort, needs)
	if err != nil {
		return nil, err
	}
	memory, err := memoryTable(ctx, effort, needs)
	if err != nil {
		return nil, err
	}
	return []report.Table{instructions, cpu, memory}, nil
}

// selection is the cases of the table: all mixes with IPIP and IPv4, hits of everything else, and small batches.
func selection(effort report.Effort) []Case {
	base := Case{Mode: "ipip", Family: "v4", Mix: "hits", Flows: 1000, Batch: 64, Batches: 2}
	cases := []Case{swapOf(base)}
	add := func(change func(*Case)) {
		c := base
		change(&c)
		cases = append(cases, c)
	}
	if effort == report.Smoke {
		for _, mix := range []string{"hits", "misses", "new"} {
			add(func(c *Case) { c.Mix = mix })
		}
		return cases
	}
	for _, mix := range Mixes[:len(Mixes)-1] {
		add(func(c *Case) { c.Mix = mix })
	}
	add(func(c *Case) { c.Mode, c.Mix = "nat", "replies" })
	for _, family := range []string{"v4", "v6"} {
		for _, mode := range []string{"ipip", "l2", "gue", "nat"} {
			if mode != base.Mode || family != base.Family {
				add(func(c *Case) { c.Mode, c.Family = mode, family })
			}
		}
	}
	for _, batch := range []int{1, 8} {
		small := base
		small.Batch, small.Batches = batch, 64/batch
		cases = append(cases, swapOf(small), small)
	}
	return cases
}

// swapOf is the floor that a case is compared with.
func swapOf(c Case) Case {
	c.Mode, c.Family, c.Mix = Swap, "v4", "hits"
	return c
}

// labels are those of a case's row.
func (c *Case) labels() []report.Label {
	mix := c.Mix
	if c.Mode == Swap {
		mix = "-"
	}
	return []report.Label{{Name: "mode", Value: c.Mode}, {Name: "family", Value: c.Family}, {Name: "mix", Value: mix}, {Name: "batch", Value: fmt.Sprint(c.Batch)}}
}

func instructionsTable(ctx context.Context, effort report.Effort, child []string) (report.Table, error) {
	t := report.Table{
		Name:   "cost-instructions",
		Title:  "Machine instructions that the worker executes for a packet on the memory NIC",
		Rule:   "Stepped through one by one with ptrace; 1,000 flows in the table; batch is how many frames the worker finds when it looks.",
		Metric: "instructions a packet", Unit: "instructions",
		Notes: []string{"Counted, not timed: one round is enough, also on a busy machine. With the mixes new and evict a flow is two packets."},
	}
	for _, c := range selection(effort) {
		i, err := Count(ctx, c, child...)
		if err != nil {
			return t, err
		}
		row := report.Row{Labels: c.labels(), Rounds: []float64{i.PerPacket}}
		if i.Counter != 0 {
			row.Extra = map[string]float64{"hardware": i.Counter}
		}
		if c.Mode != Swap {
			swap := report.Row{Labels: new(swapOf(c)).labels()}
			row.Reference = swap.Key()
		}
		t.Rows = append(t.Rows, row)
	}
	return t, nil
}
