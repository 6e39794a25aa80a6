//go:build linux

package nexthop

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A host that comes back with another card is found without traffic from it: 5 s to the next probe, 3 s until it has
// failed. The kernel alone took from 32 s to more than 45 s here.
func TestNeighbourChangesItsMAC(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.watch("10.0.0.11", "fd00::11")
	w.awaitReady("10.0.0.11", r1MAC)
	w.awaitReady("fd00::11", r1MAC)
	other := [6]byte{2, 0, 0, 0, 0, 0x99}
	l.ok(l.r1.SetMAC("eth0", other[:]))
	changed := func(h Hop) bool { return h.State == Ready && h.Dst == other }
	w.await(12*time.Second, "10.0.0.11", "ready with the new address", changed)
	w.await(12*time.Second, "fd00::11", "ready with the new address", changed)
}

func TestNeighbourAppears(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.watch("10.0.0.50", "fd00::50")
	for _, a := range []string{"10.0.0.50", "fd00::50"} {
		h := w.Hops()[netip.MustParseAddr(a)]
		if h.State != NoNeighbour || !strings.Contains(h.Problem, "does not answer") || h.Link == 0 {
			t.Errorf("a missing neighbour: %+v", h)
		}
	}
	time.Sleep(4 * time.Second) // the kernel has given up: failed
	l.ok(l.r2.AddAddr("eth0", netip.MustParsePrefix("10.0.0.50/24")))
	l.ok(l.r2.AddAddr("eth0", netip.MustParsePrefix("fd00::50/64")))
	calls := w.calls.Load()
	ready := func(h Hop) bool { return h.State == Ready && h.Dst == r2MAC }
	w.await(10*time.Second, "10.0.0.50", "ready", ready)
	w.await(10*time.Second, "fd00::50", "ready", ready)
	w.awaitCall(calls)
}

// Entries of others are theirs: a permanent neighbour is used as it is, and survives Close.
func TestPermanentNeighbourIsLeftAlone(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	fixed := [6]byte{2, 0, 0, 0, 0, 0x55}
	a := netip.MustParseAddr("10.0.0.11")
	l.ok(l.node.AddNeighbour("eth0", a, fixed[:]))
	w := l.watch("10.0.0.11", "10.0.0.12")
	w.awaitReady("10.0.0.11", fixed)
	w.awaitReady("10.0.0.12", r2MAC)
	w.Close()
	if n := l.neighbours()[a]; n.State != unix.NUD_PERMANENT || !bytes.Equal(n.HardwareAddr, fixed[:]) {
		t.Errorf("a permanent neighbour became %+v", n)
	}
}

// Whoever deletes or replaces an entry by hand does not switch the watching off.
func TestNeighbourEntryTakenAway(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.watch("10.0.0.11")
	h := w.awaitReady("10.0.0.11", r1MAC)
	isManaged := func(Hop) bool { return len(l.managed()) == 1 }
	neighbour := netlink.Neigh{LinkIndex: h.Link, IP: net.ParseIP("10.0.0.11"), State: unix.NUD_STALE, HardwareAddr: r1MAC[:]}
	for range 3 {
		l.ok(l.node.Netlink().NeighDel(&neighbour))
		w.await(2*time.Second, "10.0.0.11", "managed again after a deletion", isManaged)
		l.ok(l.node.Netlink().NeighSet(&neighbour))
		w.await(2*time.Second, "10.0.0.11", "managed again after a replacement", isManaged)
	}
	w.awaitReady("10.0.0.11", r1MAC)
}

// What a killed process left managed is taken over, or released when it is no longer wanted.
func TestLeftoversOfAKilledProcess(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	killed := l.watch("10.0.0.11", "10.0.0.12")
	killed.awaitReady("10.0.0.11", r1MAC)
	killed.awaitReady("10.0.0.12", r2MAC)
	killed.stop()
	killed.running.Lock() // its Run has ended
	defer killed.running.Unlock()
	killed.mu.Lock()
	clear(killed.targets)
	clear(killed.kept) // so that its Close at the end of the test releases nothing
	killed.mu.Unlock()
	if got := len(l.managed()); got != 2 {
		t.Fatalf("%d managed neighbours to begin with, want 2", got)
	}
	w := l.watch("10.0.0.12")
	w.awaitReady("10.0.0.12", r2MAC)
	if got := l.managed(); len(got) != 1 || got[0] != netip.MustParseAddr("10.0.0.12") {
		t.Errorf("managed: %v, want 10.0.0.12 only", got)
	}
	w.Close()
	if got := l.managed(); len(got) != 0 {
		t.Errorf("managed after Close: %v", got)
	}
}

// On a kernel before 5.16 neighbours are asked for again and again instead.
func TestKernelWithoutManagedNeighbours(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.open(func(w *Watcher) { w.plain = true })
	l.ok(w.Track(parse("10.0.0.11", "10.0.0.50")))
	w.run()
	w.awaitReady("10.0.0.11", r1MAC)
	if got := l.managed(); len(got) != 0 {
		t.Fatalf("managed: %v", got)
	}
	if !strings.Contains(w.logs.String(), "NTF_EXT_MANAGED") {
		t.Error("nothing is said about the kernel's age")
	}
	time.Sleep(4 * time.Second)
	l.ok(l.r2.AddAddr("eth0", netip.MustParsePrefix("10.0.0.50/24")))
	w.await(10*time.Second, "10.0.0.50", "ready", func(h Hop) bool { return h.State == Ready && h.Dst == r2MAC })
	l.ok(l.sw.LinkDown("p1"))
	w.await(time.Second, "10.0.0.11", "not ready", func(h Hop) bool { return h.State != Ready })
	l.ok(l.sw.LinkUp("p1"))
	w.awaitReady("10.0.0.11", r1MAC)
}
