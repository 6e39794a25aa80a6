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
func newPool(t testing.TB, n int) (*Pool, []atomic.Uint32) {
	p := &Pool{Table: mustBuild(t, backends(n), DefaultSize)}
	admit := make([]atomic.Uint32, 3*n+1)
	for _, i := range rand.New(rand.NewPCG(uint64(n), 7)).Perm(n) {
		p.Slots = append(p.Slots, uint32(3*i+1))
	}
	setAll(p, admit, MakeAdmit(Up, All))
	return p, admit
}

func setAll(p *Pool, admit []atomic.Uint32, a Admit) {
	for _, s := range p.Slots {
		admit[s].Store(uint32(a))
	}
}

// primary is the slot of a flow's first candidate, computed from the definition.
func primary(p *Pool, hash uint64) uint32 { return candidate(p, hash, 0) }

func candidate(p *Pool, hash uint64, i int) uint32 {
	entry := (Mix(testKey, hash, i) >> 32) * uint64(len(p.Table.entries)) >> 32
	return p.Slots[p.Table.entries[entry]]
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
	for _, s := range []AdmitState{Down, Draining, Up} {
		for _, f := range []uint32{0, 1, 77, 65535, All} {
			if a := MakeAdmit(s, f); a.State() != s || a.Fraction() != f {
				t.Errorf("MakeAdmit(%v, %d) holds %v, %d", s, f, a.State(), a.Fraction())
			}
		}
		if a := MakeAdmit(s, math.MaxUint32); a.State() != s || a.Fraction() != All {
			t.Errorf("MakeAdmit(%v, too much) holds %v, %d", s, a.State(), a.Fraction())
		}
	}
	if got := Down.String() + Draining.String() + Up.String() + AdmitState(3).String(); got != "downdrainingupadmit state(3)" {
		t.Errorf("names: %s", got)
	}
}

// With every backend up, everything goes to the first candidate.
func TestAllUp(t *testing.T) {
	for _, n := range []int{1, 3, 100} {
		p, admit := newPool(t, n)
		for _, h := range hashes(50000) {
			want := primary(p, h)
			s1, ok1 := p.ChooseNew(testKey, h, admit)
			s2, ok2 := p.ChooseExisting(testKey, h, admit)
			if !ok1 || !ok2 || s1 != want || s2 != want {
				t.Fatalf("%d backends, hash %#x: new %d %v, existing %d %v, want %d", n, h, s1, ok1, s2, ok2, want)
			}
		}
	}
}

// A backend that goes down moves its own flows only, spreads them over all others, and gets them all back.
func TestDownMovesOnlyItsFlows(t *testing.T) {
	p, admit := newPool(t, 10)
	dead := p.Slots[4]
	admit[dead].Store(uint32(MakeAdmit(Down, All)))
	to := map[uint32]int{}
	hs := hashes(200000)
	for _, h := range hs {
		s1, _ := p.ChooseNew(testKey, h, admit)
		s2, _ := p.ChooseExisting(testKey, h, admit)
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
	admit[dead].Store(uint32(MakeAdmit(Up, All)))
	for _, h := range hs[:10000] {
		if s, _ := p.ChooseNew(testKey, h, admit); s != primary(p, h) {
			t.Fatalf("hash %#x is at %d and not back at %d", h, s, primary(p, h))
		}
	}
}

// A draining backend gets no new flow, keeps those that it is the first candidate of, and takes over none.
func TestDraining(t *testing.T) {
	p, admit := newPool(t, 5)
	draining, dead := p.Slots[1], p.Slots[3]
	admit[draining].Store(uint32(MakeAdmit(Draining, All)))
	admit[dead].Store(uint32(MakeAdmit(Down, 0)))
	for _, h := range hashes(100000) {
		s1, ok1 := p.ChooseNew(testKey, h, admit)
		s2, ok2 := p.ChooseExisting(testKey, h, admit)
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
	p, admit := newPool(t, 10)
	slow := p.Slots[7]
	hs := hashes(200000)
	had := map[uint64]bool{}
	for _, f := range []float64{0, 0.1, 0.5, 0.9, 1} {
		admit[slow].Store(uint32(MakeAdmit(Up, uint32(f*All))))
		own, got := 0, 0
		for _, h := range hs {
			was := primary(p, h)
			s, ok := p.ChooseNew(testKey, h, admit)
			if !ok || was != slow && s != was {
				t.Fatalf("fraction %v: hash %#x of %d goes to %d, %v", f, h, was, s, ok)
			}
			if e, _ := p.ChooseExisting(testKey, h, admit); e != was {
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
	p, admit := newPool(t, 10)
	for _, h := range hashes(2000) {
		slow := primary(p, h)
		bits := uint32(Mix(testKey, h, 0) & 0xffff)
		admit[slow].Store(uint32(MakeAdmit(Up, bits+1)))
		if s, _ := p.ChooseNew(testKey, h, admit); s != slow {
			t.Fatalf("hash %#x with bits %d goes to %d, though %d takes %d", h, bits, s, slow, bits+1)
		}
		admit[slow].Store(uint32(MakeAdmit(Up, bits)))
		if s, _ := p.ChooseNew(testKey, h, admit); s == slow && candidate(p, h, 1) != slow {
			t.Fatalf("hash %#x with bits %d goes to %d, which takes %d only", h, bits, s, bits)
		}
		admit[slow].Store(uint32(MakeAdmit(Up, All)))
	}
}

// When all start slowly at once, no client is refused and the load stays even.
func TestAllSlow(t *testing.T) {
	for _, f := range []uint32{1, All / 10} {
		p, admit := newPool(t, 20)
		setAll(p, admit, MakeAdmit(Up, f))
		got := map[uint32]int{}
		for _, h := range hashes(100000) {
			s, ok := p.ChooseNew(testKey, h, admit)
			if !ok {
				t.Fatalf("fraction %d everywhere: refused", f)
			}
			got[s]++
		}
		for _, s := range p.Slots {
			if math.Abs(float64(got[s]-5000)) > 500 {
				t.Errorf("fraction %d everywhere: slot %d gets %d of 100000 flows, want about 5000", f, s, got[s])
			}
		}
	}
}

// With nobody up there is no choice; a backend that is up with a fraction of zero takes no new flow, but packets.
func TestNobody(t *testing.T) {
	p, admit := newPool(t, 10)
	for _, c := range []struct {
		all           Admit
		new, existing bool
	}{
		{MakeAdmit(Down, All), false, false},
		{MakeAdmit(Draining, All), false, true},
		{MakeAdmit(Up, 0), false, true},
		{MakeAdmit(Up, 1), true, true},
	} {
		setAll(p, admit, c.all)
		for _, h := range hashes(1000) {
			_, n := p.ChooseNew(testKey, h, admit)
			_, e := p.ChooseExisting(testKey, h, admit)
			if n != c.new || e != c.existing {
				t.Fatalf("all %v with %d: new %v, existing %v; want %v, %v", c.all.State(), c.all.Fraction(), n, e, c.new, c.existing)
			}
		}
	}
}

// One backend alive of a hundred is found by every flow, most of which do not have it among their candidates.
func TestLastOneAlive(t *testing.T) {
	p, admit := newPool(t, 100)
	for alive := range 100 {
		setAll(p, admit, MakeAdmit(Down, All))
		admit[p.Slots[alive]].Store(uint32(MakeAdmit(Up, 10)))
		for _, h := range hashes(300) {
			s1, ok1 := p.ChooseNew(testKey, h, admit)
			s2, ok2 := p.ChooseExisting(testKey, h, admit)
			if !ok1 || !ok2 || s1 != p.Slots[alive] || s2 != s1 {
				t.Fatalf("only slot %d is up: new %d %v, existing %d %v", p.Slots[alive], s1, ok1, s2, ok2)
			}
		}
	}
}

// The first backend up in sorted order is taken if no candidate is.
func TestListOrder(t *testing.T) {
	p, admit := newPool(t, 100)
	setAll(p, admit, MakeAdmit(Down, 0))
	admit[p.Slots[60]].Store(uint32(MakeAdmit(Up, All)))
	admit[p.Slots[20]].Store(uint32(MakeAdmit(Up, All)))
	fell := 0
	for _, h := range hashes(5000) {
		want := p.Slots[20]
		for i := range 8 {
			if c := candidate(p, h, i); c == p.Slots[20] || c == p.Slots[60] {
				want = c
				fell--
				break
			}
		}
		fell++
		if s, ok := p.ChooseNew(testKey, h, admit); !ok || s != want {
			t.Fatalf("hash %#x: new goes to %d, want %d", h, s, want)
		}
		if s, ok := p.ChooseExisting(testKey, h, admit); !ok || s != want {
			t.Fatalf("hash %#x: existing goes to %d, want %d", h, s, want)
		}
	}
	if fell < 3000 {
		t.Errorf("only %d of 5000 flows reached the list", fell)
	}
}

// Two nodes whose files list the backends in different orders, and so give them other slots, agree on a million flows
// with the same health.
func TestNodesAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	names := backends(17)
	type node struct {
		pool   Pool
		admit  []atomic.Uint32
		nameOf map[uint32]string
	}
	health := map[string]Admit{
		"web-3": MakeAdmit(Down, All), "web-11": MakeAdmit(Draining, 0), "web-5": MakeAdmit(Up, All/3),
	}
	var nodes [2]node
	for i := range nodes {
		file := shuffled(rng, names)
		n := &nodes[i]
		n.pool.Table = mustBuild(t, file, DefaultSize)
		n.admit = make([]atomic.Uint32, len(file))
		n.nameOf = map[uint32]string{}
		n.pool.Slots = make([]uint32, len(file))
		for slot, name := range file { // slots in the order of the file
			index := slices.Index(n.pool.Table.Names(), name)
			n.pool.Slots[index] = uint32(slot)
			n.nameOf[uint32(slot)] = name
			a, ok := health[name]
			if !ok {
				a = MakeAdmit(Up, All)
			}
			n.admit[slot].Store(uint32(a))
		}
	}
	a, b := &nodes[0], &nodes[1]
	if slices.Equal(a.pool.Slots, b.pool.Slots) {
		t.Fatal("both nodes have the same slots: the test shows nothing")
	}
	for range 1000000 {
		h := rng.Uint64()
		s1, _ := a.pool.ChooseNew(testKey, h, a.admit)
		s2, _ := b.pool.ChooseNew(testKey, h, b.admit)
		e1, _ := a.pool.ChooseExisting(testKey, h, a.admit)
		e2, _ := b.pool.ChooseExisting(testKey, h, b.admit)
		if a.nameOf[s1] != b.nameOf[s2] || a.nameOf[e1] != b.nameOf[e2] {
			t.Fatalf("hash %#x: new to %s and %s, existing to %s and %s", h, a.nameOf[s1], b.nameOf[s2], a.nameOf[e1], b.nameOf[e2])
		}
	}
}

func TestChooseAllocatesNothing(t *testing.T) {
	p, admit := newPool(t, 10)
	setAll(p, admit, MakeAdmit(Down, 0)) // the longest way
	h := uint64(0)
	if n := testing.AllocsPerRun(1000, func() {
		p.ChooseNew(testKey, h, admit)
		p.ChooseExisting(testKey, h, admit)
		h++
	}); n != 0 {
		t.Errorf("%v allocations a choice", n)
	}
}

func BenchmarkChoose(b *testing.B) {
	p, admit := newPool(b, 100)
	hs := hashes(1 << 16)
	var sum uint32
	b.Run("new", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			s, _ := p.ChooseNew(testKey, hs[i&(len(hs)-1)], admit)
			sum += s
		}
	})
	b.Run("existing", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			s, _ := p.ChooseExisting(testKey, hs[i&(len(hs)-1)], admit)
			sum += s
		}
	})
	b.Run("new/half_down", func(b *testing.B) {
		for i, s := range p.Slots {
			if i%2 == 0 {
				admit[s].Store(0)
			}
		}
		for i := 0; b.Loop(); i++ {
			s, _ := p.ChooseNew(testKey, hs[i&(len(hs)-1)], admit)
			sum += s
		}
	})
	b.Run("new/one_up", func(b *testing.B) {
		setAll(p, admit, 0)
		admit[p.Slots[99]].Store(uint32(MakeAdmit(Up, All)))
		for i := 0; b.Loop(); i++ {
			s, _ := p.ChooseNew(testKey, hs[i&(len(hs)-1)], admit)
			sum += s
		}
	})
	sink = sum
}

var sink uint32
