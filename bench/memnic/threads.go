//go:build linux

package memnic

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/sluice-lb/sluice/internal/affinity"
)

// onThread runs f on a thread of its own, bound to the first CPU that the process may use, and waits for it. The processors that
// so many workers and the collector need beside are there, as the daemon has them.
func onThread(cpus []int, workers int, f func() error) error {
	if want := workers + 2; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its affinity with it
		if err := affinity.Pin(cpus[0]); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// crew is the threads of further workers, each bound to a CPU of its own. What one is asked to do it does beside the others and
// the caller.
type crew struct {
	asked []chan func()
}

// newCrew starts so many threads, on these CPUs.
func newCrew(cpus []int) (*crew, error) {
	c := &crew{}
	for _, cpu := range cpus {
		asked, ready := make(chan func()), make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked
			ready <- affinity.Pin(cpu)
			for f := range asked {
				f()
			}
		}()
		c.asked = append(c.asked, asked)
		if err := <-ready; err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// close ends the threads.
func (c *crew) close() {
	for _, asked := range c.asked {
		close(asked)
	}
}

// barrier holds goroutines until all have come. It spins, so that they go on within a moment of each other.
type barrier struct {
	members int32
	here    atomic.Int32
	turn    atomic.Uint32
}

func (b *barrier) wait() {
	turn := b.turn.Load()
	if b.here.Add(1) == b.members {
		b.here.Store(0)
		b.turn.Add(1)
		return
	}
	for spins := 0; b.turn.Load() == turn; spins++ {
		if spins%1000 == 999 {
			runtime.Gosched()
		}
	}
}

// busy says whether other programs use the machine, in a sentence; empty: they do not.
func busy() string {
	const calm = 0.5
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	var load float64
	if _, err := fmt.Sscan(string(text), &load); err != nil || load <= calm {
		return ""
	}
	return fmt.Sprintf("The load average was %s at the beginning: other programs ran too, and two workers do less than they could.",
		strings.Fields(string(text))[0])
}
