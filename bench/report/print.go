package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Print writes a table for a terminal.
func Print(w io.Writer, t Table) error {
	fmt.Fprintf(w, "%s: %s\n%s\n%s in %s\n\n", t.Name, t.Title, t.Rule, t.Metric, t.Unit)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := range t.Rows {
		r := &t.Rows[i]
		if r.Missing != "" {
			fmt.Fprintf(tw, "%s\t%s\n", r.Key(), r.Missing)
			continue
		}
		fmt.Fprintf(tw, "%s\t%.2f", strings.ReplaceAll(r.Key(), "/", "\t"), SpreadOf(r.Rounds).Median)
		if ratio, ok := t.Ratio(r); ok {
			fmt.Fprintf(tw, "\t%.2fx", ratio.Median)
		}
		for name, v := range r.Extra {
			fmt.Fprintf(tw, "\t%s %.4g", name, v)
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range t.Notes {
		fmt.Fprintln(w, n)
	}
	_, err := fmt.Fprintln(w)
	return err
}
