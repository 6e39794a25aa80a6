//go:build linux

package xsk_test

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/testenv"
)

// resources counts what the process has open.
func resources(t *testing.T) (descriptors, mappings int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			descriptors++
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		// Rings are mappings of sockets.
		if strings.Contains(line, "socket:") {
			mappings++
		}
	}
	return descriptors, mappings
}

func TestKernelModeIsReadBack(t *testing.T) {
	r := newRig(t)
	s := r.openQueue("left", 0, xsk.Auto)
	if s.Mode() != xsk.Copy {
		t.Errorf("mode on veth is %v, want copy", s.Mode())
	}
	if err := s.ZeroCopyRefusal(); !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "no zero-copy") {
		t.Errorf("refusal is %v, want EOPNOTSUPP and what it means", err)
	}
	if s := r.openQueue("left", 1, xsk.Copy); s.Mode() != xsk.Copy || s.ZeroCopyRefusal() != nil {
		t.Errorf("asked for copy: mode %v, refusal %v", s.Mode(), s.ZeroCopyRefusal())
	}
	if want := "left queue 0"; s.String() != want {
		t.Errorf("socket is %q, want %q", s, want)
	}
}

func TestKernelOpenErrors(t *testing.T) {
	r := newRig(t)
	left := index(t, r.lb, "left")
	bound := r.openQueue("left", 0, xsk.Copy)
	sockets, mappings := resources(t)
	free := r.umem.Free()

	second, err := xsk.NewUmem(kernelOptions)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	for name, c := range map[string]struct {
		umem         *xsk.Umem
		index, queue int
		mode         xsk.Mode
		errno        error
		want         string
	}{
		"queue too high, shared": {r.umem, left, queues, xsk.Auto, unix.EINVAL,
			"open left queue 2: bind: invalid argument; the interface has probably no queue 2: see ethtool -l"},
		"queue too high, first": {second, left, queues, xsk.Copy, unix.EINVAL,
			"open left queue 2: bind: invalid argument; the interface has probably no queue 2: see ethtool -l"},
		"no such interface": {second, 4711, 0, xsk.Auto, unix.ENODEV,
			"open left queue 0: bind: no such device; there is no such interface in this network namespace"},
		"no zero-copy": {r.umem, left, 1, xsk.ZeroCopy, unix.EOPNOTSUPP,
			"open left queue 1: bind: operation not supported; the driver has no zero-copy: use mode auto or copy"},
		"taken by another": {second, left, 0, xsk.Copy, unix.EBUSY,
			"open left queue 0: bind: device or resource busy; another AF_XDP socket is bound to this queue, of this or another program"},
		"open already":    {r.umem, left, 0, xsk.Copy, nil, "open left queue 0: is open already; close it first"},
		"negative queue":  {r.umem, left, -1, xsk.Copy, nil, "open left queue -1: queue -1: must be from 0 to 65535"},
		"no index":        {r.umem, 0, 1, xsk.Copy, nil, "open left queue 1: interface index 0: must be positive"},
		"no such mode":    {r.umem, left, 1, xsk.Mode(9), nil, "open left queue 1: mode Mode(9): must be auto, zerocopy or copy"},
		"queue too large": {r.umem, left, 1 << 16, xsk.Copy, nil, "open left queue 65536: queue 65536: must be from 0 to 65535"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.tryOpen(c.umem, "left", c.index, c.queue, c.mode)
			if err == nil || err.Error() != c.want || c.errno != nil && !errors.Is(err, c.errno) {
				t.Errorf("error is\n%v\nwant\n%v", err, c.want)
			}
		})
	}
	if s, m := resources(t); s != sockets || m != mappings {
		t.Errorf("%d sockets and %d mappings are left, there were %d and %d", s, m, sockets, mappings)
	}
	if got := r.umem.Free(); got != free {
		t.Errorf("%d frames free, there were %d", got, free)
	}
	if err := bound.Close(); err != nil {
		t.Fatal(err)
	}
	// Busy, but only for some milliseconds after Close: Open waits for it.
	if _, err := r.tryOpen(second, "left", left, 0, xsk.Copy); err != nil {
		t.Errorf("right after the queue was given up: %v", err)
	}
}

// without runs f on a thread that lacks capabilities.
func without(t *testing.T, f func(), capabilities ...int) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&header, &data[0])
		for _, c := range capabilities {
			data[c/32].Effective &^= 1 << (c % 32)
		}
		if err == nil {
			err = unix.Capset(&header, &data[0])
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestKernelMissingCapabilities(t *testing.T) {
	testenv.RequireRoot(t)
	open := func(u *xsk.Umem) error {
		_, err := u.Open("lo", 1, 0, xsk.Copy)
		return err
	}
	o := kernelOptions
	o.Frames = 1 << 14 // 64 MiB
	u, err := xsk.NewUmem(o)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	without(t, func() {
		if err := open(u); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "socket AF_XDP: operation not permitted; run as root or with CAP_NET_RAW") {
			t.Errorf("without CAP_NET_RAW: %v", err)
		}
	}, unix.CAP_NET_RAW)

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: 1 << 20, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &low); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit)
	without(t, func() {
		if err := open(u); !errors.Is(err, unix.ENOBUFS) || !strings.Contains(err.Error(), "setsockopt XDP_UMEM_REG") ||
			!strings.Contains(err.Error(), "more than 64 MiB would be locked") {
			t.Errorf("without CAP_IPC_LOCK: %v", err)
		}
	}, unix.CAP_IPC_LOCK)
	if u.Free() != u.Frames() {
		t.Errorf("%d frames of %d are free", u.Free(), u.Frames())
	}
}

// Each step of opening is made to fail in turn; nothing may be left of it, and the next try must succeed.
func TestKernelEachStepFails(t *testing.T) {
	r := newRig(t)
	left, right := index(t, r.lb, "left"), index(t, r.lb, "right")
	o := kernelOptions
	o.BusyPoll = true // for its steps
	sockets, mappings := resources(t)
	for step := 1; ; step++ {
		f := &xsk.FailingSystem{At: step, Errno: unix.EIO}
		u, err := xsk.NewFailingUmem(o, f)
		if step == 1 {
			if !errors.Is(err, unix.EIO) {
				t.Fatalf("memory cannot be mapped: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_, first := r.tryOpen(u, "left", left, 0, xsk.Copy)
		_, second := r.tryOpen(u, "right", right, 0, xsk.Copy) // on the registration of the first, if that is open
		failed := len(f.Calls) >= step
		ignored := failed && f.Calls[step-1] == "setInt" && first == nil && second == nil
		if failed && !ignored {
			err := errors.Join(first, second)
			if f.Calls[step-1] == "mapRings" {
				if !errors.Is(err, unix.EINVAL) {
					t.Errorf("step %d (mapRings): %v", step, err)
				}
			} else if !errors.Is(err, unix.EIO) {
				t.Errorf("step %d (%s): %v", step, f.Calls[step-1], err)
			}
			if first != nil && second != nil {
				t.Errorf("step %d (%s): the second Open failed too: %v", step, f.Calls[step-1], second)
			}
			if f.Open() != 1 {
				t.Errorf("step %d (%s): %d descriptors are open, want that of the other socket", step, f.Calls[step-1], f.Open())
			}
			until(t, "frames of the socket that was not opened are not back", func() bool {
				if err := u.Wait(time.Millisecond); err != nil {
					t.Fatal(err)
				}
				return u.Free() == u.Frames()-o.FillSize
			})
		}
		if _, err := u.Audit(); err != nil {
			t.Error(err)
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
		if s, m := resources(t); s != sockets || m != mappings {
			t.Fatalf("step %d: %d sockets and %d mappings are left, there were %d and %d", step, s, m, sockets, mappings)
		}
		if !failed {
			if first != nil || second != nil || step < 20 {
				t.Fatalf("no step failed, and yet: %v, %v (%d steps)", first, second, step)
			}
			t.Logf("%d steps", step-1)
			return
		}
	}
}
