package forwarder

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/maglev"
)

// Stats reads all counters that the engine knows; Node adds those of the kernel. Workers' counters are as of their last
// publish, at most a millisecond ago while they are busy and exact when they are at rest.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	var st Stats
	var all totals
	for _, w := range e.workers {
		t := w.count.readTotals()
		all.newFlows += t.newFlows
		for i := range all.inserts {
			all.inserts[i] += t.inserts[i]
		}
		st.Workers = append(st.Workers, WorkerStats{
			ID: w.id, CPU: int(w.cpu.Load()), Received: t.received, Forwarded: t.forwarded, Replies: t.replies, Answered: t.answered,
			Generated: t.generated, Held: t.held, Continued: t.continued, NewFlows: t.newFlows, Restarts: w.restarts.Load(), Dropped: t.reasons,
			Heartbeat: w.heartbeat.Load(), Observed: Observed{t.observed[overSource], t.observed[overService], t.observed[overNode]},
		})
	}
	slots := make([][]uint32, len(e.numbers)) // in use, by number of the service
	for i := range e.slots.states {
		if s := &e.slots.states[i]; s.phase == slotActive || s.phase == slotLeaving {
			slots[s.key.service] = append(slots[s.key.service], uint32(i))
			st.Table.Flows += e.flows(uint32(i))
		}
	}
	for _, s := range e.services {
		st.Services = append(st.Services, e.serviceStats(s, slots[s.number]))
	}
	slices.SortFunc(st.Services, func(a, b ServiceStats) int { return strings.Compare(a.Name, b.Name) })
	inserts := &all.inserts
	st.Table.Words, st.Table.Bytes = uint64(e.words), uint64(e.words)*8
	st.Table.Probation, st.Table.Established = e.census.States[conntrack.Probation], e.census.States[conntrack.Established]
	st.Table.Closing, st.Table.Expired = e.census.States[conntrack.Closing], e.census.Expired
	st.Table.Ages = make([]AgeCount, conntrack.NumAges)
	for k := range st.Table.Ages {
		st.Table.Ages[k] = AgeCount{AgeBound(k).Seconds(), e.census.Ages[k]}
	}
	st.Table.Inserted, st.Table.Refused = all.newFlows, inserts[conntrack.Refused]
	st.Table.Evicted = Evictions{
		Expired: inserts[conntrack.EvictedExpired], Closing: inserts[conntrack.EvictedClosing],
		Probation: inserts[conntrack.EvictedProbation], Established: inserts[conntrack.EvictedIdle],
	}
	return st
}

// flows is the number of words that name a slot now. While workers write, the count of a slot may lag behind another's.
func (e *Engine) flows(slot uint32) uint64 { return uint64(max(e.live.Flows[slot].Load(), 0)) }

// Replies returns where the replies of NAT backends come from: what the XDP program is to take beside packets to VIPs.
func (e *Engine) Replies() []steer.Source {
	snap := e.snapshot.Load()
	var out []steer.Source
	for i := range snap.replies.entries {
		x := &snap.replies.entries[i]
		if x.count == 0 || x.other {
			continue
		}
		for _, r := range snap.replies.ranges[x.first : x.first+x.count] {
			out = append(out, steer.Source{Addr: x.addr.Netip(), Proto: x.proto, First: r.first, Last: r.last})
		}
	}
	return out
}

// Tunnel returns the tunnel settings in force.
func (e *Engine) Tunnel() Tunnel {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.tunnel
}

// VIPs returns the addresses of all services, each once.
func (e *Engine) VIPs() []netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []netip.Addr
	for _, s := range e.services {
		if v := s.spec.VIP.Unmap(); !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// serviceStats is one service with the given slots.
func (e *Engine) serviceStats(s *serviceState, slots []uint32) ServiceStats {
	out := ServiceStats{
		Name: s.spec.Name, VIP: s.spec.VIP.String(), Protocol: protocolName(s.spec.Protocol), Ports: portsText(s.spec.Ports),
		Forward: s.spec.Mode.String(), Scheduler: s.spec.Scheduler.String(),
	}
	out.NoFastPath = FastProblem(&s.spec, &e.limits, &e.tunnel)
	counts := e.sumService(s.number)
	counts.sub(&s.base)
	out.Dropped = counts.dropped
	out.Defence = DefenceStats{
		Mode: s.spec.Defence.String(), Active: s.spec.Defence >= DefenceChallenge || e.flooded[s.number].Load(), Switches: s.switches,
		Answer: e.answerOf(s), SYNs: counts.syns, Challenged: counts.challenged, Proofs: counts.proofs,
	}
	table := s.live.Pool.Table()
	out.TableSize, out.TableHash = table.Size(), table.Hash()
	sum := s.retired
	targets := e.snapshot.Load().targets
	for _, i := range slots {
		st := &e.slots.states[i]
		c := e.sumSlot(i)
		c.sub(st.base)
		sum.add(c)
		signals := e.sumSignals(i)
		signals.sub(st.signalsBase)
		hop := "ready"
		if t := &targets[i]; !t.ready() {
			hop = t.problem.String()
		}
		admit := maglev.Admit(e.live.Admit[i].Load())
		flows := e.flows(i)
		out.Flows += flows
		out.Backends = append(out.Backends, BackendStats{
			Name: st.backend, Address: st.key.address.String(), Slot: i, Leaving: st.phase == slotLeaving,
			Admit: admit.State().String(), Fraction: float64(admit.Fraction()) / maglev.All, Hop: hop,
			Forwarded: Counts{c.packets, c.bytes}, NewFlows: c.newFlows, Flows: flows,
			LongestIdle: ticksTime(st.swept.Oldest).Seconds(),
			SYNs:        signals.syns, Handshakes: signals.completed, Retransmitted: signals.retransmitted, Resets: signals.resets,
			Unreachable: signals.unreachable,
		})
	}
	slices.SortFunc(out.Backends, func(a, b BackendStats) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return int(a.Slot) - int(b.Slot)
	})
	out.Forwarded, out.NewFlows = Counts{sum.packets, sum.bytes}, sum.newFlows
	return out
}

func protocolName(p uint8) string {
	if p == protoUDP {
		return "udp"
	}
	return "tcp"
}

func portsText(ports []PortRange) string {
	var b strings.Builder
	for i, p := range ports {
		if i > 0 {
			b.WriteByte(',')
		}
		switch {
		case p == PortRange{0, 65535}:
			b.WriteString("any")
		case p.First == p.Last:
			fmt.Fprintf(&b, "%d", p.First)
		default:
			fmt.Fprintf(&b, "%d-%d", p.First, p.Last)
		}
	}
	return b.String()
}
