package report

import (
	"bytes"
	"strings"
	"testing"
)

// edited returns the sample with changes.
func edited(change func(r *Report)) *Report {
	r := sample()
	change(r)
	return r
}

// scale multiplies the values of a row of the worker's.
func scale(r *Report, row int, by float64) {
	x := &r.Tables[0].Rows[row]
	out := make([]float64, len(x.Rounds))
	for i, v := range x.Rounds {
		out[i] = v * by
	}
	x.Rounds = out
}

func TestCompareRefuses(t *testing.T) {
	for _, c := range []struct {
		want   string
		change func(r *Report)
	}{
		{"machine: abc and def", func(r *Report) { r.Environment.Machine = "def" }},
		{"kernel: 6.18 and 6.19", func(r *Report) { r.Environment.Kernel = "6.19" }},
		{"NICs: veth (copy) and veth (copy), virtio_net (zerocopy)", func(r *Report) {
			r.Environment.NICs = append(r.Environment.NICs, NIC{Driver: "virtio_net", Mode: "zerocopy"})
		}},
		{"cores: 2 and 4", func(r *Report) { r.Environment.Cores = 4 }},
		{"one report is full, the other smoke", func(r *Report) { r.Effort = Smoke }},
		{"one report has time a packet in ns, the other time a packet in µs", func(r *Report) { r.Tables[0].Unit = "µs" }},
	} {
		if _, err := Compare(sample(), edited(c.change), 0.03); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, wanted %q", err, c.want)
		}
	}
}

func TestCompareVerdicts(t *testing.T) {
	const hits = "ipip/v4/hits/1000/64/1"
	for _, c := range []struct {
		name   string
		key    string
		change func(r *Report)
		want   Verdict
		worse  int
	}{
		{"nothing changed", hits, func(*Report) {}, Same, 0},
		{"slower by half", hits, func(r *Report) { scale(r, 1, 1.5) }, Worse, 1},
		{"faster by a tenth", hits, func(r *Report) { scale(r, 1, 0.9) }, Better, 0},
		{"slower by less than is told", hits, func(r *Report) { scale(r, 1, 1.02) }, Same, 0},
		{"the whole machine slower", hits, func(r *Report) {
			for i := range r.Tables[0].Rows {
				scale(r, i, 2)
			}
		}, Same, 0},
		{"the medians differ by noise", hits, func(r *Report) {
			r.Tables[0].Rows[1].Rounds = []float64{10, 30, 17, 20, 21, 19}
		}, Same, 0},
		{"three rounds", "sluice-fastpath/1000000/64", func(r *Report) { r.Tables[1].Rows[2].Rounds = []float64{0.1, 0.1, 0.1} }, TooFew, 0},
		{"bytes have no noise", "flow", func(r *Report) {
			r.Table("cost-memory").Rows[0].Rounds = []float64{24}
		}, Worse, 1},
	} {
		withMemory := func(r *Report) *Report {
			r.Tables = append(r.Tables, Table{Name: "cost-memory", Metric: "memory", Unit: "bytes",
				Rows: []Row{{Labels: labels("of=flow"), Rounds: []float64{16}}}})
			return r
		}
		changed := withMemory(sample())
		c.change(changed)
		got, err := Compare(withMemory(sample()), changed, 0.03)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, x := range got.Changes {
			if x.Key == c.key {
				found = true
				if x.Verdict != c.want {
					t.Errorf("%s: %+v, wanted %s", c.name, x, c.want)
				}
			}
		}
		if !found || len(got.Worse()) != c.worse {
			t.Errorf("%s: row found: %v; worse: %+v", c.name, found, got.Worse())
		}
	}
}

func TestCompareListsWhatIsInOneOnly(t *testing.T) {
	changed := edited(func(r *Report) {
		w, v := &r.Tables[0], &r.Tables[1]
		w.Rows = w.Rows[:3]
		w.Rule = "Two cores."
		v.Rows[0].Rounds, v.Rows[0].Missing = []float64{1}, ""
		v.Rows[1].Rounds, v.Rows[1].Missing = nil, "needs Debian package nftables"
		v.Rows[2].Reference = "testpmd/1000000/64"
		r.Tables = append(r.Tables, Table{Name: "churn-flows", Metric: "rate", Unit: "1/s"})
	})
	c, err := Compare(sample(), changed, 0.03)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := c.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		"Only in the old report:\n  worker ipip/v4/new/1000000/64/1\n" +
			"  veth nft-stateful/1000000/64 (new: needs Debian package nftables)\n",
		"Only in the new report:\n  veth testpmd/1000000/64 (old: needs Debian package dpdk)\n  churn-flows\n",
		"worker: measured by another rule.\nold: Everything on one core.\nnew: Two cores.\n",
		`veth sluice-fastpath/1000000/64: not compared, it refers to "nft-stateful/1000000/64" in the old report and to "testpmd/1000000/64"`,
		"0 better, 0 worse, 2 without a difference, 0 with too few rounds to tell.",
	} {
		if !strings.Contains(b.String(), part) {
			t.Errorf("no %q in\n%s", part, b.String())
		}
	}
}

func TestAims(t *testing.T) {
	found := func(loose bool) map[string]Result {
		out := map[string]Result{}
		for _, x := range sample().Results(loose) {
			out[x.Aim.Name] = x
		}
		return out
	}
	full := found(false)
	for _, c := range []struct {
		name, verdict string
		found         float64
	}{
		{"floor", "met", 3.0},
		{"many flows", "missed by 12 %", 2.24},
		{"new flows", "met", 10},
		{"testpmd", "not measured: testpmd/1000000/64: needs Debian package dpdk", 0},
		{"nft", "missed by 25 %", 1.5},
		{"allocations", "met", 0},
		{"scaling", `not measured: no table "worker-scaling"`, 0},
	} {
		x := full[c.name]
		if x.Verdict() != c.verdict || x.Found < c.found-0.05 || x.Found > c.found+0.05 {
			t.Errorf("%s: %s, found %v; wanted %s, %v", c.name, x.Verdict(), x.Found, c.verdict, c.found)
		}
	}
	smoke := found(true)
	if x := smoke["nft"]; !x.Met() {
		t.Errorf("nft, smoke: %s", x.Verdict())
	}
	if _, ok := smoke["new flows"]; ok {
		t.Error("the smoke form asserts an absolute value")
	}
}

// TestAimsTakeTheWorst: what allocates in one row allocates.
func TestAimsTakeTheWorst(t *testing.T) {
	r := edited(func(r *Report) { r.Tables[0].Rows[2].Extra["allocs_per_packet"] = 0.5 })
	err := r.Check(func(table string) bool { return table == "worker" })
	if err == nil {
		t.Fatal("it passed")
	}
	want := "allocations (allocations a packet, on any path): missed by 49900 %: expected ≤ 0.001 a packet, found 0.500 at ipip/v4/hits/10000000/64/1"
	if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "nft") {
		t.Errorf("%v, wanted %q, and nothing of veth", err, want)
	}
	r.Effort = Smoke
	if err := sample().Check(func(string) bool { return false }); err != nil {
		t.Errorf("nothing was to be measured: %v", err)
	}
}
