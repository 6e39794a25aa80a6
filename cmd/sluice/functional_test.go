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
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// bin is where TestMain builds the three programs, as users build them.
var bin string

func TestMain(m *testing.M) {
	code := func() int {
		if os.Geteuid() != 0 {
			return m.Run() // the tests that need root say so
		}
		dir, err := os.MkdirTemp("", "sluice-bin-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, "../sluice", "../sluice-healthd", "../sluice-agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the programs under test: %v\n%s", err, out)
			return 1
		}
		bin = dir
		return m.Run()
	}()
	os.Exit(code)
}

var (
	testVIP4 = netip.MustParseAddr("192.0.2.10")
	testVIP6 = netip.MustParseAddr("2001:db8::10")
)

// system is a rig in a test. Its end is checked: the books balance, no packet arrived with a wrong checksum, and the
// daemons stop cleanly.
type system struct {
	*rig
	t testing.TB
}

func newSystem(t testing.TB, nodes, backends int) *system {
	t.Helper()
	return newSystemWithQueues(t, nodes, backends, 2)
}

func newSystemWithQueues(t testing.TB, nodes, backends, queues int) *system {
	t.Helper()
	env := testenv.ForTest(t)
	r, err := newRig(env, rigOptions{dir: t.TempDir(), bin: bin, nodes: nodes, backends: backends, queues: queues, vips: []netip.Addr{testVIP4, testVIP6}})
	if err != nil {
		t.Fatal(err)
	}
	s := &system{r, t}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range s.nodes {
				if n.daemon != nil {
					t.Logf("log of %s:\n%s", n.name(), n.daemon.Output())
				}
			}
		}
	})
	return s
}

// service returns a service for all backends.
func (s *system) service(vip netip.Addr, protocol, ports, forward string, outer6 bool) rigService {
	return rigService{Name: fmt.Sprintf("%s-%s-%s", protocol, strings.ReplaceAll(ports, ",", "-"), map[bool]string{true: "v4", false: "v6"}[vip.Is4()]),
		VIP: vip, Protocol: protocol, Ports: ports, Forward: forward, Outer6: outer6, Backends: s.backends}
}

// up configures and starts every node.
func (s *system) up(services ...rigService) {
	s.t.Helper()
	for _, n := range s.nodes {
		if err := s.configure(n, services...); err != nil {
			s.t.Fatal(err)
		}
		if err := s.start(n); err != nil {
			s.t.Fatal(err)
		}
	}
}

// down checks the end of a test and stops the nodes.
func (s *system) down() {
	s.t.Helper()
	for _, n := range s.nodes {
		s.checkAtRest(n)
		if err := n.daemon.Stop(10 * time.Second); err != nil || n.daemon.ExitCode() != 0 {
			s.t.Errorf("stop %s: exit code %d, %v", n.name(), n.daemon.ExitCode(), err)
		}
	}
	for _, b := range s.backends {
		c, err := b.Counters()
		if err != nil {
			s.t.Fatal(err)
		}
		for _, name := range []string{"TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors", "IpExtInCsumErrors", "IpInHdrErrors"} {
			if c[name] != 0 {
				s.t.Errorf("%s: %s = %d", b.name, name, c[name])
			}
		}
	}
}

// checkAtRest waits until no more frames come, and checks the books.
func (s *system) checkAtRest(n *rigNode) {
	s.t.Helper()
	var last error
	for range 50 {
		st := s.status(n)
		if last = checkBooks(st); last == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.t.Errorf("books of %s: %v", n.name(), last)
}

func (s *system) status(n *rigNode) control.Status {
	s.t.Helper()
	st, err := n.status()
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// run runs a program in a namespace and returns what it printed.
func (s *system) run(ns *testenv.Namespace, limit time.Duration, path string, args ...string) string {
	s.t.Helper()
	out, err := ns.Run(limit, testenv.Cmd{Path: path, Args: args})
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", path, strings.Join(args, " "), err, out)
	}
	return out
}

// nginx starts nginx on every backend that has none yet, on port 80; its answer to /name is the backend's name.
func (s *system) nginx() {
	s.t.Helper()
	for _, b := range s.backends {
		dir := s.path("nginx-" + b.name)
		if _, err := os.Stat(dir); err == nil {
			continue
		}
		if err := os.MkdirAll(filepath.Join(dir, "www"), 0o755); err != nil {
			s.t.Fatal(err)
		}
		config := fmt.Sprintf(`daemon off; user root; worker_processes 1; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 4096; }
http { access_log off; sendfile on;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server { listen 80 backlog=4096; listen [::]:80 backlog=4096; root %[1]s/www; } }`, dir)
		for name, content := range map[string]string{"nginx.conf": config, "www/name": b.name + "\n", "www/index.html": "hello\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
				s.t.Fatal(err)
			}
		}
		p, err := b.Start(testenv.Cmd{Path: "nginx", Args: []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf")}})
		if err != nil {
			s.t.Fatal(err)
		}
		if err := p.WaitTCP(10*time.Second, netip.AddrPortFrom(b.IPv4, 80)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// urlHost is how a URL names an address.
func urlHost(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// curl makes n requests from one source, each on a connection of its own, and returns how many were answered by whom.
func (s *system) curl(source, vip netip.Addr, n int) (map[string]int, error) {
	// Brackets are curl's pattern for many URLs, so those of an IPv6 address are escaped.
	url := fmt.Sprintf("http://%s/name?[1-%d]", strings.NewReplacer("[", "\\[", "]", "\\]").Replace(urlHost(vip)), n)
	out, err := s.net.Client.Run(3*time.Minute, testenv.Cmd{Path: "curl", Args: []string{
		"-s", "-S", "--interface", source.String(), "--max-time", "20", "-H", "Connection: close", url}})
	by := map[string]int{}
	for _, line := range strings.Fields(out) {
		by[line]++
	}
	return by, err
}

// curlAll makes n requests from each source of the client at once, and fails the test if one is not answered.
func (s *system) curlAll(vip netip.Addr, n int) map[string]int {
	s.t.Helper()
	sources := s.net.Sources4
	if vip.Is6() {
		sources = s.net.Sources6
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	all := map[string]int{}
	for _, source := range sources {
		group.Go(func() {
			by, err := s.curl(source, vip, n)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				s.t.Errorf("curl from %v: %v", source, err)
			}
			for b, k := range by {
				all[b] += k
			}
		})
	}
	group.Wait()
	total := 0
	for b, k := range all {
		if !strings.HasPrefix(b, "web-") {
			s.t.Errorf("%d answers %q", k, b)
		}
		total += k
	}
	if total != n*len(sources) {
		s.t.Errorf("%d of %d requests were answered: %v", total, n*len(sources), all)
	}
	return all
}

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

// Every mode and pair of families carries a transfer in both directions, byte for byte.
func TestModesAndFamilies(t *testing.T) {
	for _, c := range []struct {
		vip     netip.Addr
		forward string
		outer6  bool
	}{
		{testVIP4, "l2", false}, {testVIP6, "l2", true},
		{testVIP4, "ipip", false}, {testVIP4, "ipip", true}, {testVIP6, "ipip", false}, {testVIP6, "ipip", true},
		{testVIP4, "gue", false}, {testVIP4, "gue", true}, {testVIP6, "gue", false}, {testVIP6, "gue", true},
	} {
		t.Run(fmt.Sprintf("%s, VIP of IPv%d, backends of IPv%d", c.forward, map[bool]int{true: 4, false: 6}[c.vip.Is4()], map[bool]int{true: 6, false: 4}[c.outer6]), func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, 1, 2)
			s.up(s.service(c.vip, "tcp", "7000", c.forward, c.outer6))
			s.echoServers(7000)
			for i := range 4 {
				if err := s.transfer(netip.AddrPortFrom(c.vip, 7000), uint64(i), 5<<20); err != nil {
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

// echoServers runs a TCP server on every backend that sends back what it gets.
func (s *system) echoServers(port int) {
	s.t.Helper()
	for _, b := range s.backends {
		l, err := b.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					_, _ = io.Copy(conn, conn)
					_ = conn.(*net.TCPConn).CloseWrite()
				}()
			}
		}()
	}
}

// random returns n reproducible random bytes.
func random(seed uint64, n int64) io.Reader {
	var key [32]byte
	key[0] = byte(seed)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

// transfer sends n random bytes to an echo server and compares what comes back by checksum.
func (s *system) transfer(to netip.AddrPort, seed uint64, n int64) error {
	conn, err := s.net.Client.Dialer().DialContext(context.Background(), "tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	want, got := sha256.New(), sha256.New()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.MultiWriter(conn, want), random(seed, n))
		sent <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	back, err := io.Copy(got, conn)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if back != n || !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("%d bytes sent, %d came back; checksums %x and %x", n, back, want.Sum(nil)[:4], got.Sum(nil)[:4])
	}
	return nil
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
			args := append([]string{"-c", vip.String(), "-t", "1", "-J"}, mode...)
			var report struct {
				Error string
				End   struct {
					Sum         struct{ Packets, LostPackets, Bytes float64 }
					SumReceived struct{ Bytes float64 } `json:"sum_received"`
				}
			}
			out, err := s.net.Client.Run(30*time.Second, testenv.Cmd{Path: "iperf3", Args: args})
			if jsonErr := json.Unmarshal([]byte(out), &report); err != nil || jsonErr != nil || report.Error != "" {
				t.Fatalf("iperf3 %v: %v %v %s", args, err, jsonErr, report.Error)
			}
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

// A reload a second, each with other backends, while requests go on: not one fails.
func TestReloadUnderLoad(t *testing.T) {
	s := newSystem(t, 1, 4)
	s.nginx()
	service := func(n int) rigService {
		v := s.service(testVIP4, "tcp", "80", "ipip", false)
		v.Backends = s.backends[:n]
		return v
	}
	s.up(service(4))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.curlAll(testVIP4, 3000)
	}()
	reloads := 0
	for i := 0; ; i++ {
		select {
		case <-ended:
		case <-time.After(time.Second):
			if err := s.configure(s.nodes[0], service(3+i%2)); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(filepath.Join(bin, "sluice"), "reload", "--socket", s.nodes[0].socket).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "in force") {
				t.Errorf("sluice reload: %v\n%s", err, out)
			}
			reloads++
			continue
		}
		break
	}
	t.Logf("%d reloads", reloads)
	if reloads < 3 {
		t.Errorf("only %d reloads took place during the load", reloads)
	}
	s.down()
}

// SSH to the node's own address works while the node forwards, on the same interface.
func TestSSHToTheNode(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	s.up(s.service(testVIP4, "tcp", "any", "ipip", false)) // all ports of the VIP, 22 too
	key, hostKey := s.path("id"), s.path("host")
	for _, k := range []string{key, hostKey} {
		s.run(s.net.Client, 10*time.Second, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", k)
	}
	config := fmt.Sprintf("Port 22\nHostKey %s\nAuthorizedKeysFile %s.pub\nPermitRootLogin prohibit-password\nPidFile none\nStrictModes no\nUsePAM no\n", hostKey, key)
	if err := os.WriteFile(s.path("sshd_config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // where sshd locks itself in; Debian's unit makes it
		t.Fatal(err)
	}
	node := s.nodes[0]
	sshd, err := node.Start(testenv.Cmd{Path: "/usr/sbin/sshd", Args: []string{"-D", "-e", "-f", s.path("sshd_config")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := sshd.WaitOutput(10*time.Second, "Server listening"); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 3<<20)
	if _, err := io.ReadFull(random(9, int64(len(data))), data); err != nil {
		t.Fatal(err)
	}
	before := s.status(node).Traffic.Steer.ToVIPs
	out, err := s.net.Client.Run(time.Minute, testenv.Cmd{
		Path: "ssh", Stdin: bytes.NewReader(data),
		Args: []string{"-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "root@" + node.IPv4.String(), "sha256sum"},
	})
	if err != nil {
		t.Fatalf("ssh: %v\n%s\n%s", err, out, sshd.Output())
	}
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(out, want) {
		t.Errorf("3 MiB through ssh: got %s, want %s", out, want)
	}
	if after := s.status(node).Traffic.Steer.ToVIPs; after != before {
		t.Errorf("%d packets of SSH to the node were taken for a VIP's", after-before)
	}
	if by := s.curlAll(testVIP4, 20); by["web-1"] == 0 {
		t.Error("the VIP does not answer")
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

// What breaks is counted under its reason, and is over when its cause is: a backend that cannot be reached, an interface
// that goes down, one that vanishes and is made again, a daemon that is killed.
func TestFaults(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false))
	node := s.nodes[0]
	works := func(when string) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for {
			by, err := s.curl(s.net.Sources4[0], testVIP4, 1)
			if err == nil && by["web-1"] == 1 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the VIP does not answer: %v %v", when, by, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	dropped := func(reason string) uint64 {
		n := uint64(0)
		for _, w := range s.status(node).Traffic.Workers {
			n += w.Dropped[reason]
		}
		return n
	}
	// counts sends SYNs until the reason is counted.
	counts := func(reason string) {
		t.Helper()
		before := dropped(reason)
		for deadline := time.Now().Add(20 * time.Second); dropped(reason) == before; {
			if time.Now().After(deadline) {
				t.Fatalf("%s is not counted: %+v", reason, s.status(node).Traffic.Workers)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			if conn, err := s.net.Client.Dialer().DialContext(ctx, "tcp", netip.AddrPortFrom(testVIP4, 80).String()); err == nil {
				conn.Close()
			}
			cancel()
		}
	}
	works("at the start")

	if err := s.backends[0].SetMAC("eth0", net.HardwareAddr{2, 0, 0, 0, 9, 9}); err != nil {
		t.Fatal(err)
	}
	works("the backend has another MAC")

	if err := s.net.Router.LinkDown(s.backends[0].Port()); err != nil {
		t.Fatal(err)
	}
	counts("no_neighbour")
	if err := s.net.Router.LinkUp(s.backends[0].Port()); err != nil {
		t.Fatal(err)
	}
	works("the backend is back")
	s.checkAtRest(node)

	if err := node.LinkDown("eth0"); err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.WaitUntil(10*time.Second, "not ready", func() error {
		if node.ready() == nil {
			return errors.New("ready although the interface is down")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := node.LinkUp("eth0"); err != nil {
		t.Fatal(err)
	}
	works("the interface is up again")
	s.checkAtRest(node)

	if err := node.DeleteLink("eth0"); err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.WaitUntil(10*time.Second, "not ready", func() error {
		if node.ready() == nil {
			return errors.New("ready although the interface is gone")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.net.Connect(node.Host); err != nil {
		t.Fatal(err)
	}
	works("the interface was made again")
	if err := node.daemon.WaitUntil(10*time.Second, "ready", node.ready); err != nil {
		t.Fatal(err)
	}
	s.checkAtRest(node)

	if err := node.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.start(node); err != nil {
		t.Fatalf("start after SIGKILL: %v", err)
	}
	works("after SIGKILL and a new start")
	s.down()
}

// healthd's word takes a dead backend out and brings it back; without healthd the last word holds, and a new daemon learns
// everything at once.
func TestHealth(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 3)
	s.nginx()
	v := s.service(testVIP4, "tcp", "80", "ipip", false)
	v.Check = "{type: http, port: 80, path: /name, interval: 200ms, timeout: 150ms, rise: 2, fall: 2}"
	s.up(v)
	node := s.nodes[0]
	states := func(want ...control.State) func() error {
		return func() error {
			st, err := node.status()
			if err != nil {
				return err
			}
			for i, b := range st.Traffic.Services[0].Backends {
				if b.Health.State != want[i] {
					return fmt.Errorf("%s is %s (%s), not %s", b.Name, b.Health.State, b.Health.Evidence, want[i])
				}
			}
			return nil
		}
	}
	wait := func(what string, want ...control.State) {
		t.Helper()
		if err := node.daemon.WaitUntil(15*time.Second, what, states(want...)); err != nil {
			t.Fatal(err)
		}
	}
	const up, down = control.StateUp, control.StateDown
	wait("all up", up, up, up)
	if err := os.Remove(s.path("nginx-web-2/www/name")); err != nil { // 404
		t.Fatal(err)
	}
	wait("web-2 down", up, down, up)
	if by := s.curlAll(testVIP4, 100); by["web-2"] != 0 || len(by) != 2 {
		t.Errorf("with web-2 down: %v", by)
	}
	st := s.status(node)
	if e := st.Traffic.Services[0].Backends[1].Health.Evidence; !strings.Contains(e, "404") {
		t.Errorf("the evidence is %q", e)
	}

	if err := node.healthd.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("nginx-web-2/www/name"), []byte("web-2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if by := s.curlAll(testVIP4, 100); by["web-2"] != 0 {
		t.Errorf("without healthd web-2 came back: %v", by)
	}
	// A new daemon holds what was last known, before any health daemon has said anything.
	if err := node.daemon.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := s.start(node); err != nil {
		t.Fatal(err)
	}
	wait("web-2 up again", up, up, up)
	if by := s.curlAll(testVIP4, 100); len(by) != 3 {
		t.Errorf("with all up: %v", by)
	}
	s.down()
}

// The daemon does next to nothing without traffic, starts at once, and is small.
func TestIdle(t *testing.T) {
	s := newSystem(t, 1, 1)
	for _, name := range []string{"sluice", "sluice-healthd", "sluice-agent"} {
		info, err := os.Stat(filepath.Join(bin, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.1f MB", name, float64(info.Size())/1e6)
		if info.Size() >= 30e6 {
			t.Errorf("%s has %d bytes", name, info.Size())
		}
	}
	start := time.Now()
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false))
	t.Logf("ready after %v, by the clock of who waits", time.Since(start).Round(time.Millisecond))
	time.Sleep(time.Second)
	before := cpuTime(t, s.nodes[0].daemon.PID())
	time.Sleep(5 * time.Second)
	share := float64(cpuTime(t, s.nodes[0].daemon.PID())-before) / float64(5*time.Second)
	t.Logf("idle: %.2f %% of a core", 100*share)
	if share >= 0.01 {
		t.Errorf("the idle daemon takes %.2f %% of a core", 100*share)
	}
	s.down()
}

// cpuTime returns the processor time of a process.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	var sum time.Duration
	for _, path := range threads {
		var ns int64
		if data, err := os.ReadFile(path); err == nil {
			_, _ = fmt.Sscan(string(data), &ns)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// SIGTERM: no longer ready at once, forwarding goes on for drain_time, the blackhole routes stay.
func TestDrainOnSIGTERM(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false))
	node := s.nodes[0]
	if err := node.daemon.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.WaitUntil(5*time.Second, "not ready", func() error {
		if node.ready() == nil {
			return errors.New("still ready")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if out := s.run(node.Namespace, 5*time.Second, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:9545/readyz"); out != "503" {
		t.Errorf("/readyz: %s", out)
	}
	if by, err := s.curl(s.net.Sources4[0], testVIP4, 1); err != nil || by["web-1"] != 1 {
		t.Errorf("during drain_time: %v %v", by, err)
	}
	s.checkAtRest(node)
	if err := node.daemon.Wait(10 * time.Second); err != nil || node.daemon.ExitCode() != 0 {
		t.Errorf("exit code %d, %v", node.daemon.ExitCode(), err)
	}
	if out := s.run(node.Namespace, 5*time.Second, "ip", "route", "show", "type", "blackhole"); !strings.Contains(out, testVIP4.String()) {
		t.Errorf("no blackhole route for the VIP: %q", out)
	}
}

// A file with a mistake is refused with its place, and changes nothing.
func TestRefusedReload(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false))
	node := s.nodes[0]
	data, err := os.ReadFile(node.config)
	if err != nil {
		t.Fatal(err)
	}
	bad := strings.Replace(string(data), "forward: ipip", "forwrad: ipip", 1)
	if err := os.WriteFile(node.config, []byte(bad), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(bin, "sluice"), "check", node.config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), ":16:5:") || !strings.Contains(string(out), "forwrad") {
		t.Errorf("sluice check: %v\n%s", err, out)
	}
	out, err = exec.Command(filepath.Join(bin, "sluice"), "reload", "--socket", node.socket).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "forwrad") {
		t.Errorf("sluice reload: %v\n%s", err, out)
	}
	s.curlAll(testVIP4, 10)
	out, err = exec.Command(filepath.Join(bin, "sluice"), "status", "--socket", node.socket).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "refused") {
		t.Errorf("sluice status: %v\n%s", err, out)
	}
	if err := os.WriteFile(node.config, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.WaitOutput(5*time.Second, "configuration reloaded"); err != nil {
		t.Fatal(err)
	}
	s.down()
}

// The daemon needs the capabilities that its help names, and no others.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 1)
	s.nginx()
	node := s.nodes[0]
	if err := s.configure(node, s.service(testVIP4, "tcp", "80", "ipip", false)); err != nil {
		t.Fatal(err)
	}
	var err error
	node.daemon, err = node.Start(testenv.Cmd{Path: "setpriv", Args: []string{
		"--bounding-set", "-all,+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock", "--inh-caps", "-all",
		filepath.Join(bin, "sluice"), "run", "--config", node.config,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := node.daemon.WaitUntil(10*time.Second, "ready", node.ready); err != nil {
		t.Fatal(err)
	}
	s.curlAll(testVIP4, 10)
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
	t.Parallel()
	s := newSystem(t, 2, 3)
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
	s.up(s.service(testVIP4, "tcp", "80", "ipip", false), s.service(testVIP6, "tcp", "80", "ipip", true))
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
