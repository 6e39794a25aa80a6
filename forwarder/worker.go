package forwarder

import (
	"fmt"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/maglev"
)

const (
	// batchSize is how many frames go through the stages together. Fewer cost more a packet, more gain nothing.
	batchSize = 64
	// maxCopies is how many frames of the worker's own a batch can have beside those received; see copyTo and divide.
	maxCopies = batchSize
	// emptyPolls is how often a worker looks at all its queues in vain before it sleeps.
	emptyPolls = 256
	// sleep is how long it then sleeps at most; it bounds how late an idle worker notices a new snapshot or a command.
	sleep = 250 * time.Millisecond
	// MaxInterfaces is how many interfaces a node can have.
	MaxInterfaces = 32
)

// Port is one queue as a worker sees it: batch calls over frames of the worker's UMEM. xsk.Socket is the real one, on the
// kernel's rings or on the memory NIC's. Only the worker calls it.
type Port interface {
	// Receive fills batch with the frames that have arrived, oldest first, and returns how many. They are the worker's.
	Receive(batch []xsk.Desc) int
	// Transmit takes the first n frames to be sent, and returns n. The rest stay the worker's.
	Transmit(batch []xsk.Desc) int
	// Recycle takes frames back that are not sent.
	Recycle(batch []xsk.Desc)
	// Spare gives the worker a free frame, to be written from addr on; false if there is none.
	Spare() (addr uint64, ok bool)
	// Backlog is how many frames have arrived and wait for Receive, and for how many there is room.
	Backlog() (waiting, size int)
	// Wake tells the other side of the rings that something was done, if it asked to be told: one system call at most.
	Wake() error
}

// Queue is a port and the interface that it is a queue of.
type Queue struct {
	Port
	Interface int // index in the node's list
	Number    int
}

// WorkerIO is what a worker receives from and sends to.
type WorkerIO struct {
	Memory []byte // the UMEM: Desc.Addr is an offset in it
	// MultiBuffer says that a packet may come in several frames.
	MultiBuffer bool
	Queues      []Queue
	// Wait sleeps until a frame may have arrived, at most so long.
	Wait func(time.Duration) error
}

// Worker treats the frames of its queues. Run, Poll and Attach belong to one goroutine.
type Worker struct {
	id     int
	engine *Engine
	table  *conntrack.Table
	io     WorkerIO
	// egress is, by interface, the one of leaving that frames leave by; nil if the worker has no queue there.
	egress [MaxInterfaces]*departures

	acked     atomic.Uint64 // generation of the snapshot in use
	heartbeat atomic.Int64  // CLOCK_MONOTONIC ns of the last turn of Run
	restarts  atomic.Uint64
	cpu       atomic.Int64  // -1: not pinned
	pressure  atomic.Uint32 // how full, of 256, a ring was since Engine.LookShed; what is below pressureSome is not told
	commands  chan func()
	ended     chan struct{} // closed when Run returns
	count     *counters
	tops      topCounts

	// What the worker says by itself is limited: answers to echo requests, ICMP errors, resets.
	echoes, errors, resets, resolves pace

	handshakes handshakes

	sampled uint32 // batches of which a packet was looked at for TopPackets
	lots    guard.Lots
	// wall is the time of day, seconds, as read in the batch of the time wallAt.
	wall, wallAt int64

	waiting []heldFragment

	// The batch under way.
	batch
}

// batch is the state of the stages. Index i is the same frame everywhere.
type batch struct {
	descs    [batchSize + maxCopies]xsk.Desc
	metas    [batchSize + maxCopies + 1]packet.Meta // the last is nobody's: see continuation
	hashes   [batchSize + maxCopies]uint64
	parsing  packet.Scratch
	services [batchSize + maxCopies]uint32
	slots    [batchSize + maxCopies]uint32
	// words and indices are the flows' words. For a packet on the list of misses a word is left only if it is live and its
	// target does not take the packet: it is to be replaced.
	words   [batchSize + maxCopies]conntrack.Word
	indices [batchSize + maxCopies]int
	// asked are the indices of the packets that the limiter is asked about, sources the hashes of their sources under the limit of
	// packets, in the same order, and halves what these are made of.
	asked           [batchSize]uint8
	sources, halves [batchSize]uint64
	misses          [batchSize + maxCopies]uint8 // indices of packets to decide
	missed          int
	decisions       decisions
	renewing        [batchSize]uint8 // indices of packets whose words may have to be written
	renewals        int
	proofs          [batchSize]uint64 // hashes of sources that are to be noted as proved
	leaving         []departures      // by queue
	dropped         [batchSize + maxCopies]xsk.Desc
	// tails are the further frames of packets that came in several, those of packet i in chains[i].
	tails  [batchSize]xsk.Desc
	chains [batchSize]chain

	from      Port  // where the batch came from
	fromQueue int32 // its index
	received  int   // how many frames it has; 0 between batches
	copies    int   // how many of the worker's own come after them
	answers   int   // how many of the received went back as an answer to their sender
	handing   bool  // frames are being handed to rings
}

// Bits of Meta.Flags that are the worker's own.
const (
	placed uint16 = 1 << 13 // its service is known, though its ports are not
	answer uint16 = 1 << 14 // the frame was made an answer to its sender; the packet itself has a Reason
	reply  uint16 = 1 << 15 // from a NAT backend: its slot is the number of a translation
)

// continuation stands for the index of a departure that is a further frame of the packet before it.
const continuation = batchSize + maxCopies

// departures are the frames of a batch that leave by one queue.
type departures struct {
	queue   int32 // its index
	n       uint
	descs   [batchSize + maxCopies]xsk.Desc
	indices [batchSize + maxCopies]uint8 // in the batch
	// others says that not all are received packets on their way to their backends.
	others bool
}

// NewWorker adds a worker to the engine.
func (e *Engine) NewWorker(io WorkerIO) *Worker {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := &Worker{id: len(e.workers), engine: e, table: e.table, count: newCounters(), commands: make(chan func(), 16), ended: make(chan struct{})}
	w.handshakes.places = new([handshakePlaces]sentSYN)
	w.cpu.Store(-1)
	w.tops = newTopCounts(e.keys.Guard[0], e.clock())
	w.waiting = make([]heldFragment, 0, maxHeld)
	w.Attach(io)
	e.workers = append(e.workers, w)
	// Schedulers and ceilings keep something for each worker.
	e.nodeCeilings = newCeilings(len(e.workers))
	for _, s := range e.services {
		s.live.unproved = guard.NewCeiling(len(e.workers))
		if s.ceilings != nil {
			s.ceilings = newCeilings(len(e.workers))
			s.live.limits = e.serviceLimits(s, &s.spec)
		}
		if p := s.live.Pool; !s.adopted {
			s.live.Pool = maglev.NewPool(p.Table(), p.Slots(), p.Scheduler(), len(e.workers))
		}
	}
	e.rebuild()
	w.acked.Store(e.generation)
	return w
}

// Attach sets what the worker receives from and sends to. Not while a batch is under way.
func (w *Worker) Attach(io WorkerIO) {
	w.giveUp()
	w.io = io
	w.leaving = make([]departures, len(io.Queues))
	clear(w.egress[:])
	for q := len(io.Queues) - 1; q >= 0; q-- { // the lowest queue of each interface in the end
		w.leaving[q].queue = int32(q)
		w.egress[io.Queues[q].Interface] = &w.leaving[q]
	}
}

// Run treats frames until stop is set. A panic costs the batch under way, which is counted under Internal; its frames are
// kept, restarted is called, and the worker goes on. Run ends with an error at the third panic within a minute, or when one
// happens while frames are handed to the rings, since nobody knows then whose they are.
func (w *Worker) Run(stop *atomic.Bool, restarted func(error)) error {
	defer close(w.ended)
	var panics []int64
	for {
		err := w.run(stop)
		if err == nil {
			return nil
		}
		if w.handing {
			return fmt.Errorf("worker %d: while handing frames over: %w", w.id, err)
		}
		now := w.engine.clock()
		if panics = append(panics, now); len(panics) > 3 {
			panics = panics[1:]
		}
		if len(panics) == 3 && now-panics[0] < int64(time.Minute) {
			return fmt.Errorf("worker %d: three panics within a minute, the last: %w", w.id, err)
		}
		w.restarts.Add(1)
		restarted(err)
	}
}

func (w *Worker) run(stop *atomic.Bool) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = w.recovered(r)
		}
	}()
	for idle := 0; !stop.Load(); {
		if w.turn() > 0 {
			idle = 0
			continue
		}
		if idle++; idle < emptyPolls {
			continue
		}
		rest := sleep
		if len(w.waiting) > 0 {
			rest = heldSleep
		}
		w.publish(w.engine.clock())
		if err := w.io.Wait(rest); err != nil {
			time.Sleep(sleep / 10) // no way to sleep on the sockets: do not spin on the error
		}
	}
	w.giveUp()
	w.publish(w.engine.clock())
	return nil
}

// publish makes what was counted visible, and tells those who wait for signals.
func (w *Worker) publish(now int64) {
	news := len(w.count.dirtySignals) > 0
	w.count.publish(now)
	if news {
		w.engine.tellNews()
	}
}

// turn looks once at every queue and does what else there is to do. It returns how many frames there were.
func (w *Worker) turn() int {
	n := 0
	for q := range w.io.Queues {
		n += w.Poll(q)
	}
	if len(w.waiting) > 0 {
		n += w.releaseAll()
	}
	now := w.engine.clock()
	w.heartbeat.Store(now)
	late := now-w.count.published > publishNanos
	if late || len(w.commands) > 0 {
		w.publish(now)
	}
	if n == 0 || late {
		w.tops.age(now)
		if g := w.engine.snapshot.Load().generation; w.acked.Load() != g {
			w.acked.Store(g) // no batch is under way: the next one loads this snapshot or a later one
		}
		for len(w.commands) > 0 {
			(<-w.commands)()
		}
	}
	return n
}

// recovered gives the frames of the batch under way back and counts all of it.
func (w *Worker) recovered(r any) error {
	err := fmt.Errorf("panic: %v\n%s", r, debug.Stack())
	if w.handing {
		return err
	}
	if n := w.received; n > 0 {
		w.recoverFrames(n)
		w.count.received += uint64(n)
	}
	for q := range w.leaving {
		out := &w.leaving[q]
		w.uncount(out.indices[:out.n])
		out.n, out.others = 0, false
	}
	w.received, w.copies, w.answers, w.missed, w.decisions.births.n = 0, 0, 0, 0, 0
	return err
}

// recoverFrames gives the frames of a batch of n back and counts its packets, all but those that are held.
func (w *Worker) recoverFrames(n int) {
	for i := range w.descs[:n+w.copies] {
		if slices.ContainsFunc(w.waiting, func(h heldFragment) bool { return h.desc.Addr == w.descs[i].Addr }) {
			continue
		}
		w.from.Recycle(w.descs[i : i+1])
		if i < n {
			w.count.reasons[packet.Internal]++
			if w.descs[i].Options != 0 {
				w.from.Recycle(w.tailOf(i))
			}
		}
	}
}

// Do has the worker call f between two batches and waits for it, at most the time of one sleep. f is not called if Run has
// ended.
func (w *Worker) Do(f func()) {
	done := make(chan struct{})
	select {
	case w.commands <- func() { defer close(done); f() }:
	case <-w.ended:
		return
	}
	select {
	case <-done:
	case <-w.ended:
	}
}
