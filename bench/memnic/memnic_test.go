//go:build linux

package memnic

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/testenv"
)

// What a case says is what the worker does: by what leaves, and by what is in the flow table afterwards.
func TestForms(t *testing.T) {
	const flows, frames = 1000, 256
	for _, family := range Families {
		etherType, outer := []byte{0x08, 0x00}, 20
		if family == V6 {
			etherType, outer = []byte{0x86, 0xdd}, 40
		}
		vip, backend := vips[family].AsSlice(), backends[family].AsSlice()
		source := func(f []byte, a []byte) bool { // IPv4 at 12, IPv6 at 8
			at := etherLen + outer - 2*len(a)
			return bytes.Equal(f[at:at+len(a)], a)
		}
		destination := func(f []byte) []byte { return f[etherLen+outer-len(vip) : etherLen+outer] }
		protocol := func(f []byte) byte {
			if family == V6 {
				return f[etherLen+6]
			}
			return f[etherLen+9]
		}
		tunnelled := func(f []byte, by byte) bool {
			inner := map[string]byte{V4: 4, V6: 41}[family]
			if by == 0 {
				by = inner
			}
			return protocol(f) == by && bytes.HasPrefix(destination(f), backend[:len(backend)-1])
		}
		answered := func(f []byte) bool { return source(f, vip) && f[etherLen+outer+13] == flagSYN|flagACK }
		looks := map[string]func(f []byte) bool{
			IPIP: func(f []byte) bool { return tunnelled(f, 0) },
			GUE:  func(f []byte) bool { return tunnelled(f, 17) },
			L2:   func(f []byte) bool { return protocol(f) == 6 && bytes.Equal(destination(f), vip) },
			NAT: func(f []byte) bool {
				return protocol(f) == 6 && bytes.HasPrefix(destination(f), backend[:len(backend)-1])
			},
		}
		for _, mode := range Modes {
			for _, mix := range Mixes {
				c := Case{mode, family, mix, flows, 64, 1, Memfd}
				if mix == Replies && mode != NAT {
					continue
				}
				n, err := newNode(c.node(), []Case{c}, frames)
				if err != nil {
					t.Fatal(err)
				}
				if err := n.apply(c.setting()); err != nil {
					t.Fatal(err)
				}
				l := n.lanes[0]
				if c.floods() {
					l = n.floods[0]
				}
				right := looks[mode]
				switch mix {
				case Cookie, Challenge:
					right = answered
				case Replies:
					right = func(f []byte) bool { return source(f, vip) }
				}
				before := inUse(n)
				for range 5 {
					l.write(mix)
					l.deliver(c.Batch)
					received, sent, good := l.forward(), 0, 0
					l.nic.Collect(0, func(f []byte) {
						sent++
						if bytes.Equal(f[12:14], etherType) && right(f) {
							good++
						}
					})
					if received != frames/burstShare || sent != received || good != sent {
						t.Errorf("%s: of %d frames %d were received, %d sent, %d of them as the case says", c.name(), frames/burstShare, received, sent, good)
					}
					born := inUse(n) - before
					if grows := mix == New || mix == New10; grows != (born > 0) && mix != Evict || grows && born > len(l.born) {
						t.Errorf("%s: %d flows were to get a word, %d did", c.name(), len(l.born), born)
					}
					if mix != Evict {
						l.forget()
					}
				}
				if after := inUse(n); mix != Evict && after != before {
					t.Errorf("%s: %d words in use before, %d after", c.name(), before, after)
				} else if mix == Evict && after < len(n.words)*9/10 {
					t.Errorf("%s: %d of %d words in use: the table is not full", c.name(), after, len(n.words))
				}
				if err := n.close(); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func inUse(n *node) (used int) {
	for _, w := range n.words {
		if w != 0 {
			used++
		}
	}
	return used
}

// A short run of everything: values are there, no packet costs an allocation, and more work takes longer.
func TestMeasure(t *testing.T) {
	cases := usual(1000)
	for _, change := range []func(*Case){func(c *Case) { c.Batch = 1 }, func(c *Case) { c.Workers = 2 }} {
		c := base(1000)
		change(&c)
		cases = append(cases, c)
	}
	m, err := Measure(t.Context(), Options{Cases: complete(cases), Duration: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	tables := m.Tables()
	if len(tables) != 1 || tables[0].Name != "worker" {
		t.Fatalf("tables: %+v", tables)
	}
	for i := range tables[0].Rows {
		row := &tables[0].Rows[i]
		if row.Missing != "" {
			continue // a machine with one CPU
		}
		if len(row.Rounds) == 0 || slices.Min(row.Rounds) <= 0 || row.Extra["allocs_per_packet"] > 0.001 {
			t.Errorf("%s: rounds %v, extra %v", row.Key(), row.Rounds, row.Extra)
		}
	}
	ratio := func(key string) float64 {
		row := tables[0].Find(key)
		if row == nil {
			t.Fatalf("no row %s", key)
		}
		r, ok := tables[0].Ratio(row)
		if !ok {
			t.Fatalf("%s has no ratio", key)
		}
		return r.Median
	}
	if hits, fresh := ratio("ipip/v4/hits/1000/64/1"), ratio("ipip/v4/new/1000/64/1"); hits <= 1 || fresh <= hits {
		t.Errorf("hits take %.2f times as long as a swap, new flows %.2f", hits, fresh)
	}
	results := m.Results()
	if len(results) != len(tables[0].Rows) {
		t.Errorf("%d results of %d rows", len(results), len(tables[0].Rows))
	}
	for _, r := range results {
		if r.Missing == "" && (r.NanosPerPacket <= 0 || r.Mpps <= 0 || r.Mix == New && r.FlowsPerSecond <= 0) {
			t.Errorf("result %+v", r)
		}
	}
}

func TestMeasureScaling(t *testing.T) {
	s, err := MeasureScaling(t.Context(), 1000, 2, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	table := s.Table()
	if s.Missing == "" && (s.One <= 0 || s.All <= 0 || s.Ratio <= 0 || len(table.Rows[1].Rounds) != len(table.Rows[0].Rounds)) {
		t.Errorf("scaling %+v", s)
	}
	if _, ok := table.Ratio(&table.Rows[1]); ok != (s.Missing == "") {
		t.Errorf("table %+v", table)
	}
}

// What the machine cannot do is a row that says so; what cannot be meant is an error.
func TestMeasureRefuses(t *testing.T) {
	huge, small := base(1<<34), base(1000)
	m, err := Measure(t.Context(), Options{Cases: []Case{small, huge}})
	if err != nil {
		t.Fatal(err)
	}
	if m.runs[0].missing != "" || m.runs[1].missing == "" {
		t.Errorf("missing: %q, %q", m.runs[0].missing, m.runs[1].missing)
	}
	for name, o := range map[string]Options{
		"no cases": {}, "frames": {Cases: []Case{small}, Frames: 1000}, "all refused": {Cases: []Case{huge}},
	} {
		if _, err := Measure(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Measure(ctx, Options{Cases: []Case{small}}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestTableOnArrayMap(t *testing.T) {
	testenv.RequireRoot(t)
	m, err := Measure(t.Context(), Options{Cases: Usual([]int{1000}, BPF)})
	if err != nil {
		t.Fatal(err)
	}
	tables := m.Tables()
	if len(tables) != 1 || tables[0].Name != "worker-bpf" {
		t.Fatalf("tables: %+v", tables)
	}
	if row := tables[0].Find("ipip/v4/hits/1000/64/1"); row == nil || len(row.Rounds) == 0 || row.Reference == "" {
		t.Errorf("row %+v", row)
	}
}
