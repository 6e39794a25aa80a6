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
	nobody := r == packet.NoBackend || r == packet.BackendDown
	reset := nobody && m.Proto == packet.ProtoTCP
	if !reset && !packet.Quotable(m) {
		return
	}
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
	case nobody:
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

// divide treats packet i, which exceeds the MTU of its way: it goes in pieces if its sender allows that, else the sender is
// told. If it goes on, packet i is now the first piece, and the others are those of the batch from index first on; whole is
// what Meta.End was, which the caller puts back once the piece has left, since a packet is counted as it came.
func (w *Worker) divide(snap *Snapshot, i int, mtu uint16, now int64) (first int, whole uint16, ok bool) {
	m := &w.metas[i]
	if !packet.MayFragment(w.frame(&w.descs[i]), m) {
		w.refuse(i, packet.TooBig, int(mtu), now)
		return 0, 0, false
	}
	whole = m.End
	if first, ok = w.cut(snap, i, int(mtu)); !ok {
		m.Reason = packet.TooBig
	}
	return first, whole, ok
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
