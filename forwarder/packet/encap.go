package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// MAC is an Ethernet address.
type MAC [6]byte

// Headroom is what Apply needs before the frame at most, in bytes.
const Headroom = ipv6Len

// Outer protocol numbers, by the family of the inner packet (RFC 2003, RFC 2473).
const (
	protoIPv4Inner = 4
	protoIPv6Inner = 41
)

// Fixed parts of outer headers, as they stand in their 32-bit words.
const (
	ipv4First        = 0x45 << 24 // version, five words
	ipv4DontFragment = 0x4000     // identification zero, which such a packet does not need (RFC 6864)
	ipv6First        = 6 << 28    // version, flow label zero
	hopLimit         = 64         // TTL or hop limit: the recommended default (IANA "IP TTL")
)

// Encap is the ready-made outer header of one target: everything but what depends on the packet. It is built when the
// configuration, a route or a neighbour changes, and immutable after that; any number of workers may read it. The zero
// Encap is not usable.
type Encap struct {
	eth      [ethLen]byte // Ethernet header; the type is that of the outer IP header, and unused by L2
	overhead uint8        // bytes of the outer IP header: 0, 20 or 40
	addrs    [32]byte     // source and destination of the outer IP header: 8 bytes or 32
	sum      uint16       // IPv4: the header's big-endian words summed up and folded, without what the packet adds
}

// NewL2 returns the header of a target on the same link: new Ethernet addresses before an unchanged packet. src is the
// address of the outgoing interface.
func NewL2(dst, src MAC) Encap {
	var e Encap
	copy(e.eth[0:], dst[:])
	copy(e.eth[6:], src[:])
	return e
}

// NewIPIP returns the header of a target that decapsulates: IP in IP, both families in either (RFC 2003, RFC 2473, RFC
// 4213). dst and src are the Ethernet addresses of the next hop and of the outgoing interface, outerDst the target's
// address and outerSrc the node's, which both must be valid and of one family.
func NewIPIP(dst, src MAC, outerSrc, outerDst netip.Addr) (Encap, error) {
	outerSrc, outerDst = outerSrc.Unmap(), outerDst.Unmap()
	switch {
	case !outerSrc.IsValid() || !outerDst.IsValid():
		return Encap{}, fmt.Errorf("ipip header %v to %v: an address is missing; give a source and a destination", outerSrc, outerDst)
	case outerSrc.Is4() != outerDst.Is4():
		return Encap{}, fmt.Errorf("ipip header %v to %v: the families differ; give two IPv4 or two IPv6 addresses", outerSrc, outerDst)
	case outerDst.IsUnspecified() || outerDst.IsMulticast():
		return Encap{}, fmt.Errorf("ipip header %v to %v: the destination is no host; give the address of one backend", outerSrc, outerDst)
	}
	e := NewL2(dst, src)
	n := copy(e.addrs[:], outerSrc.AsSlice())
	copy(e.addrs[n:], outerDst.AsSlice())
	if outerSrc.Is6() {
		e.overhead = ipv6Len
		binary.BigEndian.PutUint16(e.eth[12:], typeIPv6)
		return e, nil
	}
	e.overhead = ipv4Len
	binary.BigEndian.PutUint16(e.eth[12:], typeIPv4)
	sum := uint32(ipv4First>>16 + ipv4DontFragment + hopLimit<<8)
	for i := 0; i < 8; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(e.addrs[i:]))
	}
	e.sum = ^checksum(sum)
	return e, nil
}

// Overhead returns by how many bytes Apply lengthens an IP packet: 0, 20 or 40.
func (e *Encap) Overhead() int { return int(e.overhead) }

// Apply puts the header of e before a packet. mem[start:] begins with the frame that m was parsed from, m.Reason being
// None. The new frame begins at newStart, ends where the IP packet ends, without the padding that it came with, and is
// newLen bytes long. The IP packet itself is left as it is, byte for byte.
//
// The packet is not read: its lines may have left the first-level cache since Parse.
//
// The caller guarantees Headroom bytes before start, and that the packet with Overhead fits the outgoing MTU (which is
// far below the 65,535 bytes that an outer header can tell).
//
// The outer header takes DSCP and ECN from the inner one (RFC 2983, uniform model; RFC 6040, normal mode). TTL is 64,
// don't-fragment is set and the IPv6 flow label is zero.
func (e *Encap) Apply(mem []byte, start int, m *Meta) (newStart int, newLen int) {
	l3 := start + int(m.L3)
	inner := int(m.End) - int(m.L3) // length of the IP packet
	switch e.overhead {
	case 0:
		copy(mem[start:start+12], e.eth[:12])
		return start, int(m.End)

	case ipv4Len:
		class, proto := m.Class, innerProto(m.Flags)
		length := ipv4Len + inner
		sum := checksum(uint32(e.sum) + uint32(class) + uint32(length) + uint32(proto))
		newStart = l3 - ipv4Len - ethLen
		f := (*[ethLen + ipv4Len]byte)(mem[newStart:])
		copy(f[:ethLen], e.eth[:])
		binary.BigEndian.PutUint64(f[ethLen:], (ipv4First|uint64(class)<<16|uint64(length))<<32|ipv4DontFragment)
		binary.BigEndian.PutUint32(f[ethLen+8:], hopLimit<<24|uint32(proto)<<16|uint32(sum))
		copy(f[ethLen+12:], e.addrs[:8])
		return newStart, ethLen + length

	default:
		class, proto := m.Class, innerProto(m.Flags)
		newStart = l3 - ipv6Len - ethLen
		f := mem[newStart : newStart+ethLen+ipv6Len]
		copy(f[:ethLen], e.eth[:])
		h := f[ethLen:]
		binary.BigEndian.PutUint32(h[0:], ipv6First|uint32(class)<<20)
		binary.BigEndian.PutUint32(h[4:], uint32(inner)<<16|uint32(proto)<<8|hopLimit)
		copy(h[8:24], e.addrs[:16])
		copy(h[24:40], e.addrs[16:])
		return newStart, ethLen + ipv6Len + inner
	}
}

// innerProto is the protocol number of the family of the packet inside.
func innerProto(flags uint8) uint8 {
	if flags&V6 != 0 {
		return protoIPv6Inner
	}
	return protoIPv4Inner
}
