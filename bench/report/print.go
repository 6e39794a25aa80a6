package report

import (
	"fmt"
	"io"
)

// Print writes a table for a terminal.
func Print(w io.Writer, t Table) error {
	fmt.Fprintf(w, "%s: %s\n%s\n", t.Name, t.Title, t.Rule)
	for i := range t.Rows {
		r := &t.Rows[i]
		if r.Missing != "" {
			fmt.Fprintf(w, "%s: %s\n", r.Key(), r.Missing)
			continue
		}
		fmt.Fprintf(w, "%s: %.4g %s", r.Key(), SpreadOf(r.Rounds).Median, t.Unit)
		if ratio, ok := t.Ratio(r); ok {
			fmt.Fprintf(w, ", %.3f of %s", ratio.Median, r.Reference)
		}
		fmt.Fprintf(w, " %v\n", r.Extra)
	}
	for _, n := range t.Notes {
		fmt.Fprintln(w, n)
	}
	_, err := fmt.Fprintln(w)
	return err
}
