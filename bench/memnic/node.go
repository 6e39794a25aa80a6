//go:build linux

package memnic

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/nexthop"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/shm"
	"github.com/sluice-lb/sluice/maglev"
)

// nodeKey is what cases have in common that share a node.
type nodeKey struct {
	flows  int
	family string
	table  string
	full   bool
}

func (c *Case) node() nodeKey {
	family := c.Family
	if family == none {
		family = V4
	}
	return nodeKey{c.Flows, family, c.Table, c.Mix == Evict}
}

// node is an engine whose table knows some flows, with the lanes that drive its workers.
type node struct {
	nodeKey
	keys   forwarder.Keys
	engine *forwarder.Engine
	clock  *pausedClock
	words  []uint64
	table  *conntrack.Table // the words, for what the engine has no call for
	set    setting          // that was applied last
	// lanes are those of the workers, at each number one for what is acknowledged, and one for SYNs alone, which fill the worker's
	// memory of SYNs that wait for an answer.
	lanes, floods []*lane

	memory *shm.Memory
	array  *ebpf.Map
}

// setting is what Apply changes between the cases of a node.
type setting struct {
	mode    string
	limits  bool
	defence forwarder.Defence
}

func (c *Case) setting() setting {
	s := setting{mode: c.Mode, limits: c.Mix == Limits}
	switch c.Mix {
	case Cookie:
		s.defence = forwarder.DefenceCookie
	case Challenge:
		s.defence = forwarder.DefenceChallenge
	}
	return s
}

// floods says whether the case's packets are SYNs alone.
func (c *Case) floods() bool { return c.Mix == Misses || c.Mix == Cookie || c.Mix == Challenge }

// newNode makes a node for the cases, which have its key, and fills its table.
func newNode(key nodeKey, cases []Case, frames int) (_ *node, err error) {
	n := &node{nodeKey: key, clock: newPausedClock()}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	words, err := conntrack.WordsFor(uint64(key.flows))
	if err != nil {
		return nil, err
	}
	if err := haveMemory(words * 8); err != nil {
		return nil, err
	}
	if key.table == BPF {
		n.memory, n.array, err = shm.NewArrayMap("sluice_bench", int(words))
	} else {
		n.memory, err = shm.NewMemfd("sluice-bench", int(words*8))
	}
	if err != nil {
		return nil, err
	}
	n.words = n.memory.Words()
	if n.table, err = conntrack.New(n.words); err != nil {
		return nil, err
	}
	if n.keys, err = forwarder.DeriveKeys([]byte("benchmark seed 0")); err != nil {
		return nil, err
	}
	sources, err := guard.LimiterWords(1_000_000) // as the daemon has
	if err != nil {
		return nil, err
	}
	config := forwarder.EngineConfig{Keys: n.keys, Words: n.words, Clock: n.clock.read, ProvedWords: make([]uint64, sources)}
	workers, floods := 1, 0
	for i := range cases {
		c := &cases[i]
		if c.Mix == Limits {
			config.LimitWords = make([]uint64, sources)
		}
		if c.floods() {
			floods = max(floods, c.Workers)
		} else {
			workers = max(workers, c.Workers)
		}
	}
	if n.engine, err = forwarder.NewEngine(config); err != nil {
		return nil, err
	}
	for i := range workers + floods {
		l, err := newLane(n, i, frames)
		if err != nil {
			return nil, err
		}
		if i < workers {
			n.lanes = append(n.lanes, l)
		} else {
			n.floods = append(n.floods, l)
		}
	}
	return n, n.fill()
}

// fill has the first worker see a packet of each flow twice, the second in a later tick, so that all words are established. A
// node that is to be full then sees new flows until it is.
func (n *node) fill() error {
	if err := n.apply(setting{mode: IPIP}); err != nil {
		return err
	}
	l := n.lanes[0]
	for range 2 {
		for first := 0; first < n.flows; first += len(l.list) {
			l.generate(func(i int) { l.put(i, ackFrame, uint32((first+i)%n.flows), false) })
			if err := l.pass(len(l.list)); err != nil {
				return fmt.Errorf("fill the flow table: %w", err)
			}
		}
		n.clock.advance(5 * time.Second)
	}
	if n.full {
		for inserted := 0; inserted < len(n.words); inserted += len(l.list) / 2 {
			l.fresh(len(l.list) / 2)
			if err := l.pass(len(l.list)); err != nil {
				return fmt.Errorf("fill the flow table: %w", err)
			}
		}
	}
	return nil
}

// apply makes the service what a case needs. Its flows go on.
func (n *node) apply(s setting) error {
	if s == n.set {
		return nil
	}
	first := backends[n.family]
	source := netip.MustParseAddr("10.0.0.1")
	if n.family == V6 {
		source = netip.MustParseAddr("2001:db8::1")
	}
	service := forwarder.ServiceSpec{
		Name: "bench", VIP: vips[n.family], Protocol: packet.ProtoTCP,
		Ports: []forwarder.PortRange{{First: servicePort, Last: servicePort}}, Mode: modeOf(s.mode), Defence: s.defence,
	}
	hop := forwarder.Hop{OnLink: true, Src: packet.MAC{2, 0, 0, 0, 0, 1}, Dst: packet.MAC{2, 0, 0, 0, 0, 2}, Source: source, MTU: 1600}
	hops := map[netip.Addr]forwarder.Hop{}
	for i, a := 0, first; i < backendCount; i, a = i+1, a.Next() {
		service.Backends = append(service.Backends, forwarder.BackendSpec{
			Name: fmt.Sprintf("backend-%d", i), Address: a, Weight: 100, Admit: maglev.MakeAdmit(maglev.Up, maglev.All),
		})
		hops[a] = hop
	}
	n.engine.SetHops(hops)
	routes := nexthop.NewRoutes(map[netip.Prefix]nexthop.Hop{
		netip.MustParsePrefix("0.0.0.0/0"): {}, netip.MustParsePrefix("::/0"): {},
	})
	ways := make([]forwarder.Hop, len(routes.Ways()))
	for i := range ways {
		ways[i] = hop
	}
	n.engine.SetRoutes(routes, ways)
	spec := forwarder.Spec{Services: []forwarder.ServiceSpec{service}, Tunnel: forwarder.Tunnel{Port: guePort}}
	if s.limits { // which nobody exceeds
		spec.Limits = forwarder.Limits{PerSource: forwarder.Rates{Packets: 100_000_000, Burst: time.Second}}
	}
	if err := n.engine.Apply(spec); err != nil {
		return err
	}
	n.set = s
	return nil
}

const guePort = 6080

func modeOf(name string) forwarder.Mode {
	return map[string]forwarder.Mode{IPIP: forwarder.IPIP, L2: forwarder.L2, GUE: forwarder.GUE, NAT: forwarder.NAT}[name]
}

// close gives everything back.
func (n *node) close() (err error) {
	for _, l := range append(n.lanes, n.floods...) {
		err = errors.Join(err, l.nic.Umem().Close())
	}
	if n.memory != nil {
		err = errors.Join(err, n.memory.Close())
	}
	if n.array != nil {
		err = errors.Join(err, n.array.Close())
	}
	return err
}

// haveMemory refuses what would fill the machine's memory: a benchmark is to be refused, not killed.
func haveMemory(bytes uint64) error {
	const reserve = 1 << 30
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		var kib uint64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil && kib<<10 < bytes+reserve {
			return fmt.Errorf("needs %.1f GiB of free memory, there are %.1f", float64(bytes+reserve)/(1<<30), float64(kib)/(1<<20))
		}
	}
	return nil
}

// pausedClock is CLOCK_MONOTONIC without the time during which it was stopped. It is stopped at first. What it costs to read is
// the same in both states. The goroutine that measures starts and stops it while no worker runs.
type pausedClock struct {
	start   time.Time
	base    int64 // ns at start
	at      int64 // while stopped
	stopped bool
}

func newPausedClock() *pausedClock {
	return &pausedClock{start: time.Now(), at: int64(time.Hour), stopped: true}
}

func (c *pausedClock) read() int64 {
	now := c.base + int64(time.Since(c.start))
	if c.stopped {
		return c.at
	}
	return now
}

func (c *pausedClock) run() {
	c.start, c.base, c.stopped = time.Now(), c.at, false
}

func (c *pausedClock) stop() {
	c.at, c.stopped = c.read(), true
}

// advance sets a clock that is stopped forward.
func (c *pausedClock) advance(d time.Duration) { c.at += int64(d) }
