//go:build linux

package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/testenv"
)

// Packets arrive with the very outer headers that the forwarder makes, but for the identification of IPv4, which the kernel
// fills in; and with another source for each connection, if they are to.
func TestOuterHeaders(t *testing.T) {
	r := newRig(t)
	packets := r.capture()
	r.agent()
	r.serve()
	sources := map[bool]netip.Prefix{true: netip.MustParsePrefix("10.7.0.0/16"), false: netip.MustParsePrefix("fd00:7::/64")}
	const connections = 20
	for _, own := range []bool{true, false} {
		for _, path := range ways() {
			if path.Forward == L2 {
				continue
			}
			if !own {
				path.Source = sources[path.Backend.Is4()]
			}
			t.Run(fmt.Sprintf("%s from %v", path.name(), path.Source), func(t *testing.T) {
				before := len(packets())
				for range connections {
					if err := r.dial(r.soon(), path, openPort); err != nil {
						t.Fatal(err)
					}
				}
				seen := map[netip.Addr]bool{}
				r.eventually("three packets of each connection", func() bool {
					n := 0
					clear(seen)
					for _, p := range packets()[before:] {
						if source, ok := r.compare(t, &path, p); ok {
							seen[source] = true
							n++
						}
					}
					return n >= 3*connections
				})
				for source := range seen {
					if node := map[bool]netip.Addr{true: node4, false: node6}[path.Backend.Is4()]; own && source != node || !own && !path.Source.Contains(source) {
						t.Errorf("outer source %v", source)
					}
				}
				if own != (len(seen) == 1) || !own && len(seen) < connections/2 {
					t.Errorf("%d outer sources of %d connections", len(seen), connections)
				}
			})
		}
	}
}

// compare makes the outer headers of a packet anew. ok is false if it is none of the path's.
func (r *rig) compare(t *testing.T, path *Path, got []byte) (source netip.Addr, ok bool) {
	t.Helper()
	outer, proto, node := 40, 6, node6
	if got[0]>>4 == 4 {
		outer, proto, node = 20, 9, node4
	}
	if int(got[0]>>4) != map[bool]int{true: 4, false: 6}[path.Backend.Is4()] {
		return source, false
	}
	source, _ = netip.AddrFromSlice(got[8:24])
	if outer == 20 {
		source, _ = netip.AddrFromSlice(got[12:16])
	}
	if want := map[string][]byte{IPIP: {4, 41}, GUE: {17}}[path.Forward]; !slices.Contains(want, got[proto]) {
		return source, false
	}
	var e packet.Encap
	var err error
	if path.Forward == GUE {
		if binary.BigEndian.Uint16(got[outer+2:]) != guePort {
			return source, false
		}
		outer += 8
		e, err = packet.NewGUE(packet.MAC{}, packet.MAC{}, node, path.Backend, guePort, path.GUEChecksum)
	} else {
		e, err = packet.NewIPIP(packet.MAC{}, packet.MAC{}, node, path.Backend)
	}
	if err != nil {
		t.Fatal(err)
	}
	if path.Source.IsValid() {
		e.VarySource(path.Source)
	}
	inner := got[outer:]
	if (inner[0]>>4 == 4) != path.VIP.Is4() {
		return source, false
	}
	frame := make([]byte, packet.Headroom+etherLen, packet.Headroom+etherLen+len(inner))
	binary.BigEndian.PutUint16(frame[packet.Headroom+etherLen-2:], r.dialer.link.family(path.VIP.Is4()).etherType)
	frame = append(frame, inner...)
	var m packet.Meta
	packet.Parse(frame[packet.Headroom:], &r.dialer.link.key, &m)
	if m.Reason != packet.None {
		t.Fatalf("inner packet % x: %v", inner, m.Reason)
	}
	start, length := e.Apply(frame, packet.Headroom, &m)
	want := frame[start+etherLen : start+length]
	got = slices.Clone(got[:len(want)])
	if got[0]>>4 == 4 {
		clear(got[4:6]) // identification, and the checksum over it
		clear(got[10:12])
		clear(want[4:6])
		clear(want[10:12])
	}
	if !slices.Equal(got, want) {
		t.Fatalf("packet, then what the forwarder would make of it:\n% x\n% x", got[:outer+20], want[:outer+20])
	}
	return source, true
}

// The kernel gets the answers, too, with and without a reverse path filter. What it says to them arrives nowhere.
func TestKernelKeepsQuiet(t *testing.T) {
	r := newRig(t)
	packets := r.capture()
	r.agent()
	r.serve()
	for _, filter := range []string{"0", "1", "2"} {
		for _, conf := range []string{"all", "eth0"} {
			r.ok(r.node.SetSysctl("net/ipv4/conf/"+conf+"/rp_filter", filter))
		}
		for _, path := range ways() {
			body, err := r.get(r.soon(), path, "/long")
			if err != nil || len(body) < 64<<10 {
				t.Errorf("%s, rp_filter=%s: %d bytes, %v", path.name(), filter, len(body), err)
			}
		}
	}
	for _, p := range packets() {
		if kernels(p) {
			t.Errorf("the node's kernel spoke to the VIP: % x", p)
		}
	}
	// It would speak if the VIPs had routes.
	for _, path := range ways()[:2] {
		r.ok(r.node.DelRoute(netip.PrefixFrom(path.VIP, path.VIP.BitLen())))
		r.ok(r.node.AddRoute(testenv.Route{Dst: netip.PrefixFrom(path.VIP, path.VIP.BitLen()), Via: []netip.Addr{path.Backend}}))
		before := len(packets())
		_ = r.dial(r.soon(), path, openPort)
		r.eventually("a reset by the node's kernel", func() bool { return slices.ContainsFunc(packets()[before:], kernels) })
	}
}

// kernels says whether a packet to the VIP, without outer headers, is one that the kernel sends of its own accord: the reset of a
// connection that it does not know has no acknowledgement, one of netstack's has; and an ICMP error.
func kernels(p []byte) bool {
	if p[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(p[16:20])) == vip4 && (p[9] == unix.IPPROTO_TCP && p[20+13]&0x14 == 0x04 || p[9] == unix.IPPROTO_ICMP)
	}
	return netip.AddrFrom16([16]byte(p[24:40])) == vip6 && (p[6] == unix.IPPROTO_TCP && p[40+13]&0x14 == 0x04 || p[6] == unix.IPPROTO_ICMPV6)
}

// The kernel copies what may be an answer, and nothing else.
func TestFilters(t *testing.T) {
	r := newRig(t)
	r.vips()
	r.serve()
	copied := func(f *family) (n uint32) {
		r.ok(f.inlet.raw.Control(func(fd uintptr) {
			stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS) // reading clears it
			if err == nil {
				n = stats.Packets
			}
		}))
		return n
	}
	datagram := func(from *testenv.Namespace, to netip.AddrPort) {
		conn, err := from.Dialer().DialContext(r.soon(), "udp", to.String())
		r.ok(err)
		_, err = conn.Write([]byte("x"))
		r.ok(errors.Join(err, conn.Close()))
	}
	for _, c := range []struct {
		family                  *family
		node, backend, loopback netip.Addr
	}{
		{&r.dialer.link.v4, node4, backend4, netip.MustParseAddr("127.0.0.1")},
		{&r.dialer.link.v6, node6, backend6, netip.IPv6Loopback()},
	} {
		r.ok(r.direct(c.backend)) // connections of the node's kernel
		datagram(r.node, netip.AddrPortFrom(c.backend, firstPort))
		datagram(r.node, netip.AddrPortFrom(c.loopback, firstPort))
		datagram(r.backend, netip.AddrPortFrom(c.node, firstPort-1))
		// In order on one cable: once the next one is there, so was all before.
		datagram(r.backend, netip.AddrPortFrom(c.node, firstPort))
		n := uint32(0)
		r.eventually("the packet to one of our ports", func() bool { n += copied(c.family); return n > 0 })
		datagram(r.backend, netip.AddrPortFrom(c.node, 65535))
		r.eventually("the packet to the last port", func() bool { n += copied(c.family); return n > 1 })
		if n != 2 {
			t.Errorf("%d packets were copied, want 2", n)
		}
	}
}

// Paths that lead nowhere fail at once, with the kernel's words.
func TestNoWay(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		path Path
		want error
	}{
		{Path{Forward: IPIP, VIP: vip4, Backend: netip.MustParseAddr("203.0.113.1")}, syscall.ENETUNREACH},
		{Path{Forward: L2, VIP: vip6, Backend: netip.MustParseAddr("2001:db8:ff::1")}, syscall.ENETUNREACH},
		{Path{Forward: IPIP, VIP: vip6, Backend: vip6}, syscall.EINVAL},
		{Path{Forward: IPIP, VIP: vip4, Backend: node4}, syscall.EHOSTUNREACH},
		{Path{Forward: L2, VIP: vip4, Backend: netip.MustParseAddr("10.0.0.77")}, syscall.EHOSTUNREACH},
		{Path{Forward: L2, VIP: vip6, Backend: netip.MustParseAddr("fd00::77")}, syscall.EHOSTUNREACH},
	} {
		if err := r.dial(r.soon(), c.path, openPort); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.path, err, c.want)
		}
	}
	r.ok(r.node.DelAddr("eth0", netip.PrefixFrom(node6, 64)))
	if err := r.dial(r.soon(), Path{Forward: IPIP, VIP: vip6, Backend: backend4}, openPort); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("without an IPv6 address: %v, want EADDRNOTAVAIL", err)
	}
}
