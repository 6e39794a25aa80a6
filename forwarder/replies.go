package forwarder

import (
	"github.com/sluice-lb/sluice/forwarder/packet"
)

// translation is what the replies of a NAT backend, known by their source, are turned into.
type translation struct {
	vip     packet.Addr
	port    uint16 // the service's; 0: the one that the backend used
	clamp   int    // ServiceSpec.ClampMSS
	service uint32
	slot    uint32
}

// way is how packets leave for a destination of the route table.
type way struct {
	macs    [12]byte
	exit    uint8
	maxLen  uint16        // bytes of IP packet
	problem packet.Reason // why nothing can be sent there now; None otherwise
	onLink  bool          // the destination itself is the neighbour
}

// classifyReply finds out whether packet i, which is not to a VIP, is a reply of a NAT backend: it comes from an address,
// protocol and port where a service has one. An ICMP error is one if it is about a packet that was sent there.
func (w *Worker) classifyReply(snap *Snapshot, i int) {
	m := &w.metas[i]
	frame := w.frame(&w.descs[i])
	backend := packet.Source(frame, m)
	if m.Flags&packet.ICMPError != 0 {
		backend = packet.QuotedDst(frame, m)
	}
	k, reason := snap.replies.find(backend, m.Proto, m.SrcPort)
	if reason != packet.None {
		return
	}
	t := &snap.translations[k]
	if m.Flags&packet.ICMPError != 0 && packet.TellsUnreachable(frame[m.L4:m.End], m.Flags&packet.V6 != 0) {
		w.count.signal(t.slot).unreachable++
	}
	w.services[i], w.slots[i] = t.service, k
	m.Flags |= reply
	m.Reason = packet.None
}

// rewriteReply translates a reply back, and sends it by the longest matching route to the client.
func (w *Worker) rewriteReply(snap *Snapshot, i int, now int64) {
	m := &w.metas[i]
	frame := w.frame(&w.descs[i])
	if packet.TTL(frame, m) <= 1 {
		m.Reason = packet.TTLExpired
		return
	}
	k, ok := snap.routes.Find(m.Dst.Netip(), m.Hash)
	if !ok {
		m.Reason = packet.NoRoute
		return
	}
	y := &snap.ways[k]
	if y.problem != packet.None {
		m.Reason = y.problem
		if y.onLink && y.problem == packet.NoNeighbour && w.resolves.admit(now) {
			w.engine.resolve(m.Dst)
		}
		return
	}
	x := snap.exits[y.exit]
	out := w.egress[x.iface]
	if out == nil {
		m.Reason = packet.EgressDown
		return
	}
	if m.End-m.L3 <= y.maxLen {
		w.translateBack(snap, i, out.queue, y, x)
		return
	}
	if first, whole, ok := w.divide(snap, i, y.maxLen, now); ok {
		w.translateBack(snap, i, out.queue, y, x)
		m.End = whole
		for k := first; k < w.received+w.copies; k++ {
			w.translateBack(snap, k, out.queue, y, x)
		}
	}
}

// translateBack rewrites packet i of the batch, a reply, and has it leave.
func (w *Worker) translateBack(snap *Snapshot, i int, q int32, y *way, x exit) {
	m, t := &w.metas[i], &snap.translations[w.slots[i]]
	mss := clampTo(t.clamp, int(y.maxLen), m.Flags)
	start, length := packet.Untranslate(w.io.Memory, int(w.descs[i].Addr), m, &y.macs, t.vip, t.port, mss)
	w.departBy(x, q, i, start, length)
}

// clampTo is the largest MSS that is let through: what the service says, or what the MTU leaves after an IP and a TCP header.
// 0: whatever it is.
func clampTo(clamp, mtu int, flags uint16) uint16 {
	switch {
	case clamp == 0:
		return 0
	case clamp > 0:
		return uint16(clamp)
	case flags&packet.V6 != 0:
		return uint16(max(mtu-60, 1220))
	}
	return uint16(max(mtu-40, 536))
}
