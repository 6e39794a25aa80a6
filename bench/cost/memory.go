//go:build linux

package cost

import (
	"context"
	"math/rand/v2"
	"runtime"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/bench/rig"
	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/shm"
)

// What memory is measured of.
const (
	memoryFlows    = 1 << 20
	memoryServices = 1000
	memoryBackends = 10_000
)

func memoryTable(ctx context.Context, effort report.Effort, needs Needs) (report.Table, error) {
	t := report.Table{
		Name:  "cost-memory",
		Title: "Memory that flows, backends and services take",
		Rule: "flow: what is mapped for a table of 1,048,576, over that number. service and backend: growth of the Go heap by an engine with " +
			"1,000 services of one backend, and by one with a service of 10,000 backends. daemon: what of it is resident, without shared " +
			"memory such as the flow table.",
		Metric: "memory", Unit: "bytes",
		Notes: []string{
			"fit_percent is how many flows, of those that the table is made for, got a word before the first found both of its lines full of live ones; " +
				"lost_ppm how many of a million found that by the time that as many had come as it is made for.",
			"A service's memory is its lookup table for the most part: 65,537 entries of two bytes; the engine has two for a minute after a change.",
		},
	}
	rounds := 5
	if effort == report.Smoke {
		rounds = 2
	}
	row := func(of string) report.Row { return report.Row{Labels: []report.Label{{Name: "of", Value: of}}} }
	flow, service, backend := row("flow"), row("service"), row("backend")
	flow.Extra = map[string]float64{}
	for round := range rounds {
		bytes, fit, lost, err := fillTable(uint64(round))
		if err != nil {
			return t, err
		}
		flow.Rounds = append(flow.Rounds, bytes)
		for name, v := range map[string]float64{"fit_percent": 100 * fit, "lost_ppm": 1e6 * lost} {
			flow.Extra[name] += v / float64(rounds)
		}
		one, err := heapOf(1, 1)
		if err != nil {
			return t, err
		}
		services, err := heapOf(memoryServices, 1)
		if err != nil {
			return t, err
		}
		backends, err := heapOf(1, memoryBackends)
		if err != nil {
			return t, err
		}
		service.Rounds = append(service.Rounds, (services-one)/(memoryServices-1))
		backend.Rounds = append(backend.Rounds, (backends-one)/(memoryBackends-1))
	}
	t.Rows = []report.Row{flow, service, backend}
	for _, d := range []struct {
		of                 string
		services, backends int
	}{{"daemon, 1 service", 1, 1}, {"daemon, 1,000 services", memoryServices, 1}, {"daemon, 10,000 backends", 1, memoryBackends}} {
		r := row(d.of)
		switch u, err := needs.Daemon(ctx, d.services, d.backends, 0); {
		case ctx.Err() != nil:
			return t, ctx.Err()
		case err != nil:
			r.Missing = err.Error()
		default:
			r.Rounds = []float64{u.RSS}
		}
		t.Rows = append(t.Rows, r)
	}
	return t, nil
}

// fillTable gives a flow table one flow after another, all alive, and returns its size in bytes over the number of flows that it is
// made for; which share of that number was there when the first flow found no free word; and which share of as many flows found
// none.
func fillTable(seed uint64) (bytes, fit, lost float64, err error) {
	words, err := conntrack.WordsFor(memoryFlows)
	if err != nil {
		return 0, 0, 0, err
	}
	memory, err := shm.NewMemfd("sluice-bench", int(words*8))
	if err != nil {
		return 0, 0, 0, err
	}
	defer memory.Close()
	table, err := conntrack.New(memory.Words())
	if err != nil {
		return 0, 0, 0, err
	}
	lives := []conntrack.Life{{conntrack.MaxLife, conntrack.MaxLife, conntrack.MaxLife, conntrack.MaxLife}}
	rng := rand.NewPCG(seed, memoryFlows)
	for n := 0; n < memoryFlows || fit == 0; n++ {
		if table.Insert(rng.Uint64(), 0, 0, conntrack.Established, lives) != conntrack.Refused {
			continue
		}
		if n < memoryFlows {
			lost += 1. / memoryFlows
		}
		if fit == 0 {
			fit = float64(n) / memoryFlows
		}
	}
	return float64(len(memory.Bytes())) / memoryFlows, fit, lost, nil
}

// heapOf is how many bytes of the Go heap an engine takes.
func heapOf(services, backends int) (float64, error) {
	before := heap()
	r, err := rig.New(rig.Options{Family: "v4", Mode: forwarder.IPIP, Flows: 1000, Services: services, Backends: backends})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	after := heap()
	runtime.KeepAlive(r)
	return float64(after) - float64(before), nil
}

// heap is how many bytes of the Go heap are in use.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers hold
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
