//go:build linux

// Package users measures what TCP users see of a load balancer: new connections a second, requests a second on connections that
// stay, throughput and latency, through Sluice, HAProxy, nginx and the kernel's own DNAT, beside no balancer at all.
//
// All of it is one network of namespaces (package testenv): a client, a router, three backends that run nginx and iperf3, and
// three nodes: Sluice's; that of the proxies; and the kernel's, apart because netfilter's hooks cost whatever passes them. Each
// system has a VIP, which the router sends to its node; that of "direct" it spreads over the backends itself. All systems run all
// the time, idle but in their turn, with the same backends behind them.
//
// The machine is divided in two, for each system alike: what a user would have elsewhere, clients and backends, has one core;
// the router and the node that is measured have another. So the ratio of two systems is that of users' results, and the busy
// time of the second core is what a system costs.
//
// Everything is taken down when the functions return, also by an error or the end of the context.
package users

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/testenv"
)

// Options say what is measured, and for how long.
type Options struct {
	Programs string        // the directory of sluice and sluice-agent
	Systems  []string      // of [Systems]; empty: all
	Measures []string      // of [Measures]; empty: all
	Duration time.Duration // of one measurement: whole seconds, since wrk and iperf3 know no others
	Rounds   int           // how often each system has its turn, in each measure
	// Done, if there is one, gets each table as soon as it is complete.
	Done func(report.Table)
}

// Tables measures everything; programs is the directory of sluice and sluice-agent. It needs root and two cores.
// After an error the tables are those that were complete.
func Tables(ctx context.Context, effort report.Effort, programs string) ([]report.Table, error) {
	return Measure(ctx, OptionsFor(effort, programs))
}

// OptionsFor returns the options of an effort. A smoke run leaves out what shows little in one second.
func OptionsFor(effort report.Effort, programs string) Options {
	if effort == report.Smoke {
		return Options{Programs: programs, Duration: time.Second, Rounds: 1,
			Measures: []string{"connections", "requests", "throughput", "latency"}}
	}
	return Options{Programs: programs, Duration: 3 * time.Second, Rounds: 5}
}

// Systems returns the names of the systems, in the order of their turns.
func Systems() []string {
	var names []string
	for _, s := range systems {
		names = append(names, s.name)
	}
	return names
}

// Measures returns the names of the measures, in the order in which they are taken.
func Measures() []string {
	var names []string
	for _, m := range measures {
		names = append(names, m.name)
	}
	return names
}

// check says what cannot be measured so.
func (o *Options) check() error {
	for _, c := range []struct {
		what        string
		found, know []string
	}{{"systems", o.Systems, Systems()}, {"measures", o.Measures, Measures()}} {
		for _, name := range c.found {
			if !slices.Contains(c.know, name) {
				return fmt.Errorf("%s: found %q, expected some of %s", c.what, name, strings.Join(c.know, ", "))
			}
		}
	}
	if wanted(o.Measures, "latency") && !wanted(o.Measures, "requests") {
		return errors.New("measures: latency is measured at half of what the slowest system does in requests: give both")
	}
	if o.Duration < time.Second || o.Duration > time.Minute || o.Duration%time.Second != 0 {
		return fmt.Errorf("duration: found %v, expected whole seconds, 1s to 1m", o.Duration)
	}
	if o.Rounds < 1 || o.Rounds > 100 {
		return fmt.Errorf("rounds: found %d, expected 1 to 100", o.Rounds)
	}
	return nil
}

// wanted says whether a name is among those asked for.
func wanted(list []string, name string) bool {
	return len(list) == 0 || slices.Contains(list, name)
}

// Measure measures what the options say. After an error the tables are those that were complete.
func Measure(ctx context.Context, o Options) (tables []report.Table, err error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("bench tcp: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("bench tcp: it makes network namespaces, which needs root")
	}
	dir, err := os.MkdirTemp("", "sluice-bench-tcp-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	env, err := testenv.New("bench-tcp")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, env.Close()) }()

	r, err := newRig(env, dir, o.Programs)
	if err != nil {
		return nil, fmt.Errorf("bench tcp: %w", err)
	}
	var all []*running
	for i := range systems {
		if !wanted(o.Systems, systems[i].name) {
			continue
		}
		s, err := r.start(ctx, &systems[i])
		if err != nil {
			return nil, fmt.Errorf("bench tcp: start %s: %w", systems[i].name, err)
		}
		all = append(all, s)
	}
	for i := range measures {
		if !wanted(o.Measures, measures[i].name) {
			continue
		}
		t, err := r.table(ctx, &measures[i], all, &o)
		if err != nil {
			return tables, fmt.Errorf("bench tcp: %w", err)
		}
		tables = append(tables, t)
		if o.Done != nil {
			o.Done(t)
		}
	}
	return tables, nil
}

// table takes one measure of all systems, in turns.
func (r *rig) table(ctx context.Context, m *measure, all []*running, o *Options) (report.Table, error) {
	t := report.Table{Name: "tcp-" + m.name, Title: m.title, Rule: r.rule(), Metric: m.metric, Unit: m.unit, Higher: m.higher,
		Notes: slices.Clone(m.notes)}
	direct := false
	for _, s := range all {
		row := report.Row{Labels: []report.Label{{Name: "system", Value: s.name}, {Name: "measure", Value: m.name}}}
		row.Missing = needs(append(slices.Clone(m.needs), s.needs...))
		direct = direct || s.name == reference
		t.Rows = append(t.Rows, row)
	}
	rate := r.slowest / 2 // 0: there are no requests, and for the same reason nothing that is paced
	if m.paced && rate > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%.0f requests/s: half of what the slowest system did in tcp-requests.", rate))
	}
	extras := make([]map[string][]float64, len(all))
	for round := range o.Rounds {
		for i, s := range all {
			row := &t.Rows[i]
			if row.Missing != "" {
				continue
			}
			got, err := r.sample(ctx, m, s, o.Duration, rate)
			if err != nil {
				return report.Table{}, fmt.Errorf("%s of %s, round %d: %w", m.name, s.name, round+1, err)
			}
			row.Rounds = append(row.Rounds, got.value)
			if got.errors > 0 {
				t.Notes = append(t.Notes, fmt.Sprintf("%s, round %d: %d errors, so this round's value is not to be trusted. %s",
					s.name, round+1, got.errors, strings.Join(got.kinds, ", ")))
			}
			if extras[i] == nil {
				extras[i] = map[string][]float64{}
			}
			for name, v := range got.extra {
				extras[i][name] = append(extras[i][name], v)
			}
			extras[i]["errors"] = append(extras[i]["errors"], float64(got.errors))
		}
	}
	for i := range t.Rows {
		row := &t.Rows[i]
		if len(row.Rounds) == 0 {
			continue
		}
		if direct && all[i].name != reference {
			row.Reference = reference + "/" + m.name
		}
		row.Extra = map[string]float64{}
		for name, values := range extras[i] {
			row.Extra[name] = report.SpreadOf(values).Median
		}
		row.Extra["errors"] = sum(extras[i]["errors"])
		if ref := t.Find(row.Reference); ref != nil && len(ref.Rounds) > 0 && m.added != "" {
			row.Extra[m.added] = report.SpreadOf(differences(row.Rounds, ref.Rounds)).Median
		}
		if m.name == "requests" {
			if median := report.SpreadOf(row.Rounds).Median; r.slowest == 0 || median < r.slowest {
				r.slowest = median
			}
		}
	}
	return t, nil
}

func sum(values []float64) (total float64) {
	for _, v := range values {
		total += v
	}
	return total
}

// differences returns how much larger values are than those of the same round of another row.
func differences(values, others []float64) []float64 {
	out := make([]float64, min(len(values), len(others)))
	for i := range out {
		out[i] = values[i] - others[i]
	}
	return out
}
