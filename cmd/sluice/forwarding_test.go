//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/testenv"
)

// 10,000 requests by curl, from four addresses, to nginx: all are answered, by all backends.
func TestTenThousandRequests(t *testing.T) {
	s := newSystem(t, 1, 3)
	s.nginx()
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false), s.service(testVIP6, "tcp", "80", "ipip", false))
	for vip, n := range map[netip.Addr]int{testVIP4: 2000, testVIP6: 500} {
		by := s.curlAll(vip, n)
		t.Logf("%v: %v", vip, by)
		if len(by) != 3 {
			t.Errorf("%v: not all backends answered: %v", vip, by)
		}
	}
	s.down()
}

// Every mode and pair of families carries 100 MB in both directions, byte for byte.
func TestModesAndFamilies(t *testing.T) {
	for _, c := range []struct {
		vip     netip.Addr
		forward string
		outer6  bool
	}{
		{testVIP4, "l2", false}, {testVIP6, "l2", true},
		{testVIP4, "ipip", false}, {testVIP4, "ipip", true}, {testVIP6, "ipip", false}, {testVIP6, "ipip", true},
		{testVIP4, "gue", false}, {testVIP4, "gue", true}, {testVIP6, "gue", false}, {testVIP6, "gue", true},
		{testVIP4, "nat", false}, {testVIP6, "nat", true},
	} {
		t.Run(fmt.Sprintf("%s, VIP of IPv%d, backends of IPv%d", c.forward, map[bool]int{true: 4, false: 6}[c.vip.Is4()], map[bool]int{true: 6, false: 4}[c.outer6]), func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, 1, 2)
			if c.forward == "nat" {
				s.throughNodes()
			}
			s.up(s.service(c.vip, "tcp", "7000", c.forward, c.outer6))
			s.echoServers(7000)
			for i := range 4 {
				if err := s.transfer(netip.AddrPortFrom(c.vip, 7000), uint64(i), 25<<20); err != nil {
					t.Error(err)
				}
			}
			s.down()
		})
	}
}

// On a LAN of 1,500 bytes, with outer sources that vary and GUE's checksums on, bulk transfers work: the agents have the
// clients leave room for the outer headers, and no packet is too big.
func TestNarrowLAN(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 2)
	hosts := []*testenv.Namespace{s.net.Router.Namespace, s.nodes[0].Namespace, s.backends[0].Namespace, s.backends[1].Namespace}
	for i, h := range hosts {
		if err := h.SetMTU([]string{"br0", "eth0", "eth0", "eth0"}[i], 1500); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range s.backends {
		if err := b.agent.WaitUntil(10*time.Second, "SYN-ACKs are clamped", func() error {
			out, err := b.Run(5*time.Second, testenv.Cmd{Path: filepath.Join(bin, "sluice-agent"), Args: []string{"status", "--state-dir", s.path("agent")}})
			if err == nil && !strings.Contains(out, "1412") {
				err = errors.New(out)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	s.tunnel = "{gue_checksum: true, source_ipv4: 10.7.0.0/16, source_ipv6: 'fd00:7::/64'}"
	s.up(s.service(testVIP4, "tcp", "7000", "gue", true), s.service(testVIP6, "tcp", "7000", "gue", false),
		rigService{Name: "ipip4", VIP: testVIP4, Protocol: "tcp", Ports: "7001", Forward: "ipip", Backends: s.backends},
		rigService{Name: "ipip6", VIP: testVIP6, Protocol: "tcp", Ports: "7001", Forward: "ipip", Outer6: true, Backends: s.backends})
	s.echoServers(7000)
	s.echoServers(7001)
	for i := range 4 {
		for _, vip := range s.vips {
			if err := s.transfer(netip.AddrPortFrom(vip, uint16(7000+i%2)), uint64(i), 2<<20); err != nil {
				t.Errorf("%v port %d: %v", vip, 7000+i%2, err)
			}
		}
	}
	for _, w := range s.status(s.nodes[0]).Traffic.Workers {
		if w.Dropped.Total() != 0 {
			t.Errorf("worker %d dropped %v", w.ID, w.Dropped)
		}
	}
	s.down()
}

// One gigabyte through the VIP arrives byte for byte.
func TestGigabyte(t *testing.T) {
	s := newSystem(t, 1, 2)
	s.up(s.service(testVIP4, "tcp", "7000", "ipip", false))
	const size = 1 << 30
	type result struct {
		n   int64
		sum string
		err error
	}
	results := make(chan result, 1)
	for _, b := range s.backends {
		l, err := b.Listen("tcp", ":7000")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return // the other backend was chosen
			}
			defer conn.Close()
			h := sha256.New()
			n, err := io.Copy(h, conn)
			results <- result{n, hex.EncodeToString(h.Sum(nil)), err}
		}()
	}
	conn, err := s.net.Client.Dialer().DialContext(context.Background(), "tcp", netip.AddrPortFrom(testVIP4, 7000).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(3 * time.Minute))
	start, want := time.Now(), sha256.New()
	if _, err := io.Copy(io.MultiWriter(conn, want), random(1, size)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	select {
	case r := <-results:
		if r.err != nil || r.n != size || r.sum != hex.EncodeToString(want.Sum(nil)) {
			t.Fatalf("arrived: %d bytes, %v, checksum %s, sent %x", r.n, r.err, r.sum, want.Sum(nil))
		}
		t.Logf("%d bytes in %v, checksum %s", r.n, time.Since(start).Round(time.Millisecond), r.sum[:16])
	case <-time.After(2 * time.Minute):
		t.Fatal("the receiver did not see the end")
	}
	s.down()
}

// iperfReport is what iperf3 says of a run.
type iperfReport struct {
	Error string
	End   struct {
		Sum         struct{ Packets, LostPackets, Bytes float64 }
		SumReceived struct{ Bytes float64 } `json:"sum_received"`
	}
}

// iperf3 runs iperf3 for a second from the client. Its server serves one after the other, and takes a moment to see that
// the one before has ended.
func (s *system) iperf3(to netip.Addr, mode ...string) (report iperfReport) {
	s.t.Helper()
	args := append([]string{"-c", to.String(), "-t", "1", "-J"}, mode...)
	for range 50 {
		report = iperfReport{}
		out, err := s.net.Client.Run(30*time.Second, testenv.Cmd{Path: "iperf3", Args: args})
		jsonErr := json.Unmarshal([]byte(out), &report)
		if jsonErr == nil && strings.Contains(report.Error, "busy") {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if err != nil || jsonErr != nil || report.Error != "" {
			s.t.Fatalf("iperf3 %v: %v %v %s", args, err, jsonErr, report.Error)
		}
		return report
	}
	s.t.Fatalf("iperf3 %v: %s", args, report.Error)
	return report
}

// iperf3, whose control and data connections must reach the same server, runs over TCP and UDP, IPv4 and IPv6.
func TestIperf3(t *testing.T) {
	s := newSystem(t, 1, 1)
	var services []rigService
	for _, vip := range s.vips {
		services = append(services, s.service(vip, "tcp", "5201", "ipip", false), s.service(vip, "udp", "5201", "ipip", false))
	}
	s.up(services...)
	for _, vip := range s.vips {
		server, err := s.backends[0].Start(testenv.Cmd{Path: "iperf3", Args: []string{"-s", "--forceflush", "-B", vip.String()}})
		if err != nil {
			t.Fatal(err)
		}
		if err := server.WaitOutput(10*time.Second, "listening"); err != nil {
			t.Fatal(err)
		}
		for _, mode := range [][]string{{}, {"-u", "-b", "50M", "-l", "1200"}} {
			report := s.iperf3(vip, mode...)
			if len(mode) == 0 {
				t.Logf("%v TCP: %.0f MB received in 1 s", vip, report.End.SumReceived.Bytes/1e6)
				if report.End.SumReceived.Bytes < 1e6 {
					t.Errorf("%v: TCP received %v bytes", vip, report.End.SumReceived.Bytes)
				}
			} else {
				t.Logf("%v UDP: %.0f packets, %.0f lost", vip, report.End.Sum.Packets, report.End.Sum.LostPackets)
				if report.End.Sum.Packets < 1000 || report.End.Sum.LostPackets > report.End.Sum.Packets/100 {
					t.Errorf("%v: UDP %+v", vip, report.End.Sum)
				}
			}
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	s.down()
}

// Connections go on when the node that carries them leaves the ECMP group: the other node, which has never seen them, sends
// them to the same backends.
func TestNodeLeaves(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 2, 4)
	s.up(s.service(testVIP4, "tcp", "7000", "ipip", false), s.service(testVIP6, "tcp", "7000", "ipip", true))
	s.echoServers(7000)
	var conns []net.Conn
	for i := range 60 {
		vip := s.vips[i%2]
		conn, err := s.net.Client.Dialer().DialContext(context.Background(), "tcp", netip.AddrPortFrom(vip, 7000).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	talk := func(when string) {
		t.Helper()
		for i, c := range conns {
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			message := []byte(fmt.Sprintf("%s %d", when, i))
			answer := make([]byte, len(message))
			if _, err := c.Write(message); err != nil {
				t.Fatalf("%s: connection %d: %v", when, i, err)
			}
			if _, err := io.ReadFull(c, answer); err != nil || !bytes.Equal(answer, message) {
				t.Fatalf("%s: connection %d: %q, %v", when, i, answer, err)
			}
		}
	}
	talk("two nodes")
	for _, n := range s.nodes {
		if s.status(n).Traffic.Steer.ToVIPs == 0 {
			t.Fatalf("%s got no packet", n.name())
		}
	}
	if err := s.net.Announce(s.vips, s.nodes[1].Host); err != nil {
		t.Fatal(err)
	}
	talk("the second alone")
	if err := s.net.Announce(s.vips, s.nodes[0].Host); err != nil {
		t.Fatal(err)
	}
	talk("the first alone")
	if err := s.net.Announce(s.vips, s.nodes[0].Host, s.nodes[1].Host); err != nil {
		t.Fatal(err)
	}
	talk("two nodes again")
	s.down()
}

// More queues than cores are dealt out to the workers, fewer leave cores without a worker; no packet is lost either way.
func TestQueues(t *testing.T) {
	for _, queues := range []int{1, 5} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			t.Parallel()
			s := newSystemWithQueues(t, 1, 2, queues)
			s.nginx()
			s.up(s.service(testVIP4, "tcp", "80", "ipip", false))
			s.curlAll(testVIP4, 100)
			st := s.status(s.nodes[0])
			if want := min(queues, runtime.NumCPU()); len(st.Traffic.Workers) != want {
				t.Errorf("%d workers, want %d", len(st.Traffic.Workers), want)
			}
			for _, q := range st.Traffic.Interfaces[0].Queues {
				if q.Received == 0 || q.Worker != q.Queue%len(st.Traffic.Workers) {
					t.Errorf("queue %d: worker %d, %d received", q.Queue, q.Worker, q.Received)
				}
			}
			s.down()
		})
	}
}

// The classic failure of ECMP and load balancers: a link towards the client has a smaller MTU, and the router's error goes to
// the VIP. It must reach the backend whose packets were too big, on either node; then the transfer goes on.
func TestPathMTU(t *testing.T) {
	for _, forward := range []string{"ipip", "nat"} {
		t.Run(forward, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, 2, 3)
			if forward == "nat" {
				s.throughNodes()
			}
			pathMTU(s, forward)
		})
	}
}

func pathMTU(s *system, forward string) {
	t := s.t
	s.nginx()
	for _, b := range s.backends {
		data := make([]byte, 4<<20)
		_, _ = io.ReadFull(random(3, int64(len(data))), data)
		if err := os.WriteFile(s.path("nginx-"+b.name+"/www/big"), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := sha256.New()
	_, _ = io.Copy(want, random(3, 4<<20))
	s.up(s.service(testVIP4, "tcp", "80", forward, false), s.service(testVIP6, "tcp", "80", forward, true))
	for i := range s.net.Sources4 {
		for _, source := range []netip.Addr{s.net.Sources4[i], s.net.Sources6[i]} {
			err := s.net.Router.AddRoute(testenv.Route{Dst: netip.PrefixFrom(source, source.BitLen()), Link: "client", MTU: 1300})
			if err != nil {
				t.Fatal(err)
			}
			vip := testVIP4
			if source.Is6() {
				vip = testVIP6
			}
			s.run(s.net.Client, time.Minute, "curl", "-s", "-S", "-g", "--max-time", "20", "-o", s.path("got"), "--interface", source.String(), "http://"+urlHost(vip)+"/big")
			data, err := os.ReadFile(s.path("got"))
			if err != nil {
				t.Fatal(err)
			}
			if got := sha256.Sum256(data); !bytes.Equal(got[:], want.Sum(nil)) {
				t.Errorf("%v from %v: %d bytes, other than were sent", vip, source, len(data))
			}
		}
	}
	errors4, errors6 := uint64(0), uint64(0)
	for _, b := range s.backends {
		c, err := b.Counters()
		if err != nil {
			t.Fatal(err)
		}
		errors4 += c["IcmpInDestUnreachs"]
		errors6 += c["Icmp6InPktTooBigs"]
	}
	t.Logf("backends got %d frag-needed and %d packet-too-big", errors4, errors6)
	if errors4 == 0 || errors6 == 0 {
		t.Error("no error reached a backend: the test shows nothing")
	}
	s.down()
}

// A VIP answers pings, of both families and up to the size of a packet, and its answers are counted.
func TestPing(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false), s.service(testVIP6, "udp", "53", "l2", true))
	for _, vip := range s.vips {
		for _, size := range []string{"0", "56", "1400"} {
			s.run(s.net.Client, 20*time.Second, "ping", "-q", "-c", "20", "-i", "0.01", "-W", "2", "-s", size, vip.String())
		}
	}
	answered := uint64(0)
	for _, w := range s.status(s.nodes[0]).Traffic.Workers {
		answered += w.Answered
	}
	if answered != 2*3*20 {
		t.Errorf("%d answered, want 120", answered)
	}
	s.down()
}
