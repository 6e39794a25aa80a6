//go:build linux

package sim

import (
	"fmt"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

const (
	fleetNodes    = 4
	fleetBackends = 100 // at the start of each scenario
	spareBackends = 4   // that can be added
	allBackends   = fleetBackends + spareBackends

	noBackend = -1 // what a packet reaches that is not forwarded

	// bootTime is CLOCK_MONOTONIC at the start of a scenario: no tick is near zero.
	bootTime = int64(time.Hour)
	// sweepEvery is how often the engine goes round its flow table.
	sweepEvery = int64(10 * time.Second)
)

// router is how ECMP spreads flows over nodes.
type router uint8

const (
	resilient router = iota // rendezvous: only flows of a node that went, or came, move
	modulo                  // hash mod live nodes: flows of all nodes may move
)

// packetKind is what a packet is to its flow.
type packetKind uint8

const (
	syn  packetKind = iota
	data            // an ACK or data: any packet that neither opens nor ends the flow
)

// backend is what one node knows of one backend.
type backend struct {
	configured bool
	weight     uint16
	state      maglev.AdmitState
}

// view is what one node knows of all backends, by number.
type view []backend

// Flags of a flow under one scheme.
const (
	broken      = 1 << iota // a packet reached another backend
	unavoidable             // its backend died
)

// member is one scheme with what became of each flow under it.
type member struct {
	scheme
	owner []int16 // by flow: the backend that got the SYN
	marks []uint8 // by flow: flags
}

// fleet is nodes with their backends, and the flows that come through a router. It is one goroutine's.
type fleet struct {
	keys    forwarder.Keys
	router  router
	flows   int      // that the scenario may open
	hashes  []uint64 // by flow
	members []member

	now       int64 // CLOCK_MONOTONIC of all nodes, ns
	nextSweep int64
	views     [fleetNodes]view
	alive     [fleetNodes]bool
	diedAt    [allBackends]int // flows opened before the backend died; −1: it lives
	opened    int              // flows that sent their SYN
	acked     int              // flows that sent more
	at        []uint8          // by flow: its node
	lists     [fleetNodes][]uint32
	got       []int16
	err       error // the first; later events do nothing
}

// mix is a hash of 64 bits that no key of the product goes into: the finaliser of MurmurHash3 (Appleby, public domain).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

func keysOf(seed uint64) (forwarder.Keys, error) {
	return forwarder.DeriveKeys(fmt.Appendf(nil, "simulator seed %016x", seed))
}

// newFleet makes nodes with equal backends, all up, under the given schemes.
func newFleet(flows int, seed uint64, r router, schemes []schemeMaker) (*fleet, error) {
	keys, err := keysOf(seed)
	if err != nil {
		return nil, err
	}
	f := &fleet{
		keys: keys, router: r, flows: flows, hashes: make([]uint64, flows), at: make([]uint8, flows),
		now: bootTime, nextSweep: bootTime + sweepEvery, got: make([]int16, flows),
	}
	for i := range f.hashes {
		src, port := tuple(uint32(i))
		f.hashes[i] = packet.FlowHash(&keys.Flow, packet.Addr{Lo: 0xffff_0000_0000 | uint64(src)}, packet.FromNetip(vip), port, tcpPort, packet.ProtoTCP)
	}
	for b := range f.diedAt {
		f.diedAt[b] = -1
	}
	for n := range f.views {
		f.alive[n], f.views[n] = true, make(view, allBackends)
		for b := range fleetBackends {
			f.views[n][b] = backend{configured: true, weight: 100, state: maglev.Up}
		}
	}
	f.route()
	for _, make := range schemes {
		s, err := make(f)
		if err != nil {
			f.close()
			return nil, err
		}
		f.members = append(f.members, member{scheme: s, owner: newOwners(flows), marks: newMarks(flows)})
	}
	return f, nil
}

func newOwners(n int) []int16 { return make([]int16, n) }
func newMarks(n int) []uint8  { return make([]uint8, n) }

func (f *fleet) close() {
	for i := range f.members {
		f.members[i].close()
	}
}

// tuple is the source of a flow; the other end is vip and tcpPort, or udpPort.
func tuple(flow uint32) (src uint32, port uint16) {
	return 0x0b000000 + flow>>8, 1024 + uint16(flow&0xff)
}

// route sends each flow to its node.
func (f *fleet) route() {
	var live []uint8
	for n, up := range f.alive {
		if up {
			live = append(live, uint8(n))
		}
	}
	for i := range f.at {
		h := mix(f.hashes[i] ^ 0x726f75746572)
		if f.router == modulo {
			f.at[i] = live[h%uint64(len(live))]
			continue
		}
		best := uint64(0)
		for _, n := range live {
			if score := mix(h + uint64(n+1)*0x9e3779b97f4a7c15); score >= best {
				best, f.at[i] = score, n
			}
		}
	}
}

// send has each of the flows from..to-1 send one packet, and notes where it went.
func (f *fleet) send(kind packetKind, from, to int) {
	if f.err != nil {
		return
	}
	for n := range f.lists {
		f.lists[n] = f.lists[n][:0]
	}
	for i := from; i < to; i++ {
		n := f.at[i]
		f.lists[n] = append(f.lists[n], uint32(i))
	}
	for k := range f.members {
		m := &f.members[k]
		for n, list := range f.lists {
			got := f.got[:len(list)]
			if err := m.forward(n, kind, list, got); err != nil {
				f.err = fmt.Errorf("scheme %s, node %d: %w", m.name(), n, err)
				return
			}
			for i, flow := range list {
				f.note(m, kind, int(flow), got[i])
			}
		}
	}
}

// note is what becomes of a flow whose packet reached a backend.
func (f *fleet) note(m *member, kind packetKind, flow int, reached int16) {
	if kind == syn {
		m.owner[flow] = reached
		if reached == noBackend {
			m.marks[flow] |= broken
		}
		return
	}
	owner := m.owner[flow]
	if owner != noBackend && flow < f.diedAt[owner] {
		m.marks[flow] |= broken | unavoidable
	}
	if reached != owner {
		m.marks[flow] |= broken
	}
}

// pass lets time go by.
func (f *fleet) pass(d time.Duration) {
	end := f.now + int64(d)
	for f.nextSweep <= end {
		f.now = f.nextSweep
		for i := range f.members {
			f.members[i].sweep()
		}
		f.nextSweep += sweepEvery
	}
	f.now = end
}

// arrive opens a share of the scenario's flows over a second. Some of them have sent only their SYN when it returns.
func (f *fleet) arrive(share float64) {
	const waves = 5
	n := int(share * float64(f.flows))
	for w := range waves {
		f.pass(time.Second / waves)
		f.handshakes()
		next := min(f.opened+n*(w+1)/waves-n*w/waves, f.flows)
		f.send(syn, f.opened, next)
		f.opened = next
	}
}

// handshakes has the flows that sent only a SYN confirm it.
func (f *fleet) handshakes() {
	f.send(data, f.acked, f.opened)
	f.acked = f.opened
}

// talk has every flow send a packet, some seconds later.
func (f *fleet) talk() {
	f.handshakes()
	f.pass(3 * time.Second)
	f.send(data, 0, f.acked)
}

// populate opens flows and has them become established. The last to come are still in their handshake.
func (f *fleet) populate(share float64) {
	f.arrive(share * 0.9)
	f.talk()
	f.arrive(share * 0.1)
}

// live lets a long time go by, in which all flows talk.
func (f *fleet) live(d time.Duration) {
	for ; d > 0; d -= 25 * time.Second {
		f.pass(min(d, 25*time.Second) - 3*time.Second)
		f.talk()
	}
}

// finish has every flow send to the end.
func (f *fleet) finish() {
	f.talk()
	f.pass(5 * time.Second)
	f.talk()
}

// kill takes a node out of the routers' set. What it knew is lost.
func (f *fleet) kill(node int) {
	f.alive[node] = false
	f.route()
}

// restart starts a node again, with its flow table or an empty one, the configuration and the health that its view now has,
// and puts it into the routers' set.
func (f *fleet) restart(node int, keep bool) {
	f.each(func(s scheme) error { return s.restart(node, f.views[node], keep) })
	f.alive[node] = true
	f.route()
}

// each does something to all schemes.
func (f *fleet) each(do func(s scheme) error) {
	for i := range f.members {
		if f.err == nil {
			f.err = do(f.members[i].scheme)
		}
	}
}

// everyNode is all nodes that live.
func (f *fleet) everyNode() (nodes []int) {
	for n, up := range f.alive {
		if up {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// setState changes what nodes think of a backend's health, or that it drains.
func (f *fleet) setState(b int, state maglev.AdmitState, nodes ...int) {
	for _, n := range nodes {
		f.views[n][b].state = state
		f.each(func(s scheme) error { return s.setState(n, f.views[n], b) })
	}
}

// die kills a backend; all nodes see it at once.
func (f *fleet) die(b int) {
	f.diedAt[b] = f.opened
	f.setState(b, maglev.Down, f.everyNode()...)
}

// configure changes the configuration of nodes: a backend gets a weight, or goes if that is negative.
func (f *fleet) configure(b, weight int, nodes ...int) {
	for _, n := range nodes {
		f.expect(b, weight, n)
		f.each(func(s scheme) error { return s.configure(n, f.views[n]) })
	}
}

// expect changes the configuration that a node will start with.
func (f *fleet) expect(b, weight, node int) {
	v := &f.views[node][b]
	if weight < 0 {
		v.configured = false
		return
	}
	if !v.configured {
		v.state = maglev.Up
	}
	v.configured, v.weight = true, uint16(weight)
}

// results counts what became of the flows that were opened.
func (f *fleet) results(scenario string) []Result {
	var out []Result
	for i := range f.members {
		m := &f.members[i]
		r := Result{Scenario: scenario, Scheme: m.name(), Flows: f.opened}
		for _, mark := range m.marks[:f.opened] {
			if mark&broken != 0 {
				r.Broken++
			}
			if mark&unavoidable != 0 {
				r.Unavoidable++
			}
		}
		out = append(out, r)
	}
	return out
}
