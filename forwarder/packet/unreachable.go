package packet

import (
	"encoding/binary"
	"net/netip"
)

// codeNextHeader6 is the code of an ICMPv6 parameter problem that says what "protocol unreachable" does for IPv4.
const codeNextHeader6 = 1

// Protocol numbers of outer headers' payload (IANA "Protocol Numbers").
const (
	ProtoIPv4 = 4
	ProtoIPv6 = 41
)

// TellsUnreachable says whether an ICMP error, an ICMPv6 one if v6 is set, tells that its packet cannot reach its destination,
// or is refused there. One that is too big, or has come too far, is not such.
func TellsUnreachable(icmp []byte, v6 bool) bool {
	if len(icmp) < icmpLen {
		return false
	}
	if v6 {
		return icmp[0] == ICMP6Unreachable || icmp[0] == ICMP6Parameter && icmp[1] == codeNextHeader6
	}
	return icmp[0] == ICMPUnreachable && icmp[1] != codeFragmentation4
}

// Refused is the packet that an ICMP error is about, as far as it tells where a tunnel ends.
type Refused struct {
	Dst   netip.Addr
	Proto uint8  // what is in it: 4, 41, or 17
	Port  uint16 // host order: of UDP, the destination's; else 0
}

// ReadRefused reads an ICMP message, or an ICMPv6 one if v6 is set, that came to the node itself. ok says that it tells of an
// encapsulated packet, IP in IP or in UDP, that it is unreachable. Of what it quotes the IP header and eight bytes are certain.
func ReadRefused(icmp []byte, v6 bool) (r Refused, ok bool) {
	if !TellsUnreachable(icmp, v6) {
		return r, false
	}
	q := icmp[icmpLen:]
	var payload []byte
	if v6 { // a node writes no extension headers
		if len(q) < ipv6Len || q[0]>>4 != 6 {
			return r, false
		}
		r.Dst, r.Proto, payload = netip.AddrFrom16([16]byte(q[24:])), q[6], q[ipv6Len:]
	} else {
		if len(q) < ipv4Len || q[0]>>4 != 4 {
			return r, false
		}
		length := int(q[0]&0xf) * 4
		if length < ipv4Len || len(q) < length || binary.BigEndian.Uint16(q[6:])&0x1fff != 0 {
			return r, false
		}
		r.Dst, r.Proto, payload = netip.AddrFrom4([4]byte(q[16:])), q[9], q[length:]
	}
	switch r.Proto {
	case ProtoIPv4, ProtoIPv6:
		return r, true
	case ProtoUDP:
		if len(payload) < udpLen {
			return r, false
		}
		r.Port = binary.BigEndian.Uint16(payload[2:])
		return r, true
	}
	return r, false
}
