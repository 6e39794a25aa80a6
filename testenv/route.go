//go:build linux

package testenv

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteKind is what a route does with a packet. The zero value forwards it.
type RouteKind int

const (
	Forward     RouteKind = iota // to the next hop
	Blackhole                    // drops it without a word
	Unreachable                  // drops it and tells the sender by ICMP
)

// Route is an entry of the main routing table.
type Route struct {
	Dst    netip.Prefix // 0.0.0.0/0 and ::/0 are the default routes
	Via    []netip.Addr // next hops: none for what is on the link, several for ECMP
	Link   string       // the interface; may be empty when Via says it
	Kind   RouteKind
	Source netip.Addr // preferred source address; zero: none
	MTU    int        // of the path, in bytes; 0: that of the interface
}

// AddRoute adds a route, or replaces the one to the same destination with all its next hops.
func (ns *Namespace) AddRoute(r Route) error {
	route, err := ns.route(r)
	if err == nil {
		err = ns.nl.RouteReplace(route)
	}
	if err != nil {
		return fmt.Errorf("add route to %v via %v %s in %s: %w", r.Dst, r.Via, r.Link, ns, err)
	}
	return nil
}

// DelRoute removes the route to a destination with all its next hops.
func (ns *Namespace) DelRoute(dst netip.Prefix) error {
	if err := ns.nl.RouteDel(&netlink.Route{Dst: ipNet(dst)}); err != nil {
		return fmt.Errorf("delete route to %v in %s: %w", dst, ns, err)
	}
	return nil
}

func (ns *Namespace) route(r Route) (*netlink.Route, error) {
	route := &netlink.Route{Dst: ipNet(r.Dst), MTU: r.MTU, Src: r.Source.AsSlice()}
	if r.Link != "" {
		l, err := ns.Link(r.Link)
		if err != nil {
			return nil, err
		}
		route.LinkIndex = l.Attrs().Index
	}
	switch r.Kind {
	case Blackhole:
		route.Type = unix.RTN_BLACKHOLE
	case Unreachable:
		route.Type = unix.RTN_UNREACHABLE
	}
	switch len(r.Via) {
	case 0:
		if r.Kind == Forward && r.Dst.Addr().Is4() {
			route.Scope = netlink.SCOPE_LINK
		}
	case 1:
		route.Gw = r.Via[0].AsSlice()
	default:
		for _, via := range r.Via {
			route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{Gw: via.AsSlice(), LinkIndex: route.LinkIndex})
		}
		route.LinkIndex = 0
	}
	return route, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
