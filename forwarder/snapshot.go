package forwarder

import (
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/nexthop"
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
	exits      []exit           // that targets and ways name: those without a tag by interface, then those with one
	split      bool             // Tunnel.Fragment
	limits     limits

	// Of services that are forwarded by NAT.
	replies      vipTable // by the source of a reply: its translation
	translations []translation
	routes       *nexthop.Routes
	ways         []way // of routes
}

// service is what a miss needs to know.
type service struct {
	maglev.Service
	tcp     bool
	reject  bool // see ServiceSpec.Reject
	noTable bool // see ServiceSpec.NoTable
	agrees  bool // see maglev.Scheduler.Agrees
	plain   bool // what a flow without a word gets is a matter of its hash alone
	onDown  OnDown
	defence Defence
	limits  *serviceLimits // nil: none of its own
	// Of a defence: what limits packets of unproved flows, and the largest TCP segment that reaches all backends, bytes.
	unproved *guard.Ceiling
	mss      uint16
	// source is the bits of the client's address that choose the backend; none: the flow's hash does.
	source packet.Addr
}

// ends says whether a flow of a backend that takes this is ended.
func (s *service) ends(a maglev.Admit) bool {
	switch a.State() {
	case maglev.Cut:
		return s.tcp
	case maglev.Down:
		return s.onDown == OnDownReset
	}
	return false
}

// target is where a slot's packets go: a ready-made header, and the exit to leave by.
// It fills one cache line.
type target struct {
	encap   packet.Encap
	life    conntrack.Life // that of its slot in Snapshot.lives
	service uint16
	maxLen  uint16        // bytes: the largest IP packet, as received, that fits the egress MTU
	exit    uint8         // index in Snapshot.exits
	problem packet.Reason // why nothing can be sent there now; None otherwise, or special
}

// special is the problem of a target that packets can be sent to, and which takes more than a header: it is translated, or
// has a tag. It is no reason of the list, and never counted.
const special = packet.NumReasons + 1

// ready says whether packets can be sent there.
func (t *target) ready() bool { return t.problem == packet.None || t.problem == special }

// exit is an interface to leave by, with the 802.1Q tag that frames carry there.
type exit struct {
	iface uint16 // index in the node's list
	vlan  uint16 // 0: none
}

// noService marks the target of an unused slot: it equals no service number.
const noService = MaxServices

// Hop is how an address is reached, as the node's routing says.
type Hop struct {
	Problem packet.Reason // None, NoRoute, NoNeighbour or EgressDown
	Egress  int           // index of the interface in the node's list
	VLAN    uint16        // 802.1Q tag of frames there; 0: none
	OnLink  bool          // there is no gateway in between
	Src     packet.MAC
	Dst     packet.MAC
	Source  netip.Addr // of outer headers
	MTU     int        // bytes of IP packet
}

// rebuild makes a snapshot of the present state and publishes it. e.mu is held.
func (e *Engine) rebuild() {
	e.generation++
	n := len(e.slots.states)
	snap := &Snapshot{
		generation: e.generation,
		services:   make([]service, len(e.numbers)),
		targets:    make([]target, n),
		lives:      make([]conntrack.Life, n),
		split:      e.tunnel.Fragment,
		exits:      make([]exit, MaxInterfaces),
	}
	for i := range snap.exits {
		snap.exits[i].iface = uint16(i)
	}
	specs := make([]*ServiceSpec, len(e.numbers))
	var claims []vipPorts
	for _, s := range e.services {
		snap.services[s.number] = s.live
		specs[s.number] = &s.spec
		claims = append(claims, vipPorts{addr: packet.FromNetip(s.spec.VIP), proto: s.spec.Protocol, ports: s.spec.Ports, service: s.number})
	}
	e.newLimits(snap)
	for i := range snap.services {
		s := &snap.services[i]
		s.plain = s.agrees && s.defence == DefenceOff && s.source == (packet.Addr{}) && !s.noTable && !snap.limits.flows
	}
	snap.vips = newVIPTable(claims)
	for i := range e.slots.states {
		st := &e.slots.states[i]
		if st.phase != slotActive && st.phase != slotLeaving {
			snap.targets[i].service = noService
			continue
		}
		hop, known := e.hops[st.key.address]
		snap.targets[i] = snap.newTarget(specs[st.key.service], &e.tunnel, st, hop, known)
		snap.lives[i] = specs[st.key.service].life()
		snap.targets[i].life = snap.lives[i]
	}
	snap.setMSS(e.slots.states, specs)
	snap.addReplies(e.slots.states, specs)
	if len(snap.translations) > 0 && e.routes != nil {
		snap.routes = e.routes
		snap.ways = make([]way, len(e.ways))
		for i := range e.ways {
			snap.ways[i] = snap.newWay(&e.ways[i])
		}
	}
	e.snapshot.Store(snap)
	e.publishFast(snap, specs)
}

// setMSS finds out what a cookie may tell clients: what the way to the backend leaves that has least room.
func (snap *Snapshot) setMSS(states []slotState, specs []*ServiceSpec) {
	for i := range snap.services {
		snap.services[i].mss = maxMSS
	}
	for i := range states {
		st, t := &states[i], &snap.targets[i]
		if st.phase != slotActive || t.maxLen == 0 {
			continue
		}
		headers := uint16(40) // IP and TCP, without options
		if specs[st.key.service].VIP.Unmap().Is6() {
			headers = 60
		}
		s := &snap.services[st.key.service]
		s.mss = min(s.mss, max(t.maxLen, headers+minMSS)-headers)
	}
}

// maxMSS is what a cookie tells clients at the most, as if from an Ethernet; minMSS is what every host takes (RFC 9293, 3.7.1).
const (
	maxMSS = 1460
	minMSS = 536
)

// newTarget makes a slot's target from the way to its backend.
func (snap *Snapshot) newTarget(spec *ServiceSpec, tunnel *Tunnel, st *slotState, hop Hop, known bool) target {
	t := target{service: uint16(st.key.service), problem: packet.NoRoute}
	if !known {
		return t
	}
	if hop.Problem != packet.None {
		t.problem = hop.Problem
		return t
	}
	switch spec.Mode {
	case L2:
		if !hop.OnLink { // the gateway would route the packet back to us
			return t
		}
		t.encap = packet.NewL2(hop.Dst, hop.Src)
	case NAT:
		flags := uint16(0)
		if st.key.address.Is6() {
			flags = packet.V6
		}
		t.encap = packet.NewNAT(hop.Dst, hop.Src, st.key.address, st.key.port, clampTo(spec.ClampMSS, hop.MTU, flags))
	default:
		var ok bool
		if t.encap, ok = tunnel.encap(spec.Mode, st.key.address, hop); !ok {
			return t
		}
	}
	var ok bool
	if t.exit, ok = snap.exitTo(&hop); !ok {
		return t
	}
	if room := hop.MTU - t.encap.Overhead(); room > 0 {
		t.maxLen = uint16(min(room, 0xffff))
	}
	t.problem = packet.None
	if t.encap.Routed() || hop.VLAN != 0 {
		t.problem = special
	}
	return t
}

// exitTo returns the index of a hop's exit. It reports false when there are more than can be numbered.
func (snap *Snapshot) exitTo(hop *Hop) (index uint8, ok bool) {
	x := exit{uint16(hop.Egress), hop.VLAN}
	i := slices.Index(snap.exits, x)
	if i < 0 {
		if len(snap.exits) > 0xff {
			return 0, false
		}
		i = len(snap.exits)
		snap.exits = append(snap.exits, x)
	}
	return uint8(i), true
}

// newWay makes what a reply needs from a hop of the route table.
func (snap *Snapshot) newWay(hop *Hop) way {
	y := way{problem: hop.Problem, onLink: hop.OnLink, maxLen: uint16(min(hop.MTU, 0xffff))}
	copy(y.macs[0:], hop.Dst[:])
	copy(y.macs[6:], hop.Src[:])
	var ok bool
	if y.exit, ok = snap.exitTo(hop); !ok && y.problem == packet.None {
		y.problem = packet.NoRoute
	}
	return y
}

// addReplies fills replies and translations. What a backend that is leaving claims gives way to what others claim now.
func (snap *Snapshot) addReplies(states []slotState, specs []*ServiceSpec) {
	var claims []vipPorts
	claim := func(phase slotPhase) {
		for i := range states {
			st := &states[i]
			if st.phase != phase || specs[st.key.service].Mode != NAT {
				continue
			}
			spec := specs[st.key.service]
			c := vipPorts{addr: packet.FromNetip(st.key.address), proto: spec.Protocol, ports: spec.Ports, service: uint32(len(snap.translations))}
			t := translation{vip: packet.FromNetip(spec.VIP), clamp: spec.ClampMSS, service: st.key.service, slot: uint32(i)}
			if st.key.port != 0 {
				c.ports = []PortRange{{st.key.port, st.key.port}}
				t.port = spec.Ports[0].First
			}
			if phase == slotLeaving && slices.ContainsFunc(claims, c.overlaps) {
				continue
			}
			claims = append(claims, c)
			snap.translations = append(snap.translations, t)
		}
	}
	claim(slotActive)
	claim(slotLeaving)
	snap.replies = newVIPTable(claims)
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
