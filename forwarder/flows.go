package forwarder

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

// tickSeconds is the length of a tick of the flow table.
const tickSeconds = float64(1<<31) / 1e9

// FlowCensus is what a walk over the flow table found.
type FlowCensus struct {
	conntrack.Census                 // Census.Slots is indexed by slot
	Backends         []BackendCensus // those with a slot in use, by service, then name
	Took             time.Duration   // the walk
}

// BackendCensus is a slot in a FlowCensus.
type BackendCensus struct {
	Service, Backend string
	Address          netip.Addr
	Admit            maglev.Admit
	Leaving          bool
	conntrack.SlotCensus
}

// LongestIdle is for how long the flow that has idled longest has had no packet.
func (s *BackendCensus) LongestIdle() time.Duration { return ticksTime(s.Oldest) }

// ticksTime is the time that so many ticks take.
func ticksTime(ticks uint16) time.Duration {
	return time.Duration(float64(ticks) * tickSeconds * float64(time.Second))
}

// AgeBound is the age, exclusive, up to which words are counted in class k of a census; the last one's has no bound, and 0.
func AgeBound(k int) time.Duration {
	if k == conntrack.NumAges-1 {
		return 0
	}
	return ticksTime(1 << k)
}

// Flows walks over the flow table, while workers go on, and tells whose flows there are. It takes some milliseconds for
// a million flows; ctx ends it.
func (e *Engine) Flows(ctx context.Context) (FlowCensus, error) {
	e.mu.Lock()
	slots := len(e.slots.states)
	e.mu.Unlock()
	began := time.Now()
	c := FlowCensus{Census: conntrack.Census{Slots: make([]conntrack.SlotCensus, slots)}}
	lives, tick := e.snapshot.Load().lives, conntrack.Tick(e.clock())
	for line := 0; ; {
		if line = e.table.Walk(line, 1<<14, tick, lives, &c.Census); line == 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return FlowCensus{}, fmt.Errorf("walk over the flow table: %w", err)
		}
	}
	c.Took = time.Since(began)
	e.mu.Lock()
	defer e.mu.Unlock()
	names := e.serviceNames()
	for i := range c.Census.Slots {
		st := &e.slots.states[i]
		if st.phase != slotActive && st.phase != slotLeaving {
			continue
		}
		c.Backends = append(c.Backends, BackendCensus{
			Service: names[st.key.service], Backend: st.backend, Address: st.key.address,
			Admit: maglev.Admit(e.live.Admit[i].Load()), Leaving: st.phase == slotLeaving, SlotCensus: c.Census.Slots[i],
		})
	}
	slices.SortStableFunc(c.Backends, func(a, b BackendCensus) int {
		if d := strings.Compare(a.Service, b.Service); d != 0 {
			return d
		}
		return strings.Compare(a.Backend, b.Backend)
	})
	return c, nil
}

// serviceNames returns the names of services by number. e.mu is held.
func (e *Engine) serviceNames() map[uint32]string {
	names := make(map[uint32]string, len(e.services))
	for name, s := range e.services {
		names[s.number] = name
	}
	return names
}

// Flow is what the engine knows of one flow.
type Flow struct {
	Service string
	Hash    uint64
	Found   bool // it has a word, for a backend of the service; the next four are of that
	Word    conntrack.Word
	Backend FlowBackend
	Idle    time.Duration // since the last tick in which it had a packet
	Expires time.Duration // from now on, if it has no packet until then
	// Opens is where a packet that opens the flow would go if there were no word, and Continues where any other packet would;
	// zero where nobody would take it, or if that depends on what other flows do until then.
	Opens, Continues FlowBackend
}

// FlowBackend is a backend that a flow goes to.
type FlowBackend struct {
	Name    string
	Address netip.Addr
	Slot    uint32
}

// Flow tells what there is to know about the flow from source to destination. It fails if no service takes that.
func (e *Engine) Flow(source, destination netip.AddrPort, protocol uint8) (Flow, error) {
	snap, now := e.snapshot.Load(), e.clock()
	src, dst := packet.FromNetip(source.Addr()), packet.FromNetip(destination.Addr())
	number, reason := snap.vips.find(dst, protocol, destination.Port())
	switch reason {
	case packet.NotVIP:
		return Flow{}, fmt.Errorf("%s is not the VIP of a service", destination.Addr())
	case packet.NoService:
		return Flow{}, fmt.Errorf("no service of the VIP %s takes %s port %d", destination.Addr(), protocolName(protocol), destination.Port())
	}
	if source.Addr().Unmap().Is4() != destination.Addr().Unmap().Is4() {
		return Flow{}, fmt.Errorf("source %s and destination %s are of two families", source, destination)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	f := Flow{Service: e.serviceNames()[number], Hash: packet.FlowHash(&e.keys.Flow, src, dst, source.Port(), destination.Port(), protocol)}
	backend := func(slot uint32) FlowBackend {
		st := &e.slots.states[slot]
		return FlowBackend{Name: st.backend, Address: st.key.address, Slot: slot}
	}
	tick := conntrack.Tick(now)
	_, word := e.table.Lookup(f.Hash)
	slot := word.Slot()
	if word != 0 && int(slot) < len(snap.targets) && uint32(snap.targets[slot].service) == number && !snap.lives[slot].Expired(word, tick) {
		f.Found, f.Word, f.Backend = true, word, backend(slot)
		age := conntrack.Age(tick, word.Tick())
		f.Idle, f.Expires = ticksTime(age), ticksTime(snap.lives[slot][word.State()]-min(age, snap.lives[slot][word.State()]))
	}
	s, hash := &snap.services[number], f.Hash
	if s.source != (packet.Addr{}) {
		hash = packet.FlowHash(&e.keys.Flow, packet.Addr{Hi: src.Hi & s.source.Hi, Lo: src.Lo & s.source.Lo}, dst, 0, 0, protocol)
	}
	if s.agrees {
		slot, ok := s.New(e.keys.Mix, hash, &e.live, 0, now)
		if !s.tcp {
			slot, ok = s.Datagram(e.keys.Mix, hash, &e.live, 0, now)
		}
		if ok {
			f.Opens = backend(slot)
		}
		if !s.tcp {
			f.Continues = f.Opens
			return f, nil
		}
	}
	if slot, ok := s.Existing(e.keys.Mix, hash, &e.live, now); ok && s.tcp {
		f.Continues = backend(slot)
	}
	return f, nil
}

const (
	// topHalving is how often the counts of sources are halved.
	topHalving = time.Minute
	// TopWindow is about how far back TopSources looks: what came in it makes up three quarters of a steady count.
	TopWindow = 2 * topHalving
	// synSample is of how many SYNs to a service one is counted for TopSYNs.
	synSample = 8
)

// FlowLine is the line of the flow table in which the word of a flow is looked for first.
func (e *Engine) FlowLine(hash uint64) uint64 { return hash % uint64(e.table.Lines()) }

// Top is what sources are counted for.
type Top uint8

const (
	TopFlows    Top = iota // flows that got a word
	TopSYNs                // SYNs of flows without a usable word, to services with a defence: one in synSample, for as many
	TopPackets             // packets, as estimated from one of each batch, and some of the fast path's
	TopPrefixes            // the same by prefix: 16 bits of IPv4 addresses, 32 of IPv6
	NumTops
)

// Name is what a count is of, in words: an address, an IPv6 prefix of 64 bits, or a prefix of TopPrefixes.
func (by Top) Name(c guard.Count) string {
	source := packet.Addr{Hi: c.Hi, Lo: c.Lo}.Netip()
	switch {
	case by == TopPrefixes && source.Is4():
		return netip.PrefixFrom(source, guard.PrefixBits4).String()
	case by == TopPrefixes:
		return netip.PrefixFrom(source, guard.PrefixBits6).String()
	case source.Is6():
		return netip.PrefixFrom(source, 64).String()
	}
	return source.String()
}

// topCounts are the sources that do most of something, by Top. One goroutine at a time uses it.
type topCounts struct {
	of     [NumTops]*guard.Top
	halved int64 // when the counts were halved last, CLOCK_MONOTONIC ns
}

func newTopCounts(key uint64, now int64) (t topCounts) {
	t.halved = now
	for i := range t.of {
		t.of[i] = guard.NewTop(key)
	}
	return t
}

// age halves the counts if it is time.
func (t *topCounts) age(now int64) {
	if now-t.halved <= int64(topHalving) {
		return
	}
	for _, top := range t.of {
		top.Halve()
	}
	t.halved = now
}

// packet counts a packet that stands for n, by its source.
func (t *topCounts) packet(source packet.Addr, n int) {
	hi, lo := guard.Source(source.Hi, source.Lo)
	t.of[TopPackets].AddN(hi, lo, uint64(n))
	hi, lo = guard.Prefix(source.Hi, source.Lo)
	t.of[TopPrefixes].AddN(hi, lo, uint64(n))
}

// TopSources returns the sources that have done most of something in the last minutes: each minute, all counts are halved. Of
// IPv6 sources it is the /64 that counts; of TopPrefixes see there. Each worker is asked between two of its batches.
func (e *Engine) TopSources(by Top) (sources []guard.Count, total uint64) {
	e.mu.Lock()
	workers := slices.Clone(e.workers)
	e.mu.Unlock()
	lists, totals := make([][]guard.Count, len(workers)), make([]uint64, len(workers))
	var asked sync.WaitGroup
	for i, w := range workers {
		asked.Go(func() { // an idle one answers when it wakes up
			w.Do(func() { lists[i], totals[i] = w.tops.of[by].AppendTo(nil), w.tops.of[by].Total() })
		})
	}
	asked.Wait()
	e.sampled.Lock()
	top := e.fastTops.of[by]
	lists, totals = append(lists, top.AppendTo(nil)), append(totals, top.Total())
	e.sampled.Unlock()
	for _, n := range totals {
		total += n
	}
	sources = guard.Merge(lists...)
	if by == TopSYNs {
		total *= synSample
		for i := range sources {
			sources[i].N *= synSample
			sources[i].Error *= synSample
		}
	}
	return sources, total
}
