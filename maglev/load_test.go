package maglev

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// inflow opens flows at a pool, a worker after the other, and counts them in s.Flows as the flow table would: after
// delay further flows.
type inflow struct {
	p       *Pool
	s       *Slots
	rng     *rand.Rand
	workers int
	delay   int
	now     int64
	pending []uint32
	opened  []int // by slot
}

func newInflow(t testing.TB, list []Backend, scheduler Scheduler, workers, delay int) *inflow {
	p := NewPool(mustBuild(t, list, DefaultSize), seq(len(list)), scheduler, workers)
	return &inflow{p: p, s: newSlots(len(list)), rng: rand.New(rand.NewPCG(1, 9)), workers: workers, delay: delay, opened: make([]int, len(list))}
}

// open opens n flows, a hundred a millisecond.
func (f *inflow) open(t testing.TB, n int) {
	t.Helper()
	for i := range n {
		slot, ok := f.p.New(testKey, f.rng.Uint64(), f.s, i%f.workers, f.now)
		if !ok {
			t.Fatal("a flow was refused")
		}
		f.opened[slot]++
		f.pending = append(f.pending, slot)
		if len(f.pending) > f.delay {
			f.s.Flows[f.pending[0]].Add(1)
			f.pending = f.pending[1:]
		}
		f.now += 10_000
	}
}

// loads returns the flows of each slot.
func (f *inflow) loads() []int {
	list := make([]int, len(f.opened))
	for slot := range list {
		list[slot] = int(f.s.Flows[slot].Load())
	}
	for _, slot := range f.pending {
		list[slot]++
	}
	return list
}

// Weighted loads become even, whatever they were, with one worker and with several, which know nothing of each other
// until a flow is in the table.
func TestLeastConnConverges(t *testing.T) {
	for _, workers := range []int{1, 2, 8} {
		list := weighted(1, 2, 3, 4, 10)
		f := newInflow(t, list, LeastConn, workers, 100)
		f.s.Flows[0].Store(800)
		f.s.Flows[4].Store(100)
		f.open(t, 20000)
		total := 20900.0
		for slot, got := range f.loads() {
			if want := total * float64(list[slot].Weight) / 20; math.Abs(float64(got)-want) > 30+0.02*want {
				t.Errorf("%d workers: slot %d has %d flows, want about %.0f", workers, slot, got, want)
			}
		}
	}
}

// A backend that comes in empty gets flows until it has as many as the others, but not many more: workers, which do not
// see what the others do, do not each send it what one would be enough for.
func TestLeastConnDoesNotHerd(t *testing.T) {
	const n, workers, flows = 20, 8, 240
	p := NewPool(mustBuild(t, backends(n), DefaultSize), seq(n), LeastConn, workers)
	s := newSlots(n)
	got := make([]int, n)
	for slot := range n {
		if slot != 7 {
			got[slot] = 20
			s.Flows[slot].Store(20)
		}
	}
	for i := range flows {
		slot, _ := p.New(testKey, uint64(i), s, i%workers, 0)
		got[slot]++
	}
	mean := ((n-1)*20 + flows) / n
	for slot, load := range got {
		if load < mean-workers || load > mean+workers {
			t.Errorf("backend %d has %d flows, want about %d", slot, load, mean)
		}
	}
}

// If backends went down since loads were read, the flow goes to the least loaded of the others.
func TestLeastConnOrder(t *testing.T) {
	const n = 40
	rng := rand.New(rand.NewPCG(21, 21))
	for range 200 {
		p := NewPool(mustBuild(t, backends(n), 1009), seq(n), LeastConn, 1)
		s := newSlots(n)
		order := rng.Perm(n) // from the least loaded to the most
		for i, slot := range order {
			s.Flows[slot].Store(int32(100 + 10*i))
		}
		if slot, _ := p.New(testKey, 1, s, 0, 0); int(slot) != order[0] {
			t.Fatalf("the first flow goes to %d, want %d", slot, order[0])
		}
		down := rng.IntN(maxLooks)
		for _, slot := range order[:down] {
			set(s, uint32(slot), MakeAdmit(Down, All))
		}
		if slot, ok := p.New(testKey, 1, s, 0, 1); !ok || int(slot) != order[down] {
			t.Fatalf("with the %d least loaded down the flow goes to %d, %v, want %d of %v", down, slot, ok, order[down], order)
		}
	}
}

// Backends with equal loads take turns, and each worker begins with another.
func TestLeastConnTies(t *testing.T) {
	const n, workers = 16, 16
	f := newInflow(t, backends(n), LeastConn, workers, math.MaxInt)
	firsts := map[uint32]bool{}
	for worker := range workers {
		slot, _ := f.p.New(testKey, uint64(worker), f.s, worker, 0)
		firsts[slot] = true
		seen := map[uint32]bool{slot: true}
		for i := range n - 1 {
			slot, _ := f.p.New(testKey, uint64(i), f.s, worker, 0)
			seen[slot] = true
		}
		if len(seen) != n {
			t.Errorf("worker %d gave %d flows to %d of %d equal backends", worker, n, len(seen), n)
		}
	}
	if len(firsts) != n {
		t.Errorf("%d workers began with %d different backends", workers, len(firsts))
	}
}

// A fraction counts like weight, and as soon as it changes also at once: a backend that starts slowly gets its fraction
// of new flows at most, though it has no flow.
func TestLeastConnFraction(t *testing.T) {
	f := newInflow(t, backends(10), LeastConn, 2, 0)
	for slot := range 10 {
		f.s.Flows[slot].Store(1000)
	}
	f.s.Flows[3].Store(0)
	set(f.s, 3, MakeAdmit(Up, All/5))
	f.open(t, 500)
	if got := f.opened[3]; got < 70 || got > 130 {
		t.Errorf("%d of 500 flows went to a backend that takes a fifth, want about 100", got)
	}
	f.open(t, 30000)
	total := 0
	for _, n := range f.loads() {
		total += n
	}
	if got, want := float64(f.loads()[3]), float64(total)*0.2/9.2; math.Abs(got-want) > 0.05*want {
		t.Errorf("a backend that takes a fifth has %v flows, want about %.0f", got, want)
	}
}

// Loads are read once in a while, and flows that end are noticed then.
func TestLeastConnReadsAgain(t *testing.T) {
	p := NewPool(mustBuild(t, backends(2), 31), seq(2), LeastConn, 1)
	s := newSlots(2)
	s.Flows[0].Store(100)
	if slot, _ := p.New(testKey, 1, s, 0, 0); slot != 1 {
		t.Fatalf("flow went to %d", slot)
	}
	s.Flows[0].Store(0)
	s.Flows[1].Store(100)
	if slot, _ := p.New(testKey, 1, s, 0, loadsNanos-1); slot != 1 {
		t.Errorf("loads were read again after less than a millisecond")
	}
	if slot, _ := p.New(testKey, 1, s, 0, loadsNanos); slot != 0 {
		t.Errorf("loads were not read again after a millisecond")
	}
	// A backend that is down since the last reading is passed over at once.
	set(s, 0, MakeAdmit(Down, All))
	if slot, ok := p.New(testKey, 1, s, 0, loadsNanos+1); slot != 1 || !ok {
		t.Errorf("flow went to %d, %v, which is down", slot, ok)
	}
}

// Two candidates: the less loaded one gets the flow, the first if they are even; with weights loads are relative.
func TestP2C(t *testing.T) {
	p, s := poolOf(t, weighted(1, 1, 4, 2, 7), P2C, 1)
	weightOf := map[uint32]int{}
	for i, slot := range p.Slots() {
		weightOf[slot] = int(p.Table().Weights()[i])
	}
	rng := rand.New(rand.NewPCG(4, 2))
	firsts := 0
	for _, h := range hashes(20000) {
		for _, slot := range p.Slots() {
			s.Flows[slot].Store(int32(rng.IntN(10)))
		}
		a, b := candidate(p, h, 0), uint32(0)
		for i := 1; i < candidates && b == 0; i++ {
			if c := candidate(p, h, i); c != a {
				b = c
			}
		}
		want := a
		if b != 0 && int(s.Flows[b].Load())*weightOf[a] < int(s.Flows[a].Load())*weightOf[b] {
			want = b
		}
		slot, ok := p.New(testKey, h, s, 0, 0)
		if !ok || slot != want {
			t.Fatalf("hash %#x to %d, want %d", h, slot, want)
		}
		if slot == a {
			firsts++
		}
	}
	if firsts < 9000 || firsts > 15000 {
		t.Errorf("%d of 20000 flows went to their first candidate", firsts)
	}
	// Candidates that do not take the flow do not count.
	set(s, p.Slots()[0], MakeAdmit(Down, 0))
	set(s, p.Slots()[4], MakeAdmit(Draining, 0))
	for _, slot := range p.Slots() {
		s.Flows[slot].Store(0)
	}
	for _, h := range hashes(5000) {
		want, _ := p.newByHash(testKey, h, s)
		if slot, _ := p.New(testKey, h, s, 0, 0); slot != want {
			t.Fatalf("hash %#x to %d, want the first candidate that is up, %d", h, slot, want)
		}
	}
}

// Where flows last differently long, the peak load is lower with two candidates than with one, and lower still with all.
func TestPeakLoads(t *testing.T) {
	const n, flows, alive = 50, 60000, 20000
	peak := map[Scheduler]float64{}
	for _, scheduler := range []Scheduler{Maglev, P2C, LeastConn, WRR} {
		f := newInflow(t, backends(n), scheduler, 2, 0)
		rng := rand.New(rand.NewPCG(7, 7))
		ends := make([][]uint32, flows)
		for i := range flows {
			before := slices.Clone(f.opened)
			f.open(t, 1)
			for slot := range before {
				if f.opened[slot] != before[slot] {
					if end := i + int(alive/3*math.Pow(1-rng.Float64(), -1/1.5)); end < flows { // Pareto: a mean of 20,000
						ends[end] = append(ends[end], uint32(slot))
					}
				}
			}
			for _, slot := range ends[i] {
				f.s.Flows[slot].Add(-1)
			}
			if i > flows/2 && i%100 == 0 {
				loads := f.loads()
				total := 0
				for _, l := range loads {
					total += l
				}
				peak[scheduler] = max(peak[scheduler], float64(slices.Max(loads))*n/float64(total))
			}
		}
	}
	t.Logf("peak load over mean: %v", peak)
	if peak[P2C] > 1+(peak[Maglev]-1)/2 || peak[LeastConn] > peak[P2C] {
		t.Errorf("peak load over mean: %v", peak)
	}
}
