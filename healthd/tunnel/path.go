//go:build linux

package tunnel

import (
	"fmt"
	"net/netip"
)

// How packets go to a backend, as in the configuration.
const (
	L2   = "l2"   // unchanged, to the backend's Ethernet address
	IPIP = "ipip" // IP in IP
	GUE  = "gue"  // Generic UDP Encapsulation, variant 1
)

// Path is the way of a service's data packets to one backend.
type Path struct {
	Forward     string       // L2, IPIP or GUE
	VIP         netip.Addr   // where inner packets go
	Backend     netip.Addr   // where they are brought; with IPIP and GUE it may be of the other family
	GUEPort     uint16       // UDP destination port; GUE only
	GUEChecksum bool         // fill in the outer UDP checksum; GUE only
	Source      netip.Prefix // outer sources, another for each connection; zero: this node's own address towards the backend
}

// validate says what is wrong with a path.
func (p *Path) validate() error {
	switch p.Forward {
	case L2, IPIP:
	case GUE:
		if p.GUEPort == 0 {
			return fmt.Errorf("no GUE port; give the one that the backend takes GUE at")
		}
	default:
		return fmt.Errorf("forwarding by %q; give %s, %s or %s", p.Forward, L2, IPIP, GUE)
	}
	switch {
	case !p.VIP.IsValid() || !p.Backend.IsValid():
		return fmt.Errorf("VIP %v, backend %v: an address is missing; give both", p.VIP, p.Backend)
	case p.Source.IsValid() && p.Source.Addr().Is4() != p.Backend.Is4():
		return fmt.Errorf("outer source %v to backend %v: the families differ; give a prefix of the backend's", p.Source, p.Backend)
	}
	return nil
}

// remote is where a connection goes, for errors. It is a net.Addr.
type remote struct {
	network string
	addr    netip.AddrPort
	path    *Path
}

func (r remote) Network() string { return r.network }

func (r remote) String() string {
	return fmt.Sprintf("%v by %s to %v", r.addr, r.path.Forward, r.path.Backend)
}
