package packet

import (
	"encoding/binary"
	"math/bits"
)

// TCP options (IANA "TCP Option Kind Numbers").
const (
	optionEnd  = 0
	optionNone = 1
	optionMSS  = 2
)

// ClampMSS lowers the maximum segment size that a TCP segment offers to mss, if it offers more, and changes the checksum
// accordingly (RFC 9293, 3.7.1; RFC 1624). tcp begins with the TCP header, at least the 20 bytes without options, and may
// reach beyond it. What an option of a wrong length says, and all that follows a malformed one, is left alone.
func ClampMSS(tcp []byte, mss uint16) {
	end := min(len(tcp), int(tcp[12]>>4)*4)
	for at := tcpLen; at < end; {
		kind := tcp[at]
		if kind == optionNone {
			at++
			continue
		}
		if kind == optionEnd || at+2 > end {
			return
		}
		length := int(tcp[at+1])
		if length < 2 || at+length > end {
			return
		}
		if kind == optionMSS && length == 4 {
			clampOption(tcp, at+2, mss)
		}
		at += length
	}
}

// clampOption lowers the value at tcp[at:] to mss.
func clampOption(tcp []byte, at int, mss uint16) {
	old, new := binary.BigEndian.Uint16(tcp[at:]), mss
	if old <= mss {
		return
	}
	binary.BigEndian.PutUint16(tcp[at:], mss)
	if at&1 != 0 { // in two words of the sum: each byte counts as if it were swapped (RFC 1071, 2.B)
		old, new = bits.ReverseBytes16(old), bits.ReverseBytes16(new)
	}
	addDifference(tcp[16:18], difference(uint32(old), uint32(new)))
}
