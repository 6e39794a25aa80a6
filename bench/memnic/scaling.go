//go:build linux

package memnic

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/sluice-lb/sluice/bench/report"
)

// Scaling is what several workers did that share one flow table, beside one of them alone.
type Scaling struct {
	Workers int       `json:"workers"`
	Flows   int       `json:"flows"`
	One     float64   `json:"one_mpps"`    // of one worker while the others rest, median over the rounds
	All     float64   `json:"all_mpps"`    // of all of them at once, likewise
	Ratio   float64   `json:"ratio"`       // median over the rounds of All to One of the same round
	Each    []float64 `json:"round_ratio"` // ascending
	// Control is what as many bare swaps of MACs at once did over one of them: they share nothing, so what it is short of the number
	// of workers is the machine's.
	Control float64 `json:"control_ratio"`
	Missing string  `json:"missing,omitempty"`

	busy      string
	ones, all []float64 // Mpps, by round
}

// MeasureScaling has workers forward known flows out of one table, one alone and all at once in turns. Each needs a CPU that has
// nothing else to do; if there are not enough, Missing says so.
func MeasureScaling(ctx context.Context, flows, workers int, duration time.Duration) (*Scaling, error) {
	one, all := base(flows), base(flows)
	all.Workers = workers
	swap, swaps := one, all
	swap.Mode, swap.Mix, swaps.Mode, swaps.Mix = Swap, none, Swap, none
	m, err := Measure(ctx, Options{Cases: []Case{one, all, swap, swaps}, Duration: duration})
	if err != nil {
		return nil, err
	}
	s := &Scaling{Workers: workers, Flows: flows, busy: m.Busy, Missing: m.runs[1].missing}
	for _, nanos := range m.runs[0].rounds {
		s.ones = append(s.ones, 1000/nanos)
	}
	for i, nanos := range m.runs[1].rounds {
		s.all = append(s.all, float64(workers)*1000/nanos)
		s.Each = append(s.Each, s.all[i]/s.ones[i])
	}
	s.One = report.SpreadOf(s.ones).Median
	if s.Missing == "" {
		s.All, s.Ratio = report.SpreadOf(s.all).Median, report.SpreadOf(s.Each).Median
		var control []float64
		for i, nanos := range m.runs[2].rounds {
			control = append(control, float64(workers)*nanos/m.runs[3].rounds[i])
		}
		s.Control = report.SpreadOf(control).Median
	}
	slices.Sort(s.Each)
	return s, nil
}

// Table returns it as "worker-scaling".
func (s *Scaling) Table() report.Table {
	labels := func(workers int) []report.Label {
		return []report.Label{{Name: "workers", Value: strconv.Itoa(workers)}, {Name: "flows", Value: strconv.Itoa(s.Flows)}}
	}
	one, all := report.Row{Labels: labels(1), Rounds: s.ones}, report.Row{Labels: labels(s.Workers), Rounds: s.all, Missing: s.Missing}
	all.Reference = one.Key()
	t := report.Table{
		Name: "worker-scaling", Title: "workers on in-process rings that share the flow table, beside one alone",
		Rule:   "Each worker on a CPU of its own, its generator and sink between the timed bursts, which all begin at the same time.",
		Metric: "rate", Unit: "Mpps", Higher: true, Rows: []report.Row{one, all},
		Notes: []string{fmt.Sprintf("It takes %d CPUs that have nothing else to do.", s.Workers)},
	}
	if s.Missing == "" {
		t.Notes = append(t.Notes, fmt.Sprintf("%d bare swaps of MACs at once, which share nothing, did %.2f times what one does: the rest is the machine's.",
			s.Workers, s.Control))
	}
	if s.busy != "" {
		t.Notes = append(t.Notes, s.busy)
	}
	return t
}
