//go:build linux

package churn

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/bench/rig"
	"github.com/sluice-lb/sluice/forwarder"
)

// burst is how many flows begin together: their SYNs, then their ACKs.
const burst = 512

func flowsTable(ctx context.Context, o *Options) (report.Table, error) {
	t := report.Table{
		Name:  "churn-flows",
		Title: "New flows that a worker takes when the flow table is full of live ones",
		Rule: fmt.Sprintf("A flow is a SYN, which leaves no word, and an ACK, which takes another flow's. %d SYNs, then their ACKs; the worker alone is timed, "+
			"on one thread. swept: another thread sweeps the table without a pause, where the daemon takes ten seconds for each time.", burst),
		Metric: "new flows", Unit: "1/s", Higher: true,
	}
	f, err := newFlood(o.Flows)
	if err != nil {
		return t, err
	}
	defer f.rig.Close()
	full := report.Row{Labels: []report.Label{{Name: "table", Value: "full"}}}
	swept := report.Row{Labels: []report.Label{{Name: "table", Value: "full, swept"}}, Extra: map[string]float64{}, Reference: full.Key()}
	sweeps := 0
	for range o.Rounds {
		for _, row := range []*report.Row{&full, &swept} {
			var stop atomic.Bool
			var sweeping sync.WaitGroup
			if row == &swept {
				sweeping.Go(func() {
					for ; !stop.Load(); sweeps++ {
						f.rig.Engine.SweepNow()
					}
				})
			}
			rate := f.run(ctx, o.Duration/10)
			stop.Store(true)
			sweeping.Wait()
			row.Rounds = append(row.Rounds, rate)
		}
		if ctx.Err() != nil {
			return t, ctx.Err()
		}
	}
	swept.Extra["sweeps_a_round"] = float64(sweeps) / float64(o.Rounds)
	t.Rows = []report.Row{full, swept}
	inserted, err := f.inserted()
	t.Notes = []string{fmt.Sprintf("%.2f %% of all flows got one of the %d words.", 100*inserted, len(f.rig.Words))}
	return t, err
}

// flood is new flows without end.
type flood struct {
	rig   *rig.Rig
	next  uint32 // the next flow
	frame [2][][]byte
}

// newFlood makes a table for so many flows and fills it: so far that next to no word of it is free.
func newFlood(flows int) (*flood, error) {
	r, err := rig.New(rig.Options{Family: "v4", Mode: forwarder.IPIP, Flows: flows})
	if err != nil {
		return nil, err
	}
	f := &flood{rig: r}
	for range 2 * len(r.Words) / burst {
		f.generate()
		f.pass(1)
	}
	return f, nil
}

// generate makes the frames of flows that nobody has seen.
func (f *flood) generate() {
	for k, flags := range [2]byte{rig.SYN, rig.ACK} {
		f.frame[k] = f.frame[k][:0]
		for i := range uint32(burst) {
			f.frame[k] = append(f.frame[k], f.rig.Frame(f.next+i, flags, false))
		}
	}
	f.next += burst
}

// pass has the SYNs (0) or the ACKs (1) forwarded, and returns how long that took.
func (f *flood) pass(k int) time.Duration {
	f.rig.NIC.DeliverBatch(0, f.frame[k])
	start := time.Now()
	for f.rig.Worker.Poll(0) > 0 {
	}
	took := time.Since(start)
	f.rig.NIC.Collect(0, nil)
	return took
}

// run forwards new flows for so long of the worker's time, and returns how many there were in a second.
func (f *flood) run(ctx context.Context, duration time.Duration) (rate float64) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	flows, took := 0, time.Duration(0)
	for took < duration && ctx.Err() == nil {
		f.generate()
		took += f.pass(0) + f.pass(1)
		flows += burst
	}
	return float64(flows) / took.Seconds()
}

// inserted returns which share of all flows got a word. The worker has ended then.
func (f *flood) inserted() (float64, error) {
	var stop atomic.Bool
	stop.Store(true)
	err := f.rig.Worker.Run(&stop, func(error) {}) // publishes what it has counted
	return float64(f.rig.Engine.Stats().Workers[0].NewFlows) / float64(f.next), err
}
