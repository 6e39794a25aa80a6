//go:build linux

package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/maglev"
)

const (
	busiestBound = 1.03 // busiest share over mean, equal weights, up to 100 backends
	weightBound  = 0.02 // relative error of a share of weightedFrom entries or more
	weightedFrom = 200
)

// balanceRow is how one lookup table spreads flows.
type balanceRow struct {
	backends int
	weights  string
	size     int
	busiest  float64 // share over what the weight asks for, of the backend with the highest
	worst    float64 // relative error, of the backends with weightedFrom entries or more; −1 if there is none
}

// runBalance builds lookup tables and compares the shares of their backends with the weights.
func runBalance(seed uint64) (rows []balanceRow, verdicts []Verdict, err error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	upTo := func(most int) func(int) uint16 {
		return func(int) uint16 { return uint16(1 + rng.IntN(most)) }
	}
	for _, c := range []struct {
		name   string
		weight func(i int) uint16
	}{
		{"equal", func(int) uint16 { return 100 }},
		{"1 to 10", upTo(10)},
		{"1 to 100", upTo(100)},
		{"1 to 65535", upTo(math.MaxUint16)},
		{"65535/rank", func(i int) uint16 { return uint16(max(1, math.MaxUint16/(i+1))) }},
	} {
		for _, n := range []int{10, 100, 1000} {
			row, err := balanceOf(n, c.name, c.weight)
			if err != nil {
				return nil, nil, err
			}
			rows = append(rows, row)
			v := Verdict{Scenario: "balance"}
			switch {
			case c.name == "equal" && n <= 100:
				v.Promise = fmt.Sprintf("busiest of %d equal backends over the mean", n)
				v.Measured, v.Bound, v.OK = fmt.Sprintf("%.4f", row.busiest), fmt.Sprintf("<= %.2f", busiestBound), row.busiest <= busiestBound
			case c.name != "equal" && row.worst >= 0:
				v.Promise = fmt.Sprintf("worst share of %d backends, weights %s", n, c.name)
				v.Measured, v.Bound, v.OK = percent(row.worst), "<= "+percent(weightBound), row.worst <= weightBound
			default:
				continue
			}
			verdicts = append(verdicts, v)
		}
	}
	return rows, verdicts, nil
}

func balanceOf(n int, name string, weight func(i int) uint16) (balanceRow, error) {
	row := balanceRow{backends: n, weights: name, size: maglev.DefaultSize, worst: -1}
	backends := make([]maglev.Backend, n)
	total := 0.0
	for i := range backends {
		backends[i] = maglev.Backend{Name: backendName(i), Weight: weight(i)}
		total += float64(backends[i].Weight)
	}
	table, err := maglev.Build(backends, row.size)
	if err != nil {
		return row, err
	}
	for i, entries := range table.Shares() { // names are in the order of numbers
		exact := float64(backends[i].Weight) / total * float64(row.size)
		row.busiest = max(row.busiest, float64(entries)/exact)
		if exact >= weightedFrom {
			row.worst = max(row.worst, math.Abs(float64(entries)/exact-1))
		}
	}
	return row, nil
}

// Flows of uneven length, for the comparison of schedulers: a Pareto distribution has few long ones that make up much of the
// load.
const (
	paretoShape    = 1.2
	shortest       = 1.0    // seconds
	longest        = 1000.0 // seconds
	flowsAtOnce    = 100    // of each backend, on the average
	scheduleStep   = 10 * time.Millisecond
	loadWorkers    = 2
	loadBackends   = 100
	sampleEvery    = 10  // steps
	warmUpFraction = 0.3 // of the time, before the first sample
)

// loadRow is how evenly a scheduler spreads flows of uneven length.
type loadRow struct {
	scheduler maglev.Scheduler
	mean      float64 // of busiest backend over mean, in flows at the same moment, over all samples
	peak      float64 // the highest
}

// runLoads gives flows of uneven length to equal backends by each scheduler. Load is flows that have not ended.
func runLoads(flows int, seed uint64) (rows []loadRow, verdicts []Verdict, err error) {
	for _, s := range []maglev.Scheduler{maglev.Maglev, maglev.P2C, maglev.LeastConn, maglev.WRR} {
		row, err := loadOf(s, flows, seed)
		if err != nil {
			return nil, nil, err
		}
		rows = append(rows, row)
	}
	random, p2c := rows[0], rows[1]
	return rows, []Verdict{{
		Scenario: "schedulers", Promise: "p2c's peak load over the mean is below that of a random choice",
		Measured: fmt.Sprintf("%.2f", p2c.peak), Bound: fmt.Sprintf("< %.2f", random.peak), OK: p2c.peak < random.peak,
	}}, nil
}

func loadOf(s maglev.Scheduler, flows int, seed uint64) (loadRow, error) {
	row := loadRow{scheduler: s}
	backends, slots := make([]maglev.Backend, loadBackends), make([]uint32, loadBackends)
	state := maglev.Slots{Admit: make([]atomic.Uint32, loadBackends), Flows: make([]atomic.Int32, loadBackends)}
	for i := range backends {
		backends[i], slots[i] = maglev.Backend{Name: backendName(i), Weight: 100}, uint32(i)
		state.Admit[i].Store(uint32(maglev.MakeAdmit(maglev.Up, maglev.All)))
	}
	table, err := maglev.Build(backends, maglev.DefaultSize)
	if err != nil {
		return row, err
	}
	pool := maglev.NewPool(table, slots, s, loadWorkers)

	// The mean length of the flows says how many must come in a second.
	const a = paretoShape
	mean := a / (a - 1) * shortest * (1 - math.Pow(shortest/longest, a-1)) / (1 - math.Pow(shortest/longest, a))
	perStep := flowsAtOnce * loadBackends / mean * scheduleStep.Seconds()
	steps := int(float64(flows) / perStep)
	ends := make([][]uint16, steps)       // by step: backends of the flows that end then
	rng := rand.New(rand.NewPCG(seed, 2)) // the same flows for each scheduler
	samples, started, active := 0, 0, 0
	for step := range steps {
		for _, b := range ends[step] {
			state.Flows[b].Add(-1)
			active--
		}
		ends[step] = nil
		now := bootTime + int64(step)*int64(scheduleStep)
		for ; started < int(perStep*float64(step+1)); started++ {
			hash, u := rng.Uint64(), rng.Float64()
			slot, ok := pool.New(seed, hash, &state, started%loadWorkers, now)
			if !ok {
				return row, fmt.Errorf("scheduler %v refused a flow though all backends are up", s)
			}
			state.Flows[slot].Add(1)
			active++
			length := shortest / math.Pow(1-u*(1-math.Pow(shortest/longest, a)), 1/a)
			if end := step + 1 + int(length/scheduleStep.Seconds()); end < steps {
				ends[end] = append(ends[end], uint16(slot))
			}
		}
		if float64(step) < warmUpFraction*float64(steps) || step%sampleEvery != 0 {
			continue
		}
		busiest := int32(0)
		for i := range state.Flows {
			busiest = max(busiest, state.Flows[i].Load())
		}
		ratio := float64(busiest) * loadBackends / float64(active)
		row.mean += ratio
		row.peak = max(row.peak, ratio)
		samples++
	}
	if samples == 0 {
		return row, fmt.Errorf("%d flows are too few to compare schedulers; take 10k or more", flows)
	}
	row.mean /= float64(samples)
	return row, nil
}
