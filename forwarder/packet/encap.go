package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// MAC is an Ethernet address.
type MAC [6]byte

// Headroom is what Apply needs before the frame at most, in bytes.
const Headroom = ipv6Len + udpLen

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
	macs     [12]byte // of the Ethernet header: destination and source
	port     uint16   // GUE: the UDP destination port; NAT: the backend's, 0 to keep the packet's; else 0
	overhead uint8    // bytes of the outer headers after Ethernet: 0, 20 or 40, with GUE 28 or 48
	options  uint8    // how many low bits of the outer source are the flow's, and checksummed; or translated
	addrs    [32]byte // source and destination of the outer IP header: 8 bytes or 32; NAT: the backend's as an Addr
	// sum is, with an outer IPv4 header, its big-endian words summed up and folded, without what the packet adds; with NAT the
	// largest MSS that is let through, 0 for any.
	sum uint16
}

// Bits of Encap.options.
const (
	checksummed = 0x80 // the UDP checksum of GUE is filled in
	translated  = 0x40 // there is no outer header; the packet itself is changed: NAT
)

// NewL2 returns the header of a target on the same link: new Ethernet addresses before an unchanged packet. src is the
// address of the outgoing interface.
func NewL2(dst, src MAC) Encap {
	var e Encap
	copy(e.macs[0:], dst[:])
	copy(e.macs[6:], src[:])
	return e
}

// NewIPIP returns the header of a target that decapsulates: IP in IP, both families in either (RFC 2003, RFC 2473, RFC
// 4213). dst and src are the Ethernet addresses of the next hop and of the outgoing interface, outerDst the target's
// address and outerSrc the node's, which both must be valid and of one family.
func NewIPIP(dst, src MAC, outerSrc, outerDst netip.Addr) (Encap, error) {
	outerSrc, outerDst = outerSrc.Unmap(), outerDst.Unmap()
	switch {
	case !outerSrc.IsValid() || !outerDst.IsValid():
		return Encap{}, fmt.Errorf("outer header %v to %v: an address is missing; give a source and a destination", outerSrc, outerDst)
	case outerSrc.Is4() != outerDst.Is4():
		return Encap{}, fmt.Errorf("outer header %v to %v: the families differ; give two IPv4 or two IPv6 addresses", outerSrc, outerDst)
	case outerDst.IsUnspecified() || outerDst.IsMulticast():
		return Encap{}, fmt.Errorf("outer header %v to %v: the destination is no host; give the address of one backend", outerSrc, outerDst)
	}
	e := NewL2(dst, src)
	n := copy(e.addrs[:], outerSrc.AsSlice())
	copy(e.addrs[n:], outerDst.AsSlice())
	if outerSrc.Is6() {
		e.overhead = ipv6Len
		return e, nil
	}
	e.overhead = ipv4Len
	e.sumAddrs()
	return e, nil
}

// sumAddrs sums up what an outer IPv4 header has in common for all packets.
func (e *Encap) sumAddrs() {
	sum := uint32(ipv4First>>16 + ipv4DontFragment + hopLimit<<8)
	for i := 0; i < 8; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(e.addrs[i:]))
	}
	e.sum = ^checksum(sum)
}

// Header is what Apply goes by, for who does the same elsewhere: the XDP program.
type Header struct {
	MACs       [12]byte // destination and source
	Port       uint16   // UDP destination port of GUE; 0: no GUE
	Overhead   uint8    // bytes of the outer headers after Ethernet
	SourceBits uint8    // how many low bits of the outer source are the flow's
	Addrs      [32]byte // source and destination of the outer IP header, 8 bytes or 32
	Sum        uint16   // of an outer IPv4 header: its big-endian words without what the packet adds, summed up and folded
}

// Header returns what Apply goes by. It reports false if there is more to it: NAT, and the UDP checksum of GUE.
func (e *Encap) Header() (h Header, ok bool) {
	if e.options&(checksummed|translated) != 0 {
		return h, false
	}
	return Header{MACs: e.macs, Port: e.port, Overhead: e.overhead, SourceBits: e.options, Addrs: e.addrs, Sum: e.sum}, true
}

// Overhead returns by how many bytes Apply lengthens an IP packet: 0 with L2 and NAT, 20 or 40 with IPIP, 28 or 48 with GUE.
func (e *Encap) Overhead() int { return int(e.overhead) }

// Checksummed says whether Apply sums up the whole packet, for the UDP checksum of GUE.
func (e *Encap) Checksummed() bool { return e.options&checksummed != 0 }

// Apply puts the header of e before a packet. mem[start:] begins with the frame that m was parsed from, m.Reason being
// None. The new frame begins at newStart, ends where the IP packet ends, without the padding that it came with, and is
// newLen bytes long. It has no 802.1Q tag; one that the old frame had is left before it. The IP packet itself is left as it
// is, byte for byte, but by NAT: see NewNAT.
//
// But by NAT the packet is not read: its lines may have left the first-level cache since Parse.
//
// The caller guarantees Headroom bytes before start, and that the packet with Overhead fits the outgoing MTU (which is
// far below the 65,535 bytes that an outer header can tell).
//
// The outer header takes DSCP and ECN from the inner one (RFC 2983, uniform model; RFC 6040, normal mode). TTL is 64,
// don't-fragment is set and the IPv6 flow label is zero.
//
// What differs from flow to flow, GUE's source port and the bits of VarySource, is from the flow's hash, so that the packets
// of a flow stay in order.
func (e *Encap) Apply(mem []byte, start int, m *Meta) (newStart int, newLen int) {
	l3 := start + int(m.L3)
	inner := int(m.End) - int(m.L3) // length of the IP packet
	if e.overhead == 0 {
		newStart = l3 - ethLen // the type, behind the tag if there was one, is where it belongs
		copy(mem[newStart:newStart+12], e.macs[:])
		if e.options != 0 {
			translate(mem[l3:], m, destination, addr6(e.addrs[:]), e.port, e.sum)
		}
		return newStart, ethLen + inner
	}
	at, payload, class, proto := l3, inner, m.Class, innerProto(m.Flags)
	if e.port != 0 {
		at, payload, proto = at-udpLen, payload+udpLen, ProtoUDP
		e.putUDP(mem[at:], payload, m.Hash)
	}
	if e.overhead < ipv6Len {
		length := ipv4Len + payload
		sum := checksum(uint32(e.sum) + uint32(class) + uint32(length) + uint32(proto))
		newStart, newLen = at-ipv4Len-ethLen, ethLen+length
		f := (*[ethLen + ipv4Len]byte)(mem[newStart:])
		copy(f[:12], e.macs[:])
		binary.BigEndian.PutUint16(f[12:], typeIPv4)
		binary.BigEndian.PutUint64(f[ethLen:], (ipv4First|uint64(class)<<16|uint64(length))<<32|ipv4DontFragment)
		binary.BigEndian.PutUint32(f[ethLen+8:], hopLimit<<24|uint32(proto)<<16|uint32(sum))
		copy(f[ethLen+12:], e.addrs[:8])
	} else {
		newStart, newLen = at-ipv6Len-ethLen, ethLen+ipv6Len+payload
		f := (*[ethLen + ipv6Len]byte)(mem[newStart:])
		copy(f[:12], e.macs[:])
		binary.BigEndian.PutUint16(f[12:], typeIPv6)
		binary.BigEndian.PutUint32(f[ethLen:], ipv6First|uint32(class)<<20)
		binary.BigEndian.PutUint32(f[ethLen+4:], uint32(payload)<<16|uint32(proto)<<8|hopLimit)
		copy(f[ethLen+8:], e.addrs[:])
	}
	if e.options != 0 {
		e.finish(mem[newStart:newStart+newLen], m.Hash)
	}
	return newStart, newLen
}

// innerProto is the protocol number of the family of the packet inside.
func innerProto(flags uint16) uint8 {
	if flags&V6 != 0 {
		return protoIPv6Inner
	}
	return protoIPv4Inner
}
