//go:build linux

package cost

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/bench/rig"
	"github.com/sluice-lb/sluice/forwarder"
)

// load is packets that are offered to a worker.
type load struct {
	name string
	rate int // packets a second; 0: none
}

var loads = []load{{"worker at rest", 0}, {"10k packets/s", 10_000}, {"100k packets/s", 100_000}, {"1M packets/s", 1_000_000}}

const (
	cpuFlows = 1000
	// feedPause is how long the feeder sleeps, as a NIC holds its interrupts back, and feedMost how many frames it then gives at most.
	feedPause = 100 * time.Microsecond
	feedMost  = 1024
)

func cpuTable(ctx context.Context, effort report.Effort, needs Needs) (report.Table, error) {
	t := report.Table{
		Name:  "cost-cpu",
		Title: "Processor time of an idle daemon, and of a worker that forwards known flows by ipip on the memory NIC",
		Rule: "The worker runs as the daemon's does: it looks 256 times in vain, then sleeps. A feeder on another thread gives it what is " +
			"due every 100 µs or a little later; its time is not counted, nor is that of a kernel's rings.",
		Metric: "processor time", Unit: "% of a core",
	}
	rounds, duration, idle := 3, 2*time.Second, 5*time.Second
	if effort == report.Smoke {
		rounds, duration, idle = 1, 300*time.Millisecond, 2*time.Second
	}
	daemon := report.Row{Labels: []report.Label{{Name: "of", Value: "idle"}}}
	rows := make([]report.Row, len(loads))
	packets := make([]float64, len(loads))
	for i, l := range loads {
		rows[i].Labels = []report.Label{{Name: "of", Value: l.name}}
	}
	for range rounds {
		if daemon.Missing == "" {
			u, err := needs.Daemon(ctx, 1, 1, idle)
			if ctx.Err() != nil {
				return t, ctx.Err()
			}
			if err != nil {
				daemon.Missing, daemon.Rounds = err.Error(), nil
			} else {
				daemon.Rounds = append(daemon.Rounds, u.CPU)
			}
		}
		for i, l := range loads {
			used, forwarded, err := workerTime(ctx, l.rate, duration)
			if err != nil {
				return t, err
			}
			rows[i].Rounds = append(rows[i].Rounds, 100*used.Seconds()/duration.Seconds())
			packets[i] += float64(forwarded)
			if l.rate > 0 {
				rows[i].Extra = map[string]float64{
					"ns_a_packet": float64(used.Nanoseconds()) / float64(forwarded), "mpps": packets[i] / float64(len(rows[i].Rounds)) / duration.Seconds() / 1e6,
				}
			}
		}
	}
	t.Rows = append([]report.Row{daemon}, rows...)
	return t, nil
}

// workerTime has a worker run for so long with this load, and returns its thread's processor time, and how many packets it forwarded.
func workerTime(ctx context.Context, rate int, duration time.Duration) (used time.Duration, forwarded int, err error) {
	r, err := rig.New(rig.Options{Family: "v4", Mode: forwarder.IPIP, Flows: cpuFlows})
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()
	if want := 3; runtime.GOMAXPROCS(0) < want { // a worker's, and two as the daemon has them
		runtime.GOMAXPROCS(want)
	}
	frames := make([][]byte, cpuFlows)
	for i := range frames {
		frames[i] = r.Frame(uint32(i), rig.ACK, false)
	}
	var stop atomic.Bool
	type result struct {
		used time.Duration
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: what the thread has used is the worker's alone
		var before, after unix.Rusage
		err := unix.Getrusage(unix.RUSAGE_THREAD, &before)
		if err == nil {
			err = r.Worker.Run(&stop, func(error) {})
		}
		if err == nil {
			err = unix.Getrusage(unix.RUSAGE_THREAD, &after)
		}
		done <- result{time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()), err}
	}()
	start, next, given := time.Now(), 0, 0
	for now := start; now.Sub(start) < duration && ctx.Err() == nil; now = time.Now() {
		due := int(now.Sub(start).Seconds()*float64(rate)) - given
		for n := min(due, feedMost); n > 0; {
			some := frames[next:min(len(frames), next+n)]
			r.NIC.DeliverBatch(0, some)
			next = (next + len(some)) % len(frames)
			n -= len(some)
			given += len(some)
		}
		r.NIC.Collect(0, nil)
		time.Sleep(feedPause)
	}
	stop.Store(true)
	r.NIC.Deliver(0, frames[0]) // wakes it
	end := <-done
	r.NIC.Collect(0, nil)
	if end.err == nil {
		end.err = ctx.Err()
	}
	return end.used, int(r.Engine.Stats().Workers[0].Forwarded), end.err
}
