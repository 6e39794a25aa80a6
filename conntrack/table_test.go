package conntrack

import (
	"strings"
	"testing"
)

func TestWordsFor(t *testing.T) {
	for _, c := range []struct{ flows, want uint64 }{
		{1, 16}, {8, 16}, {9, 32}, {1000, 2048}, {1024, 2048}, {1025, 4096}, {4_000_000, 1 << 23}, {1 << 22, 1 << 23}, {1 << 34, 1 << 35},
	} {
		got, err := WordsFor(c.flows)
		if err != nil || got != c.want {
			t.Errorf("WordsFor(%d) = %d, %v; want %d", c.flows, got, err, c.want)
		}
	}
	for _, flows := range []uint64{0, 1<<34 + 1, 1 << 63, 1<<64 - 1} {
		if got, err := WordsFor(flows); err == nil {
			t.Errorf("WordsFor(%d) = %d without an error", flows, got)
		}
	}
}

func TestNewRefusesOddSizes(t *testing.T) {
	for _, n := range []int{0, 1, 8, 15, 17, 24, 48, 1000} {
		if _, err := New(make([]uint64, n)); err == nil || !strings.Contains(err.Error(), "power of two") {
			t.Errorf("%d words: error %v", n, err)
		}
	}
	table := newTable(t, 64)
	if table.Lines() != 8 {
		t.Errorf("64 words make %d lines", table.Lines())
	}
}

// The two lines of a flow differ, each is the other's alternate, and over the fingerprints the alternate of a line is
// spread evenly over the others that are an odd step away.
func TestAlternateLine(t *testing.T) {
	for _, words := range []int{16, 64, 1 << 12} {
		table := newTable(t, words)
		counts := make(map[uint64]int)
		const draws = 1 << 16
		for n := range uint64(draws) {
			hash := hashOf(n)
			home := table.home(hash)
			alt := table.alternate(home, hash>>32)
			if alt == home || alt%lineWords != 0 || alt >= uint64(words) {
				t.Fatalf("%d words: line %d has the alternate %d", words, home, alt)
			}
			if back := table.alternate(alt, hash>>32); back != home {
				t.Fatalf("%d words: from %d to %d and back to %d", words, home, alt, back)
			}
			counts[table.alternate(0, n)]++ // fingerprints 0, 1, 2 …
		}
		want := table.Lines() / 2
		if len(counts) != want {
			t.Errorf("%d words: %d alternates of line 0, want %d", words, len(counts), want)
		}
		for line, n := range counts {
			if mean := draws / want; n < mean/2 || n > mean*2 {
				t.Errorf("%d words: line %d is the alternate of %d fingerprints, the mean is %d", words, line, n, mean)
			}
		}
	}
}

func TestLookup(t *testing.T) {
	const hash = 0x8000_0003_0000_0002 // line 2, preferred place 3
	table := newTable(t, 64)
	home := table.home(hash)
	alt := table.alternate(home, hash>>32)
	mine := MakeWord(hash>>32, 7, 1, Probation)
	other := MakeWord(hash>>32, 8, 1, Probation)

	if i, w := table.Lookup(hash); w != 0 || i != 0 {
		t.Errorf("empty table: %d, %#x", i, w)
	}
	for place := range uint64(lineWords) {
		for _, base := range []uint64{home, alt} {
			clear(table.words)
			table.words[base+place] = uint64(mine)
			if i, w := table.Lookup(hash); i != int(base+place) || w != mine {
				t.Errorf("word at %d: found %#x at %d", base+place, w, i)
			}
		}
		// The one at home goes before the one in the alternate line.
		table.words[home+place] = uint64(other)
		if i, w := table.Lookup(hash); i != int(home+place) || w != other {
			t.Errorf("words at home and in the alternate line: found %#x at %d", w, i)
		}
	}
	// Neither other lines nor other fingerprints are found.
	for i := range table.words {
		table.words[i] = uint64(MakeWord(hash>>32^1, 1, 1, Probation))
		if base := uint64(i) / lineWords * lineWords; base != home && base != alt {
			table.words[i] = uint64(mine)
		}
	}
	if i, w := table.Lookup(hash); w != 0 {
		t.Errorf("found %#x at %d", w, i)
	}
}

// An empty word has the bits of fingerprint 0, which a flow may have.
func TestFingerprintZero(t *testing.T) {
	table := newTable(t, 16)
	lives := []Life{{0, 9, 9, 9}}
	const hash = 1
	if _, w := table.Lookup(hash); w != 0 {
		t.Fatalf("found %#x in an empty table", w)
	}
	if o := table.Insert(hash, 0, 0, Probation, lives); o != Inserted {
		t.Fatalf("insert: %v", o)
	}
	if i, w := table.Lookup(hash); w != MakeWord(0, 0, 0, Probation) || i != lineWords {
		t.Fatalf("found %#x at %d", w, i)
	}
}

func TestLookupBatchIsLookup(t *testing.T) {
	const known = 4096
	table := flows(t, known, Established)
	for _, n := range []int{0, 1, 63, 64, 65, 128, 1000} {
		hashes := make([]uint64, n)
		for i := range hashes {
			hashes[i] = hashOf(hashOf(uint64(n+i)) % (2 * known)) // half of them unknown
		}
		index, words := make([]int, n), make([]Word, n)
		for i := range n {
			index[i], words[i] = -1, 1 // leftovers of an earlier batch
		}
		table.Prefetch(hashes)
		table.LookupBatch(hashes, index, words)
		for i, hash := range hashes {
			if at, w := table.Lookup(hash); index[i] != at || words[i] != w {
				t.Fatalf("batch of %d, hash %d: %#x at %d, want %#x at %d", n, i, words[i], index[i], w, at)
			}
		}
	}
}

// TestLookupHome compares all ways to look into home lines: with fingerprints that occur twice, or are 0, beside words that are empty
// or have the same fingerprint at another place.
func TestLookupHome(t *testing.T) {
	table := newTable(t, 4*lineWords)
	table.fill(0, 0, MakeWord(7, 1, 5, Probation), 0, MakeWord(9, 2, 5, Closing), MakeWord(7, 3, 5, Established), 0, MakeWord(0, 4, 5, Established))
	table.fill(8, repeat(lineWords, MakeWord(20, 1, 5, Established))...)
	var hashes []uint64
	for line := range uint64(4) {
		for fp := range uint64(40) {
			hashes = append(hashes, fp<<32|line)
		}
	}
	// All sizes, each from another place on.
	for n, from := 1, 0; n <= together; n, from = n+1, (from+together+1)%(len(hashes)-together) {
		hashes := hashes[from : from+n]
		index, words := make([]int, n), make([]Word, n)
		missing := table.lookupHome(hashes, index, words)
		wanted := uint64(0)
		for i, hash := range hashes {
			at, w := table.find(table.home(hash), hash>>32)
			if w == 0 {
				wanted |= 1 << i
			}
			// Of two words of one flow either will do; they are as good as each other until one of them is removed.
			if (words[i] == 0) != (w == 0) || w != 0 && (words[i].Fingerprint() != w.Fingerprint() || table.words[index[i]] != uint64(words[i]) || index[i]/lineWords != at/lineWords) {
				t.Fatalf("%#x: %#x at %d, want %#x at %d", hash, words[i], index[i], w, at)
			}
		}
		if missing != wanted {
			t.Fatalf("%d hashes from %d on: missing %#x, want %#x", n, from, missing, wanted)
		}
	}
}

// TestScan compares all ways to scan the lines of a flow.
func TestScan(t *testing.T) {
	table, err := New(make([]uint64, 4*lineWords))
	if err != nil {
		t.Fatal(err)
	}
	for pattern := range uint64(1 << lineWords * 3) {
		for i := range table.words {
			table.words[i] = 0
			switch bits := pattern * 2654435761; (bits*bits>>i | bits>>i | pattern>>i) % 4 {
			case 1:
				table.words[i] = uint64(MakeWord(0, 5, 6, Closing))
			case 2:
				table.words[i] = uint64(MakeWord(77, uint32(i), 6, Established))
			case 3:
				table.words[i] = uint64(MakeWord(0x80000001, uint32(i), 6, Probation))
			}
		}
		for _, fp := range []uint64{0, 77, 0x80000001, 5} {
			a, b := pattern%4*lineWords, (pattern+1+pattern/4%3)%4*lineWords
			same, empty := table.scan(a, b, fp)
			if wantSame, wantEmpty := table.scanEach(a, b, fp); same != wantSame || empty != wantEmpty {
				t.Fatalf("%x, lines at %d and %d, fingerprint %d: %016b and %016b, want %016b and %016b",
					table.words, a, b, fp, same, empty, wantSame, wantEmpty)
			}
		}
	}
}

func TestRefresh(t *testing.T) {
	const now = 100
	for _, c := range []struct {
		name    string
		s       State
		tick    uint16
		closing bool
		want    State
		written uint16
	}{
		{"probation in the same tick", Probation, now, false, Probation, now},
		{"probation in a later tick", Probation, now - 1, false, Established, now},
		{"probation over the wrap", Probation, 4090, false, Established, now},
		{"established in the same tick", Established, now, false, Established, now},
		{"established in a later tick", Established, now - 5, false, Established, now},
		{"word newer than the clock reading", Probation, now + 1, false, Probation, now + 1},
		{"FIN on probation, same tick", Probation, now, true, Closing, now},
		{"FIN on probation, later tick", Probation, now - 1, true, Closing, now},
		{"FIN on established", Established, now - 1, true, Closing, now},
		{"FIN on a newer word", Established, now + 1, true, Closing, now + 1},
		{"data on closing", Closing, now - 1, false, Closing, now},
		{"FIN on closing, same tick", Closing, now, true, Closing, now},
		{"FIN on closing, later tick", Closing, now - 1, true, Closing, now},
	} {
		table := newTable(t, 16)
		w := MakeWord(5, 3, c.tick, c.s)
		table.words[9] = uint64(w)
		table.Refresh(9, w, now, c.closing)
		if got, want := Word(table.words[9]), MakeWord(5, 3, c.written, c.want); got != want {
			t.Errorf("%s: %#x, want %#x", c.name, got, want)
		}
	}
}

// A refresh by a reading that another worker has overtaken changes only what is still the same flow's.
func TestRefreshOfAChangedWord(t *testing.T) {
	old := MakeWord(5, 3, 10, Established)
	for _, c := range []struct {
		name      string
		now, want Word
		closing   bool
	}{
		{"refreshed by another, FIN here", MakeWord(5, 3, 20, Established), MakeWord(5, 3, 20, Closing), true},
		{"closed by another, data here", MakeWord(5, 3, 10, Closing), MakeWord(5, 3, 20, Closing), false},
		{"already refreshed", MakeWord(5, 3, 20, Established), MakeWord(5, 3, 20, Established), false},
		{"removed", 0, 0, true},
		{"another flow's", MakeWord(6, 3, 10, Probation), MakeWord(6, 3, 10, Probation), true},
		{"given another slot", MakeWord(5, 4, 10, Probation), MakeWord(5, 4, 10, Probation), true},
	} {
		table := newTable(t, 16)
		table.words[9] = uint64(c.now)
		table.Refresh(9, old, 20, c.closing)
		if got := Word(table.words[9]); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

func TestReplace(t *testing.T) {
	table := newTable(t, 16)
	old := MakeWord(5, 3, 10, Closing)
	table.words[9] = uint64(old)
	if table.Replace(9, MakeWord(5, 3, 11, Closing), 4, 20, Probation) {
		t.Error("replaced a word that had changed")
	}
	if !table.Replace(9, old, 4, 20, Probation) {
		t.Error("did not replace a word that had not changed")
	}
	if got, want := Word(table.words[9]), MakeWord(5, 4, 20, Probation); got != want {
		t.Errorf("%#x, want %#x", got, want)
	}
}

func TestNoAllocations(t *testing.T) {
	const n = 1000
	table := flows(t, n, Established)
	var hashes [batch]uint64
	var index [batch]int
	var words [batch]Word
	c := Census{Slots: make([]SlotCensus, 1)}
	next, tick := uint64(0), uint16(0)
	allocs := testing.AllocsPerRun(100, func() {
		tick++
		for i := range hashes {
			hashes[i] = hashOf(next % (2 * n))
			next++
		}
		table.Prefetch(hashes[:])
		table.LookupBatch(hashes[:], index[:], words[:])
		for i, w := range words {
			if w != 0 {
				table.Refresh(index[i], w, tick, i == 0)
				table.Replace(index[i], w, 0, tick, Probation)
			} else {
				table.Insert(hashes[i], 0, tick, Probation, benchLives)
			}
		}
		table.Sweep(0, table.Lines(), tick, benchLives, &c)
	})
	if allocs != 0 {
		t.Errorf("%v allocations a batch", allocs)
	}
}
