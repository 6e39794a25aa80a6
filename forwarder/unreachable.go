package forwarder

import (
	"net/netip"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

// What says that a backend is unreachable. Of a packet to a NAT backend, the error comes to the client by way of a worker, which
// counts it (classifyReply). One about an outer packet of a tunnel goes to the node's own address, and so to the kernel: the
// node reads these beside it. With l2 the backend's host and the routers behind it see the client's packet, and tell the client;
// and nobody is told where outer sources (Tunnel.Source4, Source6) are no addresses of the node. A host without an agent drops
// GUE over IPv6 without a checksum and says nothing (RFC 8200, 8.1).
//
// An error proves nothing: whoever knows the addresses of node and backend can forge it.

// unreachables is what ICMP errors to the node's own addresses told. Engine.mu guards it.
type unreachables struct {
	counts []uint64 // by slot
	total  uint64   // of counts
	// ends is where tunnels end, as of a generation of the snapshot.
	ends       map[tunnelEnd][]uint32
	generation uint64
}

// tunnelEnd is where packets of IPIP or GUE services go. Backends of several services may be at the same.
type tunnelEnd struct {
	mode    Mode
	address netip.Addr
}

// countRefused counts an ICMP error for the slots whose packets go where the refused one went.
func (e *Engine) countRefused(r packet.Refused) {
	e.mu.Lock()
	defer e.mu.Unlock()
	end := tunnelEnd{IPIP, r.Dst}
	if r.Proto == packet.ProtoUDP {
		if end.mode = GUE; r.Port != e.tunnel.Port {
			return
		}
	}
	u := &e.unreachable
	if u.generation != e.generation {
		u.ends, u.generation = e.tunnelEnds(), e.generation
	}
	for _, slot := range u.ends[end] {
		u.counts[slot]++
		u.total++
		e.tellNews()
	}
}

// tunnelEnds finds out where packets of all slots go. e.mu is held.
func (e *Engine) tunnelEnds() map[tunnelEnd][]uint32 {
	modes := make([]Mode, len(e.numbers)) // by number of the service
	for _, s := range e.services {
		modes[s.number] = s.spec.Mode
	}
	ends := map[tunnelEnd][]uint32{}
	for i := range e.slots.states {
		st := &e.slots.states[i]
		if st.phase != slotActive && st.phase != slotLeaving {
			continue
		}
		if mode := modes[st.key.service]; mode == IPIP || mode == GUE {
			end := tunnelEnd{mode, st.key.address.Unmap()}
			ends[end] = append(ends[end], uint32(i))
		}
	}
	return ends
}
