package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// The rules here span the whole file. They take what was not refused before, and what was refused is zero.

// claim is ports that one owner wants for itself.
type claim struct {
	PortRange
	owner int // owners are numbered in the order of the file
}

// eachConflict calls refuse for the owners whose ports an earlier one in the file has too, once for each of them in a list.
func eachConflict(claims []claim, refuse func(first, second int, port uint16)) {
	slices.SortStableFunc(claims, func(a, b claim) int { return cmp.Compare(a.First, b.First) })
	refused := make(map[int]bool)
	// The claim that reaches furthest so far is enough to find every owner that overlaps an earlier one.
	furthest := claims[0]
	for _, c := range claims[1:] {
		if c.First <= furthest.Last && c.owner != furthest.owner {
			first, second := min(c.owner, furthest.owner), max(c.owner, furthest.owner)
			if !refused[second] {
				refused[second] = true
				refuse(first, second, max(c.First, 1))
			}
		}
		if c.Last > furthest.Last {
			furthest = c
		}
	}
}

// refuseOverlaps finds services that want the same packets.
func refuseOverlaps(all []placed) {
	type endpoint struct {
		vip      netip.Addr
		protocol Protocol
	}
	claims := make(map[endpoint][]claim)
	for i := range all {
		s := &all[i]
		if !s.VIP.IsValid() || s.Protocol == "" {
			continue
		}
		e := endpoint{s.VIP, s.Protocol}
		for _, r := range s.Ports {
			claims[e] = append(claims[e], claim{r, i})
		}
	}
	for e, list := range claims {
		eachConflict(list, func(first, second int, port uint16) {
			all[second].ports.refuseAs(
				fmt.Sprintf("port %d of %s %s, which the service on line %d takes", port, e.vip, e.protocol, all[first].ports.node.Line),
				"ports that no other service of the VIP and protocol takes", "")
		})
	}
}

// refuseAmbiguous finds backends of services with NAT whose replies could be those of two VIPs, or of two ports of one: a
// reply is known by nothing but its source, so that any node can translate it.
func refuseAmbiguous(all []placed) {
	type host struct {
		address  netip.Addr
		protocol Protocol
	}
	type target struct{ service, backend int }
	var targets []target // the owners of claims
	claims := make(map[host][]claim)
	for i := range all {
		s := &all[i]
		if s.Forward != ForwardNAT || !s.VIP.IsValid() || s.Protocol == "" {
			continue
		}
		for j, b := range s.Backends {
			if !b.Address.IsValid() {
				continue
			}
			ports := s.Ports
			if b.Port != 0 {
				ports = Ports{{b.Port, b.Port}}
			}
			h := host{b.Address, s.Protocol}
			for _, r := range ports {
				claims[h] = append(claims[h], claim{r, len(targets)})
			}
			targets = append(targets, target{i, j})
		}
	}
	for h, list := range claims {
		eachConflict(list, func(first, second int, port uint16) {
			a, b := targets[first], targets[second]
			if x, y := &all[a.service], &all[b.service]; x.VIP == y.VIP {
				if _, overlap := x.Ports.Overlap(y.Ports); overlap || a.service == b.service {
					return // that has been refused, or is the same address twice, which has
				}
			}
			line := all[a.service].addresses[a.backend].node.Line
			all[b.service].addresses[b.backend].refuseAs(
				fmt.Sprintf("%s %s port %d, where the backend on line %d receives too", h.address, h.protocol, port, line),
				"another address or port",
				fmt.Sprintf("with forward: nat, a reply from %s port %d could belong to either", h.address, port))
		})
	}
}

// vipLines returns the line on which each VIP stands first.
func vipLines(all []placed) map[netip.Addr]int {
	vips := make(map[netip.Addr]int)
	for i := range all {
		if s := &all[i]; s.VIP.IsValid() {
			if _, known := vips[s.VIP]; !known {
				vips[s.VIP] = s.vip.node.Line
			}
		}
	}
	return vips
}

// refuseLoops finds backends whose address is a VIP: their packets would come back to a balancer.
func refuseLoops(all []placed, vips map[netip.Addr]int) {
	for i := range all {
		for j, b := range all[i].Backends {
			if line, isVIP := vips[b.Address]; isVIP && b.Address.IsValid() {
				all[i].addresses[j].refuseAs(fmt.Sprintf("%s, the VIP of line %d", b.Address, line), "the backend's own address",
					"packets to a VIP would come back to the balancer")
			}
		}
	}
}

// refuseSources finds outer sources that are addresses of others: errors about outer packets would go there.
func (p *places) refuseSources(c *Config, vips map[netip.Addr]int) {
	for name, prefix := range map[string]*netip.Prefix{"source_ipv4": c.Tunnel.SourceIPv4, "source_ipv6": c.Tunnel.SourceIPv6} {
		if prefix == nil {
			continue
		}
		if a, what, line := p.within(*prefix, vips); what != "" {
			p.tunnel.field(name).refuseAs(fmt.Sprintf("%s, which holds the %s %s of line %d", prefix, what, a, line),
				"a prefix of its own", "nothing else may have an address that outer sources are taken from")
		}
	}
}

// within returns the first VIP or backend of the file that a prefix holds.
func (p *places) within(prefix netip.Prefix, vips map[netip.Addr]int) (a netip.Addr, what string, line int) {
	for i := range p.services {
		s := &p.services[i]
		if prefix.Contains(s.VIP) {
			return s.VIP, "VIP", vips[s.VIP]
		}
		for j, b := range s.Backends {
			if prefix.Contains(b.Address) {
				return b.Address, "backend", s.addresses[j].node.Line
			}
		}
	}
	return netip.Addr{}, "", 0
}
