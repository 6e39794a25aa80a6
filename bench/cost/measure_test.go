//go:build linux && amd64 && !race

package cost

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/bench/report"
)

// Under the race detector most of a packet's instructions are the detector's, on a stack of its own.
func TestCount(t *testing.T) {
	base := Case{Mode: "ipip", Family: "v4", Mix: "hits", Flows: 100, Batch: 16, Batches: 1}
	count := func(change func(*Case)) *Instructions {
		t.Helper()
		c := base
		change(&c)
		i, err := Count(context.Background(), c, childArgument)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.1f instructions a packet", c.name(), i.PerPacket)
		return i
	}
	swap := count(func(c *Case) { c.Mode = Swap })
	hits := count(func(c *Case) {})
	again := count(func(c *Case) {})
	misses := count(func(c *Case) { c.Mix = "misses" })
	if !(swap.PerPacket < hits.PerPacket && hits.PerPacket < misses.PerPacket) {
		t.Errorf("swap %.1f, hits %.1f, misses %.1f: want them in ascending order", swap.PerPacket, hits.PerPacket, misses.PerPacket)
	}
	// Only how the kernel reads the clock is not the same twice.
	if d := math.Abs(again.PerPacket - hits.PerPacket); d > 2 {
		t.Errorf("a second run differs by %.1f instructions a packet", d)
	}
	for _, list := range [][]Share{hits.Stages, hits.Functions, hits.Lines} {
		sum := 0.
		for _, s := range list {
			sum += s.PerPacket
		}
		if math.Abs(sum-hits.PerPacket) > 0.01 {
			t.Errorf("parts sum up to %.2f of %.2f", sum, hits.PerPacket)
		}
	}
	if !slices.ContainsFunc(hits.Stages, func(s Share) bool { return s.Name == "forwarder.(*Worker).rewrite" }) {
		t.Errorf("stages %v: want one to be rewrite", hits.Stages)
	}
}

// What can be measured without a daemon is, and what cannot is told.
func TestTables(t *testing.T) {
	daemon := func(context.Context, int, int, time.Duration) (Usage, error) {
		return Usage{}, errors.New("needs root")
	}
	needs := Needs{Daemon: daemon}
	cpu, err := cpuTable(context.Background(), report.Smoke, needs)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := memoryTable(context.Background(), report.Smoke, needs)
	if err != nil {
		t.Fatal(err)
	}
	if idle := cpu.Find("idle"); idle == nil || idle.Missing != "needs root" {
		t.Errorf("row idle: %+v", idle)
	}
	if rest, busy := cpu.Find("worker at rest"), cpu.Find("1M packets/s"); rest.Rounds[0] >= busy.Rounds[0] {
		t.Errorf("at rest %v %% of a core, with 1M packets/s %v", rest.Rounds, busy.Rounds)
	}
	if flow := memory.Find("flow"); flow.Rounds[0] > 16 || flow.Extra["fit_percent"] < 100 {
		t.Errorf("a flow takes %v bytes, and %v %% of the flows fit", flow.Rounds, flow.Extra["fit_percent"])
	}
}
