//go:build linux

package nexthop

import (
	"encoding/binary"
	"encoding/hex"
	"maps"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What a notice says while a dump is under way is newer than the dump.
func TestMirrorNoticesBeatTheDump(t *testing.T) {
	m := newMirror[string, int]()
	m.set("stays", 1)
	m.set("gone", 1)
	m.set("changed", 1)
	m.begin()
	m.set("changed", 2)
	m.set("new", 2)
	m.remove("removed meanwhile")
	m.finish(map[string]int{"stays": 1, "changed": 1, "removed meanwhile": 1, "missed": 3})
	want := map[string]int{"stays": 1, "changed": 2, "new": 2, "missed": 3}
	if !maps.Equal(m.m, want) {
		t.Errorf("after the dump: %v, want %v", m.m, want)
	}

	m.begin()
	m.set("stays", 5)
	m.abandon()
	m.begin()
	m.finish(map[string]int{"stays": 1})
	if want := map[string]int{"stays": 1}; !maps.Equal(m.m, want) {
		t.Errorf("a dump after an abandoned one: %v, want %v: old notices count no longer", m.m, want)
	}
}

func TestPendingConcerns(t *testing.T) {
	in, out := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.2.0.1")
	v6 := netip.MustParseAddr("2001:db8::1")
	p := newPending()
	if p.concerns(in) {
		t.Error("nothing pending concerns an address")
	}
	p.prefix(netip.MustParsePrefix("10.1.0.0/16"))
	if !p.concerns(in) || p.concerns(out) || p.concerns(v6) {
		t.Error("10.1.0.0/16 must concern 10.1.2.3 only")
	}
	p.prefix(netip.MustParsePrefix("0.0.0.0/0"))
	if !p.concerns(out) || p.concerns(v6) {
		t.Error("the IPv4 default route must concern every IPv4 address and no IPv6 one")
	}
	for i := range maxPrefixes + 1 {
		p.prefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i), 0}), 24))
	}
	if !p.concerns(v6) || len(p.prefixes) != 0 {
		t.Error("with too many prefixes, every route must be asked for")
	}
}

func TestHopStates(t *testing.T) {
	mac, far := [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	links := map[int]LinkInfo{
		3: {Name: "eth0", Up: true, Ethernet: true, MAC: mac, MTU: 1500},
		4: {Name: "eth1", Up: false, Ethernet: true, MAC: mac, MTU: 1500},
		5: {Name: "tun0", Up: true, MTU: 1400},
	}
	a, gw := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.1")
	neighs := map[neighKey]neigh{
		{3, a}:  {mac: far, hasMAC: true, state: unix.NUD_STALE},
		{3, gw}: {mac: far, hasMAC: true, state: unix.NUD_FAILED},
	}
	for _, c := range []struct {
		name    string
		route   route
		want    Hop
		problem string
	}{
		{"stale is usable", route{link: 3, next: a}, Hop{State: Ready, Link: 3, Src: mac, Dst: far, MTU: 1500}, ""},
		{"route MTU below the link's", route{link: 3, next: a, mtu: 1280}, Hop{State: Ready, Link: 3, Src: mac, Dst: far, MTU: 1280}, ""},
		{"route MTU above the link's", route{link: 3, next: a, mtu: 9000}, Hop{State: Ready, Link: 3, Src: mac, Dst: far, MTU: 1500}, ""},
		{"failed gateway", route{link: 3, next: gw, gateway: gw}, Hop{State: NoNeighbour, Link: 3, Src: mac, Gateway: gw, MTU: 1500}, "10.0.0.1 does not answer"},
		{"no carrier", route{link: 4, next: a}, Hop{State: NoNeighbour, Link: 4, Src: mac, MTU: 1500}, "eth1 is down"},
		{"not Ethernet", route{link: 5, next: a}, Hop{State: NoRoute}, "tun0 is not an Ethernet link"},
		{"link unknown", route{link: 9, next: a}, Hop{State: NoRoute}, "is gone"},
		{"no route", route{problem: "no route to host"}, Hop{State: NoRoute}, "no route to host"},
	} {
		got := hop(&c.route, links, neighs)
		if (c.problem == "") != (got.Problem == "") || !strings.Contains(got.Problem, c.problem) {
			t.Errorf("%s: problem %q, want one with %q", c.name, got.Problem, c.problem)
		}
		got.Problem = ""
		if got != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, got, c.want)
		}
	}
}

// ndmsg builds a neighbour notice: struct ndmsg and attributes.
func ndmsg(family uint8, link int, state uint16, flags uint8, attrs ...[]byte) []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0], b[10] = family, flags
	binary.NativeEndian.PutUint32(b[4:], uint32(link))
	binary.NativeEndian.PutUint16(b[8:], state)
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

func attr(typ uint16, hexValue string) []byte {
	v, err := hex.DecodeString(hexValue)
	if err != nil {
		panic(err)
	}
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(v)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, v...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestParseNeigh(t *testing.T) {
	dst, mac := attr(unix.NDA_DST, "0a000001"), attr(unix.NDA_LLADDR, "020000000007")
	managed := binary.NativeEndian.AppendUint32(nil, extManaged)
	for _, c := range []struct {
		name string
		data []byte
		ok   bool
		want neigh
	}{
		{"reachable", ndmsg(unix.AF_INET, 7, unix.NUD_REACHABLE, 0, dst, mac), true,
			neigh{mac: [6]byte{2, 0, 0, 0, 0, 7}, hasMAC: true, state: unix.NUD_REACHABLE}},
		{"managed by us, still asking", ndmsg(unix.AF_INET, 7, unix.NUD_INCOMPLETE, 0, dst, attr(12, "53"), attr(15, hex.EncodeToString(managed))), true,
			neigh{state: unix.NUD_INCOMPLETE, managed: true, ours: true}},
		{"permanent", ndmsg(unix.AF_INET, 7, unix.NUD_PERMANENT, 0, dst, mac), true,
			neigh{mac: [6]byte{2, 0, 0, 0, 0, 7}, hasMAC: true, state: unix.NUD_PERMANENT, foreign: true}},
		{"learned by a control plane", ndmsg(unix.AF_INET, 7, unix.NUD_REACHABLE, unix.NTF_EXT_LEARNED, dst, mac), true,
			neigh{mac: [6]byte{2, 0, 0, 0, 0, 7}, hasMAC: true, state: unix.NUD_REACHABLE, foreign: true}},
		{"address of another length", ndmsg(unix.AF_INET, 7, unix.NUD_REACHABLE, 0, dst, attr(unix.NDA_LLADDR, "0a000002")), true,
			neigh{state: unix.NUD_REACHABLE}},
		{"bridge entry", ndmsg(unix.AF_BRIDGE, 7, unix.NUD_REACHABLE, 0, mac), false, neigh{}},
		{"proxy", ndmsg(unix.AF_INET, 7, 0, unix.NTF_PROXY, dst), false, neigh{}},
		{"no address", ndmsg(unix.AF_INET, 7, unix.NUD_REACHABLE, 0, mac), false, neigh{}},
		{"short", make([]byte, 11), false, neigh{}},
	} {
		k, n, ok := parseNeigh(c.data)
		if ok != c.ok {
			t.Errorf("%s: ok %v, want %v", c.name, ok, c.ok)
		}
		if ok && (n != c.want || k != neighKey{7, netip.MustParseAddr("10.0.0.1")}) {
			t.Errorf("%s: %+v %+v, want %+v", c.name, k, n, c.want)
		}
	}
	if (neigh{state: unix.NUD_REACHABLE}).usable() {
		t.Error("a neighbour without an Ethernet address is not usable")
	}
}

// No notice, however broken, may end the reader.
func FuzzTake(f *testing.F) {
	f.Add(uint16(unix.RTM_NEWNEIGH), ndmsg(unix.AF_INET, 7, unix.NUD_REACHABLE, 0, attr(unix.NDA_DST, "0a000001")))
	f.Add(uint16(unix.RTM_DELNEIGH), ndmsg(unix.AF_INET6, 7, 0, 0, attr(15, "01")))
	f.Add(uint16(unix.RTM_NEWROUTE), append([]byte{unix.AF_INET, 200, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0}, attr(unix.RTA_DST, "0a000000")...))
	f.Add(uint16(unix.RTM_DELROUTE), append([]byte{unix.AF_INET6, 8, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0}, attr(unix.RTA_DST, "0a000000")...))
	f.Add(uint16(unix.RTM_NEWROUTE), rtmsg(unix.AF_INET, 8, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, attr(unix.RTA_DST, "0a000000"),
		nested(unix.RTA_MULTIPATH, rtnexthop(3, 0, attr(unix.RTA_GATEWAY, "0a000002")), rtnexthop(4, 9))))
	f.Add(uint16(unix.RTM_NEWROUTE), rtmsg(unix.AF_INET, 32, unix.RT_TABLE_LOCAL, unix.RTN_LOCAL, attr(unix.RTA_DST, "0a000001"),
		attr32(unix.RTA_OIF, 7), attr32(unix.RTA_PRIORITY, 1), nested(unix.RTA_METRICS, attr32(unix.RTAX_MTU, 9000))))
	f.Add(uint16(unix.RTM_DELROUTE), rtmsg(unix.AF_INET, 8, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, attr(unix.RTA_DST, "0a000000"),
		attr32(unix.RTA_OIF, 7)))
	f.Add(uint16(unix.RTM_NEWADDR), append([]byte{unix.AF_INET, 24, 0, 0, 3, 0, 0, 0}, attr(unix.IFA_LOCAL, "0a000001")...))
	f.Add(uint16(unix.RTM_DELLINK), make([]byte, unix.SizeofIfInfomsg))
	f.Fuzz(func(t *testing.T, typ uint16, data []byte) {
		addr := netip.MustParseAddr("10.0.0.1")
		w := &Watcher{
			targets: map[netip.Addr]*target{addr: {}},
			links:   newMirror[int, LinkInfo](),
			neighs:  newMirror[neighKey, neigh](),
			addrs:   newMirror[addrKey, struct{}](),
			follow:  follow{on: true, layer: newLayer(newRib())},
			pending: newPending(),
			kick:    make(chan struct{}, 1),
		}
		// What the notices bring meets neighbours and other routes, before and after it was published.
		w.neighs.set(neighKey{7, addr}, neigh{hasMAC: true, state: unix.NUD_STALE})
		w.follow.layer.rib.add(netip.MustParsePrefix("10.0.0.0/8"), entry{table: tableMain, hops: []nextHop{{link: 7, weight: 1}}})
		if typ == unix.RTM_NEWLINK {
			return // read by the netlink package
		}
		var routes *Routes
		for _, flags := range []uint16{unix.NLM_F_CREATE | unix.NLM_F_EXCL, unix.NLM_F_CREATE | unix.NLM_F_APPEND, unix.NLM_F_REPLACE} {
			w.take([]syscall.NetlinkMessage{{Header: syscall.NlMsghdr{Type: typ, Flags: flags}, Data: data}})
			w.apply(w.follow.notices)
			routes = w.follow.layer.compile(w.links.m, w.neighs.m, routes)
			if way, ok := routes.Find(addr, 1<<63); ok && way >= len(routes.Ways()) {
				t.Fatalf("way %d of %d", way, len(routes.Ways()))
			}
		}
	})
}
