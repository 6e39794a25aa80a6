package conntrack

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"testing"
)

// The table as a map from flow to slot: what callers saw, and whether the package documentation allows it.
//
// A history is the calls for one flow by workers that make one call at a time, each with a stamp taken before it and one
// after it from a common counter. In a history every slot is written by one call at most, so a slot says whose it is.
// The check looks for an order of what the calls did, each within its call's stamps, in which the flow's words explain
// every result. A Lookup, Replace, Refresh or Remove, and an Insert that leaves the word it finds, do what they do at one
// moment. An Insert that finds no word does more: it writes one, and until it returns it takes away words that are too
// many. So a flow has more than one word only while inserts that began before either was written are under way.

// callKind says which method a call was of.
type callKind uint8

const (
	lookup callKind = iota
	insert
	replace
	remove
	refresh // with closing
)

// call is one call with its result.
type call struct {
	kind       callKind
	worker     int
	begin, end uint32 // stamps
	word       Word   // lookup: what it found, or 0; replace, remove, refresh: the word that they were given
	slot       uint32 // insert, replace: the slot to write; not 0
	told       Outcome
	ok         bool // what Replace reported
}

func (c *call) String() string {
	s := fmt.Sprintf("%4d–%4d worker %d ", c.begin, c.end, c.worker)
	word := fmt.Sprintf("%d %v", c.word.Slot(), c.word.State())
	switch c.kind {
	case lookup:
		if c.word == 0 {
			return s + "lookup: none"
		}
		return s + "lookup: " + word
	case insert:
		return s + fmt.Sprintf("insert %d: %v", c.slot, c.told)
	case replace:
		return s + fmt.Sprintf("replace %s by %d: %v", word, c.slot, c.ok)
	case remove:
		return s + "remove " + word
	}
	return s + "refresh " + word
}

const (
	maxWorkers = 4
	maxWords   = 8 // that a flow has at once: one, and one for every insert under way
)

// allowance is what a check tolerates, in bits, of what happens too seldom to matter: a packet or a flow goes by hash, as
// after an eviction.
type allowance uint8

const (
	// A search during which one insert displaces another's word may miss both: it looks where the new word goes before
	// that is written, and where the old one was after that is taken away.
	missed allowance = 1 << iota
	// The word that an insert has seen and keeps is removed before the insert takes the others away, which are lost then.
	lost

	strict allowance = 0
)

// config is what the model knows at one moment: the flow's words and how far each worker's call has come.
type config struct {
	words [maxWords]uint32 // slot and closing bit (see value); 0 is free
	calls [maxWorkers]progress
}

type phase uint8

const (
	begun     phase = iota
	searching       // has begun to look through the lines
	wrote           // an insert that has put its word, and takes others away
	done
)

// progress is how far one call has come. Sets of words are bits by their index in config.words.
type progress struct {
	phase  phase
	own    uint8 // the word that an insert wrote, empty once that is gone
	stayed uint8 // words that have been there ever since the phase began
	other  bool  // since an insert wrote its word, there has been another one
	bereft bool  // … and Remove has taken one away
}

// value is a word as the model keeps it.
func value(w Word) uint32 {
	v := w.Slot() << 1
	if w.State() == Closing {
		v |= 1
	}
	return v
}

// used is the set of words that are there.
func (s *config) used() (set uint8) {
	for i, v := range s.words {
		if v != 0 {
			set |= 1 << i
		}
	}
	return set
}

// where returns the index of the word with this slot, or −1.
func (s *config) where(slot uint32) int {
	return slices.IndexFunc(s.words[:], func(v uint32) bool { return v != 0 && v>>1 == slot })
}

func (s *config) take(i int) {
	s.words[i] = 0
	for k := range s.calls {
		s.calls[k].own &^= 1 << i
		s.calls[k].stayed &^= 1 << i
	}
}

func (s *config) write(worker int, slot uint32) {
	before := s.used()
	i := bits.TrailingZeros8(^before)
	s.words[i] = slot << 1
	for k := range s.calls {
		s.calls[k].other = s.calls[k].other || s.calls[k].phase == wrote
	}
	s.calls[worker] = progress{phase: wrote, own: 1 << i, stayed: before | 1<<i, other: before != 0}
}

func (s *config) finish(worker int) { s.calls[worker] = progress{phase: done} }

// moves appends to next what may come of s by one step of c, a worker's call under way.
func (s *config) moves(c *call, allow allowance, next []config) []config {
	at := s.calls[c.worker]
	used := s.used()
	// then appends s as changed by the step.
	then := func(step func(*config)) {
		next = append(next, *s)
		step(&next[len(next)-1])
	}
	finish := func(n *config) { n.finish(c.worker) }
	search := func(n *config) { n.calls[c.worker] = progress{phase: searching, stayed: used} }
	switch c.kind {
	case lookup:
		switch {
		case c.word != 0:
			if slices.Contains(s.words[:], value(c.word)) {
				then(finish)
			}
		case at.phase == begun && used == 0, at.phase == searching && at.stayed == 0:
			then(finish)
		case at.phase == begun && allow&missed != 0:
			then(search)
		}
	case replace:
		i := slices.Index(s.words[:], value(c.word))
		if (i >= 0) == c.ok {
			then(func(n *config) {
				if c.ok {
					n.words[i] = c.slot << 1
				}
				finish(n)
			})
		}
	case refresh:
		then(func(n *config) {
			if i := n.where(c.word.Slot()); i >= 0 {
				n.words[i] |= 1
			}
			finish(n)
		})
	case remove:
		then(func(n *config) {
			if i := n.where(c.word.Slot()); i >= 0 {
				n.take(i)
				for k := range n.calls {
					n.calls[k].bereft = n.calls[k].bereft || n.calls[k].phase == wrote
				}
			}
			finish(n)
		})
	case insert:
		switch at.phase {
		case begun:
			if c.told == Present && used != 0 {
				then(finish)
			}
			if used == 0 || allow&missed != 0 {
				then(search)
			}
		case searching:
			if at.stayed == 0 {
				then(func(n *config) { n.write(c.worker, c.slot) })
			}
		case wrote:
			// Of the words that have been there all the time one is left at most, and it is the insert's own if and only if
			// the insert says so.
			kept := at.stayed == 0 || at.stayed == at.own
			gaveWay := at.own == 0 && at.other && bits.OnesCount8(at.stayed) <= 1
			if c.told == Inserted && kept || c.told == Present && gaveWay {
				then(finish)
			}
			for left := used; left != 0; left &= left - 1 {
				i := bits.TrailingZeros8(left)
				alone := used == 1<<i
				if alone && !(at.bereft && allow&lost != 0) || at.own == 1<<i && c.told != Present {
					continue
				}
				then(func(n *config) { n.take(i) })
			}
		}
	}
	return next
}

// checker looks for an explanation of histories. It is used by one goroutine; the zero checker is ready.
type checker struct {
	allow    allowance
	stamps   []*call // what began or ended at each, if anything did
	events   []event // the same in a row
	failed   map[node]bool
	furthest int // how many events could be explained
}

// event is the begin or the end of a call.
type event struct {
	call  *call
	ended bool
	open  [maxWorkers]*call // under way after a begin, before an end
}

// node is a point of the search: so many events are behind, and this is the case.
type node struct {
	event int
	config
}

// check reports whether there is an explanation of the history, in which no stamp comes twice.
func (c *checker) check(history []call, allow allowance) bool {
	last := uint32(0)
	for i := range history {
		last = max(last, history[i].end)
	}
	c.stamps = slices.Grow(c.stamps[:0], int(last)+1)[:last+1]
	clear(c.stamps)
	for i := range history {
		c.stamps[history[i].begin] = &history[i]
		c.stamps[history[i].end] = &history[i]
	}
	c.events = c.events[:0]
	var open [maxWorkers]*call
	for stamp, h := range c.stamps {
		if h == nil {
			continue
		}
		open[h.worker] = h
		c.events = append(c.events, event{call: h, ended: int(h.end) == stamp, open: open})
		if int(h.end) == stamp {
			open[h.worker] = nil
		}
	}
	c.allow, c.furthest = allow, 0
	if len(c.failed) > 0 || c.failed == nil {
		c.failed = map[node]bool{}
	}
	return c.explain(0, config{})
}

// explain reports whether the events from n on can come of s. A call does nothing before some call's end asks for it:
// first the one that ends may move, then the others, and a node from which all fails is remembered.
func (c *checker) explain(n int, s config) bool {
	for ; ; n++ {
		if n == len(c.events) {
			return true
		}
		e := &c.events[n]
		if e.ended && s.calls[e.call.worker].phase != done {
			break
		}
		s.calls[e.call.worker] = progress{}
	}
	c.furthest = max(c.furthest, n)
	key := node{n, s}
	if c.failed[key] {
		return false
	}
	var room [maxWords + 2]config
	first := c.events[n].call.worker
	for k := range maxWorkers {
		worker := (first + k) % maxWorkers
		call := c.events[n].open[worker]
		if call == nil || s.calls[worker].phase == done {
			continue
		}
		for _, next := range s.moves(call, c.allow, room[:0]) {
			if c.explain(n, next) {
				return true
			}
		}
	}
	c.failed[key] = true
	return false
}

// text is the checked history up to where no explanation goes on, the last calls of it at most, in the order in which
// they began.
func (c *checker) text(most int) string {
	stuck := c.events[min(c.furthest, len(c.events)-1)].call
	var lines []string
	for _, e := range c.events {
		if !e.ended && e.call.begin <= stuck.end {
			lines = append(lines, e.call.String())
		}
	}
	lines = append(lines[max(0, len(lines)-most):], "not explained: "+stuck.String())
	return strings.Join(lines, "\n")
}

// The checker tells good histories from bad ones, and says what each of the allowances is needed for.
func TestHistories(t *testing.T) {
	const never = missed | lost | 1<<7
	word := func(slot uint32) Word { return MakeWord(1, slot, testNow, Established) }
	closing := func(slot uint32) Word { return MakeWord(1, slot, testNow, Closing) }
	found := func(w Word) call { return call{kind: lookup, word: w} }
	none := call{kind: lookup}
	ins := func(slot uint32, told Outcome) call { return call{kind: insert, slot: slot, told: told} }
	rep := func(old Word, slot uint32, ok bool) call { return call{kind: replace, word: old, slot: slot, ok: ok} }
	rem := func(slot uint32) call { return call{kind: remove, word: word(slot)} }
	closes := func(slot uint32) call { return call{kind: refresh, word: word(slot)} }
	// by gives the call a worker and stamps.
	by := func(worker int, begin, end uint32, c call) call {
		c.worker, c.begin, c.end = worker, begin, end
		return c
	}
	// alone is one call after another.
	alone := func(calls ...call) []call {
		for i := range calls {
			calls[i] = by(i%maxWorkers, uint32(2*i), uint32(2*i+1), calls[i])
		}
		return calls
	}
	tests := []struct {
		name    string
		needs   allowance // strict: good as it is; never: bad
		history []call
	}{
		{"one after another", strict, alone(none, ins(1, Inserted), found(word(1)), ins(2, Present), closes(1), found(closing(1)),
			rep(word(1), 3, false), rep(closing(1), 4, true), found(word(4)), rem(1), found(word(4)), rem(4), none, ins(5, Inserted))},
		{"lost word", never, alone(ins(1, Inserted), none)},
		{"lost word, found before", never, alone(ins(1, Inserted), found(word(1)), none)},
		{"lost by replace", never, alone(ins(1, Inserted), rep(word(1), 2, true), none)},
		{"torn slot", never, alone(ins(1, Inserted), found(word(3)))},
		{"torn state", never, alone(ins(1, Inserted), found(closing(1)))},
		{"both inserted without overlap", never, alone(ins(1, Inserted), ins(2, Inserted))},
		{"present without a word", never, alone(ins(1, Present))},
		{"replaced without reason", never, alone(ins(1, Inserted), ins(2, Present), found(word(2)))},
		{"not removed", never, alone(ins(1, Inserted), rem(1), found(word(1)))},
		{"back after it was removed", never, alone(ins(1, Inserted), rem(1), ins(2, Inserted), found(word(1)))},
		{"another's word removed", never, alone(ins(1, Inserted), rep(word(1), 2, true), rem(1), none)},
		{"replace of a word that was not there any more", never, alone(ins(1, Inserted), closes(1), rep(word(1), 2, true))},
		{"replace refused for nothing", never, alone(ins(1, Inserted), rep(word(1), 2, false))},
		{"refresh lost", never, alone(ins(1, Inserted), closes(1), found(word(1)))},
		{"refused with room", never, alone(ins(1, Refused))},

		{"lookup while the insert is under way", strict, []call{by(0, 0, 5, ins(1, Inserted)), by(1, 1, 2, none), by(1, 3, 4, found(word(1)))}},
		{"there and not any more", never, []call{by(0, 0, 5, ins(1, Inserted)), by(1, 1, 2, found(word(1))), by(1, 3, 4, none)}},
		{"the word of an insert that gave way is seen", strict, []call{by(0, 0, 3, ins(1, Inserted)), by(1, 1, 6, ins(2, Present)),
			by(2, 4, 5, found(word(2))), by(2, 7, 8, found(word(1)))}},
		{"… after it gave way", never, []call{by(0, 0, 3, ins(1, Inserted)), by(1, 1, 6, ins(2, Present)), by(2, 7, 8, found(word(2)))}},
		{"… of one that began when a word was there", never, []call{by(0, 0, 1, ins(1, Inserted)), by(1, 2, 5, ins(2, Present)),
			by(2, 3, 4, found(word(2)))}},
		{"displaced", strict, []call{by(0, 0, 2, ins(1, Inserted)), by(1, 1, 5, ins(2, Inserted)), by(2, 3, 4, found(word(1))),
			by(2, 6, 7, found(word(2)))}},
		{"displaced, and back", never, []call{by(0, 0, 2, ins(1, Inserted)), by(1, 1, 5, ins(2, Inserted)), by(2, 3, 4, found(word(1))),
			by(2, 6, 7, found(word(2))), by(2, 8, 9, found(word(1)))}},
		{"displaced by one that missed both", missed, []call{by(0, 0, 2, ins(1, Inserted)), by(1, 1, 4, ins(2, Inserted)), by(2, 3, 5, ins(3, Inserted)),
			by(3, 6, 7, found(word(3)))}},
		{"both stay", never, []call{by(0, 0, 2, ins(1, Inserted)), by(1, 1, 3, ins(2, Inserted)), by(2, 4, 5, found(word(1))),
			by(2, 6, 7, rem(1)), by(2, 8, 9, found(word(2)))}},
		{"both give way", never, []call{by(0, 0, 2, ins(1, Present)), by(1, 1, 3, ins(2, Present))}},
		{"both take the other away", never, []call{by(0, 0, 2, ins(1, Inserted)), by(1, 1, 3, ins(2, Inserted)), by(2, 4, 5, none)}},
		{"replace lost with a passing word", strict, []call{by(0, 0, 2, ins(1, Inserted)), by(1, 1, 7, ins(2, Present)),
			by(2, 3, 4, found(word(2))), by(2, 5, 6, rep(word(2), 3, true)), by(2, 8, 9, found(word(1)))}},
		{"remove lost with a passing word", strict, []call{by(0, 0, 2, ins(1, Inserted)), by(1, 1, 7, ins(2, Present)),
			by(2, 3, 4, found(word(2))), by(2, 5, 6, rem(2)), by(2, 8, 9, found(word(1)))}},
		{"removed before the inserts returned", strict, []call{by(0, 0, 5, ins(1, Inserted)), by(1, 1, 2, found(word(1))),
			by(1, 3, 4, rem(1)), by(1, 6, 7, none)}},
		{"neither word seen", missed, []call{by(0, 0, 2, ins(1, Inserted)), by(1, 1, 5, ins(2, Inserted)), by(2, 3, 4, none),
			by(2, 6, 7, found(word(2)))}},
		{"neither word seen, none being displaced", never, []call{by(0, 0, 2, ins(1, Inserted)), by(1, 1, 5, ins(2, Inserted)), by(2, 3, 4, none),
			by(2, 6, 7, found(word(1)))}},
		{"lost with the word that was kept", lost, []call{by(0, 0, 9, ins(1, Inserted)), by(1, 1, 2, found(word(1))), by(1, 3, 4, rem(1)),
			by(1, 5, 6, ins(2, Inserted)), by(1, 10, 11, none)}},
		{"lost without a remove", never, []call{by(0, 0, 9, ins(1, Inserted)), by(1, 1, 2, found(word(1))),
			by(1, 5, 6, ins(2, Present)), by(1, 10, 11, none)}},
	}
	var c checker
	for _, test := range tests {
		for _, allow := range []allowance{strict, missed, lost, missed | lost} {
			if got, want := c.check(test.history, allow), test.needs&^allow == 0; got != want {
				t.Errorf("%s, allowed %b: explained %v, want %v\n%s", test.name, allow, got, want, c.text(len(test.history)))
			}
		}
	}
}
