package packet

import (
	"encoding/binary"
	"math/bits"
)

// ICMP message types (IANA "ICMP Type Numbers", "ICMPv6 type numbers") that are acted upon.
const (
	ICMPUnreachable   = 3 // fragmentation needed is among its codes
	icmpEcho          = 8
	icmpTimeExceeded  = 11
	icmpParameter     = 12
	ICMP6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6TimeExceeded = 3
	ICMP6Parameter    = 4
	icmp6Echo         = 128

	icmpLen = 8 // of the header of all of these
)

// parseICMP reads the ICMP message t that came to m.Dst, an IPv4 address. An error belongs to the flow of the packet that
// it quotes, which is one that a backend sent in the name of the VIP: the flow's own packets go the other way, so source
// and destination change places. Of the quoted packet only the IP header and eight bytes are certain (RFC 792). The ICMP
// checksum is not verified, like those of TCP and UDP.
func (m *Meta) parseICMP(t []byte, key *Key) {
	if len(t) < icmpLen {
		m.stop(BadICMP, 0)
		return
	}
	switch t[0] {
	case icmpEcho:
		m.stop(None, Echo)
		return
	case ICMPUnreachable, icmpTimeExceeded, icmpParameter:
	default:
		m.stop(ICMP, 0)
		return
	}
	t = t[icmpLen:]
	if len(t) < ipv4Len {
		m.stop(BadICMP, 0)
		return
	}
	h := (*[ipv4Len]byte)(t)
	length := int(h[0]&0xf) * 4
	// Of a fragment only the first has ports.
	if h[0]>>4 != 4 || length < ipv4Len || len(t) < length+udpLen || binary.BigEndian.Uint16(h[6:])&0x1fff != 0 {
		m.stop(BadICMP, 0)
		return
	}
	vip, client := binary.LittleEndian.Uint32(h[12:]), binary.LittleEndian.Uint32(h[16:])
	if uint64(bits.ReverseBytes32(vip)) != m.Dst.Lo&0xffffffff {
		m.stop(BadICMP, 0)
		return
	}
	if m.quoted(t[length:], h[9], 0) {
		m.Hash = hash4(key, uint64(client)|uint64(vip)<<32, m.ports(), m.Proto)
	}
}

// parseICMP6 is parseICMP for ICMPv6 (RFC 4443).
func (m *Meta) parseICMP6(t []byte, key *Key) {
	if len(t) < icmpLen {
		m.stop(BadICMP, V6)
		return
	}
	switch t[0] {
	case icmp6Echo:
		m.stop(None, V6|Echo)
		return
	case ICMP6Unreachable, icmp6TooBig, icmp6TimeExceeded, ICMP6Parameter:
	default:
		m.stop(ICMP, V6)
		return
	}
	t = t[icmpLen:]
	if len(t) < ipv6Len || t[0]>>4 != 6 {
		m.stop(BadICMP, V6)
		return
	}
	h := (*[ipv6Len]byte)(t)
	v0, v1 := binary.LittleEndian.Uint64(h[8:]), binary.LittleEndian.Uint64(h[16:])
	c0, c1 := binary.LittleEndian.Uint64(h[24:]), binary.LittleEndian.Uint64(h[32:])
	if bits.ReverseBytes64(v0) != m.Dst.Hi || bits.ReverseBytes64(v1) != m.Dst.Lo {
		m.stop(BadICMP, V6)
		return
	}
	// As far as it is quoted. Of a fragment only the first has ports.
	c := walk6(t)
	if c.reason != None || c.offset > 0 || len(t) < c.end+udpLen {
		m.stop(BadICMP, V6)
		return
	}
	if m.quoted(t[c.end:], c.next, V6) {
		m.Hash = hash6(key, c0, c1, v0, v1, m.ports(), m.Proto)
	}
}

// quoted makes m that of a packet of the flow whose transport header, in the other direction, begins at t. It reports
// false, and sets the reason, if that is neither TCP nor UDP.
func (m *Meta) quoted(t []byte, proto uint8, family uint16) bool {
	if proto != ProtoTCP && proto != ProtoUDP {
		m.stop(BadICMP, family)
		return false
	}
	m.Proto, m.Flags, m.Reason = proto, family|ICMPError, None
	m.SrcPort, m.DstPort = binary.BigEndian.Uint16(t[2:]), binary.BigEndian.Uint16(t[0:])
	return true
}

// QuotedDst returns the destination of the packet that an ICMP error is about: the peer of m.Dst in the flow, and the source
// of the flow's packets to it. frame was parsed into m, with the Reason None and ICMPError among the Flags.
func QuotedDst(frame []byte, m *Meta) Addr {
	quoted := frame[m.L4+icmpLen : m.End]
	if m.Flags&V6 != 0 {
		return addr6(quoted[24:])
	}
	return addr4(quoted[16:])
}

// ports returns the ports as they are in a packet of the flow, loaded little-endian.
func (m *Meta) ports() uint64 {
	return uint64(bits.ReverseBytes16(m.SrcPort)) | uint64(bits.ReverseBytes16(m.DstPort))<<16
}

// EchoReply turns an echo request into its reply, in place, addressed to whoever the frame came from. frame begins with
// the Ethernet header and was parsed into m, whose Flags have Echo. It returns the length of the new frame, which is
// without the padding that the request came with. Checksums are changed by as much as their data (RFC 1624): a request
// with a wrong one gets a reply with a wrong one.
func EchoReply(frame []byte, m *Meta) (length int) {
	var dst MAC
	copy(dst[:], frame[0:6])
	copy(frame[0:6], frame[6:12])
	copy(frame[6:12], dst[:])
	ip, icmp := frame[m.L3:m.L4], frame[m.L4:m.End]
	sum := icmp[2:4]
	if m.Flags&V6 == 0 {
		swap(ip[12:16], ip[16:20])
		addDifference(ip[10:12], difference(uint32(ip[8])<<8, hopLimit<<8))
		ip[8] = hopLimit
		addDifference(sum, difference(icmpEcho<<8, 0))
		icmp[0] = 0
		return int(m.End)
	}
	swap(ip[8:24], ip[24:40])
	ip[7] = hopLimit // not in any checksum
	addDifference(sum, difference(icmp6Echo<<8, (icmp6Echo+1)<<8))
	icmp[0] = icmp6Echo + 1
	return int(m.End)
}

// swap exchanges the bytes of a and b, which are equally long, at most 16 bytes.
func swap(a, b []byte) {
	var c [16]byte
	n := copy(c[:], a)
	copy(a, b)
	copy(b, c[:n])
}
