package conntrack

import (
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// stress lets several workers insert, look up, refresh, replace, remove and evict the same flows, ops of these in all, and
// one goroutine expire them, while time passes. A word that names a flow's fingerprint with a slot that no worker gave it
// would be a torn one. Now and then all rest, and the counts of the slots must be right.
// The words must be a small table: the fewer lines, the more workers meet in one.
func stress(t *testing.T, words []uint64, flowCount, ops int) {
	t.Helper()
	const workers, phases = 4, 8
	table, err := New(words)
	if err != nil {
		t.Fatal(err)
	}
	// A flow is given its own slot or, by Replace and by every fourth insert, the next one.
	slotOf := func(hash uint64) uint32 { return uint32(hash>>40) & 0xfffe }
	lives := make([]Life, 1<<16)
	for i := range lives {
		lives[i] = Life{Probation: 6, Established: 200, Closing: 4}
	}
	lives[slotOf(hashOf(0))] = Life{}                 // flow 0's is out of use
	table.Count(make([]atomic.Int32, len(lives)*3/4)) // the slots beyond are not counted
	check := func(hash uint64, at int, w Word) {
		if w == 0 {
			return
		}
		if w.Fingerprint() != uint32(hash>>32) || w.Slot()&^1 != slotOf(hash) || w.State() == Empty {
			t.Errorf("flow %#x has the word %#x", hash, w)
		}
		base := uint64(at) / lineWords * lineWords
		if home := table.home(hash); base != home && base != table.alternate(home, hash>>32) {
			t.Errorf("flow %#x was found at %d", hash, at)
		}
	}

	var tick atomic.Uint32
	tick.Store(4000) // wraps soon
	var outcomes [NumOutcomes]atomic.Int64
	work := func(r *rand.Rand) {
		var hashes [batch]uint64
		var index [batch]int
		var found [batch]Word
		for range ops / (workers * phases * batch) {
			// As workers do: the clock is read once a batch, so others may be ahead.
			now := uint16(tick.Load()) & tickMask
			if r.IntN(3) == 0 {
				tick.Add(1)
			}
			for i := range hashes {
				hashes[i] = hashOf(r.Uint64N(uint64(flowCount)))
			}
			table.Prefetch(hashes[:])
			table.LookupBatch(hashes[:], index[:], found[:])
			for i, w := range found {
				hash := hashes[i]
				check(hash, index[i], w)
				switch dice := r.IntN(16); {
				case w == 0 || expired(w, now, lives):
					s := State(1 + dice&1)
					o := table.Insert(hash, slotOf(hash)+uint32(dice>>1&dice>>2&1), now, s, lives)
					outcomes[o].Add(1)
				case dice == 0:
					table.Replace(index[i], w, slotOf(hash)+1, now, Probation)
				case dice == 1:
					table.Refresh(index[i], w, now, true)
				case dice == 2: // again, without having looked
					outcomes[table.Insert(hash, slotOf(hash), now, Probation, lives)].Add(1)
				case dice == 3:
					table.Remove(index[i], w)
				default:
					table.Refresh(index[i], w, now, false)
				}
			}
		}
	}
	var random [workers]*rand.Rand
	for id := range random {
		random[id] = rand.New(rand.NewPCG(uint64(id), 7))
	}
	removed := uint64(0)
	for range phases {
		var running, sweeps sync.WaitGroup
		var done atomic.Bool
		for _, r := range random {
			running.Go(func() { work(r) })
		}
		sweeps.Go(func() {
			for line := 0; !done.Load(); {
				var c, seen Census
				now := uint16(tick.Load()) & tickMask
				table.Walk(line, 16, now, lives, &seen)
				line = table.Sweep(line, 16, now, lives, &c)
				removed += c.Expired
			}
		})
		running.Wait()
		done.Store(true)
		sweeps.Wait()
		table.checkCounts(t)
	}

	table.checkPlaces(t)
	for i := range uint64(flowCount) {
		at, w := table.Lookup(hashOf(i))
		check(hashOf(i), at, w)
	}
	if outcomes[Inserted].Load() == 0 || outcomes[Present].Load() == 0 {
		t.Errorf("the stress did not reach what it is for: %d inserted, %d present",
			outcomes[Inserted].Load(), outcomes[Present].Load())
	}
	text := ""
	for o := range outcomes {
		text += " " + Outcome(o).String() + " " + strconv.FormatInt(outcomes[o].Load(), 10)
	}
	t.Logf("%d operations, %d flows, %d words, %d ticks:%s, swept %d", ops, flowCount, len(words), tick.Load()-4000, text, removed)

	// When nothing is written any more, one sweep at a later time empties the table.
	var c Census
	left := uint64(table.used())
	table.Sweep(0, table.Lines(), uint16(tick.Load()+300)&tickMask, lives, &c)
	if c.Expired != left || c.States != [4]uint64{Empty: uint64(len(words))} || table.used() != 0 {
		t.Errorf("a sweep of %d expired words left %d: %+v", left, table.used(), c)
	}
	table.checkCounts(t)
}

func TestConcurrent(t *testing.T) {
	ops := stressOps(t, 3_600_000)
	t.Run("few flows", func(t *testing.T) { stress(t, make([]uint64, 16), 6, ops*4/9) })
	t.Run("as many flows as meant", func(t *testing.T) { stress(t, make([]uint64, 1<<10), 1<<9, ops*4/9) })
	t.Run("more flows than words", func(t *testing.T) { stress(t, make([]uint64, 1<<8), 1<<10, ops/9) })
}

// Workers insert one flow at the same time, in every order of their steps (survey and choice; swap; settling), with lines
// so full that some go home and some to the alternate line. Exactly one word stays, of a worker that was told so.
func TestSameFlowInEveryOrder(t *testing.T) {
	type worker struct {
		step    int
		at, old uint64
		o       Outcome
	}
	lives := []Life{{0, 30, 30, 30}, {0, 30, 30, 30}, {0, 30, 30, 30}}
	for _, hash := range []uint64{testHash, testHash + 1} { // home is the lower line, and the higher
		table := newTable(t, 64)
		home, fp := table.home(hash), uint64(hash>>32)
		alt := table.alternate(home, fp)
		orders := 0
		// run takes the steps in the order of turns, which names a worker each.
		run := func(turns []int, workers, fill int) {
			clear(table.words)
			table.fill(home, repeat(fill, word(Established, 0))...)
			table.fill(alt, repeat(3, word(Established, 0))...)
			var w [3]worker
			for turn := 0; turn < len(turns) || w[0].step < 3 || w[1].step < 3 || w[2].step < 3 && workers == 3; turn++ {
				id := turn % workers
				if turn < len(turns) {
					id = turns[turn]
				} // after a failed swap there are more steps than planned
				switch me := &w[id]; me.step {
				case 0:
					// From the second worker's survey on, home looks fuller than it was.
					if id == 1 && fill == homeFill-1 {
						table.words[home+7] = uint64(word(Probation, 0)) | 1<<63
					}
					me.at, me.old, me.o = table.place(home, alt, fp, testNow, lives)
					if me.step = 1; me.o == Present {
						me.step = 3
					}
				case 1:
					me.step = 2
					if !atomic.CompareAndSwapUint64(&table.words[me.at], me.old, uint64(MakeWord(uint32(fp), uint32(id), testNow, Probation))) {
						me.step = 0
					}
				case 2:
					if kept, found := table.settle(home, alt, fp); found && kept != me.at {
						me.o = Present
					}
					me.step = 3
				}
			}
			at := table.holders(hash)
			if len(at) != 1 {
				t.Fatalf("order %v, %d words at home: words at %v", turns, fill, at)
			}
			if slot := Word(table.words[at[0]]).Slot(); w[slot].o != Inserted {
				t.Fatalf("order %v, %d words at home: the word of worker %d stays, which was told %v", turns, fill, slot, w[slot].o)
			}
			orders++
		}
		for _, workers := range []int{2, 3} {
			for _, fill := range []int{0, homeFill - 1, homeFill} {
				var turns []int
				var left [3]int
				var deal func()
				deal = func() {
					if len(turns) == 3*workers {
						run(turns, workers, fill)
						return
					}
					for id := range workers {
						if left[id] < 3 {
							left[id]++
							turns = append(turns, id)
							deal()
							turns = turns[:len(turns)-1]
							left[id]--
						}
					}
				}
				deal()
			}
		}
		if want := 3 * (20 + 1680); orders != want {
			t.Errorf("%d orders, want %d", orders, want)
		}
	}
}

// The same with two threads at full speed, which meet at each flow. At home there are six words, the one at the preferred
// place among them, and one of the threads removes that first: so one may see it gone and go there while the other does
// not and goes to the alternate line.
func TestSameFlowAtOnce(t *testing.T) {
	const rounds = 1 << 16
	lives := []Life{{0, 30, 30, 30}, {0, 30, 30, 30}}
	table := newTable(t, 16*rounds)
	place := func(i, k uint64) *uint64 {
		return &table.line(table.home(hashOf(i)))[(preferred(hashOf(i)>>32)+k)%lineWords]
	}
	other := func(i, k uint64) uint64 {
		return uint64(MakeWord(uint32(hashOf(i*lineWords+k+1<<40)), 0, testNow, Established))
	}
	for i := range uint64(rounds) {
		for k := range uint64(homeFill) {
			*place(i, k) = other(i, k)
		}
	}
	deadline := time.Now().Add(2 * time.Second)
	var at [2]atomic.Uint64 // the flow that each worker is at
	var outcomes [2][rounds]Outcome
	var reached atomic.Uint64
	reached.Store(rounds)
	var wg sync.WaitGroup
	for id := range 2 {
		wg.Go(func() {
			for i := range uint64(rounds) {
				at[id].Store(i + 1)
				for at[1-id].Load() < i+1 { // the other one comes
					if i >= reached.Load() {
						return
					}
					runtime.Gosched()
				}
				if id == 0 && i%64 == 0 && time.Now().After(deadline) {
					reached.Store(i + 1)
				}
				if i >= reached.Load() {
					return
				}
				// Up to 31 turns of a loop, so that each is the first one now and then.
				for range hashOf(i*2+uint64(id)) % 32 {
					at[id].Load()
				}
				if id == int(i%2) {
					atomic.CompareAndSwapUint64(place(i, 0), other(i, 0), 0)
				}
				outcomes[id][i] = table.Insert(hashOf(i), uint32(id), testNow, Established, lives)
			}
		})
	}
	wg.Wait()
	n := reached.Load()
	var won [2]int
	doubles, atHome, refused := 0, 0, 0
	for i := range n {
		places := table.holders(hashOf(i))
		a, b := outcomes[0][i], outcomes[1][i]
		if a == Inserted && b == Inserted {
			doubles++
		}
		if a == Refused && b == Refused && len(places) == 0 {
			refused++ // some lines are home to many flows, and full of established words
			continue
		}
		if len(places) != 1 {
			t.Fatalf("flow %d: words at %v after %v and %v", i, places, a, b)
		}
		slot := Word(table.words[places[0]]).Slot()
		if outcomes[slot][i] != Inserted {
			t.Fatalf("flow %d: the word of worker %d stays, which was told %v", i, slot, outcomes[slot][i])
		}
		won[slot]++
		if uint64(places[0])/lineWords*lineWords == table.home(hashOf(i)) {
			atHome++
		}
	}
	table.checkPlaces(t)
	t.Logf("%d flows met, %d of them at home; the word of one worker stayed %d times, of the other %d; %d times a word displaced one already settled; %d refused",
		n, atHome, won[0], won[1], doubles, refused)
	if won[0] == 0 || won[1] == 0 || atHome == 0 || atHome == int(n) {
		t.Errorf("one worker always came first, or all words are in one kind of line")
	}
}
