package maglev

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
)

const testKey = 0x5eed5eed5eed5eed

// newPool returns a pool of n backends whose slots are spread out and in no order, and admit words for them, all up.
func newPool(t testing.TB, n int) (*Pool, *Slots) {
	return poolOf(t, backends(n), Maglev, 1)
}

// poolOf is newPool for any backends and scheduler.
func poolOf(t testing.TB, list []Backend, scheduler Scheduler, workers int) (*Pool, *Slots) {
	table := mustBuild(t, list, DefaultSize)
	n := len(table.Names())
	var slots []uint32
	for _, i := range rand.New(rand.NewPCG(uint64(n), 7)).Perm(n) {
		slots = append(slots, uint32(3*i+1))
	}
	p := NewPool(table, slots, scheduler, workers)
	return p, newSlots(3*n + 1)
}

// newSlots returns n slots that are up and have no flows.
func newSlots(n int) *Slots {
	s := &Slots{Admit: make([]atomic.Uint32, n), Flows: make([]atomic.Int32, n)}
	for slot := range uint32(n) {
		set(s, slot, MakeAdmit(Up, All))
	}
	return s
}

func set(s *Slots, slot uint32, a Admit) { s.Admit[slot].Store(uint32(a)) }

func setAll(p *Pool, s *Slots, a Admit) {
	for _, slot := range p.Slots() {
		set(s, slot, a)
	}
}

// primary is the slot of a flow's first candidate, computed from the definition.
func primary(p *Pool, hash uint64) uint32 { return candidate(p, hash, 0) }

func candidate(p *Pool, hash uint64, i int) uint32 {
	entry := (Mix(testKey, hash, i) >> 32) * uint64(p.Table().Size()) >> 32
	return p.Slots()[p.Table().entries[entry]]
}

func hashes(n int) []uint64 {
	rng := rand.New(rand.NewPCG(11, uint64(n)))
	h := make([]uint64, n)
	for i := range h {
		h[i] = rng.Uint64()
	}
	return h
}

func TestAdmitWord(t *testing.T) {
	if Admit(0).State() != Down {
		t.Error("the zero word is not down")
	}
	for _, s := range []AdmitState{Down, Draining, Up, Cut} {
		for _, f := range []uint32{0, 1, 77, 65535, All} {
			if a := MakeAdmit(s, f); a.State() != s || a.Fraction() != f {
				t.Errorf("MakeAdmit(%v, %d) holds %v, %d", s, f, a.State(), a.Fraction())
			}
		}
		if a := MakeAdmit(s, math.MaxUint32); a.State() != s || a.Fraction() != All {
			t.Errorf("MakeAdmit(%v, too much) holds %v, %d", s, a.State(), a.Fraction())
		}
	}
	if got := Down.String() + Draining.String() + Up.String() + Cut.String() + AdmitState(4).String(); got != "downdrainingupcutadmit state(4)" {
		t.Errorf("names: %s", got)
	}
}

// With every backend up, everything goes to the first candidate.
func TestAllUp(t *testing.T) {
	for _, n := range []int{1, 3, 100} {
		p, slots := newPool(t, n)
		for _, h := range hashes(50000) {
			want := primary(p, h)
			s1, ok1 := p.New(testKey, h, slots, 0, 0)
			s2, ok2 := p.Existing(testKey, h, slots)
			if !ok1 || !ok2 || s1 != want || s2 != want {
				t.Fatalf("%d backends, hash %#x: new %d %v, existing %d %v, want %d", n, h, s1, ok1, s2, ok2, want)
			}
		}
	}
}

// A backend that goes down or is cut moves its own flows only, spreads them over all others, and gets them all back.
func TestDownMovesOnlyItsFlows(t *testing.T) {
	for _, state := range []AdmitState{Down, Cut} {
		t.Run(state.String(), func(t *testing.T) { testMovesOnlyItsFlows(t, state) })
	}
}

func testMovesOnlyItsFlows(t *testing.T, state AdmitState) {
	p, slots := newPool(t, 10)
	dead := p.Slots()[4]
	set(slots, dead, MakeAdmit(state, All))
	to := map[uint32]int{}
	hs := hashes(200000)
	for _, h := range hs {
		s1, _ := p.New(testKey, h, slots, 0, 0)
		s2, _ := p.Existing(testKey, h, slots)
		if s1 != s2 {
			t.Fatalf("hash %#x: new %d, existing %d", h, s1, s2)
		}
		if was := primary(p, h); was != dead && s1 != was {
			t.Fatalf("hash %#x moved from %d to %d, though %d is down", h, was, s1, dead)
		} else if was == dead {
			to[s1]++
		}
	}
	if to[dead] != 0 || len(to) != 9 {
		t.Fatalf("flows of the dead backend went to %v", to)
	}
	for s, n := range to {
		if mean := 200000 / 10 / 9; math.Abs(float64(n-mean)) > 5*math.Sqrt(float64(mean)) {
			t.Errorf("slot %d got %d flows of the dead backend, want about %d", s, n, mean)
		}
	}
	set(slots, dead, MakeAdmit(Up, All))
	for _, h := range hs[:10000] {
		if s, _ := p.New(testKey, h, slots, 0, 0); s != primary(p, h) {
			t.Fatalf("hash %#x is at %d and not back at %d", h, s, primary(p, h))
		}
	}
}

// A draining backend gets no new flow, keeps those that it is the first candidate of, and takes over none.
func TestDraining(t *testing.T) {
	p, slots := newPool(t, 5)
	draining, dead := p.Slots()[1], p.Slots()[3]
	set(slots, draining, MakeAdmit(Draining, All))
	set(slots, dead, MakeAdmit(Down, 0))
	for _, h := range hashes(100000) {
		s1, ok1 := p.New(testKey, h, slots, 0, 0)
		s2, ok2 := p.Existing(testKey, h, slots)
		if !ok1 || !ok2 || s1 == draining || s1 == dead || s2 == dead {
			t.Fatalf("hash %#x: new %d %v, existing %d %v", h, s1, ok1, s2, ok2)
		}
		if (primary(p, h) == draining) != (s2 == draining) {
			t.Fatalf("hash %#x of %d: existing packets go to %d, draining is %d", h, primary(p, h), s2, draining)
		}
	}
}

// A backend with a fraction f gets about f of its new flows, the others keep theirs, a growing f only adds flows, and
// packets of existing flows do not care.
func TestFraction(t *testing.T) {
	p, slots := newPool(t, 10)
	slow := p.Slots()[7]
	hs := hashes(200000)
	had := map[uint64]bool{}
	for _, f := range []float64{0, 0.1, 0.5, 0.9, 1} {
		set(slots, slow, MakeAdmit(Up, uint32(f*All)))
		own, got := 0, 0
		for _, h := range hs {
			was := primary(p, h)
			s, ok := p.New(testKey, h, slots, 0, 0)
			if !ok || was != slow && s != was {
				t.Fatalf("fraction %v: hash %#x of %d goes to %d, %v", f, h, was, s, ok)
			}
			if e, _ := p.Existing(testKey, h, slots); e != was {
				t.Fatalf("fraction %v: a packet of an existing flow goes from %d to %d", f, was, e)
			}
			if was != slow {
				continue
			}
			own++
			if s == slow {
				got++
				had[h] = true
			} else if had[h] {
				t.Fatalf("hash %#x left as the fraction grew to %v", h, f)
			}
		}
		// A flow that is refused first may be taken as a later candidate: some tenth of a tenth more.
		want := f + (1-f)*0.1*f
		if share := float64(got) / float64(own); math.Abs(share-want) > 0.02 {
			t.Errorf("fraction %v: %.3f of its flows come, want about %.3f", f, share, want)
		}
	}
}

// The low sixteen bits of the mix are what a fraction is compared with: one more than them lets the flow in.
func TestFractionBits(t *testing.T) {
	p, slots := newPool(t, 10)
	for _, h := range hashes(2000) {
		slow := primary(p, h)
		bits := uint32(Mix(testKey, h, 0) & 0xffff)
		set(slots, slow, MakeAdmit(Up, bits+1))
		if s, _ := p.New(testKey, h, slots, 0, 0); s != slow {
			t.Fatalf("hash %#x with bits %d goes to %d, though %d takes %d", h, bits, s, slow, bits+1)
		}
		set(slots, slow, MakeAdmit(Up, bits))
		if s, _ := p.New(testKey, h, slots, 0, 0); s == slow && candidate(p, h, 1) != slow {
			t.Fatalf("hash %#x with bits %d goes to %d, which takes %d only", h, bits, s, bits)
		}
		set(slots, slow, MakeAdmit(Up, All))
	}
}

// When all start slowly at once, no client is refused and the load stays even.
func TestAllSlow(t *testing.T) {
	for _, f := range []uint32{1, All / 10} {
		p, slots := newPool(t, 20)
		setAll(p, slots, MakeAdmit(Up, f))
		got := map[uint32]int{}
		for _, h := range hashes(100000) {
			s, ok := p.New(testKey, h, slots, 0, 0)
			if !ok {
				t.Fatalf("fraction %d everywhere: refused", f)
			}
			got[s]++
		}
		for _, s := range p.Slots() {
			if math.Abs(float64(got[s]-5000)) > 500 {
				t.Errorf("fraction %d everywhere: slot %d gets %d of 100000 flows, want about 5000", f, s, got[s])
			}
		}
	}
}

// With nobody up there is no choice; a backend that is up with a fraction of zero takes no new flow, but packets.
func TestNobody(t *testing.T) {
	p, slots := newPool(t, 10)
	for _, c := range []struct {
		all           Admit
		new, existing bool
	}{
		{MakeAdmit(Down, All), false, false},
		{MakeAdmit(Cut, All), false, false},
		{MakeAdmit(Draining, All), false, true},
		{MakeAdmit(Up, 0), false, true},
		{MakeAdmit(Up, 1), true, true},
	} {
		setAll(p, slots, c.all)
		for _, h := range hashes(1000) {
			_, n := p.New(testKey, h, slots, 0, 0)
			_, e := p.Existing(testKey, h, slots)
			if n != c.new || e != c.existing {
				t.Fatalf("all %v with %d: new %v, existing %v; want %v, %v", c.all.State(), c.all.Fraction(), n, e, c.new, c.existing)
			}
		}
	}
}

// One backend alive of a hundred is found by every flow, most of which do not have it among their candidates.
func TestLastOneAlive(t *testing.T) {
	p, slots := newPool(t, 100)
	for alive := range 100 {
		setAll(p, slots, MakeAdmit(Down, All))
		set(slots, p.Slots()[alive], MakeAdmit(Up, 10))
		for _, h := range hashes(300) {
			s1, ok1 := p.New(testKey, h, slots, 0, 0)
			s2, ok2 := p.Existing(testKey, h, slots)
			if !ok1 || !ok2 || s1 != p.Slots()[alive] || s2 != s1 {
				t.Fatalf("only slot %d is up: new %d %v, existing %d %v", p.Slots()[alive], s1, ok1, s2, ok2)
			}
		}
	}
}

// If no candidate is up, the list of backends is gone through in order, from a place that the hash gives: of a few that
// are left, none is given all those flows.
func TestListOrder(t *testing.T) {
	const n, flows = 100, 5000
	p, slots := newPool(t, n)
	setAll(p, slots, MakeAdmit(Down, 0))
	up := []uint32{p.Slots()[20], p.Slots()[60]}
	set(slots, up[0], MakeAdmit(Up, All))
	set(slots, up[1], MakeAdmit(Up, All))
	fell := map[uint32]int{}
	for _, h := range hashes(flows) {
		var want uint32
		for i := range candidates {
			if c := candidate(p, h, i); slices.Contains(up, c) {
				want = c
				break
			}
		}
		if want == 0 { // no slot of newPool
			for at := Mix(testKey, h, candidates) >> 32 * n >> 32; !slices.Contains(up, want); at++ {
				want = p.Slots()[at%n]
			}
			fell[want]++
		}
		if s, ok := p.New(testKey, h, slots, 0, 0); !ok || s != want {
			t.Fatalf("hash %#x: new goes to %d, want %d", h, s, want)
		}
		if s, ok := p.Existing(testKey, h, slots); !ok || s != want {
			t.Fatalf("hash %#x: existing goes to %d, want %d", h, s, want)
		}
	}
	all := fell[up[0]] + fell[up[1]]
	if all < 3000 {
		t.Errorf("only %d of %d flows reached the list", all, flows)
	}
	if share := float64(fell[up[1]]) / float64(all); math.Abs(share-0.4) > 0.03 { // it is behind 40 of the 100 places
		t.Errorf("%.2f of the flows that reached the list went to one backend, want about 0.40", share)
	}
}

// node is one of several that have the same backends in other slots.
type node struct {
	pool   *Pool
	slots  *Slots
	nameOf map[uint32]string
}

// newNode returns a node whose slots are in the order of its file.
func newNode(t *testing.T, file []Backend, s Scheduler, admits map[string]Admit) *node {
	table := mustBuild(t, file, DefaultSize)
	n := &node{slots: &Slots{Admit: make([]atomic.Uint32, len(file))}, nameOf: map[uint32]string{}}
	slots := make([]uint32, len(table.Names()))
	for slot, b := range file {
		index, ok := slices.BinarySearch(table.Names(), b.Name)
		if !ok {
			continue
		}
		slots[index] = uint32(slot)
		n.nameOf[uint32(slot)] = b.Name
		a, ok := admits[b.Name]
		if !ok {
			a = MakeAdmit(Up, All)
		}
		set(n.slots, uint32(slot), a)
	}
	n.pool = NewPool(table, slots, s, 1)
	return n
}

// Two nodes whose files list the backends in different orders, and so give them other slots, agree on a million flows
// with the same health: about new flows if their schedulers say so, about others whatever those are.
func TestNodesAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	list := backends(17)
	list[1].Weight, list[7].Weight, list[9].Weight = 30, 999, 0
	health := map[string]Admit{
		"web-3": MakeAdmit(Down, All), "web-11": MakeAdmit(Draining, 0), "web-5": MakeAdmit(Up, All/3), "web-8": MakeAdmit(Cut, All),
	}
	for _, c := range []struct{ a, b Scheduler }{{Maglev, Maglev}, {Source, Maglev}} {
		a, b := newNode(t, shuffled(rng, list), c.a, health), newNode(t, shuffled(rng, list), c.b, health)
		if slices.Equal(a.pool.Slots(), b.pool.Slots()) {
			t.Fatal("both nodes have the same slots: the test shows nothing")
		}
		if a.pool.Table().Hash() != b.pool.Table().Hash() {
			t.Errorf("tables are called %s and %s", a.pool.Table().Hash(), b.pool.Table().Hash())
		}
		flows := 500000
		if raceEnabled {
			flows = 50000
		}
		for range flows {
			h := rng.Uint64()
			s1, _ := a.pool.New(testKey, h, a.slots, 0, 0)
			s2, _ := b.pool.New(testKey, h, b.slots, 0, 0)
			e1, _ := a.pool.Existing(testKey, h, a.slots)
			e2, _ := b.pool.Existing(testKey, h, b.slots)
			if a.nameOf[s1] != b.nameOf[s2] || a.nameOf[e1] != b.nameOf[e2] {
				t.Fatalf("hash %#x: new to %s and %s, existing to %s and %s", h, a.nameOf[s1], b.nameOf[s2], a.nameOf[e1], b.nameOf[e2])
			}
		}
	}
}
