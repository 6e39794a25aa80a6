//go:build linux

package xsk_test

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder/xsk"
)

func TestKernelForwardsByteForByte(t *testing.T) {
	r := newRig(t)
	left, right := r.open("left"), r.open("right")
	peerLeft, peerRight := r.strangers("left"), r.strangers("right")
	const count = 1024
	r.exchange(left, right, peerLeft, peerRight, count)

	c := r.settled(append(left, right...)...)
	if c.Worker != 0 || c.RX != 0 {
		t.Errorf("at rest: %+v", c)
	}
	var total xsk.Counts
	for _, s := range append(left, right...) {
		n := s.Counts()
		if n.Received < count || n.Sent < count || n.Completed != n.Sent {
			t.Errorf("%s: %+v, want at least %d received and sent, and all completed", s, n, count)
		}
		total.Received, total.Sent = total.Received+n.Received, total.Sent+n.Sent
		st, err := s.Stats()
		if err != nil {
			t.Error(err)
		}
		if st.RXDropped+st.RXInvalid+st.TXInvalid+st.RXRingFull+st.FillEmpty != 0 {
			t.Errorf("%s: the kernel counted %+v", s, st)
		}
	}
	if total.Received != total.Sent {
		t.Errorf("received %d, sent %d", total.Received, total.Sent)
	}
}

// Sockets in zero-copy and in copy mode on one Umem need two registrations of the memory. Here both are in copy mode,
// since veth has no other; what matters is that frames go from one to the other.
func TestKernelTwoRegistrations(t *testing.T) {
	r := newRig(t)
	left := r.open("left")
	r.alone = true
	right := r.open("right")
	r.exchange(left, right, r.strangers("left"), r.strangers("right"), 256)
	r.settled(append(left, right...)...)
}

// veth has no busy polling, but takes the options and the calls.
func TestKernelBusyPoll(t *testing.T) {
	o := kernelOptions
	o.BusyPoll = true
	r := newRigWith(t, o)
	left, right := r.open("left"), r.open("right")
	r.exchange(left, right, r.strangers("left"), r.strangers("right"), 256)
	left[0].Receive(nil) // publishes
	for range 10 {
		before := left[0].Counts().Wakes
		if err := left[0].Wake(); err != nil {
			t.Fatal(err)
		}
		if left[0].Receive(nil); left[0].Counts().Wakes != before+1 {
			t.Fatalf("%d system calls, want one", left[0].Counts().Wakes-before)
		}
	}
}

func TestKernelSendsManyInOneWake(t *testing.T) {
	r := newRig(t)
	right := r.open("right")
	left := r.open("left")
	peerLeft, peerRight := r.strangers("left"), r.strangers("right")
	batch := make([]xsk.Desc, 0, 128)
	for len(batch) < 100 {
		peerLeft[0].send(numbered(len(batch)))
		until(t, "nothing received", func() bool {
			n := left[0].Receive(batch[len(batch):cap(batch)])
			batch = batch[:len(batch)+n]
			return n > 0
		})
	}
	if got := right[0].Transmit(batch); got != len(batch) {
		t.Fatalf("Transmit took %d of %d", got, len(batch))
	}
	if err := right[0].Wake(); err != nil {
		t.Fatal(err)
	}
	right[0].Receive(nil)
	if c := right[0].Counts(); c.Completed != uint64(len(batch)) {
		t.Errorf("%+v after one Wake: want all %d completed", c, len(batch))
	} else {
		t.Logf("%d frames with %d system calls", c.Sent, c.Wakes)
	}
	arrived := 0
	until(t, "frames are missing", func() bool {
		arrived += peerRight[0].receive(func([]byte) {})
		return arrived >= len(batch)
	})
}

// A frame that is too long for the interface is dropped by the kernel, and only that frame.
func TestKernelDropsTooLong(t *testing.T) {
	r := newRig(t)
	left, right := r.open("left"), r.open("right")
	peerLeft, peerRight := r.strangers("left"), r.strangers("right")
	for i := range 5 {
		peerLeft[0].send(numbered(i))
	}
	batch, n := make([]xsk.Desc, 8), 0
	until(t, "nothing received", func() bool {
		n += left[0].Receive(batch[n:])
		return n >= 5
	})
	batch[1].Len, batch[3].Len = 3000, 3500
	if right[0].Transmit(batch[:n]) != n {
		t.Fatal("not taken")
	}
	if err := right[0].Wake(); err != nil {
		t.Fatal(err)
	}
	right[0].Receive(nil)
	if c := right[0].Counts(); c.Completed != uint64(n) || c.Refused != 2 {
		t.Errorf("%+v: want %d completed, 2 of them refused", c, n)
	}
	arrived := 0
	until(t, "frames are missing", func() bool {
		arrived += peerRight[0].receive(func([]byte) {})
		return arrived >= n-2
	})
}

func TestKernelWait(t *testing.T) {
	r := newRig(t)
	left := r.open("left")
	right := r.open("right")
	peer := r.strangers("left")
	until(t, "Wait never waits", func() bool {
		r.forward(left, right) // what the kernels at both ends have to say to each other
		start := time.Now()
		if err := r.umem.Wait(30 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		return time.Since(start) >= 30*time.Millisecond
	})
	var sender sync.WaitGroup
	sender.Go(func() {
		time.Sleep(20 * time.Millisecond)
		peer[1].send(numbered(1))
	})
	defer sender.Wait()
	until(t, "nothing received", func() bool {
		if err := r.umem.Wait(5 * time.Second); err != nil {
			t.Fatal(err)
		}
		batch := make([]xsk.Desc, 8)
		n := left[1].Receive(batch)
		left[1].Recycle(batch[:n])
		return n > 0
	})
}

// Closing gives the queue and the frames back, as often as you like, while another socket of the Umem goes on.
func TestKernelReopen(t *testing.T) {
	r := newRig(t)
	right := r.open("right")
	sockets, mappings := resources(t)
	for i := range 7 {
		s := r.openQueue("left", 0, xsk.Auto)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Wake(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("round %d: Wake of a closed socket: %v", i, err)
		}
		if now, m := resources(t); now != sockets || m != mappings {
			t.Fatalf("round %d: %d sockets and %d mappings, there were %d and %d", i, now, m, sockets, mappings)
		}
	}
	if c := r.settled(right...); c.Free+c.RX != kernelOptions.Frames-queues*kernelOptions.FillSize {
		t.Errorf("%+v: want all but two rings of frames free", c)
	}
	// Without any socket left, the memory is registered anew.
	for _, s := range right {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	left, again := r.open("left"), r.openQueue("right", 0, xsk.Auto)
	if c := r.settled(append(left, again)...); c.Free+c.RX != kernelOptions.Frames-3*kernelOptions.FillSize {
		t.Errorf("%+v: want all but three rings of frames free", c)
	}
}

func TestKernelSurvivesDownUpAndMTU(t *testing.T) {
	r := newRig(t)
	left, right := r.open("left"), r.open("right")
	peerLeft, peerRight := r.strangers("left"), r.strangers("right")
	r.exchange(left, right, peerLeft, peerRight, 64)

	for _, mtu := range []int{1400, 2000, 1500} {
		if err := r.lb.SetMTU("right", mtu); err != nil {
			t.Fatal(err)
		}
	}
	r.exchange(left, right, peerLeft, peerRight, 64)

	// What comes in for an interface that is down waits in the TX ring.
	if err := r.lb.LinkDown("right"); err != nil {
		t.Fatal(err)
	}
	peerLeft[0].send(numbered(1))
	until(t, "nothing received", func() bool { return r.forward(left, right) > 0 })
	right[0].Receive(nil)
	if c := right[0].Counts(); c.Down == 0 {
		t.Errorf("%+v: want the interface to be found down", c)
	}
	if err := r.lb.LinkUp("right"); err != nil {
		t.Fatal(err)
	}
	until(t, "what waited does not arrive", func() bool {
		r.forward(left, right)
		found := false
		peerRight[0].receive(func(f []byte) { found = found || string(f) == string(numbered(1)) })
		return found
	})
	r.exchange(left, right, peerLeft, peerRight, 64)
	r.settled(append(left, right...)...)
}

// The interface that was opened first, on whose registration the others rely, vanishes and comes back.
func TestKernelInterfaceVanishes(t *testing.T) {
	r := newRig(t)
	left, right := r.open("left"), r.open("right")
	peerLeft, peerRight := r.strangers("left"), r.strangers("right")
	r.exchange(left, right, peerLeft, peerRight, 64)

	if err := r.lb.DeleteLink("left"); err != nil {
		t.Fatal(err)
	}
	// A frame for the vanished interface tells.
	peerRight[0].send(numbered(1))
	batch := make([]xsk.Desc, 8)
	var err error
	until(t, "Wake has no error", func() bool {
		n := right[0].Receive(batch)
		left[0].Transmit(batch[:n])
		err = left[0].Wake()
		return err != nil
	})
	if !errors.Is(err, xsk.ErrGone) {
		t.Fatalf("Wake: %v, want ErrGone", err)
	}

	// It is back, and opened before anything was closed: only the sockets on the right can lend their registration.
	r.cable("left")
	again := r.open("left")
	for _, s := range left {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.exchange(again, right, r.strangers("left"), peerRight, 64)
	if c := r.settled(append(again, right...)...); c.Free+c.Fill+c.RX+c.Kernel != kernelOptions.Frames || c.Fill < 4*kernelOptions.FillSize-8 {
		t.Errorf("%+v: frames are missing", c)
	}
}
