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

// fold reduces a sum to 16 bits; it is zero only if the sum is. Adding a word to itself with its halves exchanged leaves the
// sum of both in the upper half, and what was carried out of it as well.
func fold(sum uint64) uint16 {
	sum += bits.RotateLeft64(sum, 32)
	half := uint32(sum >> 32)
	half += bits.RotateLeft32(half, 16)
	return uint16(half >> 16)
}

// transportSum returns the sum of a TCP, UDP or ICMPv6 message t, which is a whole one, with its pseudo header (RFC 9293,
// RFC 768, RFC 8200, 8.1), in little-endian words. addrs are source and destination as they stand in the IP header.
func transportSum(addrs []byte, proto uint8, t []byte) uint64 {
	pseudo := [4]byte{0, proto, byte(len(t) >> 8), byte(len(t))}
	return sumBytes(addWords(addWords(0, addrs), pseudo[:]), t)
}

// putChecksum writes the checksum of a sum of little-endian words.
func putChecksum(b []byte, sum uint64) { binary.LittleEndian.PutUint16(b, ^fold(sum)) }

// difference returns by how much a sum of big-endian words changes as one of them changes, of 16 or 32 bits: ~m + m' in RFC
// 1624, equation 3. Differences may be added up. They are never zero, only zero modulo 65535, so that a checksum that is
// changed by one is never 0xffff, as none is that was computed from scratch.
func difference(old, new uint32) uint64 { return uint64(^old) + uint64(new) }

// addDifference changes a checksum as its data has changed by d, and returns the difference that this makes itself.
func addDifference(sum []byte, d uint64) uint64 {
	old := binary.BigEndian.Uint16(sum)
	new := ^fold(uint64(^old) + d)
	binary.BigEndian.PutUint16(sum, new)
	return difference(uint32(old), uint32(new))
}
