package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/sluice-lb/sluice/bench/report"
)

// series is one line.
type series struct {
	name   string
	points []point
}

// point is a value at x.
type point struct {
	x      float64
	spread report.Spread
}

// workerPictures are three: forwarding modes and what packets meet, over the number of flows; and the batch.
func workerPictures(t *report.Table) []picture {
	var out []picture
	for _, p := range []struct {
		name, title, axis, of, x string
		keep                     map[string][]string // values of labels
	}{
		{"worker-modes", "known flows, by forwarding mode", "flows", "mode family", "flows",
			map[string][]string{"mix": {"hits", "independent"}, "batch": {"64"}, "workers": {"1"}}},
		{"worker-mixes", "by what the packets meet (ipip, IPv4)", "flows", "mix", "flows",
			map[string][]string{"mode": {"ipip", "swap", "memory"}, "family": {"v4"}, "batch": {"64"}, "workers": {"1"}}},
		{"worker-batches", "by how many packets wait at a time (ipip, IPv4, 1k known flows)", "packets that wait", "mode", "batch",
			map[string][]string{"mode": {"ipip", "swap"}, "mix": {"hits"}, "family": {"v4"}, "workers": {"1"}, "flows": {"1000"}}},
	} {
		lines := linesOf(t, p.x, strings.Fields(p.of), p.keep)
		if len(lines) == 0 {
			continue
		}
		out = append(out, linePicture(p.name, title(t)+": "+p.title,
			t.Rule+"\nMedians; whiskers are quartiles of the rounds. Less is better.",
			p.axis, fmt.Sprintf("%s (%s)", t.Metric, t.Unit), lines, false, countTicks(lines)))
	}
	return out
}

// linesOf makes a line of the rows that differ in label x only, of those rows that have the wanted values, or a dash, which stands
// for any.
func linesOf(t *report.Table, x string, names []string, keep map[string][]string) []series {
	var out []series
	for i := range t.Rows {
		r := &t.Rows[i]
		at, err := strconv.ParseFloat(label(r, x), 64)
		if err != nil || len(r.Rounds) == 0 || !wanted(r, keep) {
			continue
		}
		var name []string
		for _, n := range names {
			if v := label(r, n); v != "-" {
				name = append(name, v)
			}
		}
		if mode := label(r, "mode"); floors[mode] != nil { // of any mix
			name = []string{mode}
			if mix := label(r, "mix"); mix != "-" {
				name = append(name, mix)
			}
		}
		out = add(out, strings.Join(name, " "), point{at, report.SpreadOf(r.Rounds)})
	}
	for _, s := range out {
		slices.SortFunc(s.points, func(a, b point) int { return cmp.Compare(a.x, b.x) })
	}
	return out
}

func wanted(r *report.Row, keep map[string][]string) bool {
	for name, list := range keep {
		if v := label(r, name); v != "-" && !slices.Contains(list, v) {
			return false
		}
	}
	return true
}

// add adds a point to the series of a name.
func add(all []series, name string, p point) []series {
	i := slices.IndexFunc(all, func(s series) bool { return s.name == name })
	if i < 0 {
		return append(all, series{name: name, points: []point{p}})
	}
	all[i].points = append(all[i].points, p)
	return all
}

// countTicks are where there are points, on a logarithmic axis of counts.
func countTicks(lines []series) []plot.Tick {
	var out []plot.Tick
	for _, s := range lines {
		for _, p := range s.points {
			tick := plot.Tick{Value: p.x, Label: short(int(p.x))}
			if !slices.Contains(out, tick) {
				out = append(out, tick)
			}
		}
	}
	return out
}

// percentilesOf returns the names of those further figures of a table that are percentiles, ascending, such as p99_9.
func percentilesOf(t *report.Table) []string {
	var out []string
	for i := range t.Rows {
		for name := range t.Rows[i].Extra {
			if _, ok := report.Percentile(name); ok && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.SortFunc(out, func(a, b string) int {
		x, _ := report.Percentile(a)
		y, _ := report.Percentile(b)
		return cmp.Compare(x, y)
	})
	return out
}

// nines places a percentile: 90 at 1, 99 at 2, 99.9 at 3.
func nines(percent float64) float64 { return -math.Log10(1 - percent/100) }

// percentilePictures are one for each load, with a line for each system over the percentiles.
func percentilePictures(t *report.Table) []picture {
	names := percentilesOf(t)
	var ticks []plot.Tick
	for _, n := range names {
		v, _ := report.Percentile(n)
		ticks = append(ticks, plot.Tick{Value: nines(v), Label: "p" + strconv.FormatFloat(v, 'f', -1, 64)})
	}
	loads := values(t, "load")
	var out []picture
	for _, load := range loads {
		var lines []series
		for i := range t.Rows {
			r := &t.Rows[i]
			if label(r, "load") != load {
				continue
			}
			var name []string
			for _, l := range r.Labels {
				if l.Name != "load" && (len(values(t, l.Name)) > 1 || len(r.Labels) == 1) {
					name = append(name, named(l.Name, l.Value))
				}
			}
			for _, n := range names {
				if v, ok := r.Extra[n]; ok && v > 0 {
					at, _ := report.Percentile(n)
					lines = add(lines, strings.Join(name, " "), point{nines(at), report.Spread{Median: v, Low: v, High: v}})
				}
			}
		}
		if len(lines) == 0 {
			continue
		}
		name, text := t.Name, title(t)
		if load != "" {
			text += fmt.Sprintf(": at %s %% load", load)
		}
		if len(loads) > 1 {
			name += "-" + load
		}
		out = append(out, linePicture(name, text, t.Rule+"\nLess is better.",
			"percentile", fmt.Sprintf("time (%s)", t.Unit), lines, true, ticks))
	}
	return out
}

// linePicture draws lines with their names at the right. The x axis is logarithmic unless percentiles, then the y axis is.
func linePicture(name, title, text, xAxis, yAxis string, lines []series, percentiles bool, ticks []plot.Tick) picture {
	return picture{name: name, title: title, text: text, height: 11, draw: func(c draw.Canvas) {
		p := newPlot(xAxis, yAxis)
		p.X.Tick.Marker = plot.ConstantTicks(ticks)
		grid := plotter.NewGrid()
		grid.Horizontal.Color, grid.Vertical.Color = faint, faint
		p.Add(grid)
		legend := plot.NewLegend()
		legend.Top, legend.Left, legend.Padding, legend.ThumbnailWidth = true, true, 3, 24
		legend.TextStyle.Font.Size = 9
		var hues []string // the first words of names: further words are told by dashes
		for _, s := range lines {
			if hue, _, _ := strings.Cut(s.name, " "); !slices.Contains(hues, hue) {
				hues = append(hues, hue)
			}
		}
		colour, dash := palette(hues)
		var drawn []*line
		for _, s := range lines {
			hue, _, _ := strings.Cut(s.name, " ")
			l := &line{series: s, whiskers: !percentiles, style: draw.LineStyle{
				Color: colour[hue], Width: 1.5, Dashes: dashes[dash[hue]%len(dashes)]}}
			dash[hue]++
			p.Add(l)
			drawn = append(drawn, l)
		}
		slices.SortStableFunc(drawn, func(a, b *line) int { return cmp.Compare(b.last(), a.last()) })
		for _, l := range drawn { // as the lines end
			legend.Add(l.name, l)
		}
		if percentiles {
			p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, powerTicks{}
			p.Y.Min, p.Y.Max = stepDown(p.Y.Min), stepUp(p.Y.Max)
		} else {
			p.X.Scale = plot.LogScale{}
			p.Y.Min, p.Y.Max = 0, 1.05*p.Y.Max
		}
		side := 4.6 * vg.Centimeter
		p.Draw(draw.Crop(c, 0, -side, 0, 0))
		legend.Draw(draw.Crop(c, c.Max.X-c.Min.X-side+0.3*vg.Centimeter, 0, 0, 0))
	}}
}

// line is a plotter of one series, with its points, and whiskers at them.
type line struct {
	series
	whiskers bool
	style    draw.LineStyle
}

// last is where the line ends.
func (l *line) last() float64 { return l.points[len(l.points)-1].spread.Median }

// DataRange is that of the points and their whiskers.
func (l *line) DataRange() (xmin, xmax, ymin, ymax float64) {
	xmin, ymin = math.Inf(1), math.Inf(1)
	xmax, ymax = math.Inf(-1), math.Inf(-1)
	for _, p := range l.points {
		xmin, xmax = min(xmin, p.x), max(xmax, p.x)
		ymin, ymax = min(ymin, p.spread.Low), max(ymax, p.spread.High)
	}
	return xmin, xmax, ymin, ymax
}

// Plot draws the line.
func (l *line) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	var path []vg.Point
	for _, q := range l.points {
		at := vg.Point{X: x(q.x), Y: y(q.spread.Median)}
		path = append(path, at)
		c.DrawGlyph(draw.GlyphStyle{Color: l.style.Color, Radius: 2.5, Shape: draw.CircleGlyph{}}, at)
		if l.whiskers && q.spread.High > q.spread.Low {
			c.StrokeLine2(draw.LineStyle{Color: l.style.Color, Width: 0.75}, at.X, y(q.spread.Low), at.X, y(q.spread.High))
		}
	}
	c.StrokeLines(l.style, path)
}

// Thumbnail draws the line's sample in the legend.
func (l *line) Thumbnail(c *draw.Canvas) {
	y := c.Center().Y
	c.StrokeLine2(l.style, c.Min.X, y, c.Max.X, y)
	c.DrawGlyph(draw.GlyphStyle{Color: l.style.Color, Radius: 2.5, Shape: draw.CircleGlyph{}}, c.Center())
}
