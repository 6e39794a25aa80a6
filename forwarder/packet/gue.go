package packet

import (
	"encoding/binary"
	"net/netip"
)

// NewGUE returns the header of a target that decapsulates Generic UDP Encapsulation, variant 1: IP directly after UDP
// (draft-ietf-intarea-gue). port is the UDP destination port. Without checksum the UDP checksum is zero, over IPv6 too (RFC
// 6935, RFC 6936): the inner packet has its own. For the rest see NewIPIP.
func NewGUE(dst, src MAC, outerSrc, outerDst netip.Addr, port uint16, checksum bool) (Encap, error) {
	e, err := NewIPIP(dst, src, outerSrc, outerDst)
	if err != nil {
		return Encap{}, err
	}
	e.port = port
	if e.overhead == ipv4Len {
		e.header[ethLen+9] = ProtoUDP
		e.sumIPv4()
	}
	e.overhead += udpLen
	if checksum {
		e.options |= checksummed
	}
	return e, nil
}

// VarySource makes the outer source an address of the prefix, another one for each flow, so that routers and NICs, which
// have nothing else to tell the flows of IPIP apart by, spread them. The prefix must be of the family of the outer header;
// of IPv6 the last 32 bits vary at most. It does nothing to an L2 header.
func (e *Encap) VarySource(prefix netip.Prefix) {
	if e.overhead == 0 {
		return
	}
	source := prefix.Masked().Addr()
	e.options = e.options&checksummed | uint8(min(32, source.BitLen()-prefix.Bits()))
	if source.Is6() {
		copy(e.header[macsLen:], source.AsSlice())
		return
	}
	copy(e.header[ethLen+12:], source.AsSlice())
	e.sumIPv4()
}

// entropy turns a flow's hash into bits that outsiders may see: they tell nothing about the line of the flow table.
func entropy(hash uint64) uint64 { return (hash ^ hash>>32) * 0x9e3779b97f4a7c15 }

// putUDP writes the UDP header of GUE. The source port is from the dynamic range (RFC 6335) and varies with the flow.
func (e *Encap) putUDP(udp []byte, length int, hash uint64) {
	port := 0xc000 | uint32(entropy(hash)>>50)
	binary.BigEndian.PutUint64(udp, uint64(port<<16|uint32(e.port))<<32|uint64(length)<<16)
}

// finish does to a frame with its outer headers what few configurations ask for: the flow's bits of the outer source, and the
// UDP checksum.
func (e *Encap) finish(frame []byte, hash uint64) {
	ip := frame[ethLen:]
	addrs, udp := ip[12:20], ip[ipv4Len:]
	if e.overhead >= ipv6Len {
		addrs, udp = ip[8:40], ip[ipv6Len:]
	}
	if n := e.options &^ checksummed; n > 0 {
		bits := uint32(entropy(hash)>>18) & uint32(1<<n-1)
		last := addrs[len(addrs)/2-4 : len(addrs)/2] // of the source; the bits are zero there
		old := binary.BigEndian.Uint32(last)
		binary.BigEndian.PutUint32(last, old|bits)
		if len(addrs) == 8 {
			addDifference(ip[10:12], difference(old, old|bits))
		}
	}
	if e.options&checksummed != 0 {
		putChecksum(udp[6:8], transportSum(addrs, ProtoUDP, udp))
		if udp[6]|udp[7] == 0 {
			udp[6], udp[7] = 0xff, 0xff // zero would say that there is none
		}
	}
}
