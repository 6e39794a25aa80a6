package main

import (
	"encoding/xml"
	"fmt"
	"image"
	"image/color"
	_ "image/png"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/bench/report"
)

// made makes a row of labels "name=value …", a reference and values about one.
func made(text, reference string, about float64) report.Row {
	r := report.Row{Reference: reference, Rounds: []float64{0.97 * about, about, 1.01 * about, 1.05 * about, 0.99 * about}}
	for _, field := range strings.Fields(text) {
		name, value, _ := strings.Cut(field, "=")
		r.Labels = append(r.Labels, report.Label{Name: name, Value: value})
	}
	return r
}

// madeUp is a report of every kind of table. Its numbers are invented.
func madeUp() *report.Report {
	worker := report.Table{Name: "worker", Title: "The worker on the memory NIC.", Metric: "time a packet", Unit: "ns",
		Rule: "Generator, worker and sink take turns on one core; only the worker is timed. Invented numbers."}
	for i, flows := range []int{1000, 100_000, 1_000_000, 10_000_000} {
		swap := fmt.Sprintf("swap/v4/-/%d/64/1", flows)
		more := 1 + 0.4*float64(i)
		add := func(reference string, about float64, format string, args ...any) {
			worker.Rows = append(worker.Rows, made(fmt.Sprintf(format, args...), reference, about))
		}
		add("", 6, "mode=swap family=v4 mix=- flows=%d batch=64 workers=1", flows)
		add(swap, 3*more, "mode=memory family=v4 mix=independent flows=%d batch=- workers=1", flows)
		for k, mode := range []string{"ipip", "l2", "gue", "nat"} {
			for v, family := range []string{"v4", "v6"} {
				add(swap, (18+1.5*float64(k)+4*float64(v))*more,
					"mode=%s family=%s mix=hits flows=%d batch=64 workers=1", mode, family, flows)
			}
		}
		for k, mix := range []string{"misses", "new10", "new", "cookie", "challenge", "limits"} {
			add(swap, (24+9*float64(k))*more, "mode=ipip family=v4 mix=%s flows=%d batch=64 workers=1", mix, flows)
		}
	}
	for _, batch := range []int{1, 8, 256} {
		worker.Rows = append(worker.Rows,
			made(fmt.Sprintf("mode=ipip family=v4 mix=hits flows=1000 batch=%d workers=1", batch), "", 17+60/float64(batch)),
			made(fmt.Sprintf("mode=swap family=v4 mix=- flows=1000 batch=%d workers=1", batch), "", 6+40/float64(batch)))
	}
	veth := report.Table{Name: "veth", Title: "A node on veth, in copy mode: packets forwarded.", Metric: "rate", Unit: "Mpps", Higher: true,
		Rule: "CPU 0: generator and the reception that it drives. CPU 1: the system's threads and what they send. Invented numbers."}
	latency := report.Table{Name: "veth-latency", Title: "Latency of packets through a node on veth.", Metric: "p99 latency", Unit: "µs",
		Rule: "As in veth, with probes among the load."}
	for _, flows := range []int{1000, 1_000_000} {
		reference := fmt.Sprintf("testpmd/%d/64", flows)
		for k, system := range []string{"sluice", "testpmd", "asavie", "nft-stateless", "nft-stateful", "reflect", "sluice-on-asavie"} {
			row := made(fmt.Sprintf("system=%s flows=%d size=64", system, flows), reference, 1.4-0.17*float64(k))
			if system == "testpmd" {
				row.Reference = ""
			}
			if system == "asavie" {
				row.Rounds, row.Missing = nil, "needs Debian package dpdk"
			}
			veth.Rows = append(veth.Rows, row)
		}
	}
	for i, load := range []string{"10", "50", "90"} {
		for k, system := range []string{"direct", "sluice", "testpmd", "nft-stateful"} {
			row := made("system="+system+" load="+load, "", float64(20+10*k))
			row.Extra = map[string]float64{}
			for n, name := range []string{"p50", "p90", "p99", "p99_9", "p99_99"} {
				row.Extra[name] = float64((8 + 5*k + 3*i) * (1 + n*n))
			}
			latency.Rows = append(latency.Rows, row)
		}
	}
	scaling := report.Table{Name: "worker-scaling", Title: "Workers that share one flow table.", Metric: "rate", Unit: "Mpps", Higher: true,
		Rule: "Each worker on a core of its own.",
		Rows: []report.Row{made("workers=1 flows=1000000", "", 40), made("workers=2 flows=1000000", "1/1000000", 78)}}
	memory := report.Table{Name: "cost-memory", Title: "Memory.", Metric: "memory", Unit: "bytes",
		Rows: []report.Row{made("of=flow", "", 16), made("of=backend", "", 900), made("of=service", "", 14000)}}
	return &report.Report{Effort: report.Full, Tables: []report.Table{worker, veth, latency, scaling, memory}}
}

// TestPictures draws a made-up report, and finds PNG and SVG files that decode and show something.
func TestPictures(t *testing.T) {
	dir := t.TempDir()
	if d := os.Getenv("SLUICE_PICTURES"); d != "" {
		dir = d // to look at them
	}
	in := filepath.Join(dir, "report.json")
	f, err := os.Create(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := madeUp().Write(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{in, dir}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"worker-modes", "worker-mixes", "worker-batches", "worker-scaling", "cost-memory",
		"veth", "veth-latency-10", "veth-latency-50", "veth-latency-90"} {
		if n := coloursIn(t, filepath.Join(dir, name+".png")); n < 2 {
			t.Errorf("%s.png has %d colours of those that series are drawn in", name, n)
		}
		if n := elementsIn(t, filepath.Join(dir, name+".svg")); n < 20 {
			t.Errorf("%s.svg has %d elements", name, n)
		}
	}
}

// coloursIn decodes a picture and counts the colours of series in it.
func coloursIn(t *testing.T, name string) int {
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, _, err := image.Decode(f)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	series := map[color.Color]bool{}
	for _, c := range append(slices.Collect(maps.Values(floors)), colours...) {
		series[c] = true
	}
	found := map[color.Color]bool{}
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			if c := color.RGBAModel.Convert(img.At(x, y)); series[c] {
				found[c] = true
			}
		}
	}
	return len(found)
}

// elementsIn decodes a picture and counts its elements.
func elementsIn(t *testing.T, name string) (n int) {
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if err == io.EOF {
			return n
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, ok := token.(xml.StartElement); ok {
			n++
		}
	}
}

func TestUsage(t *testing.T) {
	if err := run(nil); err == nil || !strings.Contains(err.Error(), "plot REPORT.json DIR") {
		t.Errorf("%v", err)
	}
}
