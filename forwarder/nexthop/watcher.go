//go:build linux

// Package nexthop tells where a packet for an address has to go: the egress link, the source address that the kernel
// prefers there, the gateway, the MTU, and the two Ethernet addresses that a frame needs. It asks the kernel
// (RTM_GETROUTE, so policy rules, multipath and learned path MTUs count), has the kernel keep the neighbours resolved,
// and follows every change of links, addresses, routes, rules and neighbours by netlink.
//
// Neighbours are kernel-managed (NTF_EXT_MANAGED): the kernel resolves them without traffic, and asks again every 5 s
// for one that does not answer. It leaves alone what it holds for reachable, though, for 15 to 45 s, and would notice a
// host that came back with another Ethernet address only then. So Run asks for a probe of those every 5 s; three
// unanswered probes, 3 s later, the neighbour is looked for anew.
//
// The caller gives a set of addresses to [Watcher.Track] and reads [Watcher.Hops]; Run keeps them fresh and calls
// changed when one of them, or a link, is no longer what it was. Nothing here is on the way of a packet: a worker sees
// the outcome as a ready-made header in its snapshot.
//
// For packets to anywhere, such as the replies of NAT backends to their clients, [Watcher.FollowRoutes] keeps the whole
// routing table, and [Routes.Find] finds the way of each packet in it.
//
// A watcher belongs to the network namespace of the thread that called [New]: its sockets are opened there, and its
// methods may be called from any goroutine on any thread afterwards. Everything that it returns is the caller's.
// Changing neighbours and routes needs CAP_NET_ADMIN.
package nexthop

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// State says whether a frame can be built for an address.
type State uint8

// The states of a hop.
const (
	NoRoute     State = iota // no usable route: none, a reject route, an address of this node, a link without Ethernet
	NoNeighbour              // a route, but the Ethernet address of its next hop is not known (yet, or any more)
	Ready                    // everything known
)

// String returns the state's name as it appears in logs and in the status output.
func (s State) String() string {
	switch s {
	case NoRoute:
		return "no_route"
	case NoNeighbour:
		return "no_neighbour"
	case Ready:
		return "ready"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Hop is the way to one address. Hops are comparable with ==.
type Hop struct {
	State   State
	Link    int        // ifindex of the egress link; 0 with NoRoute
	Src     [6]byte    // Ethernet address of the link
	Dst     [6]byte    // Ethernet address of the next hop; zero unless Ready
	Source  netip.Addr // source address that the kernel prefers on this way; zero when it names none
	Gateway netip.Addr // next hop; zero when the address is on-link. May be IPv6 for an IPv4 address (RFC 8950)
	MTU     int        // bytes of the largest IP packet: the least of the link's, the route's and the learned path MTU
	Problem string     // why the hop is not Ready, as a sentence; empty when it is
}

// LinkInfo is what the forwarder has to know of a network interface.
type LinkInfo struct {
	Name     string
	Up       bool    // administratively up, and with carrier
	Ethernet bool    // frames begin with an Ethernet header
	MAC      [6]byte // zero without Ethernet
	MTU      int     // bytes, without the Ethernet header
	VLAN     uint16  // id of the 802.1Q link; zero for other links
	Parent   int     // ifindex of the link that carries an 802.1Q link; zero for other links
}

// Watcher follows the routes and neighbours of a set of addresses.
type Watcher struct {
	log     *slog.Logger
	changed func()
	events  *nl.NetlinkSocket        // the subscription; read by the reader goroutine only
	handle  *netlink.Handle          // requests of the netlink package; one at a time, it locks itself
	sockets map[int]*nl.SocketHandle // requests that the netlink package has no call for

	// work is held by whoever asks the kernel and then applies the answers (Track, a pass of Run, Close), so that an
	// older answer never overwrites a newer one. It is taken before mu.
	work    sync.Mutex
	closed  bool // guarded by work
	probed  bool // managed is known; guarded by work
	failing bool // the last attempt to ask for neighbours failed; guarded by work
	plain   bool // set by tests before Track: ask as for a kernel without managed neighbours

	// mu guards what the reader goroutine changes. No system call is made under it.
	mu      sync.Mutex
	targets map[netip.Addr]*target
	links   mirror[int, LinkInfo]
	neighs  mirror[neighKey, neigh]
	addrs   mirror[addrKey, struct{}]
	kept    map[neighKey]time.Time // neighbours that the kernel was asked to keep resolved, and when it last was told so
	pending pending
	managed bool // the kernel keeps neighbours itself: assumed until the first one asked for says otherwise

	follow follow
	view   atomic.Pointer[view]
	kick   chan struct{} // capacity 1: there is something pending

	stop    context.CancelFunc // ends Run and the reader
	stopped context.Context
	running sync.Mutex    // held by Run
	read    chan struct{} // closed when the reader has ended
}

// target is an address that is tracked. Guarded by Watcher.mu.
type target struct {
	route route
	dirty bool // the route has to be asked for (again)
}

// view is what Hops, Links and Addresses return copies of, and Routes returns; immutable.
type view struct {
	hops   map[netip.Addr]Hop
	links  map[int]LinkInfo
	addrs  []netip.Addr // sorted
	routes *Routes      // nil unless followed
}

// receiveBuffer holds some thousands of notices, so that a burst of route changes does not overflow the subscription.
const receiveBuffer = 4 << 20

// requestTimeout bounds one question to the kernel.
const requestTimeout = 10 * time.Second

// New opens the netlink sockets in the network namespace of the calling thread and reads all links, addresses and
// neighbours.
//
// changed is called from Run's goroutine, with no lock held, after a tracked hop, a link, an address of this node or a
// followed route has become different; any number of changes within some 10 ms make one call. What [Watcher.Track] and
// [Watcher.FollowRoutes] themselves publish is not announced: it is there when they return.
func New(log *slog.Logger, changed func()) (*Watcher, error) {
	// All sockets must be opened in one namespace: a goroutine that moves to another thread could see two.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	w := &Watcher{
		log:     log,
		changed: changed,
		managed: true,
		targets: map[netip.Addr]*target{},
		links:   newMirror[int, LinkInfo](),
		neighs:  newMirror[neighKey, neigh](),
		addrs:   newMirror[addrKey, struct{}](),
		kept:    map[neighKey]time.Time{},
		pending: newPending(),
		kick:    make(chan struct{}, 1),
		read:    make(chan struct{}),
		follow:  follow{asked: map[neighKey]time.Time{}, wants: make(chan netip.Addr, wantsBuffer)},
	}
	w.stopped, w.stop = context.WithCancel(context.Background())
	w.view.Store(&view{})

	// Subscribed before the first dump, so that nothing falls between the two.
	var err error
	w.events, err = nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
		unix.RTNLGRP_NEXTHOP)
	if err != nil {
		return nil, fmt.Errorf("subscribe to netlink: %w", err)
	}
	if err := w.events.SetReceiveBufferSize(receiveBuffer, true); err != nil {
		// Without CAP_NET_ADMIN over the host, the system's limit (net.core.rmem_max) has to do.
		_ = w.events.SetReceiveBufferSize(receiveBuffer, false)
	}
	w.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		w.events.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	for _, sockets := range []*map[int]*nl.SocketHandle{&w.sockets, &w.follow.sockets} {
		raw, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
		if err != nil {
			w.closeSockets()
			return nil, fmt.Errorf("open netlink: %w", err)
		}
		*sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: raw}}
		tv := unix.NsecToTimeval(requestTimeout.Nanoseconds())
		_ = raw.SetReceiveTimeout(&tv) // both only store a number
		_ = raw.SetSendTimeout(&tv)
	}
	if err := w.handle.SetSocketTimeout(requestTimeout); err != nil {
		w.closeSockets()
		return nil, fmt.Errorf("open netlink: %w", err)
	}

	if err := w.dump(); err != nil {
		w.closeSockets()
		return nil, err
	}
	w.pending.routesTaken() // there are none to ask for
	w.adopt()
	w.publish()
	go w.reader()
	return w, nil
}

// Track replaces the set of addresses. When it returns, [Watcher.Hops] holds every one of them. A neighbour that does
// not answer within some 50 ms is NoNeighbour then, and changed is called when it does.
//
// An address that makes no sense as a destination (zero, unspecified, multicast, with a zone) is an error, and nothing
// changes. A route that cannot be had is not an error: it is a hop in the state NoRoute.
func (w *Watcher) Track(addrs []netip.Addr) error {
	want := make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("track %s: not an address that packets can be sent to; give a unicast address without a zone", a)
		}
		want[a] = struct{}{}
	}

	w.work.Lock()
	defer w.work.Unlock()
	if w.closed {
		return fmt.Errorf("track: %w", net.ErrClosed)
	}
	var fresh []netip.Addr
	w.mu.Lock()
	for a := range w.targets {
		if _, ok := want[a]; !ok {
			delete(w.targets, a)
		}
	}
	for a := range want {
		if w.targets[a] == nil {
			w.targets[a] = &target{}
			fresh = append(fresh, a)
		}
	}
	w.mu.Unlock()

	again := w.resolve(fresh)
	if w.keep() || again {
		w.wake() // Run tries again what did not work
	}
	w.publish()
	return nil
}

// Hops returns the way to every tracked address. It never waits for the kernel.
func (w *Watcher) Hops() map[netip.Addr]Hop {
	return maps.Clone(w.view.Load().hops)
}

// Links returns every network interface of the namespace, by ifindex. It never waits for the kernel. An interface that
// is deleted and made again has another ifindex; one that is renamed keeps its own.
func (w *Watcher) Links() map[int]LinkInfo {
	return maps.Clone(w.view.Load().links)
}

// Addresses returns the addresses of this node, in ascending order, apart from loopback and link-local ones. It never
// waits for the kernel.
func (w *Watcher) Addresses() []netip.Addr {
	return slices.Clone(w.view.Load().addrs)
}

// Close ends Run, gives the neighbours back to the kernel's ordinary ageing, and closes the sockets. Entries that
// somebody else had made managed or permanent stay as they are.
func (w *Watcher) Close() {
	w.stop()
	w.running.Lock() // Run has ended, or ends at once
	defer w.running.Unlock()
	w.follow.background.Wait() // nor does anything else read the routing table
	w.follow.reading.Lock()
	defer w.follow.reading.Unlock()
	w.work.Lock()
	defer w.work.Unlock()
	if w.closed {
		return
	}
	w.closed = true
	w.follow.layer = nil
	clear(w.follow.asked)
	w.mu.Lock()
	clear(w.targets)
	w.mu.Unlock()
	w.keep() // nothing is wanted any more: all are released
	w.closeSockets()
	<-w.read
}

func (w *Watcher) closeSockets() {
	w.events.Close()
	w.handle.Close()
	for _, sockets := range []map[int]*nl.SocketHandle{w.sockets, w.follow.sockets} {
		for _, s := range sockets {
			s.Close()
		}
	}
}

// wake lets Run make a pass soon.
func (w *Watcher) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}
