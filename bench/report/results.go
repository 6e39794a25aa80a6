package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Result is what a report gives for an aim.
type Result struct {
	Aim   Aim
	Bound float64 // the aim's, or the loose one
	Found float64
	Row   string // where it was found: of several rows the worst
	// Missing says why there is no figure; empty: there is one.
	Missing string
}

// Met says whether there is a figure that keeps the bound.
func (r *Result) Met() bool {
	if r.Missing != "" {
		return false
	}
	if r.Aim.AtLeast {
		return r.Found >= r.Bound
	}
	return r.Found <= r.Bound
}

// Verdict says it in words.
func (r *Result) Verdict() string {
	switch {
	case r.Missing != "":
		return "not measured: " + r.Missing
	case r.Met():
		return "met"
	case r.Bound == 0:
		return "missed"
	}
	return fmt.Sprintf("missed by %.0f %%", 100*math.Abs(r.Found/r.Bound-1))
}

// expectation writes a bound: "≤ 3.50 ×".
func (r *Result) expectation() string {
	sign := "≤"
	if r.Aim.AtLeast {
		sign = "≥"
	}
	return fmt.Sprintf("%s %s %s", sign, Figure(r.Bound), r.Aim.Unit)
}

// Results reads the figures of all aims from a report, and holds them to their bounds; loose ones with loose, and then only of those
// aims that the smoke form asserts.
func (r *Report) Results(loose bool) []Result {
	var out []Result
	for _, a := range Aims() {
		result := Result{Aim: a, Bound: a.Bound}
		if loose {
			if !a.Asserted {
				continue
			}
			result.Bound = a.Loose
		}
		result.Found, result.Row, result.Missing = a.read(r)
		out = append(out, result)
	}
	return out
}

// read finds an aim's figure in a report, or why there is none.
func (a *Aim) read(r *Report) (worst float64, row, missing string) {
	t := r.Table(a.Table)
	if t == nil {
		return 0, "", fmt.Sprintf("no table %q", a.Table)
	}
	missing = fmt.Sprintf("no such row in table %q", a.Table)
	found := false
	for i := range t.Rows {
		x := &t.Rows[i]
		if !x.has(a.Rows) {
			continue
		}
		v, why := a.of(t, x)
		if why != "" {
			if !found {
				missing = why
			}
			continue
		}
		if !found || (v < worst) == a.AtLeast {
			worst, row = v, x.Key()
		}
		found, missing = true, ""
	}
	return worst, row, missing
}

// of makes the figure of one row.
func (a *Aim) of(t *Table, x *Row) (v float64, missing string) {
	scale := a.Scale
	if scale == 0 {
		scale = 1
	}
	if x.Missing != "" {
		return 0, x.Missing
	}
	switch a.How {
	case ValueOf:
		return scale * SpreadOf(x.Rounds).Median, ""
	case RateOf:
		return scale / SpreadOf(x.Rounds).Median, ""
	case ExtraOf:
		v, ok := x.Extra[a.Extra]
		if !ok {
			return 0, fmt.Sprintf("no %s in table %q", a.Extra, a.Table)
		}
		return scale * v, ""
	}
	other := t.Find(x.but(a.Against))
	if other == nil {
		return 0, fmt.Sprintf("no row %s in table %q", x.but(a.Against), a.Table)
	}
	if other.Missing != "" {
		return 0, fmt.Sprintf("%s: %s", other.Key(), other.Missing)
	}
	var values []float64
	for i := range min(len(x.Rounds), len(other.Rounds)) {
		if a.How == DifferenceOf {
			values = append(values, x.Rounds[i]-other.Rounds[i])
		} else if other.Rounds[i] != 0 {
			values = append(values, x.Rounds[i]/other.Rounds[i])
		}
	}
	if len(values) == 0 {
		return 0, fmt.Sprintf("%s is zero", other.Key())
	}
	return scale * SpreadOf(values).Median, ""
}

// has says whether a row has all of the labels.
func (r *Row) has(labels []Label) bool {
	for _, l := range labels {
		if !slices.Contains(r.Labels, l) {
			return false
		}
	}
	return true
}

// but returns the key of the row that is another in these labels only.
func (r *Row) but(labels []Label) string {
	other := Row{Labels: slices.Clone(r.Labels)}
	for i := range other.Labels {
		for _, l := range labels {
			if l.Name == other.Labels[i].Name {
				other.Labels[i].Value = l.Value
			}
		}
	}
	return other.Key()
}

// aims are the cells of how a report stands to the aims.
func (r *Report) aims() grid {
	var g grid
	g.column("measure", false)
	g.column("aim", false)
	g.column("found", true)
	g.column("", false)
	for _, x := range r.Results(false) {
		found := "–"
		if x.Missing == "" {
			found = Figure(x.Found)
		}
		g.rows = append(g.rows, []string{x.Aim.Measure, x.expectation(), found, x.Verdict()})
	}
	return g
}

// Check holds a report to the bounds of its effort, and returns an error that names each aim that it misses. Aims whose table is
// none of the asked ones are left out: measured says which were.
func (r *Report) Check(measured func(table string) bool) error {
	var failed []string
	for _, x := range r.Results(r.Effort == Smoke) {
		if x.Met() || !measured(x.Aim.Table) {
			continue
		}
		line := fmt.Sprintf("%s (%s): %s: expected %s", x.Aim.Name, x.Aim.Measure, x.Verdict(), x.expectation())
		if x.Missing == "" {
			line += fmt.Sprintf(", found %s at %s", Figure(x.Found), x.Row)
		}
		failed = append(failed, line)
	}
	if len(failed) > 0 {
		return fmt.Errorf("aims that are not met:\n%s", strings.Join(failed, "\n"))
	}
	return nil
}
