package packet

import "bytes"

// NAT of ICMP errors (RFC 5508, 4.2; RFC 4884's extensions have a checksum of their own, which covers nothing that changes).
// An error goes against the stream that it is about: what is the destination of one is the source of the other.

// quotes says whether the packet that the ICMP error icmp is about has that address at its other end which the error, in
// the IP header ip, has at end e. It has not if a router on the way sends the error.
func quotes(ip, icmp []byte, e end, v6 bool) bool {
	return bytes.Equal(e.addr(ip, v6), (1-e).addr(icmp[icmpLen:], v6))
}

// translateQuoted gives end e of the packet that an ICMP error is about another address and port. icmp is the ICMP message,
// which quotes its packet at least to the ports; proto is that of the quoted packet. pseudo is the difference that
// translating the error's own addresses has made.
func translateQuoted(icmp []byte, v6 bool, proto uint8, e end, to Addr, port uint16, pseudo uint64) {
	quoted := icmp[icmpLen:]
	addrs := putAddr(e.addr(quoted, v6), to)
	all := addrs
	var t []byte
	if v6 {
		t = quoted[walk6(quoted).end:]
		all += pseudo
	} else {
		t = quoted[int(quoted[0]&0xf)*4:]
		all += addDifference(quoted[10:12], addrs)
	}
	ports := putPort(t[2*e:], port)
	all += ports + addTransport(t, proto, addrs+ports)
	addDifference(icmp[2:4], all)
}
