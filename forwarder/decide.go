package forwarder

import (
	"sync/atomic"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
)

// decide chooses a backend for each packet on the list of misses, and inserts a word where the flow needs one.
//
// A flow needs no word as long as the lookup table, asked afresh for each packet, gives the same answer. So a SYN inserts
// only if its choice is not what the flow's next packet would be given on a node without its word; that next packet
// inserts. A SYN flood therefore does not fill the table of a hash-scheduled service.
func (w *Worker) decide(snap *Snapshot, now int64, tick uint16) {
	for _, i := range w.misses[:w.missed] {
		m := &w.metas[i]
		s := &snap.services[w.services[i]]
		existing, ok := s.existing(w.engine.keys.Mix, m.Hash, w.engine.admit, now)
		slot, insert := existing, true
		switch {
		case m.Flags&packet.SYN != 0:
			fresh, admitted := s.pool.ChooseNew(w.engine.keys.Mix, m.Hash, w.engine.admit)
			insert = !ok || fresh != existing
			slot, ok = fresh, admitted
		case m.Flags&(packet.FIN|packet.RST) != 0:
			insert = false // the flow ends here
		}
		if !ok {
			m.Reason = packet.NoBackend
			continue
		}
		w.slots[i] = slot
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
