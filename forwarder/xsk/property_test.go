//go:build linux

package xsk

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests do at random what a worker and a NIC can do, misbehaving included, and check after every some operations
// that each frame is in exactly one place, and for each frame that leaves that it came in, once, and is what came in.

// frameLength is that of the frame with a number. With several buffers most are long, and some longer than the kernel sends
// or the worker's batch has room for.
func frameLength(number uint64, multiBuffer bool) int {
	switch {
	case !multiBuffer || number%4 == 0:
		return 16 + int(number*7%1500)
	case number%41 == 0:
		return 60_000 + int(number*131%40_000) // up to 27 frames
	}
	return 16 + int(number*7919%16_000)
}

// writeFrame makes the frame with a number: its length and every byte follow from it.
func writeFrame(number uint64, multiBuffer bool) []byte {
	f := make([]byte, frameLength(number, multiBuffer))
	binary.BigEndian.PutUint64(f, number)
	for i := 8; i < len(f); i++ {
		f[i] = byte(number) + byte(i)
	}
	return f
}

// readFrame returns the number of a frame, if it is whole.
func readFrame(f []byte, multiBuffer bool) (uint64, error) {
	if len(f) < 16 {
		return 0, fmt.Errorf("frame of %d bytes", len(f))
	}
	number := binary.BigEndian.Uint64(f)
	if len(f) != frameLength(number, multiBuffer) {
		return 0, fmt.Errorf("frame %d has %d bytes", number, len(f))
	}
	for i := 8; i < len(f); i++ {
		if f[i] != byte(number)+byte(i) {
			return 0, fmt.Errorf("frame %d is damaged at byte %d", number, i)
		}
	}
	return number, nil
}

// wire is what two sides know of the frames that went in and came out.
type wire struct {
	multiBuffer bool

	mu   sync.Mutex
	next uint64
	seen map[uint64]bool
	err  error
}

func (w *wire) deliver(n *MemoryNIC, queue, count int) {
	w.mu.Lock()
	var frames [][]byte
	for range count {
		frames = append(frames, writeFrame(w.next, w.multiBuffer))
		w.next++
	}
	w.mu.Unlock()
	n.DeliverBatch(queue, frames)
}

func (w *wire) collect(n *MemoryNIC, queue int) {
	n.Collect(queue, func(f []byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		number, err := readFrame(f, w.multiBuffer)
		if err == nil && number >= w.next {
			err = fmt.Errorf("frame %d never came in", number)
		}
		if err == nil && w.seen[number] {
			err = fmt.Errorf("frame %d left twice", number)
		}
		if err != nil && w.err == nil {
			w.err = err
		}
		w.seen[number] = true
	})
}

// left returns how many frames left.
func (w *wire) left() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen)
}

func (w *wire) check(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		t.Fatal(w.err)
	}
}

func randomFaults(r *rand.Rand) Faults {
	if r.IntN(2) == 0 {
		return Faults{}
	}
	return Faults{
		RXFull: r.IntN(6) == 0, FillWithheld: r.IntN(6) == 0, TXStuck: r.IntN(6) == 0,
		CompletionsWithheld: r.IntN(4) == 0, NeedWakeup: r.IntN(3) == 0, Gone: r.IntN(12) == 0,
		WakeError: []unix.Errno{0, 0, 0, 0, unix.EAGAIN, unix.EBUSY, unix.ENETDOWN, unix.ENOBUFS}[r.IntN(8)],
	}
}

// worker does at random what a worker may do.
type worker struct {
	n       *MemoryNIC
	r       *rand.Rand
	sockets []*Socket
	held    []Desc
	from    []*Socket // of held
	batch   [24]Desc

	reopened           int
	discarded, invalid uint64 // counted by closed sockets
}

// packets returns how many of the held descriptors make up some whole packets, the first ones.
func (w *worker) packets() int { return wholePackets(w.held[:w.r.IntN(len(w.held)+1)]) }

// firstPacket returns how many descriptors the first packet has.
func (w *worker) firstPacket() int {
	for i, d := range w.held {
		if d.Options == 0 {
			return i + 1
		}
	}
	return 0
}

// drop forgets the first n of the held descriptors.
func (w *worker) drop(n int) { w.held, w.from = w.held[n:], w.from[n:] }

// account adds what the sockets counted that nobody would expect of a good worker.
func (w *worker) account(sockets ...*Socket) {
	for _, s := range sockets {
		w.discarded += s.counts.Discarded
		w.invalid += s.counts.Invalid
	}
}

func (w *worker) step(t *testing.T) {
	queue := w.r.IntN(len(w.sockets))
	s := w.sockets[queue]
	switch op := w.r.IntN(1000); {
	case op < 350:
		got := s.Receive(w.batch[:w.r.IntN(len(w.batch)+1)])
		if wholePackets(w.batch[:got]) != got {
			t.Fatal("Receive split a packet")
		}
		for _, d := range w.batch[:got] {
			w.held, w.from = append(w.held, d), append(w.from, s)
		}
	case op < 700 && len(w.held) > 0:
		k := w.packets()
		if taken := s.Transmit(w.held[:k]); taken > k || wholePackets(w.held[:taken]) != taken {
			t.Fatalf("Transmit took %d of %d", taken, k)
		} else {
			w.drop(taken)
		}
	case op < 760 && len(w.held) > 0:
		k := w.packets()
		for i := range w.held[:k] {
			w.held[i].Addr = w.held[i].Addr&^(ChunkSize-1) | w.r.Uint64N(ChunkSize)
		}
		s.Recycle(w.held[:k])
		w.drop(k)
	case op < 770 && len(w.held) > 0:
		// A mistake of the program's, which must not cost the frames.
		n := w.firstPacket()
		sent := n
		switch mistake := w.r.IntN(5); {
		case mistake == 0:
			w.held[w.r.IntN(n)].Options |= 2
		case mistake == 1 && n > 1:
			sent = 1 + w.r.IntN(n-1) // without its end
		default:
			w.held[w.r.IntN(n)].Len = []uint32{0, ChunkSize, 1 << 31}[w.r.IntN(3)]
		}
		taken := s.Transmit(w.held[:sent])
		if taken != 0 && taken != sent {
			t.Fatalf("Transmit took %d of the %d frames of a packet", taken, sent)
		}
		s.Recycle(w.held[taken:n])
		w.drop(n)
	case op < 990:
		_ = s.Wake()
	case s.closed:
		w.reopen(t, queue)
	default:
		// The interface vanishes or is taken out of the configuration; it is back at once.
		w.account(s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(w.held); {
			if w.from[i] == s {
				w.held = append(w.held[:i], w.held[i+1:]...)
				w.from = append(w.from[:i], w.from[i+1:]...)
			} else {
				i++
			}
		}
		w.reopen(t, queue)
	}
}

// reopen opens a closed socket again, unless too few frames are free at the moment. Then it is tried again later.
func (w *worker) reopen(t *testing.T, queue int) {
	s, err := w.n.Open(queue, []Mode{ZeroCopy, Copy}[w.r.IntN(2)])
	switch {
	case err == nil:
		w.sockets[queue] = s
		w.reopened++
	case w.n.Umem().Free() >= w.n.Umem().options.FillSize:
		t.Fatal(err)
	}
}

// finish ends all faults and lets everything come to rest; then all frames must be in fill rings or free.
func (w *worker) finish(t *testing.T, collect func(queue int)) {
	w.sockets[0].Recycle(w.held)
	for i, s := range w.sockets {
		w.n.Inject(i, Faults{})
		if s.stop != nil { // gone: this is how a program recovers
			w.account(s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			w.reopen(t, i)
		}
	}
	for range 100 {
		for i, s := range w.sockets {
			s.Recycle(w.batch[:s.Receive(w.batch[:])])
			if s.closed {
				w.reopen(t, i)
				continue
			}
			if err := s.Wake(); err != nil {
				t.Fatal(err)
			}
			collect(i)
		}
	}
	w.account(w.sockets...)
	c := audit(t, w.n)
	if c.Worker+c.RX+c.TX+c.Completion+c.Kernel+c.Settling != 0 {
		t.Fatalf("at rest: %+v", c)
	}
}

// frames is less than the rings together could hold, so that everything runs empty and full.
var tight = Options{Frames: 80, FillSize: 16, CompletionSize: 16, RXSize: 16, TXSize: 16, Audit: true}

// tightMulti has hardly enough frames for its three fill rings, and packets of up to 27.
var tightMulti = Options{
	Frames: 120, FillSize: 32, CompletionSize: 32, RXSize: 32, TXSize: 32, MultiBuffer: true, Audit: true,
}

func TestNoFrameLostOrDoubled(t *testing.T) {
	t.Run("one buffer", func(t *testing.T) { testNoFrameLostOrDoubled(t, tight, 3) })
	t.Run("several buffers", func(t *testing.T) { testNoFrameLostOrDoubled(t, tightMulti, 2) })
}

func testNoFrameLostOrDoubled(t *testing.T, o Options, seeds uint64) {
	const queues = 3
	operations := 3_000_000
	if testing.Short() {
		operations = 300_000
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			n := memoryNIC(t, o, queues)
			r := rand.New(rand.NewPCG(seed, 1))
			w := &worker{n: n, r: r, sockets: n.Sockets()}
			wire := &wire{multiBuffer: o.MultiBuffer, seen: map[uint64]bool{}}
			collect := func(queue int) { wire.collect(n, queue) }
			start, done := time.Now(), 0
			for i := range operations / 3 {
				if done = i; i%1000 == 0 && time.Since(start) > 6*time.Second {
					t.Logf("a slow machine: stopped after %d operations", done)
					break
				}
				switch op := r.IntN(100); {
				case op < 25:
					wire.deliver(n, r.IntN(queues), r.IntN(12))
				case op < 50:
					collect(r.IntN(queues))
				case op < 51:
					n.Inject(r.IntN(queues), randomFaults(r))
				default:
					w.step(t)
				}
				if i%31 == 0 {
					if c := audit(t, n); c.Worker != len(w.held) {
						t.Fatalf("operation %d: %+v, and the worker holds %d", i, c, len(w.held))
					}
					wire.check(t)
				}
			}
			w.finish(t, collect)
			wire.check(t)
			if len(wire.seen) < done/50 || w.reopened < done/500 {
				t.Fatalf("only %d frames went through, %d sockets were opened: the test tests little", len(wire.seen), w.reopened)
			}
			if w.invalid == 0 || o.MultiBuffer != (w.discarded > 0) {
				t.Errorf("%d packets were refused, %d discarded", w.invalid, w.discarded)
			}
			t.Logf("%d packets came in, %d left, %d sockets opened, %d packets discarded, %d refused",
				wire.next, len(wire.seen), w.reopened, w.discarded, w.invalid)
		})
	}
}

// TestNoFrameLostAgainstRunningNIC has the NIC on other goroutines, one for each direction of each queue, as a kernel
// has it. Under -race it shows that the rings order every access to frames and descriptors.
func TestNoFrameLostAgainstRunningNIC(t *testing.T) {
	t.Run("one buffer", func(t *testing.T) { testAgainstRunningNIC(t, tight) })
	t.Run("several buffers", func(t *testing.T) { testAgainstRunningNIC(t, tightMulti) })
}

func testAgainstRunningNIC(t *testing.T, o Options) {
	const queues, enough = 2, 1000
	operations := 250_000
	if testing.Short() {
		operations = 60_000
	}
	n := memoryNIC(t, o, queues)
	wire := &wire{multiBuffer: o.MultiBuffer, seen: map[uint64]bool{}}
	stop := make(chan struct{})
	var nic sync.WaitGroup
	run := func(seed uint64, f func(r *rand.Rand)) {
		nic.Go(func() {
			r := rand.New(rand.NewPCG(seed, 2))
			for {
				select {
				case <-stop:
					return
				default:
					f(r)
					runtime.Gosched()
				}
			}
		})
	}
	for q := range queues {
		run(uint64(q), func(r *rand.Rand) { wire.deliver(n, q, r.IntN(12)) })
		run(uint64(q)+10, func(*rand.Rand) { wire.collect(n, q) })
	}
	var faults atomic.Int64
	run(20, func(r *rand.Rand) {
		n.Inject(r.IntN(queues), randomFaults(r))
		faults.Add(1)
		time.Sleep(200 * time.Microsecond)
	})

	w := &worker{n: n, r: rand.New(rand.NewPCG(7, 7)), sockets: n.Sockets()}
	start := time.Now()
	for i := 0; ; i++ {
		w.step(t)
		if i%4 == 0 {
			runtime.Gosched() // more goroutines than cores: they have to take turns often to meet
		}
		if i%500 == 0 {
			if time.Since(start) > 6*time.Second {
				t.Logf("a slow machine: stopped after %d operations", i)
				break
			}
			if c := audit(t, n); c.Worker != len(w.held) {
				t.Fatalf("operation %d: %+v, and the worker holds %d", i, c, len(w.held))
			}
			wire.check(t)
			if i >= operations && wire.left() >= enough && faults.Load() > 0 {
				break // the NIC had its turns, too
			}
		}
	}
	close(stop)
	nic.Wait()
	w.finish(t, func(queue int) { wire.collect(n, queue) })
	wire.check(t)
	if wire.left() < enough || faults.Load() == 0 {
		t.Fatalf("only %d packets went through, %d faults: the test tests little", wire.left(), faults.Load())
	}
	t.Logf("%d packets came in, %d left, %d faults", wire.next, wire.left(), faults.Load())
}

// TestCountsAreReadWhileTheWorkerRuns is for -race.
func TestCountsAreReadWhileTheWorkerRuns(t *testing.T) {
	n := memoryNIC(t, small, 1)
	s, batch := n.Sockets()[0], make([]Desc, 8)
	done := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		last := Counts{}
		for {
			c := s.Counts()
			if c.Received < last.Received || c.Sent < last.Sent {
				t.Errorf("counts went back: %+v after %+v", c, last)
			}
			last = c
			if _, err := s.Stats(); err != nil {
				t.Error(err)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for range 2000 {
		n.Post(0, 8, 60)
		s.Transmit(batch[:s.Receive(batch)])
		n.Collect(0, nil)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	close(done)
	reader.Wait()
	if c := s.Counts(); c.Received != 16000 || c.Sent != 16000 {
		t.Errorf("%+v: want 16000 received and sent", c)
	}
}
