//go:build linux

package nexthop

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/testenv"
	"github.com/vishvananda/netlink"
)

// The network of these tests: a node and two routers on one bridge.
//
//	node eth0 10.0.0.1/24  fd00::1/64
//	r1   eth0 10.0.0.11/24 fd00::11/64
//	r2   eth0 10.0.0.12/24 fd00::12/64
type lan struct {
	t            *testing.T
	env          *testenv.Env
	node, r1, r2 *testenv.Namespace
	sw           *testenv.Namespace
}

var (
	nodeMAC = [6]byte{2, 0, 0, 0, 0, 0x01}
	r1MAC   = [6]byte{2, 0, 0, 0, 0, 0x11}
	r2MAC   = [6]byte{2, 0, 0, 0, 0, 0x12}
)

func newLAN(t *testing.T) *lan {
	t.Helper()
	l := &lan{t: t, env: testenv.ForTest(t)}
	l.sw = l.namespace("switch")
	l.ok(l.sw.Bridge("br0", nil, 0))
	l.node = l.namespace("node")
	l.plug(l.node, 1, nodeMAC)
	l.r1 = l.namespace("r1")
	l.plug(l.r1, 11, r1MAC)
	l.r2 = l.namespace("r2")
	l.plug(l.r2, 12, r2MAC)
	return l
}

func (l *lan) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lan) namespace(name string) *testenv.Namespace {
	l.t.Helper()
	ns, err := l.env.Namespace(name)
	l.ok(err)
	return ns
}

// plug connects a namespace to the bridge and gives it the addresses 10.0.0.n and fd00::n (n in decimal digits).
func (l *lan) plug(ns *testenv.Namespace, n int, mac [6]byte) {
	l.t.Helper()
	l.ok(l.env.Veth(
		testenv.End{Namespace: ns, Name: "eth0", MAC: mac[:]},
		testenv.End{Namespace: l.sw, Name: fmt.Sprintf("p%d", n), Bridge: "br0"}, 1))
	l.ok(ns.AddAddr("eth0", netip.MustParsePrefix(fmt.Sprintf("10.0.0.%d/24", n))))
	l.ok(ns.AddAddr("eth0", netip.MustParsePrefix(fmt.Sprintf("fd00::%d/64", n))))
}

// watch makes a watcher in the node's namespace and runs it until the test ends.
func (l *lan) watch(addrs ...string) *watch {
	l.t.Helper()
	w := l.open(nil)
	l.ok(w.Track(parse(addrs...)))
	w.run()
	return w
}

type watch struct {
	*Watcher
	l     *lan
	calls atomic.Int64
	seen  atomic.Pointer[[]Hop] // the IPv4 hops at each call of changed
	logs  *logBook
}

// open makes a watcher that does not run yet.
func (l *lan) open(prepare func(*Watcher)) *watch {
	l.t.Helper()
	w := &watch{l: l, logs: &logBook{}}
	l.ok(l.node.Do(func() (err error) {
		w.Watcher, err = New(slog.New(slog.NewTextHandler(w.logs, nil)), w.called)
		return err
	}))
	if prepare != nil {
		prepare(w.Watcher)
	}
	l.t.Cleanup(func() {
		w.Close()
		if l.t.Failed() {
			l.t.Logf("log of the watcher:\n%s", w.logs)
		}
	})
	return w
}

func (w *watch) called() {
	w.calls.Add(1)
	var seen []Hop
	if before := w.seen.Load(); before != nil {
		seen = append(seen, *before...)
	}
	for a, h := range w.Hops() {
		if a.Is4() {
			seen = append(seen, h)
		}
	}
	w.seen.Store(&seen)
}

func (w *watch) run() {
	go func() {
		if err := w.Run(w.l.t.Context()); err != nil {
			w.l.t.Errorf("Run: %v", err)
		}
	}()
}

// awaitCall waits until changed has been called more often than that. What is announced is visible before.
func (w *watch) awaitCall(calls int64) {
	w.l.t.Helper()
	for deadline := time.Now().Add(time.Second); w.calls.Load() == calls; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.l.t.Fatal("changed was not called")
		}
	}
}

type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func parse(addrs ...string) (out []netip.Addr) {
	for _, a := range addrs {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// await waits until the hop to addr is as wanted.
func (w *watch) await(within time.Duration, addr string, what string, want func(Hop) bool) Hop {
	w.l.t.Helper()
	a := netip.MustParseAddr(addr)
	start := time.Now()
	for {
		h := w.Hops()[a]
		if want(h) {
			w.l.t.Logf("%s: %s after %v", addr, what, time.Since(start).Round(time.Millisecond))
			return h
		}
		if time.Since(start) > within {
			w.l.t.Fatalf("%s is not %s within %v: %+v", addr, what, within, h)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (w *watch) awaitReady(addr string, mac [6]byte) Hop {
	w.l.t.Helper()
	return w.await(5*time.Second, addr, fmt.Sprintf("ready with %s", net.HardwareAddr(mac[:])),
		func(h Hop) bool { return h.State == Ready && h.Dst == mac })
}

// neighbours lists the node's neighbour table: address → flags and state.
func (l *lan) neighbours() map[netip.Addr]netlink.Neigh {
	l.t.Helper()
	list, err := l.node.Netlink().NeighList(0, 0)
	l.ok(err)
	out := map[netip.Addr]netlink.Neigh{}
	for _, n := range list {
		a, _ := netip.AddrFromSlice(n.IP)
		out[a.Unmap()] = n
	}
	return out
}

func (l *lan) managed() (out []netip.Addr) {
	l.t.Helper()
	for a, n := range l.neighbours() {
		if n.FlagsExt&netlink.NTF_EXT_MANAGED != 0 {
			out = append(out, a)
		}
	}
	return out
}
