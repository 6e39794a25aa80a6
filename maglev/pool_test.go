package maglev

import (
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
)

var schedulers = []Scheduler{Maglev, WRR, LeastConn, P2C, Source}

func TestSchedulerNames(t *testing.T) {
	var names []string
	var agree []bool
	for _, s := range append(schedulers, 77) {
		names, agree = append(names, s.String()), append(agree, s.Agrees())
	}
	if want := []string{"maglev", "wrr", "least-conn", "p2c", "source", "scheduler(77)"}; !slices.Equal(names, want) {
		t.Errorf("names %v, want %v", names, want)
	}
	if want := []bool{true, false, false, false, true, false}; !slices.Equal(agree, want) {
		t.Errorf("agree %v, want %v", agree, want)
	}
}

func TestNewPoolRefuses(t *testing.T) {
	table := mustBuild(t, backends(3), 31)
	for _, c := range []struct{ slots, workers int }{{2, 1}, {4, 1}, {3, 0}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a pool of %d slots for 3 backends and %d workers was made", c.slots, c.workers)
				}
			}()
			NewPool(table, make([]uint32, c.slots), Maglev, c.workers)
		}()
	}
	p := NewPool(table, []uint32{5, 6, 7}, P2C, 4)
	if p.Table() != table || !slices.Equal(p.Slots(), []uint32{5, 6, 7}) || p.Scheduler() != P2C {
		t.Errorf("pool has %v, %v, %v", p.Table().Names(), p.Slots(), p.Scheduler())
	}
}

// With any admit words and loads, no scheduler gives a new flow to a backend that is not up or takes a fraction of zero,
// and each finds one if there is one.
func TestNeverForbidden(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 12))
	states := []AdmitState{Down, Draining, Up, Cut}
	rounds := 300
	if raceEnabled {
		rounds = 60
	}
	for _, scheduler := range schedulers {
		for range rounds {
			list := backends(1 + rng.IntN(150))
			for i := range list {
				list[i].Weight = uint16(1 + rng.IntN(1<<rng.IntN(16)))
			}
			table := mustBuild(t, list, 1009)
			const workers = 3
			p := NewPool(table, seq(len(list)), scheduler, workers)
			s := newSlots(len(list))
			few := rng.Float64() < 0.5 // most are down
			now := int64(0)
			for range 5 {
				open, holds := false, false
				for slot := range list {
					a := MakeAdmit(states[rng.IntN(4)], uint32(rng.IntN(4))*All/3)
					if few && rng.IntN(50) != 0 {
						a = MakeAdmit(states[3*rng.IntN(2)], All)
					}
					set(s, uint32(slot), a)
					open = open || a.open()
					holds = holds || a.State() == Up
					s.Flows[slot].Store(int32(rng.IntN(100) - 2))
				}
				for range 40 {
					h := rng.Uint64()
					slot, ok := p.New(testKey, h, s, rng.IntN(workers), now)
					if ok != open || ok && !Admit(s.Admit[slot].Load()).open() {
						t.Fatalf("%v, %d backends: new flow to %d, %v, word %#x; some are open: %v", scheduler, len(list), slot, ok, s.Admit[slot].Load(), open)
					}
					slot, ok = p.Existing(testKey, h, s)
					if a := Admit(s.Admit[slot].Load()); ok && !a.holds() || holds && !ok {
						t.Fatalf("%v, %d backends: existing flow to %d, %v, word %#x", scheduler, len(list), slot, ok, a)
					}
					now += rng.Int64N(200_000)
				}
			}
		}
	}
}

func seq(n int) []uint32 {
	list := make([]uint32, n)
	for i := range list {
		list[i] = uint32(i)
	}
	return list
}

// A health change of one backend moves only flows that it had or that it gets.
func TestHealthMovesOnlyItsFlows(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 13))
	hs := hashes(3000)
	for range 60 {
		list := backends(2 + rng.IntN(30))
		for i := range list {
			list[i].Weight = uint16(1 + rng.IntN(50))
		}
		p := NewPool(mustBuild(t, list, 1009), seq(len(list)), Maglev, 1)
		s := newSlots(len(list))
		random := func() Admit {
			return MakeAdmit([]AdmitState{Down, Draining, Up, Up, Cut}[rng.IntN(5)], []uint32{All, All, All / 2}[rng.IntN(3)])
		}
		for slot := range list {
			set(s, uint32(slot), random())
		}
		type choice struct {
			fresh, existing uint32
			ok1, ok2        bool
		}
		ask := func(h uint64) (c choice) {
			c.fresh, c.ok1 = p.New(testKey, h, s, 0, 0)
			c.existing, c.ok2 = p.Existing(testKey, h, s)
			return c
		}
		var before []choice
		for _, h := range hs {
			before = append(before, ask(h))
		}
		// A fraction is left alone: refusing a flow everywhere but here may make a backend that had it as a spare lose it.
		changed := uint32(rng.IntN(len(list)))
		fraction := Admit(s.Admit[changed].Load()).Fraction()
		set(s, changed, MakeAdmit([]AdmitState{Down, Draining, Up, Cut}[rng.IntN(4)], fraction))
		for i, h := range hs {
			b, a := before[i], ask(h)
			if b.ok1 && a.ok1 && b.fresh != a.fresh && b.fresh != changed && a.fresh != changed {
				t.Fatalf("backend %d changed, and hash %#x moved from %d to %d", changed, h, b.fresh, a.fresh)
			}
			if b.ok2 && a.ok2 && b.existing != a.existing && b.existing != changed && a.existing != changed {
				t.Fatalf("backend %d changed, and packets of hash %#x moved from %d to %d", changed, h, b.existing, a.existing)
			}
		}
	}
}

// The choice for an existing flow is the same whatever the scheduler, and moves no turn and no load.
func TestExistingIgnoresScheduler(t *testing.T) {
	list := backends(20)
	var pools []*Pool
	for _, scheduler := range schedulers {
		pools = append(pools, NewPool(mustBuild(t, list, 1009), seq(20), scheduler, 1))
	}
	s := newSlots(20)
	set(s, 3, MakeAdmit(Down, 0))
	set(s, 4, MakeAdmit(Draining, 0))
	for _, h := range hashes(5000) {
		want, _ := pools[0].Existing(testKey, h, s)
		for _, p := range pools[1:] {
			if got, ok := p.Existing(testKey, h, s); !ok || got != want {
				t.Fatalf("%v: hash %#x to %d, %v; with maglev to %d", p.Scheduler(), h, got, ok, want)
			}
		}
	}
	if first, _ := pools[1].New(testKey, 0, s, 0, 0); first != pools[1].turns[0] {
		t.Errorf("existing flows took turns: the first new one goes to %d", first)
	}
}

// Over a round each backend has exactly as many flows as its weight, and never runs ahead or falls behind by a whole one.
func TestWRR(t *testing.T) {
	list := weighted(50, 30, 10, 10) // web-1 is index 0, and so on
	p := NewPool(mustBuild(t, list, DefaultSize), seq(4), WRR, 1)
	s := newSlots(4)
	for round := range 3 {
		var got [4]int
		for n := 1; n <= 10; n++ {
			slot, _ := p.New(testKey, rand.Uint64(), s, 0, 0)
			got[slot]++
			for i, w := range []int{5, 3, 1, 1} {
				if float64(got[i]) <= float64(n*w)/10-1 || float64(got[i]) >= float64(n*w)/10+1 {
					t.Errorf("round %d: %v after %d flows", round, got, n)
				}
			}
		}
		if got != [4]int{5, 3, 1, 1} {
			t.Errorf("round %d: flows %v", round, got)
		}
	}
}

// The turns of backends that take nothing are not given to their neighbours: the others keep their exact proportions.
func TestWRRDead(t *testing.T) {
	list := weighted(4, 40, 2, 2, 2, 1)
	p := NewPool(mustBuild(t, list, DefaultSize), seq(6), WRR, 1)
	s := newSlots(6)
	set(s, 1, MakeAdmit(Down, All))
	set(s, 3, MakeAdmit(Draining, All))
	set(s, 4, MakeAdmit(Up, 0))
	got := make([]int, 6)
	for range 7 * 100 {
		slot, _ := p.New(testKey, rand.Uint64(), s, 0, 0)
		got[slot]++
	}
	if want := []int{400, 0, 200, 0, 0, 100}; !slices.Equal(got, want) {
		t.Errorf("flows %v, want %v", got, want)
	}
}

// A fraction scales a backend's turns, and if all start slowly none is preferred and no flow is refused.
func TestWRRFraction(t *testing.T) {
	p := NewPool(mustBuild(t, backends(10), DefaultSize), seq(10), WRR, 1)
	s := newSlots(10)
	count := func() []float64 {
		got := make([]float64, 10)
		for _, h := range hashes(100000) {
			slot, ok := p.New(testKey, h, s, 0, 0)
			if !ok {
				t.Fatal("a flow was refused")
			}
			got[slot]++
		}
		return got
	}
	set(s, 6, MakeAdmit(Up, All/4))
	for slot, got := range count() {
		want := 100000 / 9.25
		if slot == 6 {
			want /= 4
		}
		if math.Abs(got/want-1) > 0.05 {
			t.Errorf("slot %d has %v flows, want about %.0f", slot, got, want)
		}
	}
	for _, f := range []uint32{1, All / 50, All / 3} {
		setAll(p, s, MakeAdmit(Up, f))
		for slot, got := range count() {
			if math.Abs(got/10000-1) > 0.1 {
				t.Errorf("fraction %d everywhere: slot %d has %v flows, want about 10000", f, slot, got)
			}
		}
	}
}

// Workers begin at different turns, so that few flows at many workers do not meet at one backend.
func TestWRRWorkers(t *testing.T) {
	p := NewPool(mustBuild(t, backends(8), DefaultSize), seq(8), WRR, 8)
	s := newSlots(8)
	seen := map[uint32]bool{}
	for worker := range 8 {
		slot, _ := p.New(testKey, 1, s, worker, 0)
		seen[slot] = true
	}
	if len(seen) != 8 {
		t.Errorf("the first flows of 8 workers go to %d of 8 backends", len(seen))
	}
}

// Weights without a common divisor have more turns than fit; then a round has as many turns as the table has entries.
func TestWRRLongRound(t *testing.T) {
	list := weighted(65535, 65534, 65533, 1, 2)
	table := mustBuild(t, list, 1009)
	p := NewPool(table, seq(5), WRR, 1)
	s := newSlots(5)
	got := make([]int, 5)
	for range 1009 {
		slot, _ := p.New(testKey, rand.Uint64(), s, 0, 0)
		got[slot]++
	}
	if !slices.Equal(got, table.Shares()) {
		t.Errorf("flows of a round %v, entries of the table %v", got, table.Shares())
	}
}

// Workers use a pool at once, each under its number, while admit words and loads change.
func TestWorkersTogether(t *testing.T) {
	const workers, flows = 4, 5000
	for _, scheduler := range schedulers {
		v, s := change(t, Maglev, Maglev)
		v.Pool = NewPool(v.Pool.Table(), v.Pool.Slots(), scheduler, workers)
		var group sync.WaitGroup
		for worker := range workers {
			group.Go(func() {
				for i := range flows {
					h, now := uint64(worker*flows+i), int64(i)*10_000
					slot, ok1 := v.New(testKey, h, s, worker, now)
					_, ok2 := v.Existing(testKey, h, s, now)
					_, ok3 := v.Datagram(testKey, h, s, worker, now)
					if !ok1 || !ok2 || !ok3 {
						t.Errorf("%v: a flow was refused: %v, %v, %v", scheduler, ok1, ok2, ok3)
						return
					}
					s.Flows[slot].Add(1)
					if worker == 0 { // slot 10 stays up
						set(s, uint32(i%10), MakeAdmit(AdmitState(i%4), All))
					}
				}
			})
		}
		group.Wait()
	}
}

// What two workers write is never on one cache line of 64 bytes, wherever memory begins.
func TestWorkersShareNoLine(t *testing.T) {
	const line = 64
	for _, typ := range []reflect.Type{reflect.TypeFor[cursor](), reflect.TypeFor[loads]()} {
		var from, to uintptr // what lies between padding
		for i := range typ.NumField() {
			if f := typ.Field(i); f.Name != "_" {
				if from == 0 {
					from = f.Offset
				}
				to = f.Offset + f.Type.Size()
			}
		}
		if gap := typ.Size() - to + from; gap < line {
			t.Errorf("%v: only %d bytes between two workers", typ, gap)
		}
	}
	for n := 1; n < 40; n++ {
		p := NewPool(mustBuild(t, backends(n), 1009), seq(n), LeastConn, 8)
		lines := map[uintptr]int{}
		for worker := range p.loads {
			for i := range p.loads[worker].heap {
				at := reflect.ValueOf(&p.loads[worker].heap[i]).Pointer()
				for _, l := range []uintptr{at / line, (at + reflect.TypeFor[load]().Size() - 1) / line} {
					if other, ok := lines[l]; ok && other != worker {
						t.Fatalf("%d backends: workers %d and %d share a line", n, other, worker)
					}
					lines[l] = worker
				}
			}
		}
	}
}
