package forwarder

import (
	"sync/atomic"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
)

// decide chooses a backend for each packet on the list of misses, and inserts a word where the flow needs one.
//
// A flow needs no word as long as the lookup table, asked afresh for each packet, gives the same answer. So a SYN inserts
// only if its choice is not what the flow's next packet would be given on a node without its word; that next packet
// inserts. A SYN flood therefore does not fill the table of a hash-scheduled service.
func (w *Worker) decide(snap *Snapshot, now int64, tick uint16) {
	for _, i := range w.misses[:w.missed] {
		m := &w.metas[i]
		if snap.isVIP(packet.Source(w.frame(&w.descs[i]), m)) { // checked here, since such a packet never gets a word
			m.Reason = packet.SourceVIP
			continue
		}
		s := &snap.services[w.services[i]]
		existing, ok := s.existing(w.engine.keys.Mix, m.Hash, w.engine.admit, now)
		slot, insert := existing, true
		switch {
		case m.Flags&packet.SYN != 0:
			fresh, admitted := s.pool.ChooseNew(w.engine.keys.Mix, m.Hash, w.engine.admit)
			insert = !ok || fresh != existing
			slot, ok = fresh, admitted
		case m.Flags&(packet.FIN|packet.RST|packet.ICMPError|placed) != 0:
			insert = false // the flow ends here, or this is not one of its packets
		}
		if !ok {
			m.Reason = packet.NoBackend
			if s.reject {
				w.refuse(int(i), packet.NoBackend, 0, now)
			}
			continue
		}
		w.slots[i] = slot
		if m.Flags&packet.ICMPError != 0 {
			if other, ok := s.pool.ChooseExisting(w.engine.keys.Mix, m.Hash, w.engine.admit); ok && other != slot {
				w.copyTo(i, other)
			}
			continue
		}
		if old := w.words[i]; old != 0 {
			if slot != old.Slot() && w.table.Replace(w.indices[i], old, slot, tick, conntrack.Probation) {
				w.newFlow(slot)
			}
		} else if insert {
			w.insert(m.Hash, slot, tick, snap.lives)
		}
	}
	w.missed = 0
}

// existing is the choice for a packet that has no word and opens no flow: its flow may have been opened on another node, or
// before the last change of the service's backends.
func (s *service) existing(key, hash uint64, admit []atomic.Uint32, now int64) (slot uint32, ok bool) {
	if s.previous != nil && now < s.previousUntil {
		if slot, ok = s.previous.ChooseExisting(key, hash, admit); ok {
			return slot, true
		}
	}
	return s.pool.ChooseExisting(key, hash, admit)
}

// copyTo adds a copy of packet i to the batch, for another slot. It is for the ICMP error of a flow that may be at either of
// two backends. Without a free frame, or room in the batch, there is no copy: the sender of an error does not count on it.
func (w *Worker) copyTo(i uint8, slot uint32) {
	if w.copies == maxCopies {
		return
	}
	addr, ok := w.from.Spare()
	if !ok {
		return
	}
	k := w.received + w.copies
	w.copies++
	d := &w.descs[i]
	copy(w.io.Memory[addr:], w.io.Memory[d.Addr:d.Addr+uint64(d.Len)])
	w.descs[k] = xsk.Desc{Addr: addr, Len: d.Len}
	w.metas[k], w.services[k], w.slots[k] = w.metas[i], w.services[i], slot
}

func (w *Worker) insert(hash uint64, slot uint32, tick uint16, lives []conntrack.Life) {
	switch w.table.Insert(hash, slot, tick, conntrack.Probation, lives) {
	case conntrack.Refused: // its packets go by hash
		w.count.refused++
		return
	case conntrack.Present: // another worker was quicker, or it is a false hit
		return
	case conntrack.EvictedClosing, conntrack.EvictedProbation, conntrack.EvictedIdle:
		w.count.evictions++
	}
	w.newFlow(slot)
}

func (w *Worker) newFlow(slot uint32) {
	w.count.newFlows++
	w.count.slot(slot).newFlows++
}
