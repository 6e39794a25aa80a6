//go:build linux

package sim

import (
	"fmt"
	"time"

	"github.com/sluice-lb/sluice/maglev"
)

// promise is what a scenario's result must be.
type promise uint8

const (
	printed promise = iota // nothing: it is shown
	zero                   // no flow of Sluice breaks
	own                    // the dead backend's flows break, and no other
	better                 // fewer flows of Sluice break than of maglev-lru, or none of both
	noWorse                // not more; the scenario's note says why there cannot be fewer
)

// cause is why a flow breaks whose backend lives.
type cause uint8

const (
	unexpected cause = iota
	whileDraining
	sinceChange
	beforeChange
	configsDiffer
	healthDiffers
	localLoad
	tableFull
)

// causes says which flows each cause concerns.
var causes = [...]string{
	unexpected:    "nothing that is known: this is a fault.",
	whileDraining: "A backend drains, or is down, or starts slowly: flows that were opened in the meantime and have it as their first candidate.",
	sinceChange:   "Backends were added, removed or re-weighted in the last minute: flows opened since, whose table entry that moved.",
	beforeChange:  "Backends were added, removed or re-weighted more than a minute ago: flows opened before whose table entry that moved.",
	configsDiffer: "Nodes have different configurations: flows whose entries differ. A node that has lost its table should start with the old configuration, and reload then.",
	healthDiffers: "One node sees a backend down that others see up: flows that have it as their first candidate.",
	localLoad:     "The scheduler goes by what a node knows alone (p2c, wrr, least-conn): flows that were not given their first candidate.",
	tableFull:     "Without any node being lost: the table was full when the flow was opened, and backends were added, removed or re-weighted: flows without a word whose entry that moved.",
}

// scenario is a story that is told to all schemes.
type scenario struct {
	name    string
	text    string // what happens
	router  router
	schemes []schemeMaker // nil: Sluice and its peers
	play    func(f *fleet)
	promise promise
	note    string // beside the verdict
	breaks  cause  // why flows of Sluice break here; unexpected if none shall
}

// The backends that something happens to.
const (
	first  = 17
	second = 60
	added  = fleetBackends // not configured at the start
)

// Times after the last change of the configuration, on both sides of the minute for which the table from before counts.
const (
	soon = 20 * time.Second
	late = 80 * time.Second
)

func fleetScenarios() []scenario {
	list := []scenario{
		{
			name: "node-dies-resilient", promise: zero,
			text: "one node of four dies; the router moves its flows alone",
			play: nodeDies,
		},
		{
			name: "node-dies-modulo", promise: zero, router: modulo,
			text: "one node of four dies; the router moves flows of all nodes",
			play: nodeDies,
		},
		{
			name: "backend-drained", promise: zero,
			text: "one backend of 100 is drained",
			play: func(f *fleet) {
				f.populate(0.8)
				f.setState(first, maglev.Draining, f.everyNode()...)
				f.arrive(0.2)
				f.finish()
			},
		},
		{
			name: "backend-drained-then-removed", promise: zero,
			text: "one backend of 100 is drained and taken out of the configuration with flows left",
			play: func(f *fleet) {
				f.populate(0.7)
				f.setState(first, maglev.Draining, f.everyNode()...)
				f.arrive(0.1)
				f.talk()
				f.configure(first, -1, f.everyNode()...)
				f.arrive(0.1)
				f.live(late)
				f.arrive(0.1)
				f.finish()
			},
		},
		{
			name: "backend-dies", promise: own,
			text: "one backend of 100 dies (on_down: keep)",
			play: func(f *fleet) {
				f.populate(0.8)
				f.die(first)
				f.arrive(0.2)
				f.finish()
			},
		},
		{
			name: "backend-added", promise: zero,
			text: "a backend is added to 100",
			play: func(f *fleet) {
				f.populate(0.7)
				f.configure(added, 100, f.everyNode()...)
				f.arrive(0.2)
				f.live(late)
				f.arrive(0.1)
				f.finish()
			},
		},
		{
			name: "weight-changed", promise: zero,
			text: "the weight of one backend of 100 is doubled",
			play: func(f *fleet) {
				f.populate(0.7)
				f.configure(first, 200, f.everyNode()...)
				f.arrive(0.2)
				f.live(late)
				f.arrive(0.1)
				f.finish()
			},
		},
		{
			name: "two-backend-changes", promise: zero,
			text: "within a flow's life one backend is drained and another added",
			play: func(f *fleet) { twoChanges(f); f.live(late); f.finish() },
		},

		{
			name: "node-dies-and-backend-drains", promise: better,
			text: "a node dies and a backend begins to drain at the same moment",
			play: func(f *fleet) {
				f.populate(0.7)
				f.kill(0)
				f.setState(first, maglev.Draining, f.everyNode()...)
				f.arrive(0.3)
				f.finish()
			},
		},
		{
			name: "node-dies-while-backend-drains", promise: better,
			text: "a backend drains, new flows go on arriving, then a node dies",
			play: func(f *fleet) {
				f.populate(0.7)
				f.setState(first, maglev.Draining, f.everyNode()...)
				f.arrive(0.15)
				f.talk()
				f.kill(0)
				f.arrive(0.15)
				f.finish()
			},
			breaks: whileDraining,
		},
		{
			name: "two-backend-changes-then-node-dies", promise: better,
			text:   "one backend is drained and another added; 20 s later a node dies",
			play:   func(f *fleet) { twoChanges(f); f.live(soon); f.kill(0); f.finish() },
			breaks: sinceChange,
		},
		{
			name: "two-backend-changes-then-node-dies-late", promise: better,
			text:   "one backend is drained and another added; 80 s later a node dies",
			play:   func(f *fleet) { twoChanges(f); f.live(late); f.kill(0); f.finish() },
			breaks: beforeChange,
		},
		{
			name: "two-backends-added-then-node-dies", promise: better,
			text:   "two backends are added 5 s apart; 20 s later a node dies",
			play:   func(f *fleet) { twoAdded(f); f.live(soon); f.kill(0); f.finish() },
			breaks: sinceChange,
		},
		{
			name: "two-backends-added-then-node-dies-late", promise: noWorse,
			text:   "two backends are added 5 s apart; 80 s later a node dies",
			play:   func(f *fleet) { twoAdded(f); f.live(late); f.kill(0); f.finish() },
			note:   "what a surviving node knows of the lost one's flows is the tables; the one from before counts for a minute, and then both schemes have the same one left",
			breaks: beforeChange,
		},
		{
			name: "weight-changed-then-node-dies", promise: better,
			text:   "the weight of one backend is doubled; 20 s later a node dies",
			play:   func(f *fleet) { reweighted(f); f.live(soon); f.kill(0); f.finish() },
			breaks: sinceChange,
		},
		{
			name: "weight-changed-then-node-dies-late", promise: noWorse,
			text:   "the weight of one backend is doubled; 80 s later a node dies",
			play:   func(f *fleet) { reweighted(f); f.live(late); f.kill(0); f.finish() },
			note:   "as above: the table from before is no longer kept",
			breaks: beforeChange,
		},

		{
			name: "rolling-upgrade", promise: better,
			text: "each node in turn leaves, loses its table and comes back, with the same configuration",
			play: func(f *fleet) { rolling(f, false, func(int) {}, func(int) {}) },
		},
		{
			name: "rolling-restart-with-new-config", promise: better,
			text:   "each node in turn leaves and comes back with its table and with one backend more",
			play:   func(f *fleet) { rolling(f, true, func(n int) { f.expect(added, 100, n) }, func(int) {}) },
			breaks: configsDiffer,
		},
		{
			name: "rolling-upgrade-while-backend-drains", promise: better,
			text: "the same, while a backend drains",
			play: func(f *fleet) {
				f.populate(0.5)
				f.setState(first, maglev.Draining, f.everyNode()...)
				f.arrive(0.1)
				rolling(f, false, func(int) {}, func(int) {})
			},
			breaks: whileDraining,
		},
		{
			name: "rolling-upgrade-with-new-config", promise: noWorse,
			text:   "each node in turn leaves, loses its table and comes back with one backend more",
			play:   func(f *fleet) { rolling(f, false, func(n int) { f.expect(added, 100, n) }, func(int) {}) },
			note:   "a node that has lost its table and starts with the new configuration never knew the one before: all that is left to it is the lookup table, and both schemes have the same",
			breaks: configsDiffer,
		},
		{
			name: "rolling-upgrade-then-reload", promise: better,
			text:   "each node in turn leaves, loses its table, comes back with the same configuration and is given one backend more at once",
			play:   func(f *fleet) { rolling(f, false, func(int) {}, func(n int) { f.configure(added, 100, n) }) },
			breaks: configsDiffer,
		},

		{
			name: "health-disagrees-then-that-node-dies", promise: better,
			text:   "one node sees a backend down that the others see up, new flows arrive, and that node dies",
			play:   func(f *fleet) { disagree(f, 0) },
			breaks: healthDiffers,
		},
		{
			name: "health-disagrees-then-another-node-dies", promise: better,
			text:   "one node sees a backend down that the others see up, and another node dies",
			play:   func(f *fleet) { disagree(f, 1) },
			breaks: healthDiffers,
		},
	}
	for _, s := range []maglev.Scheduler{maglev.Source, maglev.P2C, maglev.WRR, maglev.LeastConn} {
		sc := scenario{
			name: "node-dies-scheduler-" + s.String(), promise: printed,
			text:    "one node of four dies, with another scheduler than maglev",
			schemes: []schemeMaker{newSluice("sluice-"+s.String(), s)},
			play:    nodeDies,
			breaks:  localLoad,
		}
		if s.Agrees() {
			sc.promise, sc.breaks = zero, unexpected
		}
		list = append(list, sc)
	}
	return list
}

func nodeDies(f *fleet) {
	f.populate(0.8)
	f.kill(0)
	f.arrive(0.2)
	f.finish()
}

// twoChanges drains one backend and adds another, with new flows after each.
func twoChanges(f *fleet) {
	f.populate(0.7)
	f.setState(first, maglev.Draining, f.everyNode()...)
	f.arrive(0.15)
	f.talk()
	f.configure(added, 100, f.everyNode()...)
	f.arrive(0.15)
	f.talk()
}

func twoAdded(f *fleet) {
	f.populate(0.7)
	f.configure(added, 100, f.everyNode()...)
	f.arrive(0.15)
	f.talk()
	f.configure(added+1, 100, f.everyNode()...)
	f.arrive(0.15)
	f.talk()
}

func reweighted(f *fleet) {
	f.populate(0.7)
	f.configure(first, 200, f.everyNode()...)
	f.arrive(0.3)
	f.talk()
}

// rolling takes all nodes through an upgrade of 20 s each: half of it away, then back, with its flow table or without.
func rolling(f *fleet, keep bool, before, after func(node int)) {
	if f.opened == 0 {
		f.populate(0.6)
	}
	for n := range fleetNodes {
		f.kill(n)
		f.arrive(0.05)
		f.live(9 * time.Second)
		before(n)
		f.restart(n, keep)
		after(n)
		f.arrive(0.05)
		f.live(9 * time.Second)
	}
	f.finish()
}

// disagree lets node 0 see a backend down that is up, and another node, or itself, die.
func disagree(f *fleet, dies int) {
	f.populate(0.6)
	f.setState(second, maglev.Down, 0)
	f.arrive(0.2)
	f.talk()
	f.kill(dies)
	f.arrive(0.2)
	f.finish()
}

// run plays the scenario and returns what became of the flows.
func (s *scenario) run(flows int, seed uint64) ([]Result, error) {
	schemes := s.schemes
	if schemes == nil {
		schemes = append([]schemeMaker{newSluice("sluice", maglev.Maglev)}, peers...)
	}
	f, err := newFleet(flows, seed, s.router, schemes)
	if err != nil {
		return nil, err
	}
	defer f.close()
	s.play(f)
	return f.results(s.name), f.err
}

// verdict judges the results of the scenario. It reports false if there is nothing to judge.
func (s *scenario) verdict(results []Result) (v Verdict, ok bool) {
	r := results[0] // Sluice's
	v = Verdict{Scenario: s.name, Note: s.note, Measured: fmt.Sprintf("%d broken", r.Broken)}
	switch s.promise {
	case zero:
		v.Promise, v.Bound, v.OK = "no flow breaks", "0", r.Broken == 0
	case own:
		v.Promise, v.Bound = "only the dead backend's flows break", fmt.Sprint(r.Unavoidable)
		v.OK = r.Unavoidable > 0 && r.Broken == r.Unavoidable
	case better, noWorse:
		lru := resultOf(results, "maglev-lru")
		v.Promise, v.Bound = "fewer flows break than with a table alone (maglev-lru)", fmt.Sprintf("< %d", lru.Broken)
		v.OK = r.Broken < lru.Broken || r.Broken == 0
		if s.promise == noWorse {
			v.Promise, v.Bound = "not more flows break than with a table alone (maglev-lru)", fmt.Sprintf("<= %d", lru.Broken)
			v.OK = r.Broken <= lru.Broken
		}
		if r.Broken == 0 && lru.Broken == 0 {
			v.Bound, v.Note = "0", "no flow of either breaks"
		}
	default:
		return v, false
	}
	return v, true
}

// resultOf returns the result of one scheme.
func resultOf(results []Result, name string) Result {
	for _, r := range results {
		if r.Scheme == name {
			return r
		}
	}
	return Result{}
}
