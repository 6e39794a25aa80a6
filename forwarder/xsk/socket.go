//go:build linux

package xsk

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is one queue of one interface: four rings, and a Umem that it may share with other sockets. See the package
// documentation for who may call its methods.
type Socket struct {
	umem       *Umem
	fill       producer[uint64]
	rx         consumer[Desc]
	tx         producer[Desc]
	completion consumer[uint64]
	counts     Counts // the worker's; others read published
	filled     uint64 // frames put into the fill ring
	changed    bool   // counts are not published yet
	number     uint8  // its name in Umem.place

	multiBuffer bool // Options.MultiBuffer
	discarding  bool // the RX ring begins with the rest of a packet that is discarded

	mode     Mode
	busyPoll bool
	kernel   kernel
	stop     error // what Wake returns from now on: ErrGone or os.ErrClosed, wrapped

	_         [64]byte // what other cores read sits on lines of its own
	published published
	_         [64]byte

	name           string
	ifindex, queue int
	fd             int
	refusal        error // why zero-copy was refused
	unbound        bool  // the kernel unbound it: it cannot lend its Umem to further sockets

	mu     sync.Mutex // between Stats and Close
	closed bool
	last   Statistics // of a closed socket
}

// kernel is what a socket needs from the other side of its rings beside the rings themselves. No method is called for
// each frame.
type kernel interface {
	send() error    // sendto(2): look at the TX ring
	receive() error // recvfrom(2): look at the fill ring
	statistics() (Statistics, error)
	close() error
	settle() time.Duration // how long frames stay in use after close
}

// Receive moves received frames into batch and returns their number, at most len(batch). Before that it takes the
// frames that the kernel has sent back to the free list, and fills the fill ring. It makes no system call.
//
// It returns whole packets: one whose frames do not all fit into the batch, or are not all there yet, has to wait for the
// next call. One of more frames than the batch has room for is discarded, and counted.
func (s *Socket) Receive(batch []Desc) int {
	s.reclaim()
	s.refill()
	n := s.rx.peek(uint32(len(batch)))
	if s.multiBuffer {
		n = s.whole(n, uint32(len(batch)))
	}
	if n > 0 {
		batch = batch[:n]
		slots := s.rx.slots
		first := copy(batch, slots[s.rx.next&uint32(len(slots)-1):])
		copy(batch[first:], slots)
		prefetch(s.umem.memory, batch) // the NIC wrote the headers: the worker would wait for each of them
		s.rx.release(n)
		s.counts.Received += uint64(n)
		s.changed = true
		if s.umem.held != nil {
			s.umem.take(batch)
		}
	}
	if s.changed {
		s.publish()
	}
	return int(n)
}

// Transmit hands the first n frames of batch, those that fit into the TX ring, to the kernel and returns n; the others
// stay the worker's. The kernel may not look at them before Wake. A packet is taken with all its frames or not at all. One
// that the kernel would refuse (a frame empty, reaching out of its chunk, or with options other than Continued; more than
// 17 frames; no end in the batch) counts as taken and its frames are recycled: the kernel would drop it without ever
// completing it.
func (s *Socket) Transmit(batch []Desc) int {
	n := s.tx.reserve(uint32(len(batch)))
	if int(n) < len(batch) {
		// The kernel does not send while it has no room for completions.
		s.reclaim()
		n = s.tx.reserve(uint32(len(batch)))
		if s.multiBuffer && int(n) < len(batch) {
			n = uint32(wholePackets(batch[:n]))
		}
	}
	if n == 0 {
		return 0
	}
	batch = batch[:n]
	if s.umem.held != nil {
		s.umem.giveBack("transmit", batch)
	}
	if s.multiBuffer {
		s.transmitPackets(batch)
		return int(n)
	}
	place, number := s.umem.place, s.number
	for i := range batch {
		d := &batch[i]
		if d.refused(0) {
			s.transmitValid(batch)
			return int(n)
		}
		place[d.Addr>>chunkShift] = number
	}
	s.put(batch)
	return int(n)
}

// put shows a batch, known to fit, to the kernel.
func (s *Socket) put(batch []Desc) {
	slots := s.tx.slots
	first := copy(slots[s.tx.next&uint32(len(slots)-1):], batch)
	copy(slots, batch[first:])
	s.submit(uint32(len(batch)))
}

// refused reports whether the kernel refuses the descriptor, which may have the given options:
// xp_aligned_validate_desc in net/xdp/xsk_queue.h.
func (d *Desc) refused(options uint32) bool {
	return d.Len-1 >= ChunkSize-uint32(d.Addr&(ChunkSize-1)) || d.Options&^options != 0
}

// transmitValid is Transmit for a batch, known to fit, that has refused packets.
func (s *Socket) transmitValid(batch []Desc) {
	taken := uint32(0)
	for len(batch) > 0 {
		n, valid := s.packet(batch)
		packet := batch[:n]
		batch = batch[n:]
		if !valid {
			s.counts.Invalid++
			s.umem.recycle(packet)
			continue
		}
		for _, d := range packet {
			s.umem.place[d.Addr>>chunkShift] = s.number
			*s.tx.slot(taken) = d
			taken++
		}
	}
	s.submit(taken)
}

// submit shows n descriptors to the kernel.
func (s *Socket) submit(n uint32) {
	s.tx.submit(n)
	s.counts.Sent += uint64(n)
	s.changed = true
}

// Backlog returns how many frames have arrived and wait in the RX ring for Receive, and for how many there is room in it.
func (s *Socket) Backlog() (waiting, size int) {
	return int(s.rx.pending()), len(s.rx.slots)
}

// Spare takes a frame off the free list and gives it to the worker: the address of the place in it where received frames
// begin. It reports false if none is free.
func (s *Socket) Spare() (addr uint64, ok bool) {
	u := s.umem
	last := len(u.free) - 1
	if last < 0 {
		return 0, false
	}
	// What comes back from the completion ring points anywhere into its chunk.
	addr = u.free[last]&^(ChunkSize-1) + uint64(kernelHeadroom+u.options.Headroom)
	u.free = u.free[:last]
	if u.held != nil {
		u.take([]Desc{{Addr: addr}})
	}
	return addr, true
}

// Recycle puts the worker's frames on the free list.
func (s *Socket) Recycle(batch []Desc) {
	if s.umem.held != nil {
		s.umem.giveBack("recycle", batch)
	}
	s.umem.recycle(batch)
}

// recycle puts frames on the free list, which has room for every frame there is.
func (u *Umem) recycle(batch []Desc) {
	top := len(u.free)
	u.free = u.free[:top+len(batch)]
	free := u.free[top:]
	for i := range batch {
		free[i] = batch[i].Addr &^ (ChunkSize - 1)
	}
}

// reclaim puts the frames that the kernel has sent on the free list. Their addresses are those that were transmitted,
// anywhere in the chunk; the kernel looks only at the chunk when it finds them in a fill ring (xp_check_aligned in
// net/xdp/xsk_buff_pool.c).
func (s *Socket) reclaim() {
	n := s.completion.peek(^uint32(0))
	if n == 0 {
		return
	}
	u, slots := s.umem, s.completion.slots
	top := len(u.free)
	u.free = u.free[:top+int(n)]
	// The ring from the first entry to its end, and what is left from its start.
	first := copy(u.free[top:], slots[s.completion.next&uint32(len(slots)-1):])
	copy(u.free[top+first:], slots)
	s.completion.release(n)
	s.counts.Completed += uint64(n)
	s.changed = true
}

// refill fills the fill ring as far as there are free frames.
func (s *Socket) refill() {
	u := s.umem
	n := s.fill.reserve(uint32(len(u.free)))
	if n == 0 {
		return
	}
	rest := len(u.free) - int(n)
	frames := u.free[rest:]
	u.free = u.free[:rest]
	place, number := u.place, s.number
	for _, a := range frames {
		place[a>>chunkShift] = number
	}
	slots := s.fill.slots
	first := copy(slots[s.fill.next&uint32(len(slots)-1):], frames)
	copy(slots, frames[first:])
	s.fill.submit(n)
	s.filled += uint64(n)
}

// Wake makes the kernel look at the rings if it asks for that: a system call for the TX ring if frames wait there, and
// one for the fill ring, which is rare. In copy mode sending is done by the call itself, and it is repeated while it
// makes progress. Wake is to be called once a batch, after Transmit, and is cheap when there is nothing to do.
//
// Congestion is counted and is not an error: what was not sent stays in the TX ring for the next call. An error that
// wraps ErrGone means that the interface has vanished and that the socket is of no more use than to be closed;
// os.ErrClosed that it was. Others are unexpected, and worth a log line; the socket can be used on. Only a socket that
// has something to send learns that its interface has vanished; netlink tells in any case.
func (s *Socket) Wake() error {
	if s.stop != nil {
		return s.stop
	}
	transmit := s.tx.pending() > 0 && (s.busyPoll || s.tx.wantsWakeup())
	if transmit {
		if err := s.send(); err != nil {
			return err
		}
	}
	// A busy poll serves both rings, whichever call it is in.
	if s.fill.wantsWakeup() || s.busyPoll && !transmit {
		return s.woken(s.kernel.receive())
	}
	return nil
}

// send is Wake for the TX ring. In zero-copy mode one call is enough: the driver sends by itself, later. In copy mode one
// call sends up to 32 frames or the budget set at open, or stops at the first frame that the device drops. Whether it
// got somewhere is told by the rings, not by the error.
func (s *Socket) send() error {
	for {
		consumed, completed := atomic.LoadUint32(s.tx.consumer), atomic.LoadUint32(s.completion.producer)
		if err := s.woken(s.kernel.send()); err != nil || s.mode == ZeroCopy || s.tx.pending() == 0 {
			return err
		}
		// Some kernels move the consumer index only when the TX ring is empty or a frame was really sent, and so the
		// completions count as progress too.
		if atomic.LoadUint32(s.tx.consumer) == consumed && atomic.LoadUint32(s.completion.producer) == completed {
			return nil
		}
	}
}

// woken counts a wakeup and its outcome, and says whether the socket is still of use.
func (s *Socket) woken(err error) error {
	s.counts.Wakes++
	s.changed = true
	switch err {
	case nil:
	case unix.EBUSY:
		s.counts.Refused++
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM, unix.EINTR:
		s.counts.Stalled++
	case unix.ENETDOWN:
		s.counts.Down++
	case unix.ENXIO, unix.ENODEV:
		s.unbound = true
		s.stop = fmt.Errorf("wake %s: %w", s, ErrGone)
		return s.stop
	default:
		return fmt.Errorf("wake %s: %w", s, err)
	}
	return nil
}

// FD returns the file descriptor, which goes into an XSKMAP; it is valid until Close, and -1 on a memory NIC. Any
// goroutine may call it.
func (s *Socket) FD() int { return s.fd }

// Mode returns ZeroCopy or Copy, as the kernel says. Any goroutine may call it.
func (s *Socket) Mode() Mode { return s.mode }

// ZeroCopyRefusal returns why a socket opened in mode Auto is in copy mode, or nil. Any goroutine may call it.
func (s *Socket) ZeroCopyRefusal() error { return s.refusal }

// Interface returns the name of the interface at the time of Open. Any goroutine may call it.
func (s *Socket) Interface() string { return s.name }

// Queue returns the number of the queue. Any goroutine may call it.
func (s *Socket) Queue() int { return s.queue }

// String returns the interface and the queue.
func (s *Socket) String() string { return fmt.Sprintf("%s queue %d", s.name, s.queue) }
