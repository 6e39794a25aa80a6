package packet

import (
	"encoding/binary"
	"math/bits"
)

// parseIPv6 is Parse for a frame of Ethernet type IPv6. The caller has checked that frame holds at least the Ethernet
// header and at most 65,535 bytes.
func parseIPv6(frame []byte, key *Key, m *Meta) {
	const l4 = ethLen + ipv6Len
	if len(frame) < l4 {
		*m = Meta{Reason: Truncated}
		return
	}
	h := (*[ipv6Len]byte)(frame[ethLen:])
	s0, s1 := binary.LittleEndian.Uint64(h[8:]), binary.LittleEndian.Uint64(h[16:])
	d0, d1 := binary.LittleEndian.Uint64(h[24:]), binary.LittleEndian.Uint64(h[32:])
	src := Addr{bits.ReverseBytes64(s0), bits.ReverseBytes64(s1)}
	dst := Addr{bits.ReverseBytes64(d0), bits.ReverseBytes64(d1)}
	if h[0]>>4 != 6 || src.is4() || dst.is4() {
		*m = Meta{Reason: BadIPHeader}
		return
	}
	end := l4 + int(binary.BigEndian.Uint16(h[4:]))
	if end > len(frame) {
		*m = Meta{Reason: Truncated}
		return
	}

	// Field by field: a composite literal would be built aside and copied.
	proto := h[6]
	m.Dst.Hi, m.Dst.Lo = dst.Hi, dst.Lo
	m.L3, m.L4, m.End = ethLen, l4, uint16(end)
	m.Proto, m.Class = proto, h[0]<<4|h[1]>>4
	if proto != ProtoTCP && proto != ProtoUDP {
		if proto == ProtoICMPv6 {
			m.parseICMP6(frame[l4:end], key)
			return
		}
		m.stop(notTransport(proto), V6)
		return
	}
	t := frame[l4:end]
	if len(t) < udpLen {
		m.stop(BadTransport, V6)
		return
	}
	flags, ok := transport(t, proto)
	if !ok {
		m.stop(BadTransport, V6)
		return
	}
	ports := binary.LittleEndian.Uint32(t)
	m.SrcPort, m.DstPort = bits.ReverseBytes16(uint16(ports)), bits.ReverseBytes16(uint16(ports>>16))
	m.Flags, m.Reason = V6|flags, None
	m.Hash = hash6(key, s0, s1, d0, d1, uint64(ports), proto)
}

// notTransport says why a packet whose first next header is neither TCP nor UDP is not forwarded.
func notTransport(next uint8) Reason {
	switch next {
	case 44: // fragment header
		return Fragment
	// IANA "IPv6 Extension Header Types": hop-by-hop options, routing, ESP, authentication, destination options,
	// mobility, HIP, shim6, experiments.
	case 0, 43, 50, 51, 60, 135, 139, 140, 253, 254:
		return ExtensionHeader
	default:
		return Protocol
	}
}
