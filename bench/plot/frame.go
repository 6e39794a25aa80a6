package main

import (
	"image/color"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/sluice-lb/sluice/bench/report"
)

const (
	width  = 24 * vg.Centimeter
	margin = 0.5 * vg.Centimeter
	dpi    = 110
)

// colours are mostly those of Okabe and Ito, which stay apart for the colour-blind as well. The first is Sluice's.
var colours = []color.Color{
	color.RGBA{R: 0x00, G: 0x72, B: 0xb2, A: 0xff}, color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff},
	color.RGBA{R: 0x00, G: 0x9e, B: 0x73, A: 0xff}, color.RGBA{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff},
	color.RGBA{R: 0xe6, G: 0x9f, B: 0x00, A: 0xff}, color.RGBA{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff},
	color.RGBA{R: 0x7b, G: 0x52, B: 0x2b, A: 0xff}, color.RGBA{R: 0xb0, G: 0xa8, B: 0x1c, A: 0xff},
}

// floors are what others are measured against, and drawn in greys.
var floors = map[string]color.Color{
	"swap": color.RGBA{R: 0x40, G: 0x40, B: 0x40, A: 0xff}, "direct": color.RGBA{R: 0x40, G: 0x40, B: 0x40, A: 0xff},
	"reflect": color.RGBA{R: 0x40, G: 0x40, B: 0x40, A: 0xff}, "memory": color.RGBA{R: 0xa0, G: 0xa0, B: 0xa0, A: 0xff},
}

// palette gives each name a colour, and says how many names had it before, since there are not colours for any number of them.
func palette(names []string) (colour map[string]color.Color, before map[string]int) {
	colour, before = map[string]color.Color{}, map[string]int{}
	used := 0
	if slices.Contains(names, "sluice") {
		colour["sluice"] = colours[0]
		used = 1
	}
	for _, n := range names {
		if colour[n] != nil {
			continue
		}
		if c := floors[n]; c != nil {
			colour[n] = c
			continue
		}
		colour[n], before[n] = colours[used%len(colours)], used/len(colours)
		used++
	}
	return colour, before
}

var (
	grey  = color.Gray{Y: 0x80}
	faint = color.Gray{Y: 0xd8}
)

// dashes tell series apart that have the same colour.
var dashes = [][]vg.Length{nil, {6, 3}, {2, 2}}

func init() {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	plotter.DefaultFont = plot.DefaultFont
}

// style is one of text of a size, flush left and with its top at the point.
func style(size font.Length, c color.Color) text.Style {
	f := font.From(plot.DefaultFont, size)
	return text.Style{Color: c, Font: f, XAlign: text.XLeft, YAlign: text.YTop, Handler: plot.DefaultTextHandler}
}

// write draws a picture into NAME.png and NAME.svg.
func (p *picture) write(name string) error {
	titleStyle, textStyle := style(13, color.Black), style(9, color.Gray{Y: 0x40})
	title := wrap(p.title, titleStyle, width-2*margin)
	caption := wrap(p.text, textStyle, width-2*margin)
	above, below := titleStyle.Height(title)+margin, textStyle.Height(caption)+margin
	height := vg.Length(p.height)*vg.Centimeter + above + below + 2*margin

	picture := func(c draw.Canvas) {
		c.SetColor(color.White)
		c.Fill(c.Rectangle.Path())
		c = draw.Crop(c, margin, -margin, margin, -margin)
		c.FillText(titleStyle, vg.Point{X: c.Min.X, Y: c.Max.Y}, title)
		c.FillText(textStyle, vg.Point{X: c.Min.X, Y: c.Min.Y + textStyle.Height(caption)}, caption)
		p.draw(draw.Crop(c, 0, 0, below, -above))
	}
	img := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dpi))
	picture(draw.New(img))
	svg := vgsvg.New(width, height)
	picture(draw.New(svg))
	for _, f := range []struct {
		end    string
		canvas vg.CanvasWriterTo
	}{{".png", vgimg.PngCanvas{Canvas: img}}, {".svg", svg}} {
		file, err := os.Create(name + f.end)
		if err != nil {
			return err
		}
		if _, err := f.canvas.WriteTo(file); err != nil {
			_ = file.Close()
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
	}
	return nil
}

// wrap breaks text into lines that are no wider.
func wrap(s string, in text.Style, wide vg.Length) string {
	var out []string
	for _, paragraph := range strings.Split(s, "\n") {
		line := ""
		for _, word := range strings.Fields(paragraph) {
			if line != "" && in.Width(line+" "+word) > wide {
				out = append(out, line)
				line = word
				continue
			}
			line = strings.TrimSpace(line + " " + word)
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// newPlot is a plot with small letters and plain numbers on its axes.
func newPlot(x, y string) *plot.Plot {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = x, y
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font.Size = 10
		a.Tick.Label.Font.Size = 9
		a.Tick.Marker = evenTicks{}
	}
	return p
}

// tickLabel writes a number on an axis.
func tickLabel(v float64) string {
	if math.Abs(v) >= 10_000 {
		return report.Figure(v)
	}
	return strconv.FormatFloat(v, 'g', 6, 64)
}

// evenTicks are some six, at multiples of 1, 2 or 5 times a power of ten.
type evenTicks struct{}

// Ticks returns those from low to high.
func (evenTicks) Ticks(low, high float64) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10((high-low)/3)))
	for _, times := range []float64{5, 2} {
		if (high-low)/(times*step) >= 4 {
			step *= times
			break
		}
	}
	var out []plot.Tick
	for i := math.Ceil(low / step); i*step <= high; i++ {
		out = append(out, plot.Tick{Value: i * step, Label: tickLabel(i * step)})
	}
	return out
}

// powerTicks are 1, 2 and 5 times the powers of ten.
type powerTicks struct{}

// Ticks returns those from low to high.
func (powerTicks) Ticks(low, high float64) []plot.Tick {
	var out []plot.Tick
	for v := stepDown(low); v <= high*1.001; v = stepUp(v * 1.001) {
		if v >= low*0.999 {
			out = append(out, plot.Tick{Value: v, Label: tickLabel(v)})
		}
	}
	return out
}

// stepDown returns the next 1, 2 or 5 times a power of ten that is not above v, and stepUp the next that is not below.
func stepDown(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, times := range []float64{5, 2} {
		if times*power <= v {
			return times * power
		}
	}
	return power
}

func stepUp(v float64) float64 {
	for _, times := range []float64{1, 2, 5} {
		if at := times * math.Pow(10, math.Floor(math.Log10(v))); at >= v {
			return at
		}
	}
	return math.Pow(10, math.Floor(math.Log10(v))+1)
}
