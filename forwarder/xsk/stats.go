//go:build linux

package xsk

import (
	"fmt"
	"sync/atomic"
)

// Counts are what a socket counted since it was opened. They do not wrap in practice, as the ring indices do.
type Counts struct {
	Received  uint64 // frames taken out of the RX ring
	Discarded uint64 // packets of them that had more frames than the batch of Receive
	Sent      uint64 // frames put into the TX ring
	Completed uint64 // of these, the frames that the kernel has done with: sent or dropped
	Invalid   uint64 // packets given to Transmit that the kernel would have refused, as one empty or out of its chunk
	Wakes     uint64 // system calls made by Wake
	Refused   uint64 // wakeups answered EBUSY: in copy mode each is a packet that the device dropped (too long, peer down)
	Stalled   uint64 // wakeups that ended for want of room or memory (EAGAIN, ENOBUFS, ENOMEM); nothing is lost
	Down      uint64 // wakeups that found the interface down; nothing is lost
}

// published is a copy of Counts for other goroutines.
type published struct {
	received, discarded, sent, completed, invalid, wakes, refused, stalled, down atomic.Uint64
}

// publish shows the counts to other goroutines. It is paid once a batch, and only for what changed.
func (s *Socket) publish() {
	c, p := &s.counts, &s.published
	store(&p.received, c.Received)
	store(&p.discarded, c.Discarded)
	store(&p.sent, c.Sent)
	store(&p.completed, c.Completed)
	store(&p.invalid, c.Invalid)
	store(&p.wakes, c.Wakes)
	store(&p.refused, c.Refused)
	store(&p.stalled, c.Stalled)
	store(&p.down, c.Down)
	s.changed = false
}

// store avoids the full barrier of an atomic store where nothing changed.
func store(p *atomic.Uint64, v uint64) {
	if p.Load() != v {
		p.Store(v)
	}
}

// Counts returns the counts as of the last Receive or Close. Any goroutine may call it.
func (s *Socket) Counts() Counts {
	p := &s.published
	return Counts{
		Received: p.received.Load(), Discarded: p.discarded.Load(),
		Sent: p.sent.Load(), Completed: p.completed.Load(), Invalid: p.invalid.Load(),
		Wakes: p.wakes.Load(), Refused: p.refused.Load(), Stalled: p.stalled.Load(), Down: p.down.Load(),
	}
}

// Statistics are the kernel's counters of a socket since it was opened: struct xdp_statistics of linux/if_xdp.h.
type Statistics struct {
	RXDropped   uint64 // packets dropped in copy mode: longer than MaxFrame without MultiBuffer, or the fill ring was empty
	RXInvalid   uint64 // bad addresses in the fill ring
	TXInvalid   uint64 // bad descriptors in the TX ring
	RXRingFull  uint64 // packets dropped because the RX ring was full
	FillEmpty   uint64 // times that the fill ring was found empty
	TXRingEmpty uint64 // times that the TX ring was found empty, which is nothing bad
}

// Stats asks the kernel. After Close it returns what the kernel said last. Any goroutine may call it.
func (s *Socket) Stats() (Statistics, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return s.last, nil
	}
	st, err := s.kernel.statistics()
	if err != nil {
		return Statistics{}, fmt.Errorf("statistics of %s: getsockopt XDP_STATISTICS: %w", s, err)
	}
	return st, nil
}
