//go:build linux

package veth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/report"
)

// What can be measured; see [Options].
const (
	Throughput = "throughput"
	LossFree   = "lossfree"
	Latency    = "latency"
)

// Measures are all that can be measured.
var Measures = []string{Throughput, LossFree, Latency}

// Options say what is measured.
type Options struct {
	Program  string   // path of the sluice program
	Systems  []string // by name; empty: all
	Measures []string // empty: all
	Flows    []int    // loss-free rate and latency are measured with the least
	Sizes    []Size   // the first with all numbers of flows, the others with the middle one
	Rounds   int
	Duration time.Duration // of each measurement of throughput, and each trial
	// Tolerance is the fraction of packets that a trial may lose and still count as free of loss.
	Tolerance float64
	// Generators is how many cores make frames at once in a measurement of throughput, 1 (0, too) or 2. With 2, which share the second core with
	// processes, it shows how what runs on the generators' cores scales: reflect, sluice-fastpath.
	Generators int
}

// Tables measures as an effort says, with the sluice program at this path.
func Tables(ctx context.Context, effort report.Effort, program string) ([]report.Table, error) {
	o := Options{
		Program: program, Measures: []string{Throughput}, Tolerance: 0.001, Rounds: 5, Duration: time.Second,
		Flows: []int{1000, 100_000, 1_000_000}, Sizes: []Size{smallest, {"512", 512}, {"1500", 1500}, {Name: "imix"}},
	}
	p := o // for what is paced, which takes a system ten times as long
	p.Measures, p.Rounds, p.Flows, p.Sizes = []string{LossFree, Latency}, 3, o.Flows[:1], o.Sizes[:1]
	if effort == report.Smoke {
		o.Rounds, o.Duration, o.Flows, o.Sizes = 1, 300*time.Millisecond, []int{1000, 1_000_000}, o.Sizes[:1]
		p.Rounds, p.Duration, p.Systems = 1, 100*time.Millisecond, []string{direct.Name, fastPath.Name}
	}
	tables, err := Measure(ctx, o)
	if err != nil {
		return nil, err
	}
	more, err := Measure(ctx, p)
	return append(tables, more...), err
}

// Measure measures as the options say. Needs root. It returns early with an error when ctx ends; everything is taken down then,
// too. A system that is not installed, or does not start, has rows that say so; only this program itself must.
func Measure(ctx context.Context, o Options) (tables []report.Table, err error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("measure on a veth pair: %w", err)
	}
	chosen, err := choose(o.Systems)
	if err != nil {
		return nil, fmt.Errorf("measure on a veth pair: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("it makes network namespaces: run it as root")
	}
	unlock, err := lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("measure on a veth pair: %w", err)
	}
	defer unlock()
	r, err := newRig(o, slices.Max(o.Flows))
	if err != nil {
		return nil, fmt.Errorf("measure on a veth pair: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	b := &board{rig: r, options: o, systems: chosen, missing: map[*System]string{}}
	for _, s := range chosen {
		b.missing[s] = s.missing()
	}
	if slices.Contains(o.Measures, Throughput) {
		t, err := b.throughput(ctx)
		if err != nil {
			return nil, err
		}
		tables = append(tables, t)
	}
	lossFree, latency := slices.Contains(o.Measures, LossFree), slices.Contains(o.Measures, Latency)
	if lossFree || latency {
		t, err := b.paced(ctx, lossFree, latency)
		if err != nil {
			return nil, err
		}
		tables = append(tables, t...)
	}
	return tables, nil
}

func (o *Options) check() error {
	if len(o.Measures) == 0 {
		o.Measures = Measures
	}
	for _, m := range o.Measures {
		if !slices.Contains(Measures, m) {
			return fmt.Errorf("unknown measure %q; there are %v", m, Measures)
		}
	}
	switch {
	case len(o.Flows) == 0 || len(o.Sizes) == 0:
		return errors.New("no numbers of flows, or no sizes")
	case slices.Min(o.Flows) < 1 || slices.Max(o.Flows) > mostFlows:
		return fmt.Errorf("%v flows; must be 1 to %d", o.Flows, mostFlows)
	case o.Rounds < 1 || o.Rounds > 1000:
		return fmt.Errorf("%d rounds; must be 1 to 1000", o.Rounds)
	case o.Duration < 50*time.Millisecond || o.Duration > time.Minute:
		return fmt.Errorf("a duration of %v; must be 50ms to 1m", o.Duration)
	case o.Generators < 0 || o.Generators > 2:
		return fmt.Errorf("%d generators; there can be 1 or 2", o.Generators)
	case o.Tolerance < 0 || o.Tolerance > 0.1:
		return fmt.Errorf("a tolerated loss of %g; must be 0 to 0.1", o.Tolerance)
	}
	o.Flows = slices.Sorted(slices.Values(o.Flows))
	o.Generators = max(o.Generators, 1)
	return nil
}

const mostFlows = 100_000_000

// settings are those in which throughput is measured.
func (o *Options) settings() []Setting {
	var all []Setting
	for _, flows := range o.Flows {
		all = append(all, Setting{flows, o.Sizes[0]})
	}
	for _, size := range o.Sizes[1:] {
		all = append(all, Setting{o.Flows[len(o.Flows)/2], size})
	}
	return all
}

// mostQueued is how long a run waits for the end of another.
const mostQueued = time.Minute

// lock makes sure that one such measurement is under way on the machine. It ends with the process at the latest.
func lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(os.TempDir(), "sluice-bench.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(mostQueued); ; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			break
		}
		if err = pause(ctx, 100*time.Millisecond); err != nil {
			break
		}
	}
	return nil, errors.Join(fmt.Errorf("lock %s, which another benchmark that runs holds: %w", f.Name(), err), f.Close())
}
