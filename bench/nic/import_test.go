package nic

import (
	"reflect"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/bench/report"
)

const measured = `system,size,mpps,loss_percent
# first round
sluice, 64, 11, 0
ipvs, 64, 2, 0.5
sluice, 1518, 0.8, 0
# second round
sluice, 64, 12, 1
ipvs, 64, 3, 0.5
sluice, 1518, 0.8, 0
`

func TestImport(t *testing.T) {
	got, err := Import(strings.NewReader(measured), "ipvs")
	if err != nil {
		t.Fatal(err)
	}
	label := func(system, size string) []report.Label {
		return []report.Label{{Name: "system", Value: system}, {Name: "size", Value: size}}
	}
	want := []report.Row{
		{Labels: label("sluice", "64"), Rounds: []float64{11, 12}, Reference: "ipvs/64", Extra: map[string]float64{"loss_percent": 0.5}},
		{Labels: label("ipvs", "64"), Rounds: []float64{2, 3}, Extra: map[string]float64{"loss_percent": 0.5}},
		{Labels: label("sluice", "1518"), Rounds: []float64{0.8, 0.8}, Extra: map[string]float64{"loss_percent": 0}},
	}
	if !reflect.DeepEqual(got.Rows, want) {
		t.Errorf("got %+v\nexpected %+v", got.Rows, want)
	}
	if ratio, ok := got.Ratio(got.Find("sluice/64")); !ok || ratio.Median != 4.75 {
		t.Errorf("ratio %+v, %v; expected the median 4.75 of 11/2 and 12/3", ratio, ok)
	}
}

func TestImportRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, peer, want string }{
		{"nothing", "", "", "names of the columns"},
		{"no value", "system,size\na,1\n", "", "mpps"},
		{"no system", "size,mpps\n64,1\n", "", "system"},
		{"no lines", "system,mpps\n", "", "no measurements"},
		{"a word", "system,mpps\na,1\nb,fast\n", "", `line 3: mpps: found "fast"`},
		{"no number", "system,mpps\na,NaN\n", "", "line 2"},
		{"too few fields", "system,mpps\na\n", "", "line 2"},
		{"unknown peer", "system,mpps\na,1\n", "b", `"b"`},
		{"not in turns", "system,mpps\na,1\na,2\nb,1\n", "b", "in turns"},
	} {
		if _, err := Import(strings.NewReader(c.text), c.peer); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, expected an error with %q", c.name, err, c.want)
		}
	}
}
