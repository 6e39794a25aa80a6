//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// bin is where TestMain builds the three programs, as users build them.
var bin string

func TestMain(m *testing.M) {
	if spec := os.Getenv(webServerEnv); spec != "" {
		os.Exit(serveWeb(spec))
	}
	code := func() int {
		if os.Geteuid() != 0 {
			return m.Run() // the tests that need root say so
		}
		dir, err := testenv.Build("../sluice", "../sluice-healthd", "../sluice-agent")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
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
	t   testing.TB
	env *testenv.Env
}

func newSystem(t testing.TB, nodes, backends int) *system {
	t.Helper()
	return newSystemWithQueues(t, nodes, backends, 2)
}

func newSystemWithQueues(t testing.TB, nodes, backends, queues int) *system {
	t.Helper()
	return newSystemWith(t, rigOptions{nodes: nodes, backends: backends, queues: queues})
}

func newSystemWith(t testing.TB, o rigOptions) *system {
	t.Helper()
	env := testenv.ForTest(t)
	o.dir, o.bin, o.vips = t.TempDir(), bin, []netip.Addr{testVIP4, testVIP6}
	if o.fastPath == "" {
		o.fastPath = os.Getenv("SLUICE_TEST_FAST_PATH") // on or off: what all tests but those of the fast path itself go by
	}
	r, err := newRig(env, o)
	if err != nil {
		t.Fatal(err)
	}
	s := &system{r, t, env}
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

// echoServers runs a TCP server on every backend that sends back what it gets.
func (s *system) echoServers(port int) {
	s.t.Helper()
	for _, b := range s.backends {
		s.echoServer(b, port)
	}
}

func (s *system) echoServer(b *rigBackend, port int) {
	s.t.Helper()
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
