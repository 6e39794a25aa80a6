//go:build linux

package xsk

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// multi are options for packets in several frames, with rings that get full soon.
var multi = Options{
	Frames: 160, FillSize: 64, CompletionSize: 32, RXSize: 64, TXSize: 32, MultiBuffer: true, Audit: true,
}

// pattern makes a packet that differs from any other of its length or first byte, at every place.
func pattern(first byte, length int) []byte {
	p := make([]byte, length)
	for i := range p {
		p[i] = first + byte(i) + byte(i>>8)
	}
	return p
}

// lengths returns those of the descriptors, and options what they say.
func lengths(batch []Desc) (l []uint32, options []uint32) {
	for _, d := range batch {
		l, options = append(l, d.Len), append(options, d.Options)
	}
	return l, options
}

func TestMaxFrame(t *testing.T) {
	for headroom, want := range map[int]int{0: 3808, 32: 3808, 64: 3776, 1024: 2816} {
		if got := (Options{Headroom: headroom}).MaxFrame(); got != want {
			t.Errorf("headroom %d: MaxFrame = %d, want %d", headroom, got, want)
		}
	}
}

func TestPacketInSeveralFramesGoesThrough(t *testing.T) {
	longest := multi.MaxFrame()
	for _, c := range []struct {
		length  int
		lengths []uint32
	}{
		{60, []uint32{60}},
		{longest, []uint32{uint32(longest)}},
		{longest + 1, []uint32{uint32(longest), 1}},
		{9018, []uint32{uint32(longest), uint32(longest), 9018 - 2*uint32(longest)}},
	} {
		n := memoryNIC(t, multi, 2)
		in, out, batch := n.Sockets()[0], n.Sockets()[1], make([]Desc, 64)
		packet := pattern(1, c.length)
		if !n.Deliver(0, packet) {
			t.Fatalf("%d bytes: not delivered", c.length)
		}
		got := in.Receive(batch)
		l, options := lengths(batch[:got])
		want := slices.Repeat([]uint32{Continued}, len(c.lengths))
		want[len(want)-1] = 0
		if !slices.Equal(l, c.lengths) || !slices.Equal(options, want) {
			t.Fatalf("%d bytes: lengths %v, options %v; want %v, %v", c.length, l, options, c.lengths, want)
		}
		if c := audit(t, n); c.Worker != len(l) {
			t.Errorf("%+v: want %d frames with the worker", c, len(l))
		}

		// An outer header in front.
		header := pattern(9, 20)
		batch[0].Addr -= 20
		batch[0].Len += 20
		copy(n.Umem().Memory()[batch[0].Addr:], header)
		if taken := out.Transmit(batch[:got]); taken != got {
			t.Fatalf("%d bytes: Transmit = %d, want %d", c.length, taken, got)
		}
		var sent [][]byte
		if n := n.Collect(1, func(f []byte) { sent = append(sent, bytes.Clone(f)) }); n != 1 || len(sent) != 1 {
			t.Fatalf("%d bytes: sent %d and %d packets, want 1", c.length, n, len(sent))
		}
		if !bytes.Equal(sent[0], slices.Concat(header, packet)) {
			t.Errorf("%d bytes: sent %d other bytes", c.length, len(sent[0]))
		}
		out.Receive(batch)
		in.Receive(batch)
		if c := audit(t, n); c.Worker+c.TX+c.Completion+c.Kernel != 0 {
			t.Errorf("at the end: %+v", c)
		}
		if got, want := out.Counts(), uint64(len(c.lengths)); got.Sent != want || got.Completed != want || got.Invalid != 0 {
			t.Errorf("%+v: want %d sent and completed", got, want)
		}
	}
}

// Without MultiBuffer a packet that is too long is dropped and counted, and that is all that changes.
func TestTooLongWithoutMultiBuffer(t *testing.T) {
	n := memoryNIC(t, small, 1)
	s, batch := n.Sockets()[0], make([]Desc, 8)
	longest := small.MaxFrame()
	if got := n.DeliverBatch(0, [][]byte{pattern(1, longest+1), pattern(2, longest), pattern(3, 60)}); got != 2 {
		t.Errorf("delivered %d, want the two that fit", got)
	}
	got := s.Receive(batch)
	if l, _ := lengths(batch[:got]); !slices.Equal(l, []uint32{uint32(longest), 60}) {
		t.Errorf("received %v", l)
	}
	s.Recycle(batch[:got])
	if st, err := s.Stats(); err != nil || st.RXDropped != 1 {
		t.Errorf("%+v (%v): want 1 dropped", st, err)
	}
}

func TestReceiveDoesNotSplitPackets(t *testing.T) {
	n := memoryNIC(t, multi, 1)
	s, batch := n.Sockets()[0], make([]Desc, 64)
	long := pattern(7, 9000) // 3 frames
	n.DeliverBatch(0, [][]byte{{1}, long, long, {2}, long, {3}})
	for i, c := range []struct{ room, want int }{
		{0, 0}, {3, 1}, {3, 3}, {6, 4}, {3, 3}, {64, 1}, {64, 0},
	} {
		got := s.Receive(batch[:c.room])
		if got != c.want {
			t.Fatalf("call %d: received %d descriptors into %d, want %d", i, got, c.room, c.want)
		}
		if got > 0 && batch[got-1].Options != 0 {
			t.Errorf("call %d: the last descriptor says that the packet goes on", i)
		}
		s.Recycle(batch[:got])
		audit(t, n)
	}
	if c := s.Counts(); c.Received != 12 || c.Discarded != 0 {
		t.Errorf("%+v: want 12 received, none discarded", c)
	}
}

// The kernel shows all frames of a packet at once. If one did not, the packet would have to wait.
func TestReceiveWaitsForTheRestOfAPacket(t *testing.T) {
	n := memoryNIC(t, multi, 1)
	s, batch, q := n.Sockets()[0], make([]Desc, 64), n.queues[0]
	post := func(options ...uint32) {
		if got := n.Post(0, len(options), 100); got != len(options) {
			t.Fatalf("posted %d of %d", got, len(options))
		}
		for i, o := range options {
			q.rx.slots[(q.rx.next-uint32(len(options)-i))&uint32(len(q.rx.slots)-1)].Options = o
		}
	}
	post(0, Continued)
	if got := s.Receive(batch); got != 1 {
		t.Fatalf("received %d descriptors, want only the whole packet", got)
	}
	s.Recycle(batch[:1])
	for range 3 {
		post(Continued)
		if got := s.Receive(batch); got != 0 {
			t.Fatalf("received %d descriptors of a packet whose end is missing", got)
		}
		audit(t, n)
	}
	post(0, 0)
	if got := s.Receive(batch); got != 6 {
		t.Fatalf("received %d descriptors, want 5 of the packet and one more", got)
	}
	s.Recycle(batch[:6])
}

func TestPacketLongerThanTheBatchIsDiscarded(t *testing.T) {
	n := memoryNIC(t, multi, 1)
	s, batch := n.Sockets()[0], make([]Desc, 4)
	longest := multi.MaxFrame()
	n.DeliverBatch(0, [][]byte{{1}, pattern(2, 10*longest), pattern(3, 4*longest), pattern(4, 5*longest), {5}})
	var first []byte
	for range 20 {
		got := s.Receive(batch)
		for i, d := range batch[:got] {
			if i == 0 || batch[i-1].Options == 0 {
				first = append(first, n.Umem().Memory()[d.Addr])
			}
		}
		s.Recycle(batch[:got])
		audit(t, n)
	}
	if want := []byte{1, 3, 5}; !bytes.Equal(first, want) {
		t.Errorf("received packets %v, want %v", first, want)
	}
	if c := s.Counts(); c.Discarded != 2 || c.Received != 21 {
		t.Errorf("%+v: want 2 packets discarded, 21 frames received", c)
	}
	if c := audit(t, n); c.Worker != 0 || c.Free+c.Fill != multi.Frames {
		t.Errorf("%+v: frames are missing", c)
	}
}

func TestTransmitDoesNotSplitPackets(t *testing.T) {
	n := memoryNIC(t, multi, 1)
	s, batch := n.Sockets()[0], make([]Desc, 64)
	var packets [][]byte
	for i := range 11 {
		packets = append(packets, pattern(byte(i), 9000)) // 33 frames, one more than the ring has
	}
	n.DeliverBatch(0, packets)
	got := s.Receive(batch)
	if got != 33 {
		t.Fatalf("received %d descriptors", got)
	}
	if taken := s.Transmit(batch[:got]); taken != 30 {
		t.Fatalf("Transmit = %d, want ten packets of three frames", taken)
	}
	if taken := s.Transmit(batch[30:got]); taken != 0 {
		t.Fatalf("Transmit into two free entries = %d, want 0", taken)
	}
	if c := audit(t, n); c.TX != 30 || c.Worker != 3 {
		t.Errorf("%+v: want 30 in TX, 3 with the worker", c)
	}
	var sent [][]byte
	collect := func(f []byte) { sent = append(sent, bytes.Clone(f)) }
	n.Collect(0, collect)
	if taken := s.Transmit(batch[30:got]); taken != 3 {
		t.Fatalf("Transmit = %d, want 3", taken)
	}
	s.Receive(nil)
	n.Collect(0, collect)
	if !slices.EqualFunc(sent, packets, bytes.Equal) {
		t.Errorf("%d packets were sent, not as they came", len(sent))
	}
}

func TestRefusedPacketsAreRecycledWhole(t *testing.T) {
	spoil := func(i int, f func(d *Desc)) func([]Desc) []Desc {
		return func(b []Desc) []Desc { f(&b[i]); return b }
	}
	for name, c := range map[string]struct {
		packets []int // lengths; the first byte of each is its number
		spoil   func(batch []Desc) []Desc
		sent    []byte
		invalid uint64
	}{
		"nothing wrong":      {[]int{60, 9000, 60}, nil, []byte{0, 1, 2}, 0},
		"first frame empty":  {[]int{60, 9000, 60}, spoil(1, func(d *Desc) { d.Len = 0 }), []byte{0, 2}, 1},
		"middle too long":    {[]int{60, 9000, 60}, spoil(2, func(d *Desc) { d.Len = ChunkSize }), []byte{0, 2}, 1},
		"last frame empty":   {[]int{60, 9000, 60}, spoil(3, func(d *Desc) { d.Len = 0 }), []byte{0, 2}, 1},
		"unknown option":     {[]int{60, 9000, 60}, spoil(2, func(d *Desc) { d.Options |= 2 }), []byte{0, 2}, 1},
		"unknown, alone":     {[]int{60, 60, 60}, spoil(1, func(d *Desc) { d.Options = 4 }), []byte{0, 2}, 1},
		"the end is missing": {[]int{60, 9000}, func(b []Desc) []Desc { return b[:3] }, []byte{0}, 1},
		"two of four": {[]int{9000, 60, 9000, 60}, func(b []Desc) []Desc { b[0].Len, b[4].Len = 0, 0; return b },
			[]byte{1, 3}, 2},
		"17 frames":          {[]int{17 * 3808, 60}, nil, []byte{0, 1}, 0},
		"18 frames":          {[]int{60, 18 * 3808, 60}, nil, []byte{0, 2}, 1},
		"18 frames, at last": {[]int{60, 18 * 3808}, nil, []byte{0}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			n := memoryNIC(t, multi, 1)
			s, batch := n.Sockets()[0], make([]Desc, 64)
			for i, length := range c.packets {
				if !n.Deliver(0, pattern(byte(i), length)) {
					t.Fatal("not delivered")
				}
			}
			all := batch[:s.Receive(batch)]
			packets := all
			if c.spoil != nil {
				packets = c.spoil(all)
			}
			if taken := s.Transmit(packets); taken != len(packets) {
				t.Fatalf("Transmit = %d, want %d", taken, len(packets))
			}
			s.Recycle(all[len(packets):])
			if c := audit(t, n); c.Worker != 0 {
				t.Errorf("%+v: want none with the worker", c)
			}
			var sent []byte
			n.Collect(0, func(f []byte) {
				sent = append(sent, f[0])
				if want := pattern(f[0], c.packets[f[0]]); !bytes.Equal(f, want) {
					t.Errorf("packet %d was sent with %d bytes, or others", f[0], len(f))
				}
			})
			if !bytes.Equal(sent, c.sent) {
				t.Errorf("sent %v, want %v", sent, c.sent)
			}
			s.Receive(batch)
			if got := s.Counts(); got.Invalid != c.invalid || got.Sent != got.Completed {
				t.Errorf("%+v: want %d invalid, and all sent completed", got, c.invalid)
			}
			if st, err := s.Stats(); err != nil || st.TXInvalid != 0 {
				t.Errorf("the NIC saw %d bad descriptors (%v)", st.TXInvalid, err)
			}
			if c := audit(t, n); c.Free+c.Fill != multi.Frames {
				t.Errorf("%+v: frames are missing", c)
			}
		})
	}
}

// In copy mode a packet that the device drops goes with all its frames.
func TestDroppedWholeInCopyMode(t *testing.T) {
	n, s := openCopy(t, multi)
	batch := make([]Desc, 64)
	n.DeliverBatch(0, [][]byte{pattern(1, 9000), pattern(2, 60)})
	s.Transmit(batch[:s.Receive(batch)])
	n.Inject(0, Faults{WakeError: unix.EBUSY})
	if err := s.send(); err != nil {
		t.Fatal(err)
	}
	if c := audit(t, n); c.TX != 0 || c.Completion != 4 {
		t.Errorf("%+v: want all four frames completed", c)
	}
	if s.counts.Refused != 2 {
		t.Errorf("%+v: want two wakeups refused, one for each packet", s.counts)
	}
}

// A slice of a packet's length can be taken from its first byte, even in the last frame.
func TestMemoryGoesOnBehindTheLastFrame(t *testing.T) {
	n := memoryNIC(t, multi, 1)
	last := (multi.Frames-1)*ChunkSize + kernelHeadroom + 32
	if got, want := len(n.Umem().Memory()), last+64*multi.MaxFrame(); got < want {
		t.Errorf("memory has %d bytes, want %d", got, want)
	}
	exact := Options{Frames: 8192, MultiBuffer: true} // 32 MiB, without a remainder on huge pages
	u, err := NewUmem(exact)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if got, want := len(u.Memory()), exact.Frames*ChunkSize+64*exact.MaxFrame(); got < want {
		t.Errorf("memory has %d bytes, want %d", got, want)
	}
	if !u.MultiBuffer() {
		t.Error("MultiBuffer is not reported")
	}
}

func TestMultiBufferNeedsRoomInTheRings(t *testing.T) {
	for _, o := range []Options{{RXSize: 16}, {TXSize: 16}} {
		o.MultiBuffer = true
		if _, err := NewUmem(o); err == nil || !strings.Contains(err.Error(), "make both at least 32") {
			t.Errorf("%+v: error is %v", o, err)
		}
	}
}

func TestNoAllocationsWithMultiBuffer(t *testing.T) {
	o := multi
	o.Audit = false
	n := memoryNIC(t, o, 2)
	in, out, batch := n.Sockets()[0], n.Sockets()[1], make([]Desc, 8)
	packets := [][]byte{pattern(1, 9000), pattern(2, 60), pattern(3, 9*o.MaxFrame()), pattern(4, 9000)}
	allocations := testing.AllocsPerRun(1000, func() {
		n.DeliverBatch(0, packets)
		for range 4 {
			got := in.Receive(batch)
			if got > 3 {
				batch[1].Len = 0
			}
			out.Recycle(batch[out.Transmit(batch[:got]):got])
			n.Collect(1, nil)
		}
	})
	if allocations != 0 {
		t.Errorf("%v allocations a round, want none", allocations)
	}
	out.Receive(nil)
	if in.Counts().Discarded == 0 || out.Counts().Invalid == 0 || out.Counts().Sent == 0 {
		t.Errorf("%+v, %+v: the test does not test the ways with errors", in.Counts(), out.Counts())
	}
}

func TestMultiBufferRefusals(t *testing.T) {
	o := Options{MultiBuffer: true}.withDefaults()
	for _, c := range []struct {
		call  string
		errno unix.Errno
		mode  Mode
		want  string
	}{
		{callMultiBuffer, unix.EINVAL, Copy, "bind with XDP_USE_SG: invalid argument; the kernel has no packets in several " +
			"frames: use Linux 6.6 or later, or lower the MTU to at most 3790, with which no packet needs several frames"},
		{callBind, unix.EOPNOTSUPP, ZeroCopy, "bind: operation not supported; the driver has no zero-copy, or none for " +
			"packets in several frames: use mode auto or copy, or lower the MTU to at most 3790, with which no packet " +
			"needs several frames"},
		{callBind, unix.EINVAL, Copy, "bind: invalid argument; the interface has probably no queue 3: see ethtool -l"},
	} {
		if got := explain(c.call, c.errno, &o, 3, c.mode).Error(); got != c.want {
			t.Errorf("%s, %v, %v:\n%s\nwant\n%s", c.call, c.errno, c.mode, got, c.want)
		}
	}
}
