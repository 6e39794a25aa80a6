//go:build linux

package xsk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// small are options with which rings get full soon.
var small = Options{Frames: 64, FillSize: 16, CompletionSize: 8, RXSize: 16, TXSize: 8, Audit: true}

// memoryNIC makes a NIC that is closed, and audited, with the test.
func memoryNIC(t testing.TB, o Options, queues int) *MemoryNIC {
	t.Helper()
	n, err := NewMemoryNIC(o, queues)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := n.Umem().Audit(); err != nil {
			t.Error(err)
		}
		if err := n.Umem().Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// audit fails the test if a frame is lost or doubled.
func audit(t testing.TB, n *MemoryNIC) Census {
	t.Helper()
	c, err := n.Umem().Audit()
	if err != nil {
		t.Fatal(err)
	}
	if sum := c.Free + c.Fill + c.RX + c.Worker + c.TX + c.Completion + c.Kernel + c.Settling; sum != n.Umem().Frames() {
		t.Fatalf("%+v is %d frames of %d", c, sum, n.Umem().Frames())
	}
	if c.Worker != n.Umem().Held() {
		t.Fatalf("the worker holds %d frames, Held says %d", c.Worker, n.Umem().Held())
	}
	return c
}

func TestFrameGoesThrough(t *testing.T) {
	n := memoryNIC(t, small, 2)
	in, out, mem := n.Sockets()[0], n.Sockets()[1], n.Umem().Memory()
	if got, want := audit(t, n), (Census{Free: 32, Fill: 32}); got != want {
		t.Fatalf("at the start: %+v, want %+v", got, want)
	}
	frame := []byte("dstmacsrcmac..payload of a frame")
	if !n.Deliver(0, frame) {
		t.Fatal("not delivered")
	}
	batch := make([]Desc, 4)
	if got := in.Receive(batch); got != 1 {
		t.Fatalf("Receive = %d, want 1", got)
	}
	if got, want := audit(t, n), (Census{Free: 31, Fill: 32, Worker: 1}); got != want {
		t.Errorf("received: %+v, want %+v", got, want)
	}
	d := &batch[0]
	if !bytes.Equal(mem[d.Addr:d.Addr+uint64(d.Len)], frame) {
		t.Errorf("received %q", mem[d.Addr:d.Addr+uint64(d.Len)])
	}
	if room := d.Addr % ChunkSize; room < 64 || room != 256+32 {
		t.Errorf("%d bytes in front of the frame, want 288", room)
	}

	// An outer header in front, out through the other queue.
	d.Addr -= 20
	d.Len += 20
	copy(mem[d.Addr:], "outer header of 20 b")
	if got := out.Transmit(batch[:1]); got != 1 {
		t.Fatalf("Transmit = %d, want 1", got)
	}
	if got, want := audit(t, n), (Census{Free: 31, Fill: 32, TX: 1}); got != want {
		t.Errorf("transmitted: %+v, want %+v", got, want)
	}
	sent := 0
	n.Collect(1, func(f []byte) {
		sent++
		if want := "outer header of 20 b" + string(frame); string(f) != want {
			t.Errorf("sent %q, want %q", f, want)
		}
	})
	if sent != 1 {
		t.Fatalf("sent %d frames, want 1", sent)
	}
	if got, want := audit(t, n), (Census{Free: 31, Fill: 32, Completion: 1}); got != want {
		t.Errorf("completed: %+v, want %+v", got, want)
	}
	out.Receive(batch)
	in.Receive(batch)
	if got, want := audit(t, n), (Census{Free: 32, Fill: 32}); got != want {
		t.Errorf("at the end: %+v, want %+v", got, want)
	}
	if got, want := in.Counts(), (Counts{Received: 1}); got != want {
		t.Errorf("counts in: %+v, want %+v", got, want)
	}
	if got, want := out.Counts(), (Counts{Sent: 1, Completed: 1}); got != want {
		t.Errorf("counts out: %+v, want %+v", got, want)
	}
}

func TestFillRingIsFullWhenFramesAreHandedOut(t *testing.T) {
	n := memoryNIC(t, small, 1)
	batch := make([]Desc, 8)
	for range 8 {
		n.DeliverBatch(0, make([][]byte, 8))
		if got := n.Sockets()[0].Receive(batch); got != 8 {
			t.Fatalf("Receive = %d, want 8", got)
		}
		if c := audit(t, n); c.Fill != min(16, 64-c.Worker) {
			t.Fatalf("%+v: fill ring not full", c)
		}
	}
}

func TestTransmitTakesWhatFits(t *testing.T) {
	n := memoryNIC(t, small, 1)
	s, batch := n.Sockets()[0], make([]Desc, 12)
	n.DeliverBatch(0, [][]byte{{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}, {10}, {11}})
	if got := s.Receive(batch); got != 12 {
		t.Fatalf("Receive = %d, want 12", got)
	}
	if got := s.Transmit(batch); got != 8 {
		t.Fatalf("Transmit = %d, want 8, the size of the ring", got)
	}
	if got := s.Transmit(batch[8:]); got != 0 {
		t.Fatalf("Transmit into a full ring = %d, want 0", got)
	}
	if n.Umem().Held() != 4 {
		t.Errorf("worker holds %d frames, want the 4 that were not taken", n.Umem().Held())
	}
	var sent []byte
	n.Collect(0, func(f []byte) { sent = append(sent, f[0]) })
	if got := s.Transmit(batch[8:]); got != 4 {
		t.Fatalf("Transmit = %d, want 4", got)
	}
	s.Receive(nil) // takes the completions back, without which the NIC sends nothing more
	n.Collect(0, func(f []byte) { sent = append(sent, f[0]) })
	if want := []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}; !bytes.Equal(sent, want) {
		t.Errorf("sent %v, want %v", sent, want)
	}
}

// A completion ring that nobody empties stops the kernel from sending. A worker that only transmits on a socket must
// not get stuck by that.
func TestTransmitReclaimsWhenFull(t *testing.T) {
	n := memoryNIC(t, small, 2)
	in, out, batch := n.Sockets()[0], n.Sockets()[1], make([]Desc, 8)
	for round := range 10 {
		n.DeliverBatch(0, make([][]byte, 8))
		got := in.Receive(batch)
		for i := range batch[:got] {
			batch[i].Len = 60
		}
		done := out.Transmit(batch[:got])
		if done < got {
			n.Collect(1, nil)
			done += out.Transmit(batch[done:got])
		}
		if done != 8 {
			t.Fatalf("round %d: sent %d of %d", round, done, got)
		}
		n.Collect(1, nil)
	}
}

func TestRecycleMasksTheAddress(t *testing.T) {
	n := memoryNIC(t, small, 1)
	s, batch := n.Sockets()[0], make([]Desc, 16)
	n.DeliverBatch(0, make([][]byte, 16))
	got := s.Receive(batch)
	for i := range batch[:got] {
		batch[i].Addr |= uint64(i * 255) // anywhere in the chunk
	}
	s.Recycle(batch[:got])
	if c := audit(t, n); c.Worker != 0 || c.Free != 48 {
		t.Errorf("%+v: want 48 free and none with the worker", c)
	}
	for _, a := range n.Umem().free {
		if a%ChunkSize != 0 {
			t.Errorf("address %#x on the free list is inside of a chunk", a)
		}
	}
}

// A spare frame begins where received ones do, wherever in its chunk the frame was that it held before.
func TestSpareAfterTransmit(t *testing.T) {
	n := memoryNIC(t, small, 1)
	s := n.Sockets()[0]
	first, ok := s.Spare()
	if !ok {
		t.Fatal("no frame is free")
	}
	if s.Transmit([]Desc{{Addr: first + 3000, Len: 60}}) != 1 {
		t.Fatal("the frame was not taken")
	}
	n.Collect(0, func([]byte) {})
	s.reclaim()
	again, ok := s.Spare()
	if !ok || again != first {
		t.Errorf("the spare frame is at %d, want %d", again, first)
	}
	s.Recycle([]Desc{{Addr: again}})
}

func TestRefusedDescriptorsAreRecycled(t *testing.T) {
	base := uint64(kernelHeadroom + 32)
	for name, d := range map[string]Desc{
		"empty":                {Addr: base},
		"beyond its chunk":     {Addr: base, Len: uint32(ChunkSize - base + 1)},
		"far beyond its chunk": {Addr: base, Len: 1 << 31},
		"all ones":             {Addr: ChunkSize - 1, Len: ^uint32(0)},
		"options":              {Addr: base, Len: 60, Options: unix.XDP_PKT_CONTD},
	} {
		t.Run(name, func(t *testing.T) {
			n := memoryNIC(t, small, 1)
			s, batch := n.Sockets()[0], make([]Desc, 4)
			n.DeliverBatch(0, [][]byte{{1}, {2}, {3}, {4}})
			s.Receive(batch)
			chunk := batch[1].Addr &^ (ChunkSize - 1)
			batch[1] = d
			batch[1].Addr += chunk
			if got := s.Transmit(batch); got != 4 {
				t.Fatalf("Transmit = %d, want 4", got)
			}
			if c := audit(t, n); c.TX != 3 || c.Worker != 0 {
				t.Errorf("%+v: want 3 in TX and none with the worker", c)
			}
			var sent []byte
			n.Collect(0, func(f []byte) { sent = append(sent, f...) })
			if !bytes.Equal(sent, []byte{1, 3, 4}) {
				t.Errorf("sent %v, want the three others", sent)
			}
			s.Receive(batch)
			if c := s.Counts(); c.Invalid != 1 || c.Sent != 3 || c.Completed != 3 {
				t.Errorf("%+v: want 1 invalid, 3 sent and completed", c)
			}
			if st, err := s.Stats(); err != nil || st.TXInvalid != 0 {
				t.Errorf("the NIC saw %d bad descriptors (%v)", st.TXInvalid, err)
			}
			if n.Umem().Free()+16 != 64 {
				t.Errorf("%d frames free, want 48", n.Umem().Free())
			}
		})
	}
	// The longest frame that fits is not refused.
	if d := (Desc{Addr: base, Len: uint32(ChunkSize - base)}); d.refused(0) {
		t.Error("a frame that fills its chunk is refused")
	}
}

func TestAuditPanicsOnFramesGivenBackTwice(t *testing.T) {
	for name, misuse := range map[string]func(s *Socket, batch []Desc){
		"recycle twice":           func(s *Socket, b []Desc) { s.Recycle(b); s.Recycle(b) },
		"transmit, then recycle":  func(s *Socket, b []Desc) { s.Transmit(b); s.Recycle(b) },
		"recycle, then transmit":  func(s *Socket, b []Desc) { s.Recycle(b); s.Transmit(b) },
		"recycle never received":  func(s *Socket, b []Desc) { s.Recycle([]Desc{{Addr: 60 * ChunkSize}}) },
		"twice in the same batch": func(s *Socket, b []Desc) { s.Recycle([]Desc{b[0], b[0]}) },
	} {
		t.Run(name, func(t *testing.T) {
			n, err := NewMemoryNIC(small, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Umem().Close()
			n.Deliver(0, []byte{1})
			batch := make([]Desc, 1)
			n.Sockets()[0].Receive(batch)
			defer func() {
				if r := fmt.Sprint(recover()); !strings.Contains(r, "does not hold") {
					t.Errorf("panic is %q", r)
				}
			}()
			misuse(n.Sockets()[0], batch)
		})
	}
}

// Without the bookkeeping of Options.Audit, Audit must still see frames that are in two places.
func TestAuditSees(t *testing.T) {
	o := small
	o.Audit = false
	for name, c := range map[string]struct {
		spoil func(u *Umem, s *Socket)
		want  string
	}{
		"freed twice":        {func(u *Umem, s *Socket) { u.free = append(u.free, u.free[3]+100) }, "free list and in the free list"},
		"free and in fill":   {func(u *Umem, s *Socket) { u.free[2] = s.fill.slots[3] }, "in the free list and in the fill ring"},
		"lost":               {func(u *Umem, s *Socket) { u.free = u.free[1:] }, "nowhere"},
		"fill twice":         {func(u *Umem, s *Socket) { s.fill.slots[3] = s.fill.slots[4] }, "fill ring of memory queue 0 and in the fill"},
		"out of memory":      {func(u *Umem, s *Socket) { s.fill.slots[3] = 1 << 40 }, "outside of the umem"},
		"count without home": {func(u *Umem, s *Socket) { s.filled++ }, "was given 17 frames"},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := NewMemoryNIC(o, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Umem().Close()
			if _, err := n.Umem().Audit(); err != nil {
				t.Fatal(err)
			}
			c.spoil(n.Umem(), n.Sockets()[0])
			if _, err := n.Umem().Audit(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("audit: %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestCloseOneOfTwo(t *testing.T) {
	n := memoryNIC(t, small, 2)
	a, b := n.Sockets()[0], n.Sockets()[1]
	batch := make([]Desc, 8)

	// Frames of the first socket in each place: its fill ring, its RX ring, its TX ring, withheld by the NIC, completed;
	// and some that came in there and are in the other's TX ring.
	n.DeliverBatch(0, make([][]byte, 8))
	a.Receive(batch)
	for i := range batch {
		batch[i].Len = 60
	}
	a.Transmit(batch[:2])
	n.Collect(0, nil) // two completed
	n.Inject(0, Faults{CompletionsWithheld: true})
	a.Transmit(batch[2:4])
	n.Collect(0, nil) // two withheld
	a.Transmit(batch[4:6])
	b.Transmit(batch[6:8])
	n.DeliverBatch(0, make([][]byte, 3))
	if got, want := audit(t, n), (Census{Free: 24, Fill: 29, RX: 3, TX: 4, Completion: 2, Kernel: 2}); got != want {
		t.Fatalf("before: %+v, want %+v", got, want)
	}

	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := audit(t, n), (Census{Free: 64 - 16 - 2, Fill: 16, TX: 2}); got != want {
		t.Errorf("after: %+v, want %+v", got, want)
	}

	// The other goes on, the closed one does nothing.
	if got := n.Collect(1, nil); got != 2 {
		t.Errorf("the other socket sent %d frames, want 2", got)
	}
	n.Deliver(1, []byte("x"))
	if got := b.Receive(batch); got != 1 {
		t.Errorf("the other socket received %d frames, want 1", got)
	}
	if a.Receive(batch[1:]) != 0 || a.Transmit(batch[:1]) != 0 {
		t.Error("a closed socket takes or gives frames")
	}
	if err := a.Wake(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wake of a closed socket: %v, want os.ErrClosed", err)
	}
	a.Recycle(batch[:1])
	if err := a.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if c := a.Counts(); c.Received != 8 || c.Sent != 6 || c.Completed != 2 {
		t.Errorf("counts of the closed socket: %+v", c)
	}
	if _, err := a.Stats(); err != nil {
		t.Errorf("statistics of the closed socket: %v", err)
	}

	// And again.
	n.Inject(0, Faults{})
	for range 300 { // more often than there are socket numbers
		s, err := n.Open(0, ZeroCopy)
		if err != nil {
			t.Fatal(err)
		}
		n.DeliverBatch(0, make([][]byte, 5))
		if got := s.Receive(batch); got != 5 {
			t.Fatalf("reopened socket received %d, want 5", got)
		}
		s.Recycle(batch[:5])
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.Umem().Free(); got != 48 {
		t.Errorf("%d frames free, want 48", got)
	}
}

// A worker that panicked may not know which frames it held. Closing the socket they came from brings them back.
func TestCloseTakesBackWhatTheWorkerLost(t *testing.T) {
	n := memoryNIC(t, small, 2)
	batch := make([]Desc, 8)
	for i, s := range n.Sockets() {
		n.DeliverBatch(i, make([][]byte, 4+i))
		s.Receive(batch)
	}
	if got := n.Umem().Held(); got != 9 {
		t.Fatalf("Held = %d, want 9", got)
	}
	if err := n.Sockets()[0].Close(); err != nil {
		t.Fatal(err)
	}
	if got := n.Umem().Held(); got != 5 {
		t.Errorf("Held = %d, want the 5 of the other socket", got)
	}
	if err := n.Sockets()[1].Close(); err != nil {
		t.Fatal(err)
	}
	if got := n.Umem().Free(); got != 64 {
		t.Errorf("%d frames free, want all 64", got)
	}
}

func TestOpenWithoutFrames(t *testing.T) {
	_, err := NewMemoryNIC(small, 5)
	if err == nil || !strings.Contains(err.Error(), "0 of 64 frames are free, and the fill ring takes 16") {
		t.Errorf("error is %v", err)
	}
}

func TestUmemClose(t *testing.T) {
	n, err := NewMemoryNIC(small, 2)
	if err != nil {
		t.Fatal(err)
	}
	u := n.Umem()
	for range 2 {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
	if u.Memory() != nil {
		t.Error("memory is still there")
	}
	if _, err := u.Open("eth0", 1, 0, Auto); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Open after Close: %v, want os.ErrClosed", err)
	}
	for i, s := range n.Sockets() {
		if got := s.Receive(make([]Desc, 1)); got != 0 {
			t.Error("received after Close")
		}
		if n.Deliver(i, []byte{1}) || n.Collect(i, nil) != 0 {
			t.Error("the NIC moves frames after Close")
		}
	}
}

func TestSettlingFrames(t *testing.T) {
	n := memoryNIC(t, small, 2)
	u := n.Umem()
	start := time.Now()
	u.vacate(n.Sockets()[0].number, 30*time.Millisecond)
	u.sockets = u.sockets[1:] // as Close does
	if got, want := audit(t, n), (Census{Free: 32, Fill: 16, Settling: 16}); got != want {
		t.Fatalf("%+v, want %+v", got, want)
	}
	// More than is free, but not more than will be: worth waiting for.
	if err := u.require(40); err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(start); waited < 30*time.Millisecond {
		t.Errorf("the frames were free after %v, before the kernel let go of them", waited)
	}
	if got := audit(t, n); got.Free != 48 || got.Settling != 0 {
		t.Errorf("%+v: want 48 free", got)
	}
	if err := u.require(49); err == nil {
		t.Error("more frames than there can be")
	}
	n.queues[0].socket.closed = true
}

func TestLayout(t *testing.T) {
	socket := reflect.TypeFor[Socket]()
	field := func(name string) (start, end uintptr) {
		f, ok := socket.FieldByName(name)
		if !ok {
			t.Fatalf("Socket has no field %s", name)
		}
		return f.Offset, f.Offset + f.Type.Size()
	}
	start, end := field("published")
	if _, before := field("stop"); start < before+64 {
		t.Errorf("published counts begin at %d, %d bytes after what the worker writes", start, start-before)
	}
	if next, _ := field("name"); next < end+64 {
		t.Errorf("published counts end at %d, %d bytes before the next field", end, next-end)
	}
	if size := reflect.TypeFor[Desc]().Size(); size != 16 {
		t.Errorf("Desc has %d bytes, struct xdp_desc 16", size)
	}
}

func TestNoAllocations(t *testing.T) {
	o := small
	o.Audit = false
	n := memoryNIC(t, o, 2)
	in, out, batch := n.Sockets()[0], n.Sockets()[1], make([]Desc, 8)
	n.Inject(1, Faults{NeedWakeup: true, WakeError: unix.ENETDOWN})
	allocations := testing.AllocsPerRun(1000, func() {
		n.Post(0, 8, 60)
		got := in.Receive(batch)
		sent := out.Transmit(batch[:got])
		out.Recycle(batch[sent:got])
		if err := out.Wake(); err != nil {
			t.Fatal(err)
		}
		out.Receive(nil)
	})
	if allocations != 0 {
		t.Errorf("%v allocations a batch, want none", allocations)
	}
	if out.Counts().Down == 0 || out.Counts().Sent == 0 {
		t.Errorf("%+v: the test does not test the way with errors", out.Counts())
	}
}
