package packet

import (
	"encoding/binary"
	"math/bits"
)

// parseIPv6 is Parse for a frame of Ethernet type IPv6. The caller has checked that frame holds at least the Ethernet
// header and at most 65,535 bytes.
func parseIPv6(frame []byte, key *Key, m *Meta) {
	const l4 = ethLen + ipv6Len
	if len(frame) < l4 {
		*m = Meta{Reason: Truncated}
		return
	}
	h := (*[ipv6Len]byte)(frame[ethLen:])
	if h[0]>>4 != 6 {
		*m = Meta{Reason: BadIPHeader}
		return
	}
	end := l4 + int(binary.BigEndian.Uint16(h[4:]))
	if end > len(frame) {
		*m = Meta{Reason: Truncated}
		return
	}
	s0, s1 := binary.LittleEndian.Uint64(h[8:]), binary.LittleEndian.Uint64(h[16:])
	d0, d1 := binary.LittleEndian.Uint64(h[24:]), binary.LittleEndian.Uint64(h[32:])
	src := Addr{bits.ReverseBytes64(s0), bits.ReverseBytes64(s1)}
	dst := Addr{bits.ReverseBytes64(d0), bits.ReverseBytes64(d1)}

	// Field by field: a composite literal would be built aside and copied.
	proto := h[6]
	m.Dst.Hi, m.Dst.Lo = dst.Hi, dst.Lo
	m.L3, m.L4, m.End = ethLen, l4, uint16(end)
	m.Proto, m.Class = proto, h[0]<<4|h[1]>>4
	// One comparison finds both ends of the source addresses: ::/64, where all that is special has its place, and
	// ff00::/8.
	if src.Hi-1 >= multicast6-1 || dst.Hi == 0 || src == dst {
		if r := odd6(src, dst); r == BadIPHeader {
			*m = Meta{Reason: r}
			return
		} else if r != None {
			m.stop(r, V6)
			return
		}
	}
	if proto != ProtoTCP && proto != ProtoUDP {
		if proto == ProtoICMPv6 {
			m.parseICMP6(frame[l4:end], key)
		} else {
			m.parseBehind6(frame, key)
		}
		return
	}
	t := frame[l4:end]
	if len(t) < udpLen {
		m.stop(BadTransport, V6)
		return
	}
	flags, ok := transport(t, proto)
	if !ok {
		m.stop(BadTransport, V6)
		return
	}
	ports := binary.LittleEndian.Uint32(t)
	m.SrcPort, m.DstPort = bits.ReverseBytes16(uint16(ports)), bits.ReverseBytes16(uint16(ports>>16))
	m.Flags, m.Reason = V6|flags, None
	m.Hash = hash6(key, s0, s1, d0, d1, uint64(ports), proto)
}

// multicast6 is the upper half of the first multicast address; there are only such ones from there on.
const multicast6 = 0xff << 56

// odd6 says what is wrong with the addresses of an IPv6 packet, if anything is.
func odd6(src, dst Addr) Reason {
	switch {
	case src.is4() || dst.is4():
		return BadIPHeader
	case src == dst:
		return Land
	case src == Addr{0, 1}:
		return SourceLoopback
	case src.Hi >= multicast6:
		return SourceMulticast
	case src == Addr{}:
		return SourceInvalid
	}
	return None
}

// Next headers that are followed to the transport header (IANA "IPv6 Extension Header Types"), and the one that says that
// there is none.
const (
	nextHopByHop = 0
	nextRouting  = 43
	nextFragment = 44
	nextNothing  = 59
	nextOptions  = 60 // destination options
)

// Limits of the extension headers of a packet, all together. RFC 8504, 5.3, lets a host set such; senders stay far below
// them.
const (
	maxHeaders6     = 8
	maxHeaderBytes6 = 256
)

// chain6 is where the extension headers of an IPv6 packet lead.
type chain6 struct {
	end      int   // where they end, counted from the IPv6 header: the transport header, or what could not be followed
	next     uint8 // what is there
	fragment int   // where the fragment header begins; 0: there is none
	offset   int   // what it says: place of its data in the datagram, in bytes
	more     bool  // and whether further fragments follow
	reason   Reason
}

// walk6 follows the extension headers of the IPv6 packet ip, which may be cut short; the caller has checked that it has an
// IPv6 header. Behind a fragment header with an offset nothing is followed: there is the middle of something. Whether the
// transport header is there, and what it is, is left to the caller.
func walk6(ip []byte) (c chain6) {
	c.end, c.next = ipv6Len, ip[6]
	for n := 0; ; n++ {
		switch {
		case c.next == nextOptions || c.next == nextRouting:
		case c.next == nextHopByHop && n == 0: // nowhere else (RFC 8200, 4.1)
		case c.next == nextFragment && c.fragment == 0:
		default:
			switch c.next {
			// These, ESP, authentication, mobility, HIP, shim6 and experiments are extension headers as well.
			case nextHopByHop, nextFragment, 50, 51, 135, 139, 140, 253, 254:
				c.reason = ExtensionHeader
			}
			return c
		}
		rest := ip[c.end:]
		length := fragmentLen6
		if c.next != nextFragment && len(rest) >= 2 {
			length = 8 + int(rest[1])*8
		}
		switch {
		case n == maxHeaders6 || c.end+length > ipv6Len+maxHeaderBytes6:
			c.reason = ExtensionHeader
			return c
		case len(rest) < length:
			c.reason = ExtensionHeader
			if c.more { // the first fragment of a datagram must hold all headers (RFC 7112)
				c.reason = TinyFragment
			}
			return c
		case c.next == nextRouting && (rest[2] == 0 || rest[3] != 0): // of type 0, or with segments left
			c.reason = RoutingHeader
			return c
		case c.next == nextFragment:
			word := binary.BigEndian.Uint16(rest[2:])
			c.fragment, c.offset, c.more = c.end, int(word&offsetMask6), word&moreFragments6 != 0
		}
		c.end, c.next = c.end+length, rest[0]
		if c.offset > 0 {
			return c
		}
	}
}

// parseBehind6 finishes Parse for an IPv6 packet whose first next header is no transport protocol that is forwarded.
// Everything but Hash, ports, Flags and Reason is set; L4 and Proto move to the transport header if there is one.
func (m *Meta) parseBehind6(frame []byte, key *Key) {
	c := walk6(frame[m.L3:m.End])
	m.L4, m.Proto = m.L3+uint16(c.end), c.next
	flags := V6
	if c.more {
		flags |= First
	}
	switch {
	case c.reason != None && c.reason != TinyFragment:
		m.stop(c.reason, V6)
	case (c.more || c.offset > 0) && !fits(c.offset, int(m.End-m.L3)-c.fragment-fragmentLen6, c.more):
		m.stop(BadFragment, V6)
	case c.reason != None:
		m.stop(c.reason, V6)
	case c.offset > 0:
		m.later6()
	case m.Proto == ProtoICMPv6 && c.more:
		m.stop(BadFragment, V6)
	case m.Proto == ProtoICMPv6:
		m.parseICMP6(frame[m.L4:m.End], key)
	case m.Proto != ProtoTCP && m.Proto != ProtoUDP:
		m.stop(Protocol, V6)
	default:
		m.flow(frame, key, flags)
	}
}
