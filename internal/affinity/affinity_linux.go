// Package affinity says which CPUs threads run on, sched_setaffinity(2), and before whom. CPUs are numbered as in /proc/cpuinfo. Any goroutine may call
// it; what concerns the calling thread is for one that is locked to it (runtime.LockOSThread).
package affinity

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Allowed returns the CPUs that the calling thread may use, ascending: those of the process, as long as nobody has bound the thread.
func Allowed() (cpus []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}

// Pin binds the calling thread to CPUs.
func Pin(cpus ...int) error { return pin(0, cpus) }

// PinAll binds all threads of the process to CPUs, and those that these will start.
func PinAll(cpus ...int) error {
	return Threads(func(tid int) error { return pin(tid, cpus) })
}

func pin(tid int, cpus []int) error {
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	if err := unix.SchedSetaffinity(tid, &set); err != nil {
		return fmt.Errorf("pin thread %d to CPUs %v: %w", tid, cpus, err)
	}
	return nil
}

// Threads calls f with each thread of the process, and takes it that one has ended meanwhile (ESRCH). One that starts meanwhile has
// what its parent had, and is found in a second turn: f is called twice with most.
func Threads(f func(tid int) error) error {
	for range 2 {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				return err
			}
			if err := f(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}
