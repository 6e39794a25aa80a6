package forwarder

import (
	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/maglev"
)

// decide chooses a backend for each packet on the list of misses, and inserts a word where the flow needs one.
func (w *Worker) decide(snap *Snapshot, now int64, tick uint16) {
	w.handshakes.prefetch(w.hashes[:], w.misses[:w.missed])
	key, live := w.engine.keys.Mix, &w.engine.live
	number, s, cell := uint32(noService), (*service)(nil), (*serviceCell)(nil) // of the packet before
	for _, k := range w.misses[:w.missed] {
		i := k % (batchSize + maxCopies)
		m, old := &w.metas[i], w.words[i]
		if w.services[i] != number {
			number = w.services[i]
			s, cell = &snap.services[number], w.count.service(number)
		}
		cell.unknown[classOf(m)]++
		source := packet.Source(w.io.Memory[w.descs[i].Addr:], m)
		if snap.isVIP(source) { // checked here, since such a packet never gets a word
			m.Reason = packet.SourceVIP
			continue
		}
		if old != 0 && m.Flags&packet.SYN == 0 && s.ends(maglev.Admit(live.Admit[old.Slot()].Load())) {
			w.end(i, old, now)
			continue
		}
		stands := regular
		if s.defence != DefenceOff && (old == 0 || m.Flags&packet.SYN != 0) {
			if stands = w.defend(i, s, source, now); stands == ended {
				continue
			}
		}
		hash, flags, state := m.Hash, m.Flags, conntrack.Probation
		if s.source != (packet.Addr{}) {
			hash = w.sourceHash(i, s, source)
		}
		if stands == proved { // its SYN was answered here
			flags, state = packet.SYN, conntrack.Established
		}
		slot, ok := s.Settled(key, hash, live, now)
		insert := flags&(packet.SYN|packet.FIN|packet.RST|packet.ICMPError|placed) == 0
		if !ok {
			if slot, ok, insert = w.choose(s, flags, hash, now); !ok {
				m.Reason = packet.NoBackend
				if s.reject {
					w.refuse(int(i), packet.NoBackend, 0, now)
				}
				continue
			}
		}
		w.slots[i] = slot
		if flags&packet.ICMPError != 0 {
			if other, ok := s.Pool.Existing(key, hash, live); ok && other != slot {
				w.copyTo(i, other)
			}
			continue
		}
		if old != 0 {
			if slot != old.Slot() && w.table.Replace(w.indices[i], old, slot, tick, conntrack.Probation) {
				w.newFlow(slot, source)
			}
		} else if (insert || stands == proved) && stands != unproved && !s.noTable {
			if snap.limits.flows {
				if m.Reason = w.within(snap, int(i), limitFlows, now); m.Reason != packet.None {
					continue
				}
			}
			w.insert(m.Hash, slot, tick, state, snap.lives, source)
			if s.defence != DefenceOff && m.Flags&packet.SYN == 0 {
				cell.completed++
			}
		}
		switch {
		case !s.tcp || m.Flags&packet.RST != 0:
		case m.Flags&packet.SYN != 0:
			w.sendSYN(snap, m.Hash, slot, source, now, old != 0 || insert)
		default:
			w.complete(m.Hash, now)
		}
	}
	w.missed = 0
}

// choose gives a packet without a usable word its slot, and says whether its flow needs a word.
//
// A flow needs no word as long as the lookup table, asked afresh for each packet, gives the same answer. So a SYN inserts
// only if its choice is not what the flow's next packet would be given on a node without its word; that next packet
// inserts. A SYN flood therefore does not fill the table of a hash-scheduled service. With a scheduler that goes by what
// this node has seen, the same SYN sent again would be given another backend, so the first one inserts.
func (w *Worker) choose(s *service, flags uint16, hash uint64, now int64) (slot uint32, ok, insert bool) {
	key, live := w.engine.keys.Mix, &w.engine.live
	switch {
	case flags&packet.SYN != 0:
		slot, ok = s.New(key, hash, live, w.id, now)
		if !s.agrees {
			return slot, ok, true
		}
		existing, found := s.Existing(key, hash, live, now)
		return slot, ok, !found || slot != existing
	case !s.tcp && flags&(packet.ICMPError|placed) == 0: // any of its packets may be the flow's first
		slot, ok = s.Datagram(key, hash, live, w.id, now)
		return slot, ok, true
	}
	slot, ok = s.Existing(key, hash, live, now)
	// With these the flow ends, or they are not its packets.
	return slot, ok, flags&(packet.FIN|packet.RST|packet.ICMPError|placed) == 0
}

// sourceHash is what chooses the backend of packet i by its client's address: a flow hash without ports. The services of
// one VIP and protocol have it in common, and so have all nodes of the group.
func (w *Worker) sourceHash(i uint8, s *service, source packet.Addr) uint64 {
	m := &w.metas[i]
	if m.Flags&packet.ICMPError != 0 { // from somebody on the way; the client is who the quoted packet was for
		source = packet.QuotedDst(w.frame(&w.descs[i]), m)
	}
	source.Hi &= s.source.Hi
	source.Lo &= s.source.Lo
	return packet.FlowHash(&w.engine.keys.Flow, source, m.Dst, 0, 0, m.Proto)
}

// end answers packet i with a reset, since the backend of its flow is gone for good, and frees the flow's word. If the
// worker has sent as many resets as it does in a second, the word stays for the flow's next packet.
func (w *Worker) end(i uint8, old conntrack.Word, now int64) {
	w.refuse(int(i), packet.BackendDown, 0, now)
	if w.metas[i].Flags&(answer|packet.RST) != 0 {
		w.table.Remove(w.indices[i], old)
	}
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

// insert writes a word for a flow. Without room, its packets go by hash.
func (w *Worker) insert(hash uint64, slot uint32, tick uint16, s conntrack.State, lives []conntrack.Life, source packet.Addr) {
	o := w.table.Insert(hash, slot, tick, s, lives)
	w.count.inserts[o]++
	if o != conntrack.Refused && o != conntrack.Present { // present: another worker was quicker, or it is a false hit
		w.newFlow(slot, source)
	}
}

func (w *Worker) newFlow(slot uint32, source packet.Addr) {
	w.count.newFlows++
	w.count.slot(slot).newFlows++
	w.tops[TopFlows].Add(guard.Source(source.Hi, source.Lo))
}
