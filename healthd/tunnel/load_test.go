//go:build linux

package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// Hundreds of probes at once, over all ways, each with an answer.
func TestManyAtOnce(t *testing.T) {
	r := newRig(t)
	r.agent()
	r.serve()
	paths := ways()
	var all sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := range 500 {
		all.Go(func() {
			path := paths[i%len(paths)]
			if body, err := r.get(ctx, path, "/"); err != nil || !strings.Contains(body, path.VIP.String()) {
				t.Errorf("%s: %q, %v", path.name(), body, err)
			}
		})
	}
	all.Wait()
}

// After thousands of probes, good and bad, nothing is left of them.
func TestNothingIsLeft(t *testing.T) {
	r := newRig(t)
	r.agent()
	r.serve()
	paths := ways()
	one := func(i int) {
		path := paths[i%len(paths)]
		switch i % 4 {
		case 0, 1:
			r.ok(r.dial(r.soon(), path, openPort))
		case 2:
			if err := r.dial(r.soon(), path, closedPort); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatal(err)
			}
		case 3:
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := r.dial(ctx, path, openPort); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
	}
	one(0)
	goroutines, descriptors := runtime.NumGoroutine(), r.descriptors()
	for i := range 2000 {
		one(i)
	}
	for _, f := range []*family{&r.dialer.link.v4, &r.dialer.link.v6} {
		if n := free(f.ports); n != portCount {
			t.Errorf("%d of %d ports are free", n, portCount)
		}
	}
	r.eventually("netstack has no connection", func() bool { return len(r.dialer.stack.RegisteredEndpoints()) == 0 })
	r.eventually("as many goroutines and descriptors as before", func() bool {
		return runtime.NumGoroutine() <= goroutines && r.descriptors() <= descriptors
	})
	r.eventually("the backend has no connection", func() bool {
		c, err := r.backend.Counters()
		r.ok(err)
		return c["TcpCurrEstab"] == 0
	})
}

func free(p *ports) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left
}

// descriptors counts the open ones of this process.
func (r *rig) descriptors() int {
	r.tb.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	r.ok(err)
	return len(list)
}

// A connection ends as the kernel's do: by a reset, by its own end, by that of the Dialer.
func TestEnds(t *testing.T) {
	r := newRig(t)
	r.agent()
	r.serve()
	path := Path{Forward: GUE, VIP: vip4, Backend: backend4, GUEPort: guePort}

	conn, err := r.dialer.DialContext(r.soon(), "tcp", path, resetPort)
	r.ok(err)
	_, err = conn.Write([]byte("x"))
	r.ok(err)
	if _, err = conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read of a reset connection: %v, want ECONNRESET", err)
	}
	r.ok(conn.Close())
	if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v, want net.ErrClosed", err)
	}

	reading := func(c net.Conn) chan error {
		ended := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			ended <- err
		}()
		return ended
	}
	conn, err = r.dialer.DialContext(r.soon(), "tcp", path, openPort)
	r.ok(err)
	ended := reading(conn)
	r.ok(conn.Close())
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read during close: %v, want net.ErrClosed", err)
	}

	conn, err = r.dialer.DialContext(r.soon(), "tcp", path, openPort)
	r.ok(err)
	ended = reading(conn)
	pending := make(chan error)
	go func() {
		path := Path{Forward: IPIP, VIP: vip4.Next(), Backend: backend4} // nobody's
		pending <- r.dial(r.soon(), path, openPort)
	}()
	r.eventually("the dial is under way", func() bool { return free(r.dialer.link.v4.ports) == portCount-2 })
	resolving := make(chan error)
	go func() {
		resolving <- r.dial(r.soon(), Path{Forward: L2, VIP: vip4, Backend: netip.MustParseAddr("10.0.0.77")}, openPort)
	}()
	r.eventually("a neighbour is waited for", func() bool {
		idle := r.dialer.open.TryLock()
		if idle {
			r.dialer.open.Unlock()
		}
		return !idle
	})
	r.ok(r.dialer.Close())
	if err := <-resolving; !errors.Is(err, net.ErrClosed) {
		t.Errorf("wait for a neighbour during the Dialer's end: %v, want net.ErrClosed", err)
	}
	if err := <-ended; err == nil {
		t.Error("read after the Dialer's end: no error")
	}
	if err := <-pending; !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial during the Dialer's end: %v, want net.ErrClosed", err)
	}
	if err := r.dial(r.soon(), path, openPort); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial after the Dialer's end: %v, want net.ErrClosed", err)
	}
}

// A Dialer leaves nothing behind.
func TestClose(t *testing.T) {
	r := newRig(t)
	r.agent()
	r.serve()
	goroutines, descriptors := runtime.NumGoroutine(), r.descriptors()
	for range 10 {
		r.ok(r.node.Do(func() error {
			d, err := New()
			if err != nil {
				return err
			}
			_, err = d.DialContext(r.soon(), "tcp", ways()[0], openPort)
			return errors.Join(err, d.Close(), d.Close())
		}))
	}
	r.eventually("as many goroutines and descriptors as before", func() bool {
		return runtime.NumGoroutine() <= goroutines && r.descriptors() <= descriptors
	})
}

// When this node does not send, a timeout is not the backend's.
func TestNodeDoesNotSend(t *testing.T) {
	r := newRig(t)
	conn, err := r.dialer.DialContext(r.soon(), "udp", Path{Forward: IPIP, VIP: vip4, Backend: backend4}, openPort)
	r.ok(err)
	defer conn.Close()
	r.ok(r.node.SetMTU("eth0", 1000))
	if _, err := conn.Write(make([]byte, 1200)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("write of what the interface cannot carry: %v, want EMSGSIZE", err)
	}
	r.dialer.link.v4.raw.close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := r.dial(ctx, Path{Forward: IPIP, VIP: vip4, Backend: backend4}, openPort); err == nil || !strings.Contains(err.Error(), "this node did not send") {
		t.Errorf("dial without a socket: %v", err)
	}
}

// CAP_NET_RAW is all that is needed, and is asked for where it is missing.
func TestCapability(t *testing.T) {
	r := newRig(t)
	r.agent()
	r.serve()
	// with runs f in the node with these capabilities and no others.
	with := func(capabilities uint32, f func() error) error {
		return r.node.Do(func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var before [2]unix.CapUserData
			if err := unix.Capget(&header, &before[0]); err != nil {
				return err
			}
			limited := [2]unix.CapUserData{before[0], before[1]}
			limited[0].Effective, limited[1].Effective = capabilities, 0
			if err := unix.Capset(&header, &limited[0]); err != nil {
				return err
			}
			defer unix.Capset(&header, &before[0])
			return f()
		})
	}
	r.ok(with(1<<unix.CAP_NET_RAW, func() error {
		d, err := New()
		if err != nil {
			return err
		}
		defer d.Close()
		for _, path := range ways() {
			conn, err := d.DialContext(r.soon(), "tcp", path, openPort)
			if err != nil {
				return err
			}
			conn.Close()
		}
		return nil
	}))
	err := with(0, func() error {
		d, err := New()
		if err == nil {
			d.Close()
		}
		return err
	})
	if !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "AmbientCapabilities=CAP_NET_RAW") {
		t.Errorf("without CAP_NET_RAW: %v", err)
	}
}

func TestBadPaths(t *testing.T) {
	for _, c := range []struct {
		path Path
		want string
	}{
		{Path{Forward: "nat", VIP: vip4, Backend: backend4}, `forwarding by "nat"; give l2, ipip or gue`},
		{Path{Forward: GUE, VIP: vip4, Backend: backend4}, "no GUE port"},
		{Path{Forward: IPIP, VIP: vip4}, "an address is missing"},
		{Path{Forward: IPIP, VIP: vip4, Backend: backend6, Source: netip.MustParsePrefix("10.7.0.0/16")}, "the families differ"},
	} {
		if err := c.path.validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.path, err, c.want)
		}
	}
}

// BenchmarkProbe is one probe of eight at once: connect, ask for a page, read it, close. cpu-µs/op is the CPU time of this process,
// user and system, and so without the server's, which is another process; but with the kernel's work on both sides of the
// cable, which it does for the sender. kernel is the same over the kernel's own connections to the backend's own address, with
// the way into the namespace and back.
func BenchmarkProbe(b *testing.B) {
	r := newRig(b)
	r.agent()
	server, err := r.backend.Start(testenv.Cmd{Path: os.Args[0], Env: []string{serveEnv + "=1"}})
	r.ok(err)
	r.ok(server.WaitTCP(10*time.Second, netip.AddrPortFrom(backend4, openPort)))
	r.ok(server.WaitTCP(10*time.Second, netip.AddrPortFrom(backend6, openPort)))
	const atOnce = 8
	measure := func(b *testing.B, dial func() (net.Conn, error)) {
		var before, after unix.Rusage
		r.ok(unix.Getrusage(unix.RUSAGE_SELF, &before))
		b.ReportAllocs()
		var left atomic.Int64
		left.Store(int64(b.N))
		b.ResetTimer()
		var all sync.WaitGroup
		for range atOnce {
			all.Go(func() {
				for left.Add(-1) >= 0 {
					conn, err := dial()
					if err == nil {
						err = errors.Join(ask(conn), conn.Close())
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		r.ok(unix.Getrusage(unix.RUSAGE_SELF, &after))
		used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
		b.ReportMetric(float64(used)/1000/float64(b.N), "cpu-µs/op")
	}
	for _, path := range ways() {
		b.Run(path.name(), func(b *testing.B) {
			measure(b, func() (net.Conn, error) {
				return r.dialer.DialContext(context.Background(), "tcp", path, openPort)
			})
		})
	}
	b.Run("kernel", func(b *testing.B) {
		dialer := r.node.Dialer()
		measure(b, func() (net.Conn, error) {
			conn, err := dialer.DialContext(context.Background(), "tcp", netip.AddrPortFrom(backend4, openPort).String())
			if err == nil {
				err = conn.(*net.TCPConn).SetLinger(0)
			}
			return conn, err
		})
	})
}

// ask gets a page.
func ask(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// serveEnv makes the test program the benchmark's server.
const serveEnv = "SLUICE_TUNNEL_TEST_SERVE"

func serveForever() error {
	return http.ListenAndServe(fmt.Sprintf(":%d", openPort), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok")
	}))
}
