//go:build linux

package nexthop

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// rtmsg builds a route notice: struct rtmsg and attributes.
func rtmsg(family, bits, table, typ uint8, attrs ...[]byte) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1], b[4], b[7] = family, bits, table, typ
	return append(b, slices.Concat(attrs...)...)
}

func attr32(typ uint16, v uint32) []byte {
	return attr(typ, fmt.Sprintf("%x", binary.NativeEndian.AppendUint32(nil, v)))
}

func nested(typ uint16, inner ...[]byte) []byte {
	return attr(typ, fmt.Sprintf("%x", slices.Concat(inner...)))
}

// rtnexthop builds a struct rtnexthop with attributes.
func rtnexthop(link, hops byte, attrs ...[]byte) []byte {
	b := slices.Concat(append([][]byte{{0, 0, 0, hops, link, 0, 0, 0}}, attrs...)...)
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	return b
}

func TestParseRoute(t *testing.T) {
	const main, local = unix.RT_TABLE_MAIN, unix.RT_TABLE_LOCAL
	dst, oif := attr(unix.RTA_DST, "0a090000"), attr32(unix.RTA_OIF, 3)
	gw := attr(unix.RTA_GATEWAY, "0a000001")
	addr := netip.MustParseAddr
	net16 := netip.MustParsePrefix("10.9.0.0/16")
	for _, c := range []struct {
		name string
		data []byte
		dst  netip.Prefix // zero: not followed
		want entry
	}{
		{"gateway", rtmsg(unix.AF_INET, 16, main, unix.RTN_UNICAST, dst, oif, gw), net16,
			entry{table: tableMain, hops: []nextHop{{3, addr("10.0.0.1"), 1}}}},
		{"all there is", rtmsg(unix.AF_INET, 16, main, unix.RTN_UNICAST, dst, oif, gw, attr32(unix.RTA_PRIORITY, 20),
			attr(unix.RTA_PREFSRC, "0a000002"), nested(unix.RTA_METRICS, attr32(unix.RTAX_ADVMSS, 1), attr32(unix.RTAX_MTU, 1400))), net16,
			entry{table: tableMain, metric: 20, mtu: 1400, source: addr("10.0.0.2"), hops: []nextHop{{3, addr("10.0.0.1"), 1}}}},
		{"default, on the link", rtmsg(unix.AF_INET, 0, main, unix.RTN_UNICAST, oif), netip.MustParsePrefix("0.0.0.0/0"),
			entry{table: tableMain, hops: []nextHop{{3, netip.Addr{}, 1}}}},
		{"IPv6 default with gateway", rtmsg(unix.AF_INET6, 0, main, unix.RTN_UNICAST, oif,
			attr(unix.RTA_GATEWAY, "fe800000000000000000000000000001")), netip.MustParsePrefix("::/0"),
			entry{table: tableMain, hops: []nextHop{{3, addr("fe80::1"), 1}}}},
		{"IPv4 via IPv6", rtmsg(unix.AF_INET, 16, main, unix.RTN_UNICAST, dst, oif,
			attr(unix.RTA_VIA, "0a00fd000000000000000000000000000001")), net16,
			entry{table: tableMain, hops: []nextHop{{3, addr("fd00::1"), 1}}}},
		{"multipath", rtmsg(unix.AF_INET, 16, main, unix.RTN_UNICAST, dst, nested(unix.RTA_MULTIPATH,
			rtnexthop(3, 0, gw), rtnexthop(4, 9, attr(unix.RTA_GATEWAY, "0a000005")))), net16,
			entry{table: tableMain, hops: []nextHop{{3, addr("10.0.0.1"), 1}, {4, addr("10.0.0.5"), 10}}}},
		{"multipath, one with an encapsulation", rtmsg(unix.AF_INET, 16, main, unix.RTN_UNICAST, dst, nested(unix.RTA_MULTIPATH,
			rtnexthop(3, 0, gw), rtnexthop(4, 9, attr(unix.RTA_ENCAP, "00")))), net16,
			entry{table: tableMain, hops: []nextHop{{3, addr("10.0.0.1"), 1}}}},
		{"encapsulation", rtmsg(unix.AF_INET, 16, main, unix.RTN_UNICAST, dst, oif, gw, attr(unix.RTA_ENCAP, "00")), net16,
			entry{table: tableMain, reject: true, hops: []nextHop{{3, addr("10.0.0.1"), 1}}}},
		{"local", rtmsg(unix.AF_INET, 16, local, unix.RTN_LOCAL, dst, oif), net16,
			entry{table: tableLocal, reject: true, hops: []nextHop{{3, netip.Addr{}, 1}}}},
		{"blackhole", rtmsg(unix.AF_INET, 16, main, unix.RTN_BLACKHOLE, dst), net16, entry{table: tableMain, reject: true}},
		{"nexthop object not spelt out", rtmsg(unix.AF_INET, 16, main, unix.RTN_UNICAST, dst, attr32(30, 7)), net16,
			entry{table: tableMain, reject: true}},
		{"table in an attribute", rtmsg(unix.AF_INET, 16, 252, unix.RTN_UNICAST, dst, oif, attr32(unix.RTA_TABLE, 253)), net16,
			entry{table: tableDefault, hops: []nextHop{{3, netip.Addr{}, 1}}}},
		{"another table", rtmsg(unix.AF_INET, 16, 252, unix.RTN_UNICAST, dst, oif, attr32(unix.RTA_TABLE, 1000)),
			netip.Prefix{}, entry{}},
		{"another family", rtmsg(unix.AF_MPLS, 20, main, unix.RTN_UNICAST, oif), netip.Prefix{}, entry{}},
		{"destination of the other family", rtmsg(unix.AF_INET6, 16, main, unix.RTN_UNICAST, dst, oif), netip.Prefix{}, entry{}},
		{"too many bits", rtmsg(unix.AF_INET, 33, main, unix.RTN_UNICAST, dst, oif), netip.Prefix{}, entry{}},
		{"link-local", rtmsg(unix.AF_INET6, 64, main, unix.RTN_UNICAST, oif,
			attr(unix.RTA_DST, "fe800000000000000000000000000000")), netip.Prefix{}, entry{}},
		{"short", make([]byte, 11), netip.Prefix{}, entry{}},
	} {
		dst, e, ok := parseRoute(c.data)
		if ok != c.dst.IsValid() {
			t.Errorf("%s: ok %v", c.name, ok)
		}
		if ok && (dst != c.dst || !reflect.DeepEqual(e, c.want)) {
			t.Errorf("%s:\n got %v %+v\nwant %v %+v", c.name, dst, e, c.dst, c.want)
		}
	}
	for _, at := range []int{2, 3} { // source length, TOS
		data := rtmsg(unix.AF_INET, 16, main, unix.RTN_UNICAST, dst, oif)
		data[at] = 8
		if _, _, ok := parseRoute(data); ok {
			t.Errorf("a route for some packets only is followed (byte %d)", at)
		}
	}
}

func TestParseAddr(t *testing.T) {
	ifaddrmsg := func(attrs ...[]byte) []byte {
		return append([]byte{unix.AF_INET, 24, 0, 0, 3, 0, 0, 0}, slices.Concat(attrs...)...)
	}
	peer, own := attr(unix.IFA_ADDRESS, "0a000002"), attr(unix.IFA_LOCAL, "0a000001")
	for _, c := range []struct {
		name string
		data []byte
		want string // "": not of interest
	}{
		{"local", ifaddrmsg(own), "10.0.0.1"},
		{"peer first", ifaddrmsg(peer, own), "10.0.0.1"},
		{"peer last", ifaddrmsg(own, peer), "10.0.0.1"},
		{"IPv6", ifaddrmsg(attr(unix.IFA_ADDRESS, "fd000000000000000000000000000001")), "fd00::1"},
		{"IPv6 link-local", ifaddrmsg(attr(unix.IFA_ADDRESS, "fe800000000000000000000000000001")), ""},
		{"loopback", ifaddrmsg(attr(unix.IFA_LOCAL, "7f000001")), ""},
		{"nothing", ifaddrmsg(), ""},
		{"short", make([]byte, 7), ""},
	} {
		k, ok := parseAddr(c.data)
		if ok != (c.want != "") || (ok && k != addrKey{3, netip.MustParseAddr(c.want)}) {
			t.Errorf("%s: %v %v, want %q", c.name, k, ok, c.want)
		}
	}
}

func TestLinkInfoOfVLAN(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.EncapType, attrs.NetNsID = "eth0.7", 3, "ether", -1
	elsewhere := attrs
	elsewhere.NetNsID = 0
	for _, c := range []struct {
		name   string
		link   netlink.Link
		vlan   uint16
		parent int
	}{
		{"802.1Q", &netlink.Vlan{LinkAttrs: attrs, VlanId: 7, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}, 7, 3},
		{"802.1ad", &netlink.Vlan{LinkAttrs: attrs, VlanId: 7, VlanProtocol: netlink.VLAN_PROTOCOL_8021AD}, 0, 0},
		{"of a link in another namespace",
			&netlink.Vlan{LinkAttrs: elsewhere, VlanId: 7, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}, 0, 0},
		{"macvlan", &netlink.Macvlan{LinkAttrs: attrs}, 0, 0},
	} {
		if l := linkInfo(c.link); l.VLAN != c.vlan || l.Parent != c.parent {
			t.Errorf("%s: VLAN %d on %d, want %d on %d", c.name, l.VLAN, l.Parent, c.vlan, c.parent)
		}
	}
}

// model is the plainest routing table: a list, searched from one end to the other.
type model map[netip.Prefix][]entry

func (m model) find(a netip.Addr) (nextHop, bool) {
	for table := uint8(tableLocal); table <= tableDefault; table++ {
		var best *entry
		bits := -1
		for p, entries := range m {
			for i := range entries {
				e := &entries[i]
				if e.table == table && p.Contains(a) && (p.Bits() > bits || (p.Bits() == bits && e.metric < best.metric)) {
					best, bits = e, p.Bits()
				}
			}
		}
		if best != nil {
			return best.hops[0], !best.reject
		}
	}
	return nextHop{}, false
}

// randomPrefix is one of few, so that prefixes cover each other.
func randomPrefix(rnd *rand.Rand) netip.Prefix {
	if rnd.IntN(3) == 0 {
		b := [16]byte{0x20, 1, byte(rnd.IntN(2)), byte(rnd.IntN(2)), 15: byte(rnd.IntN(3))}
		p, _ := netip.AddrFrom16(b).Prefix([]int{0, 8, 17, 32, 64, 126, 128}[rnd.IntN(7)])
		return p
	}
	b := [4]byte{10, byte(rnd.IntN(2)), byte(rnd.IntN(2)), byte(rnd.IntN(3))}
	p, _ := netip.AddrFrom4(b).Prefix([]int{0, 8, 15, 16, 24, 31, 32}[rnd.IntN(7)])
	return p
}

// Whatever comes and goes, Find says what a search of the kernel's tables in their order says; and what was published
// before stays as it was.
func TestFindAgainstModel(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		links := map[int]LinkInfo{}
		for i := 1; i <= 5; i++ {
			links[i] = LinkInfo{Name: fmt.Sprint("eth", i), Up: true, Ethernet: true, MTU: 1500}
		}
		m := model{}
		l := newLayer(newRib())
		type published struct {
			routes *Routes
			said   []string
		}
		var before []published
		var routes *Routes
		probe := func(r *Routes) (out []string) {
			rnd := rand.New(rand.NewPCG(seed, 2))
			for range 200 {
				a := randomPrefix(rnd).Addr()
				way, ok := r.Find(a, 0)
				if !ok {
					out = append(out, "none")
					continue
				}
				h := r.Ways()[way]
				out = append(out, fmt.Sprint(h.Link, h.Gateway))
			}
			return out
		}
		for step := range 60 {
			p := randomPrefix(rnd)
			e := entry{table: tableMain, metric: uint32(rnd.IntN(3)), reject: rnd.IntN(8) == 0}
			e.hops = []nextHop{{link: 1 + rnd.IntN(5), weight: 1}}
			switch rnd.IntN(10) {
			case 0:
				e.table, e.reject = tableLocal, true
			case 1:
				e.table = tableDefault
			}
			if rnd.IntN(2) == 0 {
				e.hops[0].gateway = netip.AddrFrom4([4]byte{192, 0, 2, byte(rnd.IntN(4))})
			}
			i := slices.IndexFunc(m[p], func(o entry) bool { return o.table == e.table && o.metric == e.metric })
			c := change{dst: p, entry: e, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL}
			switch {
			case i < 0:
				m[p] = append(m[p], e)
			case rnd.IntN(2) == 0:
				c.gone, c.entry = true, m[p][i]
				m[p] = slices.Delete(m[p], i, i+1)
			default:
				c.flags = unix.NLM_F_REPLACE
				m[p][i] = e
			}
			if !l.rib.apply(&c) {
				t.Fatalf("seed %d step %d: a plain change leaves doubt: %+v", seed, step, c)
			}
			if rnd.IntN(4) > 0 {
				continue
			}
			routes = l.compile(links, nil, routes)
			said := probe(routes)
			before = append(before, published{routes, said})
			rnd := rand.New(rand.NewPCG(seed, 2))
			for i := range said {
				a := randomPrefix(rnd).Addr()
				want := "none"
				if h, ok := m.find(a); ok {
					want = fmt.Sprint(h.link, h.gateway)
				}
				if said[i] != want {
					t.Fatalf("seed %d step %d: %s goes by %s, want %s\n%v", seed, step, a, said[i], want, m)
				}
			}
		}
		for i, b := range before {
			if !slices.Equal(probe(b.routes), b.said) {
				t.Fatalf("seed %d: routes that were published (%d of %d) have changed", seed, i, len(before))
			}
		}
		used := map[string]bool{}
		for _, s := range l.rib.sets {
			if s.uses > 0 {
				used[s.key] = true
			}
		}
		if len(used) != len(l.rib.index) {
			t.Fatalf("seed %d: %d sets in use, %d known", seed, len(used), len(l.rib.index))
		}
	}
}

// The notices of the kernel (seen on Linux 6.18) about routes that share destination and metric.
func TestApply(t *testing.T) {
	const (
		add      = unix.NLM_F_CREATE | unix.NLM_F_EXCL
		appended = unix.NLM_F_CREATE | unix.NLM_F_APPEND
		replaced = unix.NLM_F_REPLACE
	)
	e := func(gateways ...string) entry {
		e := entry{table: tableMain}
		for _, g := range gateways {
			if g == "" {
				e.hops = append(e.hops, nextHop{link: len(e.hops) + 1, weight: 1})
				continue
			}
			e.hops = append(e.hops, nextHop{link: 1, gateway: netip.MustParseAddr(g), weight: 1})
		}
		return e
	}
	on := func(link int) entry { return entry{table: tableMain, hops: []nextHop{{link: link, weight: 1}}} }
	v4, v6 := netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("2001:db8::/32")
	for _, c := range []struct {
		name  string
		dst   netip.Prefix
		has   []entry
		flags uint16 // 0: gone
		say   entry
		want  []entry
		sure  bool
	}{
		{"IPv4 appended", v4, []entry{e("10.0.0.1")}, appended, e("10.0.0.2"), []entry{e("10.0.0.1"), e("10.0.0.2")}, true},
		{"IPv4 put before", v4, []entry{e("10.0.0.1")}, unix.NLM_F_CREATE, e("10.0.0.2"), nil, false},
		{"IPv4 replaced", v4, []entry{e("10.0.0.1")}, replaced, e("10.0.0.2", "10.0.0.3"), []entry{e("10.0.0.2", "10.0.0.3")}, true},
		{"IPv4 one of several gone", v4, []entry{e("10.0.0.1"), e("10.0.0.2")}, 0, e("10.0.0.1"), []entry{e("10.0.0.2")}, true},
		{"IPv4 told twice", v4, []entry{e("10.0.0.1")}, add, e("10.0.0.1"), []entry{e("10.0.0.1")}, true},
		{"IPv4 gone twice", v4, nil, 0, e("10.0.0.1"), nil, true},
		{"IPv4 another gone", v4, []entry{e("10.0.0.1")}, 0, e("10.0.0.2"), nil, false},
		{"IPv6 next hop added", v6, []entry{e("fd00::1")}, appended, e("fd00::1", "fd00::2"), []entry{e("fd00::1", "fd00::2")}, true},
		{"IPv6 multipath added", v6, nil, unix.NLM_F_CREATE, e("fd00::1", "fd00::2"), []entry{e("fd00::1", "fd00::2")}, true},
		{"IPv6 next hop gone", v6, []entry{e("fd00::1", "fd00::2")}, 0, e("fd00::1"), []entry{e("fd00::2")}, true},
		{"IPv6 all gone", v6, []entry{e("fd00::1", "fd00::2")}, 0, e("fd00::1", "fd00::2"), nil, true},
		{"IPv6 replaced", v6, []entry{e("fd00::1", "fd00::2")}, replaced, e("fd00::3"), []entry{e("fd00::3")}, true},
		{"IPv6 on another link", v6, []entry{on(1)}, add, on(2), nil, false},
	} {
		r := newRib()
		for _, e := range c.has {
			r.add(c.dst, e)
		}
		r.frozen = true
		sure := r.apply(&change{dst: c.dst, entry: c.say, flags: c.flags, gone: c.flags == 0})
		var got []entry
		if v, ok := r.table.Get(c.dst); ok {
			got = r.sets[v].entries
		}
		if sure != c.sure || (sure && !slices.EqualFunc(got, c.want, func(a, b entry) bool { return a.equal(&b) })) {
			t.Errorf("%s: %+v (sure %v), want %+v (%v)", c.name, got, sure, c.want, c.sure)
		}
	}
}

// Weights are kept to, every hash has a way, and a link that goes down gives its share to the others.
func TestWeightedChoice(t *testing.T) {
	r := newRib()
	var hops []nextHop
	weights := []uint32{1, 2, 5}
	for i, w := range weights {
		hops = append(hops, nextHop{link: i + 1, gateway: netip.AddrFrom4([4]byte{10, 0, byte(i), 1}), weight: w})
	}
	r.add(netip.MustParsePrefix("0.0.0.0/0"), entry{table: tableMain, hops: hops})
	links := map[int]LinkInfo{}
	for i := range weights {
		links[i+1] = LinkInfo{Up: true, Ethernet: true}
	}
	l := newLayer(r)
	spread := func(routes *Routes) (out [3]int) {
		ways := routes.Ways()
		const n = 8000
		for i := range uint64(n) {
			hash := (i * (1<<64/n - 1)) | 0xffffffff
			way, ok := routes.Find(netip.MustParseAddr("198.51.100.1"), hash)
			if !ok {
				t.Fatalf("hash %x has no way", hash)
			}
			out[ways[way].Link-1]++
		}
		return out
	}
	near := func(got, want [3]int) bool {
		for i := range got {
			if got[i] < want[i]-2 || got[i] > want[i]+2 {
				return false
			}
		}
		return true
	}
	routes := l.compile(links, nil, nil)
	if got := spread(routes); !near(got, [3]int{1000, 2000, 5000}) {
		t.Errorf("spread by weights 1, 2, 5: %v", got)
	}
	if way, ok := routes.Find(netip.MustParseAddr("198.51.100.1"), 1<<64-1); !ok || routes.Ways()[way].Link != 3 {
		t.Errorf("the highest hash goes by way %d, %v", way, ok)
	}
	if l.compile(links, nil, routes) != routes {
		t.Error("the same state makes other Routes")
	}
	links[3] = LinkInfo{Ethernet: true}
	if got := spread(l.compile(links, nil, routes)); !near(got, [3]int{2667, 5333, 0}) {
		t.Errorf("with the third link down: %v", got)
	}
	clear(links)
	down := l.compile(links, nil, routes)
	if way, ok := down.Find(netip.MustParseAddr("198.51.100.1"), 0); !ok || down.Ways()[way].State != NoRoute {
		t.Errorf("with no link: %d %v %+v", way, ok, down.Ways())
	}
}

// A neighbour has a way of its own exactly where the kernel's route to it says that it is on that link.
func TestNeighboursOnLink(t *testing.T) {
	links := map[int]LinkInfo{
		1: {Name: "eth0", Up: true, Ethernet: true, MTU: 1500},
		2: {Name: "eth1", Up: true, Ethernet: true, MTU: 1500},
	}
	addr := netip.MustParseAddr
	on := func(link int) entry { return entry{table: tableMain, hops: []nextHop{{link: link, weight: 1}}} }
	r := newRib()
	r.add(netip.MustParsePrefix("10.0.0.0/24"), on(1))
	r.add(netip.MustParsePrefix("10.0.0.9/32"), entry{table: tableMain, hops: []nextHop{{1, addr("10.0.0.1"), 1}}})
	r.add(netip.MustParsePrefix("10.0.0.8/32"), on(1))
	there := neigh{mac: [6]byte{2, 1}, hasMAC: true, state: unix.NUD_STALE}
	neighs := map[neighKey]neigh{
		{1, addr("10.0.0.5")}: there, {1, addr("10.0.0.8")}: there, {1, addr("10.0.0.9")}: there,
		{2, addr("10.0.0.6")}: there, {1, addr("192.0.2.1")}: there, {1, addr("fe80::1")}: there,
		{1, addr("10.0.0.7")}: {state: unix.NUD_FAILED},
	}
	l := newLayer(r)
	var routes *Routes
	check := func(a string, state State, gateway string) {
		t.Helper()
		routes = l.compile(links, neighs, routes)
		way, ok := routes.Find(addr(a), 0)
		if !ok {
			t.Errorf("%s: no route", a)
			return
		}
		h := routes.Ways()[way]
		if h.State != state || h.Gateway.IsValid() != (gateway != "") || (state == Ready && h.Dst != there.mac) {
			t.Errorf("%s: %+v, want %v by gateway %q", a, h, state, gateway)
		}
	}
	check("10.0.0.5", Ready, "")
	check("10.0.0.8", Ready, "")
	check("10.0.0.9", NoNeighbour, "10.0.0.1")
	check("10.0.0.6", NoNeighbour, "") // there is one on the other link
	check("10.0.0.7", NoNeighbour, "")
	if len(l.hosts) != 2 {
		t.Errorf("%d neighbours have a way, want 2", len(l.hosts))
	}

	// It goes and comes with the neighbour, and with the route that covers it.
	old := routes
	delete(neighs, neighKey{1, addr("10.0.0.5")})
	delete(neighs, neighKey{1, addr("10.0.0.8")})
	check("10.0.0.5", NoNeighbour, "")
	check("10.0.0.8", NoNeighbour, "")
	if way, ok := old.Find(addr("10.0.0.5"), 0); !ok || old.Ways()[way].State != Ready {
		t.Error("routes that were published have changed")
	}
	neighs[neighKey{1, addr("10.0.0.5")}] = there
	check("10.0.0.5", Ready, "")
	r.add(netip.MustParsePrefix("10.0.0.5/32"), entry{table: tableMain, hops: []nextHop{{1, addr("10.0.0.1"), 1}}})
	check("10.0.0.5", NoNeighbour, "10.0.0.1")
	r.edit(netip.MustParsePrefix("10.0.0.5/32"), func([]entry) []entry { return nil })
	check("10.0.0.5", Ready, "")
	r.edit(netip.MustParsePrefix("10.0.0.0/24"), func([]entry) []entry { return []entry{on(2)} })
	check("10.0.0.5", NoNeighbour, "")
	check("10.0.0.6", Ready, "")
}

func TestFindDoesNotAllocate(t *testing.T) {
	routes := newLayer(fullTable(1000)).compile(map[int]LinkInfo{1: {Up: true, Ethernet: true}}, nil, nil)
	a := netip.MustParseAddr("198.51.100.1")
	if n := testing.AllocsPerRun(100, func() { routes.Find(a, 1) }); n != 0 {
		t.Errorf("Find allocates %v times", n)
	}
}

func TestHopsOnTheLink(t *testing.T) {
	links := map[int]LinkInfo{1: {Name: "eth0", Up: true, Ethernet: true, MTU: 1500}}
	h := hop(&route{link: 1}, links, nil)
	if h.State != NoNeighbour || h.Link != 1 || h.MTU != 1500 || !strings.Contains(h.Problem, "on the link eth0") {
		t.Errorf("a destination on the link: %+v", h)
	}
}
