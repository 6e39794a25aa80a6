// Package report is what all benchmarks have in common: the form of a result, the environment that it was measured in, and how
// results are printed, kept and compared.
//
// A benchmark measures its systems in turns, round after round (A B C, A B C, …), since the speed of a machine changes by the
// minute. What it returns is a [Table]: a row a system and setting, with one value a round. A row can name another one that it is
// compared with; the ratio is made of the values of the same round and is what holds on another day. Absolute values are
// those of one machine at one time.
//
// Any goroutine may call any function; values are not to be changed while they are in use.
package report

import (
	"slices"
	"strings"
)

// Table is one benchmark's results.
type Table struct {
	Name   string `json:"name"`   // as in `sluice bench NAME`, with a part behind a dash if there are several: "veth-latency"
	Title  string `json:"title"`  // a sentence: what was measured
	Rule   string `json:"rule"`   // a sentence or two: what ran on which core, the same for all systems
	Metric string `json:"metric"` // what a value is, such as "time a packet"
	Unit   string `json:"unit"`   // "ns", "Mpps", "1/s", "µs", "bytes"
	// Higher says that more is better.
	Higher bool  `json:"higher_is_better"`
	Rows   []Row `json:"rows"`
	// Notes are what a reader must know to judge the numbers: limits of the machine, peers that were missing and why.
	Notes []string `json:"notes,omitempty"`
}

// Row is one system in one setting.
type Row struct {
	// Labels say what it is, in the same order in all rows of a table: {"system", "sluice"}, {"flows", "1000"}.
	Labels []Label `json:"labels"`
	// Rounds are the values, one a round, in the order of the rounds. Empty: it could not be measured, and Missing says why.
	Rounds  []float64 `json:"rounds"`
	Missing string    `json:"missing,omitempty"`
	// Reference is the key of the row that this one is compared with, in the same table, round by round; empty: none.
	Reference string `json:"reference,omitempty"`
	// Extra are further figures of this row, such as its loss, by name with unit: "loss_percent".
	Extra map[string]float64 `json:"extra,omitempty"`
}

// Label is one property of a row.
type Label struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Key names the row within its table: the values of its labels, with slashes between.
func (r *Row) Key() string {
	values := make([]string, len(r.Labels))
	for i, l := range r.Labels {
		values[i] = l.Value
	}
	return strings.Join(values, "/")
}

// Find returns the row with this key; nil if there is none.
func (t *Table) Find(key string) *Row {
	for i := range t.Rows {
		if t.Rows[i].Key() == key {
			return &t.Rows[i]
		}
	}
	return nil
}

// Spread is a median and how far the values lie from it.
type Spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`  // the quarter of the values that are lowest lie below
	High   float64 `json:"high"` // likewise above
}

// SpreadOf summarizes values, of which there must be one at least.
func SpreadOf(values []float64) Spread {
	v := slices.Clone(values)
	slices.Sort(v)
	at := func(q float64) float64 { // linear between the neighbours
		p := q * float64(len(v)-1)
		i := int(p)
		if i+1 == len(v) {
			return v[i]
		}
		return v[i] + (p-float64(i))*(v[i+1]-v[i])
	}
	return Spread{Median: at(0.5), Low: at(0.25), High: at(0.75)}
}

// Quotients returns a row's value over its reference's, of each round; none if it has no reference, or one of the two was not
// measured.
func (t *Table) Quotients(r *Row) []float64 {
	if r.Reference == "" {
		return nil
	}
	ref := t.Find(r.Reference)
	if ref == nil {
		return nil
	}
	var quotients []float64
	for i := range min(len(r.Rounds), len(ref.Rounds)) {
		if ref.Rounds[i] != 0 {
			quotients = append(quotients, r.Rounds[i]/ref.Rounds[i])
		}
	}
	return quotients
}

// Ratio returns how a row relates to its reference, made of the quotients of each round; false if it has no reference, or one of
// the two was not measured.
func (t *Table) Ratio(r *Row) (Spread, bool) {
	quotients := t.Quotients(r)
	if len(quotients) == 0 {
		return Spread{}, false
	}
	return SpreadOf(quotients), true
}

// Effort is how long a benchmark takes.
type Effort int

const (
	Smoke Effort = iota // some seconds: the systems run, and ratios are roughly right
	Full                // until the medians are steady: minutes
)
