package packet

import "encoding/binary"

// transport reads the TCP or UDP header at the start of t, the rest of the IP packet, which is at least udpLen bytes
// long. It returns the flags of TCP as in Meta.Flags, and whether the header, and the length that UDP tells, lie within
// the packet. (A UDP length of zero would be a jumbogram, RFC 2675, which needs an extension header.)
func transport(t []byte, proto uint8) (flags uint8, ok bool) {
	if proto == ProtoUDP {
		length := int(binary.BigEndian.Uint16(t[4:]))
		return 0, length >= udpLen && length <= len(t)
	}
	if len(t) < tcpLen {
		return 0, false
	}
	ack := t[13] >> 3 & SYN // the ACK flag, moved to the place of SYN
	offset := int(t[12]>>4) * 4
	return t[13] & (FIN | SYN | RST) &^ ack, offset >= tcpLen && offset <= len(t)
}
