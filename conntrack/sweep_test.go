package conntrack

import (
	"reflect"
	"slices"
	"testing"
)

// A sweep in parts removes exactly what has expired and counts exactly what remains.
func TestSweep(t *testing.T) {
	lives := []Life{{0, 10, 100, 5}, {0, 20, 200, 50}, {}}
	const now, lines = 50, 128
	table := newTable(t, lines*lineWords)
	var want Census
	want.Slots = make([]SlotCensus, len(lives))
	kept := map[int]Word{}
	for i := range table.words {
		r := hashOf(uint64(i))
		if r%5 == 0 {
			want.States[Empty]++
			continue
		}
		w := MakeWord(uint32(r>>32), uint32(r>>8%4), uint16(r>>16), State(1+r>>24%3)) // slot 3 is beyond lives
		table.words[i] = uint64(w)
		if expired(w, now, lives) {
			want.Expired++
			want.States[Empty]++
			continue
		}
		kept[i] = w
		age := Age(now, w.Tick())
		want.States[w.State()]++
		want.Ages[AgeClass(age)]++
		slot := &want.Slots[w.Slot()]
		slot.States[w.State()]++
		slot.Ages[AgeClass(age)]++
		slot.Oldest = max(slot.Oldest, age)
	}
	if want.Expired == 0 || len(kept) == 0 || want.Slots[1].Flows() == 0 {
		t.Fatalf("nothing to test: %+v", want)
	}

	// Who only looks finds the same, and leaves everything as it is.
	before := slices.Clone(table.words)
	seen := Census{Slots: make([]SlotCensus, len(lives))}
	if next := table.Walk(0, lines, now, lives, &seen); next != 0 || !reflect.DeepEqual(seen, want) || !slices.Equal(table.words, before) {
		t.Errorf("walk: next %d, %+v, want %+v", next, seen, want)
	}

	got := Census{Slots: make([]SlotCensus, len(lives))}
	calls, line := 0, 0
	for {
		line = table.Sweep(line, 50, now, lives, &got)
		calls++
		if line == 0 {
			break
		}
		if line != calls*50 {
			t.Fatalf("call %d: go on at %d", calls, line)
		}
	}
	if calls != 3 {
		t.Errorf("%d calls for %d lines by 50", calls, lines)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("census %+v, want %+v", got, want)
	}
	for i, v := range table.words {
		if Word(v) != kept[i] {
			t.Errorf("word %d is %#x, want %#x", i, v, kept[i])
		}
	}

	// A census with fewer slots than the table names counts those it has.
	short := Census{Slots: make([]SlotCensus, 1)}
	table.Sweep(0, lines, now, lives, &short)
	if short.Slots[0] != want.Slots[0] || short.States != want.States || short.Expired != 0 {
		t.Errorf("second sweep: %+v, want the slot %+v and states %v", short, want.Slots[0], want.States)
	}
}

// A word written once and never again is gone before its age looks small again, if sweeps keep their time.
func TestSweepBeforeTicksWrap(t *testing.T) {
	lives := []Life{{0, MaxLife, MaxLife, MaxLife}}
	const every = 558 // ticks: 20 minutes
	for start := range 4096 {
		table := newTable(t, 16)
		table.Insert(1, 0, uint16(start), Established, lives)
		var c Census
		for since := every; ; since += every {
			c = Census{}
			table.Sweep(0, 2, uint16(start+since), lives, &c)
			if since <= MaxLife && c.Expired != 0 {
				t.Fatalf("start %d: removed after %d ticks", start, since)
			}
			if since > MaxLife {
				break
			}
		}
		if c.Expired != 1 {
			t.Fatalf("start %d: outlived its life: %+v", start, c)
		}
	}
}
