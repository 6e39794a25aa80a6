// Command plot draws the tables of a report of `sluice bench all` as PNG and SVG:
//
//	go run ./bench/plot bench-results/report.json bench-results
//
// The worker's times are lines over the number of flows and the batch; latencies are lines over percentiles; everything else is
// a bar a row, of its ratio to its reference where it has one. Whiskers are quartiles. What a table's rule says stands below.
//
// It is a program of its own so that sluice does not link what draws.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"gonum.org/v1/plot/vg/draw"

	"github.com/sluice-lb/sluice/bench/report"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("expected two arguments, a report and a directory: plot REPORT.json DIR")
	}
	r, err := report.ReadFile(args[0])
	if err != nil {
		return err
	}
	if err := os.MkdirAll(args[1], 0o755); err != nil {
		return err
	}
	for i := range r.Tables {
		for _, p := range pictures(&r.Tables[i]) {
			if err := p.write(filepath.Join(args[1], p.name)); err != nil {
				return fmt.Errorf("table %s: %w", r.Tables[i].Name, err)
			}
		}
	}
	return nil
}

// picture is a drawing with a title above and a caption below.
type picture struct {
	name   string // of the file, without its ending
	title  string
	text   string // the caption
	height float64
	draw   func(c draw.Canvas)
}

// pictures are what shows a table best.
func pictures(t *report.Table) []picture {
	var out []picture
	switch {
	case t.Name == "worker":
		out = workerPictures(t)
	case len(percentilesOf(t)) > 1:
		out = percentilePictures(t)
	default:
		if len(t.Rows) > 0 {
			out = []picture{barPicture(t)}
		}
	}
	return out
}

// title is a table's, as part of another.
func title(t *report.Table) string {
	first, size := utf8.DecodeRuneInString(t.Title)
	return string(unicode.ToUpper(first)) + strings.TrimSuffix(t.Title[size:], ".")
}

// label returns the value of a row's label; empty if it has none of this name.
func label(r *report.Row, name string) string {
	for _, l := range r.Labels {
		if l.Name == name {
			return l.Value
		}
	}
	return ""
}

// values returns the different values of a label, in the order of the rows.
func values(t *report.Table, name string) []string {
	var out []string
	seen := map[string]bool{}
	for i := range t.Rows {
		if v := label(&t.Rows[i], name); !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	return out
}
