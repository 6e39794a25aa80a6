//go:build linux

package xsk

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// MemoryNIC is the kernel's side of the rings of some sockets on one Umem, in ordinary memory. Tests and benchmarks
// drive it: Deliver puts frames into a queue's RX ring, Collect takes them out of its TX ring and completes them.
//
// Deliver and its kind may be called by one goroutine at a time per queue or by many, and so may Collect; the worker
// may run meanwhile. Left alone it behaves like a zero-copy driver that polls: it never asks to be woken. Inject makes
// it misbehave.
type MemoryNIC struct {
	umem   *Umem
	queues []*memoryQueue

	bell     chan struct{} // rung when frames were delivered
	spurious atomic.Bool
}

// Faults are ways in which a queue of a MemoryNIC misbehaves.
type Faults struct {
	RXFull              bool // the RX ring passes for full: deliveries are dropped
	FillWithheld        bool // the NIC takes no frames from the fill ring: deliveries are dropped
	TXStuck             bool // the NIC takes no frames from the TX ring
	CompletionsWithheld bool // frames are sent but not completed, until the fault ends and Collect is called
	NeedWakeup          bool // the NIC asks to be woken, and does not look at a ring before it is; always so in copy mode

	// WakeError is the answer to every wakeup, instead of what it asks for. With EBUSY in copy mode, each wakeup drops
	// and completes one packet, as the kernel does.
	WakeError unix.Errno

	// Gone lets the interface vanish: wakeups are answered ENXIO and nothing moves any more.
	Gone bool
}

// memoryQueue is one queue: the other ends of the four rings of the socket opened last.
type memoryQueue struct {
	nic    *MemoryNIC
	number int
	socket *Socket
	faults atomic.Pointer[Faults]

	rxMu      sync.Mutex // guards the receiving side
	fill      consumer[uint64]
	rx        producer[Desc]
	rxFlags   *uint32
	rxAwake   bool
	rxDropped uint64
	rxFull    uint64
	fillEmpty uint64

	txMu       sync.Mutex // guards the sending side
	tx         consumer[Desc]
	completion producer[uint64]
	txFlags    *uint32
	txAwake    bool
	withheld   []uint64 // sent, not completed
	joined     []byte   // the bytes of a packet in several frames
	wire       [][]byte // sent in copy mode, not collected
	copies     bool     // copy mode
	txInvalid  uint64
}

// NewMemoryNIC makes a Umem and one socket for each queue, in zero-copy mode.
func NewMemoryNIC(o Options, queues int) (*MemoryNIC, error) {
	u, err := NewUmem(o)
	if err != nil {
		return nil, err
	}
	n := &MemoryNIC{umem: u, bell: make(chan struct{}, 1)}
	u.wait = n.wait
	for i := range queues {
		n.queues = append(n.queues, newMemoryQueue(n, i))
		if _, err := n.Open(i, ZeroCopy); err != nil {
			_ = u.Close()
			return nil, err
		}
	}
	return n, nil
}

// Umem returns the memory, whose Close closes the NIC and its sockets.
func (n *MemoryNIC) Umem() *Umem { return n.umem }

// Sockets returns the sockets that were opened last on each queue.
func (n *MemoryNIC) Sockets() []*Socket {
	s := make([]*Socket, len(n.queues))
	for i, q := range n.queues {
		s[i] = q.socket
	}
	return s
}

func newMemoryQueue(n *MemoryNIC, number int) *memoryQueue {
	q := &memoryQueue{nic: n, number: number}
	q.faults.Store(&Faults{})
	q.disconnect()
	return q
}

// disconnect leaves the queue without a socket. What it held is forgotten, as a kernel forgets it.
func (q *memoryQueue) disconnect() {
	q.fill, q.rx = closedConsumer[uint64](), closedProducer[Desc]()
	q.tx, q.completion = closedConsumer[Desc](), closedProducer[uint64]()
	q.rxFlags, q.txFlags = new(uint32), new(uint32)
	q.withheld, q.wire = nil, nil
}

// Open opens the socket of a queue again after it was closed, in mode ZeroCopy or Copy. In copy mode frames leave the TX
// ring in Wake, at most 32 for each system call that it would have made. It is called by the worker's goroutine.
func (n *MemoryNIC) Open(queue int, mode Mode) (*Socket, error) {
	u, q := n.umem, n.queues[queue]
	if q.socket != nil && !q.socket.closed {
		return nil, fmt.Errorf("open memory queue %d: is open already; close it first", queue)
	}
	if err := u.require(u.options.FillSize); err != nil {
		return nil, fmt.Errorf("open memory queue %d: %w", queue, err)
	}
	number, err := u.number()
	if err != nil {
		return nil, fmt.Errorf("open memory queue %d: %w", queue, err)
	}
	s := &Socket{
		umem: u, number: number, mode: mode, busyPoll: u.options.BusyPoll,
		multiBuffer: u.options.MultiBuffer, name: "memory", ifindex: 1, queue: queue, fd: -1, kernel: q,
	}

	q.rxMu.Lock()
	q.txMu.Lock()
	defer q.rxMu.Unlock()
	defer q.txMu.Unlock()
	o := &u.options
	fill, rx, tx, completion := memoryWords(), memoryWords(), memoryWords(), memoryWords()
	fills, rxs := make([]uint64, o.FillSize), make([]Desc, o.RXSize)
	txs, completions := make([]Desc, o.TXSize), make([]uint64, o.CompletionSize)
	s.attach(ringSet{
		fill: newProducer(fill, fills), rx: newConsumer(rx, rxs),
		tx: newProducer(tx, txs), completion: newConsumer(completion, completions),
	})
	q.fill, q.rx, q.rxFlags = newConsumer(fill, fills), newProducer(rx, rxs), fill.flags
	q.tx, q.completion, q.txFlags = newConsumer(tx, txs), newProducer(completion, completions), tx.flags
	q.copies, q.socket = mode == Copy, s
	q.rxAwake, q.txAwake = false, false
	q.rxDropped, q.rxFull, q.fillEmpty, q.txInvalid = 0, 0, 0, 0
	q.ask(q.faults.Load())

	s.refill()
	u.sockets = append(u.sockets, s)
	return s, nil
}

// memoryWords are ring words on cache lines of their own, as the kernel lays them out.
func memoryWords() ringWords {
	w := new([3][16]uint32)
	return ringWords{&w[0][0], &w[1][0], &w[2][0]}
}

// Inject sets the faults of a queue; the zero Faults end them. Any goroutine may call it.
func (n *MemoryNIC) Inject(queue int, f Faults) {
	q := n.queues[queue]
	q.rxMu.Lock()
	q.txMu.Lock()
	defer q.rxMu.Unlock()
	defer q.txMu.Unlock()
	q.faults.Store(&f)
	q.rxAwake, q.txAwake = false, false
	q.ask(&f)
}

// Spurious makes Wait return at once, whether there is something to receive or not. Any goroutine may call it.
func (n *MemoryNIC) Spurious(on bool) { n.spurious.Store(on) }

// ask sets the flags by which the NIC asks for wakeups. Both locks are held.
func (q *memoryQueue) ask(f *Faults) {
	atomic.StoreUint32(q.rxFlags, flag(f.NeedWakeup && !q.copies && !q.rxAwake))
	atomic.StoreUint32(q.txFlags, flag(q.copies || f.NeedWakeup && !q.txAwake))
}

func flag(on bool) uint32 {
	if on {
		return ringNeedWakeup
	}
	return 0
}

// wait is Umem.Wait.
func (n *MemoryNIC) wait(timeout time.Duration) error {
	if n.spurious.Load() {
		return nil
	}
	for _, q := range n.queues {
		// As in poll(2): in copy mode it sends, whatever is there to receive.
		if q.copies {
			_ = q.send()
		}
	}
	for _, q := range n.queues {
		if q.socket.rx.peek(1) > 0 {
			return nil
		}
	}
	if timeout < 0 {
		<-n.bell
		return nil
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-n.bell:
	case <-t.C:
	}
	return nil
}

// ring wakes the worker.
func (n *MemoryNIC) ring() {
	select {
	case n.bell <- struct{}{}:
	default:
	}
}

// Deliver copies a frame from the wire into a frame of the fill ring, or with Options.MultiBuffer into as many as it takes,
// and puts it into the RX ring. False means that it was dropped, and counted in Socket.Stats.
func (n *MemoryNIC) Deliver(queue int, frame []byte) bool {
	return n.DeliverBatch(queue, [][]byte{frame}) == 1
}

// DeliverBatch is Deliver for many frames at the price of one. It returns how many were not dropped; after the first
// that finds no room, all are dropped.
func (n *MemoryNIC) DeliverBatch(queue int, frames [][]byte) int {
	q := n.queues[queue]
	q.rxMu.Lock()
	defer q.rxMu.Unlock()
	o := &n.umem.options
	memory, headroom, longest := n.umem.memory, uint64(kernelHeadroom+o.Headroom), o.MaxFrame()
	parts := func(frame []byte) int {
		if !o.MultiBuffer {
			return 1
		}
		return max(1, (len(frame)+longest-1)/longest)
	}
	want := 0
	for _, frame := range frames {
		want += parts(frame)
	}
	room, done, delivered := q.room(want), uint32(0), 0
	for _, frame := range frames {
		if room -= parts(frame); room < 0 {
			break
		}
		if len(frame) > longest && !o.MultiBuffer {
			q.rxDropped++
			continue
		}
		for more := true; more; done++ {
			addr := *q.fill.slot(done)&^(ChunkSize-1) + headroom
			d := Desc{Addr: addr, Len: uint32(copy(memory[addr:addr+uint64(longest)], frame))}
			frame = frame[d.Len:]
			if more = len(frame) > 0; more {
				d.Options = Continued
			}
			*q.rx.slot(done) = d
		}
		delivered++
	}
	q.hand(done)
	return delivered
}

// Post puts count frames of the given length into the RX ring without writing them: their content is what the chunks
// hold where received frames begin, headroom bytes after their start (see Prepare). It returns how many were not dropped.
func (n *MemoryNIC) Post(queue, count, length int) int {
	q := n.queues[queue]
	q.rxMu.Lock()
	defer q.rxMu.Unlock()
	room := uint32(q.room(count))
	headroom := uint64(kernelHeadroom + n.umem.options.Headroom)
	for i := range room {
		*q.rx.slot(i) = Desc{Addr: *q.fill.slot(i)&^(ChunkSize-1) + headroom, Len: uint32(length)}
	}
	q.hand(room)
	return int(room)
}

// Prepare writes a frame to every chunk of the memory, where Post will find it. It is for a NIC that is not in use.
func (n *MemoryNIC) Prepare(write func(chunk int, frame []byte)) {
	headroom := kernelHeadroom + n.umem.options.Headroom
	for i := range n.umem.place {
		write(i, n.umem.memory[i*ChunkSize+headroom:(i+1)*ChunkSize])
	}
}

// room returns how many of want frames can be received, and counts why the others cannot.
func (q *memoryQueue) room(want int) int {
	f := q.faults.Load()
	if f.Gone {
		return 0
	}
	filled := int(q.fill.peek(uint32(want)))
	if f.FillWithheld || f.NeedWakeup && !q.copies && !q.rxAwake {
		filled = 0
	}
	if filled < want {
		q.fillEmpty += uint64(want - filled)
		if f.NeedWakeup {
			q.rxAwake = false
			atomic.StoreUint32(q.rxFlags, flag(!q.copies))
		}
	}
	room := int(q.rx.reserve(uint32(filled)))
	if f.RXFull {
		room = 0
	}
	q.rxFull += uint64(filled - room)
	return room
}

// hand gives n written descriptors to the worker.
func (q *memoryQueue) hand(n uint32) {
	if n == 0 {
		return
	}
	q.fill.release(n)
	q.rx.submit(n)
	q.nic.ring()
}

// receive is the kernel's recvfrom on the socket.
func (q *memoryQueue) receive() error {
	q.rxMu.Lock()
	defer q.rxMu.Unlock()
	f := q.faults.Load()
	switch {
	case f.Gone:
		return unix.ENXIO
	case f.WakeError != 0:
		return f.WakeError
	}
	q.rxAwake = true
	atomic.StoreUint32(q.rxFlags, 0)
	return nil
}

func (q *memoryQueue) statistics() (Statistics, error) {
	q.rxMu.Lock()
	q.txMu.Lock()
	defer q.rxMu.Unlock()
	defer q.txMu.Unlock()
	return Statistics{
		RXDropped: q.rxDropped, RXRingFull: q.rxFull, FillEmpty: q.fillEmpty, TXInvalid: q.txInvalid,
	}, nil
}

func (q *memoryQueue) settle() time.Duration { return 0 }

func (q *memoryQueue) close() error {
	q.rxMu.Lock()
	q.txMu.Lock()
	defer q.rxMu.Unlock()
	defer q.txMu.Unlock()
	q.disconnect()
	return nil
}
