//go:build linux

package testenv

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a veth pair.
type End struct {
	Namespace *Namespace
	Name      string           // of the interface
	MAC       net.HardwareAddr // nil: a random one
	MTU       int              // 0: 1500
	Bridge    string           // the bridge of this namespace that the end becomes a port of; empty: none
	// SoftwareChecksums makes this end finish the checksums of what it sends, instead of leaving them to a device that
	// does not exist. An XDP program on the other end needs it: it would see unfinished checksums.
	SoftwareChecksums bool
	// TakesXDP makes this end take frames that an XDP program on the other one sends; it does so too while it has one itself.
	TakesXDP bool
}

// Veth joins two namespaces by a cable with so many queues (at least 1) in each direction, brings both ends up
// and waits until they carry packets.
func (e *Env) Veth(a, b End, queues int) error {
	if err := makeVeth(a, b, queues); err != nil {
		return fmt.Errorf("make veth %s in %s to %s in %s: %w", a.Name, a.Namespace, b.Name, b.Namespace, err)
	}
	return nil
}

func makeVeth(a, b End, queues int) error {
	if queues < 1 {
		return fmt.Errorf("%d queues; give at least 1", queues)
	}
	err := b.Namespace.withFD(func(fd int) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = a.Name, a.MAC, a.mtu()
		attrs.NumTxQueues, attrs.NumRxQueues = queues, queues
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = b.Name, b.MAC, uint32(b.mtu())
		veth.PeerNumTxQueues, veth.PeerNumRxQueues = uint32(queues), uint32(queues)
		veth.PeerNamespace = netlink.NsFd(fd)
		return a.Namespace.nl.LinkAdd(veth)
	})
	if err != nil {
		return err
	}
	for _, end := range []End{a, b} {
		if end.SoftwareChecksums {
			if err := end.Namespace.SetFeatures(end.Name, map[string]bool{TXChecksum: false}); err != nil {
				return err
			}
		}
		if end.Bridge != "" {
			// A port is no IP interface: without this it would talk on the network for itself.
			if err := end.Namespace.SetSysctl("net/ipv6/conf/"+end.Name+"/disable_ipv6", "1"); err != nil {
				return err
			}
			if err := end.Namespace.setMaster(end.Name, end.Bridge); err != nil {
				return err
			}
		}
		if err := end.Namespace.LinkUp(end.Name); err != nil {
			return err
		}
	}
	for _, end := range []End{a, b} {
		if err := end.Namespace.waitRunning(end.Name); err != nil {
			return err
		}
		if end.TakesXDP { // once it is up: only then does the driver tell the other end
			if err := end.Namespace.SetFeatures(end.Name, map[string]bool{SoftMerge: true}); err != nil {
				return err
			}
		}
		if end.Bridge != "" {
			if err := end.Namespace.waitRunning(end.Bridge); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitRunning waits until an interface carries packets. The kernel notices the carrier of a new veth a little after
// both ends are up, in the background; until then it drops what is sent, and a retransmission takes a second.
func (ns *Namespace) waitRunning(name string) error {
	return soon(func() error {
		l, err := ns.Link(name)
		if err == nil && l.Attrs().OperState != netlink.OperUp {
			err = fmt.Errorf("interface %s in %s is %v, expected up", name, ns, l.Attrs().OperState)
		}
		return err
	})
}

// soon waits for something that the kernel does in the background: it calls f until it succeeds, for five seconds.
func soon(f func() error) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := f(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func (end End) mtu() int {
	if end.MTU == 0 {
		return 1500
	}
	return end.MTU
}

// Bridge makes a bridge without spanning tree and multicast snooping, and brings it up. Its MAC address is fixed, so
// that it does not change when ports come and go.
func (ns *Namespace) Bridge(name string, mac net.HardwareAddr, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = name, mac, mtu
	snooping := false
	if err := ns.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return fmt.Errorf("make bridge %s in %s: %w", name, ns, err)
	}
	return ns.LinkUp(name)
}

func (ns *Namespace) setMaster(link, bridge string) error {
	master, err := ns.Link(bridge)
	if err != nil {
		return err
	}
	return ns.change("make "+bridge+" the master of", link, func(l netlink.Link) error {
		return ns.nl.LinkSetMasterByIndex(l, master.Attrs().Index)
	})
}

// Link reads an interface: its index, MAC address, MTU, flags, queue counts and traffic statistics are in Attrs.
func (ns *Namespace) Link(name string) (netlink.Link, error) {
	l, err := ns.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("read interface %s in %s: %w", name, ns, err)
	}
	return l, nil
}

// change finds an interface and does something to it. The verb is for the error.
func (ns *Namespace) change(verb, name string, f func(netlink.Link) error) error {
	l, err := ns.nl.LinkByName(name)
	if err == nil {
		err = f(l)
	}
	if err != nil {
		return fmt.Errorf("%s interface %s in %s: %w", verb, name, ns, err)
	}
	return nil
}

// LinkUp brings an interface up.
func (ns *Namespace) LinkUp(name string) error { return ns.change("bring up", name, ns.nl.LinkSetUp) }

// LinkDown brings an interface down. Its routes and IPv6 addresses are gone then, also after LinkUp.
func (ns *Namespace) LinkDown(name string) error {
	return ns.change("bring down", name, ns.nl.LinkSetDown)
}

// DeleteLink removes an interface; for a veth the other end goes, too.
func (ns *Namespace) DeleteLink(name string) error { return ns.change("delete", name, ns.nl.LinkDel) }

// RenameLink gives an interface another name.
func (ns *Namespace) RenameLink(from, to string) error {
	return ns.change("rename to "+to, from, func(l netlink.Link) error { return ns.nl.LinkSetName(l, to) })
}

// SetMTU sets the largest IP packet of an interface, in bytes. The other end of a veth keeps its own.
func (ns *Namespace) SetMTU(name string, mtu int) error {
	return ns.change(fmt.Sprintf("set MTU %d of", mtu), name, func(l netlink.Link) error { return ns.nl.LinkSetMTU(l, mtu) })
}

// SetMAC changes the MAC address of an interface.
func (ns *Namespace) SetMAC(name string, mac net.HardwareAddr) error {
	return ns.change("set MAC "+mac.String()+" of", name, func(l netlink.Link) error {
		return ns.nl.LinkSetHardwareAddr(l, mac)
	})
}

// AddAddr gives an interface an address; the prefix is reachable on the link. On an interface that is up the address is
// usable when AddAddr returns, also in IPv6.
func (ns *Namespace) AddAddr(link string, prefix netip.Prefix) error {
	return ns.change("add address "+prefix.String()+" to", link, func(l netlink.Link) error {
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is4() {
			return ns.nl.AddrAdd(l, addr)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := ns.nl.AddrAdd(l, addr); err != nil || l.Attrs().Flags&net.FlagUp == 0 {
			return err
		}
		return ns.waitLocal(prefix.Addr())
	})
}

// waitLocal waits until an IPv6 address works. The kernel joins the group of its neighbour solicitations and then makes
// its local route in the background; what arrives before goes elsewhere.
func (ns *Namespace) waitLocal(addr netip.Addr) error {
	return soon(func() error {
		routes, err := ns.nl.RouteGet(addr.AsSlice())
		if err == nil && routes[0].Type != unix.RTN_LOCAL {
			err = errors.New("there is no local route to it")
		}
		return err
	})
}

// DelAddr takes an address away.
func (ns *Namespace) DelAddr(link string, prefix netip.Prefix) error {
	return ns.change("delete address "+prefix.String()+" of", link, func(l netlink.Link) error {
		return ns.nl.AddrDel(l, &netlink.Addr{IPNet: ipNet(prefix)})
	})
}

// AddNeighbour sets the MAC address of a neighbour for good, in place of what ARP or neighbour discovery would find.
func (ns *Namespace) AddNeighbour(link string, addr netip.Addr, mac net.HardwareAddr) error {
	return ns.change("add neighbour "+addr.String()+" to", link, func(l netlink.Link) error {
		return ns.nl.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac,
		})
	})
}

// DelNeighbour forgets a neighbour.
func (ns *Namespace) DelNeighbour(link string, addr netip.Addr) error {
	return ns.change("delete neighbour "+addr.String()+" of", link, func(l netlink.Link) error {
		return ns.nl.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: addr.AsSlice()})
	})
}

// Names of features for SetFeatures, as the kernel and `ethtool -k` give them.
const (
	TXChecksum = "tx-checksum-ip-generic"  // leave checksums to the device; off also turns TCP segmentation off
	TCPv4Segs  = "tx-tcp-segmentation"     // leave the cutting of large TCP/IPv4 segments to the device
	TCPv6Segs  = "tx-tcp6-segmentation"    // the same for IPv6
	SoftSegs   = "tx-generic-segmentation" // cut large segments just before the device instead of in TCP
	SoftMerge  = "rx-gro"                  // merge received TCP segments
)

// SetFeatures turns features of an interface on or off, and reads them back: a driver may refuse without a word.
func (ns *Namespace) SetFeatures(link string, features map[string]bool) error {
	err := ns.withEthtool(func(e *ethtool.Ethtool) error {
		if err := e.Change(link, features); err != nil {
			return err
		}
		now, err := e.Features(link)
		if err != nil {
			return err
		}
		for name, want := range features {
			if now[name] != want {
				return fmt.Errorf("feature %s is %t after it was set to %t: the driver refuses", name, now[name], want)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set features of interface %s in %s: %w", link, ns, err)
	}
	return nil
}

// Features reads which features of an interface are on.
func (ns *Namespace) Features(link string) (features map[string]bool, err error) {
	err = ns.withEthtool(func(e *ethtool.Ethtool) error {
		features, err = e.Features(link)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read features of interface %s in %s: %w", link, ns, err)
	}
	return features, nil
}

func (ns *Namespace) withEthtool(f func(*ethtool.Ethtool) error) error {
	return ns.Do(func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		return f(e)
	})
}
