package forwarder

import (
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
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/maglev"
)

// previousTableNanos is how long packets of unknown flows go by the lookup table from before a change of a service's backends;
// after several changes, by the one that was in force so long ago.
const previousTableNanos = int64(60 * time.Second)

// Lifetimes of words without traffic, in ticks of 2.15 s, of services that name none. A TCP connection may be silent for two
// hours, the longest that the table's clock can tell, also one that had all of its packets within a tick, as an idle one of
// a client's pool: when the table is full, words on probation give way all the same.
var (
	tcpLife = conntrack.Life{
		conntrack.Probation:   conntrack.Ticks(2 * time.Hour),
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
	// Adopt says what the words of a predecessor mean that Words holds; nil: Words is empty.
	Adopt *Directory
	// Record is given what words mean, before any worker can write a word that means something new; nil: nobody wants to know.
	Record func(*Directory)
	// LimitWords and ProvedWords are memory of the tables of limits and of sources that proved their address, see package guard;
	// nil: no limits, and room for few sources.
	LimitWords, ProvedWords []uint64
	Wall                    func() int64 // time of day, seconds; nil: the machine's
	// Swept is told the time (Clock) after each full sweep; nil: nobody wants to know.
	Swept func(now int64)
	// Fast forwards packets before they get to a worker; nil: there is no such thing. Admit is the memory of the admit words that it
	// reads, conntrack.MaxSlots of them; nil: the engine's own.
	Fast  FastPath
	Admit []atomic.Uint32
}

// Engine is the part of a node that all workers share: flow table, admit words, snapshot, counters. All methods may be
// called from any goroutine and never wait for a worker.
type Engine struct {
	keys  Keys
	clock func() int64
	table *conntrack.Table
	words int
	// live is what is known of each slot now: what it takes (written under mu), and how many words name it (counted by the
	// table).
	live maglev.Slots
	// fragments are the datagrams of which fragments have come lately.
	fragments *fragmentTable
	// unresolved are destinations on a link of the node whose Ethernet address a worker missed.
	unresolved chan netip.Addr
	snapshot   atomic.Pointer[Snapshot]
	defences
	overload overload

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
	changes    []TableChange    // what the last Apply did to lookup tables
	record     func(*Directory)
	onSwept    func(now int64)
	limits     Limits
	acl        []steer.Entry
	recorded   uint64 // Directory.Generation of the last one

	fast       FastPath
	fastExits  [MaxInterfaces]bool // where it can send
	fastTables []*maglev.Pool      // whose lookup tables it has, by service number
	fastFailed error               // why the last snapshot could not be published to it; nil: it was
	sampled    sync.Mutex          // over fastTops
	fastTops   topCounts           // of what the fast path forwards: packets and prefixes

	unreachable unreachables
	// signalReaders are those in use: what one takes, the others are to have too.
	signalReaders []*SignalReader
	signalNews    atomic.Pointer[[]chan struct{}] // theirs
}

// serviceState is the control side of a service.
type serviceState struct {
	spec   ServiceSpec
	number uint32
	live   service
	// detector looks for floods; switches counts how often the defence was switched for one.
	detector detector
	switches uint64
	flood    floodStart // of the last flood
	ceilings *ceilings  // of its limits; nil: it never had any
	// unknown is what had been counted of its unknown packets, by class, at the last LookShed.
	unknown [steer.ShedPortless]uint64
	// slots are those of the configured backends, by name.
	slots map[string]uint32
	// adopted says that live.Pool is a predecessor's: it can be the previous one, and no new flow can go by it.
	adopted bool
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
		live:  maglev.Slots{Admit: c.Admit, Flows: make([]atomic.Int32, conntrack.MaxSlots)},
		fast:  c.Fast,

		record: c.Record, onSwept: c.Swept,

		overload: newOverload(),

		unreachable: unreachables{counts: make([]uint64, conntrack.MaxSlots)},
		fastTops:    newTopCounts(c.Keys.Guard[0], c.Clock()),

		fragments:  new(fragmentTable),
		unresolved: make(chan netip.Addr, 64),

		services: map[string]*serviceState{},
		slots:    slotTable{byKey: map[slotKey]uint32{}},
		hops:     map[netip.Addr]Hop{},
	}
	if e.live.Admit == nil {
		e.live.Admit = make([]atomic.Uint32, conntrack.MaxSlots)
	}
	if e.defences, err = newDefences(&c); err != nil {
		return nil, err
	}
	e.table.Count(e.live.Flows)
	if c.Adopt != nil {
		if err := e.adopt(c.Adopt); err != nil {
			return nil, fmt.Errorf("flow table of a predecessor: %w", err)
		}
	}
	e.rebuild()
	return e, nil
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
	slot, ok := s.slots[backend]
	if ok {
		e.live.Admit[slot].Store(uint32(a))
	}
	return ok
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
