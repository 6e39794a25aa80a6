package report

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// sample is a report with a row of each sort.
func sample() *Report {
	row := func(text, reference string, rounds ...float64) Row {
		return Row{Labels: labels(text), Rounds: rounds, Reference: reference}
	}
	const swap = "swap/v4/-/1000/64/1"
	worker := Table{
		Name: "worker", Title: "The worker on the memory NIC.", Rule: "Everything on one core.", Metric: "time a packet", Unit: "ns",
		Rows: []Row{
			row("mode=swap family=v4 mix=- flows=1000 batch=64 workers=1", swap, 6, 6.2, 6.1, 6, 6.1, 6),
			row("mode=ipip family=v4 mix=hits flows=1000 batch=64 workers=1", swap, 18, 18.5, 18.2, 18.1, 18.3, 18),
			row("mode=ipip family=v4 mix=hits flows=10000000 batch=64 workers=1", swap, 40, 41, 42, 41, 40, 41),
			row("mode=ipip family=v4 mix=new flows=1000000 batch=64 workers=1", swap, 50, 50, 50, 50, 50, 50),
		},
		Notes: []string{"Two other processes ran."},
	}
	worker.Rows[1].Extra = map[string]float64{"allocs_per_packet": 0}
	worker.Rows[2].Extra = map[string]float64{"allocs_per_packet": 0}
	veth := Table{
		Name: "veth", Title: "A node on veth.", Metric: "rate", Unit: "Mpps", Higher: true,
		Rows: []Row{
			row("system=testpmd flows=1000000 size=64", ""),
			row("system=nft-stateful flows=1000000 size=64", "", 0.5, 0.5, 0.5),
			row("system=sluice-fastpath flows=1000000 size=64", "nft-stateful/1000000/64", 0.75, 0.8, 0.7),
		},
	}
	veth.Rows[0].Missing = "needs Debian package dpdk"
	return &Report{
		Environment: Environment{Machine: "abc", Cores: 2, CPU: "some CPU", Caches: "L1d 32K", Kernel: "6.18", HugePages: "none reserved",
			NICs: []NIC{{Driver: "veth", Mode: "copy"}}, Go: "go1.26", Start: time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)},
		Effort: Full,
		Tables: []Table{worker, veth},
	}
}

func TestPrint(t *testing.T) {
	r := sample()
	var b bytes.Buffer
	for _, table := range r.Tables {
		if err := Print(&b, table); err != nil {
			t.Fatal(err)
		}
	}
	want := `worker: The worker on the memory NIC.
Everything on one core.
Time a packet in ns, less is better; medians and quartiles of 6 rounds; ratios to swap/v4/-/1000/64/1.

mode  family  mix   flows     batch  workers    ns  quartiles  ratio  quartiles  allocs_per_packet
swap  v4      -     1000      64     1        6.05  6.00–6.10   1.00  1.00–1.00
ipip  v4      hits  1000      64     1        18.1  18.0–18.3   3.00  2.99–3.00                  0
ipip  v4      hits  10000000  64     1        41.0  40.2–41.0   6.75  6.63–6.83                  0
ipip  v4      new   1000000   64     1        50.0  50.0–50.0   8.27  8.20–8.33

Two other processes ran.
veth: A node on veth.
Rate in Mpps, more is better; medians and quartiles of 3 rounds; ratios to nft-stateful/1000000/64.

system           flows    size   Mpps    quartiles  ratio  quartiles
testpmd          1000000  64        –                   –
nft-stateful     1000000  64    0.500  0.500–0.500      –
sluice-fastpath  1000000  64    0.750  0.725–0.775   1.50  1.45–1.55

Not measured: testpmd/1000000/64: needs Debian package dpdk.
`
	if b.String() != want {
		t.Errorf("printed:\n%s\nwanted:\n%s", b.String(), want)
	}
}

func TestMarkdown(t *testing.T) {
	r := sample()
	r.Notes = []string{"churn failed: no memory"}
	var b bytes.Buffer
	if err := r.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"| CPU | some CPU, 2 cores allowed |",
		"**churn failed: no memory**",
		"| worker, ipip v4, hits, 1k flows, over the bare MAC swap | ≤ 3.50 × | 3.00 | met |",
		"| veth: over nft stateful DNAT, 1M flows | ≥ 2.00 × | 1.50 | missed by 25 % |",
		"| sluice-fastpath | 1000000 | 64 | 0.750 | 0.725–0.775 | 1.50 | 1.45–1.55 |",
		"Not measured: testpmd/1000000/64: needs Debian package dpdk.",
	} {
		if !strings.Contains(b.String(), line+"\n") {
			t.Errorf("no line %q in\n%s", line, b.String())
		}
	}
}

func TestFigure(t *testing.T) {
	for _, c := range []struct {
		v    float64
		want string
	}{
		{0, "0"}, {0.00001234, "1.2e-05"}, {0.0123, "0.012"}, {0.9996, "1.00"}, {1.234, "1.23"}, {12.34, "12.3"}, {99.97, "100"},
		{123.4, "123"}, {1234, "1,234"}, {-1234567.8, "-1,234,568"}, {999999, "999,999"}, {-0.5, "-0.500"},
	} {
		if got := Figure(c.v); got != c.want {
			t.Errorf("%v: %s, wanted %s", c.v, got, c.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	for _, c := range []struct {
		name string
		want float64 // 0: none
	}{{"p50", 50}, {"p99_9", 99.9}, {"p99.99_us", 99.99}, {"p99_us", 99}, {"packets", 0}, {"p", 0}, {"p100", 0}, {"mp50", 0}, {"p50_percent", 0}} {
		if got, ok := Percentile(c.name); ok != (c.want > 0) || ok && got != c.want {
			t.Errorf("%s: %v, %v", c.name, got, ok)
		}
	}
	names := []string{"p99.9_us", "p99_us", "p50_us", "max_us", "p90_us", "zero"}
	slices.SortFunc(names, extraOrder)
	if got := strings.Join(names, " "); got != "max_us zero p50_us p90_us p99_us p99.9_us" {
		t.Errorf("in order: %s", got)
	}
}

func TestReadBackWhatWasWritten(t *testing.T) {
	r := sample()
	var first, second bytes.Buffer
	if err := r.Write(&first); err != nil {
		t.Fatal(err)
	}
	text := first.String()
	again, err := Read(&first)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Write(&second); err != nil {
		t.Fatal(err)
	}
	if second.String() != text {
		t.Errorf("written again:\n%s\nfirst:\n%s", second.String(), text)
	}
}

func TestReadRefuses(t *testing.T) {
	var b bytes.Buffer
	if err := sample().Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"another version", `"version": 1`, `"version": 2`, "version: found 2, expected 1"},
		{"an unknown field", `"effort"`, `"haste": 1, "effort"`, `unknown field "haste"`},
		{"an unknown effort", `"full"`, `"huge"`, `found "huge", expected smoke or full`},
		{"no JSON", `{`, `<`, "not a report"},
		{"a reference to nowhere", `"reference": "nft-stateful/1000000/64"`, `"reference": "nft"`, "it refers to row nft, which is not there"},
		{"two tables of a name", `"name": "veth"`, `"name": "worker"`, "table worker: there are two of them"},
	} {
		text := strings.Replace(b.String(), c.old, c.new, 1)
		if text == b.String() {
			t.Fatalf("%s: nothing to replace", c.name)
		}
		if _, err := Read(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, wanted %q", c.name, err, c.want)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	for _, c := range []struct {
		want   string
		change func(t *Table)
	}{
		{"there are two of them", func(t *Table) { t.Rows[1].Labels = t.Rows[0].Labels }},
		{"other names", func(t *Table) { t.Rows[1].Labels = labels("system=x size=64 flows=1") }},
		{"other names", func(t *Table) { t.Rows[1].Labels = labels("system=x") }},
		{"either values or a reason", func(t *Table) { t.Rows[0].Missing = "" }},
		{"either values or a reason", func(t *Table) { t.Rows[1].Missing = "tired" }},
		{"a value is NaN", func(t *Table) { t.Rows[1].Rounds = []float64{math.NaN()} }},
		{"loss_percent is +Inf", func(t *Table) { t.Rows[1].Extra = map[string]float64{"loss_percent": math.Inf(1)} }},
		{"no unit", func(t *Table) { t.Unit = "" }},
	} {
		table := sample().Tables[1]
		c.change(&table)
		if err := table.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, wanted %q", err, c.want)
		}
	}
}

func TestReadEnvironment(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text + "\n")} }
	cache := "sys/devices/system/cpu/cpu0/cache/index"
	root := fstest.MapFS{
		"etc/machine-id":            file("0123456789abcdef0123456789abcdef"),
		"proc/cpuinfo":              file("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"),
		"proc/sys/kernel/osrelease": file("6.18.1"),
		"proc/loadavg":              file("0.52 0.58 0.59 1/467 12345"),
		"sys/kernel/mm/transparent_hugepage/enabled": file("always [madvise] never"),
		cache + "0/level": file("1"),
		cache + "0/type":  file("Data"),
		cache + "0/size":  file("32K"),
		cache + "2/level": file("2"),
		cache + "2/type":  file("Unified"),
		cache + "2/size":  file("1024K"),
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": file("512"),
	}
	e := readEnvironment(root)
	want := Environment{Machine: e.Machine, CPU: "Some CPU @ 2 GHz", Caches: "L1d 32K, L2 1024K", Kernel: "6.18.1",
		HugePages: "512 of 2048kB, transparent: madvise", Load: 0.52}
	if d := e.Different(&want); d != nil || e.Load != want.Load {
		t.Errorf("%+v, wanted %+v", e, want)
	}
	if len(e.Machine) != 16 || strings.Contains("0123456789abcdef0123456789abcdef", e.Machine) {
		t.Errorf("machine %q is no hash", e.Machine)
	}
	delete(root, "etc/machine-id")
	root["proc/sys/kernel/random/boot_id"] = file("5a")
	if b := readEnvironment(root); b.Machine == e.Machine || b.Machine == "unknown" {
		t.Errorf("without an ID: %q", b.Machine)
	}
	if none := readEnvironment(fstest.MapFS{}); none.Machine != "unknown" || none.Caches != "unknown" || none.Kernel != "unknown" {
		t.Errorf("of nothing: %+v", none)
	}
	if here := ReadEnvironment("v1"); here.Cores < 1 || here.Go == "" || here.Kernel == "unknown" || here.Sluice != "v1" {
		t.Errorf("here: %+v", here)
	}
}
