//go:build linux

package churn

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// cores is who runs where: the worker on a core of its own, all other threads of the process on the others.
type cores struct {
	before, worker unix.CPUSet
	note           string
	divided        bool
}

// divideCores takes the last core that the process may use away from its threads; threads that come later inherit that. With one
// core there is nothing to divide.
func divideCores() (*cores, error) {
	c := new(cores)
	if err := unix.SchedGetaffinity(0, &c.before); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	if c.before.Count() < 2 {
		c.note = "There was one core only: the worker shared it with everything else, and what it waited for was mostly that."
		return c, nil
	}
	last := 0
	for i := range len(c.before) * 64 {
		if c.before.IsSet(i) {
			last = i
		}
	}
	c.worker.Set(last)
	others := c.before
	others.Clear(last)
	c.divided = true
	c.note = fmt.Sprintf("The worker ran on core %d, everything else of this process on the %d others; other programs may have run on each.", last, others.Count())
	return c, setAll(others)
}

// bindWorker binds the calling thread to the worker's core.
func (c *cores) bindWorker() {
	if c.divided {
		_ = unix.SchedSetaffinity(0, &c.worker) // it was a core of this process a moment ago
	}
}

// restore lets the threads run where they could before.
func (c *cores) restore() {
	if c.divided {
		_ = setAll(c.before)
	}
}

// setAll binds all threads of the process. Those that are made meanwhile by one that is not bound yet are found by a second look.
func setAll(set unix.CPUSet) error {
	for range 2 {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				continue
			}
			if err := unix.SchedSetaffinity(tid, &set); err != nil && err != unix.ESRCH { // it has ended
				return fmt.Errorf("bind thread %d of this process: %w", tid, err)
			}
		}
	}
	return nil
}
