//go:build linux && health && amd64

package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// TestHealthClockStepped steps the wall clock of daemon and healthd, and of nobody else, by hours there and back while backends are
// up, down and drained. Nothing changes, nobody is lost, and a fault is seen as fast as before.
func TestHealthClockStepped(t *testing.T) {
	const most = 10 * time.Second
	s := newHealthSystem(t, 3)
	servers := s.serveOn(8080)
	s.up(s.checked("web", 8080, fmt.Sprintf("{type: http, path: /name, %v}", hasty)))
	node := s.nodes[0]
	const up, down = control.StateUp, control.StateDown
	s.waitFor(node, 20*time.Second, "all up", known("web", up, up, up))
	must(t, servers["web-3"].do("close 8080"))
	s.waitFor(node, 20*time.Second, "web-3 down", known("web", up, up, down))
	w := startWatch(t, node.takes)
	began := time.Now()
	l := s.startLoad(on(8080), 30)
	for _, offset := range []time.Duration{time.Hour, -time.Hour, -30 * 24 * time.Hour, 30 * 24 * time.Hour, 0} {
		for _, p := range []*testenv.Process{node.healthd, node.daemon} {
			must(t, stepClock(p, offset))
		}
		time.Sleep(3 * time.Second)
		st := s.status(node)
		if st.Health.Stale || st.Health.AgeMS > most.Milliseconds() {
			t.Errorf("%v: the last report is %d ms old", offset, st.Health.AgeMS)
		}
		must(t, known("web", up, up, down)(&st))
		t.Logf("%v: reported at %v", offset, st.Health.Reported)
		if off := time.Until(st.Health.Reported) - offset; off.Abs() > most {
			t.Errorf("%v: the daemon says that it is %v: its clock was not stepped", offset, st.Health.Reported)
		}
	}
	if turns := w.end(); len(turns) != 0 {
		t.Errorf("what backends take has changed: %v", turns)
	}
	s.noneLost("clock stepped", l.wait(), began)
	must(t, stepClock(node.healthd, -time.Hour))
	must(t, servers["web-2"].do("close 8080"))
	s.waitFor(node, most, "web-2 down", known("web", up, down, down))
	s.down()
}

// stepClock makes the wall clock of one process differ from the machine's. No namespace has a wall clock, and Go asks the kernel's
// vDSO for it, so that function is replaced in the memory of the process: by one that asks the kernel, and adds to CLOCK_REALTIME.
func stepClock(p *testenv.Process, offset time.Duration) error {
	code := []byte{
		0xb8, 0xe4, 0, 0, 0, // mov $228, %eax: clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test %edi, %edi: CLOCK_REALTIME?
		0x75, 0x07, // jne ret
		0x48, 0x81, 0x06, 0, 0, 0, 0, // addq $seconds, (%rsi)
		0xc3, // ret
	}
	binary.LittleEndian.PutUint32(code[14:], uint32(int32(offset/time.Second)))
	start, end, err := vdsoOf(p.PID())
	if err != nil {
		return err
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", p.PID()), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	image := make([]byte, end-start)
	if _, err := memory.ReadAt(image, start); err != nil {
		return fmt.Errorf("read the vDSO: %w", err)
	}
	object, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return fmt.Errorf("the vDSO: %w", err)
	}
	symbols, err := object.DynamicSymbols()
	if err != nil {
		return fmt.Errorf("the vDSO: %w", err)
	}
	for _, symbol := range symbols {
		if symbol.Name != "__vdso_clock_gettime" {
			continue
		}
		// No thread may be amid the function.
		for range 100 {
			if err := p.Signal(unix.SIGSTOP); err != nil {
				return err
			}
			inside, err := anyThreadWithin(p.PID(), start, end)
			if err == nil && !inside {
				_, err = memory.WriteAt(code, start+int64(symbol.Value))
			}
			if err := errors.Join(err, p.Signal(unix.SIGCONT)); err != nil || !inside {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		return errors.New("there was always a thread in the vDSO")
	}
	return errors.New("the vDSO has no __vdso_clock_gettime")
}

// vdsoOf is where a process has the vDSO.
func vdsoOf(pid int) (start, end int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			_, err := fmt.Sscanf(line, "%x-%x", &start, &end)
			return start, end, err
		}
	}
	return 0, 0, fmt.Errorf("process %d has no vDSO", pid)
}

// anyThreadWithin waits until all threads of a process are stopped, and tells whether one is between two addresses.
func anyThreadWithin(pid int, start, end int64) (bool, error) {
	for range 1000 {
		stopped, inside, err := threadsWithin(pid, start, end)
		if err != nil || stopped {
			return inside, err
		}
		time.Sleep(time.Millisecond)
	}
	return false, fmt.Errorf("process %d does not stop", pid)
}

func threadsWithin(pid int, start, end int64) (stopped, inside bool, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(threads) == 0 {
		return false, false, fmt.Errorf("threads of process %d: %w", pid, err)
	}
	for _, thread := range threads {
		stat, err := os.ReadFile(filepath.Join(thread, "stat"))
		if err != nil {
			return false, false, err
		}
		if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
			return false, false, nil
		}
		// "running", or the number of a system call and its arguments, or -1, and then stack and instruction pointers.
		now, err := os.ReadFile(filepath.Join(thread, "syscall"))
		if err != nil {
			return false, false, err
		}
		fields := strings.Fields(string(now))
		var at int64
		if _, err := fmt.Sscanf(fields[len(fields)-1], "0x%x", &at); err == nil && start <= at && at < end {
			inside = true
		}
	}
	return true, inside, nil
}
