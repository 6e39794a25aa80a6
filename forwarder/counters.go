package forwarder

import (
	"sync/atomic"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
)

// publishNanos is how often a busy worker publishes its counters; before it sleeps it does so in any case.
const publishNanos = 1e6

// slotCounts is what one worker, or all of them, counted for one slot.
type slotCounts struct{ packets, bytes, newFlows uint64 }

func (c *slotCounts) add(d slotCounts) {
	c.packets += d.packets
	c.bytes += d.bytes
	c.newFlows += d.newFlows
}

func (c *slotCounts) sub(d slotCounts) {
	c.packets -= d.packets
	c.bytes -= d.bytes
	c.newFlows -= d.newFlows
}

// signalCounts tells how new connections fare at a slot, of services on TCP but for unreachable; see handshakes.
type signalCounts struct {
	syns, completed, retransmitted uint64 // SYNs but those sent again, handshakes that were completed, SYNs sent again
	resets                         uint64 // of clients, soon after the handshake
	unreachable                    uint64 // ICMP errors that say so
}

func (c *signalCounts) add(d signalCounts) {
	c.syns += d.syns
	c.completed += d.completed
	c.retransmitted += d.retransmitted
	c.resets += d.resets
	c.unreachable += d.unreachable
}

func (c *signalCounts) sub(d signalCounts) {
	c.syns -= d.syns
	c.completed -= d.completed
	c.retransmitted -= d.retransmitted
	c.resets -= d.resets
	c.unreachable -= d.unreachable
}

// serviceCounts is what one worker, or all of them, counted for one service.
type serviceCounts struct {
	dropped [packet.NumReasons]uint64 // its packets that were not forwarded
	// Of a service that may be defended: SYNs of flows without a usable word, those that were challenged, proofs that came
	// back, and flows whose handshake was completed.
	syns, challenged, proofs, completed uint64
	// Packets without a usable word, or over a limit, by class (steer.ShedSYN …).
	unknown [steer.ShedPortless]uint64
}

// totals are a worker's own books.
type totals struct {
	received, forwarded, answered, generated uint64
	replies                                  uint64 // of forwarded
	held                                     uint64 // now
	continued                                uint64 // frames sent of packets that take several, but their first
	newFlows                                 uint64
	portless                                 uint64 // packets without ports, or with those of the packet that an ICMP error is about
	inserts                                  [conntrack.NumOutcomes]uint64
	observed                                 [numOver]uint64 // packets over a limit that only observes
	reasons                                  [packet.NumReasons]uint64
}

// counters are one worker's. The worker alone calls its methods but those named read…, and counts in plain words; publish
// copies what changed to the words that others read. A counter that others read directly would cost an atomic add a packet.
type counters struct {
	totals
	slots    []slotCell
	services []serviceCell
	signals  []signalCell // by slot, apart from slots: those stay in the cache for all packets
	// dirtySlots, dirtyServices and dirtySignals list what changed since the last publish.
	dirtySlots, dirtyServices, dirtySignals []uint32
	published                               int64 // when, CLOCK_MONOTONIC ns

	shared sharedCounters
}

type slotCell struct {
	slotCounts
	dirty bool
}

type serviceCell struct {
	serviceCounts
	dirty bool
}

type signalCell struct {
	signalCounts
	// sources has a bit of 64 for each source, by its hash, whose SYNs were counted since the last publish.
	sources uint64
	dirty   bool
}

// sharedCounters is what other goroutines read. Large, but untouched pages take no memory.
type sharedCounters struct {
	received, forwarded, answered, generated atomic.Uint64
	replies, held, continued                 atomic.Uint64
	newFlows, portless                       atomic.Uint64
	inserts                                  [conntrack.NumOutcomes]atomic.Uint64
	reasons                                  [packet.NumReasons]atomic.Uint64
	slots                                    []sharedSlot
	services                                 []sharedService
	observed                                 [numOver]atomic.Uint64
	signals                                  []sharedSignal
	signalled                                atomic.Uint64 // how often one of signals has changed
}

type sharedService struct {
	dropped                             [packet.NumReasons]atomic.Uint64
	syns, challenged, proofs, completed atomic.Uint64
	unknown                             [steer.ShedPortless]atomic.Uint64
}

type sharedSlot struct{ packets, bytes, newFlows atomic.Uint64 }

// sharedSignal is a signalCell as others read it. Of sources the worker adds bits, and a SignalReader takes all of them.
type sharedSignal struct{ syns, completed, retransmitted, resets, unreachable, sources atomic.Uint64 }

func newCounters() *counters {
	return &counters{
		slots:         make([]slotCell, conntrack.MaxSlots),
		services:      make([]serviceCell, MaxServices),
		signals:       make([]signalCell, conntrack.MaxSlots),
		dirtySlots:    make([]uint32, 0, conntrack.MaxSlots),
		dirtyServices: make([]uint32, 0, MaxServices),
		dirtySignals:  make([]uint32, 0, conntrack.MaxSlots),
		shared: sharedCounters{
			slots:    make([]sharedSlot, conntrack.MaxSlots),
			services: make([]sharedService, MaxServices),
			signals:  make([]sharedSignal, conntrack.MaxSlots),
		},
	}
}

// slot returns the cell of a slot, to be counted in.
func (c *counters) slot(s uint32) *slotCell {
	cell := &c.slots[s]
	if !cell.dirty {
		c.touchSlot(s, cell)
	}
	return cell
}

func (c *counters) touchSlot(s uint32, cell *slotCell) {
	cell.dirty = true
	c.dirtySlots = append(c.dirtySlots, s)
}

// service returns the cell of a service, to be counted in.
func (c *counters) service(number uint32) *serviceCell {
	cell := &c.services[number]
	if !cell.dirty {
		cell.dirty = true
		c.dirtyServices = append(c.dirtyServices, number)
	}
	return cell
}

// signal returns the cell of a slot's signals, to be counted in.
func (c *counters) signal(slot uint32) *signalCell {
	cell := &c.signals[slot]
	if !cell.dirty {
		cell.dirty = true
		c.dirtySignals = append(c.dirtySignals, slot)
	}
	return cell
}

// show stores a counter that others read, if it has changed: the store takes the time of some thirty reads.
func show(to *atomic.Uint64, n uint64) {
	if to.Load() != n {
		to.Store(n)
	}
}

// publish makes what was counted visible.
func (c *counters) publish(now int64) {
	s := &c.shared
	show(&s.received, c.received)
	show(&s.forwarded, c.forwarded)
	show(&s.answered, c.answered)
	show(&s.generated, c.generated)
	show(&s.replies, c.replies)
	show(&s.held, c.held)
	show(&s.continued, c.continued)
	show(&s.newFlows, c.newFlows)
	show(&s.portless, c.portless)
	for i := range c.inserts {
		show(&s.inserts[i], c.inserts[i])
	}
	for i := range c.observed {
		show(&s.observed[i], c.observed[i])
	}
	for i := range c.reasons {
		show(&s.reasons[i], c.reasons[i])
	}
	for _, i := range c.dirtySlots {
		cell := &c.slots[i]
		show(&s.slots[i].packets, cell.packets)
		show(&s.slots[i].bytes, cell.bytes)
		show(&s.slots[i].newFlows, cell.newFlows)
		cell.dirty = false
	}
	c.dirtySlots = c.dirtySlots[:0]
	for _, i := range c.dirtyServices {
		cell := &c.services[i]
		shared := &s.services[i]
		for r := range cell.dropped {
			show(&shared.dropped[r], cell.dropped[r])
		}
		show(&shared.syns, cell.syns)
		show(&shared.challenged, cell.challenged)
		show(&shared.proofs, cell.proofs)
		show(&shared.completed, cell.completed)
		for class := range cell.unknown {
			show(&shared.unknown[class], cell.unknown[class])
		}
		cell.dirty = false
	}
	c.dirtyServices = c.dirtyServices[:0]
	if len(c.dirtySignals) > 0 {
		c.publishSignals()
	}
	c.published = now
}

// publishSignals is the part of publish for signals, of which there are none in most batches.
func (c *counters) publishSignals() {
	for _, i := range c.dirtySignals {
		cell, shared := &c.signals[i], &c.shared.signals[i]
		shared.sources.Or(cell.sources) // before syns: who sees these count finds their sources
		show(&shared.syns, cell.syns)
		show(&shared.completed, cell.completed)
		show(&shared.retransmitted, cell.retransmitted)
		show(&shared.resets, cell.resets)
		show(&shared.unreachable, cell.unreachable)
		cell.sources, cell.dirty = 0, false
	}
	c.shared.signalled.Add(uint64(len(c.dirtySignals)))
	c.dirtySignals = c.dirtySignals[:0]
}

func (c *counters) readTotals() totals {
	s := &c.shared
	t := totals{
		received: s.received.Load(), forwarded: s.forwarded.Load(), answered: s.answered.Load(), generated: s.generated.Load(),
		replies: s.replies.Load(), held: s.held.Load(), continued: s.continued.Load(),
		newFlows: s.newFlows.Load(),
	}
	for i := range s.inserts {
		t.inserts[i] = s.inserts[i].Load()
	}
	for i := range s.observed {
		t.observed[i] = s.observed[i].Load()
	}
	for i := range s.reasons {
		t.reasons[i] = s.reasons[i].Load()
	}
	return t
}

func (c *counters) readSlot(slot uint32) slotCounts {
	s := &c.shared.slots[slot]
	return slotCounts{s.packets.Load(), s.bytes.Load(), s.newFlows.Load()}
}

func (c *counters) readSignal(slot uint32) signalCounts {
	s := &c.shared.signals[slot]
	return signalCounts{s.syns.Load(), s.completed.Load(), s.retransmitted.Load(), s.resets.Load(), s.unreachable.Load()}
}

// sumSignals adds up what all workers counted for a slot since the process began, and the ICMP errors that the kernel got.
// e.mu is held.
func (e *Engine) sumSignals(slot uint32) (sum signalCounts) {
	for _, w := range e.workers {
		sum.add(w.count.readSignal(slot))
	}
	sum.unreachable += e.unreachable.counts[slot]
	return sum
}

// sumSlot adds up what all workers and the fast path counted for a slot since the process began, whatever it stood for. e.mu is held.
func (e *Engine) sumSlot(slot uint32) (sum slotCounts) {
	for _, w := range e.workers {
		sum.add(w.count.readSlot(slot))
	}
	if e.fast != nil {
		packets, bytes := e.fast.SlotCount(int(slot))
		sum.add(slotCounts{packets: packets, bytes: bytes})
	}
	return sum
}

// sumService adds up what all workers counted for a service number. e.mu is held.
func (e *Engine) sumService(number uint32) (sum serviceCounts) {
	for _, w := range e.workers {
		s := &w.count.shared.services[number]
		for r := range sum.dropped {
			sum.dropped[r] += s.dropped[r].Load()
		}
		sum.syns += s.syns.Load()
		sum.challenged += s.challenged.Load()
		sum.proofs += s.proofs.Load()
		sum.completed += s.completed.Load()
	}
	return sum
}

func (c *serviceCounts) sub(d *serviceCounts) {
	for r := range c.dropped {
		c.dropped[r] -= d.dropped[r]
	}
	c.syns -= d.syns
	c.challenged -= d.challenged
	c.proofs -= d.proofs
	c.completed -= d.completed
}
