package forwarder

import (
	"net/netip"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

// Snapshot is everything that a worker needs to treat a batch. It is immutable; Engine builds a new one aside and swaps the
// pointer. What health says is not in it: admit words change under a snapshot, one atomic store each.
type Snapshot struct {
	generation uint64
	vips       vipTable
	services   []service        // by service number
	targets    []target         // by slot
	lives      []conntrack.Life // by slot; the zero Life of an unused slot makes its words expire
}

// service is what a miss needs to know.
type service struct {
	pool *maglev.Pool
	// previous is the pool before the last change of the service's backends. Until previousUntil (CLOCK_MONOTONIC ns),
	// packets without a word that are not SYNs go by it: their flow was opened under it. Nil if there was no change.
	previous      *maglev.Pool
	previousUntil int64
	tcp           bool
}

// target is where a slot's packets go: a ready-made header, and the interface to leave by.
// It fills one cache line.
type target struct {
	encap   packet.Encap
	life    conntrack.Life // that of its slot in Snapshot.lives
	service uint16
	maxLen  uint16        // bytes: the largest IP packet, as received, that fits the egress MTU
	egress  uint8         // index of the interface
	problem packet.Reason // why nothing can be sent there now; None otherwise
}

// noService marks the target of an unused slot: it equals no service number.
const noService = MaxServices

// Hop is how a backend's address is reached, as the node's routing says.
type Hop struct {
	Problem packet.Reason // None, NoRoute, NoNeighbour or EgressDown
	Egress  int           // index of the interface in the node's list
	OnLink  bool          // there is no gateway in between
	Src     packet.MAC
	Dst     packet.MAC
	Source  netip.Addr // of outer headers
	MTU     int        // bytes of IP packet
}

// newTarget makes a slot's target from the way to its backend.
func newTarget(number uint32, mode Mode, tunnel *Tunnel, backend netip.Addr, hop Hop, known bool) target {
	t := target{service: uint16(number), problem: packet.NoRoute}
	if !known {
		return t
	}
	if hop.Problem != packet.None {
		t.problem = hop.Problem
		return t
	}
	if mode == L2 {
		if !hop.OnLink { // the gateway would route the packet back to us
			return t
		}
		t.encap = packet.NewL2(hop.Dst, hop.Src)
	} else {
		var ok bool
		if t.encap, ok = tunnel.encap(mode, backend, hop); !ok {
			return t
		}
	}
	if room := hop.MTU - t.encap.Overhead(); room > 0 {
		t.maxLen = uint16(min(room, 0xffff))
	}
	t.egress = uint8(hop.Egress)
	t.problem = packet.None
	return t
}

// encap makes the outer header for a backend. It reports false if there is no source address of the backend's family.
func (t *Tunnel) encap(mode Mode, backend netip.Addr, hop Hop) (e packet.Encap, ok bool) {
	source, prefix := hop.Source, t.Source6
	if backend.Is4() {
		prefix = t.Source4
	}
	if prefix.IsValid() {
		source = prefix.Addr()
	}
	var err error
	if mode == GUE {
		e, err = packet.NewGUE(hop.Dst, hop.Src, source, backend, t.Port, t.Checksum)
	} else {
		e, err = packet.NewIPIP(hop.Dst, hop.Src, source, backend)
	}
	if err != nil {
		return e, false
	}
	if prefix.IsValid() {
		e.VarySource(prefix)
	}
	return e, true
}
