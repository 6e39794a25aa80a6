package config

import (
	"fmt"
	"net/netip"
)

// Machine is what LoadFor asks about the machine that a file is for. The functions are called by the goroutine that loads
// it.
type Machine struct {
	// MTU returns how many bytes an IP packet on an interface has at most; false if there is no such interface.
	MTU func(iface string) (mtu int, exists bool)
	// MultiBuffer reports whether the interface's driver gives an XDP program packets that are in several buffers.
	MultiBuffer func(iface string) bool
	// Way returns the machine's way to an address.
	Way func(netip.Addr) Way
}

// Way is the way from a machine to an address.
type Way struct {
	Local     bool   // the address is the machine's own
	Interface string // by which packets leave; of a VLAN device, the one below it
	MTU       int    // how many bytes an IP packet on this way has at most; 0: there is no route
}

const (
	// singleBuffer is the largest MTU whose frames come in one piece for certain: veth, which leaves the least room, takes an
	// XDP program without fragments up to an MTU of 3,504 bytes (drivers/net/veth.c, veth_xdp_set).
	singleBuffer = 3500
	// farMTU is what packets from beyond the node's own links have: as a rule, an Ethernet lies in their way.
	farMTU = 1500
	// minIPv6 is what every link has to take of IPv6 (RFC 8200, section 5).
	minIPv6 = 1280
)

// checkMachine applies the rules about configuration and machine.
func (p *places) checkMachine(c *Config, m *Machine) {
	mtus := make(map[string]int) // of the interfaces that exist
	for i, at := range p.interfaces {
		name := c.Interfaces[i].Name
		if name == "" {
			continue
		}
		mtu, exists := m.MTU(name)
		if !exists {
			at.warn("not checked: no interface " + name + " here")
			continue
		}
		mtus[name] = mtu
		if mtu > singleBuffer && !m.MultiBuffer(name) {
			at.refuseAs(fmt.Sprintf("%s with an MTU of %d", name, mtu), fmt.Sprintf("an MTU of at most %d", singleBuffer),
				"this driver cannot give larger packets, which come in several buffers, to an XDP program")
		}
	}
	if len(mtus) == 0 {
		return
	}
	p.refuseJumboChecksum(c, mtus)
	ways := p.refuseOwn(m)
	in := p.arriving(ways, mtus)
	for i := range p.services {
		if s := &p.services[i]; s.Forward.Tunnelled() && s.VIP.IsValid() {
			s.warnOfMTU(ways, in)
		}
	}
}

// refuseJumboChecksum refuses GUE's checksum on an interface whose packets come in several buffers.
func (p *places) refuseJumboChecksum(c *Config, mtus map[string]int) {
	for _, i := range c.Interfaces {
		if mtu := mtus[i.Name]; c.Tunnel.GUEChecksum && mtu > singleBuffer {
			p.tunnel.field("gue_checksum").refuseAs(fmt.Sprintf("true with an MTU of %d on %s", mtu, i.Name),
				fmt.Sprintf("false, or an MTU of at most %d", singleBuffer),
				"larger packets come in several buffers, and are not summed up")
			return
		}
	}
}

// refuseOwn finds backends that are the machine itself, and returns the ways to all of them.
func (p *places) refuseOwn(m *Machine) map[netip.Addr]Way {
	ways := make(map[netip.Addr]Way)
	for i := range p.services {
		s := &p.services[i]
		for j, b := range s.Backends {
			if !b.Address.IsValid() {
				continue
			}
			way, known := ways[b.Address]
			if !known {
				way = m.Way(b.Address)
				ways[b.Address] = way
			}
			if way.Local {
				s.addresses[j].refuseAs(b.Address.String()+", an address of this machine", "the address of another machine",
					"a node cannot be its own backend: what it sends does not come back to it")
			}
		}
	}
	return ways
}

// arrival is how large the packets are that arrive on an interface.
type arrival struct {
	iface string
	size  int
}

// arriving returns the largest. By an interface that also leads to backends come the packets of clients elsewhere, whatever
// its MTU: it may have been raised for the outer headers.
func (p *places) arriving(ways map[netip.Addr]Way, mtus map[string]int) (largest arrival) {
	leaving := make(map[string]bool)
	for i := range p.services {
		for _, b := range p.services[i].Backends {
			if p.services[i].Forward.Tunnelled() {
				leaving[ways[b.Address].Interface] = true
			}
		}
	}
	for name, mtu := range mtus {
		if leaving[name] {
			mtu = min(mtu, farMTU)
		}
		if mtu > largest.size || mtu == largest.size && name < largest.iface {
			largest = arrival{name, mtu}
		}
	}
	return largest
}

// overhead is how many bytes the outer headers to a backend have.
func (f Forward) overhead(backend netip.Addr) int {
	n := 40
	if backend.Is4() {
		n = 20
	}
	if f == ForwardGUE {
		n += 8
	}
	return n
}

// warnOfMTU tells if packets of the size that arrives do not fit the way to a backend with their outer headers: for each
// size of these once, of the narrowest way. That there is no way it tells once.
func (s *placed) warnOfMTU(ways map[netip.Addr]Way, in arrival) {
	narrowest := make(map[int]netip.Addr)
	told := false
	for i := range s.Backends {
		b := s.Backends[i].Address
		way := ways[b]
		if way.Local || !b.IsValid() {
			continue
		}
		if way.MTU == 0 {
			if !told {
				s.addresses[i].warn("not checked: no route to " + b.String() + " here")
			}
			told = true
			continue
		}
		n := s.Forward.overhead(b)
		if have, known := narrowest[n]; !known || way.MTU < ways[have].MTU {
			narrowest[n] = b
		}
	}
	for _, n := range []int{20, 28, 40, 48} {
		b, some := narrowest[n]
		if !some {
			continue
		}
		if left := ways[b].MTU - n; left < in.size {
			s.forward.warn(fmt.Sprintf("%d bytes of outer headers leave %d of the %d that a packet to %s may have, "+
				"but up to %d arrive on %s; %s", n, left, ways[b].MTU, b, in.size, in.iface, s.cure(left, in.size+n)))
		}
	}
}

// cure says what to do about packets of which only so many bytes are left.
func (s *placed) cure(left, need int) string {
	raise := fmt.Sprintf("raise the MTU towards the backends to %d", need)
	switch {
	case !s.VIP.Is4() && left < minIPv6:
		return fmt.Sprintf("IPv6 needs %d: %s", minIPv6, raise)
	case s.Protocol == TCP:
		return raise + ", or have sluice-agent clamp the MSS"
	case s.VIP.Is4():
		return raise + "; else tunnel.oversize says what becomes of larger ones"
	}
	return raise + "; else the senders of larger ones are told by ICMP"
}
