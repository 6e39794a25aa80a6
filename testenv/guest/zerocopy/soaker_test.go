//go:build linux && guest

package zerocopy

import (
	"math"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// soaker takes what is left of the processor and counts how much that is: a thread that runs when nothing else wants to. In a
// machine whose clock counts instructions it is exact, also about interrupts, which the kernel's own accounts are not.
type soaker struct {
	turns   atomic.Uint64
	perNano float64 // turns that fit into a nanosecond of the guest's clock if nothing else runs
}

// startSoaker starts one, for the rest of the process, while nothing else is to do.
func startSoaker(t *testing.T) *soaker {
	t.Helper()
	runtime.GOMAXPROCS(4) // it keeps one of them
	s, started := &soaker{}, make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
		for {
			s.turn()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	// A machine has things to do after its start: they are done when two measurements agree.
	for range 40 {
		begun, before := time.Now(), s.turns.Load()
		time.Sleep(100 * time.Millisecond)
		perNano := float64(s.turns.Load()-before) / float64(time.Since(begun))
		calm := perNano > 0 && math.Abs(perNano-s.perNano) < perNano/200
		if s.perNano = perNano; calm {
			return s
		}
	}
	t.Fatal("the machine does not come to rest")
	return nil
}

func (s *soaker) turn() {
	n := 0
	for range 100 {
		n++
	}
	s.turns.Add(uint64(n / 100))
}

// busy begins a measurement; what it returns says for how long the processor has done other things since.
func (s *soaker) busy() func() time.Duration {
	begun, before := time.Now(), s.turns.Load()
	return func() time.Duration {
		left := float64(s.turns.Load()-before) / s.perNano
		return time.Since(begun) - time.Duration(left)
	}
}
