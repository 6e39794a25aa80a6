package packet

import "encoding/binary"

const (
	dontFragment4 = 0x4000 // of the IPv4 fragment word (RFC 791)

	optionCopied = 0x80 // of the kind of an IPv4 option: it belongs into all fragments
)

// MayFragment says whether a node on the way may cut a packet into fragments: IPv4 without don't-fragment. frame was parsed
// into m.
func MayFragment(frame []byte, m *Meta) bool {
	return m.Flags&V6 == 0 && binary.BigEndian.Uint16(frame[m.L3+6:])&dontFragment4 == 0
}

// Pieces returns into how many fragments Split cuts a packet. mtu is the greatest length of each as an IP packet, at least
// 68.
func Pieces(m *Meta, mtu int) int {
	unit := pieceLen(m, mtu)
	return (int(m.End-m.L4) + unit - 1) / unit
}

// pieceLen is how many bytes of data all fragments have but the last. All have headers of the same length.
func pieceLen(m *Meta, mtu int) int { return (mtu - int(m.L4-m.L3)) &^ (fragmentUnit - 1) }

// Split writes one of the fragments (RFC 791, 3.2) of an IPv4 packet that MayFragment into out, with the Ethernet header of
// frame, which holds the whole packet and was parsed into m, and returns its Meta: cut.End is the length of the new frame.
// Pieces are numbered from 0 to Pieces-1; of a packet that fits the only one is itself. out has room for m.L3 + mtu bytes.
// For piece 0 it may be frame itself, after all the others were cut.
//
// A packet may itself be a fragment. Options that belong into the first fragment only are turned into padding in the others.
// cut keeps Hash and ports of m; of the flags, First and Later are set as they now hold, and a further fragment has none of
// those that tell of its transport header.
func Split(frame []byte, m *Meta, mtu, piece int, out []byte) (cut Meta) {
	unit := pieceLen(m, mtu)
	from := int(m.L4) + piece*unit
	to := min(from+unit, int(m.End))
	header := int(m.L4)
	copy(out[:header], frame)
	copy(out[header:], frame[from:to])

	cut = *m
	cut.End = uint16(header + to - from)
	ip := out[m.L3:header]
	word := binary.BigEndian.Uint16(ip[6:]) + uint16(piece*unit/fragmentUnit)
	if to < int(m.End) {
		word |= moreFragments4
	}
	if piece > 0 {
		blankOptions(ip[ipv4Len:])
		cut.Flags = m.Flags&^(First|FIN|SYN|RST|ICMPError|Echo) | Later
	} else if word&moreFragments4 != 0 && m.Flags&Later == 0 {
		cut.Flags |= First
	}
	binary.BigEndian.PutUint16(ip[2:], cut.End-m.L3)
	binary.BigEndian.PutUint16(ip[6:], word)
	binary.BigEndian.PutUint16(ip[10:], 0)
	putChecksum(ip[10:12], sumBytes(0, ip))
	return cut
}

// blankOptions turns those IPv4 options that belong only into the first fragment of a datagram into options that do
// nothing, as Linux does (net/ipv4/ip_options.c, ip_options_fragment). What follows a malformed one is left alone.
func blankOptions(options []byte) {
	for len(options) > 0 && options[0] != optionEnd {
		if options[0] == optionNone {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			return
		}
		option := options[:options[1]]
		options = options[len(option):]
		if option[0]&optionCopied == 0 {
			for i := range option {
				option[i] = optionNone
			}
		}
	}
}
