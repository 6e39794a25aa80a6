package packet

import "encoding/binary"

// flow finishes the Meta of a TCP or UDP packet where Parse does not do it in passing: of the first of several fragments,
// and behind IPv6 extension headers. flags are V6 and First as far as they hold; Hash, ports and Reason are not yet set.
func (m *Meta) flow(frame []byte, key *Key, flags uint16) {
	t := frame[m.L4:m.End]
	if flags&First != 0 && tiny(t, m.Proto) {
		m.stop(TinyFragment, flags&V6)
		return
	}
	if len(t) < udpLen {
		m.stop(BadTransport, flags&V6)
		return
	}
	bits, ok := transport(t, m.Proto)
	if flags&First != 0 && m.Proto == ProtoUDP {
		ok = binary.BigEndian.Uint16(t[4:]) >= udpLen // it is the length of the whole datagram
	}
	if !ok {
		m.stop(BadTransport, flags&V6)
		return
	}
	m.SrcPort, m.DstPort = binary.BigEndian.Uint16(t[0:]), binary.BigEndian.Uint16(t[2:])
	m.Flags, m.Reason = flags|bits, None
	m.Hash = FlowHash(key, Source(frame, m), m.Dst, m.SrcPort, m.DstPort, m.Proto)
}

// transport reads the TCP or UDP header at the start of t, the rest of the IP packet, which is at least udpLen bytes
// long. It returns the flags of TCP as in Meta.Flags, and whether the header, and the length that UDP tells, lie within
// the packet. (A UDP length of zero would be a jumbogram, RFC 2675, which no ring delivers.)
func transport(t []byte, proto uint8) (flags uint16, ok bool) {
	if proto == ProtoUDP {
		length := int(binary.BigEndian.Uint16(t[4:]))
		return 0, length >= udpLen && length <= len(t)
	}
	if len(t) < tcpLen {
		return 0, false
	}
	all := uint16(t[13])
	ack := all >> 3 & SYN // the ACK flag, moved to the place of SYN
	offset := int(t[12]>>4) * 4
	return all & (FIN | SYN | RST) &^ ack, offset >= tcpLen && offset <= len(t)
}
