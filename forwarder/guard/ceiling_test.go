package guard

import (
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// One worker alone gets the rate exactly, burst and one more included, when it is slow enough for leases of one event; a fast one
// within a lease.
func TestCeilingOfOneWorker(t *testing.T) {
	for _, perSecond := range []uint64{1, 100, 1999, 20_000, 1_000_000, 50_000_000} {
		r := NewRate(perSecond, 100*time.Millisecond)
		for _, start := range []int64{0, 1 << 55, 1 << 62} {
			c := NewCeiling(1)
			step := max(1, int64(1e9/perSecond/4))
			events := int64(400_000)
			if raceEnabled {
				events = 40_000
			}
			admitted, now := 0, start
			for range events {
				if c.Admit(0, r, now) {
					admitted++
				}
				now += step
			}
			// Intervals that have begun.
			want := float64(perSecond)*(float64((events-1)*step)/1e9+max(0.1, 1/float64(perSecond))) + 1
			lease := 0.0
			if perSecond >= 2000 {
				lease = maxLease
			}
			if got := float64(admitted); want < float64(events) && (got > want+lease+0.01 || got < want-lease-1) {
				t.Errorf("%d a second from %d: %.0f admitted, want %.0f", perSecond, start, got, want)
			}
		}
	}
}

// Workers of very different load, over the ceiling together, get what it allows and not more than a lease each beyond that, in any
// second; below it, all of them get all.
func TestCeilingIsShared(t *testing.T) {
	const workers = 8
	r := NewRate(100_000, 10*time.Millisecond)
	for _, c := range []struct {
		name  string
		loads [workers]float64 // events a ms
		over  bool
	}{
		{"over", [workers]float64{200, 100, 50, 20, 5, 1, 0.5, 0.1}, true},
		{"over, all alike", [workers]float64{30, 30, 30, 30, 30, 30, 30, 30}, true},
		{"below", [workers]float64{30, 20, 10, 5, 1, 1, 0.5, 0.1}, false},
		{"below, one alone", [workers]float64{90}, false},
	} {
		limit, rng := NewCeiling(workers), rand.New(rand.NewPCG(1, 2))
		admitted, refused := 0, 0
		var second int
		const seconds = 5
		for now := int64(0); now < seconds*1e9; now += 100_000 {
			if now%1e9 == 0 {
				second = 0
			}
			for w, load := range c.loads {
				n := int(load / 10)
				if rng.Float64() < load/10-float64(n) {
					n++
				}
				for range n {
					if limit.Admit(w, r, now) {
						admitted++
						second++
					} else {
						refused++
					}
				}
			}
			if most := 100_000 + 1000 + 1 + workers*(maxLease-1); second > most {
				t.Fatalf("%s: %d admitted in a second, at most %d may be", c.name, second, most)
			}
		}
		if c.over && admitted < 100_000*seconds*99/100 || !c.over && refused > 0 {
			t.Errorf("%s: %d admitted, %d refused", c.name, admitted, refused)
		}
	}
}

// A rate that a reload changes holds from then on, also one with a smaller burst.
func TestCeilingChanges(t *testing.T) {
	c := NewCeiling(1)
	now := int64(1e9)
	count := func(r Rate, ms int) (n int) {
		for range ms * 100 {
			now += 10_000
			if c.Admit(0, r, now) {
				n++
			}
		}
		return n
	}
	if n := count(NewRate(1000, time.Second), 2000); n < 2990 || n > 3001 {
		t.Errorf("1,000 a second with a burst of 1 s: %d in 2 s", n)
	}
	if n := count(NewRate(100, 0), 2000); n < 98 || n > 102 { // after the second that was used in advance
		t.Errorf("then 100 a second: %d in 2 s", n)
	}
	if n := count(NewRate(20_000, 0), 1000); n < 19_800 || n > 20_064 {
		t.Errorf("then 20,000 a second: %d in 1 s", n)
	}
	if n := count(Rate{}, 10); n != 1000 {
		t.Errorf("without a rate: %d of 1,000", n)
	}
}

// A lease is no more than what comes in 1 ms, and is void after 4 ms.
func TestLease(t *testing.T) {
	const now = int64(1e9)
	r := NewRate(5000, 100*time.Millisecond)
	c := NewCeiling(2)
	for range 100 {
		if !c.Admit(0, r, now) {
			t.Fatal("refused within the burst")
		}
	}
	l := &c.leases[0]
	if l.size < 3 || l.size > 5 {
		t.Errorf("a lease of %d events at 5,000 a second", l.size)
	}
	if l.left == 0 {
		c.Admit(0, r, now)
	}
	for c.Admit(1, r, now+leaseLife-1) { // until all is used up
	}
	if left := l.left; left == 0 || !c.Admit(0, r, now+leaseLife-1) || l.left != left-1 {
		t.Errorf("a lease of which %d are left is void before its time", left)
	}
	l.left = 1
	if c.Admit(0, r, now+leaseLife) && l.until == now+leaseLife {
		t.Errorf("a lease is good after its time: %+v", *l)
	}
}

// Workers at the same time admit together what the ceiling allows.
func TestCeilingConcurrently(t *testing.T) {
	const workers, each = 4, 100_000
	r := NewRate(100_000, 10*time.Millisecond)
	c := NewCeiling(workers)
	var admitted, clock atomic.Int64
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for range each {
				if c.Admit(w, r, clock.Add(1000)) {
					admitted.Add(1)
				}
			}
		})
	}
	group.Wait()
	if n := admitted.Load(); n < 20_000 || n > 41_001+workers*maxLease { // in 0.4 s; leases lapse while a worker does not run
		t.Errorf("%d admitted, want 41,001", n)
	}
}

// What different workers write is on different pairs of cache lines, which processors fetch together.
func TestCeilingLayout(t *testing.T) {
	c := reflect.TypeFor[Ceiling]()
	arrival, _ := c.FieldByName("arrival")
	if lease := reflect.TypeFor[lease]().Size(); lease != 128 || arrival.Offset < 128 || c.Size()-arrival.Offset < 128 {
		t.Errorf("a lease has %d bytes; the word is at %d of %d", lease, arrival.Offset, c.Size())
	}
}
