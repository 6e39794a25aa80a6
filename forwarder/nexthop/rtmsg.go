//go:build linux

package nexthop

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// The tables that `ip rule` names by default, in the order in which the kernel asks them.
const (
	tableLocal = iota
	tableMain
	tableDefault
)

// entry is one route of the kernel's, apart from its destination. Immutable.
type entry struct {
	table  uint8  // tableLocal …
	metric uint32 // the lowest wins
	reject bool   // no way for a packet: a local, broadcast or reject route, or nothing that a plain frame can be sent by
	host   bool   // not the kernel's: made for a neighbour on the link, which hops names as the gateway; see layer
	mtu    int    // 0: the route sets none
	source netip.Addr
	hops   []nextHop // of use unless reject
}

// nextHop is one way of an entry.
type nextHop struct {
	link    int
	gateway netip.Addr // zero: the destination is on the link
	weight  uint32     // ≥ 1
}

// change is a notice about an entry.
type change struct {
	dst   netip.Prefix
	entry entry
	gone  bool
	flags uint16 // NLM_F_…
}

// parseRoute reads a struct rtmsg with its attributes. ok is false for what [Watcher.FollowRoutes] does not follow: other
// tables and families, routes that hold for some packets only (by TOS or source address), routes within
// noWay, and what the kernel remembers of single destinations.
func parseRoute(data []byte) (dst netip.Prefix, e entry, ok bool) {
	if len(data) < unix.SizeofRtMsg {
		return dst, e, false
	}
	var addr netip.Addr
	switch data[0] {
	case unix.AF_INET:
		addr = netip.IPv4Unspecified()
	case unix.AF_INET6:
		addr = netip.IPv6Unspecified()
	default:
		return dst, e, false
	}
	bits, tos := int(data[1]), data[3]
	table, typ := uint32(data[4]), data[7]
	flags := binary.NativeEndian.Uint32(data[8:])
	if tos != 0 || data[2] != 0 || flags&unix.RTM_F_CLONED != 0 {
		return dst, e, false
	}
	e.reject = typ != unix.RTN_UNICAST
	only := nextHop{weight: 1}
	for typ, v := range attributes(data[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_DST:
			a, valid := netip.AddrFromSlice(v)
			if !valid || a.BitLen() != addr.BitLen() {
				return dst, e, false
			}
			addr = a
		case unix.RTA_TABLE:
			table = number(v)
		case unix.RTA_PRIORITY:
			e.metric = number(v)
		case unix.RTA_PREFSRC:
			e.source, _ = netip.AddrFromSlice(v)
		case unix.RTA_METRICS:
			for typ, v := range attributes(v) {
				if typ == unix.RTAX_MTU {
					e.mtu = int(number(v))
				}
			}
		case unix.RTA_OIF:
			only.link = int(int32(number(v)))
		case unix.RTA_MULTIPATH:
			e.hops = parseNextHops(v)
		default:
			e.reject = !only.attribute(typ, v) || e.reject
		}
	}
	switch table {
	case unix.RT_TABLE_LOCAL:
		e.table = tableLocal
	case unix.RT_TABLE_MAIN:
		e.table = tableMain
	case unix.RT_TABLE_DEFAULT:
		e.table = tableDefault
	default:
		return dst, e, false
	}
	if only.link != 0 {
		e.hops = []nextHop{only}
	}
	if len(e.hops) == 0 {
		e.reject = true // perhaps a nexthop object that the kernel does not spell out (net.ipv4.nexthop_compat_mode)
	}
	dst, err := addr.Prefix(bits)
	if err != nil || addr.Is4In6() {
		return dst, e, false
	}
	for _, p := range noWay {
		if p.Contains(addr) && p.Bits() <= bits {
			return dst, e, false
		}
	}
	return dst, e, true
}

// noWay holds the addresses to which there is no one way: those that mean something on one link only, and multicast.
var noWay = []netip.Prefix{
	netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("224.0.0.0/4"),
}

// parseNextHops reads a sequence of struct rtnexthop, each with attributes. Those that ask for an encapsulation are left
// out.
func parseNextHops(b []byte) (hops []nextHop) {
	for len(b) >= unix.SizeofRtNexthop {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofRtNexthop || length > len(b) {
			return hops
		}
		h, plain := nextHop{weight: uint32(b[3]) + 1, link: int(int32(binary.NativeEndian.Uint32(b[4:])))}, true
		for typ, v := range attributes(b[unix.SizeofRtNexthop:length]) {
			plain = h.attribute(typ, v) && plain
		}
		if plain && h.link != 0 {
			hops = append(hops, h)
		}
		b = b[min((length+unix.RTNH_ALIGNTO-1)&^(unix.RTNH_ALIGNTO-1), len(b)):]
	}
	return hops
}

// attribute takes over what an attribute says of a next hop, and reports whether a plain frame can be sent by it.
func (h *nextHop) attribute(typ uint16, v []byte) (plain bool) {
	switch typ {
	case unix.RTA_VIA: // struct rtvia: a family, then an address of it
		v = v[min(2, len(v)):]
		fallthrough
	case unix.RTA_GATEWAY:
		if a, ok := netip.AddrFromSlice(v); ok && !a.IsUnspecified() {
			h.gateway = a.Unmap()
		}
	case unix.RTA_ENCAP, unix.RTA_NEWDST:
		return false
	}
	return true
}

func number(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

// parseChange reads a notice.
func parseChange(m *syscall.NetlinkMessage) (c change, ok bool) {
	c.dst, c.entry, ok = parseRoute(m.Data)
	c.gone, c.flags = m.Header.Type == unix.RTM_DELROUTE, m.Header.Flags
	return c, ok
}

// addrKey names an address of this node. The same may be on several links.
type addrKey struct {
	link int
	addr netip.Addr
}

// parseAddr reads a struct ifaddrmsg with its attributes. ok is false for addresses by which nothing from outside can
// reach this node: loopback and link-local ones.
func parseAddr(data []byte) (k addrKey, ok bool) {
	if len(data) < unix.SizeofIfAddrmsg {
		return k, false
	}
	k.link = int(int32(binary.NativeEndian.Uint32(data[4:])))
	local := false
	for typ, v := range attributes(data[unix.SizeofIfAddrmsg:]) {
		// On a link to one peer, IFA_ADDRESS is the peer and IFA_LOCAL this node.
		if typ != unix.IFA_LOCAL && (typ != unix.IFA_ADDRESS || local) {
			continue
		}
		local = typ == unix.IFA_LOCAL
		if a, valid := netip.AddrFromSlice(v); valid {
			k.addr = a.Unmap()
		}
	}
	a := k.addr
	return k, a.IsValid() && !a.IsLoopback() && !a.IsLinkLocalUnicast()
}
