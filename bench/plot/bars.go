package main

import (
	"image/color"
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/sluice-lb/sluice/bench/report"
)

// bar is a line of a bar picture: a row, or the heading of those below it.
type bar struct {
	name    string
	heading bool
	colour  color.Color
	spread  report.Spread
	text    string // stands behind the bar
}

// barPicture draws a bar a row, of the ratio if all are to the same system, else of the value: a group for each setting, in it a bar for each
// value of the first label; or no groups, if most would have one bar. What spans more than fits is drawn on a logarithmic axis.
func barPicture(t *report.Table) picture {
	first := t.Rows[0].Labels[0].Name
	colour, _ := palette(values(t, first))
	// Ratios to more than one thing cannot stand beside each other.
	ratios := len(references(t)) == 1 && slices.ContainsFunc(t.Rows, func(r report.Row) bool { _, ok := t.Ratio(&r); return ok })

	var groups []string
	rows := map[string][]*report.Row{}
	for i := range t.Rows {
		g := setting(t, &t.Rows[i])
		if rows[g] == nil {
			groups = append(groups, g)
		}
		rows[g] = append(rows[g], &t.Rows[i])
	}
	grouped := len(groups) > 1 && 5*len(groups) < 3*len(t.Rows)
	var bars []bar
	for _, g := range groups {
		if grouped {
			bars = append(bars, bar{name: g, heading: true})
		}
		for _, r := range rows[g] {
			system := label(r, first)
			name := named(first, system)
			if !grouped && g != "" {
				name += ", " + g
			}
			bars = append(bars, barOf(t, r, ratios, name, colour[system]))
		}
	}
	all := &barPlot{bars: bars, unity: ratios}
	all.logarithmic(!ratios)
	axis := t.Metric + " (" + t.Unit + ")"
	if ratios {
		axis = t.Metric + ", ratio to " + references(t)[0]
	}
	better := "less is better"
	if t.Higher {
		better = "more is better"
	}
	if all.from > 0 {
		axis += ", logarithmic"
	}
	text := t.Rule
	if slices.ContainsFunc(t.Rows, func(r report.Row) bool { return len(r.Rounds) > 1 }) {
		text += "\nMedians; whiskers are quartiles of the rounds."
	}
	return picture{
		name: t.Name, title: title(t), text: text,
		height: 1.8 + 0.55*float64(len(bars)),
		draw: func(c draw.Canvas) {
			p := newPlot(axis+", "+better, "")
			p.Add(all)
			if all.from > 0 {
				p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{}
			}
			var ticks []plot.Tick
			for i := range bars {
				if !bars[i].heading {
					ticks = append(ticks, plot.Tick{Value: float64(len(bars) - 1 - i), Label: bars[i].name})
				}
			}
			p.Y.Tick.Marker = plot.ConstantTicks(ticks)
			p.Y.Tick.Length = 0
			p.Y.Padding = 0
			p.Draw(c)
		},
	}
}

func barOf(t *report.Table, r *report.Row, ratios bool, name string, colour color.Color) bar {
	b := bar{name: name, colour: colour}
	if r.Missing != "" {
		b.text = "not measured: " + r.Missing
		return b
	}
	b.spread = report.SpreadOf(r.Rounds)
	b.text = report.Figure(b.spread.Median) + " " + t.Unit
	if !ratios {
		return b
	}
	ratio, ok := t.Ratio(r)
	switch {
	case ok:
		b.spread = ratio
		b.text = report.Figure(ratio.Median) + " ×   (" + b.text + ")"
	case slices.ContainsFunc(t.Rows, func(other report.Row) bool { return other.Reference == r.Key() }):
		b.spread = report.Spread{Median: 1, Low: 1, High: 1}
		b.text = "1   (" + b.text + ")"
	default: // its reference was not measured
		b.spread = report.Spread{}
	}
	return b
}

// setting names what a row has besides its first label, without what all rows have alike.
func setting(t *report.Table, r *report.Row) string {
	var out []string
	for _, l := range r.Labels[1:] {
		if len(values(t, l.Name)) > 1 && l.Value != "-" {
			out = append(out, named(l.Name, l.Value))
		}
	}
	return strings.Join(out, ", ")
}

// named adds a label's name to a value that is no word.
func named(name, value string) string {
	n, err := strconv.Atoi(value)
	if err != nil {
		return value
	}
	return name + " " + short(n)
}

// short writes a number as 100k or 10M.
func short(n int) string {
	switch {
	case n >= 1_000_000 && n%1_000_000 == 0:
		return strconv.Itoa(n/1_000_000) + "M"
	case n >= 1000 && n%1000 == 0:
		return strconv.Itoa(n/1000) + "k"
	}
	return strconv.Itoa(n)
}

// references names what ratios refer to: the first labels of the references.
func references(t *report.Table) []string {
	var out []string
	for i := range t.Rows {
		ref := t.Find(t.Rows[i].Reference)
		if ref == nil {
			continue
		}
		if name := named(ref.Labels[0].Name, ref.Labels[0].Value); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// barPlot draws horizontal bars, the first one on top.
type barPlot struct {
	bars  []bar
	unity bool // a line where the ratio is 1
	// from is where bars begin: at 0, or on a logarithmic axis at the power of ten below the shortest.
	from float64
}

// logarithmic makes the axis so, if it may be and the longest bar is some hundred times the shortest.
func (b *barPlot) logarithmic(may bool) {
	low, high := math.Inf(1), 0.0
	for _, x := range b.bars {
		if v := x.spread.Median; v > 0 {
			low, high = min(low, v), max(high, v)
		}
	}
	if may && high > 300*low {
		b.from = math.Pow(10, math.Floor(math.Log10(low)-0.1))
	}
}

// DataRange leaves room for the text behind the longest bar.
func (b *barPlot) DataRange() (xmin, xmax, ymin, ymax float64) {
	for _, x := range b.bars {
		xmax = max(xmax, x.spread.High)
	}
	if b.unity {
		xmax = max(xmax, 1)
	}
	if xmax == 0 {
		xmax = 1
	}
	if b.from > 0 {
		return b.from, b.from * math.Pow(xmax/b.from, 1.35), -0.6, float64(len(b.bars)) - 0.4
	}
	return 0, 1.35 * xmax, -0.6, float64(len(b.bars)) - 0.4
}

// Plot draws the bars, their whiskers and what stands behind them.
func (b *barPlot) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	if b.unity {
		c.StrokeLine2(draw.LineStyle{Color: grey, Width: 0.75, Dashes: dashes[1]}, x(1), c.Min.Y, x(1), c.Max.Y)
	}
	for i, bar := range b.bars {
		at := float64(len(b.bars) - 1 - i)
		middle := style(9, color.Black)
		middle.YAlign = -0.5
		if bar.heading {
			c.FillText(middle, vg.Point{X: x(b.from) + 4, Y: y(at-0.1) + 1}, bar.name)
			continue
		}
		begin, end := x(b.from), x(max(bar.spread.Median, b.from))
		bottom, top := y(at-0.36), y(at+0.36)
		c.FillPolygon(bar.colour, []vg.Point{{X: begin, Y: bottom}, {X: end, Y: bottom}, {X: end, Y: top}, {X: begin, Y: top}})
		low, high := x(max(bar.spread.Low, b.from)), x(max(bar.spread.High, b.from))
		if high > low {
			line := draw.LineStyle{Color: color.Black, Width: 0.75}
			c.StrokeLine2(line, low, y(at), high, y(at))
			c.StrokeLine2(line, low, y(at-0.15), low, y(at+0.15))
			c.StrokeLine2(line, high, y(at-0.15), high, y(at+0.15))
		}
		c.FillText(middle, vg.Point{X: high + 5, Y: y(at) + 1}, bar.text)
	}
}
