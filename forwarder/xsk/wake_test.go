//go:build linux

package xsk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// load puts frames, each one byte long and numbered from first, into the TX ring of a socket.
func load(t *testing.T, n *MemoryNIC, s *Socket, first, count int) {
	t.Helper()
	var frames [][]byte
	for i := range count {
		frames = append(frames, []byte{byte(first + i)})
	}
	batch := make([]Desc, count)
	if n.DeliverBatch(s.Queue(), frames) != count || s.Receive(batch) != count || s.Transmit(batch) != count {
		t.Fatalf("cannot load %d frames", count)
	}
}

func TestNoSystemCallUnlessAsked(t *testing.T) {
	n := memoryNIC(t, small, 1)
	s := n.Sockets()[0]
	wake := func(want uint64, why string) {
		t.Helper()
		before := s.counts.Wakes
		if err := s.Wake(); err != nil {
			t.Fatal(err)
		}
		if got := s.counts.Wakes - before; got != want {
			t.Errorf("%s: %d system calls, want %d", why, got, want)
		}
	}
	wake(0, "idle, not asked")
	load(t, n, s, 0, 4)
	wake(0, "frames to send, not asked")
	if got := n.Collect(0, nil); got != 4 {
		t.Fatalf("sent %d, want 4", got)
	}

	n.Inject(0, Faults{NeedWakeup: true})
	wake(1, "the fill ring asks")
	wake(0, "the fill ring was looked at; TX asks but has nothing")
	load(t, n, s, 0, 3)
	if got := n.Collect(0, nil); got != 0 {
		t.Fatalf("the sleeping NIC sent %d", got)
	}
	wake(1, "TX asks")
	wake(0, "awake")
	if got := n.Collect(0, nil); got != 3 {
		t.Fatalf("the woken NIC sent %d, want 3", got)
	}
	wake(0, "asleep again, nothing to send")

	// Both rings ask. The NIC asks for frames when it finds none in the fill ring.
	n.Inject(0, Faults{})
	load(t, n, s, 0, 2)
	n.Inject(0, Faults{NeedWakeup: true})
	if n.Deliver(0, []byte{1}) {
		t.Fatal("the NIC took a frame from a fill ring that it was not told to look at")
	}
	wake(2, "both ask")
	if !n.Deliver(0, []byte{1}) || n.Collect(0, nil) != 2 {
		t.Error("a ring was not looked at")
	}
}

func TestBusyPollCallsEachTime(t *testing.T) {
	o := small
	o.BusyPoll = true
	n := memoryNIC(t, o, 1)
	s := n.Sockets()[0]
	for range 5 {
		if err := s.Wake(); err != nil {
			t.Fatal(err)
		}
	}
	load(t, n, s, 0, 2)
	if err := s.Wake(); err != nil {
		t.Fatal(err)
	}
	if s.counts.Wakes != 6 {
		t.Errorf("%d system calls, want 6: one each time", s.counts.Wakes)
	}
}

func openCopy(t *testing.T, o Options) (*MemoryNIC, *Socket) {
	t.Helper()
	n := memoryNIC(t, o, 1)
	if err := n.Sockets()[0].Close(); err != nil {
		t.Fatal(err)
	}
	s, err := n.Open(0, Copy)
	if err != nil {
		t.Fatal(err)
	}
	return n, s
}

func TestCopyModeSendsAllInOneWake(t *testing.T) {
	o := Options{Frames: 512, FillSize: 256, RXSize: 256, TXSize: 256, CompletionSize: 256, Audit: true}
	n, s := openCopy(t, o)
	load(t, n, s, 0, 200)
	if got := n.Collect(0, nil); got != 0 {
		t.Fatalf("%d frames left before Wake", got)
	}
	if err := s.Wake(); err != nil {
		t.Fatal(err)
	}
	next := byte(0)
	if got := n.Collect(0, func(f []byte) {
		if f[0] != next {
			t.Errorf("frame %d came in place of %d", f[0], next)
		}
		next++
	}); got != 200 {
		t.Errorf("%d frames left, want 200", got)
	}
	if want := uint64(7); s.counts.Wakes != want { // ⌈200/32⌉
		t.Errorf("%d system calls, want %d", s.counts.Wakes, want)
	}
	if err := s.Wake(); err != nil || s.counts.Wakes != 7 {
		t.Errorf("a system call for an empty TX ring (%v)", err)
	}
	s.Receive(nil)
	if c := audit(t, n); c.TX+c.Completion+c.Worker != 0 {
		t.Errorf("%+v", c)
	}
}

func TestCongestionIsCountedAndSentLater(t *testing.T) {
	for _, mode := range []Mode{ZeroCopy, Copy} {
		for errno, count := range map[unix.Errno]func(Counts) uint64{
			unix.EAGAIN:   func(c Counts) uint64 { return c.Stalled },
			unix.ENOBUFS:  func(c Counts) uint64 { return c.Stalled },
			unix.ENOMEM:   func(c Counts) uint64 { return c.Stalled },
			unix.ENETDOWN: func(c Counts) uint64 { return c.Down },
			unix.EBUSY:    func(c Counts) uint64 { return c.Refused },
		} {
			t.Run(fmt.Sprintf("%v %v", mode, errno), func(t *testing.T) {
				if mode == Copy && errno == unix.EBUSY {
					t.Log("means something else in copy mode, see TestDroppedInCopyMode")
					return
				}
				n := memoryNIC(t, small, 1)
				if err := n.Sockets()[0].Close(); err != nil {
					t.Fatal(err)
				}
				s, err := n.Open(0, mode)
				if err != nil {
					t.Fatal(err)
				}
				load(t, n, s, 0, 5)
				n.Inject(0, Faults{NeedWakeup: true, WakeError: errno})
				for range 3 {
					before := s.counts.Wakes
					if err := s.Wake(); err != nil {
						t.Fatalf("Wake: %v", err)
					}
					if calls := s.counts.Wakes - before; calls > 2 {
						t.Fatalf("%d system calls in vain: a busy loop", calls)
					}
				}
				s.Receive(nil)
				if got := count(s.Counts()); got < 3 {
					t.Errorf("%+v: counted %d times, want at least 3", s.Counts(), got)
				}
				n.Inject(0, Faults{})
				var sent []byte
				if err := s.Wake(); err != nil {
					t.Fatal(err)
				}
				n.Collect(0, func(f []byte) { sent = append(sent, f[0]) })
				if want := []byte{0, 1, 2, 3, 4}; !bytes.Equal(sent, want) {
					t.Errorf("sent %v when the fault was over, want %v", sent, want)
				}
			})
		}
	}
}

// In copy mode EBUSY means that one frame was dropped and completed, and that the others wait.
func TestDroppedInCopyMode(t *testing.T) {
	n, s := openCopy(t, small)
	load(t, n, s, 0, 6)
	n.Inject(0, Faults{WakeError: unix.EBUSY})
	if err := s.Wake(); err != nil {
		t.Fatal(err)
	}
	s.Receive(nil)
	if c := s.Counts(); c.Refused != 6 || c.Completed != 6 {
		t.Errorf("%+v: want 6 refused and completed", c)
	}
	if c := audit(t, n); c.TX+c.Completion+c.Worker+c.Kernel != 0 {
		t.Errorf("%+v: frames are left", c)
	}
}

func TestInterfaceGone(t *testing.T) {
	n := memoryNIC(t, small, 2)
	s := n.Sockets()[0]
	load(t, n, s, 0, 5)
	n.Inject(0, Faults{NeedWakeup: true, Gone: true})
	for range 3 {
		if err := s.Wake(); !errors.Is(err, ErrGone) {
			t.Fatalf("Wake: %v, want ErrGone", err)
		}
	}
	if s.counts.Wakes != 1 {
		t.Errorf("%d system calls on an interface that is gone, want 1", s.counts.Wakes)
	}
	if n.Deliver(0, []byte{1}) {
		t.Error("received from an interface that is gone")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Wake(); !errors.Is(err, os.ErrClosed) || errors.Is(err, ErrGone) {
		t.Errorf("Wake after Close: %v, want os.ErrClosed", err)
	}
	if got, want := audit(t, n), (Census{Free: 48, Fill: 16}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	n.Inject(0, Faults{})
	s, err := n.Open(0, ZeroCopy)
	if err != nil {
		t.Fatal(err)
	}
	load(t, n, s, 0, 5)
	if got := n.Collect(0, nil); got != 5 {
		t.Errorf("sent %d after the interface came back, want 5", got)
	}
}

func TestUnexpectedWakeError(t *testing.T) {
	n := memoryNIC(t, small, 1)
	s := n.Sockets()[0]
	load(t, n, s, 0, 1)
	n.Inject(0, Faults{NeedWakeup: true, WakeError: unix.EPERM})
	err := s.Wake()
	if !errors.Is(err, unix.EPERM) || errors.Is(err, ErrGone) {
		t.Fatalf("Wake: %v, want EPERM", err)
	}
	if want := "wake memory queue 0: operation not permitted"; err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
	n.Inject(0, Faults{})
	if err := s.Wake(); err != nil {
		t.Errorf("the socket does not recover: %v", err)
	}
}

func TestFaultsAtTheReceivingSide(t *testing.T) {
	n := memoryNIC(t, small, 1)
	s, batch := n.Sockets()[0], make([]Desc, 32)
	frames := make([][]byte, 20)

	// The ring takes 16 and the rest is dropped.
	if got := n.DeliverBatch(0, frames); got != 16 {
		t.Errorf("delivered %d into a ring of 16", got)
	}
	if got := s.Receive(batch); got != 16 {
		t.Errorf("received %d, want 16", got)
	}
	s.Recycle(batch[:16])
	n.Inject(0, Faults{RXFull: true})
	if n.Deliver(0, frames[0]) {
		t.Error("delivered into a full ring")
	}
	n.Inject(0, Faults{FillWithheld: true})
	if n.Deliver(0, frames[0]) || n.DeliverBatch(0, frames[:2]) != 0 {
		t.Error("delivered without a frame")
	}
	n.Inject(0, Faults{})
	if n.Deliver(0, make([]byte, ChunkSize-kernelHeadroom-32+1)) {
		t.Error("delivered a frame longer than a chunk")
	}
	if !n.Deliver(0, make([]byte, ChunkSize-kernelHeadroom-32)) {
		t.Error("the longest frame was dropped")
	}
	if got := s.Receive(batch); got != 1 {
		t.Errorf("received %d, want 1", got)
	}
	s.Recycle(batch[:1])
	st, err := s.Stats()
	if want := (Statistics{RXDropped: 1, RXRingFull: 1, FillEmpty: 4 + 3}); err != nil || st != want {
		t.Errorf("statistics %+v, want %+v (%v)", st, want, err)
	}
}

func TestFaultsAtTheSendingSide(t *testing.T) {
	n := memoryNIC(t, small, 1)
	s := n.Sockets()[0]
	load(t, n, s, 0, 4)
	n.Inject(0, Faults{TXStuck: true})
	if n.Collect(0, nil) != 0 || audit(t, n).TX != 4 {
		t.Error("a stuck NIC sends")
	}
	n.Inject(0, Faults{CompletionsWithheld: true})
	if n.Collect(0, nil) != 4 {
		t.Error("not sent")
	}
	if c := audit(t, n); c.Kernel != 4 || c.Completion != 0 {
		t.Errorf("%+v: want 4 with the NIC", c)
	}
	load(t, n, s, 4, 4)
	n.Collect(0, nil)
	load(t, n, s, 8, 4) // the completion ring has room for 8, which wait already
	if got := n.Collect(0, nil); got != 0 {
		t.Errorf("sent %d frames that have no room for their completion", got)
	}
	n.Inject(0, Faults{})
	for range 3 {
		n.Collect(0, nil)
		s.Receive(nil)
	}
	if c := audit(t, n); c.Kernel+c.TX+c.Completion != 0 {
		t.Errorf("%+v: not all came back", c)
	}
}

func TestWait(t *testing.T) {
	n := memoryNIC(t, small, 2)
	u := n.Umem()
	start := time.Now()
	if err := u.Wait(20 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(start); waited < 20*time.Millisecond {
		t.Errorf("came back after %v with nothing to receive", waited)
	}
	go func() {
		time.Sleep(5 * time.Millisecond)
		n.Deliver(1, []byte{1})
	}()
	if err := u.Wait(-1); err != nil {
		t.Fatal(err)
	}
	if got := n.Sockets()[1].Receive(make([]Desc, 1)); got != 1 {
		t.Errorf("woken, but received %d", got)
	}
	n.Spurious(true)
	start = time.Now()
	for range 10 {
		if err := u.Wait(time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if waited := time.Since(start); waited > time.Second/2 {
		t.Errorf("ten spurious wakeups took %v", waited)
	}
}

// Sleeping sends in copy mode, as poll(2) does.
func TestWaitSendsInCopyMode(t *testing.T) {
	n, s := openCopy(t, small)
	load(t, n, s, 0, 3)
	if err := n.Umem().Wait(0); err != nil {
		t.Fatal(err)
	}
	if got := n.Collect(0, nil); got != 3 {
		t.Errorf("sent %d, want 3", got)
	}
}
