//go:build linux

package memnic

import (
	"slices"
	"testing"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
)

// All selections are of cases that can be measured, each once, with what they are compared with.
func TestSelections(t *testing.T) {
	for name, cases := range map[string][]Case{
		"smoke": smoke(), "full": selection(), "usual": Usual([]int{1000, 100_000}, Memfd), "other flows": Usual([]int{5000}, BPF),
		"combined": Combine(Axes{[]int{1000}, Modes, Families, Mixes, []int{1, 8}, []int{1, 2}, Memfd}),
	} {
		m := &Measurement{}
		for i, c := range cases {
			if err := c.validate(DefaultFrames / burstShare); err != nil {
				t.Errorf("%s: %s: %v", name, c.name(), err)
			}
			if slices.Contains(cases[:i], c) {
				t.Errorf("%s: %s occurs twice", name, c.name())
			}
			m.runs = append(m.runs, &run{Case: c})
		}
		for _, r := range m.runs {
			if s := m.swapOf(r); r.Mode != Memory && s == nil {
				t.Errorf("%s: %s has no swap to be compared with", name, r.name())
			}
		}
	}
	if cases := Combine(Axes{[]int{1000}, []string{IPIP}, []string{V4}, []string{Replies}, []int{64}, []int{1}, Memfd}); cases != nil {
		t.Errorf("replies without NAT: %v", cases)
	}
}

// The selection of Tables has each value of each property.
func TestSelectionIsWhole(t *testing.T) {
	cases := selection()
	has := func(what string, f func(c *Case) bool) {
		t.Helper()
		if !slices.ContainsFunc(cases, func(c Case) bool { return f(&c) }) {
			t.Errorf("no case has %s", what)
		}
	}
	for _, mode := range append([]string{Swap, Memory}, Modes...) {
		has(mode, func(c *Case) bool { return c.Mode == mode })
	}
	for _, family := range Families {
		has(family, func(c *Case) bool { return c.Family == family })
	}
	for _, mix := range append([]string{Independent, Dependent}, Mixes...) {
		has(mix, func(c *Case) bool { return c.Mix == mix })
	}
	for _, flows := range []int{1000, 100_000, 1_000_000, 10_000_000, 100_000_000} {
		has("so many flows", func(c *Case) bool { return c.Flows == flows && c.Mode == IPIP })
	}
	for _, batch := range []int{1, 8, 64, 256} {
		has("such a batch", func(c *Case) bool { return c.Batch == batch && c.Mode == IPIP })
	}
	for _, workers := range []int{1, 2} {
		has("so many workers", func(c *Case) bool { return c.Workers == workers })
	}
	for _, table := range []string{Memfd, BPF} {
		has(table, func(c *Case) bool { return c.Table == table })
	}
}

func TestValidate(t *testing.T) {
	for _, change := range []func(*Case){
		func(c *Case) { c.Mode = "ip" }, func(c *Case) { c.Family = "v5" }, func(c *Case) { c.Mix = "hit" }, func(c *Case) { c.Flows = 0 },
		func(c *Case) { c.Batch = 0 }, func(c *Case) { c.Batch = 1000 }, func(c *Case) { c.Workers = 0 }, func(c *Case) { c.Table = "heap" },
	} {
		c := base(1000)
		change(&c)
		if c.validate(512) == nil {
			t.Errorf("%s: no error", c.name())
		}
	}
}

// Frames are what a parser takes for good, and each flow's are its own.
func TestFrames(t *testing.T) {
	keys, err := forwarder.DeriveKeys([]byte("a seed for tests"))
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range Families {
		for kind := range frameKinds {
			m := newMold(family, kind)
			hashes := map[uint64]bool{}
			frame := slices.Clone(m.frame)
			for _, flow := range []uint32{0, 1, 15, 16, 17, 99_999_999, unknownFlows*maxWorkers - 1} {
				for _, unknown := range []bool{false, true} {
					if kind == replyFrame && unknown {
						continue // there are none
					}
					m.write(frame, flow, unknown)
					var meta packet.Meta
					packet.Parse(frame, &keys.Flow, &meta)
					if meta.Reason != packet.None || int(meta.End) != len(frame) || meta.Flags&packet.SYN != 0 != (kind == synFrame) {
						t.Errorf("%s, kind %d, flow %d: parsed as %+v", family, kind, flow, meta)
					}
					if hashes[meta.Hash] {
						t.Errorf("%s, kind %d, flow %d, unknown %v: has the hash of another", family, kind, flow, unknown)
					}
					hashes[meta.Hash] = true
				}
			}
		}
	}
}
