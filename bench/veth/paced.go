//go:build linux

package veth

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/sluice-lb/sluice/bench/report"
)

// loads are the percentages of the loss-free rate at which latency is measured.
var loads = []int{10, 50, 90}

// Percentiles of latency, by the names of their figures.
var percentiles = []struct {
	name string
	at   float64
}{{"p50_us", 50}, {"p90_us", 90}, {"p99_us", 99}, {"p99.9_us", 99.9}, {"p99.99_us", 99.99}, {"max_us", 100}}

const (
	// A search halves the interval so often: the rate is known to one part in a hundred of where it began.
	halvings = 7
	// If even the upper end is free of loss, it is doubled, so often at most: a system may do better when it is not flooded.
	doublings = 3
	// A rate is tried so often before it is given up, since others may work on the machine.
	tries = 3
)

// pacedRound is what one turn of a system gave.
type pacedRound struct {
	lossFree sample
	latency  []map[string]float64 // by load: percentiles in µs, and loss
}

// paced searches the loss-free rates of the systems, and measures latency at parts of them.
func (b *board) paced(ctx context.Context, lossFree, latency bool) ([]report.Table, error) {
	setting := Setting{b.options.Flows[0], b.options.Sizes[0]}
	results := map[*System][]pacedRound{}
	for range b.options.Rounds {
		err := b.round(ctx, true, func(s *System, c counter) (err error) {
			var got pacedRound
			if got.lossFree, err = b.search(ctx, setting, c); err != nil {
				return err
			}
			if latency {
				for _, load := range loads {
					l, err := b.latency(ctx, setting, c.(stopwatch), got.lossFree.offered()*float64(load)/100)
					if err != nil {
						return err
					}
					got.latency = append(got.latency, l)
				}
			}
			results[s] = append(results[s], got)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	var tables []report.Table
	if lossFree {
		tables = append(tables, b.lossFreeTable(setting, results))
	}
	if latency {
		tables = append(tables, b.latencyTable(setting, results))
	}
	return tables, nil
}

// search finds the highest rate at which no more is lost than is tolerated, by halving an interval (RFC 2544, 26.1), which begins
// at what the system does of more than it can take.
func (b *board) search(ctx context.Context, s Setting, c counter) (best sample, err error) {
	most, err := b.rig.flood(ctx, s, c, b.options.Duration)
	if err != nil {
		return best, err
	}
	low, high := 0.0, 1.25*max(most.rate(), 1000)
	for range doublings {
		t, good, err := b.holds(ctx, s, c, high)
		if err != nil {
			return best, err
		}
		if !good {
			break
		}
		low, high, best = high, 2*high, t
	}
	for range halvings {
		rate := (low + high) / 2
		t, good, err := b.holds(ctx, s, c, rate)
		if err != nil {
			return best, err
		}
		if good {
			low, best = rate, t
		} else {
			high = rate
		}
	}
	if best.sent == 0 {
		return best, fmt.Errorf("more than %g of the packets are lost even at %.0f a second", b.options.Tolerance, high)
	}
	return best, nil
}

// holds says whether a system forwards so many packets a second.
func (b *board) holds(ctx context.Context, s Setting, c counter, rate float64) (t sample, good bool, err error) {
	for range tries {
		t, err = b.rig.trial(ctx, s, c, rate, b.options.Duration)
		// A generator that falls behind has not tried the rate.
		if err != nil || t.loss() <= b.options.Tolerance && t.offered() >= 0.95*rate {
			return t, err == nil, err
		}
	}
	return t, false, nil
}

// latency measures how long packets are under way at a rate.
func (b *board) latency(ctx context.Context, s Setting, w stopwatch, rate float64) (map[string]float64, error) {
	before, err := w.times()
	if err != nil {
		return nil, err
	}
	t, err := b.rig.trial(ctx, s, w, rate, b.options.Duration)
	if err != nil {
		return nil, err
	}
	after, err := w.times()
	if err != nil {
		return nil, err
	}
	// Two digits: the stopwatch does not know more.
	h := hdrhistogram.New(1, int64(time.Minute), 2)
	for took, n := range after {
		if n -= before[took]; n > 0 {
			if err := h.RecordValues(int64(max(took, 1)), int64(n)); err != nil {
				return nil, err
			}
		}
	}
	figures := map[string]float64{"loss_percent": 100 * t.loss(), "mpps": t.offered() / 1e6}
	for _, p := range percentiles {
		figures[p.name] = float64(h.ValueAtPercentile(p.at)) / 1e3
	}
	return figures, nil
}

// times are the frames counted so far by how long they were under way.
func (s stopwatch) times() (map[time.Duration]uint64, error) {
	all := map[time.Duration]uint64{}
	return all, s.Times(func(took time.Duration, frames uint64) { all[took] += frames })
}

// pacing is what a reader must know about the pace of packets.
const pacing = "The generator paces each packet by the clock, in the kernel. A packet is some microseconds late; what has become due while " +
	"the core was away goes out together, 5 ms worth at most. On a machine that others work on, that decides what is lost."

func (b *board) lossFreeTable(setting Setting, results map[*System][]pacedRound) report.Table {
	t := report.Table{
		Name:  "veth-lossfree",
		Title: "The highest rate at which (almost) nothing is lost, on a veth pair in copy mode",
		Rule:  b.rule(), Metric: "loss-free rate", Unit: "Mpps", Higher: true,
		Notes: append([]string{
			fmt.Sprintf("Binary search as in RFC 2544, with trials of %v instead of 60 s; a rate passes if at most %g %% of its packets "+
				"are lost in one of %d trials, where the RFC has none in one.", b.options.Duration, 100*b.options.Tolerance, tries),
			pacing,
		}, b.notes()...),
	}
	for _, s := range b.systems {
		row := b.row(s, setting)
		if row.Missing == "" {
			var loss []float64
			for _, got := range results[s] {
				row.Rounds = append(row.Rounds, got.lossFree.rate()/1e6)
				loss = append(loss, 100*got.lossFree.loss())
			}
			row.Extra = map[string]float64{"loss_percent": median(loss)}
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func (b *board) latencyTable(setting Setting, results map[*System][]pacedRound) report.Table {
	t := report.Table{
		Name:  "veth-latency",
		Title: "How long packets are under way, at parts of the loss-free rate of each system, on a veth pair in copy mode",
		Rule:  b.rule(), Metric: "99th percentile", Unit: "µs",
		Notes: append([]string{
			"Every packet carries the time at which the generator's program made it, and is measured where it arrives, by the kernel's clock both times.",
			"added_p99_us is the 99th percentile less that of direct in the same round and at the same part of its own loss-free rate.",
			"HAProxy works on streams, not packets: it is beside sluice in the benchmark of TCP users.",
			pacing,
		}, b.notes()...),
	}
	for _, s := range b.systems {
		for i, load := range loads {
			row := b.row(s, setting, report.Label{Name: "load", Value: strconv.Itoa(load)})
			if row.Missing == "" {
				row.Rounds, row.Extra = latencyFigures(results[s], results[direct], i)
			}
			t.Rows = append(t.Rows, row)
		}
	}
	return t
}

// latencyFigures are the 99th percentiles of each round at a load, and the medians of all figures.
func latencyFigures(mine, without []pacedRound, load int) (p99 []float64, extra map[string]float64) {
	all := map[string][]float64{}
	for i, got := range mine {
		for name, v := range got.latency[load] {
			all[name] = append(all[name], v)
		}
		if i < len(without) {
			added := got.latency[load]["p99_us"] - without[i].latency[load]["p99_us"]
			all["added_p99_us"] = append(all["added_p99_us"], added)
		}
	}
	extra = map[string]float64{}
	for name, values := range all {
		extra[name] = math.Round(1000*median(values)) / 1000
	}
	return all["p99_us"], extra
}
