//go:build linux

package nexthop

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// blackholeMetric makes the route win over one that a routing daemon learns for the same address from a neighbour of
// the group, and lose to a static IPv4 route of the operator's (metric 0).
const blackholeMetric = 1

// EnsureBlackhole adds a blackhole route (/32 or /128, protocol [Protocol], main table) for each address, in the
// network namespace of the calling thread. Where the route is already there nothing happens.
//
// The routes are for the time when no Sluice runs: the packets of a VIP that still arrive then are dropped by the
// kernel, which would otherwise send them back along its default route or answer with a reset. So they are left behind
// when the daemon ends; [RemoveBlackholesExcept] takes away those of VIPs that are no longer configured.
//
// All addresses are tried; the errors are joined.
func EnsureBlackhole(addrs []netip.Addr) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("add blackhole routes: open netlink: %w", err)
	}
	defer h.Close()
	var all []error
	for _, a := range addrs {
		r := blackhole(a)
		// Never NLM_F_REPLACE: that would put ours in the place of a stranger's route with the same metric.
		err := h.RouteAdd(r)
		if errors.Is(err, unix.EEXIST) {
			err = sameBlackhole(h, r)
		}
		if err != nil {
			all = append(all, fmt.Errorf("add blackhole route for %s: %w", a, err))
		}
	}
	return errors.Join(all...)
}

// RemoveBlackholesExcept removes the blackhole routes of earlier calls of [EnsureBlackhole], by whatever process,
// except those for the addresses in keep. It works in the network namespace of the calling thread, and touches no
// route with another protocol number.
func RemoveBlackholesExcept(keep []netip.Addr) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("remove blackhole routes: open netlink: %w", err)
	}
	defer h.Close()
	kept := make(map[netip.Addr]struct{}, len(keep))
	for _, a := range keep {
		kept[a.Unmap()] = struct{}{}
	}
	var all []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := ourRoutes(h, family)
		if err != nil {
			all = append(all, err)
			continue
		}
		for _, r := range routes {
			a, ok := netip.AddrFromSlice(r.Dst.IP)
			if _, keep := kept[a.Unmap()]; !ok || keep {
				continue
			}
			if err := h.RouteDel(blackhole(a)); err != nil && !errors.Is(err, unix.ESRCH) {
				all = append(all, fmt.Errorf("remove blackhole route for %s: %w", a, err))
			}
		}
	}
	return errors.Join(all...)
}

func blackhole(a netip.Addr) *netlink.Route {
	a = a.Unmap()
	return &netlink.Route{
		Dst:      &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
		Type:     unix.RTN_BLACKHOLE,
		Protocol: Protocol,
		Priority: blackholeMetric,
		Table:    unix.RT_TABLE_MAIN,
	}
}

// sameBlackhole tells our own route from a stranger's that is in its place.
func sameBlackhole(h *netlink.Handle, want *netlink.Route) error {
	family := unix.AF_INET
	if want.Dst.IP.To4() == nil {
		family = unix.AF_INET6
	}
	routes, err := ourRoutes(h, family)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Dst.IP.Equal(want.Dst.IP) {
			return nil
		}
	}
	return fmt.Errorf("%w with metric %d, and it is not one of Sluice's; remove it or give it another metric",
		unix.EEXIST, blackholeMetric)
}

// ourRoutes lists the blackhole routes for single addresses that carry our protocol number.
func ourRoutes(h *netlink.Handle, family int) (ours []netlink.Route, err error) {
	var all []netlink.Route
	err = uninterrupted(func() (err error) {
		all, err = h.RouteListFiltered(family, &netlink.Route{Protocol: Protocol, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range all {
		if r.Type != unix.RTN_BLACKHOLE || r.Dst == nil {
			continue
		}
		if ones, bits := r.Dst.Mask.Size(); ones == bits && bits > 0 {
			ours = append(ours, r)
		}
	}
	return ours, nil
}
