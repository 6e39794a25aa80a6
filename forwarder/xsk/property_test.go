//go:build linux

package xsk

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests do at random what a worker and a NIC can do, misbehaving included, and check after every some operations
// that each frame is in exactly one place, and for each frame that leaves that it came in, once, and is what came in.

// writeFrame makes the frame with a number: its length and every byte follow from it.
func writeFrame(number uint64) []byte {
	f := make([]byte, 16+number*7%1500)
	binary.BigEndian.PutUint64(f, number)
	for i := 8; i < len(f); i++ {
		f[i] = byte(number) + byte(i)
	}
	return f
}

// readFrame returns the number of a frame, if it is whole.
func readFrame(f []byte) (uint64, error) {
	if len(f) < 16 {
		return 0, fmt.Errorf("frame of %d bytes", len(f))
	}
	number := binary.BigEndian.Uint64(f)
	if len(f) != 16+int(number*7%1500) {
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
	mu   sync.Mutex
	next uint64
	seen map[uint64]bool
	err  error
}

func (w *wire) deliver(n *MemoryNIC, queue, count int) {
	w.mu.Lock()
	var frames [][]byte
	for range count {
		frames = append(frames, writeFrame(w.next))
		w.next++
	}
	w.mu.Unlock()
	n.DeliverBatch(queue, frames)
}

func (w *wire) collect(n *MemoryNIC, queue int) {
	n.Collect(queue, func(f []byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		number, err := readFrame(f)
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

	reopened int
}

func (w *worker) step(t *testing.T) {
	queue := w.r.IntN(len(w.sockets))
	s := w.sockets[queue]
	switch op := w.r.IntN(1000); {
	case op < 350:
		got := s.Receive(w.batch[:w.r.IntN(len(w.batch)+1)])
		for _, d := range w.batch[:got] {
			w.held, w.from = append(w.held, d), append(w.from, s)
		}
	case op < 700 && len(w.held) > 0:
		k := w.r.IntN(len(w.held) + 1)
		if taken := s.Transmit(w.held[:k]); taken > k {
			t.Fatalf("Transmit took %d of %d", taken, k)
		} else {
			w.held, w.from = w.held[taken:], w.from[taken:]
		}
	case op < 760 && len(w.held) > 0:
		k := w.r.IntN(len(w.held) + 1)
		for i := range w.held[:k] {
			w.held[i].Addr = w.held[i].Addr&^(ChunkSize-1) | w.r.Uint64N(ChunkSize)
		}
		s.Recycle(w.held[:k])
		w.held, w.from = w.held[k:], w.from[k:]
	case op < 770 && len(w.held) > 0:
		// A mistake of the program's, which must not cost the frame.
		w.held[0].Len = []uint32{0, ChunkSize, 1 << 31}[w.r.IntN(3)]
		taken := s.Transmit(w.held[:1])
		w.held, w.from = w.held[taken:], w.from[taken:]
		if taken == 0 {
			s.Recycle(w.held[:1])
			w.held, w.from = w.held[1:], w.from[1:]
		}
	case op < 990:
		_ = s.Wake()
	case s.closed:
		w.reopen(t, queue)
	default:
		// The interface vanishes or is taken out of the configuration; it is back at once.
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
	case w.n.Umem().Free() >= tight.FillSize:
		t.Fatal(err)
	}
}

// finish ends all faults and lets everything come to rest; then all frames must be in fill rings or free.
func (w *worker) finish(t *testing.T, collect func(queue int)) {
	w.sockets[0].Recycle(w.held)
	for i, s := range w.sockets {
		w.n.Inject(i, Faults{})
		if s.stop != nil { // gone: this is how a program recovers
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
	c := audit(t, w.n)
	if c.Worker+c.RX+c.TX+c.Completion+c.Kernel+c.Settling != 0 {
		t.Fatalf("at rest: %+v", c)
	}
}

// frames is less than the rings together could hold, so that everything runs empty and full.
var tight = Options{Frames: 80, FillSize: 16, CompletionSize: 16, RXSize: 16, TXSize: 16, Audit: true}

func TestNoFrameLostOrDoubled(t *testing.T) {
	const queues = 3
	operations := 3_000_000
	if testing.Short() {
		operations = 300_000
	}
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			n := memoryNIC(t, tight, queues)
			r := rand.New(rand.NewPCG(seed, 1))
			w := &worker{n: n, r: r, sockets: n.Sockets()}
			wire := &wire{seen: map[uint64]bool{}}
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
			t.Logf("%d frames came in, %d left, %d sockets opened", wire.next, len(wire.seen), w.reopened)
		})
	}
}

// TestNoFrameLostAgainstRunningNIC has the NIC on other goroutines, one for each direction of each queue, as a kernel
// has it. Under -race it shows that the rings order every access to frames and descriptors.
func TestNoFrameLostAgainstRunningNIC(t *testing.T) {
	const queues = 2
	operations := 250_000
	if testing.Short() {
		operations = 60_000
	}
	n := memoryNIC(t, tight, queues)
	wire := &wire{seen: map[uint64]bool{}}
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
	faults := 0
	run(20, func(r *rand.Rand) {
		n.Inject(r.IntN(queues), randomFaults(r))
		faults++
		time.Sleep(200 * time.Microsecond)
	})

	w := &worker{n: n, r: rand.New(rand.NewPCG(7, 7)), sockets: n.Sockets()}
	start := time.Now()
	for i := range operations {
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
		}
	}
	close(stop)
	nic.Wait()
	w.finish(t, func(queue int) { wire.collect(n, queue) })
	wire.check(t)
	if len(wire.seen) < 1000 || faults == 0 {
		t.Fatalf("only %d frames went through, %d faults: the test tests little", len(wire.seen), faults)
	}
	t.Logf("%d frames came in, %d left, %d faults", wire.next, len(wire.seen), faults)
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
