//go:build linux

package users

import (
	"maps"
	"math"
	"slices"
	"testing"
	"time"
)

func TestParseWrk(t *testing.T) {
	const out = `Running 1s test @ http://192.0.2.13:80/
Requests/sec:   4731.76
Transfer/sec:      5.68MB
`
	got, err := parseWrk(out + wrkMark + " 4774 1008927 0 2 0 0 1\n")
	if err != nil || math.Abs(got.value-4731.76) > 0.01 || got.work != 4.774 || got.errors != 3 ||
		!slices.Equal(got.kinds, []string{"2 to read", "1 too late (2 s)"}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", out, out + wrkMark + " 1 2\n", out + wrkMark + " 1 0 0 0 0 0 0\n", out + wrkMark + " a b c\n"} {
		if got, err := parseWrk(bad); err == nil {
			t.Errorf("%q: %+v, want an error", bad, got)
		}
	}
}

func TestParseIperf3(t *testing.T) {
	got, err := parseIperf3(`{"start":{},"end":{"sum_sent":{"bytes":500000000,"bits_per_second":4.1e9,"retransmits":7},
		"sum_received":{"bytes":500000000,"bits_per_second":4e9}}}`)
	if err != nil || got.value != 4 || got.work != 0.5 || got.extra["retransmits"] != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "iperf3: error", `{"end":{}}`, `{"error":"unable to connect to server"}`} {
		if got, err := parseIperf3(bad); err == nil {
			t.Errorf("%q: %+v, want an error", bad, got)
		}
	}
}

func TestParseH2load(t *testing.T) {
	took, failed, err := parseH2load("1764403200000000\t200\t106\n1764403200000106\t503\t90\n1764403200000196\t200\t1045\n")
	if want := []time.Duration{106 * time.Microsecond, 1045 * time.Microsecond}; err != nil || failed != 1 || !slices.Equal(took, want) {
		t.Errorf("%v, %d failed, %v; want %v and 1", took, failed, err, want)
	}
	for _, bad := range []string{"1\t200\n", "1\t200\tfast\n"} {
		if _, _, err := parseH2load(bad); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}

// Percentiles are those of the requests themselves; one that only the slowest request would tell is left out.
func TestLatencySample(t *testing.T) {
	var took []time.Duration
	for i := 1000; i > 0; i-- {
		took = append(took, time.Duration(i)*time.Microsecond)
	}
	got, err := latencySample(took, 2)
	want := map[string]float64{"p50": 500, "p90": 900, "p99": 990, "p99_9": 999}
	if err != nil || got.value != 990 || got.errors != 2 || got.work != 1 || !maps.Equal(got.extra, want) {
		t.Errorf("%+v, %v; want %v", got, err, want)
	}
	if _, err := latencySample(nil, 5); err == nil {
		t.Error("without an answered request: want an error")
	}
	if got, err := latencySample([]time.Duration{time.Millisecond}, 0); err != nil || got.value != 1000 || len(got.extra) != 0 {
		t.Errorf("one request: %+v, %v", got, err)
	}
}

func TestDifferences(t *testing.T) {
	if got := differences([]float64{5, 7, 9}, []float64{1, 8}); !slices.Equal(got, []float64{4, -1}) {
		t.Errorf("%v", got)
	}
}

func TestParseCore(t *testing.T) {
	const stat = "cpu  1000 0 0 0 0 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 100 200 300 400 500 600 700 800 0 0\nintr 5\n"
	got, err := parseCore(stat, 1)
	if want := (cost{busy: 19, softirq: 7}); err != nil || got != want { // neither idle, nor waiting, nor stolen
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{stat[:14], "cpu1 1 2 3 x 5 6 7 8 0 0\n"} {
		if _, err := parseCore(bad, 1); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}

func TestParseProcess(t *testing.T) {
	const stat = "4711 (a) b (c) S 1 4700 4700 0 -1 4194560 11 22 33 44 150 250 1 2 20 0 5 0 12345 0 0"
	group, used, err := parseProcess(stat)
	if err != nil || group != 4700 || used != 4 {
		t.Errorf("group %d, %g s, %v; want 4700, 4 s", group, used, err)
	}
	for _, bad := range []string{"4711 (a) S 1 4700", "no process at all"} {
		if _, _, err := parseProcess(bad); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}
