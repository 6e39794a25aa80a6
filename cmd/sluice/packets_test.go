//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// throughNodes makes the nodes the backends' way to everywhere else, as NAT needs it.
func (s *system) throughNodes() {
	s.t.Helper()
	v4, v6 := testenv.Route{Dst: netip.MustParsePrefix("0.0.0.0/0")}, testenv.Route{Dst: netip.MustParsePrefix("::/0")}
	for _, n := range s.nodes {
		v4.Via, v6.Via = append(v4.Via, n.IPv4), append(v6.Via, n.IPv6)
	}
	for _, b := range s.backends {
		for _, key := range []string{"net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy"} {
			if err := b.SetSysctl(key, "1"); err != nil {
				s.t.Fatal(err)
			}
		}
		for _, r := range []testenv.Route{v4, v6} {
			if err := b.AddRoute(r); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// forwarding makes the nodes' kernels routers, so that replies of backends that need no translation pass through them too.
func (s *system) forwarding() {
	s.t.Helper()
	for _, n := range s.nodes {
		for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
			if err := n.SetSysctl(key, "1"); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// nat makes a service one that is forwarded by NAT, to another port of the backends.
func (s *system) nat(vip netip.Addr, protocol, ports string, backendPort int) rigService {
	out := s.service(vip, protocol, ports, "nat", vip.Is6())
	out.BackendPort = backendPort
	return out
}

// total sums up one of the workers' counters on all nodes.
func (s *system) total(of func(control.Worker) uint64) (n uint64) {
	for _, node := range s.nodes {
		for _, w := range s.status(node).Traffic.Workers {
			n += of(w)
		}
	}
	return n
}

// With NAT, packets of a connection and its replies pass through whichever node routers choose; none has seen it all.
func TestNATOverTwoNodes(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 2, 3)
	s.throughNodes()
	s.echoServers(7000)
	s.echoServers(7001)
	services := []rigService{s.nat(testVIP4, "tcp", "80", 7000), s.nat(testVIP6, "tcp", "7001", 0)}
	for i := range services {
		services[i].Check = fmt.Sprintf("{type: tcp, port: %d, interval: 200ms, timeout: 150ms, rise: 1, fall: 1}", 7000+i)
	}
	s.up(services...)
	for i := range 12 {
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(testVIP4, 80), netip.AddrPortFrom(testVIP6, 7001)} {
			if err := s.transfer(to, uint64(i), 1<<20); err != nil {
				t.Errorf("%v: %v", to, err)
			}
		}
	}
	for _, n := range s.nodes {
		st := s.status(n).Traffic.Steer
		t.Logf("%s: %d packets to VIPs, %d replies", n.name(), st.ToVIPs, st.Replies)
		if st.ToVIPs == 0 || st.Replies == 0 {
			t.Errorf("%s took no part", n.name())
		}
	}
	// What the backends send to the node itself is the kernel's, from the services' ports too: probes are answered.
	for _, n := range s.nodes {
		for _, svc := range s.status(n).Traffic.Services {
			for _, b := range svc.Backends {
				if b.Health.State != control.StateUp {
					t.Errorf("%s: %s of %s is %s: %s", n.name(), b.Name, svc.Name, b.Health.State, b.Health.Evidence)
				}
			}
		}
		s.run(s.backends[0].Namespace, 10*time.Second, "ping", "-q", "-c", "2", "-i", "0.1", "-W", "2", n.IPv4.String())
	}
	s.down()
}

// A backend's "port unreachable" reaches the client as the VIP's, for the port that the client knows: its socket is told.
func TestNATErrors(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 2, 2)
	s.throughNodes()
	s.up(s.nat(testVIP4, "udp", "53", 5353), s.nat(testVIP6, "udp", "53", 5353))
	for _, vip := range s.vips {
		conn, err := s.net.Client.Dialer().DialContext(context.Background(), "udp", netip.AddrPortFrom(vip, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Write([]byte("anybody?")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%v: %v, want connection refused", vip, err)
		}
	}
	s.down()
}

// udpLoss runs iperf3 over UDP from the client to an address where a server listens, and returns how many datagrams of the
// length were sent and lost.
func (s *system) udpLoss(to netip.Addr, length int) (sent, lost float64) {
	s.t.Helper()
	report := s.iperf3(to, "-u", "-b", "40M", "-l", fmt.Sprint(length))
	return report.End.Sum.Packets, report.End.Sum.LostPackets
}

// iperfServer runs iperf3's server on the first backend, bound to an address.
func (s *system) iperfServer(bind netip.Addr) {
	s.t.Helper()
	server, err := s.backends[0].Start(testenv.Cmd{Path: "iperf3", Args: []string{"-s", "--forceflush", "-B", bind.String()}})
	if err == nil {
		err = server.WaitOutput(10*time.Second, "listening")
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// Datagrams of 8 KB arrive whole, in each mode: their fragments go to the backend that the flow's whole packets go to. On a
// LAN of 1,500 bytes the fragments are fragmented once more to make room for outer headers.
func TestFragments(t *testing.T) {
	for _, c := range []struct {
		forward string
		mtu     int
	}{{"l2", 1500}, {"ipip", 1600}, {"gue", 1600}, {"ipip", 1500}, {"nat", 1500}} {
		t.Run(fmt.Sprintf("%s, LAN of %d bytes", c.forward, c.mtu), func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, 1, 1)
			s.setMTU(c.mtu)
			if c.forward == "nat" {
				s.throughNodes()
			}
			b := s.backends[0]
			var services []rigService
			for _, vip := range s.vips {
				for _, protocol := range []string{"tcp", "udp"} {
					services = append(services, s.service(vip, protocol, "5201", c.forward, vip.Is6()))
				}
			}
			s.up(services...)
			for _, vip := range s.vips {
				if vip.Is6() && c.forward == "ipip" && c.mtu == 1500 {
					continue // only the sender fragments IPv6, and needs to be told: TestTooBig
				}
				bind := vip
				if c.forward == "nat" {
					bind = map[bool]netip.Addr{true: b.IPv4, false: b.IPv6}[vip.Is4()]
				}
				s.iperfServer(bind)
				sent, lost := s.udpLoss(vip, 8192)
				t.Logf("%v: %.0f datagrams, %.0f lost", vip, sent, lost)
				if sent < 300 || lost > sent/100 {
					t.Errorf("%v: %.0f of %.0f datagrams lost", vip, lost, sent)
				}
			}
			s.down()
		})
	}
}

// setMTU sets the MTU of everything on the LAN.
func (s *system) setMTU(mtu int) {
	s.t.Helper()
	set := func(ns *testenv.Namespace, name string) {
		if err := ns.SetMTU(name, mtu); err != nil {
			s.t.Fatal(err)
		}
	}
	if mtu > testenv.LANMTU {
		for _, h := range append(append([]*testenv.Host{}, s.net.Nodes...), s.net.Backends...) {
			set(s.net.Router.Namespace, h.Port())
		}
	}
	set(s.net.Router.Namespace, "br0")
	for _, n := range s.nodes {
		set(n.Namespace, "eth0")
	}
	for _, b := range s.backends {
		set(b.Namespace, "eth0")
	}
}

// On a LAN of 1,500 bytes, with nobody clamping anything, clients learn from the node what fits, and their uploads get
// through; what may be fragmented is.
func TestTooBig(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, rigOptions{nodes: 1, backends: 1, clampMSS: "off"})
	s.setMTU(1500)
	s.up(s.service(testVIP4, "tcp", "7000", "ipip", false), s.service(testVIP6, "tcp", "7000", "gue", false),
		s.service(testVIP4, "tcp", "5201", "ipip", false), s.service(testVIP4, "udp", "5201", "ipip", false),
		s.service(testVIP6, "tcp", "5201", "ipip", false), s.service(testVIP6, "udp", "5201", "ipip", false))
	s.echoServers(7000)
	for _, vip := range s.vips {
		if err := s.transfer(netip.AddrPortFrom(vip, 7000), 1, 4<<20); err != nil {
			t.Errorf("%v: %v", vip, err)
		}
	}
	big := s.total(func(w control.Worker) uint64 { return w.Dropped["too_big"] })
	told := s.total(func(w control.Worker) uint64 { return w.Generated })
	t.Logf("%d packets too big, %d times the sender was told", big, told)
	if big == 0 || told == 0 {
		t.Error("nothing was too big: the test shows nothing")
	}
	// The client knows by now; another of its addresses does not, and lets its packets be fragmented.
	if err := s.net.Client.SetSysctl("net.ipv4.ip_no_pmtu_disc", "1"); err != nil {
		t.Fatal(err)
	}
	s.run(s.net.Client, 10*time.Second, "ip", "route", "flush", "cache")
	s.iperfServer(testVIP4)
	sent, lost := s.udpLoss(testVIP4, 1472)
	t.Logf("without don't-fragment: %.0f datagrams, %.0f lost", sent, lost)
	if lost > sent/100 {
		t.Errorf("%.0f of %.0f datagrams that may be fragmented were lost", lost, sent)
	}
	if after := s.total(func(w control.Worker) uint64 { return w.Generated }); after < told+uint64(sent)/2 {
		t.Errorf("%d frames generated for %.0f datagrams: they were not fragmented", after-told, sent)
	}
	s.down()
}

// A service without a backend refuses at once, if it is to: clients do not have to wait for their timeouts.
func TestReject(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	services := []rigService{
		s.service(testVIP4, "tcp", "80", "ipip", false), s.service(testVIP6, "tcp", "80", "ipip", false),
		s.service(testVIP4, "udp", "53", "ipip", false), s.service(testVIP6, "udp", "53", "ipip", false),
		s.service(testVIP4, "tcp", "81", "ipip", false),
	}
	for i := range services {
		services[i].Check = "{type: tcp, port: 9, interval: 1h}" // nothing is known for hours
		services[i].Options = "on_no_backend: reject"
	}
	services[4].Options = "on_no_backend: drop"
	n := s.nodes[0]
	if err := s.configure(n, services...); err != nil {
		t.Fatal(err)
	}
	var err error
	if n.daemon, err = n.Start(testenv.Cmd{Path: filepath.Join(bin, "sluice"), Args: []string{"run", "--config", n.config}}); err != nil {
		t.Fatal(err)
	}
	if err := n.daemon.WaitOutput(10*time.Second, "forwarding"); err != nil {
		t.Fatal(err)
	}
	for _, vip := range s.vips {
		for network, port := range map[string]uint16{"tcp": 80, "udp": 53} {
			start := time.Now()
			err := s.knock(network, netip.AddrPortFrom(vip, port), 5*time.Second)
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s to %v: %v after %v, want connection refused", network, vip, err, time.Since(start))
			}
		}
	}
	if err := s.knock("tcp", netip.AddrPortFrom(testVIP4, 81), 300*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
		t.Errorf("a service that drops: %v, want a timeout", err)
	}
	s.down()
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// knock connects, sends enough to be answered by ICMP, and waits for an answer.
func (s *system) knock(network string, to netip.AddrPort, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := s.net.Client.Dialer().DialContext(ctx, network, to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(limit))
	if _, err := conn.Write(make([]byte, 64)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// echo has a client in a namespace say something to an echo server.
func (s *system) echo(client *testenv.Namespace, to netip.AddrPort) error {
	conn, err := client.Dialer().DialContext(context.Background(), "tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	said, heard := []byte("hello"), make([]byte, 5)
	if _, err := conn.Write(said); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, heard); err != nil || !bytes.Equal(said, heard) {
		return fmt.Errorf("heard %q: %w", heard, err)
	}
	return nil
}

// VIP traffic arrives by one interface and leaves by another one, to backends on a LAN of their own, and with NAT comes back
// the same way.
func TestTwoArms(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 0)
	node, router := s.nodes[0], s.net.Router
	// The back LAN: a second bridge in the router, with the node's second interface.
	if err := router.Bridge("br1", net.HardwareAddr{2, 0, 0, 0, 9, 1}, testenv.LANMTU); err != nil {
		t.Fatal(err)
	}
	cable := func(h *testenv.Host, name, port string) {
		t.Helper()
		err := s.env.Veth(testenv.End{Namespace: h.Namespace, Name: name, MAC: h.MAC, MTU: testenv.LANMTU},
			testenv.End{Namespace: router.Namespace, Name: port, MTU: testenv.LANMTU, Bridge: "br1", SoftwareChecksums: true}, 2)
		if err == nil {
			err = h.AddAddr(name, netip.PrefixFrom(h.IPv4, 24))
		}
		if err == nil {
			err = h.AddAddr(name, netip.PrefixFrom(h.IPv6, 64))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"10.0.9.1/24", "2001:db8:0:9::1/64"} {
		if err := router.AddAddr("br1", netip.MustParsePrefix(p)); err != nil {
			t.Fatal(err)
		}
	}
	back := &testenv.Host{Namespace: node.Namespace, IPv4: netip.MustParseAddr("10.0.9.2"), IPv6: netip.MustParseAddr("2001:db8:0:9::2"), MAC: net.HardwareAddr{2, 0, 0, 0, 9, 2}}
	cable(back, "eth1", "node1b")
	for i := range 2 {
		ns, err := s.env.Namespace(fmt.Sprintf("rear%d", i+1))
		if err != nil {
			t.Fatal(err)
		}
		h := &testenv.Host{Namespace: ns, MAC: net.HardwareAddr{2, 0, 0, 0, 9, byte(11 + i)},
			IPv4: netip.AddrFrom4([4]byte{10, 0, 9, byte(11 + i)}), IPv6: netip.MustParseAddr(fmt.Sprintf("2001:db8:0:9::%d", 11+i))}
		cable(h, "eth0", fmt.Sprintf("rear%d", i+1))
		if err := s.startBackend(h); err != nil {
			t.Fatal(err)
		}
		// DSR replies go by the router, NAT replies by the node.
		for _, r := range []testenv.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: []netip.Addr{netip.MustParseAddr("10.0.9.1")}},
			{Dst: netip.MustParsePrefix("::/0"), Via: []netip.Addr{back.IPv6}},
		} {
			if err := ns.AddRoute(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.interfaces = "[{name: eth0}, {name: eth1}]"
	s.up(s.service(testVIP4, "tcp", "7000", "ipip", false), s.service(testVIP4, "tcp", "7001", "l2", false), s.nat(testVIP6, "tcp", "7000", 7001))
	s.echoServers(7000)
	s.echoServers(7001)
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(testVIP4, 7000), netip.AddrPortFrom(testVIP4, 7001), netip.AddrPortFrom(testVIP6, 7000)} {
		for i := range 4 {
			if err := s.transfer(to, uint64(i), 2<<20); err != nil {
				t.Errorf("%v: %v", to, err)
			}
		}
	}
	// A client on the node's own link, whose Ethernet address the node has to find out for the first reply.
	near, err := s.net.AddBackend()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.echo(near.Namespace, netip.AddrPortFrom(testVIP6, 7000)); err != nil {
		t.Errorf("a client on the node's link: %v", err)
	}
	for _, i := range s.status(node).Traffic.Interfaces {
		sent := uint64(0)
		for _, q := range i.Queues {
			sent += q.Sent
		}
		if sent == 0 {
			t.Errorf("nothing was sent by %s", i.Name)
		}
	}
	s.down()
}

// A node whose traffic is tagged with an 802.1Q VLAN, NAT and DSR. (The kernel of a test machine may have no VLAN devices: the
// tags are put on and taken off by programs at both ends of the node's cable.)
func TestVLAN(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 2)
	node, router := s.nodes[0], s.net.Router
	for _, end := range []struct {
		ns   *testenv.Namespace
		name string
	}{{router.Namespace, s.net.Nodes[0].Port()}, {node.Namespace, "eth0"}} {
		// Tags are to be in the frame, not beside it, where an XDP program would not see them.
		if err := end.ns.SetFeatures(end.name, map[string]bool{"tx-vlan-hw-insert": false}); err != nil {
			t.Fatal(err)
		}
		tagPackets(t, end.ns, end.name, 100)
	}
	s.throughNodes()
	s.forwarding()
	s.interfaces = "[{name: eth0, vlan: 100}]"
	s.up(s.service(testVIP4, "tcp", "7000", "ipip", false), s.service(testVIP6, "tcp", "7000", "l2", true), s.nat(testVIP4, "tcp", "7001", 7000))
	s.echoServers(7000)
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(testVIP4, 7000), netip.AddrPortFrom(testVIP4, 7001), netip.AddrPortFrom(testVIP6, 7000)} {
		for i := range 3 {
			if err := s.transfer(to, uint64(i), 2<<20); err != nil {
				t.Errorf("%v: %v", to, err)
			}
		}
	}
	s.run(s.net.Client, 10*time.Second, "ping", "-q", "-c", "3", "-i", "0.1", "-W", "2", testVIP4.String())
	s.down()
}

// tagPackets has everything that leaves by an interface tagged, and everything that comes in untagged.
func tagPackets(t testing.TB, ns *testenv.Namespace, name string, vlan int32) {
	t.Helper()
	push := asm.Instructions{
		asm.LoadImm(asm.R2, 0x0081, asm.DWord), // ETH_P_8021Q in network order
		asm.Mov.Imm(asm.R3, vlan),
		asm.FnSkbVlanPush.Call(),
		asm.Mov.Imm(asm.R0, -1), // TCX_NEXT
		asm.Return(),
	}
	pop := asm.Instructions{
		asm.FnSkbVlanPop.Call(),
		asm.Mov.Imm(asm.R0, -1),
		asm.Return(),
	}
	for attach, code := range map[ebpf.AttachType]asm.Instructions{ebpf.AttachTCXEgress: push, ebpf.AttachTCXIngress: pop} {
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: code, License: "GPL"})
		if err != nil {
			t.Fatal(err)
		}
		dev, err := ns.Link(name)
		if err != nil {
			t.Fatal(err)
		}
		var l link.Link
		err = ns.Do(func() (err error) {
			l, err = link.AttachTCX(link.TCXOptions{Interface: dev.Attrs().Index, Program: program, Attach: attach})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close(); program.Close() })
	}
}

// An interface that is renamed is given up, and said so; under its old name it is taken again.
func TestRename(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false))
	s.curlAll(testVIP4, 10)
	n := s.nodes[0]
	if err := n.RenameLink("eth0", "wan"); err != nil {
		t.Fatal(err)
	}
	if err := n.daemon.WaitUntil(10*time.Second, "the rename is reported", func() error {
		if p := s.status(n).Traffic.Interfaces[0].Problem; !strings.Contains(p, "wan") {
			return fmt.Errorf("problem %q", p)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.RenameLink("wan", "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := n.daemon.WaitUntil(10*time.Second, "ready again", n.ready); err != nil {
		t.Fatal(err)
	}
	s.curlAll(testVIP4, 10)
	s.down()
}

// Frames of 9,000 bytes, which come in several buffers, pass in each mode.
func TestJumbo(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 2)
	s.setMTU(9100)
	for _, l := range []struct {
		ns   *testenv.Namespace
		name string
	}{{s.net.Client, "eth0"}, {s.net.Router.Namespace, "client"}} {
		if err := l.ns.SetMTU(l.name, 9000); err != nil {
			t.Fatal(err)
		}
	}
	// A program that takes large frames leaves segmentation offload to the other end of the cable, which has no NIC to do it.
	err := s.net.Router.SetFeatures(s.net.Nodes[0].Port(), map[string]bool{testenv.TCPv4Segs: false, testenv.TCPv6Segs: false, testenv.SoftSegs: false})
	if err != nil {
		t.Fatal(err)
	}
	s.throughNodes()
	s.forwarding()
	s.up(s.service(testVIP4, "tcp", "7000", "ipip", false), s.service(testVIP6, "tcp", "7000", "gue", false),
		s.nat(testVIP4, "tcp", "7001", 7000), s.service(testVIP6, "tcp", "7001", "l2", true))
	s.echoServers(7000)
	s.echoServers(7001)
	for _, vip := range s.vips {
		for _, port := range []uint16{7000, 7001} {
			if err := s.transfer(netip.AddrPortFrom(vip, port), uint64(port), 8<<20); err != nil {
				t.Errorf("%v port %d: %v", vip, port, err)
			}
		}
	}
	if n := s.total(func(w control.Worker) uint64 { return w.Continued }); n < 1000 {
		t.Errorf("%d further frames: no packet was longer than one", n)
	}
	s.down()
}
