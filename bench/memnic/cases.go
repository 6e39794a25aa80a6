//go:build linux

package memnic

import (
	"fmt"
	"slices"
	"strings"
)

// Modes of a Case: how the service forwards, and two that are no forwarding.
const (
	Swap   = "swap"   // a bare swap of MAC addresses
	Memory = "memory" // reads of random cache lines of the flow table; mix Independent or Dependent
	IPIP   = "ipip"
	L2     = "l2"
	GUE    = "gue"
	NAT    = "nat"
)

// Families of a Case.
const (
	V4 = "v4"
	V6 = "v6"
)

// Mixes of a Case: what the packets are.
const (
	Hits      = "hits"      // of flows that have a word
	Misses    = "misses"    // SYNs of unknown flows, which leave no word
	New       = "new"       // SYNs of unknown flows, and then their ACKs, which insert: two packets a flow
	New10     = "new10"     // hits, but each tenth packet is of an unknown flow: in turns its SYN, and its ACK, which inserts
	Evict     = "evict"     // as New, in a table that is full
	Cookie    = "cookie"    // SYNs of unknown flows, answered with a cookie
	Challenge = "challenge" // SYNs of unknown flows, answered with a challenge
	Limits    = "limits"    // hits, each counted against a limit of its source
	Replies   = "replies"   // from backends to clients; NAT only

	Independent = "independent" // reads that can overlap
	Dependent   = "dependent"   // reads of which each waits for the one before
	none        = "-"           // of a swap
)

// Tables of a Case: what memory the flow table lies on.
const (
	Memfd = "memfd" // as the daemon's, on huge pages if there are any
	BPF   = "bpf"   // a BPF array map, on ordinary pages
)

// What can be named.
var (
	Modes    = []string{IPIP, L2, GUE, NAT}
	Families = []string{V4, V6}
	Mixes    = []string{Hits, Misses, New10, New, Evict, Cookie, Challenge, Limits, Replies}
)

// Case is one setting.
type Case struct {
	Mode    string
	Family  string
	Mix     string
	Flows   int    // in the flow table
	Batch   int    // frames that the worker finds at a time; its own batch is 64 at the most. 0 with mode Memory
	Workers int    // that forward at the same time and share the table
	Table   string // Memfd or BPF
}

// base is the case that others are variations of.
func base(flows int) Case {
	return Case{Mode: IPIP, Family: V4, Mix: Hits, Flows: flows, Batch: 64, Workers: 1, Table: Memfd}
}

// Axes are values of each property, to be combined.
type Axes struct {
	Flows           []int
	Modes, Families []string
	Mixes           []string
	Batches         []int
	Workers         []int
	Table           string
}

// Combine returns a case for each combination that has a meaning, and what they are compared with: a swap for each number of flows
// and batch, and the reads of each table.
func Combine(a Axes) []Case {
	var out []Case
	for _, flows := range a.Flows {
		for _, family := range a.Families {
			for _, mode := range a.Modes {
				for _, mix := range a.Mixes {
					for _, batch := range a.Batches {
						for _, workers := range a.Workers {
							out = append(out, Case{mode, family, mix, flows, batch, workers, a.Table})
						}
					}
				}
			}
		}
	}
	return complete(out)
}

// Usual returns the cases of `sluice bench worker` without flags: all mixes with IPIP and IPv4, and hits of the other modes and
// families, for each number of flows.
func Usual(flows []int, table string) []Case {
	var out []Case
	for _, n := range flows {
		out = append(out, usual(n)...)
	}
	for i := range out {
		out[i].Table = table
	}
	return complete(out)
}

func usual(flows int) (out []Case) {
	for _, mix := range Mixes {
		c := base(flows)
		c.Mix = mix
		out = append(out, c)
	}
	for _, family := range Families {
		for _, mode := range Modes {
			c := base(flows)
			c.Mode, c.Family = mode, family
			out = append(out, c)
		}
	}
	c := base(flows)
	c.Mode, c.Mix = NAT, Replies
	return append(out, c)
}

// selection is the cases of Tables: each value of each property, and corners. The full cross product would be some thousands.
//
//   - 1k, 100k, 1M, 10M flows: as Usual, with evictions up to 1M (a full table of 10M takes its time to fill);
//   - 100M flows: hits, misses, new flows;
//   - batches of 1, 8 and 256, and two workers: hits at 1k and 10M flows, and new flows at 1M;
//   - on a BPF array: hits and new flows at 1k and 10M;
//   - corners: small batches with large headers and tables, IPv6 with what is not hits, NAT with two workers.
func selection() []Case {
	var out []Case
	vary := func(flows int, change func(*Case)) {
		c := base(flows)
		change(&c)
		out = append(out, c)
	}
	for _, flows := range []int{1000, 100_000, 1_000_000, 10_000_000} {
		for _, c := range usual(flows) {
			if c.Mix != Evict || flows <= 1_000_000 {
				out = append(out, c)
			}
		}
	}
	for _, mix := range []string{Hits, Misses, New} {
		vary(100_000_000, func(c *Case) { c.Mix = mix })
	}
	for _, flows := range []int{1000, 10_000_000} {
		for _, batch := range []int{1, 8, 256} {
			vary(flows, func(c *Case) { c.Batch = batch })
		}
		vary(flows, func(c *Case) { c.Workers = 2 })
		vary(flows, func(c *Case) { c.Table = BPF })
		vary(flows, func(c *Case) { c.Table, c.Mix = BPF, New })
	}
	for _, batch := range []int{1, 8, 256} {
		vary(1_000_000, func(c *Case) { c.Batch, c.Mix = batch, New })
	}
	vary(1_000_000, func(c *Case) { c.Workers, c.Mix = 2, New })
	// Corners.
	vary(10_000_000, func(c *Case) { c.Mode, c.Family, c.Batch = NAT, V6, 1 })
	vary(10_000_000, func(c *Case) { c.Mode, c.Family, c.Mix = GUE, V6, New })
	vary(10_000_000, func(c *Case) { c.Mode, c.Family, c.Mix, c.Batch = L2, V6, Misses, 8 })
	vary(1000, func(c *Case) { c.Mode, c.Family, c.Mix = NAT, V6, Replies })
	vary(1000, func(c *Case) { c.Mode, c.Workers = NAT, 2 })
	for _, mix := range []string{Cookie, Challenge, Limits, New10} {
		vary(1000, func(c *Case) { c.Family, c.Mix = V6, mix })
	}
	return complete(out)
}

// smoke is the cases of Tables that tell within seconds whether something is badly wrong.
func smoke() []Case {
	var out []Case
	for _, mix := range []string{Hits, Misses, New10, New, Cookie, Challenge, Limits} {
		c := base(1000)
		c.Mix = mix
		out = append(out, c)
	}
	for _, family := range Families {
		for _, mode := range Modes {
			c := base(1000)
			c.Mode, c.Family = mode, family
			out = append(out, c)
		}
	}
	batch, million, many, bpf := base(1000), base(1_000_000), base(10_000_000), base(1000)
	batch.Batch, million.Mix, bpf.Table = 1, New, BPF
	return complete(append(out, batch, million, many, bpf))
}

// complete adds swaps and reads to forwarding cases, drops what has no meaning or occurs twice, and puts the cases into the order
// in which they take turns: what needs the same configuration follows each other.
func complete(cases []Case) []Case {
	var out []Case
	add := func(c Case) {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	for _, c := range cases {
		if c.Mix == Replies && c.Mode != NAT {
			continue
		}
		swap := c
		swap.Mode, swap.Family, swap.Mix, swap.Workers = Swap, V4, none, 1
		add(swap)
		swap.Flows = referenceFlows(cases)
		add(swap)
		for _, mix := range []string{Independent, Dependent} {
			add(Case{Memory, none, mix, c.Flows, 0, 1, c.Table})
		}
		add(c)
	}
	slices.SortStableFunc(out, func(a, b Case) int {
		if a.Table != b.Table {
			return strings.Compare(b.Table, a.Table)
		}
		if a.Flows != b.Flows {
			return a.Flows - b.Flows
		}
		if p, q := place(a), place(b); p != q {
			return p - q
		}
		return strings.Compare(a.Family, b.Family)
	})
	return out
}

// place orders cases of one number of flows.
func place(c Case) int {
	mode := slices.Index([]string{Memory, Swap, IPIP, L2, GUE, NAT}, c.Mode)
	return mode<<8 + slices.Index(Mixes, c.Mix)
}

// referenceFlows is the number of flows of the swap that all cases are compared with.
func referenceFlows(cases []Case) int {
	least := cases[0].Flows
	for _, c := range cases {
		if c.Flows == 1000 {
			return 1000
		}
		least = min(least, c.Flows)
	}
	return least
}

// validate says what is wrong with a case in bursts of so many frames.
func (c *Case) validate(burst int) error {
	in := func(what, value string, list []string) error {
		if !slices.Contains(list, value) {
			return fmt.Errorf("%s %q: expected one of %s", what, value, strings.Join(list, ", "))
		}
		return nil
	}
	if err := in("table", c.Table, []string{Memfd, BPF}); err != nil {
		return err
	}
	if c.Flows < 1 {
		return fmt.Errorf("%d flows: at least 1 is needed", c.Flows)
	}
	if c.Mode == Memory {
		return nil
	}
	if c.Batch < 1 || c.Batch > burst {
		return fmt.Errorf("a batch of %d frames: expected 1 to %d, half of the frames in circulation", c.Batch, burst)
	}
	if c.Workers < 1 || c.Workers > maxWorkers {
		return fmt.Errorf("%d workers: expected 1 to %d", c.Workers, maxWorkers)
	}
	if c.Mode == Swap {
		return nil
	}
	if err := in("mode", c.Mode, Modes); err != nil {
		return err
	}
	if err := in("family", c.Family, Families); err != nil {
		return err
	}
	return in("mix", c.Mix, Mixes)
}

// maxWorkers is how many workers can be measured at once.
const maxWorkers = 64

// name is the case in words, for errors.
func (c *Case) name() string {
	return fmt.Sprintf("%s %s %s, %d flows, batch %d, %d workers, table %s", c.Mode, c.Family, c.Mix, c.Flows, c.Batch, c.Workers, c.Table)
}
