package forwarder

import (
	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/maglev"
)

// decisions is what decide works with.
type decisions struct {
	// Of each packet on the list of misses, in its order: its hash, and its slot if that is settled.
	hashes [batchSize + maxCopies]uint64
	slots  [batchSize + maxCopies]uint32
	births births
}

// births are flows that are to get a word, on probation, and what came of it.
type births struct {
	n        int
	hashes   [batchSize + maxCopies]uint64
	slots    [batchSize + maxCopies]uint32
	sources  [batchSize + maxCopies]packet.Addr
	outcomes [batchSize + maxCopies]conntrack.Outcome
}

// decide chooses a backend for each packet on the list of misses, and inserts a word where the flow needs one. What most of them are is
// decided in its loop: packets of flows about which no word, defence or limit says anything, to a service that goes by the flow's hash,
// and to a backend that takes them. Their words are inserted afterwards, together: each swap is a barrier that what is read for the next
// packets would wait for. Nobody asks for these words before, as a scheduler that counts flows counts those of its own service.
func (w *Worker) decide(snap *Snapshot, now int64, tick uint16) {
	w.settle(snap, now)
	number, s, cell := uint32(noService), (*service)(nil), (*serviceCell)(nil) // of the packet before
	for k, i := range w.misses[:w.missed] {
		i %= batchSize + maxCopies // which it is anyway, and no index has to be checked
		m := &w.metas[i]
		if w.services[i] != number {
			number = w.services[i]
			s, cell = &snap.services[number], w.count.service(number)
		}
		cell.unknown[classOf(m)]++
		source := packet.Source(w.io.Memory[w.descs[i].Addr:], m)
		if snap.vips.mayHave(source) && snap.vips.has(source) { // checked here, since such a packet never gets a word
			m.Reason = packet.SourceVIP
			continue
		}
		slot, word := w.decisions.slots[k%(batchSize+maxCopies)], false
		if s.plain && slot != maglev.NoSlot && w.words[i] == 0 && m.Flags&(packet.ICMPError|placed) == 0 {
			w.slots[i] = slot
			if m.Flags&(packet.SYN|packet.FIN|packet.RST) == 0 { // for these see choose
				b := &w.decisions.births
				n := b.n % (batchSize + maxCopies)
				b.hashes[n], b.slots[n], b.sources[n] = m.Hash, slot, source
				b.n++
			}
		} else {
			if word = w.decideAlone(snap, s, cell, i, source, now, tick); m.Reason != packet.None || m.Flags&packet.ICMPError != 0 {
				continue
			}
			slot = w.slots[i]
		}
		switch {
		case !s.tcp || m.Flags&packet.RST != 0:
		case m.Flags&packet.SYN != 0:
			w.sendSYN(snap, m.Hash, slot, source, now, word)
		default:
			w.complete(m.Hash, now)
		}
	}
	w.insertAll(snap, tick)
	w.missed = 0
}

// settle finds out which packets' slots are settled by the hash alone, and brings what is looked at for handshakes into the cache. It is a
// pass of its own, since the lookup table is read at another place for each packet, and is mostly not in the nearest cache.
func (w *Worker) settle(snap *Snapshot, now int64) {
	d, misses := &w.decisions, w.misses[:w.missed]
	for k, i := range misses {
		d.hashes[k%(batchSize+maxCopies)] = w.hashes[i%(batchSize+maxCopies)]
	}
	w.handshakes.prefetch(d.hashes[:len(misses)])
	for from := 0; from < len(misses); { // those to one service after each other
		number, to := w.services[misses[from]], from+1
		for to < len(misses) && w.services[misses[to]%(batchSize+maxCopies)] == number {
			to++
		}
		if s := &snap.services[number]; s.plain {
			s.Settle(w.engine.keys.Mix, d.hashes[from:to], &w.engine.live, now, d.slots[from:to])
			w.handshakes.touch(d.hashes[from:to])
		}
		from = to
	}
}

// insertAll writes the words of births.
func (w *Worker) insertAll(snap *Snapshot, tick uint16) {
	b := &w.decisions.births
	n := b.n
	b.n = 0
	w.table.InsertBatch(b.hashes[:n], b.slots[:n], tick, conntrack.Probation, snap.lives, b.outcomes[:n])
	for k, o := range b.outcomes[:n] {
		w.inserted(o, b.slots[k], b.sources[k])
	}
}

// decideAlone is decide for a packet that takes more: a word that is to be replaced, a defence, a limit, a scheduler by load, a backend
// that does not take the flow, an ICMP error. The packet has its slot then, or a reason. word says that its flow had a word, or needs one.
func (w *Worker) decideAlone(
	snap *Snapshot, s *service, cell *serviceCell, i uint8, source packet.Addr, now int64, tick uint16,
) (word bool) {
	m, old := &w.metas[i], w.words[i]
	if old != 0 && m.Flags&packet.SYN == 0 && s.ends(maglev.Admit(w.engine.live.Admit[old.Slot()].Load())) {
		w.end(i, old, now)
		return false
	}
	stands := regular
	if s.defence != DefenceOff && (old == 0 || m.Flags&packet.SYN != 0) {
		if stands = w.defend(i, s, source, now); stands == ended {
			return false
		}
	}
	hash := m.Hash
	if s.source != (packet.Addr{}) {
		hash = w.sourceHash(i, s, source)
	}
	flags, state := m.Flags, conntrack.Probation
	if stands == proved { // its SYN was answered here
		flags, state = packet.SYN, conntrack.Established
	}
	slot, ok, insert := w.choose(s, flags, hash, now)
	if !ok {
		m.Reason = packet.NoBackend
		if s.reject {
			w.refuse(int(i), packet.NoBackend, 0, now)
		}
		return false
	}
	w.slots[i] = slot
	switch {
	case m.Flags&packet.ICMPError != 0:
		if other, ok := s.Pool.Existing(w.engine.keys.Mix, hash, &w.engine.live); ok && other != slot {
			w.copyTo(i, other)
		}
	case old != 0:
		if slot != old.Slot() && w.table.Replace(w.indices[i], old, slot, tick, conntrack.Probation) {
			w.newFlow(slot, source)
		}
	case (insert || stands == proved) && stands != unproved && !s.noTable:
		if snap.limits.flows {
			if m.Reason = w.within(snap, int(i), limitFlows, now); m.Reason != packet.None {
				return false
			}
		}
		w.inserted(w.table.Insert(m.Hash, slot, tick, state, snap.lives), slot, source)
		if s.defence != DefenceOff && m.Flags&packet.SYN == 0 {
			cell.completed++
		}
	}
	return old != 0 || insert
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

// inserted counts the word that a flow got, if it did. Without room for one, its packets go by hash.
func (w *Worker) inserted(o conntrack.Outcome, slot uint32, source packet.Addr) {
	w.count.inserts[o]++
	if o != conntrack.Refused && o != conntrack.Present { // present: another worker was quicker, or it is a false hit
		w.newFlow(slot, source)
	}
}

func (w *Worker) newFlow(slot uint32, source packet.Addr) {
	w.count.newFlows++
	w.count.slot(slot).newFlows++
	w.tops.of[TopFlows].Add(guard.Source(source.Hi, source.Lo))
}
