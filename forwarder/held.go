package forwarder

import (
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
)

const (
	// maxHeld is how many fragments a worker keeps that came before the first one of their datagram.
	maxHeld = 64
	// heldNanos is how long it keeps them.
	heldNanos = int64(50 * time.Millisecond)
	// heldSleep is how long it sleeps meanwhile: the first fragment may arrive at another worker, which does not wake it.
	heldSleep = 2 * time.Millisecond
)

// held is the Reason of a packet that the worker keeps for later; it is none of the list, and never counted.
const held = packet.NumReasons

// heldFragment is a fragment that waits for the first one of its datagram, which has the ports.
type heldFragment struct {
	desc  xsk.Desc
	meta  packet.Meta
	key   uint64 // of the datagram
	until int64  // CLOCK_MONOTONIC ns
	queue int32  // where it came from
}

// fragment finds out the flow of packet i of the batch, a fragment. A further one whose flow is not known yet is held.
func (w *Worker) fragment(i int, now int64) {
	m, d := &w.metas[i], &w.descs[i]
	frame := w.frame(d)
	info := packet.ReadFragment(frame, &w.engine.keys.Flow, m)
	info.Key = max(info.Key, keyBusy+1) // the others have a meaning
	if m.Flags&packet.First != 0 {
		if _, ok := w.engine.fragments.add(&info, packFlow(m), now); !ok {
			m.Reason = packet.FragmentOverlap
		}
		return
	}
	flow, ok := w.engine.fragments.add(&info, 0, now)
	switch {
	case !ok:
		m.Reason = packet.FragmentOverlap
	case flow != 0:
		unpackFlow(flow, frame, &w.engine.keys.Flow, m)
		w.hashes[i] = m.Hash
	case len(w.waiting) == maxHeld || d.Options != 0: // too many wait, or it is in several frames
		w.orphan(w.engine.snapshot.Load(), i)
	default:
		w.waiting = append(w.waiting, heldFragment{desc: *d, meta: *m, key: info.Key, until: now + heldNanos, queue: w.fromQueue})
		m.Reason = held
		w.count.held++
	}
}

// orphan gives a fragment whose ports are not known to the one service that takes its protocol on the VIP, by the hash of
// its addresses, alike on every node. If there are several it cannot be told which, and the fragment has no way to go.
func (w *Worker) orphan(snap *Snapshot, i int) {
	m := &w.metas[i]
	service, ok := snap.vips.only(m.Dst, m.Proto)
	if !ok {
		m.Reason = packet.FragmentUnknown
		return
	}
	m.SetPorts(w.frame(&w.descs[i]), &w.engine.keys.Flow, 0, 0, m.Proto)
	w.hashes[i], w.services[i] = m.Hash, service
	m.Flags |= placed
}

// release sends the held fragments of one queue on whose flow is known by now or whose time is over, and returns how many
// it looked at that went.
func (w *Worker) release(queue int32) int {
	snap, now := w.engine.snapshot.Load(), w.engine.clock()
	n, kept := 0, w.waiting[:0]
	for _, h := range w.waiting {
		flow, ok := w.engine.fragments.flow(h.key, now)
		if h.queue != queue || n == batchSize || ok && flow == 0 && now < h.until {
			kept = append(kept, h)
			continue
		}
		w.descs[n], w.metas[n] = h.desc, h.meta
		switch m := &w.metas[n]; {
		case !ok:
			m.Reason = packet.FragmentOverlap
		case flow != 0:
			unpackFlow(flow, w.frame(&h.desc), &w.engine.keys.Flow, m)
			w.hashes[n] = m.Hash
		default:
			w.orphan(snap, n)
		}
		n++
	}
	w.waiting = kept
	if n == 0 {
		return 0
	}
	w.from, w.fromQueue, w.received = w.io.Queues[queue].Port, queue, n
	w.count.held -= uint64(n)
	w.count.received -= uint64(n) // they were counted when they came, and are again now
	w.stages(snap, n, now, conntrack.Tick(now))
	return n
}

// releaseAll is release for all queues. It is called between batches while something is held.
func (w *Worker) releaseAll() (n int) {
	for q := range w.io.Queues {
		n += w.release(int32(q))
	}
	return n
}

// giveUp drops everything that is held: its queues are about to change, or the worker ends.
func (w *Worker) giveUp() {
	for _, h := range w.waiting {
		w.io.Queues[h.queue].Recycle([]xsk.Desc{h.desc})
		w.count.reasons[packet.FragmentUnknown]++
	}
	w.count.held -= uint64(len(w.waiting))
	w.waiting = w.waiting[:0]
}
