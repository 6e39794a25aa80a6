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

// Quotable says whether an ICMP error about a packet can quote what its receiver needs, the IP header and eight bytes, without being
// longer than the packet: whoever sends in another's name gets nothing amplified.
func Quotable(m *Meta) bool {
	return int(m.End-m.L3) >= errorHeaders(m)+int(m.L4-m.L3)+8
}

// errorHeaders is what an ICMP error has before what it quotes, in bytes.
func errorHeaders(m *Meta) int {
	if m.Flags&V6 != 0 {
		return ipv6Len + icmpLen
	}
	return ipv4Len + icmpLen
}

// PacketTooBig makes of a packet the ICMP error that says so: "fragmentation needed" (RFC 1191) or "packet too big" (RFC
// 4443). mtu is what the error tells, the length of the longest IP packet that would have gone on; the least that the IP
// version knows of, 68 or 1280, is told instead of less.
//
// mem[start:] begins with the frame that m was parsed from, with 48 bytes before it; Answerable and Quotable have allowed the answer.
// The new frame begins at newStart and is newLen bytes long, never longer than that of the packet. It quotes as much of the packet as
// may be (RFC 1812, RFC 4443), at most 1,232 bytes.
func PacketTooBig(mem []byte, start int, m *Meta, mtu int) (newStart, newLen int) {
	if m.Flags&V6 != 0 {
		return icmpError(mem, start, m, icmp6TooBig, 0, uint32(max(mtu, minMTU6)))
	}
	return icmpError(mem, start, m, ICMPUnreachable, codeFragmentation4, uint32(min(max(mtu, minMTU4), 0xffff)))
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
		return icmpError(mem, start, m, ICMP6Unreachable, codePort6, 0)
	}
	return icmpError(mem, start, m, ICMPUnreachable, codePort4, 0)
}

// icmpError puts an ICMP error before the packet that it is about, which stays where it is. word is the second one of the
// ICMP header.
func icmpError(mem []byte, start int, m *Meta, kind, code uint8, word uint32) (newStart, newLen int) {
	l3, quote := start+int(m.L3), int(m.End-m.L3)-errorHeaders(m)
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
	t := mem[start+int(m.L4):]
	length := uint32(m.End-m.L4) - uint32(t[12]>>4)*4
	seq, ack, flags := uint32(0), binary.BigEndian.Uint32(t[4:])+length, uint8(RST|tcpACK)
	if t[13]&tcpACK != 0 {
		seq, ack, flags = binary.BigEndian.Uint32(t[8:]), 0, uint8(RST)
	} else {
		ack += uint32(t[13]&uint8(FIN)) + uint32(t[13]&uint8(SYN))>>1 // both take a number
	}
	return answerBare(mem, start, m, seq, ack, flags)
}

// answerBare makes of a TCP segment the answer with these numbers and flags, a window of 0 and nothing else.
func answerBare(mem []byte, start int, m *Meta, seq, ack uint32, flags uint8) (newStart, newLen int) {
	client := Source(mem[start:], m)
	swap(mem[start:start+6], mem[start+6:start+12])
	l3, headers := start+int(m.L3), ipv4Len
	if m.Flags&V6 != 0 {
		headers = ipv6Len
	}
	ip := mem[l3 : l3+headers+tcpLen]
	putHeader(ip, m, 0, ProtoTCP, client)

	// The sum is taken from the numbers before they are written: reading them again takes longer.
	ports, control := uint32(m.DstPort)<<16|uint32(m.SrcPort), uint64(tcpLen/4)<<12|uint64(flags)
	sum := pseudoSum(client, m.Dst) + ProtoTCP + tcpLen + uint64(ports) + uint64(seq) + uint64(ack) + control
	tcp := (*[tcpLen]byte)(ip[headers:])
	binary.BigEndian.PutUint32(tcp[0:], ports)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	binary.BigEndian.PutUint64(tcp[12:], control<<48|uint64(^fold(sum))<<16)
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
	first, last := ipv4First|uint64(class)<<16|uint64(len(ip)), hopLimit<<24|uint32(proto)<<16
	src, dst := m.Dst.Lo&0xffffffff, client.Lo&0xffffffff
	sum := first + ipv4DontFragment + uint64(last) + src + dst
	binary.BigEndian.PutUint64(h[0:], first<<32|ipv4DontFragment)
	binary.BigEndian.PutUint32(h[8:], last|uint32(^fold(sum)))
	binary.BigEndian.PutUint64(h[12:], src<<32|dst)
}

// pseudoSum returns the sum of two addresses as in a pseudo header, in big-endian words, with room for many more. What
// IPv4-mapped addresses have beside the IPv4 address is zero modulo 65535.
func pseudoSum(a, b Addr) uint64 {
	return a.Hi>>32 + a.Hi&0xffffffff + a.Lo>>32 + a.Lo&0xffffffff + b.Hi>>32 + b.Hi&0xffffffff + b.Lo>>32 + b.Lo&0xffffffff
}
