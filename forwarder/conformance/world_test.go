package conformance

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/nexthop"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/config"
)

// arm is one interface of the node, and what is there.
type arm struct {
	name   string
	mac    packet.MAC
	v4, v6 netip.Prefix // the node's address with the prefix of the link
}

// arms are the interfaces that a config may name. The router, `peer`, is on the first one; the default route leads to it.
var arms = []arm{
	{"eth0", packet.MAC{2, 0, 0, 0, 0, 1}, netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("2001:db8:1::1/64")},
	{"eth1", packet.MAC{2, 0, 0, 0, 1, 1}, netip.MustParsePrefix("10.0.1.1/24"), netip.MustParsePrefix("2001:db8:2::1/64")},
}

var (
	peerMAC = packet.MAC{2, 0, 0, 0, 0, 0xfe}
	peer4   = netip.MustParseAddr("10.0.0.254")
	peer6   = netip.MustParseAddr("2001:db8:1::fe")
)

// macOf makes a backend's MAC from its address.
func macOf(a netip.Addr) packet.MAC {
	b := a.AsSlice()
	return packet.MAC{2, 0xbb, b[len(b)-4], b[len(b)-3], b[len(b)-2], b[len(b)-1]}
}

// armOf returns the arm on whose link an address is; nil: on none.
func armOf(a netip.Addr) *arm {
	for i := range arms {
		if arms[i].v4.Contains(a) || arms[i].v6.Contains(a) {
			return &arms[i]
		}
	}
	return nil
}

func armNamed(name string) *arm {
	if name == arms[1].name {
		return &arms[1]
	}
	return &arms[0]
}

// names are the words for MACs in a file's lines.
type names struct {
	macs  map[string]packet.MAC
	words map[packet.MAC]string
}

func newNames(cfg *config.Config) (*names, error) {
	n := &names{macs: map[string]packet.MAC{}, words: map[packet.MAC]string{}}
	add := func(word string, mac packet.MAC) error {
		if old, ok := n.macs[word]; ok && old != mac {
			return fmt.Errorf("%s stands for two addresses; give backends names of their own", word)
		}
		n.macs[word], n.words[mac] = mac, word
		return nil
	}
	_ = add("peer", peerMAC)
	_ = add("node.eth0", arms[0].mac)
	_ = add("node.eth1", arms[1].mac)
	for i := range cfg.Services {
		for _, b := range cfg.Services[i].Backends {
			if err := add(b.Name, macOf(b.Address)); err != nil {
				return nil, err
			}
		}
	}
	return n, nil
}

// mac reads a word: a name, or a MAC as usual. node is the node's own on the interface that the line is about.
func (n *names) mac(word, iface string) (packet.MAC, error) {
	if word == "node" {
		word = "node." + iface
	}
	if m, ok := n.macs[word]; ok {
		return m, nil
	}
	m, err := net.ParseMAC(word)
	if err != nil || len(m) != 6 {
		return packet.MAC{}, fmt.Errorf("eth: %q is neither a MAC nor a name here", word)
	}
	return packet.MAC(m), nil
}

func (n *names) word(mac packet.MAC, iface string) string {
	w, ok := n.words[mac]
	switch {
	case !ok:
		return net.HardwareAddr(mac[:]).String()
	case w == "node."+iface:
		return "node"
	}
	return w
}

// hop is what the node's routing says about an address: it is on a link, or behind the router.
func hop(a netip.Addr, f *file) forwarder.Hop {
	h := forwarder.Hop{OnLink: true, Src: arms[0].mac, Dst: macOf(a), MTU: f.mtus["eth0"]}
	at := armOf(a)
	if at == nil {
		h.OnLink, h.Dst, at = false, peerMAC, &arms[0]
	}
	if a == peer4 || a == peer6 {
		h.Dst = peerMAC
	}
	h.Problem = packet.EgressDown // the link is not the node's
	for i, x := range f.config.Interfaces {
		if x.Name == at.name {
			h.Egress, h.VLAN, h.Problem = i, x.VLAN, packet.None
		}
	}
	h.Src, h.MTU = at.mac, f.mtus[at.name]
	if a.Is4() {
		h.Source = at.v4.Addr()
	} else {
		h.Source = at.v6.Addr()
	}
	if f.silent[a] {
		h.Problem = packet.NoNeighbour
	}
	return h
}

// routes is the node's routing table: the router, and both links, on which nobody but backends has an Ethernet address.
func routes(f *file) (*nexthop.Routes, []forwarder.Hop) {
	table := map[netip.Prefix]nexthop.Hop{}
	var found []forwarder.Hop
	add := func(p netip.Prefix, h forwarder.Hop) {
		table[p] = nexthop.Hop{Link: len(found)}
		found = append(found, h)
	}
	add(netip.MustParsePrefix("0.0.0.0/0"), hop(netip.MustParseAddr("198.51.100.1"), f))
	add(netip.MustParsePrefix("::/0"), hop(netip.MustParseAddr("2001:db8:ffff::1"), f))
	for _, a := range arms {
		for _, p := range []netip.Prefix{a.v4, a.v6} {
			h := hop(p.Addr(), f)
			if h.Problem == packet.None {
				h.Problem = packet.NoNeighbour
			}
			add(p.Masked(), h)
		}
	}
	r := nexthop.NewRoutes(table)
	ways := make([]forwarder.Hop, len(found))
	for i, h := range r.Ways() {
		ways[i] = found[h.Link]
	}
	return r, ways
}

// vip returns the first VIP.
func (f *file) vip() netip.Addr { return f.config.Services[0].VIP }

// wholeConfig is a case file's config with what each daemon needs besides.
func wholeConfig(yaml, dir string) string {
	head := "node: lb1\n" +
		"group: {seed_file: " + dir + "/group.key, peers: 1}\n" +
		"state_dir: " + dir + "/state\n" +
		"control: {socket: " + dir + "/sluice.sock}\n" +
		"flows: 64k\n" +
		"drain_time: 0s\n" +
		"without_daemon: {for: 0s}\n"
	if !strings.Contains(yaml, "interfaces:") {
		head += "interfaces: [{name: eth0}]\n"
	}
	return head + yaml
}
