package nic

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-lb/sluice/bench/report"
)

// unit is the column of the values. Columns before it are labels, columns behind it further figures.
const unit = "mpps"

// peerColumn is the label by which rows are compared.
const peerColumn = "system"

// Import makes a table of measurements on real cards. They are lines of comma-separated values, in the order in which they were
// made, below one with the names of the columns:
//
//	system,forward,size,flows,mpps,loss_percent
//	sluice,ipip,64,1000000,11.2,0
//
// Lines with the same labels are the rounds of a row. Each is compared with the line of peer, a value of the column system, that has
// the same other labels; empty: none. Errors name the line.
func Import(r io.Reader, peer string) (report.Table, error) {
	t := report.Table{Name: "nic", Title: "Forwarding on real cards", Metric: "rate", Unit: "Mpps", Higher: true,
		Rule: "As docs/benchmarks-nic.md says: the same machine, queues and cores for each system, in turns.",
	}
	in := csv.NewReader(r)
	in.TrimLeadingSpace, in.Comment = true, '#'
	header, err := in.Read()
	if err != nil {
		return t, fmt.Errorf("read the names of the columns: %w", err)
	}
	at := slices.Index(header, unit)
	if at < 1 || !slices.Contains(header[:at], peerColumn) {
		return t, fmt.Errorf("line 1: found columns %s, expected %s and other labels before %s", strings.Join(header, ","), peerColumn, unit)
	}
	for {
		fields, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return t, err // it names the line
		}
		line, _ := in.FieldPos(0)
		if err := add(&t, header, fields, at); err != nil {
			return t, fmt.Errorf("line %d: %w", line, err)
		}
	}
	if len(t.Rows) == 0 {
		return t, errors.New("no measurements below the names of the columns")
	}
	return t, compare(&t, peer)
}

// add adds a line's value to its row. Further figures are means of a row's lines.
func add(t *report.Table, header, fields []string, at int) error {
	row := report.Row{Extra: map[string]float64{}}
	for i, name := range header[:at] {
		row.Labels = append(row.Labels, report.Label{Name: name, Value: fields[i]})
	}
	if known := t.Find(row.Key()); known != nil {
		row = *known
	} else {
		t.Rows = append(t.Rows, row)
	}
	n := float64(len(row.Rounds))
	for i, name := range header[at:] {
		v, err := strconv.ParseFloat(fields[at+i], 64)
		if err != nil || !(v >= 0) {
			return fmt.Errorf("%s: found %q, expected a number not below 0", name, fields[at+i])
		}
		if i == 0 {
			row.Rounds = append(row.Rounds, v)
		} else {
			row.Extra[name] = (row.Extra[name]*n + v) / (n + 1)
		}
	}
	*t.Find(row.Key()) = row
	return nil
}

// compare gives rows their references, and says what keeps them from being compared round by round.
func compare(t *report.Table, peer string) error {
	if peer == "" {
		return nil
	}
	known := false
	for i := range t.Rows {
		r := &t.Rows[i]
		other := report.Row{Labels: slices.Clone(r.Labels)}
		own := ""
		for j := range other.Labels {
			if l := &other.Labels[j]; l.Name == peerColumn {
				own, l.Value = l.Value, peer
			}
		}
		if own == peer {
			known = true
			continue
		}
		ref := t.Find(other.Key())
		if ref == nil {
			continue
		}
		if len(ref.Rounds) != len(r.Rounds) {
			return fmt.Errorf("%s has %d lines and %s has %d: measure all in turns, round after round",
				r.Key(), len(r.Rounds), ref.Key(), len(ref.Rounds))
		}
		r.Reference = ref.Key()
	}
	if !known {
		return fmt.Errorf("there is no line of the system %q to compare with", peer)
	}
	return nil
}
