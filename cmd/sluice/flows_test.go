//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/control"
)

// sluice runs the operator's tool against a node.
func (s *system) sluice(n *rigNode, args ...string) string {
	s.t.Helper()
	out, err := exec.Command(filepath.Join(bin, "sluice"), append(args, "--socket", n.socket)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("sluice %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// reload gives nodes another configuration.
func (s *system) reload(service rigService, nodes ...*rigNode) {
	s.t.Helper()
	for _, n := range nodes {
		if err := s.configure(n, service); err != nil {
			s.t.Fatal(err)
		}
		s.sluice(n, "reload")
	}
}

// dial opens a connection from the client.
func (s *system) dial(to netip.AddrPort) net.Conn {
	s.t.Helper()
	conn, err := s.net.Client.Dialer().DialContext(context.Background(), "tcp", to.String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// exchange sends a message to an echo server and reads it back.
func exchange(c net.Conn, message string) error {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, message); err != nil {
		return err
	}
	answer := make([]byte, len(message))
	if _, err := io.ReadFull(c, answer); err != nil {
		return err
	}
	if string(answer) != message {
		return fmt.Errorf("%q came back for %q", answer, message)
	}
	return nil
}

// backendOf tells where a node sends a connection's packets, as an operator would ask.
func (s *system) backendOf(n *rigNode, c net.Conn) string {
	s.t.Helper()
	out := s.sluice(n, "flows", c.LocalAddr().String(), c.RemoteAddr().String()+"/tcp")
	m := regexp.MustCompile(`backend +(web-[0-9]+) `).FindStringSubmatch(out)
	if m == nil {
		return ""
	}
	return m[1]
}

// Five hundred connections carry data all the time, while a backend is added, one is drained, the weights change, and one
// node of two leaves the ECMP group and comes back. None breaks, and new ones avoid the drained backend.
func TestFlowsNeverBreak(t *testing.T) {
	s := newSystem(t, 2, 4)
	service := s.service(testVIP4, "tcp", "7000", "ipip", false)
	service.Name = "web"
	s.up(service)
	s.echoServers(7000)
	to := netip.AddrPortFrom(testVIP4, 7000)

	const connections = 500
	var messages [connections]atomic.Int64
	var stop atomic.Bool
	var talking sync.WaitGroup
	failed := make(chan error, connections)
	for i := range connections {
		c := s.dial(to)
		talking.Go(func() {
			for n := 0; !stop.Load(); n++ {
				if err := exchange(c, fmt.Sprintf("connection %d, message %d", i, n)); err != nil {
					failed <- fmt.Errorf("connection %d (%v), message %d: %w", i, c.LocalAddr(), n, err)
					return
				}
				messages[i].Store(int64(n + 1))
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
	// settle waits until every connection has said something more.
	settle := func(when string) {
		t.Helper()
		var before [connections]int64
		for i := range before {
			before[i] = messages[i].Load()
		}
		deadline := time.Now().Add(20 * time.Second)
		for i := range before {
			for messages[i].Load() < before[i]+2 {
				select {
				case err := <-failed:
					t.Fatalf("%s: %v", when, err)
				case <-time.After(20 * time.Millisecond):
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: connection %d is silent", when, i)
				}
			}
		}
	}
	settle("at first")
	for _, n := range s.nodes {
		if s.status(n).Traffic.Services[0].Flows == 0 {
			t.Fatalf("%s carries no flow", n.name())
		}
	}

	added, err := s.addBackend()
	if err != nil {
		t.Fatal(err)
	}
	s.echoServer(added, 7000)
	service.Backends = append(service.Backends[:4:4], added)
	s.reload(service, s.nodes...)
	settle("a backend was added")

	for _, n := range s.nodes {
		if out := s.sluice(n, "drain", "web/web-1"); !strings.Contains(out, "draining") {
			t.Errorf("drain says %s", out)
		}
	}
	settle("a backend drains")
	for range 60 {
		c := s.dial(to)
		if err := exchange(c, "new"); err != nil {
			t.Fatal(err)
		}
		for _, n := range s.nodes {
			if s.backendOf(n, c) == "web-1" {
				t.Error("a new connection went to the backend that drains")
			}
		}
	}

	if err := s.net.Announce(s.vips, s.nodes[0].Host); err != nil {
		t.Fatal(err)
	}
	settle("one node has left")

	service.Weights = map[string]int{"web-2": 10, "web-3": 300}
	s.reload(service, s.nodes...)
	settle("weights have changed")
	service.Weights["web-4"] = 0
	s.reload(service, s.nodes...)
	settle("a backend has weight 0")

	if err := s.net.Announce(s.vips, s.nodes[0].Host, s.nodes[1].Host); err != nil {
		t.Fatal(err)
	}
	settle("it is back")
	for _, n := range s.nodes {
		s.sluice(n, "undrain", "web/web-1")
	}
	settle("the backend is no longer drained")

	stop.Store(true)
	talking.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	total := int64(0)
	for i := range messages {
		total += messages[i].Load()
	}
	t.Logf("%d connections, %d messages", connections, total)
	if out := s.sluice(s.nodes[0], "flows", "--top"); !strings.Contains(out, s.net.Sources4[0].String()) {
		t.Errorf("sluice flows --top: %s", out)
	}
	a, b := s.status(s.nodes[0]).Traffic.Services[0].TableHash, s.status(s.nodes[1]).Traffic.Services[0].TableHash
	if a == "" || a != b {
		t.Errorf("the nodes' lookup tables are %q and %q", a, b)
	}
	s.down()
}

// When the time of a drain is over, the connections that are left are reset with their next packet, and drain --wait ends.
// It holds over a restart of the daemon, and undrain takes it back.
func TestDrainWithTimeout(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 2)
	service := s.service(testVIP4, "tcp", "7000", "ipip", false)
	service.Name = "web"
	s.up(service)
	s.echoServers(7000)
	node := s.nodes[0]
	var mine, others []net.Conn
	for range 20 {
		c := s.dial(netip.AddrPortFrom(testVIP4, 7000))
		if err := exchange(c, "hello"); err != nil {
			t.Fatal(err)
		}
		if s.backendOf(node, c) == "web-1" {
			mine = append(mine, c)
		} else {
			others = append(others, c)
		}
	}
	if len(mine) == 0 || len(others) == 0 {
		t.Fatalf("%d and %d connections", len(mine), len(others))
	}
	waited := make(chan string, 1)
	go func() {
		out, _ := exec.Command(filepath.Join(bin, "sluice"), "drain", "web/web-1", "--timeout", "3s", "--wait", "--socket", node.socket).CombinedOutput()
		waited <- string(out)
	}()
	time.Sleep(time.Second)
	for i, c := range mine {
		if err := exchange(c, "still there"); err != nil {
			t.Fatalf("connection %d, while its backend drains: %v", i, err)
		}
	}
	time.Sleep(3 * time.Second)
	for i, c := range mine {
		_ = exchange(c, "too late") // the first write may go through before the reset comes
		if err := exchange(c, "too late"); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("connection %d, after the drain's time: %v", i, err)
		}
	}
	for i, c := range others {
		if err := exchange(c, "untouched"); err != nil {
			t.Errorf("connection %d of the other backend: %v", i, err)
		}
	}
	select {
	case out := <-waited:
		if !strings.Contains(out, fmt.Sprintf("%d flows left", len(mine))) || !strings.HasSuffix(strings.TrimSpace(out), "0 flows left") {
			t.Errorf("drain --wait says\n%s", out)
		}
	case <-time.After(10 * time.Second):
		t.Error("drain --wait does not end")
	}

	if err := node.daemon.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := s.start(node); err != nil {
		t.Fatal(err)
	}
	hand := func() *control.HandStatus {
		st := s.status(node)
		return findBackend(&st, "web", "web-1").Hand
	}
	if hand() == nil {
		t.Error("after a restart the backend is no longer drained")
	}
	if out := s.sluice(node, "undrain", "web/web-1"); hand() != nil || !strings.Contains(out, "not drained") {
		t.Errorf("undrain says %s", out)
	}
	out, err := exec.Command(filepath.Join(bin, "sluice"), "drain", "web/web-9", "--socket", node.socket).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "web-1, web-2") {
		t.Errorf("drain of a backend that does not exist says %s", out)
	}
	s.down()
}

// With on_down: reset, the connections of a backend whose check fails are reset with their next packet, so that clients
// connect again at once, to another backend.
func TestOnDownReset(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 2)
	service := s.service(testVIP4, "tcp", "7000", "ipip", false)
	service.Name = "web"
	service.Check = "{type: tcp, port: 7001, interval: 200ms, timeout: 100ms, rise: 1, fall: 2}"
	service.Options = "on_down: reset"
	checks := map[string]net.Listener{}
	for _, b := range s.backends {
		l, err := b.Listen("tcp", ":7001")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		checks[b.name] = l
	}
	s.up(service)
	s.echoServers(7000)
	node := s.nodes[0]
	health := func(backend string) control.State {
		st := s.status(node)
		return findBackend(&st, "web", backend).Health.State
	}
	waitFor := func(backend string, want control.State) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); health(backend) != want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s does not become %s", backend, want)
			}
		}
	}
	waitFor("web-1", control.StateUp)
	waitFor("web-2", control.StateUp)
	conns := map[string][]net.Conn{}
	for range 20 {
		c := s.dial(netip.AddrPortFrom(testVIP4, 7000))
		if err := exchange(c, "hello"); err != nil {
			t.Fatal(err)
		}
		b := s.backendOf(node, c)
		conns[b] = append(conns[b], c)
	}
	checks["web-2"].Close()
	waitFor("web-2", control.StateDown)
	for _, c := range conns["web-2"] {
		_ = exchange(c, "anybody there?")
		if err := exchange(c, "anybody there?"); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("a connection of the dead backend: %v", err)
		}
		again := s.dial(netip.AddrPortFrom(testVIP4, 7000))
		if err := exchange(again, "again"); err != nil || s.backendOf(node, again) != "web-1" {
			t.Errorf("the new connection: %v", err)
		}
	}
	for _, c := range conns["web-1"] {
		if err := exchange(c, "hello again"); err != nil {
			t.Errorf("a connection of the other backend: %v", err)
		}
	}
	if n := s.status(node).Traffic.Services[0].Dropped["backend_down"]; n < uint64(len(conns["web-2"])) {
		t.Errorf("%d packets under backend_down for %d connections", n, len(conns["web-2"]))
	}
	s.down()
}

// A client that uses its port again right after it has closed a connection gets through, also when its old backend has begun
// to drain in the meantime: then to another one.
func TestPortReuseAfterFIN(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 3)
	service := s.service(testVIP4, "tcp", "7000", "ipip", false)
	service.Name = "web"
	s.up(service)
	for _, b := range s.backends { // a server that closes first, so that the client's port is free at once
		l, err := b.Listen("tcp", ":7000")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.CopyN(c, c, int64(len("hello")))
				c.Close()
			}
		}()
	}
	node := s.nodes[0]
	d := s.net.Client.Dialer()
	d.Source, d.Port = s.net.Sources4[0], 45678
	connect := func() string {
		t.Helper()
		var c net.Conn
		var err error
		for range 100 { // until the last packets of the connection before have gone through
			if c, err = d.DialContext(context.Background(), "tcp", netip.AddrPortFrom(testVIP4, 7000).String()); !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := exchange(c, "hello"); err != nil {
			t.Fatal(err)
		}
		at := s.backendOf(node, c)
		_, _ = io.Copy(io.Discard, c)
		return at
	}
	first := connect()
	if again := connect(); again != first {
		t.Errorf("the port was used for %s, and again for %s, which nothing has changed", first, again)
	}
	s.sluice(node, "drain", "web/"+first)
	moved := connect()
	if moved == first || moved == "" {
		t.Errorf("the port was used again while %s drains, for %s", first, moved)
	}
	if again := connect(); again != moved {
		t.Errorf("and then for %s, after %s", again, moved)
	}
	s.down()
}

// The flow table outlives the daemon with systemd's help: after a crash, the next one goes on with all flows, those of a
// backend that was removed in between too.
func TestRestartKeepsFlows(t *testing.T) {
	t.Parallel()
	s := newSystem(t, 1, 4)
	service := s.service(testVIP4, "tcp", "7000", "ipip", false)
	service.Name = "web"
	node := s.nodes[0]
	store := newFDStore(t, s.path("notify"))
	node.env = []string{"NOTIFY_SOCKET=" + store.path}
	s.up(service)
	s.echoServers(7000)
	var conns []net.Conn
	at := map[net.Conn]string{}
	for i := range 60 {
		c := s.dial(netip.AddrPortFrom(testVIP4, 7000))
		if err := exchange(c, fmt.Sprint("hello ", i)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		at[c] = s.backendOf(node, c)
	}
	check := func(when string) {
		t.Helper()
		for i, c := range conns {
			if err := exchange(c, fmt.Sprint(when, i)); err != nil {
				t.Fatalf("%s: connection %d at %s: %v", when, i, at[c], err)
			}
			if now := s.backendOf(node, c); now != at[c] {
				t.Fatalf("%s: connection %d was at %s, is at %q", when, i, at[c], now)
			}
		}
	}
	service.Backends = service.Backends[1:]
	s.reload(service, node)
	check("web-1 removed")

	crash := func(what string) {
		t.Helper()
		if err := node.daemon.Kill(); err != nil {
			t.Fatal(err)
		}
		file := store.take(t)
		node.files, node.env = []*os.File{file}, []string{"NOTIFY_SOCKET=" + store.path, "LISTEN_FDS=1", "LISTEN_FDNAMES=flows"}
		if err := s.start(node); err != nil {
			t.Fatalf("%v\n%s", err, node.daemon.Output())
		}
		file.Close()
		if !strings.Contains(node.daemon.Output(), what) {
			t.Errorf("the log lacks %q:\n%s", what, node.daemon.Output())
		}
	}
	crash("flow table of the process before")
	check("after a crash")

	// The file has changed while no daemon was running: another backend is gone, and the others have other names.
	service.Name = "shop"
	service.Backends = service.Backends[1:]
	if err := s.configure(node, service); err != nil {
		t.Fatal(err)
	}
	crash("flow table of the process before")
	check("after a crash, with another configuration")

	// What cannot be taken over is left, and said.
	if err := os.WriteFile(s.path("group.key"), []byte("another seed, so that all hashes are others"), 0o600); err != nil {
		t.Fatal(err)
	}
	crash("another seed")
	s.down()
}

// fdStore is the part of systemd that keeps descriptors for a service.
type fdStore struct {
	path string
	mu   sync.Mutex
	kept int // -1: none
}

func newFDStore(t *testing.T, path string) *fdStore {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	store := &fdStore{path: path, kept: -1}
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
		store.keep(-1)
	})
	go func() {
		defer close(done)
		buf, oob := make([]byte, 4096), make([]byte, 256)
		for {
			n, k, _, _, err := l.ReadMsgUnix(buf, oob)
			if err != nil {
				return
			}
			switch text := string(buf[:n]); {
			case strings.HasPrefix(text, "FDSTORE=1\nFDNAME=flows"):
				if messages, err := unix.ParseSocketControlMessage(oob[:k]); err == nil && len(messages) == 1 {
					if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
						store.keep(fds[0])
					}
				}
			case strings.HasPrefix(text, "FDSTOREREMOVE=1"):
				store.keep(-1)
			}
		}
	}()
	return store
}

// keep puts a descriptor in the place of the one that was kept.
func (s *fdStore) keep(fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept >= 0 {
		unix.Close(s.kept)
	}
	s.kept = fd
}

// take returns a duplicate of what is kept.
func (s *fdStore) take(t *testing.T) *os.File {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, err := unix.FcntlInt(uintptr(s.kept), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatalf("nothing was left with the store: %v", err)
	}
	return os.NewFile(uintptr(fd), "flows")
}
