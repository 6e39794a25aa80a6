package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newFastSystem is a system whose nodes have a fast path that outlives the daemon.
func newFastSystem(t *testing.T, nodes, backends int) *system {
	t.Helper()
	s := newSystemWith(t, rigOptions{nodes: nodes, backends: backends, queues: 2, fastPath: "on"})
	pins := filepath.Join(s.dir, "bpf")
	if err := os.Mkdir(pins, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", pins, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount a BPF file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(pins, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", pins, err)
		}
	})
	s.withoutDaemon = fmt.Sprintf("{for: 1m, then: drop, pins: %q}", pins+"/sluice")
	return s
}

// newConnections opens a connection after the other from the client, each for one message, at 200 a second, until stop; it returns how
// many succeeded, and the errors of the others.
func (s *system) newConnections(to netip.AddrPort, stop <-chan struct{}) (done int, failed []error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			wg.Wait()
			return done, failed
		case <-tick.C:
		}
		wg.Go(func() {
			began := time.Now()
			err := s.once(to)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, fmt.Errorf("begun at %v, after %v: %w", began.Format("05.000"), time.Since(began).Round(time.Millisecond), err))
				return
			}
			done++
		})
	}
}

// once opens a connection for one message.
func (s *system) once(to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := s.net.Client.Dialer().DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	return exchange(c, "hello")
}

// A daemon is killed while five hundred connections carry data and 200 new ones are opened a second, and is away for some seconds: none
// breaks, and none of the new ones fails, then or when the next daemon has adopted everything. The same when it stands still for a while,
// and when it is stopped as for an upgrade.
func TestFastPathOutlivesTheDaemon(t *testing.T) {
	s := newFastSystem(t, 1, 4)
	service := s.service(testVIP4, "tcp", "7000", "ipip", false)
	service.Name = "web"
	node := s.nodes[0]
	s.up(service)
	s.echoServers(7000)
	to := netip.AddrPortFrom(testVIP4, 7000)

	var messages atomic.Uint64
	stop := make(chan struct{})
	var running sync.WaitGroup
	broken := make(chan error, 500)
	for range 500 {
		c := s.dial(to)
		running.Go(func() { carry(c, stop, &messages, broken) })
	}
	var done int
	var failed []error
	running.Go(func() { done, failed = s.newConnections(to, stop) })
	time.Sleep(3 * time.Second) // so that words are established
	if st := s.status(node); st.Traffic.Steer.Forwarded == 0 || !st.Traffic.Interfaces[0].FastPath {
		t.Fatalf("the fast path forwards nothing: %+v, %s", st.Traffic.Steer, st.Traffic.Interfaces[0].FastPathCause)
	}

	moving := func(what string) {
		t.Helper()
		before := messages.Load()
		time.Sleep(500 * time.Millisecond)
		if messages.Load() == before {
			t.Fatalf("%s: no connection carries anything", what)
		}
	}
	again := func(what string) {
		t.Helper()
		began := time.Now()
		if err := s.start(node); err != nil {
			t.Fatalf("%s: %v\n%s", what, err, node.daemon.Output())
		}
		took := time.Since(began)
		for _, line := range strings.Split(node.daemon.Output(), "\n") {
			if strings.Contains(line, "of the process before") || strings.Contains(line, "while no daemon ran") {
				t.Log(line)
			}
		}
		for _, want := range []string{"flow table of the process before", "XDP program of the process before"} {
			if !strings.Contains(node.daemon.Output(), want) {
				t.Errorf("%s: the log lacks %q:\n%s", what, want, node.daemon.Output())
			}
		}
		t.Logf("%s: the next daemon was ready after %v", what, took.Round(time.Millisecond))
		if took > 3*time.Second { // a second on a machine that has nothing else to do
			t.Errorf("%s: the next daemon was ready after %v only", what, took)
		}
		moving(what + ", and started")
	}

	if err := node.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	moving("killed")
	again("killed")

	if err := unix.Kill(node.daemon.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	moving("standing still")
	if err := unix.Kill(node.daemon.PID(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	moving("going on")

	if err := node.daemon.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	moving("stopped")
	again("stopped")

	close(stop)
	running.Wait()
	close(broken)
	for err := range broken {
		t.Errorf("a connection broke: %v", err)
	}
	for _, err := range failed {
		t.Errorf("a new connection failed: %v", err)
	}
	t.Logf("%d messages, %d new connections", messages.Load(), done)
	if st := s.status(node); st.Traffic.Steer.Orphaned != 0 {
		t.Errorf("%d packets passed the new program before there was a daemon", st.Traffic.Steer.Orphaned)
	}
	s.down()

	// What goes on ends with sluice detach.
	out := s.run(node.Namespace, 10*time.Second, filepath.Join(bin, "sluice"), "detach", "--pins", filepath.Join(s.dir, "bpf", "sluice"))
	if !strings.Contains(out, "detached from eth0") {
		t.Errorf("sluice detach says %q", out)
	}
	if err := s.once(to); err == nil {
		t.Error("a connection was opened after sluice detach")
	}
}

// carry sends messages on a connection until stop.
func carry(c net.Conn, stop <-chan struct{}, messages *atomic.Uint64, broken chan<- error) {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
		if err := exchange(c, fmt.Sprint("message ", n)); err != nil {
			broken <- err
			return
		}
		messages.Add(1)
	}
}
