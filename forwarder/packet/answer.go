package packet

import "encoding/binary"

// What a node answers by itself is made of the frame that provokes it, in place: back to the Ethernet address that it came
// from and with its 802.1Q tag, from the packet's destination to its source, with TTL 64. An answer is one packet, never a
// fragment, so don't-fragment is set and the identification is zero (RFC 6864).

const (
	// maxError4 and maxError6 are the lengths of IP packets that ICMP errors do not exceed: RFC 1812, 4.3.2.3, and RFC
	// 4443, 2.4 (c).
	maxError4 = 576
	maxError6 = 1280
	minMTU4   = 68   // RFC 791
	minMTU6   = 1280 // RFC 8200

	internetControl = 6 << 5 // the precedence of ICMP errors over IPv4 (RFC 1812, 4.3.2.5), now DSCP CS6

	codePort4          = 3 // port unreachable (RFC 792)
	codeFragmentation4 = 4 // fragmentation needed (RFC 1191)
	codePort6          = 4 // port unreachable (RFC 4443)

	tcpACK = 1 << 4 // beside FIN, SYN and RST in the TCP header
)

// Answerable says whether a packet may be answered by an ICMP error or a TCP reset. ICMP errors, resets and further
// fragments may not, nor what came to more than one host (RFC 1122, 3.2.2; RFC 4443, 2.4 (e)). frame was parsed into m;
// Parse has already refused sources that are no single host.
func Answerable(frame []byte, m *Meta) bool {
	return m.Flags&(ICMPError|RST|Later) == 0 && frame[0]&1 == 0
}

// PacketTooBig makes of a packet the ICMP error that says so: "fragmentation needed" (RFC 1191) or "packet too big" (RFC
// 4443). mtu is what the error tells, the length of the longest IP packet that would have gone on; the least that the IP
// version knows of, 68 or 1280, is told instead of less.
//
// mem[start:] begins with the frame that m was parsed from, with 48 bytes before it; Answerable has allowed the answer. The
// new frame begins at newStart and is newLen bytes long. It quotes as much of the packet as may be (RFC 1812, RFC 4443), at
// most 1,232 bytes.
func PacketTooBig(mem []byte, start int, m *Meta, mtu int) (newStart, newLen int) {
	if m.Flags&V6 != 0 {
		return icmpError(mem, start, m, icmp6TooBig, 0, uint32(max(mtu, minMTU6)))
	}
	return icmpError(mem, start, m, icmpUnreachable, codeFragmentation4, uint32(min(max(mtu, minMTU4), 0xffff)))
}

// TimeExceeded makes of a packet the ICMP error that its TTL or hop limit was used up. For the rest see PacketTooBig.
func TimeExceeded(mem []byte, start int, m *Meta) (newStart, newLen int) {
	if m.Flags&V6 != 0 {
		return icmpError(mem, start, m, icmp6TimeExceeded, 0, 0)
	}
	return icmpError(mem, start, m, icmpTimeExceeded, 0, 0)
}

// Unreachable makes of a packet the ICMP error that nobody listens on its port. For the rest see PacketTooBig.
func Unreachable(mem []byte, start int, m *Meta) (newStart, newLen int) {
	if m.Flags&V6 != 0 {
		return icmpError(mem, start, m, icmp6Unreachable, codePort6, 0)
	}
	return icmpError(mem, start, m, icmpUnreachable, codePort4, 0)
}

// icmpError puts an ICMP error before the packet that it is about, which stays where it is. word is the second one of the
// ICMP header.
func icmpError(mem []byte, start int, m *Meta, kind, code uint8, word uint32) (newStart, newLen int) {
	l3, quote := start+int(m.L3), int(m.End-m.L3)
	headers, proto, class := ipv4Len, uint8(ProtoICMP), uint8(internetControl)
	if m.Flags&V6 != 0 {
		headers, proto, class = ipv6Len, ProtoICMPv6, 0
		quote = min(quote, maxError6-ipv6Len-icmpLen)
	} else {
		quote = min(quote, maxError4-ipv4Len-icmpLen)
	}
	client := Source(mem[start:], m)
	ip := mem[l3-icmpLen-headers : l3+quote]
	newStart = l3 - icmpLen - headers - int(m.L3)
	copy(mem[newStart:], mem[start:l3]) // Ethernet; the new IP header begins within the old one
	swap(mem[newStart:newStart+6], mem[newStart+6:newStart+12])
	putHeader(ip, m, class, proto, client)

	icmp := ip[headers:]
	icmp[0], icmp[1] = kind, code
	binary.BigEndian.PutUint16(icmp[2:], 0)
	binary.BigEndian.PutUint32(icmp[4:], word)
	if m.Flags&V6 != 0 {
		putChecksum(icmp[2:4], transportSum(ip[8:40], proto, icmp))
	} else {
		putChecksum(icmp[2:4], sumBytes(0, icmp))
	}
	return newStart, int(m.L3) + len(ip)
}

// Reset makes of a TCP segment the reset that refuses it (RFC 9293, 3.10.7.1). mem[start:] begins with the frame that m was
// parsed from; Answerable has allowed the answer. The new frame begins at newStart, without headroom, and is newLen bytes
// long.
func Reset(mem []byte, start int, m *Meta) (newStart, newLen int) {
	l3, t := start+int(m.L3), mem[start+int(m.L4):]
	length := uint32(m.End-m.L4) - uint32(t[12]>>4)*4
	seq, ack, flags := uint32(0), binary.BigEndian.Uint32(t[4:])+length, uint8(RST|tcpACK)
	if t[13]&tcpACK != 0 {
		seq, ack, flags = binary.BigEndian.Uint32(t[8:]), 0, uint8(RST)
	} else {
		ack += uint32(t[13]&uint8(FIN)) + uint32(t[13]&uint8(SYN))>>1 // both take a number
	}
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
	binary.BigEndian.PutUint64(tcp[12:], tcpLen/4<<60|uint64(flags)<<48)
	putChecksum(tcp[16:18], transportSum(addrs, ProtoTCP, tcp[:]))
	return start, int(m.L3) + len(ip)
}

// putHeader writes the IP header of an answer to the packet of m into ip, which is as long as the answer.
func putHeader(ip []byte, m *Meta, class, proto uint8, client Addr) {
	if m.Flags&V6 != 0 {
		h := (*[ipv6Len]byte)(ip)
		binary.BigEndian.PutUint32(h[0:], ipv6First|uint32(class)<<20)
		binary.BigEndian.PutUint32(h[4:], uint32(len(ip)-ipv6Len)<<16|uint32(proto)<<8|hopLimit)
		putAddr(h[8:24], m.Dst)
		putAddr(h[24:40], client)
		return
	}
	h := (*[ipv4Len]byte)(ip)
	binary.BigEndian.PutUint64(h[0:], (ipv4First|uint64(class)<<16|uint64(len(ip)))<<32|ipv4DontFragment)
	binary.BigEndian.PutUint32(h[8:], hopLimit<<24|uint32(proto)<<16)
	putAddr(h[12:16], m.Dst)
	putAddr(h[16:20], client)
	putChecksum(h[10:12], sumBytes(0, h[:]))
}
