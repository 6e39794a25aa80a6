package forwarder

import (
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
)

// FastPath forwards packets of flows that have a word before they get to a worker: the XDP program, as steer.Steer has it. It knows what
// the engine publishes with each snapshot, and the admit words and the flow table by their memory.
type FastPath interface {
	// PublishFast makes these what it goes by: targets by slot, services by number.
	PublishFast(targets []steer.Target, services []steer.FastService) error
	// SlotCount is what it has forwarded to a slot: packets, and bytes of IP as received.
	SlotCount(slot int) (packets, bytes uint64)
	// Unsettled is until when packets of TCP flows whose word is not established are the workers', CLOCK_MONOTONIC ns; with sync/atomic.
	Unsettled() *uint64
}

// publishFast tells the fast path of a snapshot. What it says of a slot that can be used again stays away from packets once this has
// returned. e.mu is held.
func (e *Engine) publishFast(snap *Snapshot, specs []*ServiceSpec) {
	if e.fast == nil {
		return
	}
	services := make([]steer.FastService, len(snap.services))
	for i, spec := range specs {
		if spec != nil && snap.fastProblem(spec, &snap.services[i]) == "" {
			services[i] = spec.fast()
		}
	}
	targets := make([]steer.Target, len(snap.targets))
	for i := range targets {
		t := &snap.targets[i]
		targets[i].Exit = steer.NoExit
		if t.problem == packet.None && int(t.exit) < MaxInterfaces {
			targets[i] = t.fast()
		}
	}
	if err := e.fast.PublishFast(targets, services); err != nil {
		// What was there before goes on: it named the same backends, or backends that are gone, whose slots nobody else has got yet.
		e.fastFailed = err
		_ = e.fast.PublishFast(nil, nil)
		return
	}
	e.fastFailed = nil
}

// fastProblem says, in words, why packets to a service do not go by the fast path; empty: they do.
func (snap *Snapshot) fastProblem(spec *ServiceSpec, s *service) string {
	packets := func(r *rateSet) bool { return r.rates[limitPackets] != guard.Rate{} }
	l := &snap.limits
	switch {
	case spec.Mode == NAT:
		return "forward: nat changes the packets themselves"
	case len(spec.Ports) > steer.MaxFastRanges:
		return "it has more than 10 ranges of ports"
	case packets(&l.source), s.limits != nil && packets(&s.limits.source):
		return "packets of each source are limited"
	case packets(&l.node), s.limits != nil && packets(&s.limits.total):
		return "packets are limited"
	}
	return ""
}

// fast is what the fast path knows of a service.
func (s *ServiceSpec) fast() steer.FastService {
	f := steer.FastService{VIP: s.VIP.Unmap(), Proto: s.Protocol, Keeps: s.OnDown == OnDownKeep, Settles: s.Defence != DefenceOff}
	for _, r := range s.Ports {
		f.Ports = append(f.Ports, steer.PortRange(r))
	}
	return f
}

// fast is what the fast path knows of a target.
func (t *target) fast() steer.Target {
	h, ok := t.encap.Header()
	if !ok {
		return steer.Target{Exit: steer.NoExit}
	}
	return steer.Target{
		MACs: h.MACs, GUEPort: h.Port, Overhead: h.Overhead, SourceBits: h.SourceBits, Addrs: h.Addrs, Sum: h.Sum,
		Life: t.life, Service: t.service, MaxLen: t.maxLen, Exit: t.exit,
	}
}

// unsettle has the ACKs of SYNs that go to flows with a word, which come within handshakeTime, go to the workers. Most calls only read.
func (e *Engine) unsettle(now int64) {
	if e.fast == nil {
		return
	}
	until := e.fast.Unsettled()
	if int64(atomic.LoadUint64(until)) < now+int64(handshakeTime) {
		atomic.StoreUint64(until, uint64(now+int64(handshakeTime+time.Second)))
	}
}
