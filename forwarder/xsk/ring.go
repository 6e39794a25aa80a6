//go:build linux

package xsk

import "sync/atomic"

// Desc describes one frame, or the part of a chunk where it lies: struct xdp_desc of linux/if_xdp.h.
type Desc struct {
	Addr    uint64 // offset of the first byte in the Umem's memory
	Len     uint32 // bytes
	Options uint32 // Continued, or zero
}

// ringWords are the words of a ring that both sides see. Indices count entries for ever and wrap at 2³²; the slot of
// index i is i modulo the ring's size, a power of two.
type ringWords struct {
	producer *uint32 // written by the producer, after the entries it covers
	consumer *uint32 // written by the consumer, after it has read the entries it covers
	flags    *uint32 // written by the kernel: XDP_RING_NEED_WAKEUP
}

// wantsWakeup reports whether the kernel sleeps until a system call tells it to look at this ring.
func (w *ringWords) wantsWakeup() bool {
	return atomic.LoadUint32(w.flags)&ringNeedWakeup != 0
}

// producer is the writing end of a ring, E being uint64 (addresses) or Desc. A batch is written as
// n := reserve(want); *slot(0…n-1) = …; submit(n).
type producer[E any] struct {
	ringWords
	slots []E
	next  uint32 // index of the next entry to write; equal to *producer between batches
	limit uint32 // consumer index last seen, plus the ring's size: entries below it are free to write
}

// newProducer continues where the shared words stand.
func newProducer[E any](w ringWords, slots []E) producer[E] {
	return producer[E]{
		ringWords: w, slots: slots,
		next:  atomic.LoadUint32(w.producer),
		limit: atomic.LoadUint32(w.consumer) + uint32(len(slots)),
	}
}

// reserve returns how many entries, at most want, can be written.
func (p *producer[E]) reserve(want uint32) uint32 {
	n := p.limit - p.next
	if n < want {
		// Acquire: the consumer's reads of a slot happened before it moved its index past it, so that they cannot see
		// what is written there from now on. Pairs with __xskq_cons_release in net/xdp/xsk_queue.h.
		p.limit = atomic.LoadUint32(p.consumer) + uint32(len(p.slots))
		n = p.limit - p.next
	}
	return min(n, want)
}

// slot is the i-th entry of the batch being written.
func (p *producer[E]) slot(i uint32) *E {
	return &p.slots[(p.next+i)&uint32(len(p.slots)-1)]
}

// submit hands the first n entries of the batch to the consumer.
func (p *producer[E]) submit(n uint32) {
	p.next += n
	// Release: the entries, and the frames they name, are written before the consumer can see the index. Pairs with
	// __xskq_cons_peek.
	atomic.StoreUint32(p.producer, p.next)
}

// pending returns how many submitted entries the consumer has not released yet.
func (p *producer[E]) pending() uint32 {
	if p.limit-p.next == uint32(len(p.slots)) {
		return 0 // all were released when the consumer's index was last read, and none was submitted since
	}
	p.limit = atomic.LoadUint32(p.consumer) + uint32(len(p.slots))
	return uint32(len(p.slots)) - (p.limit - p.next)
}

// consumer is the reading end of a ring. A batch is read as n := peek(want); … slot(0…n-1) …; release(n).
type consumer[E any] struct {
	ringWords
	slots []E
	next  uint32 // index of the next entry to read; equal to *consumer between batches
	limit uint32 // producer index last seen: entries below it can be read
}

// newConsumer continues where the shared words stand.
func newConsumer[E any](w ringWords, slots []E) consumer[E] {
	return consumer[E]{
		ringWords: w, slots: slots,
		next:  atomic.LoadUint32(w.consumer),
		limit: atomic.LoadUint32(w.producer),
	}
}

// peek returns how many entries, at most want, can be read.
func (c *consumer[E]) peek(want uint32) uint32 {
	n := c.limit - c.next
	if n < want {
		// Acquire: the entries below the index are read only after it. Pairs with xskq_prod_submit.
		c.limit = atomic.LoadUint32(c.producer)
		n = c.limit - c.next
	}
	return min(n, want)
}

// pending returns how many entries there are to read.
func (c *consumer[E]) pending() uint32 {
	c.limit = atomic.LoadUint32(c.producer)
	return c.limit - c.next
}

// slot is the i-th entry of the batch being read.
func (c *consumer[E]) slot(i uint32) *E {
	return &c.slots[(c.next+i)&uint32(len(c.slots)-1)]
}

// release hands the slots of the first n entries of the batch back to the producer.
func (c *consumer[E]) release(n uint32) {
	c.next += n
	// Release: the entries are read before the producer may write their slots again. Pairs with __xskq_prod_peek.
	atomic.StoreUint32(c.consumer, c.next)
}

// closedWords are those of a ring that nobody is at the other end of.
func closedWords() ringWords {
	return ringWords{new(uint32), new(uint32), new(uint32)}
}

// closedProducer is never able to take an entry.
func closedProducer[E any]() producer[E] { return newProducer[E](closedWords(), nil) }

// closedConsumer never has an entry.
func closedConsumer[E any]() consumer[E] { return newConsumer[E](closedWords(), nil) }
