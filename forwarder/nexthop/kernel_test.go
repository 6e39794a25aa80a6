//go:build linux

package nexthop

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/testenv"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestOnLink(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.watch("10.0.0.11", "fd00::11", "::ffff:10.0.0.12")
	eth0, err := l.node.Link("eth0")
	l.ok(err)
	index := eth0.Attrs().Index
	for _, c := range []struct {
		addr, source string
		mac          [6]byte
	}{
		{"10.0.0.11", "10.0.0.1", r1MAC},
		{"fd00::11", "fd00::1", r1MAC},
		{"10.0.0.12", "10.0.0.1", r2MAC},
	} {
		got := w.awaitReady(c.addr, c.mac)
		want := Hop{State: Ready, Link: index, Src: nodeMAC, Dst: c.mac, Source: netip.MustParseAddr(c.source), MTU: 1500}
		if got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.addr, got, want)
		}
	}
	if want := (LinkInfo{Name: "eth0", Up: true, Ethernet: true, MAC: nodeMAC, MTU: 1500}); w.Links()[index] != want {
		t.Errorf("link: %+v, want %+v", w.Links()[index], want)
	}
	if got := len(l.managed()); got != 3 {
		t.Errorf("%d managed neighbours, want 3: %v", got, l.managed())
	}

	l.ok(w.Track(parse("fd00::11")))
	if got := w.Hops(); len(got) != 1 || got[netip.MustParseAddr("fd00::11")].State != Ready {
		t.Errorf("after tracking less: %+v", got)
	}
	if got := l.managed(); len(got) != 1 {
		t.Errorf("neighbours that are no longer needed are still managed: %v", got)
	}
	w.Close()
	if got := l.managed(); len(got) != 0 {
		t.Errorf("managed neighbours left after Close: %v", got)
	}
	if n := l.neighbours()[netip.MustParseAddr("fd00::11")]; n.HardwareAddr == nil {
		t.Errorf("Close took the Ethernet address away from the kernel: %+v", n)
	}
}

func TestTrackRefusesNonsense(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.watch("10.0.0.11")
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("::"), netip.MustParseAddr("224.0.0.1"),
		netip.MustParseAddr("ff02::1"), netip.MustParseAddr("fe80::1%eth0")} {
		if err := w.Track([]netip.Addr{a}); err == nil {
			t.Errorf("Track(%v) was taken", a)
		}
	}
	if len(w.Hops()) != 1 {
		t.Errorf("a refused set changed what is tracked: %v", w.Hops())
	}
	w.Close()
	if err := w.Track(parse("10.0.0.11")); err == nil {
		t.Error("Track after Close was taken")
	}
	w.Close()
}

func TestGatewayChanges(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	// A router's link-local address: derived from its Ethernet address (RFC 4291, appendix A).
	const ll1 = "fe80::ff:fe00:11"
	v4, v6 := netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("2001:db8::/32")
	l.ok(l.node.AddRoute(testenv.Route{Dst: v4, Via: parse("10.0.0.11"), MTU: 1400}))
	l.ok(l.node.AddRoute(testenv.Route{Dst: v6, Via: parse(ll1), Link: "eth0"}))
	w := l.watch("10.9.1.2", "2001:db8::5")
	h := w.awaitReady("10.9.1.2", r1MAC)
	if h.Gateway != netip.MustParseAddr("10.0.0.11") || h.MTU != 1400 || h.Source != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("via a gateway: %+v", h)
	}
	h = w.awaitReady("2001:db8::5", r1MAC)
	if h.Gateway != netip.MustParseAddr(ll1) || h.MTU != 1500 || h.Source != netip.MustParseAddr("fd00::1") {
		t.Errorf("via a link-local gateway: %+v", h)
	}

	// The new gateway has never been spoken to, and yet there is no moment without a next hop.
	w.seen.Store(&[]Hop{})
	l.ok(l.node.AddRoute(testenv.Route{Dst: v4, Via: parse("10.0.0.12")}))
	h = w.awaitReady("10.9.1.2", r2MAC)
	w.await(time.Second, "10.9.1.2", "announced", func(Hop) bool { return len(*w.seen.Load()) > 0 })
	for _, seen := range *w.seen.Load() {
		if seen.State != Ready {
			t.Errorf("while the gateway changed, the hop was %+v", seen)
		}
	}
	if h.Gateway != netip.MustParseAddr("10.0.0.12") || h.MTU != 1500 {
		t.Errorf("after the route was replaced: %+v", h)
	}
	l.ok(l.node.AddRoute(testenv.Route{Dst: v6, Via: parse("fd00::12")}))
	w.awaitReady("2001:db8::5", r2MAC)

	// A more specific route wins, and its withdrawal gives the old way back.
	host := netip.MustParsePrefix("10.9.1.2/32")
	l.ok(l.node.AddRoute(testenv.Route{Dst: host, Via: parse("10.0.0.11")}))
	w.awaitReady("10.9.1.2", r1MAC)
	l.ok(l.node.DelRoute(host))
	w.awaitReady("10.9.1.2", r2MAC)

	l.ok(l.node.DelRoute(v4))
	h = w.await(time.Second, "10.9.1.2", "without a route", func(h Hop) bool { return h.State == NoRoute })
	if !strings.Contains(h.Problem, "no route") {
		t.Errorf("problem of a withdrawn route: %q", h.Problem)
	}
	l.ok(l.node.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: parse("10.0.0.11")}))
	w.awaitReady("10.9.1.2", r1MAC)
}

// An IPv4 route may have an IPv6 gateway, as BGP unnumbered makes it (RFC 8950).
func TestIPv4ViaIPv6Gateway(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	eth0, err := l.node.Link("eth0")
	l.ok(err)
	_, dst, _ := net.ParseCIDR("10.9.0.0/16")
	l.ok(l.node.Netlink().RouteAdd(&netlink.Route{Dst: dst, LinkIndex: eth0.Attrs().Index,
		Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("fd00::12")}}))
	w := l.watch("10.9.0.1")
	if h := w.awaitReady("10.9.0.1", r2MAC); h.Gateway != netip.MustParseAddr("fd00::12") {
		t.Errorf("gateway: %+v", h)
	}
}

func TestRejectRoutes(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	for _, r := range []struct {
		dst string
		typ int
	}{
		{"10.20.0.0/16", unix.RTN_BLACKHOLE}, {"2001:db8:20::/48", unix.RTN_BLACKHOLE},
		{"10.21.0.0/16", unix.RTN_UNREACHABLE}, {"2001:db8:21::/48", unix.RTN_UNREACHABLE},
		{"10.22.0.0/16", unix.RTN_PROHIBIT}, {"2001:db8:22::/48", unix.RTN_PROHIBIT},
		{"10.23.0.0/16", unix.RTN_THROW}, {"2001:db8:23::/48", unix.RTN_THROW},
	} {
		_, dst, _ := net.ParseCIDR(r.dst)
		l.ok(l.node.Netlink().RouteAdd(&netlink.Route{Dst: dst, Type: r.typ}))
	}
	w := l.watch("10.20.0.1", "2001:db8:20::1", "10.21.0.1", "2001:db8:21::1", "10.22.0.1", "2001:db8:22::1", "10.23.0.1", "2001:db8:23::1",
		"10.0.0.1", "fd00::1", "127.0.0.1", "10.0.0.255", "198.51.100.1", "2001:db8:99::1")
	for addr, problem := range map[string]string{
		"10.20.0.1": "blackhole", "2001:db8:20::1": "blackhole",
		"10.21.0.1": "unreachable", "2001:db8:21::1": "unreachable",
		"10.22.0.1": "prohibit", "2001:db8:22::1": "prohibit",
		"10.23.0.1": "no route", "2001:db8:23::1": "no route",
		"10.0.0.1": "of this node itself", "fd00::1": "of this node itself", "127.0.0.1": "of this node itself",
		"10.0.0.255":   "not a unicast route",
		"198.51.100.1": "no route", "2001:db8:99::1": "no route",
	} {
		h := w.Hops()[netip.MustParseAddr(addr)]
		if h.State != NoRoute || !strings.Contains(h.Problem, problem) || h.Link != 0 {
			t.Errorf("%s: %+v, want no_route with %q", addr, h, problem)
		}
	}
}

// Policy rules decide by more than the main table.
func TestPolicyRule(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	dst := netip.MustParsePrefix("10.9.0.0/16")
	l.ok(l.node.AddRoute(testenv.Route{Dst: dst, Via: parse("10.0.0.11")}))
	w := l.watch("10.9.0.1")
	w.awaitReady("10.9.0.1", r1MAC)
	h := l.node.Netlink()
	_, ipnet, _ := net.ParseCIDR(dst.String())
	l.ok(h.RouteAdd(&netlink.Route{Dst: ipnet, Gw: net.ParseIP("10.0.0.12"), Table: 100}))
	rule := netlink.NewRule()
	rule.Dst, rule.Table, rule.Priority = ipnet, 100, 50
	l.ok(h.RuleAdd(rule))
	w.awaitReady("10.9.0.1", r2MAC)
	l.ok(h.RuleDel(rule))
	w.awaitReady("10.9.0.1", r1MAC)
}

func TestLinkLosesCarrier(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.watch("10.0.0.11", "fd00::11")
	w.awaitReady("10.0.0.11", r1MAC)
	w.awaitReady("fd00::11", r1MAC)
	calls := w.calls.Load()
	l.ok(l.sw.LinkDown("p1"))
	h := w.await(time.Second, "10.0.0.11", "not ready", func(h Hop) bool { return h.State != Ready })
	if !strings.Contains(h.Problem, "eth0 is down or has no carrier") {
		t.Errorf("problem without carrier: %q", h.Problem)
	}
	if w.Links()[h.Link].Up {
		t.Error("Links says that a link without carrier is up")
	}
	w.awaitCall(calls)
	l.ok(l.sw.LinkUp("p1"))
	w.awaitReady("10.0.0.11", r1MAC)
	w.awaitReady("fd00::11", r1MAC)
	if got := len(l.managed()); got != 2 {
		t.Errorf("after the carrier came back %d neighbours are managed, want 2: %v", got, l.managed())
	}
}

func TestLinkDownAndUp(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.watch("10.0.0.11")
	w.awaitReady("10.0.0.11", r1MAC)
	l.ok(l.node.LinkDown("eth0"))
	// Its routes are gone with it, of which the kernel gives no notice.
	w.await(time.Second, "10.0.0.11", "without a route", func(h Hop) bool { return h.State == NoRoute })
	l.ok(l.node.LinkUp("eth0"))
	w.awaitReady("10.0.0.11", r1MAC)
}

func TestLinkDeletedAndMadeAgain(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.watch("10.0.0.11")
	old := w.awaitReady("10.0.0.11", r1MAC)
	l.ok(l.node.DeleteLink("eth0"))
	w.await(time.Second, "10.0.0.11", "without a route", func(h Hop) bool { return h.State == NoRoute })
	if _, there := w.Links()[old.Link]; there {
		t.Error("Links still holds the link that was deleted")
	}
	l.plug(l.node, 1, nodeMAC)
	h := w.awaitReady("10.0.0.11", r1MAC)
	if h.Link == old.Link || w.Links()[h.Link].Name != "eth0" {
		t.Errorf("the new link: %+v, links %+v", h, w.Links())
	}
}

func TestLinkChanges(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.watch("10.0.0.11")
	h := w.awaitReady("10.0.0.11", r1MAC)
	l.ok(l.node.SetMTU("eth0", 1300))
	w.await(time.Second, "10.0.0.11", "of MTU 1300", func(h Hop) bool { return h.MTU == 1300 })
	if w.Links()[h.Link].MTU != 1300 {
		t.Errorf("Links: %+v", w.Links()[h.Link])
	}
	other := [6]byte{2, 0, 0, 0, 0, 0x77}
	l.ok(l.node.SetMAC("eth0", other[:]))
	w.await(time.Second, "10.0.0.11", "sent from the new address", func(h Hop) bool { return h.Src == other })
	l.ok(l.node.LinkDown("eth0"))
	l.ok(l.node.RenameLink("eth0", "wan0"))
	l.ok(l.node.LinkUp("wan0"))
	w.awaitReady("10.0.0.11", r1MAC)
	w.await(time.Second, "10.0.0.11", "sent over wan0", func(Hop) bool { return w.Links()[h.Link].Name == "wan0" })
	// The preferred source follows the addresses of the link.
	l.ok(l.node.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: parse("10.0.0.11")}))
	l.ok(w.Track(parse("10.9.0.1")))
	w.awaitReady("10.9.0.1", r1MAC)
	l.ok(l.node.AddAddr("wan0", netip.MustParsePrefix("10.0.0.2/24")))
	l.ok(l.node.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: parse("10.0.0.11"), Source: netip.MustParseAddr("10.0.0.2")}))
	w.await(time.Second, "10.9.0.1", "sent from 10.0.0.2", func(h Hop) bool { return h.Source == netip.MustParseAddr("10.0.0.2") })
}

// A path MTU that the kernel learned counts. It comes without a notice, so it is seen with the next change or resync.
func TestLearnedPathMTU(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	// 10.9.0.1 is behind r1, over a link of r1 with a small MTU.
	far := l.namespace("far")
	l.ok(l.env.Veth(testenv.End{Namespace: l.r1, Name: "eth1", MTU: 1280}, testenv.End{Namespace: far, Name: "eth0", MTU: 1280}, 1))
	l.ok(l.r1.AddAddr("eth1", netip.MustParsePrefix("10.9.0.254/24")))
	l.ok(far.AddAddr("eth0", netip.MustParsePrefix("10.9.0.1/24")))
	l.ok(l.r1.SetSysctl("net.ipv4.ip_forward", "1"))
	l.ok(far.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: parse("10.9.0.254")}))
	l.ok(l.node.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("10.9.0.0/24"), Via: parse("10.0.0.11")}))
	w := l.watch("10.9.0.1")
	w.awaitReady("10.9.0.1", r1MAC)

	var conn net.Conn
	l.ok(l.node.Do(func() (err error) {
		conn, err = net.Dial("udp", "10.9.0.1:9")
		return err
	}))
	defer conn.Close()
	deadline := time.Now().Add(3 * time.Second)
	for w.Hops()[netip.MustParseAddr("10.9.0.1")].MTU != 1280 {
		if time.Now().After(deadline) {
			t.Fatalf("the learned path MTU is not seen: %+v", w.Hops())
		}
		_, _ = conn.Write(make([]byte, 1400)) // r1 answers "fragmentation needed"
		time.Sleep(20 * time.Millisecond)
		w.lost() // what the resync does every 30 s
	}
}

// The subscription overflows for real: its buffer is tiny, and nobody reads while hundreds of things change. Once it
// is read, everything must be right long before the next regular resync.
func TestOverflowedSubscription(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	dst := netip.MustParsePrefix("10.9.0.0/16")
	l.ok(l.node.AddRoute(testenv.Route{Dst: dst, Via: parse("10.0.0.11")}))
	w := l.open(func(w *Watcher) { l.ok(w.events.SetReceiveBufferSize(4096, false)) })
	l.ok(w.Track(parse("10.9.0.1", "10.0.0.12")))
	w.mu.Lock() // the reader waits for it at the first notice
	for i := range 300 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i >> 8), byte(i)}), 32)
		l.ok(l.node.AddRoute(testenv.Route{Dst: p, Via: parse("10.0.0.11")}))
	}
	l.ok(l.node.AddRoute(testenv.Route{Dst: dst, Via: parse("10.0.0.12")}))
	l.ok(l.node.SetMTU("eth0", 1400))
	w.mu.Unlock()
	w.run()
	h := w.awaitReady("10.9.0.1", r2MAC)
	if h.MTU != 1400 || w.Links()[h.Link].MTU != 1400 {
		t.Errorf("a change that was lost is not caught up with: %+v", h)
	}
	if !strings.Contains(w.logs.String(), "notices were lost") {
		t.Fatal("the subscription did not overflow: this test tests nothing")
	}
	// And the subscription is alive afterwards.
	l.ok(l.node.AddRoute(testenv.Route{Dst: dst, Via: parse("10.0.0.11")}))
	w.awaitReady("10.9.0.1", r1MAC)
}

// A burst of changes makes few calls, and one change makes one soon.
func TestChangesAreGathered(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	dst := netip.MustParsePrefix("10.9.0.0/16")
	l.ok(l.node.AddRoute(testenv.Route{Dst: dst, Via: parse("10.0.0.11")}))
	var addrs []netip.Addr
	for i := range 2000 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}))
	}
	w := l.open(nil)
	start := time.Now()
	l.ok(w.Track(addrs))
	t.Logf("tracking %d addresses took %v", len(addrs), time.Since(start))
	w.run()
	w.awaitReady("10.9.0.1", r1MAC)
	time.Sleep(100 * time.Millisecond)
	calls := w.calls.Load()
	l.ok(l.node.AddRoute(testenv.Route{Dst: dst, Via: parse("10.0.0.12")}))
	w.awaitReady("10.9.7.207", r2MAC)
	w.awaitReady("10.9.0.0", r2MAC)
	time.Sleep(300 * time.Millisecond)
	if got := w.calls.Load() - calls; got < 1 || got > 3 {
		t.Errorf("one route that changed made %d calls", got)
	}
	w.await(2*time.Second, "10.9.0.0", "with the gateway as the only managed neighbour", func(Hop) bool { return len(l.managed()) == 1 })
	// An unrelated route is none of our business.
	calls = w.calls.Load()
	l.ok(l.node.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("10.88.0.0/16"), Via: parse("10.0.0.12")}))
	time.Sleep(200 * time.Millisecond)
	if got := w.calls.Load() - calls; got != 0 {
		t.Errorf("an unrelated route made %d calls", got)
	}
}
