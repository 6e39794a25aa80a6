//go:build linux

package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/nexthop"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/internal/affinity"
	"github.com/sluice-lb/sluice/internal/shm"
)

const (
	// maxVIPs, maxReplies and maxACL bound the sets of VIPs, of sources of replies, and of prefixes in access lists, that the XDP
	// program looks up.
	maxVIPs    = MaxServices
	maxReplies = conntrack.MaxSlots
	maxACL     = 4 << 20 // as many as a configuration may have
	maxProved  = 1 << 28 // words; a BPF array takes less than 4 GiB
	// singleBuffer is the largest MTU, in bytes, with which a frame fits one buffer, whatever the driver keeps for itself
	// there (veth_xdp_set in drivers/net/veth.c: 3,504).
	singleBuffer = 3500
	// neighbourWait is how long Apply waits for new backends' neighbours to answer before it lets traffic go to them.
	neighbourWait = 300 * time.Millisecond
)

// InterfaceConfig is one interface that packets to VIPs arrive at or leave by.
type InterfaceConfig struct {
	Name   string
	Mode   xsk.Mode
	Fast   FastMode
	Queues int    // receive queues to take, from 0; 0 means all
	VLAN   uint16 // 802.1Q tag with which packets to VIPs arrive, and leave; 0: none
}

// FastMode is whether packets of known flows that arrive on an interface are forwarded by the XDP program.
type FastMode uint8

// The modes.
const (
	FastAuto FastMode = iota // in copy mode, if the driver can send for XDP programs
	FastOn
	FastOff
)

// NodeConfig is what does not change while a node runs.
type NodeConfig struct {
	Keys  Keys
	Flows uint64 // flows that the table is made for
	// Limits is how many words the table of limits has, and the one of sources that proved their address.
	Limits uint64
	// TableFD is the descriptor of the flow table of a process before this one, which Node.TableFD returned there; 0: none. The
	// node owns it.
	TableFD int
	// DirectoryFile is where it is kept what the table's words mean, for a process after this one; empty: nowhere.
	DirectoryFile string
	Interfaces    []InterfaceConfig
	// Services and Backends are how many there are at first: the fast path makes room for more.
	Services, Backends int
	Workers            int   // at most so many; 0: as many as cores and queues allow
	CPUs               []int // cores that workers are pinned to; empty: those the process may use
	BusyPoll           bool
	Log                *slog.Logger
	// Orphans says what the XDP programs do while no daemon runs, of interfaces with a fast path, and Pins is the directory, in a BPF file
	// system, by which they outlive the process, if Orphans says so, and where what another one has left is found; empty: there is none.
	Orphans steer.Orphans
	Pins    string
	// Notice is told of what has begun and ended, after the log was; nil: nobody is. It must not wait for the node.
	Notice func(Notice)
}

// Notice is the beginning or the end of a flood or an overload, for who keeps a record of them.
type Notice struct {
	Service string // empty: it concerns the node
	Began   bool
	Text    string // what it is, in words
}

// Node is an Engine attached to this machine: it owns the XDP programs, the sockets, the workers, and what follows
// routes, neighbours and links. Its methods may be called from any goroutine.
type Node struct {
	*Engine
	config    NodeConfig
	log       *slog.Logger
	tableFile *tableFile
	steer     *steer.Steer
	// provedMemory is that of the set of proved sources, which the XDP program reads; admitMemory that of the admit words, if it does.
	provedMemory, admitMemory *shm.Memory
	// multiBuffer says that frames may be larger than a buffer, and then come in several.
	multiBuffer bool
	watcher     *nexthop.Watcher
	lanes       []*lane
	stop        atomic.Bool

	// changed has room for one notice that a hop or a link is not what it was.
	changed chan struct{}
	// watching ends with what ended the watcher.
	watching chan error

	mu   sync.Mutex // nics' state, and the order of Apply's steps
	nics []*nic
	// What steer was told last.
	replies []steer.Source
	own     []netip.Prefix
	guePort uint16
	acl     *steer.ACL

	shedBefore atomic.Pointer[shedCounts] // what had been shed when the last overload began; nil: there was none
}

// lane is one worker with its UMEM.
type lane struct {
	worker  *Worker
	umem    *xsk.Umem
	cpu     int
	running bool // its goroutine runs: what it owns is changed through Worker.Do
}

// NewClock returns a function that reads CLOCK_MONOTONIC in nanoseconds, through the runtime, without a system call.
func NewClock() (func() int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return nil, fmt.Errorf("clock_gettime CLOCK_MONOTONIC: %w", err)
	}
	start, base := time.Now(), ts.Nano()
	return func() int64 { return base + int64(time.Since(start)) }, nil
}

// StartNode loads and attaches everything. On an error nothing stays behind. Packets to VIPs go to the kernel's stack
// until Apply names the VIPs and Run runs the workers. It raises GOMAXPROCS to the number of workers + 2 if it is less: a
// worker never yields, and the collector and everything else need processors of their own. It keeps all threads of the process
// off the workers' cores, if there are others.
func StartNode(c NodeConfig) (_ *Node, err error) {
	if len(c.Interfaces) == 0 || len(c.Interfaces) > MaxInterfaces {
		return nil, fmt.Errorf("%d interfaces: a node needs 1 to %d", len(c.Interfaces), MaxInterfaces)
	}
	n := &Node{acl: new(steer.ACL), config: c, log: c.Log, changed: make(chan struct{}, 1), watching: make(chan error, 1)}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	clock, err := NewClock()
	if err != nil {
		return nil, err
	}
	var adopt *Directory
	if n.tableFile, adopt, err = openTable(&c, clock()); err != nil {
		return nil, err
	}
	words, err := guard.LimiterWords(c.Limits)
	if err != nil {
		return nil, err
	}
	proved, lines, err := shm.NewArrayMap("sluice_proved", int(min(words, maxProved)))
	if err != nil {
		return nil, fmt.Errorf("proved sources: %w", err)
	}
	defer lines.Close() // the program and the memory keep what they need
	n.provedMemory = proved
	if n.steer, err = steer.New(maxVIPs, maxReplies, maxACL); err != nil {
		return nil, err
	}
	fast, admit, err := n.shareFlows()
	if err != nil {
		return nil, err
	}
	n.Engine, err = NewEngine(EngineConfig{
		Fast: fast, Admit: admit,
		Keys: c.Keys, Words: n.tableFile.words, Clock: clock, Adopt: adopt, Record: n.tableFile.record, Swept: n.tableFile.swept,
		LimitWords: make([]uint64, words), ProvedWords: proved.Words(),
	})
	if err != nil {
		return nil, err
	}
	n.log.Info("flow table", "flows", len(n.tableFile.words)/2, "bytes", len(n.tableFile.words)*8, "huge_pages", n.tableFile.memory.Huge())
	if n.watcher, err = nexthop.New(c.Log, n.notice); err != nil {
		return nil, err
	}
	go func() { n.watching <- n.watcher.Run(context.Background()) }()
	key, mask := n.proved.Shared()
	if err := n.steer.ShareProved(lines, key, mask); err != nil {
		return nil, err
	}
	for i, ic := range c.Interfaces {
		n.nics = append(n.nics, &nic{InterfaceConfig: ic, index: i})
		for _, l := range n.watcher.Links() {
			n.multiBuffer = n.multiBuffer || l.Name == ic.Name && l.MTU > singleBuffer
		}
	}
	if err := n.makeLanes(); err != nil {
		return nil, err
	}
	for _, nc := range n.nics {
		if err := n.attach(nc); err != nil {
			return nil, err
		}
	}
	n.log.Info("workers", "workers", len(n.lanes), "cpus", n.cpus())
	return n, nil
}

// makeLanes decides how many workers there are, min(cores, smallest queue count), and makes their UMEMs.
func (n *Node) makeLanes() error {
	cpus, err := allowedCPUs(n.config.CPUs)
	if err != nil {
		return err
	}
	workers := len(cpus)
	if w := n.config.Workers; w > 0 {
		workers = min(workers, w)
	}
	sockets := 0
	for _, nc := range n.nics {
		queues, err := nc.countQueues()
		if err != nil {
			return err
		}
		workers = min(workers, queues)
		sockets += queues
	}
	if want := workers + 2; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
	for i := range workers {
		o := xsk.Options{BusyPoll: n.config.BusyPoll, MultiBuffer: n.multiBuffer}
		o.Frames = o.FramesFor((sockets + workers - 1) / workers)
		umem, err := xsk.NewUmem(o)
		if err != nil {
			return err
		}
		n.lanes = append(n.lanes, &lane{umem: umem, cpu: cpus[i]})
		n.lanes[i].worker = n.NewWorker(workerIO(umem))
	}
	return keepOff(n.cpus())
}

// keepOff has the threads of the process run on other cores than the workers', if it may use any: a worker waits for who is on its
// core, some milliseconds at a time.
func keepOff(workers []int) error {
	cpus, err := affinity.Allowed()
	if err != nil {
		return err
	}
	cpus = slices.DeleteFunc(cpus, func(cpu int) bool { return slices.Contains(workers, cpu) })
	if len(cpus) == 0 {
		return nil
	}
	return affinity.PinAll(cpus...)
}

// allowedCPUs returns the cores that workers may be pinned to.
func allowedCPUs(wanted []int) ([]int, error) {
	cpus, err := affinity.Allowed()
	if err != nil {
		return nil, err
	}
	if len(wanted) > 0 {
		cpus = slices.DeleteFunc(cpus, func(cpu int) bool { return !slices.Contains(wanted, cpu) })
	}
	if len(cpus) == 0 || len(wanted) > len(cpus) {
		return nil, fmt.Errorf("cpus %v: not all of them may be used by this process; see taskset -p %d", wanted, os.Getpid())
	}
	return cpus, nil
}

func (n *Node) cpus() (cpus []int) {
	for _, l := range n.lanes {
		cpus = append(cpus, l.cpu)
	}
	return cpus
}

// Run runs the workers and everything that follows the machine, until ctx is done or a worker cannot go on. It may be
// called once. Close must follow.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers, helpers sync.WaitGroup
	n.mu.Lock()
	for _, l := range n.lanes {
		l.running = true
		workers.Go(func() {
			if err := n.runLane(l); err != nil {
				cancel(err)
			}
		})
	}
	n.mu.Unlock()
	helpers.Go(func() { affinity.Background(func() { n.Sweep(ctx) }) })
	helpers.Go(func() { n.followLinks(ctx) })
	helpers.Go(func() { n.beat(ctx) })
	helpers.Go(func() { n.followClients(ctx) })
	helpers.Go(func() { n.followFloods(ctx) })
	helpers.Go(func() { n.followOverload(ctx) })
	helpers.Go(func() { n.followRefused(ctx) })
	select {
	case <-ctx.Done():
	case err := <-n.watching:
		cancel(fmt.Errorf("follow routes and neighbours: %w", err))
	}
	helpers.Wait()

	n.mu.Lock()
	n.leave() // from now on the fast path goes on alone, or the kernel sees packets to VIPs, and its blackhole routes take them
	n.mu.Unlock()
	time.Sleep(10 * time.Millisecond) // frames that were steered before are forwarded still
	n.stop.Store(true)
	workers.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// runLane is the goroutine of one worker: its thread is its own, on its own core.
func (n *Node) runLane(l *lane) error {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its affinity with it
	if err := affinity.Pin(l.cpu); err != nil {
		n.log.Warn("worker is not pinned", "worker", l.worker.id, "cpu", l.cpu, "error", err)
	} else {
		l.worker.cpu.Store(int64(l.cpu))
	}
	return l.worker.Run(&n.stop, func(err error) {
		n.log.Error("worker started again; its batch is counted under internal", "worker", l.worker.id, "error", err)
	})
}

// Apply makes spec what is forwarded from now on. See Engine.Apply. VIPs are steered to the workers only once these know
// them, and no longer before these forget them; each leaves a blackhole route to the kernel.
func (n *Node) Apply(spec Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var vips, kept []netip.Addr
	for _, s := range spec.Services {
		vips = append(vips, s.VIP.Unmap())
	}
	for _, v := range n.VIPs() {
		if slices.Contains(vips, v) {
			kept = append(kept, v)
		}
	}
	addrs := n.Addresses()
	for _, s := range spec.Services {
		for _, b := range s.Backends {
			addrs = append(addrs, b.Address.Unmap())
		}
	}
	known := n.watcher.Hops()
	if err := n.watcher.Track(addrs); err != nil {
		return err
	}
	n.waitForNeighbours(known)
	nat := slices.ContainsFunc(spec.Services, func(s ServiceSpec) bool { return s.Mode == NAT })
	if err := n.watcher.FollowRoutes(nat); err != nil {
		return err
	}
	n.setHops()
	if err := nexthop.EnsureBlackhole(vips); err != nil {
		return err
	}
	if err := n.steer.SetVIPs(kept); err != nil {
		return err
	}
	acl := newACL(&spec)
	if err := n.steer.SetACL(acl); err != nil {
		return errors.Join(err, n.steer.SetVIPs(n.VIPs())) // the old ones are still served
	}
	if err := n.Engine.Apply(spec); err != nil {
		return errors.Join(err, n.steer.SetACL(n.acl), n.steer.SetVIPs(n.VIPs()))
	}
	n.acl = acl
	if err := n.steer.SetBanBits(spec.Limits.prefixes()); err != nil {
		return err
	}
	if err := n.steer.SetVIPs(vips); err != nil {
		return err
	}
	if err := n.setSteer(); err != nil {
		return err
	}
	if err := n.activate(); err != nil {
		return err
	}
	return nexthop.RemoveBlackholesExcept(vips)
}

// waitForNeighbours gives addresses that were not known the time of an ARP exchange.
func (n *Node) waitForNeighbours(known map[netip.Addr]nexthop.Hop) {
	for deadline := time.Now().Add(neighbourWait); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		missing := false
		for a, h := range n.watcher.Hops() {
			if _, old := known[a]; !old && h.State == nexthop.NoNeighbour {
				missing = true
			}
		}
		if !missing {
			return
		}
	}
}

// notice is called by the watcher, on its own goroutine, when a hop or a link is not what it was. It must not wait: who
// holds n.mu may be waiting for the watcher.
func (n *Node) notice() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// setHops tells the engine how backends and clients are reached now. n.mu is held.
func (n *Node) setHops() {
	links := n.egress()
	hops := map[netip.Addr]Hop{}
	for a, h := range n.watcher.Hops() {
		hops[a] = links.hop(&h)
	}
	n.SetHops(hops)
	routes := n.watcher.Routes()
	if routes == nil {
		n.SetRoutes(nil, nil)
		return
	}
	ways := routes.Ways()
	out := make([]Hop, len(ways))
	for i := range ways {
		out[i] = links.hop(&ways[i])
	}
	n.SetRoutes(routes, out)
}

// egressLinks is where a packet can leave, by the ifindex that routes name: an interface of the node, or a VLAN above it.
type egressLinks map[int]egressLink

type egressLink struct {
	nic  *nic
	vlan uint16
}

// egress is what routes can name now. n.mu is held.
func (n *Node) egress() egressLinks {
	out := egressLinks{}
	for index, l := range n.watcher.Links() {
		for _, nc := range n.nics {
			switch {
			case nc.ifindex == 0:
			case index == nc.ifindex:
				out[index] = egressLink{nc, nc.VLAN}
			case l.Parent == nc.ifindex && l.VLAN != 0:
				out[index] = egressLink{nc, l.VLAN}
			}
		}
	}
	return out
}

// hop translates a hop of the watcher.
func (links egressLinks) hop(h *nexthop.Hop) Hop {
	hop := Hop{OnLink: !h.Gateway.IsValid(), Src: h.Src, Dst: h.Dst, Source: h.Source, MTU: h.MTU}
	x, ours := links[h.Link]
	switch {
	case h.State == nexthop.NoRoute || !ours:
		hop.Problem = packet.NoRoute
	case !x.nic.up():
		hop.Problem = packet.EgressDown
	case h.State == nexthop.NoNeighbour:
		hop.Problem = packet.NoNeighbour
	}
	if ours {
		hop.Egress, hop.VLAN = x.nic.index, x.vlan
	}
	return hop
}

// setSteer tells the XDP program which replies are the workers' and what a loop looks like. n.mu is held.
func (n *Node) setSteer() error {
	if replies := n.Replies(); !slices.Equal(replies, n.replies) {
		if err := n.steer.SetReplies(replies); err != nil {
			return err
		}
		n.replies = replies
	}
	tunnel := n.Tunnel()
	var own []netip.Prefix
	for _, a := range n.watcher.Addresses() {
		own = append(own, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, p := range []netip.Prefix{tunnel.Source4, tunnel.Source6} {
		if p.IsValid() {
			own = append(own, p)
		}
	}
	if slices.Equal(own, n.own) && tunnel.Port == n.guePort {
		return nil
	}
	if err := n.steer.SetLoops(own, tunnel.Port); err != nil {
		return err
	}
	n.own, n.guePort = own, tunnel.Port
	return nil
}

// followClients has the kernel find out the Ethernet addresses of clients on the node's own links.
func (n *Node) followClients(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-n.unresolved:
			n.watcher.Resolve(a)
		}
	}
}

// TableFD returns the descriptor of the flow table's memory, for who keeps it for the process after this one. It stays the
// node's.
func (n *Node) TableFD() int { return n.tableFile.memory.FD() }

// Close takes everything down that StartNode made. VIPs' blackhole routes stay: without them the kernel would answer or
// loop what still arrives. After Run has returned, or if it was never called.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	n.leave()
	for _, nc := range n.nics {
		nc.sockets = nil
	}
	for _, l := range n.lanes {
		errs = append(errs, l.umem.Close()) // and its sockets
	}
	if n.steer != nil {
		errs = append(errs, n.steer.Close())
	}
	if n.watcher != nil {
		n.watcher.Close()
	}
	if n.tableFile != nil {
		errs = append(errs, n.tableFile.close())
	}
	if n.provedMemory != nil {
		errs = append(errs, n.provedMemory.Close())
	}
	if n.admitMemory != nil {
		errs = append(errs, n.admitMemory.Close())
	}
	return errors.Join(errs...)
}
