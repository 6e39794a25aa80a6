package packet

import (
	"encoding/binary"
	"fmt"
	"math/bits"
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
	// header begins with the Ethernet addresses, destination and source. What follows is, with an outer IPv4 header, the rest of a
	// frame up to its end, but for what the packet adds; with an outer IPv6 header its addresses; with NAT the backend's as an Addr.
	header   [macsLen + 32]byte
	port     uint16 // GUE: the UDP destination port; NAT: the backend's, 0 to keep the packet's; else 0
	overhead uint8  // bytes of the outer headers after Ethernet: 0, 20 or 40, with GUE 28 or 48
	options  uint8  // how many low bits of the outer source are the flow's, and checksummed; or translated
	// sum is, with an outer IPv4 header, its little-endian words summed up and folded, but for what the packet adds; with NAT the
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
	copy(e.header[0:], dst[:])
	copy(e.header[6:], src[:])
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
	if outerSrc.Is6() {
		e.overhead = ipv6Len
		copy(e.header[macsLen:], outerSrc.AsSlice())
		copy(e.header[macsLen+16:], outerDst.AsSlice())
		return e, nil
	}
	e.overhead = ipv4Len
	binary.BigEndian.PutUint16(e.header[macsLen:], typeIPv4)
	ip := e.header[ethLen:OuterIPv4]
	ip[0], ip[8], ip[9] = ipv4First>>24, hopLimit, protoIPv4Inner
	binary.BigEndian.PutUint16(ip[6:], ipv4DontFragment)
	copy(ip[12:], outerSrc.AsSlice())
	copy(ip[16:], outerDst.AsSlice())
	e.sumIPv4()
	return e, nil
}

// sumIPv4 sums up what an outer IPv4 header has in common for all packets.
func (e *Encap) sumIPv4() { e.sum = fold(addWords(0, e.header[ethLen:OuterIPv4])) }

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
	h = Header{MACs: [12]byte(e.header[:macsLen]), Port: e.port, Overhead: e.overhead, SourceBits: e.options}
	switch {
	case e.overhead >= ipv6Len:
		h.Addrs = [32]byte(e.header[macsLen:])
	case e.overhead > 0:
		copy(h.Addrs[:], e.header[ethLen+12:OuterIPv4])
		sum := uint32(ipv4First>>16 + ipv4DontFragment + hopLimit<<8)
		for i := 0; i < 8; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(h.Addrs[i:]))
		}
		sum = sum&0xffff + sum>>16
		h.Sum = uint16(sum&0xffff + sum>>16)
	}
	return h, true
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
		e.PutL2((*[ethLen]byte)(mem[newStart:]))
		if e.options != 0 {
			translate(mem[l3:], m, destination, addr6(e.header[macsLen:]), e.port, e.sum)
		}
		return newStart, ethLen + inner
	}
	at, payload, proto := l3, inner, InnerProto(m.Flags)
	if e.port != 0 {
		at, payload, proto = at-udpLen, payload+udpLen, ProtoUDP
		e.putUDP(mem[at:], payload, m.Hash)
	}
	if e.overhead < ipv6Len {
		newStart, newLen = at-OuterIPv4, OuterIPv4+payload
		f := (*[OuterIPv4]byte)(mem[newStart:])
		e.PutIPv4(f, uint16(payload), m.Class)
		if proto == protoIPv6Inner {
			CarryIPv6(f)
		}
	} else {
		newStart, newLen = at-OuterIPv6, OuterIPv6+payload
		e.PutIPv6((*[OuterIPv6]byte)(mem[newStart:]), uint16(payload), m.Class, proto)
	}
	if e.options != 0 {
		e.finish(mem[newStart:newStart+newLen], m.Hash)
	}
	return newStart, newLen
}

// What follows are the parts of Apply, for a loop over packets: small enough to be inlined there.

// Lengths of what frames begin with, in bytes.
const (
	macsLen   = 12 // the Ethernet addresses
	Ethernet  = ethLen
	OuterIPv4 = Ethernet + ipv4Len
	OuterIPv6 = Ethernet + ipv6Len
)

// L2 says whether Apply puts Ethernet addresses and does nothing else.
func (e *Encap) L2() bool { return e.overhead == 0 && e.options == 0 }

// InIPv4 says whether Apply puts an Ethernet and an outer IPv4 header and does nothing else.
func (e *Encap) InIPv4() bool { return e.overhead == ipv4Len && e.options == 0 }

// InIPv6 says whether Apply puts an Ethernet and an outer IPv6 header and does nothing else.
func (e *Encap) InIPv6() bool { return e.overhead == ipv6Len && e.options == 0 }

// InnerProto is the protocol number of the family of the packet inside, by its Meta.Flags.
func InnerProto(flags uint16) uint8 {
	if flags&V6 != 0 {
		return protoIPv6Inner
	}
	return protoIPv4Inner
}

// PutL2 writes the Ethernet addresses.
func (e *Encap) PutL2(f *[Ethernet]byte) { *(*[macsLen]byte)(f[:]) = [macsLen]byte(e.header[:]) }

// PutIPv4 writes the Ethernet and the outer IPv4 header. payload is the length of what follows it, in bytes, class that of the packet
// inside. If this is IPv6, and there is no UDP header, CarryIPv6 is to be called then.
func (e *Encap) PutIPv4(f *[OuterIPv4]byte, payload uint16, class uint8) {
	// In two parts, each copied at once; what the packet adds is not between them.
	*(*[16]byte)(f[:]) = [16]byte(e.header[:])
	*(*[16]byte)(f[OuterIPv4-16:]) = [16]byte(e.header[OuterIPv4-16:])
	length := bits.ReverseBytes16(ipv4Len + payload)
	sum := uint32(e.sum) + uint32(class)<<8 + uint32(length)
	sum += bits.RotateLeft32(sum, 16) // as in fold
	f[ethLen+1] = class
	binary.LittleEndian.PutUint16(f[ethLen+2:], length)
	binary.LittleEndian.PutUint16(f[ethLen+10:], uint16(^sum>>16))
}

// CarryIPv6 makes an outer IPv4 header one before an IPv6 packet.
func CarryIPv6(f *[OuterIPv4]byte) {
	f[ethLen+9] = protoIPv6Inner
	sum := uint32(^binary.LittleEndian.Uint16(f[ethLen+10:])) + (protoIPv6Inner-protoIPv4Inner)<<8
	sum += bits.RotateLeft32(sum, 16)
	binary.LittleEndian.PutUint16(f[ethLen+10:], uint16(^sum>>16))
}

// PutIPv6 writes the Ethernet and the outer IPv6 header. payload and class are as for PutIPv4, proto is what follows.
func (e *Encap) PutIPv6(f *[OuterIPv6]byte, payload uint16, class, proto uint8) {
	*(*[macsLen]byte)(f[:]) = [macsLen]byte(e.header[:])
	// In a little-endian word, since of big-endian ones with constants in them the compiler makes single bytes.
	binary.LittleEndian.PutUint64(f[macsLen:], plain6|uint64(class)>>4<<16|uint64(class)&0xf<<28|uint64(bits.ReverseBytes16(payload))<<48)
	binary.LittleEndian.PutUint16(f[macsLen+8:], uint16(proto)|hopLimit<<8)
	*(*[16]byte)(f[ethLen+8:]) = [16]byte(e.header[macsLen:])
	*(*[16]byte)(f[ethLen+24:]) = [16]byte(e.header[macsLen+16:])
}
