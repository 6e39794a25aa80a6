//go:build linux

package churn

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/bench/rig"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/maglev"
)

// Options say what is measured, and how long.
type Options struct {
	Flows    int           // that the table is made for
	Backends int           // of each of ten services, while latency is measured
	Rounds   int           // of everything
	Duration time.Duration // of each event in each round, and a tenth of it for new flows
	// Load reads a configuration, as the daemon does at a reload.
	Load func(yaml []byte) (forwarder.Spec, error)
}

// OptionsFor is what an effort means.
func OptionsFor(effort report.Effort) Options {
	if effort == report.Smoke {
		return Options{Flows: 100_000, Backends: 100, Rounds: 1, Duration: 300 * time.Millisecond}
	}
	return Options{Flows: 1_000_000, Backends: 1000, Rounds: 5, Duration: 2 * time.Second}
}

// Tables measures the tables churn-flows, churn-rebuild and churn-latency.
func Tables(ctx context.Context, o Options) ([]report.Table, error) {
	var out []report.Table
	for _, measure := range []func(context.Context, *Options) (report.Table, error){flowsTable, rebuildTable, latencyTable} {
		t, err := measure(ctx, &o)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// rebuildSizes is numbers of backends.
var rebuildSizes = []int{1, 100, 1000}

func rebuildTable(ctx context.Context, o *Options) (report.Table, error) {
	t := report.Table{
		Name:  "churn-rebuild",
		Title: "Time to make a service's lookup table, and to bring it into force, after the weight of a backend has changed",
		Rule: fmt.Sprintf("table: maglev.Build of %d entries; apply: Engine.Apply, with all that it does beside. One goroutine; workers go on "+
			"meanwhile with what they have.", maglev.DefaultSize),
		Metric: "time", Unit: "ms",
	}
	rows := map[string]*report.Row{}
	for _, step := range []string{"table", "apply"} {
		for _, n := range rebuildSizes {
			r := report.Row{Labels: []report.Label{{Name: "step", Value: step}, {Name: "backends", Value: fmt.Sprint(n)}}}
			t.Rows = append(t.Rows, r)
		}
	}
	for i := range t.Rows {
		rows[t.Rows[i].Key()] = &t.Rows[i]
	}
	took := func(step string, n int, f func() error) error {
		start := time.Now()
		if err := f(); err != nil {
			return err
		}
		r := rows[fmt.Sprintf("%s/%d", step, n)]
		r.Rounds = append(r.Rounds, float64(time.Since(start).Microseconds())/1000)
		return nil
	}
	for _, n := range rebuildSizes {
		r, err := rig.New(rig.Options{Family: "v4", Mode: forwarder.IPIP, Flows: 1000, Backends: n})
		if err != nil {
			return t, err
		}
		defer r.Close()
		for round := range o.Rounds {
			if ctx.Err() != nil {
				return t, ctx.Err()
			}
			spec := r.Spec(uint16(50 + round)) // another one than before
			var backends []maglev.Backend
			for _, b := range spec.Services[0].Backends {
				backends = append(backends, maglev.Backend{Name: b.Name, Weight: b.Weight})
			}
			if err := took("table", n, func() error { _, err := maglev.Build(backends, maglev.DefaultSize); return err }); err != nil {
				return t, err
			}
			if err := took("apply", n, func() error { return r.Engine.Apply(spec) }); err != nil {
				return t, err
			}
		}
	}
	return t, nil
}
