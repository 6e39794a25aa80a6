//go:build linux

package testenv

import (
	"fmt"
	"net"
	"net/netip"
)

// MTUs of the networks, in bytes. The LAN has room for an outer header around a packet of the client's, and is narrow
// enough for an XDP program that takes no fragments.
const (
	ClientMTU = 1500
	LANMTU    = 1600
)

// Topology is the network that the demo and most functional tests use:
//
//	client          router                                  node1 … nodeN
//	┌──────┐        ┌──────────────────┐      LAN           ┌──────┐
//	│ eth0 ├────────┤ client       br0 ├──────┬─────────────┤ eth0 │  .2 … .9
//	└──────┘        └──────────────────┘      │             └──────┘
//	 .11, .12 …      .1               .1      │             ┌──────┐
//	                                          └─────────────┤ eth0 │  .11 …
//	                                                        └──────┘
//	198.51.100.0/24, 2001:db8:0:2::/64   10.0.0.0/24,       backend1 … backendN
//	                                     2001:db8:0:1::/64
//
// An address that ends in .11 ends in ::11 in IPv6. The LAN is a bridge inside of the router; its ports there are named
// after the hosts. The router spreads the VIPs over the nodes by 5-tuple; everybody's default route is the router, so
// the reply of a backend, which has the VIP as its own source, goes straight to the client.
//
// The ports of the LAN finish checksums in software, so that an XDP program on a host there sees none unfinished, be they
// the client's, the router's or a neighbour's: it is the last device that counts.
type Topology struct {
	Client   *Namespace
	Sources4 []netip.Addr // the addresses of the client
	Sources6 []netip.Addr
	Router   *Host // its side of the LAN
	Nodes    []*Host
	Backends []*Host

	env      *Env
	queues   int
	takesXDP bool
}

// Host is a machine on the LAN. Its interface there is eth0, the router's is br0.
type Host struct {
	*Namespace
	IPv4, IPv6 netip.Addr
	MAC        net.HardwareAddr

	port   string // the router's end of its cable
	queues int
}

// Port is the name of the router's end of the host's cable: taken down, it is as if the cable were pulled.
func (h *Host) Port() string { return h.port }

// TopologyOptions says how much of everything there is.
type TopologyOptions struct {
	Nodes    int          // 0 to 8
	Backends int          // 0 to 200; more can be added later
	Queues   int          // of the cables to the nodes; 0: 2
	Sources  int          // IPv4 and as many IPv6 addresses of the client, up to 200; 0: 4
	VIPs     []netip.Addr // that the router sends to all nodes
	// TakesXDP makes the ports of the LAN take what XDP programs of hosts send: it vanishes else.
	TakesXDP bool
}

// NewTopology makes the network inside of an Env. After an error the Env holds a part of it, until it is closed.
func NewTopology(e *Env, o TopologyOptions) (*Topology, error) {
	if o.Queues == 0 {
		o.Queues = 2
	}
	if o.Sources == 0 {
		o.Sources = 4
	}
	if o.Nodes < 0 || o.Nodes > 8 || o.Sources < 0 || o.Sources > 200 {
		return nil, fmt.Errorf("make topology: %d nodes, %d sources; at most 8 and 200", o.Nodes, o.Sources)
	}
	t := &Topology{env: e, queues: o.Queues, takesXDP: o.TakesXDP}
	if err := t.addRouter(); err != nil {
		return nil, fmt.Errorf("make router: %w", err)
	}
	if err := t.addClient(o.Sources); err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	for i := range o.Nodes {
		node, err := t.addHost(fmt.Sprintf("node%d", i+1), 2+i, t.queues)
		if err != nil {
			return nil, err
		}
		t.Nodes = append(t.Nodes, node)
	}
	for range o.Backends {
		if _, err := t.AddBackend(); err != nil {
			return nil, err
		}
	}
	if err := t.Announce(o.VIPs, t.Nodes...); err != nil {
		return nil, err
	}
	return t, nil
}

// AddBackend adds one more backend to the LAN and to Backends.
func (t *Topology) AddBackend() (*Host, error) {
	n := len(t.Backends) + 1
	if n > 200 {
		return nil, fmt.Errorf("add backend %d: at most 200", n)
	}
	backend, err := t.addHost(fmt.Sprintf("backend%d", n), 10+n, 1)
	if err != nil {
		return nil, err
	}
	t.Backends = append(t.Backends, backend)
	return backend, nil
}

// Announce makes the router send the VIPs to exactly these nodes from now on; to none: they are unreachable.
func (t *Topology) Announce(vips []netip.Addr, nodes ...*Host) error {
	for _, vip := range vips {
		route := Route{Dst: netip.PrefixFrom(vip, vip.BitLen())}
		for _, node := range nodes {
			if vip.Is4() {
				route.Via = append(route.Via, node.IPv4)
			} else {
				route.Via = append(route.Via, node.IPv6)
			}
		}
		if len(nodes) == 0 {
			route.Kind = Unreachable
		}
		if err := t.Router.AddRoute(route); err != nil {
			return fmt.Errorf("announce %v: %w", vip, err)
		}
	}
	return nil
}

// Numbers of the networks in addresses.
const (
	lan = iota + 1
	clients
)

// addRouter makes the router with the LAN's bridge.
func (t *Topology) addRouter() error {
	ns, err := t.env.Namespace("router")
	if err != nil {
		return err
	}
	t.Router = newHost(ns, lan, 1)
	for key, value := range map[string]string{
		"net.ipv4.ip_forward":                "1",
		"net.ipv6.conf.all.forwarding":       "1",
		"net.ipv4.fib_multipath_hash_policy": "1",
		"net.ipv6.fib_multipath_hash_policy": "1",
	} {
		if err := ns.SetSysctl(key, value); err != nil {
			return err
		}
	}
	if err := ns.Bridge("br0", t.Router.MAC, LANMTU); err != nil {
		return err
	}
	return t.Router.number("br0")
}

// addClient makes the client and its cable to the router.
func (t *Topology) addClient(sources int) error {
	ns, err := t.env.Namespace("client")
	if err != nil {
		return err
	}
	t.Client = ns
	router := newHost(t.Router.Namespace, clients, 1)
	err = t.env.Veth(
		End{Namespace: ns, Name: "eth0", MAC: newHost(ns, clients, 11).MAC, MTU: ClientMTU},
		End{Namespace: t.Router.Namespace, Name: "client", MAC: router.MAC, MTU: ClientMTU}, 1)
	if err != nil {
		return err
	}
	if err := router.number("client"); err != nil {
		return err
	}
	for i := range sources {
		source := newHost(ns, clients, 11+i)
		if err := source.number("eth0"); err != nil {
			return err
		}
		t.Sources4, t.Sources6 = append(t.Sources4, source.IPv4), append(t.Sources6, source.IPv6)
	}
	return routeVia(ns, router)
}

// addHost adds a machine to the LAN.
func (t *Topology) addHost(name string, number, queues int) (*Host, error) {
	ns, err := t.env.Namespace(name)
	if err != nil {
		return nil, err
	}
	h := newHost(ns, lan, number)
	h.port, h.queues = name, queues
	if err := t.Connect(h); err != nil {
		return nil, err
	}
	return h, nil
}

// Connect gives a host its cable to the LAN, its addresses and its route. It is for a host that has lost them with its
// interface.
func (t *Topology) Connect(h *Host) error {
	err := t.env.Veth(
		End{Namespace: h.Namespace, Name: "eth0", MAC: h.MAC, MTU: LANMTU},
		End{Namespace: t.Router.Namespace, Name: h.port, MTU: LANMTU, Bridge: "br0", SoftwareChecksums: true, TakesXDP: t.takesXDP}, h.queues)
	if err == nil {
		err = h.number("eth0")
	}
	if err == nil {
		err = routeVia(h.Namespace, t.Router)
	}
	if err != nil {
		return fmt.Errorf("connect %s: %w", h.port, err)
	}
	return nil
}

// newHost computes the addresses of a machine from its number in a network.
func newHost(ns *Namespace, network, number int) *Host {
	v4 := "10.0.0.%d"
	if network == clients {
		v4 = "198.51.100.%d"
	}
	return &Host{
		Namespace: ns,
		IPv4:      netip.MustParseAddr(fmt.Sprintf(v4, number)),
		IPv6:      netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%d::%d", network, number)),
		MAC:       net.HardwareAddr{2, 0, 0, 0, byte(network), byte(number)},
	}
}

// number gives the host's addresses to one of its interfaces.
func (h *Host) number(link string) error {
	if err := h.AddAddr(link, netip.PrefixFrom(h.IPv4, 24)); err != nil {
		return err
	}
	return h.AddAddr(link, netip.PrefixFrom(h.IPv6, 64))
}

// routeVia makes a host the default router of a namespace.
func routeVia(ns *Namespace, router *Host) error {
	err := ns.AddRoute(Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: []netip.Addr{router.IPv4}})
	if err != nil {
		return err
	}
	return ns.AddRoute(Route{Dst: netip.MustParsePrefix("::/0"), Via: []netip.Addr{router.IPv6}})
}
