package conntrack

import (
	"testing"
	"time"
)

func TestWordLayout(t *testing.T) {
	for _, c := range []struct {
		fp    uint32
		slot  uint32
		tick  uint16
		state State
		want  Word
	}{
		{0, 0, 0, Probation, 1},
		{1, 0, 0, Probation, 1<<32 | 1},
		{0, 1, 0, Established, 1<<14 | 2},
		{0, 0, 1, Closing, 1<<2 | 3},
		{0xffffffff, MaxSlots - 1, 0xfff, Closing, ^Word(0)},
		{0x89abcdef, 0x2a5a5, 0x9f1, Established, 0x89abcdef<<32 | 0x2a5a5<<14 | 0x9f1<<2 | 2},
	} {
		w := MakeWord(c.fp, c.slot, c.tick, c.state)
		if w != c.want {
			t.Errorf("MakeWord(%#x, %#x, %#x, %v) = %#x, want %#x", c.fp, c.slot, c.tick, c.state, w, c.want)
		}
		if w.Fingerprint() != c.fp || w.Slot() != c.slot || w.Tick() != c.tick || w.State() != c.state {
			t.Errorf("%#x reads as %#x, %#x, %#x, %v", w, w.Fingerprint(), w.Slot(), w.Tick(), w.State())
		}
	}
	// Bits too many must not spill into the neighbouring field.
	if w, want := MakeWord(0, MaxSlots|1, 1<<12|1, Probation), MakeWord(0, 1, 1, Probation); w != want {
		t.Errorf("too large slot and tick give %#x, want %#x", w, want)
	}
}

func TestTick(t *testing.T) {
	const tick = int64(1) << 31
	for _, c := range []struct {
		ns   int64
		want uint16
	}{
		{0, 0}, {tick - 1, 0}, {tick, 1}, {4095 * tick, 4095}, {4096*tick - 1, 4095}, {4096 * tick, 0}, {5000 * tick, 904},
	} {
		if got := Tick(c.ns); got != c.want {
			t.Errorf("Tick(%d) = %d, want %d", c.ns, got, c.want)
		}
	}
}

func TestAge(t *testing.T) {
	for _, c := range []struct{ now, then, want uint16 }{
		{0, 0, 0},
		{1, 0, 1},
		{4095, 0, 0}, // then is 1 ahead of now, over the wrap
		{0, 4095, 1}, // then is 1 behind, over the wrap
		{139, 4095, 140},
		{10, 11, 0},           // another worker's newer clock reading
		{10, 10 + 64, 0},      // as far ahead as is forgiven
		{10, 10 + 65, 4031},   // further is long ago
		{4031, 0, 4031},       // the greatest age
		{100, 4000, 196},      // over the wrap
		{MaxLife, 0, MaxLife}, // the longest life can be told
	} {
		if got := Age(c.now, c.then); got != c.want {
			t.Errorf("Age(%d, %d) = %d, want %d", c.now, c.then, got, c.want)
		}
	}
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		d    time.Duration
		want uint16
	}{
		{-1, 0}, {0, 0}, {1, 1}, {1 << 31, 1}, {1<<31 + 1, 2}, {time.Minute, 28}, {2 * time.Hour, MaxLife}, {1<<63 - 1, MaxLife},
	} {
		if got := Ticks(c.d); got != c.want {
			t.Errorf("Ticks(%v) = %d, want %d", c.d, got, c.want)
		}
	}
}

func TestExpired(t *testing.T) {
	lives := []Life{{Probation: 10, Established: 100, Closing: 5}, {}, {Established: 7}, {0, MaxLife, MaxLife, MaxLife}}
	for _, c := range []struct {
		name string
		slot uint32
		s    State
		age  uint16
		want bool
	}{
		{"probation at its life", 0, Probation, 10, false},
		{"probation beyond", 0, Probation, 11, true},
		{"established at its life", 0, Established, 100, false},
		{"established beyond", 0, Established, 101, true},
		{"closing at its life", 0, Closing, 5, false},
		{"closing beyond", 0, Closing, 6, true},
		{"zero life", 1, Established, 0, true},
		{"empty", 0, Empty, 0, true},
		{"no life in this state", 2, Probation, 0, true},
		{"but in another", 2, Established, 0, false},
		{"slot beyond lives", 4, Established, 0, true},
		{"last slot", MaxSlots - 1, Established, 0, true},
		{"longest life", 3, Established, MaxLife, false},
		{"beyond the longest life, before the next sweep", 3, Established, MaxLife + 559, true},
	} {
		for _, now := range []uint16{0, 5, 2000, 4095} { // ages across the wrap
			w := MakeWord(1, c.slot, now-c.age, c.s)
			if got := expired(w, now, lives); got != c.want {
				t.Errorf("%s, tick %d: expired %v, want %v", c.name, now, got, c.want)
			}
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for s := Empty; s <= Closing; s++ {
		seen[s.String()] = true
	}
	for o := Inserted; o < NumOutcomes; o++ {
		seen[o.String()] = true
	}
	if want := 4 + int(NumOutcomes); len(seen) != want || seen[""] || seen["invalid"] {
		t.Errorf("states and outcomes have %d different names, want %d: %v", len(seen), want, seen)
	}
	if State(4).String() != "invalid" || NumOutcomes.String() != "invalid" {
		t.Error("a value out of range has a name")
	}
}
