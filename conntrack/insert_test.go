package conntrack

import (
	"fmt"
	"testing"
)

// testHash is a flow whose two lines are 0 and alt in the tables of these tests.
const testHash = 0x1234_5678_0000_0000

// Lives of the slots in these tests: 0 is in use, 1 is out of use.
var testLives = []Life{{Probation: 30, Established: 3000, Closing: 20}, {}}

// word returns a word of slot 0 of the given age at testNow, with a fingerprint that is not testHash's.
func word(s State, age uint16) Word { return MakeWord(0x100, 0, testNow-age, s) }

const testNow = 1000

func TestInsertPlace(t *testing.T) {
	active := func(n int) []Word { return repeat(n, word(Established, 0)) }
	for _, c := range []struct {
		home, alt int // words in the lines before
		wantHome  bool
	}{
		{0, 0, true}, {5, 0, true}, {5, 8, true}, // fewer than six at home
		{6, 0, false}, {6, 5, false}, {7, 6, false}, {8, 0, false}, {8, 7, false}, // the alternate is emptier
		{6, 6, true}, {7, 7, true}, // as full: home
		{6, 7, true}, {7, 8, true}, {6, 8, true}, // home is emptier
	} {
		table := newTable(t, 64)
		alt := table.alternate(0, testHash>>32)
		table.fill(0, active(c.home)...)
		table.fill(alt, active(c.alt)...)
		if o := table.Insert(testHash, 0, testNow, Probation, testLives); o != Inserted {
			t.Errorf("%d and %d: %v", c.home, c.alt, o)
		}
		i, w := table.Lookup(testHash)
		if want := MakeWord(testHash>>32, 0, testNow, Probation); w != want {
			t.Errorf("%d and %d: word %#x, want %#x", c.home, c.alt, w, want)
		}
		if home := i < lineWords; home != c.wantHome {
			t.Errorf("%d and %d: went to index %d", c.home, c.alt, i)
		}
		if table.used() != c.home+c.alt+1 {
			t.Errorf("%d and %d: now %d words", c.home, c.alt, table.used())
		}
	}
}

// A word goes where a look-up begins, or as near after it as is free.
func TestInsertPrefersThePlaceOfTheFirstLook(t *testing.T) {
	for p := range uint64(lineWords) {
		hash := uint64(testHash) + p<<32
		for taken := range uint64(homeFill) {
			table := newTable(t, 64)
			for i := range taken {
				table.words[(p+i)%lineWords] = uint64(word(Established, 0))
			}
			table.Insert(hash, 0, testNow, Probation, testLives)
			if i, _ := table.Lookup(hash); uint64(i) != (p+taken)%lineWords {
				t.Errorf("preferred %d, %d taken from there on: at %d", p, taken, i)
			}
		}
	}
}

func TestInsertOfAKnownFingerprint(t *testing.T) {
	for _, c := range []struct {
		name string
		old  Word
		want Outcome
	}{
		{"live on probation", MakeWord(testHash>>32, 0, testNow-30, Probation), Present},
		{"live established", MakeWord(testHash>>32, 0, testNow, Established), Present},
		{"live closing", MakeWord(testHash>>32, 0, testNow-20, Closing), Present},
		{"expired", MakeWord(testHash>>32, 0, testNow-31, Probation), Replaced},
		{"of a slot out of use", MakeWord(testHash>>32, 1, testNow, Established), Replaced},
	} {
		for place := range uint64(2 * lineWords) {
			table := newTable(t, 64)
			at := place
			if place >= lineWords {
				at = table.alternate(0, testHash>>32) + place - lineWords
			}
			table.words[at] = uint64(c.old)
			if o := table.Insert(testHash, 0, testNow, Probation, testLives); o != c.want {
				t.Errorf("%s at %d: %v, want %v", c.name, at, o, c.want)
			}
			want := c.old
			if c.want == Replaced {
				want = MakeWord(testHash>>32, 0, testNow, Probation)
			}
			if Word(table.words[at]) != want || table.used() != 1 {
				t.Errorf("%s at %d: word %#x of %d, want %#x alone", c.name, at, table.words[at], table.used(), want)
			}
		}
	}
}

// The order of victims, each row with both lines full. The victim is put at every place of both lines in turn.
func TestVictims(t *testing.T) {
	for _, c := range []struct {
		name   string
		others []Word // fill the lines, repeated; none may be taken
		victim Word   // one word among them; 0 if nothing may be taken
		want   Outcome
	}{
		{"expired before all else",
			[]Word{word(Closing, 20), word(Probation, 30), word(Established, 3000)}, word(Established, 3001), EvictedExpired},
		{"a slot out of use is expired, however fresh",
			[]Word{word(Closing, 20), word(Probation, 30), word(Established, 3000)}, MakeWord(9, 1, testNow, Established), EvictedExpired},
		{"a slot beyond the lives is expired too",
			[]Word{word(Closing, 20), word(Probation, 30)}, MakeWord(9, 2, testNow, Established), EvictedExpired},
		{"of the expired the longest idle", []Word{word(Closing, 21), word(Probation, 31)}, word(Probation, 32), EvictedExpired},
		{"closing for 2 ticks before probation", []Word{word(Probation, 30), word(Established, 3000)}, word(Closing, 2), EvictedClosing},
		{"of the closing the longest idle", []Word{word(Closing, 2), word(Closing, 3)}, word(Closing, 4), EvictedClosing},
		{"closing for 1 tick is spared", []Word{word(Closing, 1), word(Closing, 0)}, word(Probation, 0), EvictedProbation},
		{"the oldest on probation", []Word{word(Probation, 0), word(Probation, 1), word(Established, 3000)}, word(Probation, 2), EvictedProbation},
		{"fresh on probation before idle established", []Word{word(Established, 3000)}, word(Probation, 0), EvictedProbation},
		{"a probation word ahead of our clock", []Word{word(Established, 3000)}, word(Probation, 0xffff), EvictedProbation},
		{"the longest idle established", []Word{word(Established, 141), word(Established, 0), word(Closing, 1)}, word(Established, 142), EvictedIdle},
		{"established idle for more than 140 ticks", []Word{word(Established, 140), word(Closing, 1)}, word(Established, 141), EvictedIdle},
		{"established for 140 ticks is spared", []Word{word(Established, 140), word(Established, 0)}, 0, Refused},
		{"all active", []Word{word(Established, 0), word(Closing, 0), word(Closing, 1)}, 0, Refused},
		{"established ahead of our clock", []Word{word(Established, 0xffff)}, 0, Refused},
	} {
		for place := range 2 * lineWords {
			table := newTable(t, 64)
			alt := table.alternate(0, testHash>>32)
			// Only ages count: the same happens at other times, with ticks that wrap in between.
			now := uint16(testNow+place*300) & tickMask
			at := func(w Word) Word {
				return MakeWord(w.Fingerprint(), w.Slot(), w.Tick()+now-testNow, w.State())
			}
			var before [2 * lineWords]Word
			for i := range before {
				before[i] = at(c.others[i%len(c.others)]) + Word(i)<<32
			}
			if c.victim != 0 {
				before[place] = at(c.victim)
			}
			table.fill(0, before[:lineWords]...)
			table.fill(alt, before[lineWords:]...)

			if o := table.Insert(testHash, 0, now, Probation, testLives); o != c.want {
				t.Fatalf("%s, at %d: %v, want %v", c.name, place, o, c.want)
			}
			if c.victim != 0 {
				before[place] = MakeWord(testHash>>32, 0, now, Probation)
			}
			for i, want := range before {
				k := uint64(i)
				if i >= lineWords {
					k = alt + k - lineWords
				}
				if Word(table.words[k]) != want {
					t.Fatalf("%s, at %d: word %d is %#x, want %#x", c.name, place, i, table.words[k], want)
				}
			}
		}
	}
}

// Two words of one flow, wherever they lie, become the one with the lower index, whoever tidies up first.
func TestSettleLeavesTheLowest(t *testing.T) {
	for _, hash := range []uint64{testHash, testHash + 5} { // home is the lower line, and the higher
		table := newTable(t, 64)
		home := table.home(hash)
		alt := table.alternate(home, hash>>32)
		var places []uint64
		for i := range uint64(lineWords) {
			places = append(places, min(home, alt)+i)
		}
		for i := range uint64(lineWords) {
			places = append(places, max(home, alt)+i)
		}
		for i, low := range places {
			for k, high := range places[i+1:] {
				clear(table.words)
				stays := MakeWord(uint32(hash>>32), 1, 0, Probation)
				table.words[low] = uint64(stays)
				table.words[high] = uint64(MakeWord(uint32(hash>>32), 2, 0, Probation))
				if k+i+2 < len(places) {
					table.words[places[len(places)-1]] = uint64(MakeWord(uint32(hash>>32), 3, 0, Probation))
				}
				for range 2 { // both workers
					if kept, found := table.settle(home, alt, hash>>32); !found || kept != low {
						t.Fatalf("%d and %d: kept %d, %v", low, high, kept, found)
					}
				}
				if at := table.holders(hash); len(at) != 1 || Word(table.words[low]) != stays {
					t.Fatalf("%d and %d: words at %v", low, high, at)
				}
			}
		}
	}
	table := newTable(t, 64)
	if kept, found := table.settle(0, 8, 1); found {
		t.Errorf("kept %d of nothing", kept)
	}
}

// An insert tidies up: here one that overwrites an expired word at home, while another worker's word is in the alternate
// line.
func TestInsertSettles(t *testing.T) {
	for _, c := range []struct {
		hash uint64
		want Outcome
		slot uint32 // of the word that stays
	}{
		{testHash, Replaced, 0},    // home is the lower line: the word written here stays
		{testHash + 5, Present, 2}, // the alternate is: the other one stays
	} {
		lives := []Life{{0, 30, 30, 30}, {0, 30, 30, 30}, {0, 30, 30, 30}}
		table := newTable(t, 64)
		home := table.home(c.hash)
		alt := table.alternate(home, c.hash>>32)
		table.words[home+4] = uint64(MakeWord(uint32(c.hash>>32), 1, testNow-31, Probation))
		table.words[alt+2] = uint64(MakeWord(uint32(c.hash>>32), 2, testNow, Probation))
		if o := table.Insert(c.hash, 0, testNow, Probation, lives); o != c.want {
			t.Errorf("home %d, alternate %d: %v, want %v", home, alt, o, c.want)
		}
		if _, w := table.Lookup(c.hash); table.used() != 1 || w.Slot() != c.slot {
			t.Errorf("home %d, alternate %d: %d words, slot %d stays, want one of slot %d", home, alt, table.used(), w.Slot(), c.slot)
		}
	}
}

// FuzzTable runs operations on a table of two lines and compares it with a map that knows of evictions what Insert says.
func FuzzTable(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13"))
	f.Add([]byte("\x01\x41\x81\xc1\x02\x42\x82\xc2\x01\x41\x81\xc1"))
	f.Add([]byte("\xc0\xc5\xff\x00\x20\x40\x80\xa0\xe0\x3f\x7f\xbf"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		lives := []Life{{0, 3, 200, 2}, {0, 5, 150, 4}, {}}
		table := newTable(t, 16)
		known := map[uint64]Word{} // what the flow's word may be; absent: none
		tick := uint16(4000)
		for n, op := range ops {
			hash := hashOf(uint64(op & 31))
			slot := uint32(op & 1)
			at, w := table.Lookup(hash)
			want, there := known[hash]
			if there != (w != 0) || w != want {
				t.Fatalf("op %d: flow %d has %#x, want %#x", n, op&31, w, want)
			}
			switch op >> 5 {
			case 0, 1, 2, 3:
				used := table.used()
				o := table.Insert(hash, slot, tick, Probation, lives)
				switch {
				case there && expired(w, tick, lives):
					if o != Replaced {
						t.Fatalf("op %d: %v, want replaced", n, o)
					}
				case there:
					if o != Present {
						t.Fatalf("op %d: %v, want present", n, o)
					}
				case used < 16:
					if o != Inserted || table.used() != used+1 {
						t.Fatalf("op %d: %v with %d words", n, o, used)
					}
				case o < EvictedExpired || o > Refused || table.used() != 16:
					t.Fatalf("op %d: %v with a full table", n, o)
				}
				if o != Present && o != Refused {
					// One word went, unless it was a free one: find out whose.
					for h := range known {
						if _, w := table.Lookup(h); w == 0 {
							delete(known, h)
						}
					}
					known[hash] = MakeWord(uint32(hash>>32), slot, tick, Probation)
				}
				if len(known) != table.used() {
					t.Fatalf("op %d: %d flows have words, but there are %d", n, len(known), table.used())
				}
			case 4, 5:
				if there {
					table.Refresh(at, w, tick, op>>5 == 5)
					known[hash] = Word(table.words[at])
				}
			case 6:
				var c Census
				table.Sweep(0, 2, tick, lives, &c)
				for h, w := range known {
					if expired(w, tick, lives) {
						delete(known, h)
					}
				}
			case 7:
				tick += uint16(op & 31)
			}
			table.checkPlaces(t)
		}
	})
}

func ExampleTable_Insert() {
	words, _ := WordsFor(1000)
	table, _ := New(make([]uint64, words))
	lives := []Life{{Probation: 14, Established: 1400, Closing: 14}}
	const hash = 0x0123456789abcdef
	fmt.Println(table.Insert(hash, 0, 100, Probation, lives))
	index, w := table.Lookup(hash)
	table.Refresh(index, w, 101, false)
	_, w = table.Lookup(hash)
	fmt.Println(w.State(), w.Slot(), w.Tick())
	// Output:
	// inserted
	// established 0 101
}
