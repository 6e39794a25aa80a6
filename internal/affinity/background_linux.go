package affinity

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// background is how much nicer work in the background is: on a core that somebody else wants it gets a tenth (sched_prio_to_weight in
// kernel/sched/core.c), and whoever wakes up there does not wait for it.
const background = 10

// Background has f run on a thread of its own that gives way to all others of the process, and returns when f does. It is for what
// takes milliseconds and can wait: a worker whose goroutine the runtime has preempted goes on only when another thread has had a CPU
// to hand it over. What f starts on other goroutines is not in the background. A panic of f is the caller's.
func Background(f func()) {
	ended := make(chan any)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its priority with it
		defer func() { ended <- recover() }()
		if raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil { // 20 - nice: getpriority(2)
			_ = unix.Setpriority(unix.PRIO_PROCESS, 0, min(20-raw+background, 19)) // anybody may become nicer
		}
		f()
	}()
	if p := <-ended; p != nil {
		panic(p)
	}
}
