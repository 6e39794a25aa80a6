//go:build linux

package testenv

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	addr1   = netip.MustParseAddr("10.9.0.1")
	addr2   = netip.MustParseAddr("10.9.0.2")
	addr1v6 = netip.MustParseAddr("2001:db8:9::1")
	addr2v6 = netip.MustParseAddr("2001:db8:9::2")
)

// pair joins two namespaces by their eth0 with the addresses above.
func pair(t *testing.T, queues int, software bool) (e *Env, a, b *Namespace) {
	t.Helper()
	e, all := newNamespaces(t, "a", "b")
	a, b = all[0], all[1]
	ok(t, e.Veth(End{Namespace: a, Name: "eth0", SoftwareChecksums: software}, End{Namespace: b, Name: "eth0"}, queues))
	ok(t, a.AddAddr("eth0", netip.PrefixFrom(addr1, 24)))
	ok(t, b.AddAddr("eth0", netip.PrefixFrom(addr2, 24)))
	ok(t, a.AddAddr("eth0", netip.PrefixFrom(addr1v6, 64)))
	ok(t, b.AddAddr("eth0", netip.PrefixFrom(addr2v6, 64)))
	return e, a, b
}

// reach makes one TCP connection from one namespace to an address of the other.
func reach(t *testing.T, from, to *Namespace, addr netip.Addr) error {
	t.Helper()
	l, err := to.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	ok(t, err)
	defer l.Close()
	return from.connect(netip.MustParseAddrPort(l.Addr().String()))
}

func TestVeth(t *testing.T) {
	e, all := newNamespaces(t, "a", "b")
	a, b := all[0], all[1]
	macA, macB := net.HardwareAddr{2, 0, 0, 0, 0, 0xa}, net.HardwareAddr{2, 0, 0, 0, 0, 0xb}
	ok(t, e.Veth(End{Namespace: a, Name: "left", MAC: macA, MTU: 1600}, End{Namespace: b, Name: "right", MAC: macB}, 4))
	for _, end := range []struct {
		ns   *Namespace
		name string
		mac  net.HardwareAddr
		mtu  int
	}{{a, "left", macA, 1600}, {b, "right", macB, 1500}} {
		l, err := end.ns.Link(end.name)
		ok(t, err)
		attrs := l.Attrs()
		if !bytes.Equal(attrs.HardwareAddr, end.mac) || attrs.MTU != end.mtu || attrs.Flags&net.FlagUp == 0 {
			t.Errorf("%s: MAC %v, MTU %d, flags %v; want %v, %d, up", end.name, attrs.HardwareAddr, attrs.MTU, attrs.Flags, end.mac, end.mtu)
		}
		if attrs.NumTxQueues != 4 || attrs.NumRxQueues != 4 {
			t.Errorf("%s has %d TX and %d RX queues, want 4", end.name, attrs.NumTxQueues, attrs.NumRxQueues)
		}
		// What exists may be more than what is in use.
		ok(t, end.ns.withEthtool(func(e *ethtool.Ethtool) error {
			c, err := e.GetChannels(end.name)
			if err == nil && (c.RxCount != 4 || c.TxCount != 4) {
				t.Errorf("%s uses %d TX and %d RX queues, want 4", end.name, c.TxCount, c.RxCount)
			}
			return err
		}))
	}
	if err := e.Veth(End{Namespace: a, Name: "x"}, End{Namespace: b, Name: "y"}, 0); err == nil {
		t.Error("a veth without queues was made")
	}
	if err := e.Veth(End{Namespace: a, Name: "left"}, End{Namespace: b, Name: "y"}, 1); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same name again: %v; want EEXIST", err)
	}
	outside, err := netlink.LinkByName("left")
	if err == nil {
		t.Errorf("the veth is outside of the namespaces: %v", outside.Attrs())
	}
}

// TestEveryQueueCarries sends flows through a veth and sorts what arrives by the queue that it arrived on.
func TestEveryQueueCarries(t *testing.T) {
	for _, queues := range []int{1, 2} {
		_, a, b := pair(t, queues, false)
		l, err := b.Link("eth0")
		ok(t, err)
		var socks [2]int // the kernel gives a frame of queue q to socket q % 2
		ok(t, b.Do(func() error {
			for i := range socks {
				fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
				ok(t, err)
				socks[i] = fd
				t.Cleanup(func() { unix.Close(fd) })
				ok(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: l.Attrs().Index}))
				ok(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, 7|unix.PACKET_FANOUT_QM<<16))
			}
			return nil
		}))
		const flows = 64
		for range flows {
			conn, err := a.Dialer().DialContext(context.Background(), "udp", netip.AddrPortFrom(addr2, 7).String())
			ok(t, err)
			_, err = conn.Write([]byte("x"))
			ok(t, err)
			conn.Close()
		}
		var got [2]int
		eventually(t, "every datagram has arrived", func() bool {
			for i, fd := range socks {
				frame := make([]byte, 2048)
				for {
					n, _, err := unix.Recvfrom(fd, frame, 0)
					if err != nil {
						break
					}
					if n > 20 && frame[9] == unix.IPPROTO_UDP {
						got[i]++
					}
				}
			}
			return got[0]+got[1] >= flows
		})
		if both := got[0] > flows/8 && got[1] > flows/8; got[0]+got[1] != flows || both != (queues == 2) {
			t.Errorf("%d queues: %d flows arrived as %v", queues, flows, got)
		}
	}
}

// TestSoftwareChecksums captures the SYN of a kernel connection and sums it up as a receiver would.
func TestSoftwareChecksums(t *testing.T) {
	for _, software := range []bool{true, false} {
		_, a, b := pair(t, 1, software)
		features, err := a.Features("eth0")
		ok(t, err)
		if features[TXChecksum] == software {
			t.Errorf("feature %s is %t with SoftwareChecksums %t", TXChecksum, features[TXChecksum], software)
		}
		for _, dst := range []netip.Addr{addr2, addr2v6} {
			if sum := capturedChecksum(t, a, b, dst); (sum == 0xffff) != software {
				t.Errorf("SoftwareChecksums %t: a SYN to %v sums up to %#04x; 0xffff is right", software, dst, sum)
			}
		}
	}
}

// capturedChecksum connects to dst and returns the ones' complement sum of the first TCP segment that arrives there,
// with its pseudo header.
func capturedChecksum(t *testing.T, from, to *Namespace, dst netip.Addr) uint16 {
	t.Helper()
	var fd int
	ok(t, to.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(htons(unix.ETH_P_ALL)))
		return err
	}))
	defer unix.Close(fd)
	ok(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	_ = from.connect(netip.AddrPortFrom(dst, 9)) // refused, but the SYN goes out
	frame := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(fd, frame, 0)
		ok(t, err)
		packet := frame[:n]
		switch {
		case dst.Is4() && packet[0] == 0x45 && packet[9] == unix.IPPROTO_TCP:
			return sum(packet[12:20], packet[20:])
		case dst.Is6() && packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_TCP:
			return sum(packet[8:40], packet[40:])
		}
	}
}

func sum(addresses, segment []byte) uint16 {
	total := uint32(unix.IPPROTO_TCP + len(segment))
	for _, part := range [][]byte{addresses, segment} {
		for ; len(part) >= 2; part = part[2:] {
			total += uint32(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			total += uint32(part[0]) << 8
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func TestFeatures(t *testing.T) {
	_, a, _ := pair(t, 1, false)
	want := map[string]bool{TCPv4Segs: false, TCPv6Segs: false, SoftSegs: false, SoftMerge: true}
	ok(t, a.SetFeatures("eth0", want))
	got, err := a.Features("eth0")
	ok(t, err)
	for name, on := range want {
		if got[name] != on {
			t.Errorf("%s is %t, want %t", name, got[name], on)
		}
	}
	if err := a.SetFeatures("eth0", map[string]bool{"no-such-feature": true}); err == nil {
		t.Error("an unknown feature was set")
	}
	// Segmentation by the device cannot be on while its checksums are off; the kernel ignores the wish in silence.
	ok(t, a.SetFeatures("eth0", map[string]bool{TXChecksum: false}))
	if err := a.SetFeatures("eth0", map[string]bool{TCPv4Segs: true}); err == nil {
		t.Error("a wish that the driver ignores is no error")
	}
}

func TestLinkChanges(t *testing.T) {
	_, a, b := pair(t, 1, false)
	for _, addr := range []netip.Addr{addr2, addr2v6} {
		ok(t, reach(t, a, b, addr)) // at once: no search for duplicate addresses
	}

	ok(t, b.LinkDown("eth0"))
	if err := a.connect(netip.AddrPortFrom(addr2, 9)); errors.Is(err, unix.ECONNREFUSED) {
		t.Error("the other end answers while it is down")
	}
	ok(t, b.LinkUp("eth0"))
	eventually(t, "the link carries again", func() bool { return reach(t, a, b, addr2) == nil })

	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	ok(t, b.SetMAC("eth0", mac))
	ok(t, b.SetMTU("eth0", 1400))
	l, err := b.Link("eth0")
	ok(t, err)
	if !bytes.Equal(l.Attrs().HardwareAddr, mac) || l.Attrs().MTU != 1400 {
		t.Errorf("MAC %v, MTU %d; want %v, 1400", l.Attrs().HardwareAddr, l.Attrs().MTU, mac)
	}

	// A wrong permanent neighbour proves that it is used; without it the right one is found.
	ok(t, a.AddNeighbour("eth0", addr2, net.HardwareAddr{2, 0, 0, 0, 0, 0x66}))
	if err := reach(t, a, b, addr2); err == nil {
		t.Error("the neighbour entry is not used")
	}
	ok(t, a.DelNeighbour("eth0", addr2))
	ok(t, reach(t, a, b, addr2))

	ok(t, b.DelAddr("eth0", netip.PrefixFrom(addr2, 24)))
	if _, err := b.Listen("tcp", netip.AddrPortFrom(addr2, 0).String()); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("listen on a deleted address: %v; want EADDRNOTAVAIL", err)
	}
	ok(t, b.LinkDown("eth0"))
	ok(t, b.RenameLink("eth0", "eth1"))
	ok(t, b.DeleteLink("eth1"))
	var missing netlink.LinkNotFoundError
	for ns, name := range map[*Namespace]string{a: "eth0", b: "eth1"} {
		if _, err := ns.Link(name); !errors.As(err, &missing) {
			t.Errorf("%s in %s after the veth was deleted: %v; want LinkNotFoundError", name, ns, err)
		}
	}
}

func TestRoutes(t *testing.T) {
	_, a, b := pair(t, 1, false)
	for _, tc := range []struct{ far, gateway, source netip.Addr }{
		{netip.MustParseAddr("203.0.113.7"), addr2, addr1},
		{netip.MustParseAddr("2001:db8:77::7"), addr2v6, addr1v6},
	} {
		dst := netip.PrefixFrom(tc.far, tc.far.BitLen())
		lookup := func() (*netlink.Route, error) {
			routes, err := a.Netlink().RouteGet(tc.far.AsSlice())
			if err != nil {
				return nil, err
			}
			return &routes[0], nil
		}
		ok(t, b.AddAddr("lo", dst))
		if _, err := lookup(); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%v before any route: %v; want ENETUNREACH", dst, err)
		}
		ok(t, a.AddRoute(Route{Dst: dst, Via: []netip.Addr{tc.gateway}, Source: tc.source, MTU: 1300}))
		ok(t, reach(t, a, b, tc.far))
		r, err := lookup()
		ok(t, err)
		if !r.Gw.Equal(tc.gateway.AsSlice()) || !r.Src.Equal(tc.source.AsSlice()) || r.MTU != 1300 {
			t.Errorf("route to %v: %v", dst, r)
		}

		ok(t, a.AddRoute(Route{Dst: dst, Link: "eth0"})) // replaces
		r, err = lookup()
		ok(t, err)
		if len(r.Gw) != 0 {
			t.Errorf("route to %v still has gateway %v after it was replaced", dst, r.Gw)
		}
		ok(t, a.AddRoute(Route{Dst: dst, Kind: Blackhole}))
		if _, err := lookup(); !errors.Is(err, unix.EINVAL) {
			t.Errorf("blackhole to %v: %v; want EINVAL", dst, err)
		}
		ok(t, a.AddRoute(Route{Dst: dst, Kind: Unreachable}))
		if _, err := lookup(); !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("unreachable to %v: %v; want EHOSTUNREACH", dst, err)
		}
		ok(t, a.DelRoute(dst))
		if _, err := lookup(); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%v after the route was deleted: %v; want ENETUNREACH", dst, err)
		}
		if err := a.DelRoute(dst); !errors.Is(err, unix.ESRCH) {
			t.Errorf("deleted twice: %v; want ESRCH", err)
		}
	}
}
