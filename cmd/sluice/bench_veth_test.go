//go:build linux

package main

import (
	"encoding/json"
	"testing"

	"github.com/sluice-lb/sluice/bench/report"
)

// What `sluice bench veth --json` prints of a table: flat rows, losses as fractions.
func TestVethRows(t *testing.T) {
	labels := func(system string) []report.Label {
		return []report.Label{{Name: "system", Value: system}, {Name: "flows", Value: "1000"}, {Name: "size", Value: "64"}}
	}
	table := report.Table{Name: "veth", Rows: []report.Row{
		{Labels: labels("sluice"), Rounds: []float64{1, 3, 2}, Reference: "testpmd/1000/64", Extra: map[string]float64{"loss_percent": 25}},
		{Labels: labels("testpmd"), Rounds: []float64{2, 2, 2}},
		{Labels: labels("asavie"), Missing: "needs Debian package x"},
	}}
	got, err := json.Marshal(vethRows(&table))
	if err != nil {
		t.Fatal(err)
	}
	const want = `[{"flows":1000,"loss":0.25,"measure":"throughput","mpps":2,"ratio":1,"reference":"testpmd/1000/64","rounds":[1,3,2],"size":"64","system":"sluice"},` +
		`{"flows":1000,"measure":"throughput","mpps":2,"rounds":[2,2,2],"size":"64","system":"testpmd"},` +
		`{"flows":1000,"measure":"throughput","missing":"needs Debian package x","size":"64","system":"asavie"}]`
	if string(got) != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	table.Name = "veth-latency"
	if rows := vethRows(&table); rows[0]["measure"] != "latency" || rows[0]["p99_us"] != 2.0 || rows[0]["mpps"] != nil {
		t.Errorf("%v", rows[0])
	}
}
