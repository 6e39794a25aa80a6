package forwarder

import (
	"cmp"
	"fmt"
	"math/bits"
	"time"

	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
)

// Rates are limits, in events a second; 0 is no limit.
type Rates struct {
	Packets uint64
	SYNs    uint64        // TCP SYNs
	Flows   uint64        // flows that get a word in the flow table
	Burst   time.Duration // so much of each may come at once
	Observe bool          // what is over a limit is counted and goes on
}

// Limits bound what each source, and what the node, takes over all services.
type Limits struct {
	PerSource Rates
	// IPv4Prefix and IPv6Prefix are how many leading bits of an address are one source; 0: 32 and 64.
	IPv4Prefix, IPv6Prefix int
	Node                   Rates
}

// prefixes is how many bits of an address are one source.
func (l *Limits) prefixes() (ipv4, ipv6 int) {
	return cmp.Or(l.IPv4Prefix, 32), cmp.Or(l.IPv6Prefix, 64)
}

// Kinds of limits, of each source, service, and the node.
const (
	limitPackets = iota
	limitSYNs
	limitFlows
	numLimits
)

// rateSet is Rates as a worker asks for them.
type rateSet struct {
	rates   [numLimits]guard.Rate
	on      bool // there is one
	observe bool
}

func newRateSet(r Rates) (s rateSet) {
	s.observe = r.Observe
	for kind, perSecond := range [numLimits]uint64{r.Packets, r.SYNs, r.Flows} {
		if perSecond > 0 {
			s.rates[kind], s.on = guard.NewRate(perSecond, r.Burst), true
		}
	}
	return s
}

func (r *Rates) validate() error {
	if (r.Packets > 0 || r.SYNs > 0 || r.Flows > 0) && r.Burst <= 0 {
		return fmt.Errorf("limits without a burst: %+v", *r)
	}
	return nil
}

// limits is what a snapshot knows of limits.
type limits struct {
	on           bool            // a packet has to be looked at
	syns         bool            // a SYN has to be, for itself
	flows        bool            // a new flow has to be
	shared       [numLimits]bool // a service, or the node, has a limit of this kind
	mask4, mask6 packet.Addr
	source, node rateSet
	ceilings     *ceilings // of node
}

// ceilings are the words of a service's limits, or of the node's, by kind.
type ceilings [numLimits]*guard.Ceiling

// serviceLimits are those of one service.
type serviceLimits struct {
	source, total rateSet
	ceilings      *ceilings // of total
}

// sourceOf is what of a client's address is one source.
func (l *limits) sourceOf(a packet.Addr, v6 bool) packet.Addr {
	mask := &l.mask4
	if v6 {
		mask = &l.mask6
	}
	return packet.Addr{Hi: a.Hi & mask.Hi, Lo: a.Lo & mask.Lo}
}

// addrMask is the first bits of an address of packet.Addr.
func addrMask(bits int) (mask packet.Addr) {
	mask.Hi = ^uint64(0) << max(64-bits, 0)
	if bits > 64 {
		mask.Lo = ^uint64(0) << (128 - bits)
	}
	return mask
}

// newLimits makes the snapshot's part of limits. e.mu is held.
func (e *Engine) newLimits(snap *Snapshot) {
	l := &snap.limits
	l.source, l.node = newRateSet(e.limits.PerSource), newRateSet(e.limits.Node)
	bits4, bits6 := e.limits.prefixes()
	l.mask4, l.mask6 = addrMask(96+bits4), addrMask(bits6)
	if e.limiter == nil {
		return
	}
	l.ceilings = e.nodeCeilings
	sets := []*rateSet{&l.source, &l.node}
	for i := range snap.services {
		if s := snap.services[i].limits; s != nil {
			sets = append(sets, &s.source, &s.total)
		}
	}
	for i, s := range sets {
		l.on = l.on || s.on
		l.syns = l.syns || s.rates[limitSYNs] != guard.Rate{}
		l.flows = l.flows || s.rates[limitFlows] != guard.Rate{}
		for kind := range s.rates {
			l.shared[kind] = l.shared[kind] || i > 0 && s.rates[kind] != guard.Rate{} // the first is that of sources
		}
	}
}

// admit is the stage that holds what is over a limit, before any flow is looked up: what is refused here has cost little.
func (w *Worker) admit(snap *Snapshot, n int, now int64) {
	l := &snap.limits
	if l.source.rates[limitPackets] != (guard.Rate{}) {
		w.admitSources(l, n, now)
	}
	if !l.shared[limitPackets] && !l.syns {
		return
	}
	for i := range w.metas[:n] {
		m := &w.metas[i]
		if m.Reason != packet.None || m.Flags&(packet.Echo|reply) != 0 {
			continue
		}
		if l.shared[limitPackets] {
			if m.Reason = w.withinShared(snap, i, limitPackets, now); m.Reason != packet.None {
				continue
			}
		}
		if m.Flags&packet.SYN != 0 {
			m.Reason = w.within(snap, i, limitSYNs, now)
		}
	}
}

// admitSources is admit for the node's limit of packets of each source. While nobody is over it, only packets that are drawn are
// looked at at all; else the source of each, and the limiter's word of those that were refused lately.
func (w *Worker) admitSources(l *limits, n int, now int64) {
	rate, limiter := l.source.rates[limitPackets], w.engine.limiter
	drawn, look := w.lots.Draw(n, rate, now)
	asked := 0
	for ; look != 0; look &= look - 1 {
		i := bits.TrailingZeros64(look)
		m := &w.metas[i]
		if m.Reason != packet.None || m.Flags&(packet.Echo|reply) != 0 {
			continue
		}
		source := l.sourceOf(packet.Source(w.frame(&w.descs[i]), m), m.Flags&packet.V6 != 0)
		half := limiter.Half(source.Hi, source.Lo)
		if drawn>>i&1 == 0 && !w.lots.Refused(half) {
			continue
		}
		w.halves[asked], w.sources[asked], w.asked[asked] = half, limiter.Whole(half, limitPackets), uint8(i)
		asked++
	}
	limiter.Prefetch(w.sources[:asked])
	for k, i := range w.asked[:asked] {
		if v := limiter.AdmitSome(w.sources[k], rate, now, drawn>>i&1 != 0); !v.OK {
			w.lots.Refuse(w.halves[k])
			w.metas[i].Reason = w.overSource(l, int(i), v.Far)
		}
	}
}

// within asks all limits of one kind about packet i, and returns the reason under which it is dropped.
func (w *Worker) within(snap *Snapshot, i, kind int, now int64) packet.Reason {
	l := &snap.limits
	if r := l.source.rates[kind]; r != (guard.Rate{}) {
		if v := w.engine.limiter.Admit(w.sourceLimit(l, i, uint32(kind)), r, now); !v.OK {
			// No ban, which would hit the source's connections that exist as well.
			if reason := w.overSource(l, i, false); reason != packet.None {
				return reason
			}
		}
	}
	if !l.shared[kind] {
		return packet.None
	}
	return w.withinShared(snap, i, kind, now)
}

// overSource is what becomes of packet i, whose source is over the node's limit of sources.
func (w *Worker) overSource(l *limits, i int, far bool) packet.Reason {
	if l.source.observe {
		w.count.observed[overSource]++
		return packet.None
	}
	if far {
		w.ban(l, i)
	}
	return packet.SourceLimit
}

// withinShared asks the limits of packet i's service, and the node's ceiling.
func (w *Worker) withinShared(snap *Snapshot, i, kind int, now int64) packet.Reason {
	l, number := &snap.limits, w.services[i]
	if s := snap.services[number].limits; s != nil {
		if r := s.source.rates[kind]; r != (guard.Rate{}) {
			// All limits of sources are in one table: a number for each (service, kind), beyond those of the node.
			if v := w.engine.limiter.Admit(w.sourceLimit(l, i, (number+1)*numLimits+uint32(kind)), r, now); !v.OK {
				if !s.source.observe {
					return packet.SourceLimit
				}
				w.count.observed[overSource]++
			}
		}
		if r := s.total.rates[kind]; r != (guard.Rate{}) && !s.ceilings[kind].Admit(w.id, r, now) {
			if !s.total.observe {
				return packet.ServiceLimit
			}
			w.count.observed[overService]++
		}
	}
	if r := l.node.rates[kind]; r != (guard.Rate{}) && !l.ceilings[kind].Admit(w.id, r, now) {
		if !l.node.observe {
			return packet.NodeLimit
		}
		w.count.observed[overNode]++
	}
	return packet.None
}

// sourceLimit is the hash of packet i's source and one limit.
func (w *Worker) sourceLimit(l *limits, i int, limit uint32) uint64 {
	m := &w.metas[i]
	source := l.sourceOf(packet.Source(w.frame(&w.descs[i]), m), m.Flags&packet.V6 != 0)
	return w.engine.limiter.Hash(source.Hi, source.Lo, limit)
}

// What observed counts: packets over a limit that only observes.
const (
	overSource = iota
	overService
	overNode
	numOver
)

// ban asks for the source of packet i to be dropped in the XDP program for a while, since it is far over its limit. When many
// are asked for already, the question is left out, and comes again with the source's next packet.
func (w *Worker) ban(l *limits, i int) {
	m := &w.metas[i]
	select {
	case w.engine.bans <- l.sourceOf(packet.Source(w.frame(&w.descs[i]), m), m.Flags&packet.V6 != 0).Netip():
	default:
	}
}

// serviceLimits makes the snapshot's part of a service's own limits; nil: it has none. Its ceilings outlive changes. e.mu is
// held.
func (e *Engine) serviceLimits(s *serviceState, spec *ServiceSpec) *serviceLimits {
	l := &serviceLimits{source: newRateSet(spec.PerSource), total: newRateSet(spec.Total)}
	if !l.source.on && !l.total.on {
		return nil
	}
	if s.ceilings == nil {
		s.ceilings = newCeilings(len(e.workers))
	}
	l.ceilings = s.ceilings
	return l
}

func newCeilings(workers int) *ceilings {
	c := new(ceilings)
	for kind := range c {
		c[kind] = guard.NewCeiling(workers)
	}
	return c
}
