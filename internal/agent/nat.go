//go:build linux

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/internal/agent/capability"
)

// maxNAT is how many mappings an agent takes: an answer to who asks holds them all, and has a largest size.
const maxNAT = 4096

// ParseNAT reads VIP:PORT=ADDRESS:PORT, an element of Config.NAT; an IPv6 address is in brackets.
func ParseNAT(s string) (capability.Mapping, error) {
	vip, local, ok := strings.Cut(s, "=")
	if !ok {
		return capability.Mapping{}, errors.New("give VIP:PORT=ADDRESS:PORT")
	}
	var m capability.Mapping
	var err error
	if m.VIP, err = netip.ParseAddrPort(vip); err == nil {
		m.Local, err = netip.ParseAddrPort(local)
	}
	if err != nil {
		return capability.Mapping{}, fmt.Errorf("%w; give VIP:PORT=ADDRESS:PORT, with IPv6 addresses in brackets", err)
	}
	return m, nil
}

// normalizeNAT checks the mappings and unmaps addresses; bad takes what is wrong. vips are normalized already.
func normalizeNAT(in []capability.Mapping, vips []netip.Addr, bad func(format string, args ...any)) (out []capability.Mapping) {
	if len(in) > maxNAT {
		bad("--nat: %d mappings: at most %d are taken", len(in), maxNAT)
		return nil
	}
	seen := map[netip.AddrPort]netip.AddrPort{} // VIPs by local address
	vips = slices.Clone(vips)
	for _, m := range in {
		vips = append(vips, m.VIP.Addr().Unmap())
	}
	for _, m := range in {
		m.VIP = netip.AddrPortFrom(m.VIP.Addr().Unmap(), m.VIP.Port())
		m.Local = netip.AddrPortFrom(m.Local.Addr().Unmap(), m.Local.Port())
		vip, local := m.VIP.Addr(), m.Local.Addr()
		other, twice := seen[m.Local]
		switch {
		case unfit(vip) != "":
			bad("--nat %v: %v: %s", m, vip, unfit(vip))
		case unfit(local) != "":
			bad("--nat %v: %v: %s", m, local, unfit(local))
		case m.VIP.Port() == 0 || m.Local.Port() == 0:
			bad("--nat %v: no connection is to port 0", m)
		case vip.Is4() != local.Is4():
			bad("--nat %v: one is IPv4, the other IPv6; nodes translate within a family", m)
		case slices.Contains(vips, local):
			bad("--nat %v: %v is a VIP; nodes translate to an address of this host alone", m, local)
		case twice && other == m.VIP:
			bad("--nat %v: given twice", m)
		case twice:
			bad("--nat %v: connections to %v are to %v already, and which of the two one is to cannot be told; give each VIP and port a "+
				"port of its own", m, m.Local, other)
		default:
			seen[m.Local] = m.VIP
			out = append(out, m)
		}
	}
	return out
}

// endpoint is struct endpoint of bpf/accept.h.
type endpoint struct {
	Address [16]byte
	Port    [2]byte
	Zero    [2]byte
}

func endpointOf(at netip.AddrPort) (e endpoint) {
	e.Address = at.Addr().As16()
	binary.BigEndian.PutUint16(e.Port[:], at.Port())
	return e
}
