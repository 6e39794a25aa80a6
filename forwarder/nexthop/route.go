//go:build linux

package nexthop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// route is the kernel's answer for one address, before link and neighbour are looked at.
type route struct {
	link    int        // 0: no usable route
	next    netip.Addr // whose Ethernet address is wanted: the gateway, or the address itself; zero for any on the link
	gateway netip.Addr // zero when on-link
	source  netip.Addr
	mtu     int    // 0: the route sets none
	problem string // why there is no usable route
}

// resolve asks for the routes of addrs, stores them, and reports whether some of them have to be asked for again. The
// caller holds work. When the kernel does not answer (a timeout, out of memory) the last known routes stay.
func (w *Watcher) resolve(addrs []netip.Addr) (again bool) {
	for i, a := range addrs {
		r, err := w.ask(a)
		w.mu.Lock()
		if err != nil {
			for _, a := range addrs[i:] {
				if t := w.targets[a]; t != nil {
					t.dirty = true
				}
			}
		} else if t := w.targets[a]; t != nil {
			t.route, t.dirty = r, false
		}
		w.mu.Unlock()
		if err != nil {
			w.log.Warn("asking for routes failed; the last known ones stay for now", "addresses", len(addrs)-i, "error", err)
			return true
		}
	}
	return false
}

// ask asks the kernel for the route to a. An error means that there was no answer; "no route" is an answer.
func (w *Watcher) ask(a netip.Addr) (route, error) {
	routes, err := w.handle.RouteGet(net.IP(a.AsSlice()))
	var errno syscall.Errno
	// The errnos of reject routes: fib_props in net/ipv4/fib_semantics.c, ip6_rt_init_dst_reject in net/ipv6/route.c.
	switch {
	case errors.Is(err, unix.ENETUNREACH):
		return route{problem: fmt.Sprintf("no route to %s", a)}, nil
	case errors.Is(err, unix.EHOSTUNREACH):
		return route{problem: fmt.Sprintf("the route to %s is an unreachable route", a)}, nil
	case errors.Is(err, unix.EINVAL):
		return route{problem: fmt.Sprintf("the route to %s is a blackhole", a)}, nil
	case errors.Is(err, unix.EACCES):
		return route{problem: fmt.Sprintf("the route to %s is a prohibit route", a)}, nil
	case errors.As(err, &errno) && !slices.Contains(noAnswer, errno):
		return route{problem: fmt.Sprintf("the kernel has no route to %s: %v", a, errno)}, nil
	case err != nil:
		return route{}, fmt.Errorf("get route to %s: %w", a, err)
	case len(routes) == 0:
		return route{problem: fmt.Sprintf("no route to %s", a)}, nil
	}
	return routeOf(a, &routes[0]), nil
}

// noAnswer holds what is said of the question and not of the route. The netlink package returns EAGAIN for a timeout.
var noAnswer = []syscall.Errno{unix.EAGAIN, unix.EINTR, unix.ENOBUFS, unix.ENOMEM, unix.EBADF}

// routeOf reads the kernel's answer.
func routeOf(a netip.Addr, r *netlink.Route) route {
	switch r.Type {
	case unix.RTN_UNICAST:
	case unix.RTN_LOCAL:
		return route{problem: fmt.Sprintf("%s is an address of this node itself", a)}
	default:
		return route{problem: fmt.Sprintf("the route to %s is not a unicast route (type %d)", a, r.Type)}
	}
	if r.Encap != nil {
		return route{problem: fmt.Sprintf("the route to %s asks for an encapsulation of its own", a)}
	}
	out := route{link: r.LinkIndex, next: a, mtu: r.MTU}
	out.source, _ = netip.AddrFromSlice(r.Src)
	out.source = out.source.Unmap()
	gateway := r.Gw
	if via, ok := r.Via.(*netlink.Via); ok {
		gateway = via.Addr
	}
	if gw, ok := netip.AddrFromSlice(gateway); ok && !gw.IsUnspecified() {
		out.gateway = gw.Unmap()
		out.next = out.gateway
	}
	return out
}

// hop puts route, link and neighbour together.
func hop(r *route, links map[int]LinkInfo, neighs map[neighKey]neigh) Hop {
	switch {
	case r.problem != "":
		return Hop{State: NoRoute, Problem: r.problem}
	case r.link == 0:
		return Hop{State: NoRoute, Problem: "the kernel has not answered yet"}
	}
	l, ok := links[r.link]
	if !ok {
		return Hop{State: NoRoute, Problem: fmt.Sprintf("the egress link (index %d) is gone", r.link)}
	}
	if !l.Ethernet {
		return Hop{State: NoRoute, Problem: fmt.Sprintf("the egress link %s is not an Ethernet link", l.Name)}
	}
	h := Hop{State: Ready, Link: r.link, Src: l.MAC, Source: r.source, Gateway: r.gateway, MTU: l.MTU}
	if r.mtu > 0 {
		h.MTU = min(h.MTU, r.mtu)
	}
	n := neighs[neighKey{r.link, r.next}]
	switch {
	case !l.Up:
		h.State, h.Problem = NoNeighbour, fmt.Sprintf("the egress link %s is down or has no carrier", l.Name)
	case !r.next.IsValid():
		h.State = NoNeighbour
		h.Problem = fmt.Sprintf("the destination is on the link %s, and its Ethernet address is not known", l.Name)
	case !n.usable():
		h.State, h.Problem = NoNeighbour, fmt.Sprintf("%s does not answer for its Ethernet address on %s", r.next, l.Name)
	default:
		h.Dst = n.mac
	}
	return h
}

// publish puts every hop together from what is known, makes it visible, and reports whether anything is different.
// The caller holds work, or is New.
func (w *Watcher) publish() (differs bool) {
	old := w.view.Load()
	next := &view{hops: make(map[netip.Addr]Hop, len(old.hops))}
	w.mu.Lock()
	for a, t := range w.targets {
		next.hops[a] = hop(&t.route, w.links.m, w.neighs.m)
	}
	next.links = maps.Clone(w.links.m)
	for k := range w.addrs.m {
		next.addrs = append(next.addrs, k.addr)
	}
	if w.follow.layer != nil {
		next.routes = w.follow.layer.compile(w.links.m, w.neighs.m, old.routes)
	}
	w.mu.Unlock()
	slices.SortFunc(next.addrs, netip.Addr.Compare)
	next.addrs = slices.Compact(next.addrs)
	if maps.Equal(old.hops, next.hops) && maps.Equal(old.links, next.links) && slices.Equal(old.addrs, next.addrs) &&
		old.routes == next.routes {
		return false
	}
	w.view.Store(next)
	w.report(old.hops, next.hops)
	return true
}

// maxReported bounds the log lines of one change: a router that fails takes a thousand backends along.
const maxReported = 10

// report logs what happened to the hops. Addresses that were only just added and are being resolved are not news.
func (w *Watcher) report(old, next map[netip.Addr]Hop) {
	var lines, more int
	for a, h := range next {
		was, known := old[a]
		if was == h || (!known && h.State != NoRoute) {
			continue
		}
		if lines++; lines > maxReported {
			more++
			continue
		}
		level := slog.LevelInfo
		if h.State != Ready {
			level = slog.LevelWarn
		}
		w.log.Log(context.Background(), level, "next hop", "address", a, "state", h.State, "link", h.Link,
			"gateway", h.Gateway, "mac", net.HardwareAddr(h.Dst[:]).String(), "mtu", h.MTU, "problem", h.Problem)
	}
	if more > 0 {
		w.log.Warn("next hops of further addresses changed too", "count", more)
	}
}
