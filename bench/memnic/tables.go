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

// Tables measures the selection of cases that its effort has, and how workers scale. Root is needed for the tables on a BPF array
// alone; without it they are missing.
func Tables(ctx context.Context, effort report.Effort) ([]report.Table, error) {
	o, flows, scaling := Options{Cases: smoke(), Duration: 5 * time.Second}, 100_000, time.Second
	if effort == report.Full {
		o, flows, scaling = Options{Cases: selection(), Duration: 90 * time.Second}, 1_000_000, 20*time.Second
	}
	m, err := Measure(ctx, o)
	if err != nil {
		return nil, err
	}
	s, err := MeasureScaling(ctx, flows, 2, scaling)
	if err != nil {
		return nil, err
	}
	return append(m.Tables(), s.Table()), nil
}

// Tables returns the measurement as "worker", and "worker-bpf" for what was measured with flow tables on BPF arrays.
func (m *Measurement) Tables() (out []report.Table) {
	for _, kind := range []struct{ table, name, where string }{
		{Memfd, "worker", "shared memory"}, {BPF, "worker-bpf", "a BPF array map"},
	} {
		t := report.Table{
			Name:  kind.name,
			Title: "the worker on in-process rings, beside a bare swap of MACs on them and reads of cache lines; flow tables on " + kind.where,
			Rule: fmt.Sprintf("One worker on the first CPU, generator and sink between its timed bursts; a second one on the second CPU at the same time. "+
				"%d frames in circulation for all.", m.Frames),
			Metric: "time a packet", Unit: "ns",
			Notes: []string{
				"Of workers at the same time, the time is each one's own. The worker's own batch is 64.",
				"mode memory: one read of a random cache line of the flow table. mix new and evict: two packets a flow.",
			},
		}
		if m.Busy != "" {
			t.Notes = append(t.Notes, m.Busy)
		}
		for _, r := range m.on(kind.table) {
			t.Rows = append(t.Rows, m.row(r))
		}
		if len(t.Rows) > 0 {
			out = append(out, t)
		}
	}
	return out
}

// on returns the runs with this kind of flow table.
func (m *Measurement) on(table string) (out []*run) {
	for _, r := range m.runs {
		if r.Table == table {
			out = append(out, r)
		}
	}
	return out
}

// row is a case with its values. It is compared with the swap of its batch.
func (m *Measurement) row(r *run) report.Row {
	row := report.Row{Labels: r.labels(), Rounds: r.rounds, Missing: r.missing}
	if r.Mode == Memory || r.missing != "" {
		return row
	}
	row.Extra = map[string]float64{"allocs_per_packet": float64(r.allocs) / float64(r.packets)}
	if r.Mix == New || r.Mix == Evict {
		row.Extra["new_flows_per_second"] = float64(r.Workers) * 1e9 / 2 / report.SpreadOf(r.rounds).Median
	}
	if s := m.swapOf(r); s != nil && s != r {
		ref := report.Row{Labels: s.labels()}
		row.Reference = ref.Key()
	}
	return row
}

// swapOf is the swap that a run is compared with.
func (m *Measurement) swapOf(r *run) *run {
	cases := make([]Case, len(m.runs))
	for i := range m.runs {
		cases[i] = m.runs[i].Case
	}
	flows := referenceFlows(cases)
	i := slices.IndexFunc(m.runs, func(s *run) bool {
		return s.Mode == Swap && s.Flows == flows && s.Batch == r.Batch && s.Table == r.Table && s.missing == ""
	})
	if i < 0 {
		return nil
	}
	return m.runs[i]
}

func (c *Case) labels() []report.Label {
	batch := none
	if c.Batch > 0 {
		batch = strconv.Itoa(c.Batch)
	}
	return []report.Label{
		{Name: "mode", Value: c.Mode}, {Name: "family", Value: c.Family}, {Name: "mix", Value: c.Mix},
		{Name: "flows", Value: strconv.Itoa(c.Flows)}, {Name: "batch", Value: batch}, {Name: "workers", Value: strconv.Itoa(c.Workers)},
	}
}

// Result is a case with the medians of its values, as JSON.
type Result struct {
	Mode    string `json:"mode"` // see Case
	Family  string `json:"family"`
	Mix     string `json:"mix"`
	Flows   int    `json:"flows"`
	Batch   int    `json:"batch"`
	Workers int    `json:"workers"`
	Table   string `json:"table"`
	// NanosPerPacket is the median over the rounds, of each worker's own time; with mode memory it is that of a read.
	NanosPerPacket  float64 `json:"ns_per_packet"`
	Mpps            float64 `json:"mpps"`            // of all workers together
	SwapRatio       float64 `json:"ratio,omitempty"` // to the swap of the same batch, median over the rounds
	FlowsPerSecond  float64 `json:"flows_per_second,omitempty"`
	AllocsPerPacket float64 `json:"allocs_per_packet"`
	Missing         string  `json:"missing,omitempty"` // why it was not measured
}

// Results returns all cases.
func (m *Measurement) Results() (out []Result) {
	runs := slices.Concat(m.on(Memfd), m.on(BPF))
	for _, t := range m.Tables() {
		for i := range t.Rows {
			row, r := &t.Rows[i], runs[len(out)]
			x := Result{Mode: r.Mode, Family: r.Family, Mix: r.Mix, Flows: r.Flows, Batch: r.Batch, Workers: r.Workers, Table: r.Table, Missing: r.missing}
			if len(row.Rounds) > 0 {
				x.NanosPerPacket = report.SpreadOf(row.Rounds).Median
				x.Mpps = float64(r.Workers) * 1000 / x.NanosPerPacket
				x.FlowsPerSecond, x.AllocsPerPacket = row.Extra["new_flows_per_second"], row.Extra["allocs_per_packet"]
			}
			if ratio, ok := t.Ratio(row); ok {
				x.SwapRatio = ratio.Median
			}
			out = append(out, x)
		}
	}
	return out
}
