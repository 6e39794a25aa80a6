package forwarder

import (
	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/maglev"
)

// Poll treats one batch from queue q, through all stages in order, and returns how many frames there were. Every one of
// them has been sent or given back when it returns, and counted.
func (w *Worker) Poll(q int) int {
	port := w.io.Queues[q].Port
	n := port.Receive(w.descs[:batchSize])
	if n == 0 {
		return 0
	}
	w.from, w.fromQueue, w.received = port, int32(q), n
	snap := w.engine.snapshot.Load()
	now := w.engine.clock()
	tick := conntrack.Tick(now)

	w.parse(snap, n, now)
	w.table.Prefetch(w.hashes[:n])
	w.table.LookupBatch(w.hashes[:n], w.indices[:n], w.words[:n])
	w.lookup(snap, n, tick)
	w.decide(snap, now, tick)
	w.rewrite(snap, n+w.copies)
	w.transmit(n)
	return n
}

// parse fills metas, hashes and services of the batch. A packet to the same place as the one before needs no search.
func (w *Worker) parse(snap *Snapshot, n int, now int64) {
	var dst packet.Addr
	var port uint16
	var proto uint8
	service, reason := uint32(0), packet.NotVIP // no packet is for the zero address
	for i := range w.descs[:n] {
		d := &w.descs[i]
		m := &w.metas[i]
		packet.Parse(w.io.Memory[d.Addr:d.Addr+uint64(d.Len)], &w.engine.keys.Flow, m)
		w.hashes[i] = m.Hash
		if m.Reason != packet.None {
			continue
		}
		if m.Flags&packet.Echo != 0 {
			m.Reason = w.admitEcho(snap, m, now)
			continue
		}
		if m.DstPort != port || m.Dst != dst || m.Proto != proto {
			dst, port, proto = m.Dst, m.DstPort, m.Proto
			service, reason = snap.vips.find(dst, proto, port)
		}
		w.services[i], m.Reason = service, reason
	}
}

// lookup turns the words that were found into slots, and puts the packets whose flow has none on the list of misses.
func (w *Worker) lookup(snap *Snapshot, n int, tick uint16) {
	missed := 0
	for i := range w.metas[:n] {
		m := &w.metas[i]
		if m.Reason != packet.None || m.Flags&packet.Echo != 0 {
			continue
		}
		word := w.words[i]
		slot := word.Slot()
		if word == 0 || slot >= uint32(len(snap.targets)) || snap.targets[slot].service != w.services[i] || w.table.Expired(word, tick, snap.lives) {
			// No word; or that of another service, a false hit and not ours to change; or one that is past its time.
			w.words[i] = 0
			w.misses[missed] = uint8(i)
			missed++
			continue
		}
		w.slots[i] = slot
		state := maglev.Admit(w.engine.admit[slot].Load()).State()
		switch {
		case m.Flags&packet.SYN != 0:
			if state == maglev.Up {
				continue // retransmitted, a client's port used again, or forged: whichever, it changes nothing here
			}
		case state != maglev.Down || m.Proto == protoTCP: // a TCP flow stays with a backend that is down: nobody else can continue it
			if m.Flags&packet.ICMPError == 0 { // an error is no sign of life, and anybody can forge one
				w.table.Refresh(w.indices[i], word, tick, m.Flags&(packet.FIN|packet.RST) != 0)
			}
			continue
		}
		w.misses[missed] = uint8(i) // with a word, to be replaced
		missed++
	}
	w.missed = missed
}

// rewrite puts each packet's new header in front of it and notes the queue that it leaves by.
func (w *Worker) rewrite(snap *Snapshot, n int) {
	for i := range w.metas[:n] {
		m := &w.metas[i]
		if m.Reason != packet.None {
			continue
		}
		if m.Flags&packet.Echo != 0 {
			w.descs[i].Len = uint32(packet.EchoReply(w.io.Memory[w.descs[i].Addr:], m))
			w.queues[i] = w.fromQueue
			w.leaving[w.fromQueue]++
			continue
		}
		t := &snap.targets[w.slots[i]]
		if t.problem != packet.None {
			m.Reason = t.problem
			continue
		}
		if m.End-m.L3 > t.maxLen {
			m.Reason = packet.TooBig
			continue
		}
		q := w.egress[t.egress]
		if q < 0 {
			m.Reason = packet.EgressDown
			continue
		}
		start, length := t.encap.Apply(w.io.Memory, int(w.descs[i].Addr), m)
		w.descs[i] = xsk.Desc{Addr: uint64(start), Len: uint32(length)}
		w.queues[i] = q
		w.leaving[q]++
	}
}

// transmit hands the rewritten frames to their queues and the others back to the UMEM, and counts all of them.
func (w *Worker) transmit(n int) {
	c := w.count
	w.handing = true
	for q := range w.leaving {
		if w.leaving[q] > 0 {
			w.leaving[q] = 0
			w.send(n+w.copies, int32(q))
		}
	}
	dropped := 0
	for i := range w.metas[:n+w.copies] {
		m := &w.metas[i]
		if m.Reason == packet.None {
			continue
		}
		w.dropped[dropped] = w.descs[i]
		dropped++
		if i >= n {
			continue // a copy: the packet itself is counted
		}
		c.reasons[m.Reason]++
		if m.Reason >= packet.NoBackend && m.Flags&packet.Echo == 0 { // it had a service
			c.drop(w.services[i], m.Reason)
		}
	}
	if dropped > 0 {
		w.from.Recycle(w.dropped[:dropped])
	}
	// The fill ring was refilled by Receive, and the driver may be waiting for that. If the interface is gone, netlink tells
	// the node, which takes the queue away.
	_ = w.from.Wake()
	c.received += uint64(n)
	w.received, w.copies, w.handing = 0, 0, false
}

// send hands the frames that leave by queue q to it, and counts those that were taken; the others get a reason.
func (w *Worker) send(n int, q int32) {
	k := 0
	for i := range w.metas[:n] {
		if w.queues[i] == q && w.metas[i].Reason == packet.None {
			w.outDescs[k], w.outIndices[k] = w.descs[i], uint8(i)
			k++
		}
	}
	port := w.io.Queues[q].Port
	sent := port.Transmit(w.outDescs[:k])
	gone := port.Wake()
	if sent < k && gone == nil { // the ring was full; it may have room now
		sent += port.Transmit(w.outDescs[sent:k])
		gone = port.Wake()
	}
	c := w.count
	for _, i := range w.outIndices[:sent] {
		if int(i) >= w.received {
			c.generated++
			continue
		}
		if w.metas[i].Flags&packet.Echo != 0 {
			c.answered++
			continue
		}
		c.forwarded++
		cell := c.slot(w.slots[i])
		cell.packets++
		cell.bytes += uint64(w.metas[i].End - w.metas[i].L3)
	}
	full := packet.TxFull
	if gone != nil {
		full = packet.EgressDown
	}
	for _, i := range w.outIndices[sent:k] {
		w.metas[i].Reason = full
	}
}
