package report

import "strings"

// Aim is a bound that a figure of a report should keep.
type Aim struct {
	Name    string // one word or two, for those who speak of it
	Measure string
	// The figure is read from these rows of a table: all that have these labels. Of several the worst counts.
	Table string
	Rows  []Label
	How   Reading
	// Against is in which labels the other row of a quotient or a difference is another.
	Against []Label
	Extra   string  // the name of the further figure
	Scale   float64 // what the figure is multiplied with; 0 is 1
	Unit    string

	AtLeast bool // the figure should be the bound at least; else at most
	Bound   float64
	// Loose is the bound in the smoke form, which runs for seconds and beside other things. Asserted says that it asserts this aim:
	// ratios and counts only.
	Loose    float64
	Asserted bool
}

// Reading is how the figure of an aim is made of a row.
type Reading int

// Readings.
const (
	ValueOf      Reading = iota // the median
	RateOf                      // one over the median, which is a time
	QuotientOf                  // the median of the quotients with another row, round by round
	DifferenceOf                // likewise of the differences
	ExtraOf                     // a further figure of the row
)

// labels makes labels of "mode=ipip family=v4".
func labels(text string) []Label {
	var out []Label
	for _, field := range strings.Fields(text) {
		name, value, _ := strings.Cut(field, "=")
		out = append(out, Label{Name: name, Value: value})
	}
	return out
}

// Aims are what Sluice aims at. Where a machine is the limit, a report shows by its floor and its ceiling how far.
func Aims() []Aim {
	return []Aim{
		{
			Name: "floor", Measure: "worker, ipip v4, hits, 1k flows, over the bare MAC swap", Unit: "×",
			Table: "worker", Rows: labels("mode=ipip family=v4 mix=hits flows=1000 batch=64 workers=1"),
			How: QuotientOf, Against: labels("mode=swap mix=-"),
			Bound: 3.5, Loose: 10, Asserted: true,
		}, {
			Name: "many flows", Measure: "worker, ipip v4, hits, 10M flows over 1k", Unit: "×",
			Table: "worker", Rows: labels("mode=ipip family=v4 mix=hits flows=10000000 batch=64 workers=1"),
			How: QuotientOf, Against: labels("flows=1000"),
			Bound: 2, Loose: 5, Asserted: true,
		}, {
			Name: "many flows, BPF", Measure: "likewise, with the flow table on a BPF array map", Unit: "×",
			Table: "worker-bpf", Rows: labels("mode=ipip family=v4 mix=hits flows=10000000 batch=64 workers=1"),
			How: QuotientOf, Against: labels("flows=1000"),
			Bound: 2,
		}, {
			Name: "scaling", Measure: "two workers over one", Unit: "×", AtLeast: true,
			Table: "worker-scaling", Rows: labels("workers=2"), How: QuotientOf, Against: labels("workers=1"),
			Bound: 1.9, Loose: 0.9, Asserted: true,
		}, {
			Name: "new flows", Measure: "new flows (SYN, ACK, insert) a core", Unit: "M/s", AtLeast: true,
			// Two packets a flow, so many nanoseconds each.
			Table: "worker", Rows: labels("mode=ipip family=v4 mix=new flows=1000000 batch=64 workers=1"), How: RateOf, Scale: 1000. / 2,
			Bound: 5,
		}, {
			Name: "testpmd", Measure: "veth: the whole load balancer over testpmd macswap, 1M flows", Unit: "×", AtLeast: true,
			Table: "veth", Rows: labels("system=sluice-fastpath flows=1000000 size=64"), How: QuotientOf, Against: labels("system=testpmd"),
			Bound: 1, Loose: 0.2, Asserted: true,
		}, {
			Name: "nft", Measure: "veth: over nft stateful DNAT, 1M flows", Unit: "×", AtLeast: true,
			Table: "veth", Rows: labels("system=sluice-fastpath flows=1000000 size=64"), How: QuotientOf, Against: labels("system=nft-stateful"),
			Bound: 2, Loose: 0.2, Asserted: true,
		}, {
			Name: "fastpath", Measure: "veth: the fast path over a bare XDP reflector, 1k flows", Unit: "×", AtLeast: true,
			Table: "veth", Rows: labels("system=sluice-fastpath flows=1000 size=64"), How: QuotientOf, Against: labels("system=reflect"),
			Bound: 0.65, Loose: 0.3, Asserted: true,
		}, {
			Name: "fastpath-1M", Measure: "likewise, 1M flows", Unit: "×", AtLeast: true,
			Table: "veth", Rows: labels("system=sluice-fastpath flows=1000000 size=64"), How: QuotientOf, Against: labels("system=reflect"),
			Bound: 0.33, Loose: 0.15, Asserted: true,
		}, {
			Name: "rings", Measure: "our rings over asavie/xdp's under the same forwarder", Unit: "×", AtLeast: true,
			Table: "worker-rings", Rows: labels("rings=sluice"), How: QuotientOf, Against: labels("rings=asavie"),
			Bound: 1.3, // not asserted: while others use the cores the rate on veth falls to almost nothing
		}, {
			Name: "latency", Measure: "veth: p99 added at half load, over direct", Unit: "µs",
			Table: "veth-latency", Rows: labels("system=sluice-fastpath load=50"), How: DifferenceOf, Against: labels("system=direct"),
			Bound: 100,
		}, {
			Name: "haproxy", Measure: "TCP: p99 through Sluice over that through HAProxy, half load", Unit: "×",
			Table: "tcp-latency", Rows: labels("system=sluice-ipip"), How: QuotientOf, Against: labels("system=haproxy"),
			Bound: 1,
		}, {
			Name: "spike", Measure: "p99.99 in the worker during rebuild, reload, sweep, GC", Unit: "µs",
			Table: "churn-latency", How: ValueOf,
			Bound: 1000,
		}, {
			Name: "allocations", Measure: "allocations a packet, on any path", Unit: "a packet",
			// The runtime allocates by itself now and then, some times in a million packets: that is no packet's.
			Table: "worker", How: ExtraOf, Extra: "allocs_per_packet",
			Bound: 0.001, Loose: 0.001, Asserted: true,
		}, {
			Name: "table", Measure: "flow table", Unit: "bytes a flow",
			Table: "cost-memory", Rows: labels("of=flow"), How: ValueOf,
			Bound: 16, Loose: 16, Asserted: true,
		}, {
			Name: "idle", Measure: "an idle node", Unit: "% of a core",
			Table: "cost-cpu", Rows: labels("of=idle"), How: ValueOf,
			Bound: 1,
		},
	}
}
