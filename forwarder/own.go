package forwarder

import (
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
)

// refuse drops packet i for a reason that its sender is told of: in place of it goes an ICMP error or a TCP reset, unless
// that kind of packet is never answered, or the worker has said enough for now. mtu is what TooBig tells.
func (w *Worker) refuse(i int, r packet.Reason, mtu int, now int64) {
	m, d := &w.metas[i], &w.descs[i]
	m.Reason = r
	if i >= w.received || !packet.Answerable(w.frame(d), m) {
		return
	}
	reset := r == packet.NoBackend && m.Proto == packet.ProtoTCP
	limit := &w.errors
	if reset {
		limit = &w.resets
	}
	if !limit.admit(now) {
		return
	}
	var start, length int
	switch {
	case reset:
		start, length = packet.Reset(w.io.Memory, int(d.Addr), m)
	case r == packet.NoBackend:
		start, length = packet.Unreachable(w.io.Memory, int(d.Addr), m)
	case r == packet.TTLExpired:
		start, length = packet.TimeExceeded(w.io.Memory, int(d.Addr), m)
	default:
		start, length = packet.PacketTooBig(w.io.Memory, int(d.Addr), m, mtu)
	}
	if d.Options != 0 { // what is quoted is in the first frame
		w.from.Recycle(w.tailOf(i))
		d.Options = 0
	}
	m.Flags |= answer
	w.answers++
	w.depart(w.fromQueue, i, start, length)
}

// tooBig treats packet i, which exceeds the MTU towards its target: it goes in pieces if its sender allows that, else the
// sender is told.
func (w *Worker) tooBig(snap *Snapshot, i int, t *target, x exit, q int32, now int64) {
	if !packet.MayFragment(w.frame(&w.descs[i]), &w.metas[i]) {
		w.refuse(i, packet.TooBig, int(t.maxLen), now)
		return
	}
	whole := w.metas[i].End
	first, ok := w.cut(snap, i, int(t.maxLen))
	if !ok {
		w.metas[i].Reason = packet.TooBig
		return
	}
	w.leave(i, t, x, q)
	w.metas[i].End = whole // it is counted as it came
	for k := first; k < w.received+w.copies; k++ {
		w.leave(k, t, x, q)
	}
}

// tooBigReply is tooBig for a reply of a NAT backend.
func (w *Worker) tooBigReply(snap *Snapshot, i int, q int32, y *way, x exit, now int64) {
	if !packet.MayFragment(w.frame(&w.descs[i]), &w.metas[i]) {
		w.refuse(i, packet.TooBig, int(y.maxLen), now)
		return
	}
	whole := w.metas[i].End
	first, ok := w.cut(snap, i, int(y.maxLen))
	if !ok {
		w.metas[i].Reason = packet.TooBig
		return
	}
	w.translateBack(snap, i, q, y, x)
	w.metas[i].End = whole
	for k := first; k < w.received+w.copies; k++ {
		w.translateBack(snap, k, q, y, x)
	}
}

// cut makes packet i the first of its fragments of at most mtu bytes, and adds the others to the batch from index first on.
// It fails, and leaves the packet as it is, if that is not wanted or there are not enough free frames.
func (w *Worker) cut(snap *Snapshot, i, mtu int) (first int, ok bool) {
	m, d := &w.metas[i], &w.descs[i]
	first = w.received + w.copies
	// A first fragment has to hold the transport header, behind the longest IP header there is.
	if !snap.split || d.Options != 0 || mtu < 128 {
		return 0, false
	}
	pieces := packet.Pieces(m, mtu)
	if w.copies+pieces-1 > maxCopies {
		return 0, false
	}
	frame := w.frame(d)
	for piece := 1; piece < pieces; piece++ {
		addr, free := w.from.Spare()
		if !free {
			for k := first; k < w.received+w.copies; k++ {
				w.metas[k].Reason = packet.TooBig
			}
			return 0, false
		}
		k := w.received + w.copies
		w.copies++
		w.metas[k] = packet.Split(frame, m, mtu, piece, w.io.Memory[addr:addr+uint64(int(m.L3)+mtu)])
		w.descs[k] = xsk.Desc{Addr: addr, Len: uint32(w.metas[k].End)}
		w.services[k], w.slots[k] = w.services[i], w.slots[i]
	}
	*m = packet.Split(frame, m, mtu, 0, frame)
	return first, true
}
