package guard

import "math/bits"

// SipHash-2-4 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012). The flow hash gets along with fewer rounds, since
// nobody sees its values; what is computed here is sent to whoever asks. Words of the message are little-endian numbers. The
// functions are written so that they are inlined and the state stays in registers.

// sip2 is the hash of a message of two words, sixteen bytes.
func sip2(key *[2]uint64, a, b uint64) uint64 {
	v0, v1, v2, v3 := sipInit(key)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^a)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0 ^= a
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^b)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0 ^= b
	return sipEnd(v0, v1, v2, v3, 16<<56)
}

// sip5 is the hash of a message of five words, forty bytes.
func sip5(key *[2]uint64, m *[5]uint64) uint64 {
	v0, v1, v2, v3 := sipInit(key)
	for _, w := range m {
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^w)
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
		v0 ^= w
	}
	return sipEnd(v0, v1, v2, v3, 40<<56)
}

func sipInit(key *[2]uint64) (v0, v1, v2, v3 uint64) {
	return key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d,
		key[0] ^ 0x6c7967656e657261, key[1] ^ 0x7465646279746573
}

// sipEnd takes the last word, with the length of the message in its top byte, and finishes.
func sipEnd(v0, v1, v2, v3, last uint64) uint64 {
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^last)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0 ^= last
	v0, v1, v2, v3 = sipRound(v0, v1, v2^0xff, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	return v0 ^ v1 ^ v2 ^ v3
}

func sipRound(v0, v1, v2, v3 uint64) (_, _, _, _ uint64) {
	v0 += v1
	v1 = bits.RotateLeft64(v1, 13) ^ v0
	v0 = bits.RotateLeft64(v0, 32)
	v2 += v3
	v3 = bits.RotateLeft64(v3, 16) ^ v2
	v0 += v3
	v3 = bits.RotateLeft64(v3, 21) ^ v0
	v2 += v1
	v1 = bits.RotateLeft64(v1, 17) ^ v2
	v2 = bits.RotateLeft64(v2, 32)
	return v0, v1, v2, v3
}
