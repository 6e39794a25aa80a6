package packet

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) is a sum modulo 65535. Such a sum may be taken over words of any multiple of 16
// bits, since 2^16 is 1 modulo 65535, and over bytes loaded in either order, since swapping is a rotation. What is
// carried out of 64 bits is worth 1.

// sum20 returns the sum of a header of 20 bytes, given as little-endian words.
func sum20(w0, w1 uint64, w2 uint32) uint64 {
	sum, carry := bits.Add64(w0, w1, 0)
	sum, carry = bits.Add64(sum, uint64(w2), carry)
	return sum + carry // cannot carry again: a sum that wrapped is not all ones
}

// addWords adds the bytes of b, a multiple of four of them, to a sum of little-endian words.
func addWords(sum uint64, b []byte) uint64 {
	var carry uint64
	for ; len(b) >= 4; b = b[4:] {
		sum, carry = bits.Add64(sum, uint64(binary.LittleEndian.Uint32(b)), carry)
	}
	return sum + carry
}

// sumIsZero says whether sum is zero modulo 65535, as the sum of a header with its right checksum is. (A header of
// zeroes only would pass as well; one with an IP version is none.)
func sumIsZero(sum uint64) bool { return sum%0xffff == 0 }

// checksum folds a sum of big-endian 16-bit words to the checksum that goes into the header.
func checksum(sum uint32) uint16 {
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	return ^uint16(sum)
}

// sumBytes adds any bytes to a sum of little-endian words, as if zeroes followed them.
func sumBytes(sum uint64, b []byte) uint64 {
	whole := len(b) &^ 3
	sum = addWords(sum, b[:whole])
	var rest [4]byte
	copy(rest[:], b[whole:])
	return addWords(sum, rest[:])
}
