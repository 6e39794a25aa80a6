//go:build linux

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// neighbourWait bounds how long a dial waits until the kernel knows the backend's Ethernet address.
	neighbourWait = time.Second
	// neighbourPoll is how often it looks.
	neighbourPoll = 5 * time.Millisecond
	// discardPort is where the datagram goes that makes the kernel ask for it (RFC 863).
	discardPort = 9
)

// routes asks the kernel for ways to backends, in the network namespace in which it was opened. Any goroutine may call it.
type routes struct {
	nl      *netlink.Handle
	sockets map[int]*nl.SocketHandle // requests that the netlink package has no call for
	closing <-chan struct{}          // ends waiting calls when it is closed
}

func openRoutes(closing <-chan struct{}) (*routes, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &routes{nl: h, sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}, closing: closing}, nil
}

func (r *routes) close() {
	r.nl.Close()
	for _, s := range r.sockets {
		s.Close()
	}
}

// to returns the route to a backend. Its error is that of a connect, if there is none.
func (r *routes) to(backend netip.Addr) (*netlink.Route, error) {
	found, err := r.nl.RouteGet(backend.AsSlice())
	switch {
	case err != nil:
		return nil, fmt.Errorf("route to %v: %w", backend, err)
	case len(found) == 0 || found[0].Type == unix.RTN_BLACKHOLE || found[0].Type == unix.RTN_UNREACHABLE || found[0].Type == unix.RTN_PROHIBIT:
		return nil, fmt.Errorf("route to %v: %w", backend, unix.ENETUNREACH)
	case found[0].Type != unix.RTN_UNICAST:
		return nil, fmt.Errorf("%v is no other host's address: %w", backend, unix.EHOSTUNREACH)
	}
	return &found[0], nil
}

// source returns this node's address of the VIP's family that the backend is to answer to: the source of the route to it; if
// the backend is of the other family, an address of that route's interface, or else of another one.
func (r *routes) source(vip netip.Addr, route *netlink.Route) (netip.Addr, error) {
	if a, ok := netip.AddrFromSlice(route.Src); ok && a.Unmap().Is4() == vip.Is4() {
		return a.Unmap(), nil
	}
	family, name := netlink.FAMILY_V6, "IPv6"
	if vip.Is4() {
		family, name = netlink.FAMILY_V4, "IPv4"
	}
	all, err := r.nl.AddrList(nil, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // what was read in an interrupted one will do
		return netip.Addr{}, fmt.Errorf("list addresses: %w", err)
	}
	var other netip.Addr
	for _, a := range all {
		const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok || a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&unusable != 0 || addr.Unmap().IsLoopback() {
			continue
		}
		if a.LinkIndex == route.LinkIndex {
			return addr.Unmap(), nil
		}
		if !other.IsValid() {
			other = addr.Unmap()
		}
	}
	if !other.IsValid() {
		return netip.Addr{}, fmt.Errorf("this node has no %s address that a backend could answer to in the name of %v; give it one: %w", name, vip, unix.EADDRNOTAVAIL)
	}
	return other, nil
}

// neighbour returns the Ethernet address of a backend on the link. The daemon keeps it resolved; where no daemon does, the kernel
// is made to ask for it, and the call waits. udp is a datagram socket of the backend's family.
func (r *routes) neighbour(ctx context.Context, backend netip.Addr, route *netlink.Route, udp socket) (net.HardwareAddr, error) {
	if len(route.Gw) > 0 || route.Via != nil {
		return nil, fmt.Errorf("%v is behind a gateway; %s reaches backends on the link only: %w", backend, L2, unix.EHOSTUNREACH)
	}
	wait, cancel := context.WithTimeout(ctx, neighbourWait)
	defer cancel()
	for asked := false; ; {
		mac, err := r.look(backend, route.LinkIndex)
		if mac != nil || err != nil {
			return mac, err
		}
		if !asked {
			_ = udp.send(nil, sockaddr(backend, discardPort)) // if it fails, no address comes
			asked = true
		}
		select {
		case <-wait.Done():
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("%v does not tell its Ethernet address: %w", backend, unix.EHOSTUNREACH)
		case <-r.closing:
			return nil, net.ErrClosed
		case <-time.After(neighbourPoll):
		}
	}
}

// look reads one neighbour from the kernel. It is nil if the kernel does not know its address.
func (r *routes) look(addr netip.Addr, link int) (net.HardwareAddr, error) {
	family := uint8(unix.AF_INET6)
	if addr.Is4() {
		family = unix.AF_INET
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.Sockets = r.sockets
	req.AddData(&netlink.Ndmsg{Family: family, Index: uint32(link)})
	req.AddData(nl.NewRtAttr(unix.NDA_DST, addr.AsSlice()))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read neighbour %v: %w", addr, err)
	}
	for _, m := range msgs {
		// The kernel's NUD_VALID states (include/net/neighbour.h): a stale entry is as good as a fresh one.
		const valid = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY
		if n, err := netlink.NeighDeserialize(m); err == nil && n.State&valid != 0 && len(n.HardwareAddr) == 6 {
			return n.HardwareAddr, nil
		}
	}
	return nil, nil
}

// sockaddr is an address for a socket of its own family.
func sockaddr(addr netip.Addr, port int) unix.Sockaddr {
	if addr.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: addr.As16()}
}
