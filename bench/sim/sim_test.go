//go:build linux

package sim

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/maglev"
)

// short are options of a run that is over in some seconds.
func short(scenarios ...string) Options {
	o := Options{Flows: 100_000, Seed: 1, Attack: time.Second, Scenarios: scenarios}
	if raceEnabled { // the flow table is left out: one goroutine uses it here
		o.Flows, o.Attack = Least, 200*time.Millisecond
		if len(scenarios) == 0 {
			o.Scenarios = []string{"node-dies-resilient", "backend-d", "rolling-upgrade-then", "balance", "schedulers", "attack-"}
		}
	}
	return o
}

func run(t *testing.T, o Options) *Report {
	t.Helper()
	r, err := Run(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// All promises hold: this is the simulator's whole run, with fewer flows.
func TestPromisesHold(t *testing.T) {
	r := run(t, short())
	for _, v := range r.Failed() {
		t.Errorf("%s: %s: %s, want %s", v.Scenario, v.Promise, v.Measured, v.Bound)
	}
	// The simulator sees what breaks: hash mod N moves most flows for each backend that changes, Maglev some.
	for _, f := range r.fleets {
		if f.results[0].Flows < r.flows*9/10 {
			t.Errorf("%s: only %d of %d flows were opened", f.name, f.results[0].Flows, r.flows)
		}
		if f.promise == zero && strings.Contains(f.name, "backend") {
			if n := resultOf(f.results, "mod").Broken; n < r.flows/2 {
				t.Errorf("%s: hash mod N broke only %d flows", f.name, n)
			}
			if n := resultOf(f.results, "maglev").Broken; n < r.flows/200 || n > r.flows/20 {
				t.Errorf("%s: Maglev without a table broke %d flows", f.name, n)
			}
		}
		if s := f.results[0]; s.Broken > s.Unavoidable && f.breaks == unexpected {
			t.Errorf("%s: %d flows broke without a known cause", f.name, s.Broken)
		}
	}
	// Those whose table was filled up were really without a word.
	for _, a := range r.attacks {
		if a.repeat && a.wordless < a.opened/4 {
			t.Errorf("%s: only %d of %d new flows were without a word", a.name, a.wordless, a.opened)
		}
		if a.kind == data && a.fill < 0.9 {
			t.Errorf("%s: the table was %.2f full", a.name, a.fill)
		}
	}
	var text bytes.Buffer
	if err := r.Print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"node-dies-resilient", "BUSIEST/MEAN", "random SYNs", "can still break"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report does not have %q:\n%s", want, text.String())
		}
	}
	if strings.Contains(text.String(), "FAILED") {
		t.Error("a promise FAILED in print")
	}
}

// The same seed gives the same flows, another seed others.
func TestRunsRepeat(t *testing.T) {
	o := Options{Flows: Least, Seed: 7, Attack: time.Second, Scenarios: []string{"backend-dies", "rolling-upgrade-then-reload"}}
	one, two := run(t, o), run(t, o)
	if !reflect.DeepEqual(one.Results, two.Results) {
		t.Errorf("the same seed gave\n%v and\n%v", one.Results, two.Results)
	}
	o.Seed = 8
	if other := run(t, o); reflect.DeepEqual(one.Results, other.Results) {
		t.Errorf("seeds 7 and 8 gave the same: %v", other.Results)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := Options{Flows: Least, Attack: time.Second, Scenarios: []string{"balance"}}
	if _, err := Run(good); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
	for _, c := range []struct {
		change func(o *Options)
		want   string
	}{
		{func(o *Options) { o.Flows = Least - 1 }, "from 10000 to"},
		{func(o *Options) { o.Flows = Most + 1 }, "from 10000 to"},
		{func(o *Options) { o.Attack = 0 }, "attacks of 0s"},
		{func(o *Options) { o.Scenarios = []string{"balance", "no-such"} }, `no scenario "no-such"`},
		{func(o *Options) { o.Scenarios = []string{""} }, `no scenario ""`},
	} {
		o := good
		c.change(&o)
		if _, err := Run(o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q", o, err, c.want)
		}
	}
}

func TestScenarioNames(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Scenarios() {
		if seen[s.Name] || s.Text == "" || strings.ToLower(s.Name) != s.Name || strings.ContainsAny(s.Name, " _") {
			t.Errorf("scenario %q, %q", s.Name, s.Text)
		}
		seen[s.Name] = true
	}
	list, err := choose(jobs(), []string{"node-dies", "table"})
	if err != nil || len(list) < 5 {
		t.Errorf("%d scenarios begin with node-dies or table, %v", len(list), err)
	}
}

func TestJSONNames(t *testing.T) {
	b, err := json.Marshal(Result{"s", "x", 3, 2, 1})
	if want := `{"scenario":"s","scheme":"x","flows":3,"broken":2,"unavoidable":1}`; err != nil || string(b) != want {
		t.Errorf("%s, %v, want %s", b, err, want)
	}
}

// A promise that is broken is told.
func TestVerdictsCanFail(t *testing.T) {
	for _, c := range []struct {
		promise             promise
		sluice, unavoidable int
		lru                 int
		ok                  bool
	}{
		{zero, 0, 0, 0, true}, {zero, 1, 0, 5, false}, {zero, 1, 1, 5, false},
		{own, 3, 3, 3, true}, {own, 4, 3, 9, false}, {own, 0, 0, 0, false},
		{better, 0, 0, 0, true}, {better, 0, 0, 1, true}, {better, 2, 0, 2, false}, {better, 2, 0, 3, true}, {better, 1, 0, 0, false},
		{noWorse, 2, 0, 2, true}, {noWorse, 3, 0, 2, false}, {noWorse, 0, 0, 0, true},
	} {
		s := scenario{promise: c.promise}
		v, judged := s.verdict([]Result{
			{Scheme: "sluice", Flows: 10, Broken: c.sluice, Unavoidable: c.unavoidable}, {Scheme: "maglev-lru", Flows: 10, Broken: c.lru},
		})
		if !judged || v.OK != c.ok {
			t.Errorf("%+v: %+v", c, v)
		}
		if got := len((&Report{Verdicts: []Verdict{v}}).Failed()); (got == 0) != c.ok {
			t.Errorf("%+v: %d failed", c, got)
		}
	}
	if _, judged := (&scenario{}).verdict([]Result{{Broken: 1}}); judged {
		t.Error("a scenario without a promise was judged")
	}
}

// newTestFleet is a fleet of few flows under one scheme.
func newTestFleet(t *testing.T, flows int, r router, scheme schemeMaker) *fleet {
	t.Helper()
	f, err := newFleet(flows, 1, r, []schemeMaker{scheme})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return f
}

func TestRouters(t *testing.T) {
	for _, r := range []router{resilient, modulo} {
		f := newTestFleet(t, 20_000, r, newMod)
		before := append([]uint8(nil), f.at...)
		var count [fleetNodes]int
		for _, n := range before {
			count[n]++
		}
		for n, c := range count {
			if c < 4500 || c > 5500 {
				t.Errorf("router %d: node %d has %d of 20000 flows", r, n, c)
			}
		}
		f.kill(2)
		others := 0
		for i, n := range f.at {
			if n == 2 {
				t.Fatalf("router %d: flow %d goes to the dead node", r, i)
			}
			if before[i] != 2 && before[i] != n {
				others++
			}
		}
		if (others == 0) != (r == resilient) {
			t.Errorf("router %d: %d flows of living nodes moved", r, others)
		}
		f.alive[2] = true
		f.route()
		if !reflect.DeepEqual(before, f.at) {
			t.Errorf("router %d: flows do not come back with their node", r)
		}
	}
}

// What each scheme does with one flow.
func TestSchemes(t *testing.T) {
	type step struct {
		event string
		kind  packetKind
		moves bool // the packet after the event reaches another backend than the flow's first
	}
	const flow = 5
	for _, c := range []struct {
		name   string
		scheme schemeMaker
		steps  []step
	}{
		{"maglev", newMaglev, []step{{"", data, false}, {"drain", data, true}, {"up", data, false}}},
		{"mod", newMod, []step{{"", data, false}, {"drain", data, true}, {"up", data, false}}},
		{"lru", newMaglevLRU, []step{
			{"", data, false}, {"drain", data, false}, {"restart", data, true},
			{"up", data, true}, // it remembers what it chose then
			{"", syn, false},   // a SYN is not looked up
			{"drain", data, false}, {"", syn, true},
		}},
		{"sluice", newSluice("sluice", maglev.Maglev), []step{
			{"", data, false}, {"drain", data, false}, {"", syn, true},
			{"up", data, true}, {"restart", data, false}, {"down", data, false}, {"restart", data, true},
		}},
	} {
		f := newTestFleet(t, 10, resilient, c.scheme)
		n := int(f.at[flow])
		reach := func(kind packetKind) int16 {
			var got [1]int16
			if err := f.members[0].forward(n, kind, []uint32{flow}, got[:]); err != nil {
				t.Fatal(err)
			}
			return got[0]
		}
		owner := reach(syn)
		if owner < 0 || owner >= fleetBackends {
			t.Fatalf("%s: the SYN reached backend %d", c.name, owner)
		}
		for i, s := range c.steps {
			switch s.event {
			case "drain":
				f.setState(int(owner), maglev.Draining, n)
			case "down":
				f.setState(int(owner), maglev.Down, n)
			case "up":
				f.setState(int(owner), maglev.Up, n)
			case "restart":
				f.restart(n, false)
			}
			if f.err != nil {
				t.Fatal(f.err)
			}
			if got := reach(s.kind); got == noBackend || (got != owner) != s.moves {
				t.Errorf("%s, step %d: the packet reached backend %d, the first one %d; moves: want %v", c.name, i, got, owner, s.moves)
			}
		}
	}
}

// Plain Maglev and a Sluice node without words give the same backends: the comparison is of schemes, not of hashes.
func TestSchemesAgreeAboutNewFlows(t *testing.T) {
	f, err := newFleet(5000, 3, resilient, []schemeMaker{newSluice("sluice", maglev.Maglev), newMaglev})
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	f.configure(first, 250, f.everyNode()...)
	f.send(syn, 0, 5000)
	if f.err != nil || !reflect.DeepEqual(f.members[0].owner, f.members[1].owner) {
		t.Errorf("Sluice and Maglev differ about new flows; %v", f.err)
	}
}

func TestFlowsAreMarked(t *testing.T) {
	f := newTestFleet(t, 4, resilient, newMod)
	m := &f.members[0]
	for flow, reached := range []int16{1, 2, 3, noBackend} {
		f.note(m, syn, flow, reached)
	}
	f.opened = 4
	f.diedAt[3] = 3 // flow 2 was opened before that
	for flow, reached := range []int16{1, 7, 3, noBackend} {
		f.note(m, data, flow, reached)
	}
	if want := []uint8{0, broken, broken | unavoidable, broken}; !reflect.DeepEqual(m.marks, want) {
		t.Errorf("marks %v, want %v", m.marks, want)
	}
	if r := f.results("x")[0]; r.Flows != 4 || r.Broken != 3 || r.Unavoidable != 1 {
		t.Errorf("%+v", r)
	}
}

func TestScale(t *testing.T) {
	for _, c := range []struct{ flows, want int }{{4_000_000, 1}, {1_000_000, 1}, {999_999, 2}, {500_000, 4}, {100_000, 16}, {10_000, 128}} {
		if got := scaleFor(c.flows); got != c.want {
			t.Errorf("%d flows: divided by %d, want %d", c.flows, got, c.want)
		}
	}
}
