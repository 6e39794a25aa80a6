//go:build linux && amd64

package singlestep

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// rest is how long the child is left alone before its threads are stopped: the runtime's are all asleep then, and hold no lock.
	rest = 25 * time.Millisecond
	// A child that the parent could not have stop so is given up after patience; there are so many attempts.
	patience = 30 * time.Second
	attempts = 3
)

// Run starts this executable once more with arguments, and counts what it gives to Tracee.Count. What the child writes to its
// standard error is in the error if it fails. Run may be called by several goroutines at once; when ctx ends, so does the child.
func Run(ctx context.Context, arguments ...string) (*Profile, error) {
	type result struct {
		profile *Profile
		err     error
	}
	var r result
	for range attempts {
		done := make(chan result)
		go func() {
			// Never unlocked: the thread ends with the goroutine, and its affinity with it.
			runtime.LockOSThread()
			p, err := run(ctx, arguments)
			done <- result{p, err}
		}()
		if r = <-done; !errors.Is(r.err, errStuck) {
			break
		}
	}
	return r.profile, r.err
}

// errStuck says that the child stopped at a moment at which it could not go on alone.
var errStuck = errors.New("the traced process waits for a thread that is stopped")

func run(ctx context.Context, arguments []string) (_ *Profile, err error) {
	stuck, cancel := context.WithTimeoutCause(ctx, patience, errStuck)
	defer cancel()
	defer func() {
		if err != nil && stuck.Err() != nil {
			err = context.Cause(stuck)
		}
	}()
	hurry()
	helloR, helloW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer helloR.Close()
	defer helloW.Close()
	goR, goW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer goR.Close()
	defer goW.Close()

	var stderr strings.Builder
	c := exec.CommandContext(stuck, "/proc/self/exe", arguments...)
	c.Stderr, c.WaitDelay = &stderr, time.Second
	c.ExtraFiles = []*os.File{helloFD - 3: helloW, goFD - 3: goR}
	c.Env = append(os.Environ(), "GOGC=off", "GODEBUG="+strings.TrimPrefix(os.Getenv("GODEBUG")+",asyncpreemptoff=1", ","))
	c.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start this program for counting: %w", err)
	}
	t := &tracer{pid: c.Process.Pid, profile: &Profile{root: new(node), places: map[uint64]place{}}}
	defer func() {
		if err != nil {
			_ = c.Process.Kill()
		}
		t.reap()
		if waited := c.Wait(); waited != nil && stderr.Len() > 0 {
			err = errors.New(strings.TrimSpace(stderr.String()))
		} else if err == nil {
			err = waited
		}
	}()
	_ = helloW.Close()
	if err := t.meet(helloR); err != nil {
		return nil, err
	}
	time.Sleep(rest)
	if err := t.attach(); err != nil {
		return nil, err
	}
	if _, err := goW.Write([]byte{1}); err != nil {
		return nil, err
	}
	if err := t.follow(); err != nil {
		return nil, err
	}
	return t.profile, nil
}

// hurry makes the calling thread, and the child after it, faster: each step is a switch between the two, which costs least on one
// core, and less if nobody else gets between. Where that is not permitted stepping is slower.
func hurry() {
	stat, err := os.ReadFile("/proc/thread-self/stat")
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const processor = 39 - 3 // where it runs; proc(5) counts from 1, and two fields stand before the bracket
	if err != nil || len(fields) <= processor {
		return
	}
	if cpu, err := strconv.Atoi(fields[processor]); err == nil {
		var set unix.CPUSet
		set.Set(cpu)
		_ = unix.SchedSetaffinity(0, &set)
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	}
}

// tracer is the parent's view of a child. All its methods are called by the thread that attached.
type tracer struct {
	pid, tid int    // tid is the thread that is stepped
	counted  uint64 // where the child has the function counted
	others   []int  // threads that are stopped
	profile  *Profile
}

// meet learns who the child's counting thread is.
func (t *tracer) meet(hello *os.File) error {
	line, err := bufio.NewReader(hello).ReadString('\n')
	if err != nil {
		return errors.New("the traced process ended before it was ready")
	}
	if _, err := fmt.Sscan(line, &t.tid, &t.counted); err != nil {
		return fmt.Errorf("the traced process says %q, expected a thread and an address", line)
	}
	// A position-independent executable lies elsewhere in each process.
	t.profile.offset = reflect.ValueOf(counted).Pointer() - uintptr(t.counted)
	return nil
}

// attach stops all threads of the child.
func (t *tracer) attach() error {
	for fresh := true; fresh; {
		fresh = false
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", t.pid))
		if err != nil {
			return err
		}
		for _, path := range tasks {
			tid, err := strconv.Atoi(filepath.Base(path))
			if err != nil || slices.Contains(t.others, tid) {
				continue
			}
			if err := unix.PtraceAttach(tid); err != nil {
				return fmt.Errorf("ptrace attach to thread %d of this program: %w; counting instructions takes ptrace, which containers "+
					"and kernel.yama.ptrace_scope may forbid", tid, err)
			}
			t.others, fresh = append(t.others, tid), true
			if _, err := t.wait(tid); err != nil {
				return err
			}
		}
	}
	if err := unix.PtraceSetOptions(t.tid, unix.PTRACE_O_EXITKILL); err != nil {
		return fmt.Errorf("ptrace options: %w", err)
	}
	return nil
}

// reap takes the ends of the threads that are traced, after which the child can be waited for as any.
func (t *tracer) reap() {
	for _, tid := range t.others {
		for tid != t.pid {
			var status unix.WaitStatus
			_, err := unix.Wait4(tid, &status, unix.WALL, nil)
			if err != nil && err != unix.EINTR || err == nil && !status.Stopped() {
				break
			}
		}
	}
}

// errEnded says that the child is gone.
var errEnded = errors.New("the traced process has ended")

// wait waits until a thread has stopped, and says by which signal.
func (t *tracer) wait(tid int) (unix.Signal, error) {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(tid, &status, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait for thread %d: %w", tid, err)
		case status.Stopped():
			return status.StopSignal(), nil
		default:
			return 0, errEnded
		}
	}
}

// follow lets the child run, and steps through what it wants to have counted, until it ends.
func (t *tracer) follow() error {
	pass := 0
	for {
		if err := unix.PtraceCont(t.tid, pass); err != nil {
			return fmt.Errorf("ptrace continue: %w", err)
		}
		sig, err := t.wait(t.tid)
		if err == errEnded {
			return nil
		}
		if err != nil {
			return err
		}
		if pass = int(sig); sig == unix.SIGSTOP {
			pass = 0
			if err := t.count(); err != nil {
				return err
			}
		}
	}
}

// step executes one instruction and returns where the next one is.
func (t *tracer) step(regs *unix.PtraceRegs) error {
	if err := unix.PtraceSingleStep(t.tid); err != nil {
		return fmt.Errorf("ptrace single step: %w", err)
	}
	sig, err := t.wait(t.tid)
	if err != nil {
		return err
	}
	if sig != unix.SIGTRAP {
		return fmt.Errorf("signal %v while instructions are counted", sig)
	}
	if err := unix.PtraceGetRegs(t.tid, regs); err != nil {
		return fmt.Errorf("ptrace registers: %w", err)
	}
	return nil
}

// count steps through a call of counted.
func (t *tracer) count() error {
	var regs unix.PtraceRegs
	for regs.PC() != t.counted {
		if err := t.step(&regs); err != nil {
			return err
		}
	}
	p := t.profile
	p.Calls++
	top, before := p.root, uint64(0)
	outside := map[uint64]bool{}
	for {
		if err := t.step(&regs); err != nil {
			return err
		}
		pc := regs.PC()
		if pc == before {
			continue // the next turn of an instruction that repeats itself
		}
		before = pc
		for top.parent != nil && top.back == pc {
			if top = top.parent; top.parent == nil {
				return nil
			}
		}
		switch p.place(pc) {
		case entrance:
			back, err := t.returnAddress(&regs)
			if err != nil {
				return err
			}
			top = top.call(pc, back)
			clear(outside)
		case beyond:
			// The kernel's code reads the clock again if that has changed meanwhile. So it always does while it is stepped.
			if outside[pc] {
				continue
			}
			outside[pc] = true
		default:
			clear(outside)
		}
		if top.parent != nil {
			top.counts[pc]++
		}
	}
}

// returnAddress reads where a function that is about to begin will return to.
func (t *tracer) returnAddress(regs *unix.PtraceRegs) (uint64, error) {
	var word [8]byte
	if _, err := unix.PtracePeekData(t.tid, uintptr(regs.Rsp), word[:]); err != nil {
		return 0, fmt.Errorf("ptrace read of the stack: %w", err)
	}
	return binary.LittleEndian.Uint64(word[:]), nil
}
