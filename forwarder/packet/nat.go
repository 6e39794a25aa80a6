package packet

import (
	"encoding/binary"
	"net/netip"
)

// NewNAT returns the header of a target whose packets are translated: their destination becomes backend, an address of the
// VIP's family, and their destination port port, or stays what it is if that is 0. Source address and port stay the
// client's. dst and src are the Ethernet addresses of the next hop and of the outgoing interface.
//
// Apply also lowers TTL or hop limit by one; the caller has answered packets that have only 1 left. In a SYN it lowers the
// maximum segment size that the client offers to mss, unless that is 0. Of an ICMP error the packet that it quotes is
// translated as well: RFC 5508. Checksums change by as much as what they cover (RFC 1624), so that a wrong one stays wrong;
// a UDP checksum of zero, which is none, stays zero.
func NewNAT(dst, src MAC, backend netip.Addr, port uint16, mss uint16) Encap {
	e := NewL2(dst, src)
	e.options, e.port, e.sum = translated, port, mss
	addr := backend.As16()
	copy(e.header[macsLen:], addr[:])
	return e
}

// Routed says whether Apply lowers TTL or hop limit, as it does for NAT.
func (e *Encap) Routed() bool { return e.overhead == 0 && e.options&translated != 0 }

// Untranslate makes the reply of a NAT backend one of the VIP: source address and, unless port is 0, source port become
// those of the VIP, with all that NewNAT tells of the other direction; mss is for SYN-ACKs. macs are the Ethernet
// addresses of the way to the client, destination first.
//
// An ICMP error about a packet to the backend becomes one about the packet to the VIP. Its own source becomes the VIP only
// if it is the backend; that of a router on the way stays.
//
// mem, start, m, newStart and newLen are as in Apply.
func Untranslate(mem []byte, start int, m *Meta, macs *[12]byte, vip Addr, port, mss uint16) (newStart, newLen int) {
	l3 := start + int(m.L3)
	newStart = l3 - ethLen
	copy(mem[newStart:newStart+12], macs[:])
	translate(mem[l3:], m, source, vip, port, mss)
	return newStart, ethLen + int(m.End) - int(m.L3)
}

// end is one of the two ends of a packet.
type end int

const (
	source      end = 0
	destination end = 1
)

// addr returns the place of the address of an end in an IP header.
func (e end) addr(ip []byte, v6 bool) []byte {
	if v6 {
		return ip[8+16*e : 24+16*e]
	}
	return ip[12+4*e : 16+4*e]
}

// translate gives one end of a packet another address and port. ip begins with the IP header of the packet of m, and may
// reach beyond the packet.
func translate(ip []byte, m *Meta, e end, to Addr, port, mss uint16) {
	v6 := m.Flags&V6 != 0
	t := ip[m.L4-m.L3:]
	var d uint64 // of the pseudo header
	whole := m.Flags&(ICMPError|Later) == 0
	if whole || m.Flags&Later != 0 || quotes(ip, t, e, v6) {
		d = putAddr(e.addr(ip, v6), to)
	}
	if v6 {
		ip[7]--
	} else {
		old := binary.BigEndian.Uint16(ip[8:]) // TTL and protocol
		new := old - 1<<8
		binary.BigEndian.PutUint16(ip[8:], new)
		addDifference(ip[10:12], d+difference(uint32(old), uint32(new)))
	}
	if !whole {
		if m.Flags&Later == 0 {
			translateQuoted(t[:min(len(t), int(m.End-m.L4))], v6, m.Proto, 1-e, to, port, d)
		}
		return
	}
	d += putPort(t[2*e:], port)
	addTransport(t, m.Proto, d)
	if mss != 0 && m.Proto == ProtoTCP && t[13]&uint8(SYN) != 0 {
		ClampMSS(t, mss)
	}
}

// putAddr writes an address over another one of its family, and returns the difference.
func putAddr(b []byte, a Addr) uint64 {
	if len(b) == 4 {
		old := binary.BigEndian.Uint32(b)
		binary.BigEndian.PutUint32(b, uint32(a.Lo))
		return difference(old, uint32(a.Lo))
	}
	old := addr6(b)
	binary.BigEndian.PutUint64(b[0:], a.Hi)
	binary.BigEndian.PutUint64(b[8:], a.Lo)
	return difference(uint32(old.Hi>>32), uint32(a.Hi>>32)) + difference(uint32(old.Hi), uint32(a.Hi)) +
		difference(uint32(old.Lo>>32), uint32(a.Lo>>32)) + difference(uint32(old.Lo), uint32(a.Lo))
}

// putPort writes a port, unless it is 0, and returns the difference.
func putPort(b []byte, port uint16) uint64 {
	if port == 0 {
		return 0
	}
	old := binary.BigEndian.Uint16(b)
	binary.BigEndian.PutUint16(b, port)
	return difference(uint32(old), uint32(port))
}

// addTransport changes the checksum in a TCP or UDP header by d, if the header reaches that far and has one, and returns
// the difference that this makes itself.
func addTransport(t []byte, proto uint8, d uint64) uint64 {
	if proto == ProtoTCP {
		if len(t) < 18 {
			return 0
		}
		return addDifference(t[16:18], d)
	}
	sum := t[6:8]
	if sum[0]|sum[1] == 0 {
		return 0
	}
	d = addDifference(sum, d)
	if sum[0]|sum[1] == 0 {
		sum[0], sum[1] = 0xff, 0xff // it is as good, and does not say that there is none (RFC 768)
	}
	return d
}
