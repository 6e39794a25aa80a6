//go:build linux

package nexthop

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// coalesce is how long the first notice waits for others: one event in the network makes many.
	coalesce = 10 * time.Millisecond
	// After asking for routes for a time d, no routes are asked for during restFactor·d, at most maxRest: a node whose
	// routing table is in uproar spends a fifth of one core on it. Links and neighbours are not held up by that.
	restFactor = 4
	maxRest    = time.Second
	// retryAfter is when a question that failed is asked again.
	retryAfter = time.Second
	// resyncEvery bounds how long something may stay wrong of which no notice came: an expired path MTU, a lost notice.
	resyncEvery = 30 * time.Second
	// refreshTick is how often it is looked for neighbours that are due for a probe.
	refreshTick = time.Second
)

// Run acts on the kernel's notices until ctx is done or [Watcher.Close] is called, and then returns nil. Track, Hops
// and Links work without it, but a hop then changes only by Track.
func (w *Watcher) Run(ctx context.Context) error {
	w.running.Lock()
	defer w.running.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.stopped, cancel)()

	resync := time.NewTicker(resyncEvery)
	defer resync.Stop()
	refresh := time.NewTicker(refreshTick)
	defer refresh.Stop()
	var retry <-chan time.Time
	var askAfter time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.kick:
		case <-retry:
		case <-resync.C:
			w.mu.Lock()
			w.pending.resync = true
			w.mu.Unlock()
		case now := <-refresh.C:
			w.refresh(now)
			continue
		}
		if !rest(ctx, coalesce) {
			return nil
		}
		ask := !time.Now().Before(askAfter)
		out := w.pass(ask)
		if ask {
			askAfter = time.Now().Add(min(restFactor*out.asking, maxRest))
		}
		retry = nil
		switch {
		case out.again && ask:
			retry = time.After(retryAfter)
		case out.again:
			retry = time.After(time.Until(askAfter))
		}
		if out.differs {
			w.changed()
		}
	}
}

// rest sleeps for d and reports false when ctx is done before.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// outcome is what a pass did.
type outcome struct {
	differs bool          // hops or links are no longer what they were
	again   bool          // something is left to do
	asking  time.Duration // how long asking for routes took
}

// pass looks at everything that is pending and publishes what it found. Without ask it leaves the routes for later.
func (w *Watcher) pass(ask bool) (out outcome) {
	w.work.Lock()
	defer w.work.Unlock()

	w.mu.Lock()
	resync := w.pending.resync
	w.pending.resync = false
	w.mu.Unlock()
	if resync {
		if err := w.dump(); err != nil {
			w.log.Warn("reading links, neighbours and addresses anew failed; what is known stays", "error", err)
			w.mu.Lock()
			w.pending.resync = true
			w.mu.Unlock()
			out.again = true
		}
	}

	out.differs = w.passRoutes(resync)

	var dirty []netip.Addr
	w.mu.Lock()
	for a, t := range w.targets {
		if t.dirty = t.dirty || w.pending.concerns(a); t.dirty {
			dirty = append(dirty, a)
		}
	}
	w.pending.routesTaken()
	w.mu.Unlock()

	if ask {
		start := time.Now()
		out.again = w.resolve(dirty) || out.again
		out.asking = time.Since(start)
	} else {
		out.again = len(dirty) > 0 || out.again
	}
	out.again = w.keep() || out.again
	out.differs = w.publish() || out.differs
	return out
}

// dump reads links, neighbours and addresses anew, and has every route asked for again. The caller holds work, or is New.
func (w *Watcher) dump() error {
	w.mu.Lock()
	w.links.begin()
	w.neighs.begin()
	w.addrs.begin()
	w.mu.Unlock()

	links, err := w.dumpLinks()
	var neighs map[neighKey]neigh
	if err == nil {
		neighs, err = w.dumpNeighs()
	}
	var addrs map[addrKey]struct{}
	if err == nil {
		addrs, err = w.dumpAddrs()
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.links.abandon()
		w.neighs.abandon()
		w.addrs.abandon()
		return err
	}
	w.links.finish(links)
	w.neighs.finish(neighs)
	w.addrs.finish(addrs)
	w.pending.everyRoute()
	if time.Since(w.follow.readAt) > readShare*w.follow.took {
		w.staleRoutes()
	}
	for k := range w.kept {
		if n := w.neighs.m[k]; w.managed && w.probed && !n.managed {
			delete(w.kept, k) // keep asks for it again
		}
	}
	return nil
}

func (w *Watcher) dumpLinks() (map[int]LinkInfo, error) {
	var list []netlink.Link
	err := uninterrupted(func() (err error) {
		list, err = w.handle.LinkList()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links := make(map[int]LinkInfo, len(list))
	for _, l := range list {
		links[l.Attrs().Index] = linkInfo(l)
	}
	return links, nil
}

// dumpAddrs reads all addresses of this node.
func (w *Watcher) dumpAddrs() (map[addrKey]struct{}, error) {
	var msgs [][]byte
	err := uninterrupted(func() (err error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.Sockets = w.sockets
		req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
		msgs, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	all := make(map[addrKey]struct{}, len(msgs))
	for _, m := range msgs {
		if k, ok := parseAddr(m); ok {
			all[k] = struct{}{}
		}
	}
	return all, nil
}

func linkInfo(link netlink.Link) LinkInfo {
	a := link.Attrs()
	l := LinkInfo{
		Name: a.Name,
		Up:   a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0,
		MTU:  a.MTU,
	}
	if a.EncapType == "ether" && len(a.HardwareAddr) == len(l.MAC) {
		l.Ethernet = true
		copy(l.MAC[:], a.HardwareAddr)
	}
	// The parent may be in another namespace, where its index means another link.
	if v, ok := link.(*netlink.Vlan); ok && v.VlanProtocol == netlink.VLAN_PROTOCOL_8021Q && a.NetNsID == -1 {
		l.VLAN, l.Parent = uint16(v.VlanId), a.ParentIndex
	}
	return l
}

// drainPause is how long the subscription must be silent to count as read empty after an overflow.
const drainPause = time.Millisecond

// reader is the reader goroutine: it takes every notice into the mirrors, from New until the socket is closed.
func (w *Watcher) reader() {
	defer close(w.read)
	overflowed := false
	for {
		msgs, from, err := w.events.Receive()
		switch {
		case w.stopped.Err() != nil && err != nil:
			return
		case errors.Is(err, unix.ENOBUFS):
			// Until the queue has been read empty, the kernel drops further notices without saying so again
			// (NETLINK_S_CONGESTED in net/netlink/af_netlink.c): only then a dump sees everything.
			overflowed = true
			w.drain(drainPause)
		case errors.Is(err, unix.EAGAIN) && overflowed:
			overflowed = false
			w.drain(0)
			w.log.Info("netlink notices were lost in a burst; reading everything anew")
			w.lost()
		case err != nil:
			w.log.Warn("reading netlink notices failed; reading everything anew", "error", err)
			w.lost()
			rest(w.stopped, retryAfter)
		case from.Pid == nl.PidKernel:
			w.take(msgs)
		}
	}
}

// drain lets Receive give up with EAGAIN after d; 0 is never.
func (w *Watcher) drain(d time.Duration) {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	_ = w.events.SetReceiveTimeout(&tv) // only stores a number
}

func (w *Watcher) lost() {
	w.mu.Lock()
	w.pending.resync = true
	w.staleRoutes()
	w.mu.Unlock()
	w.wake()
}

// take applies notices, and wakes Run when they say something new.
func (w *Watcher) take(msgs []syscall.NetlinkMessage) {
	news := false
	w.mu.Lock()
	for i := range msgs {
		m := &msgs[i]
		switch m.Header.Type {
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			news = w.takeNeigh(m) || news
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			news = w.takeLink(m) || news
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			news = w.takeRoute(m) || news
			news = w.noteRoute(m) || news
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			w.takeAddr(m)
			news = true
		case unix.RTM_NEWRULE, unix.RTM_DELRULE:
			w.pending.everyRoute()
			w.follow.rules = true
			news = true
		case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
			w.pending.everyRoute()
			if m.Header.Type == unix.RTM_DELNEXTHOP {
				w.staleRoutes() // its routes are gone, without notices of their own
			}
			news = true
		}
	}
	w.mu.Unlock()
	if news {
		w.wake()
	}
}

func (w *Watcher) takeAddr(m *syscall.NetlinkMessage) {
	if k, ok := parseAddr(m.Data); ok && m.Header.Type == unix.RTM_NEWADDR {
		w.addrs.set(k, struct{}{})
	} else if ok {
		w.addrs.remove(k)
	}
	// An address can be a preferred source, or take routes along without a notice of their own.
	w.pending.everyRoute()
	if m.Header.Type == unix.RTM_DELADDR {
		w.staleRoutes()
	}
}

func (w *Watcher) takeNeigh(m *syscall.NetlinkMessage) bool {
	k, n, ok := parseNeigh(m.Data)
	if !ok {
		return false
	}
	var old neigh
	if m.Header.Type == unix.RTM_DELNEIGH {
		old, _ = w.neighs.remove(k)
		n = neigh{}
	} else {
		old = w.neighs.set(k, n)
	}
	news := !n.sameWay(old)
	if _, kept := w.kept[k]; kept {
		deleted := m.Header.Type == unix.RTM_DELNEIGH          // carrier lost, or by hand
		unmanaged := w.managed && !n.managed                   // replaced by hand, or by our own probe
		failed := old.usable() && n.state&unix.NUD_FAILED != 0 // perhaps there under another Ethernet address
		if deleted || unmanaged || failed {
			delete(w.kept, k) // keep asks for it again
			news = true
		}
	}
	return news
}

func (w *Watcher) takeLink(m *syscall.NetlinkMessage) bool {
	// A bridge port tells of its bridge under the same type; a DELLINK of that kind only means "left the bridge".
	if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return false
	}
	if m.Header.Type == unix.RTM_DELLINK {
		index := int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
		if _, known := w.links.remove(index); !known {
			return false
		}
		w.staleRoutes()
	} else {
		header := unix.NlMsghdr(m.Header)
		link, err := netlink.LinkDeserialize(&header, m.Data)
		if err != nil || link.Attrs().Name == "" {
			return false // wireless drivers send notices that hold their own news only
		}
		info := linkInfo(link)
		old := w.links.set(link.Attrs().Index, info)
		if old == info {
			return false
		}
		if old.Up != info.Up {
			w.staleRoutes()
		}
	}
	// IPv4 routes vanish with their link without a notice of their own (fib_sync_down_dev in net/ipv4).
	w.pending.everyRoute()
	return true
}

func (w *Watcher) takeRoute(m *syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofRtMsg {
		return false
	}
	bits := int(m.Data[1])
	dst := netip.IPv4Unspecified()
	switch m.Data[0] {
	case unix.AF_INET:
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return false
	}
	for typ, value := range attributes(m.Data[unix.SizeofRtMsg:]) {
		if typ == unix.RTA_DST {
			if addr, ok := netip.AddrFromSlice(value); ok {
				dst = addr
			}
		}
	}
	prefix := netip.PrefixFrom(dst, bits).Masked()
	concerned := w.pending.routes
	for a := range w.targets {
		if concerned {
			break
		}
		concerned = prefix.Contains(a)
	}
	if concerned {
		w.pending.prefix(prefix)
	}
	return concerned
}
