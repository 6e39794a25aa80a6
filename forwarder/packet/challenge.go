package packet

import "encoding/binary"

// SYNChallenge makes of a SYN the SYN-ACK with these numbers, without options or data and with a window of 0: one that the
// client is to refuse. mem[start:] begins with the frame that m was parsed from; Answerable has allowed the answer. The new frame
// begins at newStart, without headroom, and is newLen bytes long, never longer than the SYN without its padding.
func SYNChallenge(mem []byte, start int, m *Meta, seq, ack uint32) (newStart, newLen int) {
	l3 := start + int(m.L3)
	client := Source(mem[start:], m)
	swap(mem[start:start+6], mem[start+6:start+12])

	headers, addrs := ipv4Len, mem[l3+12:l3+20]
	if m.Flags&V6 != 0 {
		headers, addrs = ipv6Len, mem[l3+8:l3+40]
	}
	ip := mem[l3 : l3+headers+tcpLen]
	putHeader(ip, m, 0, ProtoTCP, client)
	tcp := (*[tcpLen]byte)(ip[headers:])
	binary.BigEndian.PutUint16(tcp[0:], m.DstPort)
	binary.BigEndian.PutUint16(tcp[2:], m.SrcPort)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	binary.BigEndian.PutUint64(tcp[12:], tcpLen/4<<60|uint64(uint8(SYN)|tcpACK)<<48)
	putChecksum(tcp[16:18], transportSum(addrs, ProtoTCP, tcp[:]))
	return start, int(m.L3) + len(ip)
}

// SYNSeq returns the sequence number of a SYN. frame was parsed into m, which has SYN among its Flags.
func SYNSeq(frame []byte, m *Meta) uint32 { return binary.BigEndian.Uint32(frame[m.L4+4:]) }

// RSTSeq returns the sequence number of a reset: of one that answers an acknowledgement, the number that was acknowledged. frame
// was parsed into m, which has RST among its Flags.
func RSTSeq(frame []byte, m *Meta) uint32 { return binary.BigEndian.Uint32(frame[m.L4+4:]) }
