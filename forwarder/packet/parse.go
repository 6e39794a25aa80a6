package packet

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// Parse reads an Ethernet frame and sets every field of m. It is total: any bytes give a verdict. frame is only read,
// and not beyond its length. Frames longer than 65,535 bytes, which no ring delivers, count as Truncated, since offsets
// have 16 bits.
//
// Checked are: Ethernet type, IP version and lengths (RFC 791, RFC 8200), the IPv4 header checksum, that the source is an
// address that a host can have (RFC 1122, 3.2.1.3; RFC 4291), and that the TCP data offset (RFC 9293) or UDP length (RFC
// 768) lies within the packet. One 802.1Q tag, IPv4 options and IPv6 extension headers are accepted. IPv6 packets with an
// IPv4-mapped address are BadIPHeader, as in Linux (net/ipv6/ip6_input.c): they would pass for IPv4 ones.
//
// A fragment goes on with First or Later among its Flags, see ReadFragment; an IPv6 fragment that is all of its datagram
// (RFC 6946) is a packet like any other.
func Parse(frame []byte, key *Key, m *Meta) {
	if len(frame) < ethLen || len(frame) > math.MaxUint16 {
		*m = Meta{Reason: Truncated}
		return
	}
	if etherType := binary.BigEndian.Uint16(frame[12:]); etherType != typeIPv4 {
		if etherType != typeIPv6 {
			parseTagged(frame, key, m)
			return
		}
		parseIPv6(frame, key, m)
		return
	}

	// IPv4 is written out here: as a function of its own, the call costs a tenth of the whole.
	if len(frame) < ethLen+ipv4Len {
		*m = Meta{Reason: Truncated}
		return
	}
	h := (*[ipv4Len]byte)(frame[ethLen:])
	l4 := ethLen + ipv4Len
	if h[0] != 0x45 { // not IPv4 without options
		l4 = ethLen + int(h[0]&0xf)*4
		if h[0]>>4 != 4 {
			*m = Meta{Reason: BadIPHeader}
			return
		}
		if l4 < ethLen+ipv4Len {
			*m = Meta{Reason: BadIHL}
			return
		}
	}
	end := ethLen + int(binary.BigEndian.Uint16(h[2:]))
	if end < l4 {
		*m = Meta{Reason: BadLength}
		return
	}
	if end > len(frame) {
		*m = Meta{Reason: Truncated}
		return
	}
	// The header in three loads, for the checksum and the addresses.
	w0, w1 := binary.LittleEndian.Uint64(h[0:]), binary.LittleEndian.Uint64(h[8:])
	w2 := binary.LittleEndian.Uint32(h[16:])
	sum := sum20(w0, w1, w2)
	if l4 > ethLen+ipv4Len {
		sum = addWords(sum, frame[ethLen+ipv4Len:l4])
	}
	if !sumIsZero(sum) {
		*m = Meta{Reason: BadChecksum}
		return
	}

	// Field by field: a composite literal would be built aside and copied.
	proto := h[9]
	m.Dst.Hi, m.Dst.Lo = 0, mapped4|uint64(bits.ReverseBytes32(w2))
	m.L3, m.L4, m.End = ethLen, uint16(l4), uint16(end)
	m.Proto, m.Class = proto, h[1]
	// One comparison finds both ends of the source addresses, 0/8 and what is not below 224/4.
	if net := h[12]; net-1 >= multicast4-1 || net == loopback4 || uint32(w1>>32) == w2 {
		m.stop(odd4(net, uint32(w1>>32) == w2), 0)
		return
	}
	// More-fragments flag and fragment offset: a whole packet has neither. The flags "don't fragment" and "reserved"
	// say nothing.
	if binary.BigEndian.Uint16(h[6:])&(moreFragments4|offsetMask4) != 0 {
		m.parseFragment4(frame, key)
		return
	}
	if proto != ProtoTCP && proto != ProtoUDP {
		if proto == ProtoICMP {
			m.parseICMP(frame[l4:end], key)
		} else {
			m.stop(Protocol, 0)
		}
		return
	}
	t := frame[l4:end]
	if len(t) < udpLen {
		m.stop(BadTransport, 0)
		return
	}
	flags, ok := transport(t, proto)
	if !ok {
		m.stop(BadTransport, 0)
		return
	}
	ports := binary.LittleEndian.Uint32(t)
	m.SrcPort, m.DstPort = bits.ReverseBytes16(uint16(ports)), bits.ReverseBytes16(uint16(ports>>16))
	m.Flags, m.Reason = flags, None
	m.Hash = hash4(key, w1>>32|uint64(w2)<<32, uint64(ports), proto)
}

// First bytes of IPv4 source addresses that no packet on a network has (IANA "IPv4 Special-Purpose Address Registry").
const (
	loopback4  = 127
	multicast4 = 224 // and above
	reserved4  = 240 // and above, with the broadcast address
)

// odd4 says what is wrong with the source address of an IPv4 packet, which begins with net, and may be the destination.
func odd4(net uint8, land bool) Reason {
	switch {
	case land:
		return Land
	case net == loopback4:
		return SourceLoopback
	case net >= multicast4 && net < reserved4:
		return SourceMulticast
	}
	return SourceInvalid
}

// Source returns the source address in the IP header of a packet. frame was parsed into m, which has an L3.
func Source(frame []byte, m *Meta) Addr {
	if m.Flags&V6 == 0 {
		return addr4((*[ipv4Len]byte)(frame[m.L3:])[12:])
	}
	return addr6((*[ipv6Len]byte)(frame[m.L3:])[8:])
}

// TTL returns the TTL or hop limit in the IP header of a packet. frame was parsed into m, which has an L3.
func TTL(frame []byte, m *Meta) uint8 {
	if m.Flags&V6 != 0 {
		return frame[m.L3+7]
	}
	return frame[m.L3+8]
}

// addr4 returns the IPv4 address at the start of b.
func addr4(b []byte) Addr { return Addr{0, mapped4 | uint64(binary.BigEndian.Uint32(b))} }

// addr6 returns the IPv6 address at the start of b.
func addr6(b []byte) Addr {
	_ = b[15]
	return Addr{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}
