package forwarder

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/maglev"
)

// FastPath forwards packets of flows that have a word before they get to a worker: the XDP program, as steer.Steer has it. It knows what
// the engine publishes with each snapshot, and the admit words and the flow table by their memory.
type FastPath interface {
	// PublishFast makes these what it goes by: targets by slot, services by number.
	PublishFast(targets []steer.Target, services []steer.FastService) error
	// SlotCount is what it has forwarded to a slot: packets, and bytes of IP as received.
	SlotCount(slot int) (packets, bytes uint64)
	// SetTables gives services, by number, their lookup tables, which it goes by while no daemon runs.
	SetTables(tables map[int]steer.LookupTable) error
	// Words are what it is told otherwise.
	Words() steer.FastWords
	// Samples calls f with the sources of some of the packets, one of steer.SamplePeriod, since it was called last.
	Samples(f func(hi, lo uint64)) error
}

// takeSamples counts what the fast path has sampled. Several times a second, by one goroutine.
func (e *Engine) takeSamples() error {
	e.sampled.Lock()
	defer e.sampled.Unlock()
	e.fastTops.age(e.clock())
	return e.fast.Samples(func(hi, lo uint64) { e.fastTops.packet(packet.Addr{Hi: hi, Lo: lo}, steer.SamplePeriod) })
}

// publishFast tells the fast path of a snapshot. What it says of a slot that can be used again stays away from packets once this has
// returned. e.mu is held.
func (e *Engine) publishFast(snap *Snapshot, specs []*ServiceSpec) {
	if e.fast == nil {
		return
	}
	services := make([]steer.FastService, len(snap.services))
	for i, spec := range specs {
		if spec != nil && FastProblem(spec, &e.limits, &e.tunnel) == "" {
			services[i] = spec.fast()
		}
	}
	targets := make([]steer.Target, len(snap.targets))
	for i := range targets {
		t := &snap.targets[i]
		targets[i].Exit = steer.NoExit
		if x := snap.exits[t.exit]; t.ready() && e.fastExits[x.iface] {
			targets[i] = t.fast(x)
		}
	}
	if err := errors.Join(e.setTables(), e.fast.PublishFast(targets, services)); err != nil {
		// What it knows may name slots that others are given from now on.
		e.fastFailed = errors.Join(err, e.fast.PublishFast(nil, nil))
		return
	}
	e.fastFailed = nil
}

// setTables gives the fast path the lookup tables that have changed. e.mu is held.
func (e *Engine) setTables() error {
	pools := make([]*maglev.Pool, len(e.numbers))
	for _, s := range e.services {
		pools[s.number] = s.live.Pool
	}
	changes := map[int]steer.LookupTable{}
	for i := range max(len(pools), len(e.fastTables)) {
		var pool, had *maglev.Pool
		if i < len(pools) {
			pool = pools[i]
		}
		if i < len(e.fastTables) {
			had = e.fastTables[i]
		}
		switch {
		case pool == had:
		case pool == nil:
			changes[i] = steer.LookupTable{}
		default:
			changes[i] = steer.LookupTable{Entries: pool.Table().Entries(), Slots: pool.Slots()}
		}
	}
	if err := e.fast.SetTables(changes); err != nil {
		return err
	}
	e.fastTables = pools
	return nil
}

// FastFailed says why the fast path forwards nothing, although it might: it could not be told of the last snapshot. nil: it was.
func (e *Engine) FastFailed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.fastFailed
}

// SetFastExits says which interfaces of the node's list the fast path can send by.
func (e *Engine) SetFastExits(exits [MaxInterfaces]bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fastExits != exits {
		e.fastExits = exits
		e.rebuild()
	}
}

// FastProblem says, in words, why packets to a service do not go by the fast path; empty: they do, where an interface uses it.
func FastProblem(s *ServiceSpec, l *Limits, tunnel *Tunnel) string {
	switch {
	case s.Mode == NAT:
		return "forward: nat changes the packets themselves"
	case s.Mode == GUE && tunnel.Checksum:
		return "tunnel.gue_checksum sums up each packet"
	case len(s.Ports) > steer.MaxFastRanges:
		return fmt.Sprintf("it has %d ranges of ports, more than %d", len(s.Ports), steer.MaxFastRanges)
	case l.PerSource.Packets > 0 || s.PerSource.Packets > 0:
		return "the packets of each source are limited"
	case l.Node.Packets > 0 || s.Total.Packets > 0:
		return "packets are limited"
	}
	return ""
}

// fast is what the fast path knows of a service.
func (s *ServiceSpec) fast() steer.FastService {
	f := steer.FastService{
		VIP: s.VIP.Unmap(), Proto: s.Protocol, Keeps: s.OnDown == OnDownKeep, Settles: s.Defence != DefenceOff, SourceBits: uint8(s.sourceBits()),
	}
	for _, r := range s.Ports {
		f.Ports = append(f.Ports, steer.PortRange(r))
	}
	return f
}

// fast is what the fast path knows of a target.
func (t *target) fast(x exit) steer.Target {
	h, ok := t.encap.Header()
	if !ok {
		return steer.Target{Exit: steer.NoExit}
	}
	return steer.Target{
		MACs: h.MACs, GUEPort: h.Port, Overhead: h.Overhead, SourceBits: h.SourceBits, Addrs: h.Addrs, Sum: h.Sum,
		Life:    [3]uint16{t.life[conntrack.Probation], t.life[conntrack.Established], t.life[conntrack.Closing]},
		Service: t.service, MaxLen: t.maxLen, Exit: uint8(x.iface), Tag: x.vlan,
	}
}

// unsettle has the ACKs of SYNs that go to flows with a word, which come within handshakeTime, go to the workers. Most calls only read.
func (e *Engine) unsettle(now int64) {
	if e.fast == nil {
		return
	}
	until := e.fast.Words().Unsettled
	if int64(atomic.LoadUint64(until)) < now+int64(handshakeTime) {
		atomic.StoreUint64(until, uint64(now+int64(handshakeTime+time.Second)))
	}
}

// tellDisturbed tells the fast path whether there is a flood or an overload. e.mu is held.
func (e *Engine) tellDisturbed() {
	if e.fast == nil {
		return
	}
	disturbed := uint64(0)
	if e.overload.lasts.Load() {
		disturbed = 1
	}
	for _, s := range e.services {
		if e.flooded[s.number].Load() {
			disturbed = 1
		}
	}
	atomic.StoreUint64(e.fast.Words().Disturbed, disturbed)
}
