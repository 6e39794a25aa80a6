package report

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Print writes a table for a terminal.
func Print(w io.Writer, t Table) error {
	var b bytes.Buffer
	paragraph(&b, t.Name+": "+t.sentence())
	paragraph(&b, t.Rule)
	paragraph(&b, t.caption())
	b.WriteString("\n")
	t.grid().print(&b)
	for i, line := range t.remarks() {
		if i == 0 {
			b.WriteString("\n")
		}
		paragraph(&b, line)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// sentence is the title, which may stand with a full stop or without.
func (t *Table) sentence() string { return capital(strings.TrimSuffix(t.Title, ".")) + "." }

// paragraph writes text in lines of 110 characters at most, and nothing if there is none.
func paragraph(b *bytes.Buffer, text string) {
	line := 0
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case line == 0:
			line = n
		case line+1+n > 110:
			b.WriteString("\n")
			line = n
		default:
			b.WriteString(" ")
			line += 1 + n
		}
		b.WriteString(word)
	}
	if line > 0 {
		b.WriteString("\n")
	}
}

// caption says what the columns of values are.
func (t *Table) caption() string {
	least, most := math.MaxInt, 0
	for i := range t.Rows {
		if n := len(t.Rows[i].Rounds); n > 0 {
			least, most = min(least, n), max(most, n)
		}
	}
	better := "less"
	if t.Higher {
		better = "more"
	}
	out := fmt.Sprintf("%s in %s, %s is better", capital(t.Metric), t.Unit, better)
	switch {
	case most == 0:
		return out + "."
	case most == 1:
		out += "; one round"
	case least == most:
		out += fmt.Sprintf("; medians and quartiles of %d rounds", most)
	default:
		out += fmt.Sprintf("; medians and quartiles of %d to %d rounds", least, most)
	}
	if refs := t.references(); len(refs) == 1 {
		out += "; ratios to " + refs[0]
	} else if len(refs) > 1 {
		out += "; ratios to the row named beside"
	}
	return out + "."
}

// references are the keys that rows refer to.
func (t *Table) references() []string {
	var refs []string
	for i := range t.Rows {
		if r := t.Rows[i].Reference; r != "" && !slices.Contains(refs, r) {
			refs = append(refs, r)
		}
	}
	return refs
}

// remarks are the rows that could not be measured, and the notes.
func (t *Table) remarks() []string {
	var out []string
	for i := range t.Rows {
		if r := &t.Rows[i]; r.Missing != "" {
			out = append(out, fmt.Sprintf("Not measured: %s: %s.", r.Key(), strings.TrimSuffix(r.Missing, ".")))
		}
	}
	return append(out, t.Notes...)
}

// grid is a table's cells: a column for each label, the value, its quartiles, the ratio, its quartiles, and each extra figure.
func (t *Table) grid() grid {
	var g grid
	if len(t.Rows) == 0 {
		return g
	}
	for _, l := range t.Rows[0].Labels {
		g.column(l.Name, false)
	}
	spread := slices.ContainsFunc(t.Rows, func(r Row) bool { return len(r.Rounds) > 1 })
	figures := func(name string) {
		g.column(name, true)
		if spread {
			g.column("quartiles", true)
		}
	}
	figures(t.Unit)
	refs := t.references()
	if len(refs) > 0 {
		figures("ratio")
	}
	if len(refs) > 1 {
		g.column("to", false)
	}
	extras := map[string]bool{}
	for i := range t.Rows {
		for name := range t.Rows[i].Extra {
			extras[name] = true
		}
	}
	names := slices.SortedFunc(maps.Keys(extras), extraOrder)
	for _, name := range names {
		g.column(name, true)
	}
	for i := range t.Rows {
		r := &t.Rows[i]
		var cells []string
		for _, l := range r.Labels {
			cells = append(cells, l.Value)
		}
		cells = append(cells, figureCells(r.Rounds, spread)...)
		if len(refs) > 0 {
			cells = append(cells, figureCells(t.Quotients(r), spread)...)
		}
		if len(refs) > 1 {
			cells = append(cells, r.Reference)
		}
		for _, name := range names {
			cell := ""
			if v, ok := r.Extra[name]; ok {
				cell = Figure(v)
			}
			cells = append(cells, cell)
		}
		g.rows = append(g.rows, cells)
	}
	return g
}

// figureCells are the median of values, and with spread their quartiles.
func figureCells(values []float64, spread bool) []string {
	median, quartiles := "–", ""
	if len(values) > 0 {
		s := SpreadOf(values)
		median = Figure(s.Median)
		if len(values) > 1 {
			quartiles = Figure(s.Low) + "–" + Figure(s.High)
		}
	}
	if spread {
		return []string{median, quartiles}
	}
	return []string{median}
}

// Figure writes a number with three digits at least, and no more decimals than that takes.
func Figure(v float64) string {
	a := math.Abs(v)
	switch {
	case v == 0:
		return "0"
	case a >= 1000:
		digits := strconv.FormatFloat(a, 'f', 0, 64)
		for i := len(digits) - 3; i > 0; i -= 3 {
			digits = digits[:i] + "," + digits[i:]
		}
		if v < 0 {
			return "-" + digits
		}
		return digits
	case a >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 0.9995:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case a >= 0.001:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}

// Percentile says whether a further figure is a percentile, and which: 99.9 of "p99_9" and "p99.9_us".
func Percentile(name string) (percent float64, ok bool) {
	parts := percentileName.FindStringSubmatch(name)
	if parts == nil {
		return 0, false
	}
	percent, err := strconv.ParseFloat(strings.Replace(parts[1], "_", ".", 1), 64)
	return percent, err == nil && percent < 100
}

var percentileName = regexp.MustCompile(`^p([0-9]+([._][0-9]+)?)(_[nuµm]?s)?$`)

// extraOrder orders further figures by their names, and percentiles behind them by their values.
func extraOrder(a, b string) int {
	x, first := Percentile(a)
	y, second := Percentile(b)
	switch {
	case first && second:
		return cmp.Compare(x, y)
	case first:
		return 1
	case second:
		return -1
	}
	return cmp.Compare(a, b)
}

func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// grid is cells in columns, for a terminal or Markdown.
type grid struct {
	head  []string
	right []bool // the column is set flush right, as numbers are
	rows  [][]string
}

func (g *grid) column(name string, right bool) {
	g.head, g.right = append(g.head, name), append(g.right, right)
}

// print sets the columns two spaces apart; names of columns in capitals, but for units, which stand above numbers.
func (g grid) print(b *bytes.Buffer) {
	width := make([]int, len(g.head))
	for _, row := range append([][]string{g.head}, g.rows...) {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range append([][]string{g.head}, g.rows...) {
		var line strings.Builder
		for i, cell := range row {
			if i > 0 {
				line.WriteString("  ")
			}
			space := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if g.right[i] {
				line.WriteString(space + cell)
			} else {
				line.WriteString(cell + space)
			}
		}
		fmt.Fprintln(b, strings.TrimRight(line.String(), " "))
	}
}

// markdown writes the cells as a table of GitHub's Markdown.
func (g grid) markdown(b *bytes.Buffer) {
	if len(g.head) == 0 {
		return
	}
	line := func(cells []string) {
		for _, c := range cells {
			fmt.Fprintf(b, "| %s ", strings.ReplaceAll(c, "|", `\|`))
		}
		b.WriteString("|\n")
	}
	line(g.head)
	for _, right := range g.right {
		if right {
			b.WriteString("|--:")
		} else {
			b.WriteString("|---")
		}
	}
	b.WriteString("|\n")
	for _, row := range g.rows {
		line(row)
	}
}

// Print writes what comes after the tables on a terminal: what they were measured in, how they stand to the aims, and what
// failed.
func (r *Report) Print(w io.Writer) error {
	var b bytes.Buffer
	environment := grid{head: []string{"measured on", ""}, right: []bool{false, false}, rows: r.Environment.fields()}
	environment.print(&b)
	b.WriteString("\n")
	r.aims().print(&b)
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// Markdown writes the whole report.
func (r *Report) Markdown(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Benchmarks\n\nEffort: %s. Ratios, made within one round, are what holds; "+
		"absolute values are this machine's, then.\n\n", r.Effort)
	environment := grid{head: []string{"measured on", ""}, right: []bool{false, false}, rows: r.Environment.fields()}
	environment.markdown(&b)
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\n**%s**\n", n)
	}
	b.WriteString("\n## Aims\n\n")
	r.aims().markdown(&b)
	for i := range r.Tables {
		t := &r.Tables[i]
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", t.Name, t.sentence())
		if t.Rule != "" {
			fmt.Fprintf(&b, "\n%s\n", t.Rule)
		}
		fmt.Fprintf(&b, "\n%s\n\n", t.caption())
		t.grid().markdown(&b)
		for _, line := range t.remarks() {
			fmt.Fprintf(&b, "\n%s\n", line)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
