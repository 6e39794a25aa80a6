package forwarder

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/nexthop"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

// previousTableNanos is how long packets of unknown flows go by the lookup table from before a change of a service's backends.
const previousTableNanos = int64(60 * time.Second)

// Lifetimes of words without traffic, in ticks of 2.15 s. A TCP connection may be silent for two hours, the longest that the
// table's clock can tell; a handshake or a flow that sent one packet gets a minute.
var (
	tcpLife = conntrack.Life{
		conntrack.Probation:   conntrack.Ticks(time.Minute),
		conntrack.Established: conntrack.Ticks(2 * time.Hour),
		conntrack.Closing:     conntrack.Ticks(30 * time.Second),
	}
	udpLife = conntrack.Life{
		conntrack.Probation:   conntrack.Ticks(30 * time.Second),
		conntrack.Established: conntrack.Ticks(2 * time.Minute),
		conntrack.Closing:     conntrack.Ticks(30 * time.Second),
	}
)

// EngineConfig is what an Engine is made of.
type EngineConfig struct {
	Keys  Keys
	Words []uint64     // memory of the flow table; conntrack.WordsFor says how many
	Clock func() int64 // CLOCK_MONOTONIC, ns
}

// Engine is the part of a node that all workers share: flow table, admit words, snapshot, counters. All methods may be
// called from any goroutine and never wait for a worker.
type Engine struct {
	keys  Keys
	clock func() int64
	table *conntrack.Table
	words int
	admit []atomic.Uint32 // by slot; see maglev.Admit
	// fragments are the datagrams of which fragments have come lately.
	fragments *fragmentTable
	// unresolved are destinations on a link of the node whose Ethernet address a worker missed.
	unresolved chan netip.Addr
	snapshot   atomic.Pointer[Snapshot]

	applying sync.Mutex // one Apply at a time; taken before mu

	mu         sync.Mutex
	generation uint64
	tunnel     Tunnel
	services   map[string]*serviceState
	numbers    []bool // service numbers in use
	slots      slotTable
	hops       map[netip.Addr]Hop
	routes     *nexthop.Routes
	ways       []Hop // of routes
	workers    []*Worker
	census     conntrack.Census // of the last full sweep
}

// serviceState is the control side of a service.
type serviceState struct {
	spec   ServiceSpec
	number uint32
	live   service
	// base is what the workers' counters of this service number stood at when it was given out; retired is what slots that
	// the service no longer has had counted.
	base    serviceCounts
	retired slotCounts
}

// NewEngine makes an engine without services.
func NewEngine(c EngineConfig) (*Engine, error) {
	table, err := conntrack.New(c.Words)
	if err != nil {
		return nil, fmt.Errorf("flow table: %w", err)
	}
	e := &Engine{
		keys:  c.Keys,
		clock: c.Clock,
		table: table,
		words: len(c.Words),
		admit: make([]atomic.Uint32, conntrack.MaxSlots),

		fragments:  new(fragmentTable),
		unresolved: make(chan netip.Addr, 64),

		services: map[string]*serviceState{},
		slots:    slotTable{byKey: map[slotKey]uint32{}},
		hops:     map[netip.Addr]Hop{},
	}
	e.rebuild()
	return e, nil
}

// Apply makes spec what is forwarded from now on, whole: workers see either the old or the new. A service whose backends did
// not change keeps its lookup table; one whose backends changed keeps the old table beside the new one for a minute. Flows of
// removed backends go on. On an error nothing has changed.
func (e *Engine) Apply(spec Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	e.applying.Lock()
	defer e.applying.Unlock()
	// Lookup tables take a while: build them before anybody has to wait for the lock.
	pools := make([]*maglev.Pool, len(spec.Services))
	sorted := make([][]BackendSpec, len(spec.Services))
	for i := range spec.Services {
		sorted[i] = spec.Services[i].sortedBackends()
		names := make([]string, len(sorted[i]))
		for j, b := range sorted[i] {
			names[j] = b.Name
		}
		if e.sameNames(spec.Services[i].Name, names) {
			continue
		}
		table, err := maglev.Build(names, maglev.DefaultSize)
		if err != nil {
			return fmt.Errorf("service %q: lookup table: %w", spec.Services[i].Name, err)
		}
		pools[i] = &maglev.Pool{Table: table}
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	if e.slotsNeeded(spec) > conntrack.MaxSlots {
		return errors.New("too many backends: slots of removed ones are not free yet; try again after the next sweep of the flow table")
	}
	e.tunnel = spec.Tunnel
	now := e.clock()
	wanted := map[string]bool{}
	for _, s := range spec.Services {
		wanted[s.Name] = true
	}
	for name, s := range e.services {
		if !wanted[name] {
			e.removeService(s, now)
		}
	}
	for i := range spec.Services {
		e.applyService(spec.Services[i], sorted[i], pools[i], now)
	}
	e.rebuild()
	return nil
}

// sameNames says whether a service's lookup table is already that of these names, and can be kept.
func (e *Engine) sameNames(service string, names []string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.services[service]
	return s != nil && slices.EqualFunc(s.spec.sortedBackends(), names, func(b BackendSpec, n string) bool { return b.Name == n })
}

// slotsNeeded counts the slots in use once spec is applied.
func (e *Engine) slotsNeeded(spec Spec) int {
	n := 0
	for i := range e.slots.states {
		if e.slots.states[i].phase != slotFree {
			n++
		}
	}
	for _, s := range spec.Services {
		for _, b := range s.Backends {
			if _, ok := e.slots.byKey[slotKey{s.Name, b.Name, b.Address, b.Port}]; !ok {
				n++
			}
		}
	}
	return n
}

func (e *Engine) removeService(s *serviceState, now int64) {
	for i := range e.slots.states {
		st := &e.slots.states[i]
		if (st.phase == slotActive || st.phase == slotLeaving) && st.service == s.number {
			e.slots.quarantine(uint32(i), now, e.generation+1)
		}
	}
	e.numbers[s.number] = false
	delete(e.services, s.spec.Name)
}

// applyService makes one service what its spec says. pool is nil if the present lookup table can be kept.
func (e *Engine) applyService(spec ServiceSpec, backends []BackendSpec, pool *maglev.Pool, now int64) {
	s := e.services[spec.Name]
	if s == nil {
		s = &serviceState{number: e.takeNumber()}
		s.base = e.sumService(s.number)
		e.services[spec.Name] = s
	}
	slots := make([]uint32, len(backends))
	mine := map[uint32]bool{}
	for i, b := range backends {
		slot, fresh, ok := e.slots.take(slotKey{spec.Name, b.Name, b.Address, b.Port})
		if !ok {
			panic("forwarder: no slot left although slotsNeeded counted them")
		}
		st := &e.slots.states[slot]
		if fresh {
			*st = slotState{key: slotKey{spec.Name, b.Name, b.Address, b.Port}, service: s.number, since: now, base: e.sumSlot(slot)}
		}
		st.phase = slotActive
		e.admit[slot].Store(uint32(b.Admit))
		slots[i], mine[slot] = slot, true
	}
	for i := range e.slots.states {
		st := &e.slots.states[i]
		if st.phase == slotActive && st.service == s.number && !mine[uint32(i)] {
			st.phase, st.since = slotLeaving, now
			e.admit[i].Store(uint32(maglev.MakeAdmit(maglev.Draining, 0)))
		}
	}
	old := s.live.pool
	switch {
	case old == nil:
		s.live.pool = &maglev.Pool{Table: pool.Table, Slots: slots}
	case pool != nil:
		s.live.previous, s.live.previousUntil = old, now+previousTableNanos
		s.live.pool = &maglev.Pool{Table: pool.Table, Slots: slots}
	case !slices.Equal(old.Slots, slots): // a backend has another address now
		s.live.previous, s.live.previousUntil = old, now+previousTableNanos
		s.live.pool = &maglev.Pool{Table: old.Table, Slots: slots}
	}
	s.live.tcp, s.live.reject = spec.Protocol == protoTCP, spec.Reject
	s.spec = spec
}

func (e *Engine) takeNumber() uint32 {
	for i, used := range e.numbers {
		if !used {
			e.numbers[i] = true
			return uint32(i)
		}
	}
	e.numbers = append(e.numbers, true)
	return uint32(len(e.numbers) - 1)
}

// SetHops tells how each backend's address is reached now. Addresses that are missing have no route. The engine keeps the map.
func (e *Engine) SetHops(hops map[netip.Addr]Hop) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !maps.Equal(e.hops, hops) {
		e.hops = hops
		e.rebuild()
	}
}

// SetRoutes tells how the replies of NAT backends reach their clients: hops[i] is way i of routes. The engine keeps both.
func (e *Engine) SetRoutes(routes *nexthop.Routes, hops []Hop) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.routes != routes || !slices.Equal(e.ways, hops) {
		e.routes, e.ways = routes, hops
		e.rebuild()
	}
}

// resolve asks for the Ethernet address of a destination on a link of the node. A worker calls it; when many are asked for
// already, the question is left out, and comes again with the next packet.
func (e *Engine) resolve(a packet.Addr) {
	select {
	case e.unresolved <- a.Netip():
	default:
	}
}

// SetAdmit sets what a backend takes from now on: one atomic store, nothing is rebuilt. It reports whether there is such a
// backend.
func (e *Engine) SetAdmit(service, backend string, a maglev.Admit) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.services[service]
	if s == nil {
		return false
	}
	for i := range s.spec.Backends {
		b := &s.spec.Backends[i]
		if b.Name != backend {
			continue
		}
		b.Admit = a
		e.admit[e.slots.byKey[slotKey{service, b.Name, b.Address, b.Port}]].Store(uint32(a))
		return true
	}
	return false
}

// Addresses returns the addresses of all backends whose packets may have to be sent, leaving ones included.
func (e *Engine) Addresses() []netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	seen := map[netip.Addr]bool{}
	var out []netip.Addr
	for k := range e.slots.byKey {
		if !seen[k.address] {
			seen[k.address] = true
			out = append(out, k.address)
		}
	}
	return out
}
