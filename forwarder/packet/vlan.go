package packet

import "encoding/binary"

const (
	vlanLen  = 4      // of an 802.1Q tag
	typeVLAN = 0x8100 // of a frame with such a tag (IEEE 802.1Q, table 9-1)
)

// parseTagged is Parse for a frame whose Ethernet type is neither IPv4 nor IPv6. One 802.1Q tag, of any id and priority,
// may stand before the type; a second one, or a service tag (0x88a8), makes a frame NotIP.
func parseTagged(frame []byte, key *Key, m *Meta) {
	if binary.BigEndian.Uint16(frame[12:]) != typeVLAN {
		*m = Meta{Reason: NotIP}
		return
	}
	if len(frame) < ethLen+vlanLen {
		*m = Meta{Reason: Truncated}
		return
	}
	if inner := binary.BigEndian.Uint16(frame[ethLen+vlanLen-2:]); inner != typeIPv4 && inner != typeIPv6 {
		*m = Meta{Reason: NotIP}
		return
	}
	// From the fifth byte on it is as long as a frame without a tag, with type and packet in the same places; the
	// addresses before them are not looked at.
	Parse(frame[vlanLen:], key, m)
	if m.L3 != 0 {
		m.L3 += vlanLen
		m.L4 += vlanLen
		m.End += vlanLen
	}
}

// PushVLAN puts an 802.1Q tag with the given id (1 to 4094) and priority 0 into the frame mem[start:start+length], which
// has none: the Ethernet addresses move down by four bytes, and nothing behind them is touched. It needs four bytes before
// the frame, beyond the Headroom that Apply has used, and returns where the frame is now.
func PushVLAN(mem []byte, start, length int, vlan uint16) (newStart, newLen int) {
	h := (*[12 + vlanLen]byte)(mem[start-vlanLen:])
	a, b := binary.LittleEndian.Uint64(h[4:]), binary.LittleEndian.Uint32(h[12:])
	binary.LittleEndian.PutUint64(h[0:], a)
	binary.LittleEndian.PutUint32(h[8:], b)
	binary.BigEndian.PutUint32(h[12:], typeVLAN<<16|uint32(vlan))
	return start - vlanLen, length + vlanLen
}
