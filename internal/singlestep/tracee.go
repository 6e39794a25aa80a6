//go:build linux

package singlestep

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"

	"golang.org/x/sys/unix"
)

// The descriptors of a child: it says by one who it is, and waits for the other.
const (
	helloFD = 3
	goFD    = 4
)

// Tracee is the child's own side. It belongs to the goroutine that Serve made for it.
type Tracee struct {
	pid, tid int
}

// Serve makes this process, which Run must have started, one that is counted: it calls f on a thread of its own and exits
// after it. f makes everything ready, calls Attach, and then Count as often as it likes.
func Serve(f func(*Tracee) error) {
	go serve(f)
	select {}
}

func serve(f func(*Tracee) error) {
	runtime.LockOSThread()
	t := &Tracee{pid: os.Getpid(), tid: unix.Gettid()}
	if t.tid == t.pid { // whose end the parent would not be told before that of all others
		go serve(f)
		select {}
	}
	if err := f(t); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Attach waits until the parent traces this process. From then on only the calling goroutine runs.
func (t *Tracee) Attach() error {
	hello := fmt.Appendf(nil, "%d %d\n", t.tid, reflect.ValueOf(counted).Pointer())
	if _, err := unix.Write(helloFD, hello); err != nil {
		return fmt.Errorf("write to the tracing parent: %w; only singlestep.Run starts such a process", err)
	}
	for {
		switch n, err := unix.Read(goFD, make([]byte, 1)); {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("read from the tracing parent: %w", err)
		case n == 0:
			return errors.New("the tracing parent has ended")
		default:
			return nil
		}
	}
}

// Count has the instructions of f counted, from its first to its last, and those of what it calls.
func (t *Tracee) Count(f func()) {
	_ = unix.Tgkill(t.pid, t.tid, unix.SIGSTOP) // the parent sees it and steps from here on; it is never delivered
	counted(f)
}

// counted is where the parent begins to count: at the first call from here.
//
//go:noinline
func counted(f func()) { f() }
