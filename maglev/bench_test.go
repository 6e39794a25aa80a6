package maglev

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// sink keeps the compiler from leaving out what is measured.
var sink uint32

func TestChooseAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, scheduler := range schedulers {
		v, s := change(t, Maglev, scheduler)
		h, now := uint64(0), int64(0)
		for _, state := range []AdmitState{Up, Down} { // down: the longest way
			setAll(v.Pool, s, MakeAdmit(state, All))
			setAll(v.Past[0].Pool, s, MakeAdmit(state, All))
			if n := testing.AllocsPerRun(1000, func() {
				v.New(testKey, h, s, 0, now)
				v.Existing(testKey, h, s, now)
				v.Datagram(testKey, h, s, 0, now)
				h++
				now += loadsNanos / 3
			}); n != 0 {
				t.Errorf("%v, all %v: %v allocations a choice", scheduler, state, n)
			}
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		for _, w := range append(weightings[3:4:4], weighting{"equal", func(_ *rand.Rand, _ int) int { return 1 }}) {
			b.Run(fmt.Sprintf("backends=%d/weights=%s", n, w.name), func(b *testing.B) {
				list := weightedBy(n, w.of)
				for b.Loop() {
					mustBuild(b, list, DefaultSize)
				}
			})
		}
	}
	b.Run("backends=1000/size=655373", func(b *testing.B) {
		list := weightedBy(1000, weightings[3].of)
		for b.Loop() {
			mustBuild(b, list, LargeSize)
		}
	})
}

// BenchmarkNew is the choice for a new flow, at a microsecond from one to the next.
func BenchmarkNew(b *testing.B) {
	hs := hashes(1 << 16)
	for _, n := range []int{100, 1000} {
		for _, scheduler := range schedulers[:4] {
			b.Run(fmt.Sprintf("%v/backends=%d", scheduler, n), func(b *testing.B) {
				p, s := poolOf(b, backends(n), scheduler, 2)
				var sum uint32
				for i := 0; b.Loop(); i++ {
					slot, _ := p.New(testKey, hs[i&(len(hs)-1)], s, 0, int64(i)*1000)
					sum += slot
				}
				sink = sum
			})
		}
	}
	p, s := newPool(b, 100)
	run := func(name string) {
		b.Run(name, func(b *testing.B) {
			var sum uint32
			for i := 0; b.Loop(); i++ {
				slot, _ := p.New(testKey, hs[i&(len(hs)-1)], s, 0, 0)
				sum += slot
			}
			sink = sum
		})
	}
	for i, slot := range p.Slots() {
		if i%2 == 0 {
			set(s, slot, 0)
		}
	}
	run("maglev/half_down")
	setAll(p, s, 0)
	set(s, p.Slots()[99], MakeAdmit(Up, All))
	run("maglev/one_up")
}

func BenchmarkExisting(b *testing.B) {
	hs := hashes(1 << 16)
	p, s := newPool(b, 100)
	var sum uint32
	for i := 0; b.Loop(); i++ {
		slot, _ := p.Existing(testKey, hs[i&(len(hs)-1)], s)
		sum += slot
	}
	sink = sum
}
