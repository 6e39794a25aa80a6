//go:build linux

package nexthop

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/testenv"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// follow makes a watcher that follows all routes, and runs it.
func (l *lan) follow() *watch {
	l.t.Helper()
	w := l.open(nil)
	l.ok(w.FollowRoutes(true))
	w.run()
	return w
}

// way is where Routes sends packets to addr: a zero Hop if nowhere.
func (w *watch) way(addr string, hash uint64) (Hop, bool) {
	r := w.Routes()
	k, ok := r.Find(netip.MustParseAddr(addr), hash)
	if !ok {
		return Hop{}, false
	}
	return r.Ways()[k], true
}

// awaitWay waits until packets to addr go as wanted: to a gateway, "link" for the destination itself, or "none".
func (w *watch) awaitWay(addr, gateway string, state State, mac [6]byte) Hop {
	w.l.t.Helper()
	start := time.Now()
	for {
		h, ok := w.way(addr, 0)
		got := "none"
		switch {
		case ok && h.Gateway.IsValid():
			got = h.Gateway.String()
		case ok:
			got = "link"
		}
		if got == gateway && (!ok || (h.State == state && (state != Ready || h.Dst == mac))) {
			w.l.t.Logf("%s: %s after %v", addr, got, time.Since(start).Round(time.Millisecond))
			return h
		}
		if time.Since(start) > 12*time.Second {
			w.l.t.Fatalf("%s goes by %s %+v, want %s, %v", addr, got, h, gateway, state)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestFollowRoutes(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	v4, v6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	l.ok(l.node.AddRoute(testenv.Route{Dst: v4, Via: parse("10.0.0.11"), MTU: 1400}))
	l.ok(l.node.AddRoute(testenv.Route{Dst: v6, Via: parse("fd00::11")}))
	w := l.open(nil)
	if w.Routes() != nil {
		t.Error("routes are followed though nobody asked for it")
	}
	l.ok(w.FollowRoutes(true))
	// Complete, and with the gateways resolved, without Run.
	eth0, err := l.node.Link("eth0")
	l.ok(err)
	for addr, want := range map[string]Hop{
		"198.51.100.1": {Gateway: netip.MustParseAddr("10.0.0.11"), MTU: 1400},
		"2001:db8::1":  {Gateway: netip.MustParseAddr("fd00::11"), MTU: 1500},
	} {
		want.State, want.Link, want.Src, want.Dst = Ready, eth0.Attrs().Index, nodeMAC, r1MAC
		if h, ok := w.way(addr, 0); !ok || h != want {
			t.Errorf("%s:\n got %+v %v\nwant %+v", addr, h, ok, want)
		}
	}
	for _, addr := range []string{
		"10.0.0.1", "fd00::1", "127.0.0.1", "127.1.2.3", "10.0.0.255", "fe80::1", "ff02::1", "224.0.0.1",
	} {
		if h, ok := w.way(addr, 0); ok {
			t.Errorf("%s has a way: %+v", addr, h)
		}
	}
	if got := l.managed(); len(got) != 2 {
		t.Errorf("managed: %v, want the gateways", got)
	}

	w.run()
	for _, c := range []struct{ wide, narrow, addr, other, r1, r2 string }{
		{"0.0.0.0/0", "198.51.100.0/24", "198.51.100.1", "203.0.113.1", "10.0.0.11", "10.0.0.12"},
		{"::/0", "2001:db8::/48", "2001:db8::1", "2001:db8:1::1", "fd00::11", "fd00::12"},
	} {
		wide, narrow := netip.MustParsePrefix(c.wide), netip.MustParsePrefix(c.narrow)
		l.ok(l.node.AddRoute(testenv.Route{Dst: narrow, Via: parse(c.r2)}))
		w.awaitWay(c.addr, c.r2, Ready, r2MAC)
		if h, _ := w.way(c.other, 0); h.Gateway != netip.MustParseAddr(c.r1) {
			t.Errorf("another destination goes by %+v", h)
		}
		l.ok(l.node.AddRoute(testenv.Route{Dst: narrow, Via: parse(c.r1)}))
		w.awaitWay(c.addr, c.r1, Ready, r1MAC)
		l.ok(l.node.DelRoute(narrow))
		l.ok(l.node.AddRoute(testenv.Route{Dst: wide, Via: parse(c.r2)}))
		w.awaitWay(c.addr, c.r2, Ready, r2MAC)
		for _, typ := range []int{unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT} {
			_, dst, _ := net.ParseCIDR(c.narrow)
			l.ok(l.node.Netlink().RouteAdd(&netlink.Route{Dst: dst, Type: typ}))
			w.awaitWay(c.addr, "none", 0, [6]byte{})
			l.ok(l.node.Netlink().RouteDel(&netlink.Route{Dst: dst, Type: typ}))
			w.awaitWay(c.addr, c.r2, Ready, r2MAC)
		}
		l.ok(l.node.DelRoute(wide))
		w.awaitWay(c.addr, "none", 0, [6]byte{})
	}
	// The gateways are no longer needed, nor is anything when nothing is followed.
	for deadline := time.Now().Add(time.Second); len(l.managed()) != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("gateways that no route leads to are still managed: %v", l.managed())
		}
	}
	l.ok(l.node.AddRoute(testenv.Route{Dst: v4, Via: parse("10.0.0.11")}))
	w.awaitWay("198.51.100.1", "10.0.0.11", Ready, r1MAC)
	l.ok(w.FollowRoutes(false))
	if got := l.managed(); w.Routes() != nil || len(got) != 0 {
		t.Errorf("after FollowRoutes(false): routes %v, managed %v", w.Routes(), got)
	}
	l.ok(w.FollowRoutes(true))
	w.awaitWay("198.51.100.1", "10.0.0.11", Ready, r1MAC)
	w.Close()
	if err := w.FollowRoutes(false); err != nil {
		t.Errorf("FollowRoutes(false) after Close: %v", err)
	}
	if err := w.FollowRoutes(true); !errors.Is(err, net.ErrClosed) {
		t.Errorf("FollowRoutes(true) after Close: %v", err)
	}
}

// Of several metrics the lowest counts, and its route's end brings the next.
func TestFollowMetrics(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.follow()
	for _, c := range []struct{ dst, addr, r1, r2 string }{
		{"10.9.0.0/16", "10.9.0.1", "10.0.0.11", "10.0.0.12"}, {"2001:db8::/32", "2001:db8::1", "fd00::11", "fd00::12"},
	} {
		_, dst, _ := net.ParseCIDR(c.dst)
		better := &netlink.Route{Dst: dst, Gw: net.ParseIP(c.r1), Priority: 10}
		l.ok(l.node.Netlink().RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(c.r2), Priority: 20}))
		w.awaitWay(c.addr, c.r2, Ready, r2MAC)
		l.ok(l.node.Netlink().RouteAdd(better))
		w.awaitWay(c.addr, c.r1, Ready, r1MAC)
		l.ok(l.node.Netlink().RouteDel(better))
		w.awaitWay(c.addr, c.r2, Ready, r2MAC)
	}
}

// A client on the link is reached through its own Ethernet address, once somebody wants to.
func TestResolve(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.follow()
	for _, a := range []string{"10.0.0.12", "fd00::12"} {
		h := w.awaitWay(a, "link", NoNeighbour, [6]byte{})
		if !strings.Contains(h.Problem, "on the link eth0") || h.Link == 0 || h.Src != nodeMAC {
			t.Errorf("%s before it is resolved: %+v", a, h)
		}
		calls := w.calls.Load()
		w.Resolve(netip.MustParseAddr(a))
		w.awaitWay(a, "link", Ready, r2MAC)
		w.awaitCall(calls)
	}
	if h, ok := w.way("10.0.0.77", 0); !ok || h.State != NoNeighbour {
		t.Errorf("another destination on the link: %+v %v", h, ok)
	}
	// Another card: found though no packet of the kernel's goes there.
	other := [6]byte{2, 0, 0, 0, 0, 0x99}
	l.ok(l.r2.SetMAC("eth0", other[:]))
	w.awaitWay("10.0.0.12", "link", Ready, other)

	// What is not on a link, or not an address, is nobody's to resolve.
	for _, a := range append(parse("198.51.100.1", "10.0.0.1", "fe80::1"), netip.Addr{}) {
		w.Resolve(a)
	}
	time.Sleep(100 * time.Millisecond)
	managed := func() string {
		got := l.managed()
		slices.SortFunc(got, netip.Addr.Compare)
		return fmt.Sprint(got)
	}
	if got := managed(); got != "[10.0.0.12 fd00::12]" {
		t.Errorf("managed: %s", got)
	}

	// One that is used is kept, one that is not is forgotten after a while, and stays usable as long as the kernel says so.
	review := func(now time.Time) {
		w.work.Lock()
		defer w.work.Unlock()
		w.reviewAsked(now)
		w.keep()
	}
	r := w.Routes()
	review(time.Now()) // forget the uses of above
	r.Find(netip.MustParseAddr("10.0.0.12"), 0)
	later := time.Now().Add(forgetAfter + time.Second)
	review(later)
	if got := managed(); got != "[10.0.0.12]" {
		t.Errorf("managed after a review: %s, want the one that packets go to", got)
	}
	review(later.Add(forgetAfter + time.Second))
	if got := managed(); got != "[]" {
		t.Errorf("managed without any use: %s", got)
	}
}

// Absent destinations are given up, make room for others, and hold nothing up.
func TestResolveAbsent(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.follow()
	want := func(from, n int) {
		w.work.Lock()
		defer w.work.Unlock()
		for i := range n {
			w.Watcher.follow.wants <- netip.AddrFrom4([4]byte{10, 0, 0, byte(from + i)})
			w.takeWants(time.Now())
		}
	}
	w.work.Lock()
	asked := w.Watcher.follow.asked
	for i := range maxUnanswered {
		asked[neighKey{1, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}] = time.Now()
	}
	w.work.Unlock()
	want(100, 1)
	if len(asked) != maxUnanswered {
		t.Errorf("%d asked for at once, want %d", len(asked), maxUnanswered)
	}
	time.Sleep(answerWithin + 10*time.Millisecond)
	want(100, 20)
	w.work.Lock()
	defer w.work.Unlock()
	fresh := 0
	for k := range asked {
		if k.link != 1 {
			fresh++
		}
	}
	if len(asked) != maxUnanswered || fresh != 20 {
		t.Errorf("%d asked for, %d of them the latest; want %d and 20", len(asked), fresh, maxUnanswered)
	}
	w.reviewAsked(time.Now().Add(giveUpAfter + time.Second))
	if len(asked) != 0 {
		t.Errorf("%d are still asked for after all that time", len(asked))
	}
}

func TestFollowMultipath(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.follow()
	rnd := rand.New(rand.NewPCG(1, 1))
	share := func(addr string) (shares [2]int) {
		for range 1000 {
			h, ok := w.way(addr, rnd.Uint64())
			if !ok || h.State != Ready {
				return [2]int{}
			}
			shares[map[[6]byte]int{r1MAC: 0, r2MAC: 1}[h.Dst]]++
		}
		return shares
	}
	await := func(addr string, low, high int) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			s := share(addr)
			if s[0]+s[1] == 1000 && s[0] >= low && s[0] <= high {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: of 1000 packets %v go to the routers, want %d to %d to the first", addr, s, low, high)
			}
		}
	}
	eth0, err := l.node.Link("eth0")
	l.ok(err)
	for _, c := range []struct{ dst, addr, r1, r2 string }{
		{"10.9.0.0/16", "10.9.0.1", "10.0.0.11", "10.0.0.12"}, {"2001:db8::/32", "2001:db8::1", "fd00::11", "fd00::12"},
	} {
		_, dst, _ := net.ParseCIDR(c.dst)
		hop := func(via string, more int) *netlink.NexthopInfo {
			return &netlink.NexthopInfo{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP(via), Hops: more}
		}
		nl := l.node.Netlink()
		l.ok(nl.RouteAdd(&netlink.Route{Dst: dst, MultiPath: []*netlink.NexthopInfo{hop(c.r1, 0), hop(c.r2, 0)}}))
		await(c.addr, 400, 600)
		l.ok(nl.RouteReplace(&netlink.Route{Dst: dst, MultiPath: []*netlink.NexthopInfo{hop(c.r1, 2), hop(c.r2, 0)}}))
		await(c.addr, 680, 820)
		l.ok(nl.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(c.r2)}))
		await(c.addr, 0, 0)
		// Appended: an IPv6 route then has two next hops, an IPv4 one stays the first.
		l.ok(nl.RouteAppend(&netlink.Route{Dst: dst, Gw: net.ParseIP(c.r1)}))
		if dst.IP.To4() == nil {
			await(c.addr, 400, 600)
		}
		l.ok(nl.RouteDel(&netlink.Route{Dst: dst, Gw: net.ParseIP(c.r2)}))
		await(c.addr, 1000, 1000)
	}
}

// Changes that the kernel tells of only indirectly, or not at all.
func TestFollowLinks(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	dst4, dst6 := netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("2001:db8::/32")
	add := func() {
		l.ok(l.node.AddRoute(testenv.Route{Dst: dst4, Via: parse("10.0.0.11")}))
		l.ok(l.node.AddRoute(testenv.Route{Dst: dst6, Via: parse("fd00::11")}))
	}
	add()
	w := l.follow()
	w.awaitWay("10.9.0.1", "10.0.0.11", Ready, r1MAC)
	w.awaitWay("2001:db8::1", "fd00::11", Ready, r1MAC)

	l.ok(l.sw.LinkDown("p1")) // the carrier
	h := w.awaitWay("10.9.0.1", "10.0.0.11", NoNeighbour, [6]byte{})
	if !strings.Contains(h.Problem, "eth0 is down or has no carrier") {
		t.Errorf("problem without carrier: %q", h.Problem)
	}
	l.ok(l.sw.LinkUp("p1"))
	w.awaitWay("10.9.0.1", "10.0.0.11", Ready, r1MAC)
	w.awaitWay("2001:db8::1", "fd00::11", Ready, r1MAC)

	other := [6]byte{2, 0, 0, 0, 0, 0x99}
	l.ok(l.r1.SetMAC("eth0", other[:]))
	w.awaitWay("10.9.0.1", "10.0.0.11", Ready, other)
	w.awaitWay("2001:db8::1", "fd00::11", Ready, other)

	l.ok(l.node.LinkDown("eth0"))
	w.awaitWay("10.9.0.1", "none", 0, [6]byte{})
	w.awaitWay("2001:db8::1", "none", 0, [6]byte{})
	l.ok(l.node.LinkUp("eth0"))
	w.awaitWay("10.0.0.77", "link", NoNeighbour, [6]byte{})
	w.awaitWay("10.9.0.1", "none", 0, [6]byte{}) // the kernel does not bring it back
	l.ok(l.node.AddRoute(testenv.Route{Dst: dst4, Via: parse("10.0.0.11")}))
	w.awaitWay("10.9.0.1", "10.0.0.11", Ready, other)

	// An address goes, and a route that prefers it as the source with it.
	second := netip.MustParsePrefix("10.0.0.2/24")
	l.ok(l.node.AddAddr("eth0", second))
	l.ok(l.node.AddRoute(testenv.Route{Dst: dst4, Via: parse("10.0.0.11"), Source: second.Addr()}))
	for deadline := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		if h, _ := w.way("10.9.0.1", 0); h.Source == second.Addr() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the preferred source of a route is not seen")
		}
	}
	eth0, err := l.node.Link("eth0")
	l.ok(err)
	gone := &netlink.Addr{IPNet: &net.IPNet{IP: second.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}}
	l.ok(l.node.Netlink().AddrDel(eth0, gone))
	w.awaitWay("10.9.0.1", "none", 0, [6]byte{})

	l.ok(l.node.AddRoute(testenv.Route{Dst: dst4, Via: parse("10.0.0.11")}))
	w.awaitWay("10.9.0.1", "10.0.0.11", Ready, other)
	l.ok(l.node.DeleteLink("eth0"))
	w.awaitWay("10.9.0.1", "none", 0, [6]byte{})
}

// Of the IPv4 routes of a link that is set down, the kernel gives no notice.
func TestFollowLinkDownIPv4(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.ok(l.node.SetSysctl("net.ipv6.conf.all.disable_ipv6", "1"))
	l.ok(l.node.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: parse("10.0.0.11")}))
	w := l.follow()
	w.awaitWay("10.9.0.1", "10.0.0.11", Ready, r1MAC)
	l.ok(l.node.LinkDown("eth0"))
	w.awaitWay("10.9.0.1", "none", 0, [6]byte{})
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.open(nil)
	w.run()
	await := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(time.Second); fmt.Sprint(w.Addresses()) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("addresses: %v, want %s", w.Addresses(), want)
			}
		}
	}
	await("[10.0.0.1 fd00::1]")
	calls := w.calls.Load()
	l.ok(l.node.AddAddr("lo", netip.MustParsePrefix("192.0.2.10/32")))
	await("[10.0.0.1 192.0.2.10 fd00::1]")
	w.awaitCall(calls)
	lo, err := l.node.Link("lo")
	l.ok(err)
	vip := &netlink.Addr{IPNet: &net.IPNet{IP: net.IP{192, 0, 2, 10}, Mask: net.CIDRMask(32, 32)}}
	l.ok(l.node.Netlink().AddrDel(lo, vip))
	await("[10.0.0.1 fd00::1]")
}

func TestPolicyRulesAreWarnedOf(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.follow()
	if strings.Contains(w.logs.String(), "policy rules") {
		t.Errorf("a warning of the kernel's own rules:\n%s", w.logs)
	}
	for i := range 2 {
		rule := netlink.NewRule()
		rule.Table, rule.Priority = 100, 50+i
		l.ok(l.node.Netlink().RuleAdd(rule))
	}
	for deadline := time.Now().Add(time.Second); !strings.Contains(w.logs.String(), "policy rules"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is said of a policy rule")
		}
	}
	time.Sleep(50 * time.Millisecond)
	if n := strings.Count(w.logs.String(), "policy rules"); n != 1 {
		t.Errorf("%d warnings of policy rules, want one", n)
	}
}

// Notices are lost for real, and many routes come while the table is read: in the end all is as the kernel has it.
func TestFollowInAnUproar(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	w := l.open(func(w *Watcher) { l.ok(w.events.SetReceiveBufferSize(4096, false)) })
	l.ok(w.FollowRoutes(true))
	w.run()
	rnd := rand.New(rand.NewPCG(1, 1))
	has := map[netip.Prefix]bool{}
	for i := range 3000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(rnd.IntN(4)), byte(rnd.IntN(250))}), 32)
		if has[p] {
			l.ok(l.node.DelRoute(p))
		} else {
			l.ok(l.node.AddRoute(testenv.Route{Dst: p, Via: parse("10.0.0.11")}))
		}
		has[p] = !has[p]
		if i%500 == 0 {
			w.lost()
		}
	}
	differ := func() (n int) {
		r := w.Routes()
		for p, there := range has {
			if _, ok := r.Find(p.Addr(), 0); ok != there {
				n++
			}
		}
		return n
	}
	for deadline := time.Now().Add(5 * time.Second); differ() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d routes of %d are not as in the kernel", differ(), len(has))
		}
	}
}

// Lost notices make the table be read anew, however long that took the last time.
func TestLostNoticesOfRoutes(t *testing.T) {
	w := &Watcher{pending: newPending(), kick: make(chan struct{}, 1), follow: follow{on: true, took: time.Hour, readAt: time.Now()}}
	if w.lost(); !w.follow.stale {
		t.Error("the table is not read anew")
	}
}

// A burst of notices is applied little by little, so that it holds nothing else up, and completely.
func TestBurstOfNotices(t *testing.T) {
	w := &Watcher{kick: make(chan struct{}, 1), follow: follow{on: true, layer: newLayer(newRib())}}
	table := func() int { return w.follow.layer.rib.table.Size4() }
	before := table()
	for i := range 2*maxApplied + 1 {
		w.follow.notices = append(w.follow.notices, change{
			dst:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 32),
			entry: entry{table: tableMain, reject: true}, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL,
		})
	}
	for i, want := range []int{maxApplied, 2 * maxApplied, 2*maxApplied + 1} {
		w.passRoutes(false)
		if got := table() - before; got != want || (len(w.kick) == 1) != (i < 2) {
			t.Errorf("after pass %d: %d routes, want %d; woken %d times", i, got, want, len(w.kick))
		}
		select {
		case <-w.kick:
		default:
		}
	}
}

// More notices than may wait make the table be read anew.
func TestTooManyNotices(t *testing.T) {
	w := &Watcher{pending: newPending(), follow: follow{on: true}}
	m := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWROUTE},
		Data: rtmsg(unix.AF_INET, 16, unix.RT_TABLE_MAIN, unix.RTN_BLACKHOLE, attr(unix.RTA_DST, "0a090000"))}
	f := &w.follow
	for range maxNotices {
		w.noteRoute(&m)
	}
	if f.stale || len(f.notices) != maxNotices {
		t.Fatalf("%d notices wait, stale %v", len(f.notices), f.stale)
	}
	if !w.noteRoute(&m) || !f.stale || len(f.notices) != 1 {
		t.Errorf("a notice too many: %d wait, stale %v", len(f.notices), f.stale)
	}
	// While the table is read, what is dropped is in since; unless that is full, too.
	f.since, f.stale = []change{}, false
	for range maxSince {
		w.noteRoute(&m)
	}
	if f.stale || len(f.since) != maxSince {
		t.Fatalf("%d notices wait for the table, stale %v", len(f.since), f.stale)
	}
	if w.noteRoute(&m); !f.stale || len(f.since) != maxSince {
		t.Errorf("a notice too many while the table is read: %d wait, stale %v", len(f.since), f.stale)
	}
}
