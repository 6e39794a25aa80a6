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
	if n == batchSize {
		w.press(port)
	}
	if w.io.MultiBuffer {
		n = w.gather(n)
	}
	w.from, w.fromQueue, w.received = port, int32(q), n
	snap := w.engine.snapshot.Load()
	now := w.engine.clock()
	w.parse(n, now)
	w.stages(snap, n, now, conntrack.Tick(now))
	return n
}

// stages takes a batch of parsed packets through the rest of the way.
func (w *Worker) stages(snap *Snapshot, n int, now int64, tick uint16) {
	w.classify(snap, n, now)
	w.sample(n)
	w.table.Prefetch(w.hashes[:n])
	if snap.limits.on {
		w.admit(snap, n, now)
	}
	w.table.LookupBatch(w.hashes[:n], w.indices[:n], w.words[:n])
	w.lookup(snap, n, now, tick)
	w.decide(snap, now, tick)
	w.rewrite(snap, n+w.copies, now)
	w.transmit(n)
}

// frame returns the bytes of a frame; of one in several buffers those of the first, and what lies behind it in memory up to
// the packet's length: no header reaches that far.
func (w *Worker) frame(d *xsk.Desc) []byte {
	return w.io.Memory[d.Addr : d.Addr+uint64(d.Len)]
}

// parse fills metas and hashes of the batch.
func (w *Worker) parse(n int, now int64) {
	if !packet.ParseBatch(w.io.Memory, w.descs[:n], &w.engine.keys.Flow, w.metas[:], (*[batchSize]uint64)(w.hashes[:]), &w.parsing) {
		return
	}
	for i := range w.metas[:n] {
		if m := &w.metas[i]; m.Flags&(packet.First|packet.Later) != 0 && m.Reason == packet.None {
			w.fragment(i, now)
		}
	}
}

// classify finds the services of the batch. A packet to the same place as the one before needs no search.
func (w *Worker) classify(snap *Snapshot, n int, now int64) {
	const none = 1 << 16 // no port
	var dst packet.Addr
	port, proto := uint32(none), uint8(0)
	service, reason := uint32(0), packet.None
	metas, services := w.metas[:n], w.services[:n]
	for i := range metas {
		m := &metas[i]
		if m.Reason != packet.None {
			continue
		}
		if uint32(m.DstPort) == port && m.Dst.Lo == dst.Lo && m.Dst.Hi == dst.Hi && m.Proto == proto {
			services[i], m.Reason = service, reason // what has ports is neither Echo nor placed
			continue
		}
		if m.Flags&(packet.Echo|placed) != 0 {
			w.count.portless++
			if m.Flags&packet.Echo != 0 {
				m.Reason = w.admitEcho(snap, m, now)
			}
			continue
		}
		services[i], m.Reason = snap.vips.find(m.Dst, m.Proto, m.DstPort)
		if m.Reason == packet.NotVIP { // a reply, then, which has another destination than the one before
			if len(snap.translations) > 0 {
				w.classifyReply(snap, i)
			}
			continue
		}
		dst, port, proto, service, reason = m.Dst, uint32(m.DstPort), m.Proto, services[i], m.Reason
		if port == 0 { // as that of what has no ports
			port = none
		}
	}
}

// sample counts the source of one packet of the batch for all of them, another one each time: who sends most shows in a sample too.
func (w *Worker) sample(n int) {
	w.sampled++
	i := int(w.sampled % uint32(n))
	if m := &w.metas[i]; m.Reason == packet.None && m.Flags&(packet.Echo|reply) == 0 {
		w.tops.packet(packet.Source(w.frame(&w.descs[i]), m), n)
	}
}

// lookup turns the words that were found into slots, and puts the packets whose flow has none on the list of misses. What most
// packets are is decided in its loop: those within an established flow, to a backend that is up. Words are renewed afterwards, together:
// each swap is a barrier that what is read for the next packets would wait for.
func (w *Worker) lookup(snap *Snapshot, n int, now int64, tick uint16) {
	targets, admit := snap.targets, w.engine.live.Admit[:len(snap.targets)]
	w.missed, w.renewals = 0, 0
	metas, words, services := w.metas[:n], w.words[:n], w.services[:n]
	for i := range metas {
		m := &metas[i]
		if m.Reason != packet.None {
			continue
		}
		word := words[i]
		if slot := word.Slot(); m.Flags&^packet.V6 == 0 && word.State() == conntrack.Established && int(slot) < len(targets) {
			if t := &targets[slot]; uint32(t.service) == services[i] {
				if maglev.Admit(admit[slot].Load()).State() == maglev.Up {
					if word.Tick() == tick {
						w.slots[i] = slot
						continue
					}
					if !t.life.Expired(word, tick) {
						w.slots[i] = slot
						w.renew(i)
						continue
					}
				}
			}
		}
		if m.Flags&(packet.Echo|reply) == 0 && (word == 0 || !w.usable(snap, i, now, tick)) {
			w.misses[w.missed] = uint8(i)
			w.missed++
		}
	}
	if w.renewals > 0 {
		w.renewAll(snap, now, tick)
	}
}

// renew puts packet i, whose flow has a word, on the list of those by which the word may have to be written.
func (w *Worker) renew(i int) {
	w.renewing[w.renewals] = uint8(i)
	w.renewals++
}

// renewAll writes the words of the packets on the list anew.
func (w *Worker) renewAll(snap *Snapshot, now int64, tick uint16) {
	proofs := 0
	for _, i := range w.renewing[:w.renewals] {
		m, word := &w.metas[i], w.words[i]
		if word.Tick() != tick && w.tellsSource(m, &snap.services[w.services[i]], w.services[i], word, tick) {
			source := packet.Source(w.frame(&w.descs[i]), m)
			w.proofs[proofs] = w.engine.proved.Hash(source.Hi, source.Lo)
			proofs++
		}
	}
	w.engine.proved.Prefetch(w.proofs[:proofs])
	for _, i := range w.renewing[:w.renewals] {
		w.table.Refresh(w.indices[i], w.words[i], tick, w.metas[i].Flags&(packet.FIN|packet.RST) != 0)
	}
	for _, source := range w.proofs[:proofs] {
		w.engine.proved.Add(source, now)
	}
}

// usable says whether the word that was found for packet i tells where it goes; its slot is taken then, and the word renewed. Of a
// word that does not words keeps what is to be replaced, if anything.
func (w *Worker) usable(snap *Snapshot, i int, now int64, tick uint16) bool {
	m, word := &w.metas[i], w.words[i]
	slot := int(word.Slot())
	if slot >= len(snap.targets) || uint32(snap.targets[slot].service) != w.services[i] || snap.targets[slot].life.Expired(word, tick) {
		// No word, which passes for expired; or that of another service, a false hit and not ours to change; or one that is
		// past its time.
		w.words[i] = 0
		return false
	}
	w.slots[i] = uint32(slot)
	state := maglev.Admit(w.engine.live.Admit[slot].Load()).State()
	switch {
	case m.Flags&packet.SYN != 0:
		if state != maglev.Up {
			return false
		}
		// Retransmitted, a client's port used again, or forged: whichever, it changes nothing here.
		if word.State() != conntrack.Established { // else nobody would see its ACK
			w.sendSYN(snap, m.Hash, uint32(slot), packet.Source(w.frame(&w.descs[i]), m), now, true)
		}
		return true
	case state == maglev.Up, state == maglev.Draining, state == maglev.Down && snap.services[w.services[i]].onDown == OnDownKeep:
	default:
		return false
	}
	if m.Flags&packet.ICMPError != 0 { // an error is no sign of life, and anybody can forge one
		return true
	}
	if word.Tick() != tick || m.Flags&(packet.FIN|packet.RST) != 0 {
		w.renew(i)
	}
	s := &snap.services[w.services[i]]
	if word.State() != conntrack.Established && (now < w.handshakes.hitsUntil || m.Flags&packet.RST != 0 || s.defence != DefenceOff) {
		w.unsettled(s, i, word, now, tick)
	}
	return true
}

// rewrite puts each packet's new header in front of it, and sorts the packets by the queue that they leave by. Those to backends are
// counted for their slots there and then; see uncount. What most packets are is written out in its loop: received ones to a backend,
// that take a header and no more, of a slot that others have been counted for since the last publish.
func (w *Worker) rewrite(snap *Snapshot, n int, now int64) {
	targets, memory, cells := snap.targets, w.io.Memory, (*[conntrack.MaxSlots]slotCell)(w.count.slots)
	memory = memory[:len(memory):len(memory)]
	metas, descs, slots := w.metas[:n], w.descs[:n], w.slots[:n]
	for i := range metas {
		m := &metas[i]
		if m.Reason != packet.None {
			continue
		}
		if m.Flags&(packet.Echo|reply) != 0 || i >= w.received {
			w.rewriteSpecial(snap, i, now)
			continue
		}
		slot := slots[i] % conntrack.MaxSlots
		d, t, length := &descs[i], &targets[slot], m.End-m.L3
		out, cell := w.egress[t.exit%MaxInterfaces], &cells[slot] // an exit without a tag has the number of its interface
		if t.problem != packet.None || d.Options != 0 || length > t.maxLen || out == nil || !cell.dirty {
			w.rewriteSpecial(snap, i, now)
			continue
		}
		start, size := d.Addr+uint64(m.L3), uint32(length)
		switch {
		case t.encap.InIPv4():
			start, size = start-packet.OuterIPv4, size+packet.OuterIPv4
			f := (*[packet.OuterIPv4]byte)(memory[start : start+packet.OuterIPv4 : start+packet.OuterIPv4])
			t.encap.PutIPv4(f, length, m.Class)
			if m.Flags&packet.V6 != 0 {
				packet.CarryIPv6(f)
			}
		case t.encap.L2():
			start, size = start-packet.Ethernet, size+packet.Ethernet
			t.encap.PutL2((*[packet.Ethernet]byte)(memory[start : start+packet.Ethernet : start+packet.Ethernet]))
		case t.encap.InIPv6():
			start, size = start-packet.OuterIPv6, size+packet.OuterIPv6
			f := (*[packet.OuterIPv6]byte)(memory[start : start+packet.OuterIPv6 : start+packet.OuterIPv6])
			t.encap.PutIPv6(f, length, m.Class, packet.InnerProto(m.Flags))
		default:
			newStart, newLen := t.encap.Apply(memory, int(d.Addr), m)
			start, size = uint64(newStart), uint32(newLen)
		}
		k := out.n % uint(len(out.descs))
		out.descs[k], out.indices[k] = xsk.Desc{Addr: start, Len: size}, uint8(i)
		out.n++
		cell.packets++
		cell.bytes += uint64(length)
	}
}

// rewriteSpecial is rewrite for all other packets: an answer, NAT, a tag, several frames, too many bytes, no way at all, or a copy.
func (w *Worker) rewriteSpecial(snap *Snapshot, i int, now int64) {
	m := &w.metas[i]
	if m.Flags&reply != 0 {
		w.rewriteReply(snap, i, now)
		return
	}
	if m.Flags&packet.Echo != 0 {
		addr := w.descs[i].Addr
		w.departBy(exit{}, w.fromQueue, i, int(addr), packet.EchoReply(w.io.Memory[addr:], m))
		return
	}
	t := &snap.targets[w.slots[i]]
	if t.problem != packet.None && t.problem != special {
		m.Reason = t.problem
		return
	}
	x := snap.exits[t.exit]
	out := w.egress[x.iface]
	if out == nil {
		m.Reason = packet.EgressDown
		return
	}
	if t.encap.Routed() && packet.TTL(w.frame(&w.descs[i]), m) <= 1 {
		w.refuse(i, packet.TTLExpired, 0, now)
		return
	}
	if w.descs[i].Options != 0 && t.encap.Checksummed() { // what is in several frames is not summed up
		m.Reason = packet.TooBig
		return
	}
	if m.End-m.L3 <= t.maxLen {
		w.leave(i, t, x, out.queue)
	} else {
		first, whole, ok := w.divide(snap, i, t.maxLen, now)
		if !ok {
			return
		}
		w.leave(i, t, x, out.queue)
		m.End = whole
		for k := first; k < w.received+w.copies; k++ {
			w.leave(k, t, x, out.queue)
		}
	}
	if i < w.received {
		cell := w.count.slot(w.slots[i])
		cell.packets++
		cell.bytes += uint64(m.End - m.L3)
	}
}

// uncount takes back what was counted for the slots of packets that do not leave after all.
func (w *Worker) uncount(indices []uint8) {
	for _, i := range indices {
		if w.toBackend(i) {
			m, cell := &w.metas[i], w.count.slot(w.slots[i])
			cell.packets--
			cell.bytes -= uint64(m.End - m.L3)
		}
	}
}

// toBackend says whether what departs under index i is a received packet, or the first frame of one, on its way to its backend.
func (w *Worker) toBackend(i uint8) bool {
	return int(i) < w.received && w.metas[i].Flags&(packet.Echo|reply|answer) == 0
}

// leave puts the header of its target before packet i, and has it leave.
func (w *Worker) leave(i int, t *target, x exit, q int32) {
	start, length := t.encap.Apply(w.io.Memory, int(w.descs[i].Addr), &w.metas[i])
	w.departBy(x, q, i, start, length)
}

// departBy is depart for a packet that may need a tag, or be in several frames.
func (w *Worker) departBy(x exit, q int32, i, start, length int) {
	if x.vlan != 0 {
		start, length = packet.PushVLAN(w.io.Memory, start, length, x.vlan)
	}
	if w.descs[i].Options != 0 {
		w.departAll(q, i, start, length)
		return
	}
	w.depart(q, i, start, length)
}

// depart puts a rewritten frame on the list of a queue.
func (w *Worker) depart(q int32, i, start, length int) {
	out := &w.leaving[q]
	out.descs[out.n] = xsk.Desc{Addr: uint64(start), Len: uint32(length)}
	out.indices[out.n] = uint8(i)
	out.n++
	out.others = out.others || !w.toBackend(uint8(i))
}

// transmit hands the rewritten frames to their queues and the others back to the UMEM, and counts all of them.
func (w *Worker) transmit(n int) {
	w.handing = true
	sent := 0
	for q := range w.leaving {
		if w.leaving[q].n > 0 {
			sent += w.send(q)
		}
	}
	if sent < n+w.copies || w.answers > 0 {
		w.drop(n)
	}
	// The fill ring was refilled by Receive, and the driver may be waiting for that. If the interface is gone, netlink tells
	// the node, which takes the queue away.
	_ = w.from.Wake()
	w.count.received += uint64(n)
	w.received, w.copies, w.answers, w.handing = 0, 0, 0, false
}

// send hands the frames that leave by queue q to it, counts those that were taken and returns how many packets that were;
// the others get a reason.
func (w *Worker) send(q int) (packets int) {
	out, port := &w.leaving[q], w.io.Queues[q].Port
	descs, departed := out.descs[:out.n], out.indices[:out.n]
	out.n = 0
	sent := port.Transmit(descs)
	gone := port.Wake()
	if sent < len(descs) && gone == nil { // the ring was full; it may have room now
		sent += port.Transmit(descs[sent:])
		gone = port.Wake()
	}
	packets = sent
	w.count.forwarded += uint64(sent)
	if out.others {
		for _, i := range departed[:sent] {
			if i == continuation {
				packets--
			}
			if !w.toBackend(i) {
				w.countOther(int(i))
			}
		}
		out.others = false
	}
	if sent == len(departed) {
		return packets
	}
	w.uncount(departed[sent:])
	full := packet.TxFull
	if gone != nil {
		full = packet.EgressDown
	}
	for _, i := range departed[sent:] {
		if i == continuation {
			continue
		}
		m := &w.metas[i]
		if m.Flags&answer == 0 { // an answered packet has its reason
			m.Reason = full
		}
		m.Flags &^= answer
	}
	return packets
}

// countOther counts a frame that was sent and is not a received packet on its way to its backend.
func (w *Worker) countOther(i int) {
	c := w.count
	switch flags := w.metas[i].Flags; {
	case i == continuation:
		c.forwarded--
		c.continued++
	case i >= w.received, flags&answer != 0:
		c.forwarded--
		c.generated++
	case flags&packet.Echo != 0:
		c.forwarded--
		c.answered++
	default:
		c.replies++
	}
}

// drop gives the frames that have a reason not to be sent back to the UMEM, and counts the packets among them; of a copy the
// packet itself is counted.
func (w *Worker) drop(n int) {
	dropped := 0
	for i := range w.metas[:n+w.copies] {
		m := &w.metas[i]
		if m.Reason == packet.None || m.Reason == held {
			continue
		}
		if m.Flags&answer == 0 { // else the frame went out as the answer
			w.dropped[dropped] = w.descs[i]
			dropped++
			if w.descs[i].Options != 0 {
				w.from.Recycle(w.tailOf(i))
			}
		}
		if i >= n {
			continue
		}
		w.count.reasons[m.Reason]++
		if m.Reason >= packet.SourceLimit && m.Flags&packet.Echo == 0 { // it had a service
			cell := w.count.service(w.services[i])
			cell.dropped[m.Reason]++
			if m.Reason <= packet.NodeLimit {
				cell.unknown[classOf(m)]++
			}
		}
	}
	w.from.Recycle(w.dropped[:dropped])
}
