package report

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strings"

	"golang.org/x/perf/benchmath"
)

// alpha is how often two rows may be called different by chance.
const alpha = 0.01

// Verdict is what became of a row.
type Verdict string

// Verdicts.
const (
	Better Verdict = "better"
	Worse  Verdict = "worse"
	Same   Verdict = "no difference"
	TooFew Verdict = "too few rounds" // to tell, however different the values are
)

// Change is one row in two reports.
type Change struct {
	Table, Key string
	// Absolute says that Old and New are values, since the row has no reference. Else they are ratios.
	Absolute bool
	// Steady says that the change tells something of Sluice: of ratios, and of values that are no times and rates. Times and
	// rates of two runs differ by whatever else the machine had to do.
	Steady   bool
	Old, New float64 // medians
	// P is how likely two runs of the same program differ so much, by the Mann-Whitney test; 0 if chance has no part in the values.
	P       float64
	Verdict Verdict
}

// Comparison is what has changed between two reports.
type Comparison struct {
	Changes []Change
	// OnlyOld and OnlyNew are rows that the other report has no value of, with the reason if it tells one.
	OnlyOld, OnlyNew []string
	Notes            []string
}

// Compare compares the rows of two reports by table and key: the ratio to its reference where a row has one, else the value. A
// difference of the medians below threshold (0.03 is 3 %) is none. It refuses reports of different machines, kernels, modes or
// efforts.
func Compare(old, new *Report, threshold float64) (*Comparison, error) {
	if different := old.Environment.Different(&new.Environment); len(different) > 0 {
		return nil, fmt.Errorf("results of different machines, kernels or modes are never mixed; the reports differ in\n%s",
			strings.Join(different, "\n"))
	}
	if old.Environment.Machine == "unknown" {
		return nil, errors.New("the reports do not tell their machine: /etc/machine-id and the kernel's boot_id were missing")
	}
	if old.Effort != new.Effort {
		return nil, fmt.Errorf("one report is %s, the other %s: measure with the same effort", old.Effort, new.Effort)
	}
	c := &Comparison{}
	for i := range old.Tables {
		before := &old.Tables[i]
		after := new.Table(before.Name)
		if after == nil {
			c.OnlyOld = append(c.OnlyOld, before.Name)
			continue
		}
		if before.Metric != after.Metric || before.Unit != after.Unit || before.Higher != after.Higher {
			return nil, fmt.Errorf("table %s: one report has %s in %s, the other %s in %s", before.Name,
				before.Metric, before.Unit, after.Metric, after.Unit)
		}
		if before.Rule != after.Rule {
			c.Notes = append(c.Notes, fmt.Sprintf("%s: measured by another rule.\nold: %s\nnew: %s", before.Name, before.Rule, after.Rule))
		}
		c.table(before, after, threshold)
	}
	for i := range new.Tables {
		if t := &new.Tables[i]; old.Table(t.Name) == nil {
			c.OnlyNew = append(c.OnlyNew, t.Name)
		}
	}
	return c, nil
}

// table compares the rows of one table.
func (c *Comparison) table(old, new *Table, threshold float64) {
	for i := range old.Rows {
		before := &old.Rows[i]
		after := new.Find(before.Key())
		switch {
		case before.Missing != "": // has no value in the old one; nothing is lost
			if after != nil && after.Missing == "" {
				c.OnlyNew = append(c.OnlyNew, fmt.Sprintf("%s %s (old: %s)", old.Name, before.Key(), before.Missing))
			}
		case after == nil:
			c.OnlyOld = append(c.OnlyOld, old.Name+" "+before.Key())
		case after.Missing != "":
			c.OnlyOld = append(c.OnlyOld, fmt.Sprintf("%s %s (new: %s)", old.Name, before.Key(), after.Missing))
		case before.Reference != after.Reference:
			c.Notes = append(c.Notes, fmt.Sprintf("%s %s: not compared, it refers to %q in the old report and to %q in the new one",
				old.Name, before.Key(), before.Reference, after.Reference))
		default:
			c.Changes = append(c.Changes, change(old, before, new, after, threshold))
		}
	}
	for i := range new.Rows {
		if r := &new.Rows[i]; r.Missing == "" && old.Find(r.Key()) == nil {
			c.OnlyNew = append(c.OnlyNew, new.Name+" "+r.Key())
		}
	}
}

func change(old *Table, before *Row, new *Table, after *Row, threshold float64) Change {
	c := Change{Table: old.Name, Key: before.Key()}
	a, b := old.Quotients(before), new.Quotients(after)
	if len(a) == 0 || len(b) == 0 || before.Reference == c.Key {
		a, b = slices.Clone(before.Rounds), slices.Clone(after.Rounds)
		c.Absolute = true
	}
	c.Steady = !c.Absolute || !timed(old.Unit)
	c.Old, c.New = SpreadOf(a).Median, SpreadOf(b).Median
	// Bytes and instructions have no chance in them.
	exact := !timed(old.Unit) && slices.Min(a) == slices.Max(a) && slices.Min(b) == slices.Max(b)
	if !exact {
		c.P = benchmath.AssumeNothing.Compare(benchmath.NewSample(a, &benchmath.DefaultThresholds),
			benchmath.NewSample(b, &benchmath.DefaultThresholds)).P
	}
	switch {
	case math.Abs(c.New-c.Old) <= threshold*math.Abs(c.Old):
		c.Verdict = Same
	case !exact && !tellable(len(a), len(b)):
		c.Verdict = TooFew
	case c.P >= alpha:
		c.Verdict = Same
	case (c.New > c.Old) == old.Higher:
		c.Verdict = Better
	default:
		c.Verdict = Worse
	}
	return c
}

// tellable says whether so many rounds can differ significantly: if all of one report are above all of the other, which is two
// of the ways in which their order can be, all alike if nothing has changed.
func tellable(a, b int) bool {
	ways := new(big.Int).Binomial(int64(a+b), int64(a))
	return 2 < alpha*float64(ways.Int64()) || !ways.IsInt64()
}

// timed says that a unit is one of time or of something per time.
func timed(unit string) bool {
	switch unit {
	case "ns", "µs", "ms", "s":
		return true
	}
	return strings.HasPrefix(unit, "ns/") || strings.HasSuffix(unit, "/s") || strings.HasSuffix(unit, "pps") ||
		strings.HasPrefix(unit, "CPU")
}

// Worse returns the steady changes for the worse.
func (c *Comparison) Worse() []Change {
	var out []Change
	for _, x := range c.Changes {
		if x.Steady && x.Verdict == Worse {
			out = append(out, x)
		}
	}
	return out
}

// Print writes a comparison for a terminal.
func (c *Comparison) Print(w io.Writer) error {
	var b bytes.Buffer
	g := grid{
		head:  []string{"table", "row", "old", "new", "change", "p", ""},
		right: []bool{false, false, true, true, true, true, false},
	}
	count := map[Verdict]int{}
	for _, x := range c.Changes {
		verdict := string(x.Verdict)
		if x.Absolute {
			verdict += ", absolute"
		}
		if !x.Steady {
			verdict += " (says more of the machine)"
		} else {
			count[x.Verdict]++
		}
		p, by := "exact", "–"
		if x.P > 0 {
			p = fmt.Sprintf("%.3f", x.P)
		}
		if x.Old != 0 {
			by = fmt.Sprintf("%+.1f %%", 100*(x.New/x.Old-1))
		}
		g.rows = append(g.rows, []string{x.Table, x.Key, Figure(x.Old), Figure(x.New), by, p, verdict})
	}
	g.print(&b)
	fmt.Fprintf(&b, "\n%d better, %d worse, %d without a difference, %d with too few rounds to tell. Of rows that have not changed, "+
		"%.0f in 100 may pass for changed.\n", count[Better], count[Worse], count[Same], count[TooFew], 100*alpha)
	for _, list := range []struct {
		name string
		rows []string
	}{{"Only in the old report", c.OnlyOld}, {"Only in the new report", c.OnlyNew}} {
		if len(list.rows) > 0 {
			fmt.Fprintf(&b, "\n%s:\n  %s\n", list.name, strings.Join(list.rows, "\n  "))
		}
	}
	for _, n := range c.Notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	_, err := w.Write(b.Bytes())
	return err
}
