//go:build linux

package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/sluice-lb/sluice/bench/memnic"
	"github.com/sluice-lb/sluice/conntrack"
)

// Options say what to simulate. The zero value is not usable; see [DefaultOptions].
type Options struct {
	Flows int    // of each scenario; the load of the flow table is scaled alike
	Seed  uint64 // everything random comes from it
	// Scenarios are names, or beginnings of names, of [Scenarios]; none means all.
	Scenarios []string
	// Attack is how long each attack takes, of real time.
	Attack time.Duration
	// Timed says that what depends on the speed of the machine is measured too. It takes a machine with nothing else to do.
	Timed bool
	// Started, if not nil, is told of each scenario as it begins. It is called by several goroutines.
	Started func(scenario string)
}

// Least is the lowest number of flows that says something: a backend of 100 has only some hundred of them then.
const Least = 10_000

// Most is the highest number of flows: a run takes some 900 bytes a flow.
const Most = 4_000_000

// DefaultOptions are those of a full run: a million flows, attacks of 30 s.
func DefaultOptions() Options {
	return Options{Flows: 1_000_000, Seed: 1, Attack: attackSpan, Timed: true}
}

// Info is what there is to simulate.
type Info struct{ Name, Text string }

// Result is what became of the flows of one scenario under one scheme.
type Result struct {
	Scenario string `json:"scenario"`
	Scheme   string `json:"scheme"`
	Flows    int    `json:"flows"`
	// Broken are flows of which a packet reached another backend than the SYN did, or none, or whose backend died. In the
	// scenarios of the flow table alone: long-lived flows that lost their word.
	Broken      int `json:"broken"`
	Unavoidable int `json:"unavoidable"` // of the broken, those whose backend died
}

// Verdict is one promise, and whether it held.
type Verdict struct {
	Scenario string
	Promise  string
	Measured string
	Bound    string
	OK       bool
	Note     string // why there is no stricter bound; "" if there is nothing to say
}

// Report is what a run found.
type Report struct {
	Results  []Result
	Verdicts []Verdict

	flows   int
	fleets  []fleetReport
	balance []balanceRow
	loads   []loadRow
	table   []tableRow
	death   *deathRow
	scaling *memnic.Scaling
	attacks []attackRow
}

// fleetReport is a scenario of a fleet with its results.
type fleetReport struct {
	scenario
	results []Result
}

// job is something to simulate. add puts what it found into the report; it is called in the order of the list.
type job struct {
	Info
	timed bool // it runs with nothing else beside it; see Options.Timed
	run   func(o Options) (add func(r *Report), err error)
}

func jobs() []job {
	var list []job
	for _, s := range fleetScenarios() {
		list = append(list, job{Info: Info{s.name, s.text}, run: func(o Options) (func(r *Report), error) {
			results, err := s.run(o.Flows, o.Seed)
			return func(r *Report) {
				r.fleets = append(r.fleets, fleetReport{s, results})
				r.Results = append(r.Results, results...)
				if v, ok := s.verdict(results); ok {
					r.Verdicts = append(r.Verdicts, v)
				}
			}, err
		}})
	}
	list = append(list,
		job{Info: Info{"balance", "shares of the lookup table, equal and weighted"}, run: func(o Options) (func(r *Report), error) {
			rows, verdicts, err := runBalance(o.Seed)
			return func(r *Report) { r.balance, r.Verdicts = rows, append(r.Verdicts, verdicts...) }, err
		}},
		job{Info: Info{"schedulers", "peak load of schedulers with flows of uneven length"}, run: func(o Options) (func(r *Report), error) {
			rows, verdicts, err := runLoads(o.Flows, o.Seed)
			return func(r *Report) { r.loads, r.Verdicts = rows, append(r.Verdicts, verdicts...) }, err
		}},
	)
	for _, rate := range []int{300_000, 1_000_000} {
		list = append(list, job{Info: Info{rateName(rate), fmt.Sprintf("the flow table under %d new flows a second", rate)}, run: func(o Options) (func(r *Report), error) {
			row, err := runTableLoad(rate, o.Flows, o.Seed)
			return func(r *Report) { r.table = append(r.table, row); r.judged(row.judge()) }, err
		}})
	}
	list = append(list, job{Info: Info{deathName, "the flow table when a node dies and all its flows come here"}, run: func(o Options) (func(r *Report), error) {
		row, err := runDeath(o.Flows, o.Seed)
		return func(r *Report) { r.death = &row; r.judged(row.judge()) }, err
	}})
	for _, a := range attacks {
		list = append(list, job{Info: Info{a.name, "a node is attacked with " + a.text}, run: func(o Options) (func(r *Report), error) {
			row, err := a.run(o.Flows, o.Seed, o.Attack)
			return func(r *Report) {
				r.attacks = append(r.attacks, row)
				r.Results, r.Verdicts = append(r.Results, row.result()), append(r.Verdicts, row.verdicts()...)
			}, err
		}})
	}
	list = append(list, job{Info: Info{scalingName, "two workers share the flow table, beside one alone"}, timed: true, run: func(o Options) (func(r *Report), error) {
		s, err := memnic.MeasureScaling(context.Background(), o.Flows, 2, scalingSpan)
		return func(r *Report) {
			r.scaling = s
			measured := fmt.Sprintf("%.2f", s.Ratio)
			if s.Missing != "" {
				measured = s.Missing
			}
			r.Verdicts = append(r.Verdicts, Verdict{Scenario: scalingName, Promise: "packets a second of two workers over those of one",
				Measured: measured, Bound: fmt.Sprintf(">= %.1f", leastScaling), OK: s.Ratio >= leastScaling})
		}, err
	}})
	return list
}

// What two workers are to do together, over what one does alone, and how long that is measured.
const (
	scalingName  = "two-workers"
	leastScaling = 1.8
	scalingSpan  = 10 * time.Second
)

func (r *Report) judged(result Result, v Verdict) {
	r.Results, r.Verdicts = append(r.Results, result), append(r.Verdicts, v)
}

// Scenarios lists what can be simulated.
func Scenarios() []Info {
	var out []Info
	for _, j := range jobs() {
		out = append(out, j.Info)
	}
	return out
}

// Run simulates. It returns an error when the options are wrong or the simulator cannot do its work; a promise that does not
// hold is none, see [Report.Failed].
func Run(o Options) (*Report, error) {
	switch {
	case o.Flows < Least || o.Flows > Most:
		return nil, fmt.Errorf("simulate %d flows: the number must be from %d to %d", o.Flows, Least, Most)
	case o.Attack <= 0:
		return nil, fmt.Errorf("simulate attacks of %v: they must take some time; take %v", o.Attack, attackSpan)
	}
	list, err := choose(jobs(), o.Scenarios)
	if err != nil {
		return nil, err
	}
	if !o.Timed {
		list = slices.DeleteFunc(list, func(j job) bool { return j.timed })
	}
	adds, errs := make([]func(*Report), len(list)), make([]error, len(list))
	run := func(i int) {
		if o.Started != nil {
			o.Started(list[i].Name)
		}
		if adds[i], errs[i] = list[i].run(o); errs[i] != nil {
			errs[i] = fmt.Errorf("scenario %s: %w", list[i].Name, errs[i])
		}
	}
	next := make(chan int)
	var wait sync.WaitGroup
	for range min(2, runtime.GOMAXPROCS(0)) {
		wait.Go(func() {
			for i := range next {
				run(i)
			}
		})
	}
	for i := range list {
		if !list[i].timed {
			next <- i
		}
	}
	close(next)
	wait.Wait()
	for i := range list {
		if list[i].timed {
			run(i)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	r := &Report{flows: o.Flows}
	for _, add := range adds {
		add(r)
	}
	return r, nil
}

// choose returns the jobs whose names begin with one of the given texts. Each text must be good for something.
func choose(list []job, names []string) ([]job, error) {
	if len(names) == 0 {
		return list, nil
	}
	used := make([]bool, len(names))
	var out []job
	for _, j := range list {
		chosen := false
		for i, n := range names {
			if n != "" && strings.HasPrefix(j.Name, n) {
				used[i], chosen = true, true
			}
		}
		if chosen {
			out = append(out, j)
		}
	}
	for i, n := range names {
		if !used[i] {
			return nil, fmt.Errorf("there is no scenario %q; --list shows all", n)
		}
	}
	return out, nil
}

// Failed returns the promises that did not hold.
func (r *Report) Failed() []Verdict {
	var out []Verdict
	for _, v := range r.Verdicts {
		if !v.OK {
			out = append(out, v)
		}
	}
	return out
}

// percent is a share as text.
func percent(share float64) string {
	switch {
	case share == 0:
		return "0 %"
	case share < 0.0001:
		return fmt.Sprintf("%.2g %%", 100*share)
	}
	return fmt.Sprintf("%.3f %%", 100*share)
}

// sharing is a number of flows and their share of all.
func sharing(n, of int) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", n, percent(float64(n)/float64(of)))
}

// Print writes the report as text: a table for each group, the verdicts, and what can break a flow.
func (r *Report) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	r.printFleets(w)
	r.printBalance(w)
	r.printTable(w)
	r.printAttacks(w)
	r.printVerdicts(w)
	r.printBreaks(w)
	return w.Flush()
}

func (r *Report) printFleets(w io.Writer) {
	if len(r.fleets) == 0 {
		return
	}
	fmt.Fprintf(w, "Broken flows of %d; %d nodes, %d backends\n\n", r.flows, fleetNodes, fleetBackends)
	fmt.Fprint(w, "SCENARIO\tSLUICE\tMAGLEV-LRU\tMAGLEV\tMOD\tUNAVOIDABLE\n")
	for _, f := range r.fleets {
		fmt.Fprintf(w, "%s", f.name)
		s := f.results[0]
		fmt.Fprintf(w, "\t%s", sharing(s.Broken, s.Flows))
		for _, name := range []string{"maglev-lru", "maglev", "mod"} {
			if p := resultOf(f.results, name); p.Scheme != "" {
				fmt.Fprintf(w, "\t%s", sharing(p.Broken, p.Flows))
			} else {
				fmt.Fprint(w, "\t-")
			}
		}
		fmt.Fprintf(w, "\t%s\n", sharing(s.Unavoidable, s.Flows))
	}
	fmt.Fprintln(w)
}

func (r *Report) printBalance(w io.Writer) {
	if len(r.balance) > 0 {
		fmt.Fprintf(w, "Shares of the lookup table; error of shares of %d entries or more\n\nBACKENDS\tWEIGHTS\tENTRIES\tBUSIEST/MEAN\tWORST ERROR\n", weightedFrom)
		for _, b := range r.balance {
			worst := "-"
			if b.worst >= 0 {
				worst = percent(b.worst)
			}
			fmt.Fprintf(w, "%d\t%s\t%d\t%.4f\t%s\n", b.backends, b.weights, b.size, b.busiest, worst)
		}
		fmt.Fprintln(w)
	}
	if len(r.loads) > 0 {
		fmt.Fprintf(w, "Load with flows of uneven length (Pareto %.1f, %.0f to %.0f s), %d backends with %d flows each\n\nSCHEDULER\tBUSIEST/MEAN, PEAK\tON THE AVERAGE\n",
			paretoShape, shortest, longest, loadBackends, flowsAtOnce)
		for _, l := range r.loads {
			name := l.scheduler.String()
			if l == r.loads[0] {
				name += " (random)"
			}
			fmt.Fprintf(w, "%s\t%.2f\t%.2f\n", name, l.peak, l.mean)
		}
		fmt.Fprintln(w)
	}
}

func (r *Report) printTable(w io.Writer) {
	if len(r.table) > 0 {
		fmt.Fprintf(w, "Flow table for %dM flows, new flows of %d s each, all divided by %d\n\n", tableFlows/1_000_000, flowSeconds, r.table[0].scale)
		fmt.Fprint(w, "NEW FLOWS/S\tWITHOUT A WORD\tREFUSED\tEVICTED CLOSING\tEVICTED PROBATION\tTABLE FULL\tLONG-LIVED LOST\tBEGUN UNDER LOAD, LOST BEFORE ESTABLISHED\n")
		for _, t := range r.table {
			fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%d\t%.1f %%\t%s\t%s\n", t.rate, percent(float64(t.missed)/float64(t.packets)),
				t.outcomes[conntrack.Refused], t.outcomes[conntrack.EvictedClosing], t.outcomes[conntrack.EvictedProbation], 100*t.fill,
				sharing(t.lost, t.long+t.late), sharing(t.young, t.late))
		}
		fmt.Fprintln(w)
	}
	if s := r.scaling; s != nil {
		fmt.Fprintf(w, "Look-ups of %d flows: one worker %.1f Mpps, two %.1f Mpps\n\n", s.Flows, s.One, s.All)
	}
	d := r.death
	if d == nil {
		return
	}
	fmt.Fprintf(w, "A node dies: %d flows come to a table of %d words with %d flows within a tick\n\n", d.came, d.words, d.own)
	fmt.Fprint(w, "WORDS KEPT\tAT ONCE\tSOME TICKS LATER\n")
	fmt.Fprintf(w, "flows that were here\t%s\t%s\n", percent(float64(d.ownKept)/float64(d.own)), percent(float64(d.ownKeptLate)/float64(d.own)))
	fmt.Fprintf(w, "flows that came\t%s\t%s\n\n", percent(float64(d.cameKept)/float64(d.came)), percent(float64(d.cameKeptLate)/float64(d.came)))
}

func (r *Report) printAttacks(w io.Writer) {
	if len(r.attacks) == 0 {
		return
	}
	fmt.Fprintf(w, "Attacks on a node with a flow table for %d flows\n\n", r.flows)
	fmt.Fprint(w, "ATTACK\tPACKETS\tMPPS\tTABLE FULL\tESTABLISHED\tLOST\tOPENED MEANWHILE\tWITHOUT A WORD\tBROKEN\tBROKEN BY A CHANGE AFTER IT\n")
	for _, a := range r.attacks {
		fmt.Fprintf(w, "%s\t%d\t%.2f\t%.1f %%\t%d\t%d\t%d\t%s\t%d\t%d\n", a.text, a.packets, float64(a.packets)/a.took.Seconds()/1e6,
			100*a.fill, a.old, a.oldLost, a.opened, sharing(a.wordless, max(a.opened, 1)), a.broken, a.changed)
	}
	fmt.Fprintln(w)
}

func (r *Report) printVerdicts(w io.Writer) {
	fmt.Fprint(w, "SCENARIO\tPROMISE\tMEASURED\tBOUND\t\n")
	for _, v := range r.Verdicts {
		verdict := "ok"
		if !v.OK {
			verdict = "FAILED"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.Scenario, v.Promise, v.Measured, v.Bound, verdict)
	}
	fmt.Fprintln(w)
	for _, v := range r.Verdicts {
		if v.Note != "" {
			fmt.Fprintf(w, "%s: %s.\n", v.Scenario, v.Note)
		}
	}
}

// printBreaks lists the combinations of events that broke flows of Sluice here.
func (r *Report) printBreaks(w io.Writer) {
	const began = "What can still break a flow of a living backend: that a node is lost, or comes back without its table, so that the flow's\n" +
		"packets come to a node that has no word for it, and one of these. Beside each what it broke here, of all flows of the scenario.\n"
	seen := make([][]string, len(causes))
	for _, f := range r.fleets {
		if s := f.results[0]; s.Broken > s.Unavoidable {
			seen[f.breaks] = append(seen[f.breaks], fmt.Sprintf("%s %s", f.name, percent(float64(s.Broken-s.Unavoidable)/float64(s.Flows))))
		}
	}
	for _, a := range r.attacks {
		if a.changed > 0 {
			seen[tableFull] = append(seen[tableFull], fmt.Sprintf("%s %s", a.name, percent(float64(a.changed)/float64(a.old+a.opened))))
		}
	}
	title := began
	for i, list := range seen {
		if list == nil {
			continue
		}
		if title != "" {
			fmt.Fprintf(w, "\n%s\n", title)
			title = ""
		}
		fmt.Fprintf(w, "- %s (%s)\n", causes[i], strings.Join(list, ", "))
	}
}
