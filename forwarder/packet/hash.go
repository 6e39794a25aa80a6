package packet

import (
	"math/bits"
)

// Key is a SipHash key: the first and the second eight bytes of it, each read as a little-endian number. Nodes of a
// group share one, so that they agree on every flow; who does not know it cannot construct flows that collide.
type Key [2]uint64

// FlowHash returns the hash of a flow, equal to Meta.Hash of its packets: SipHash-1-3 (Aumasson and Bernstein, "SipHash:
// a fast short-input PRF", 2012, with one compression round and three finalisation rounds) over the bytes, in network
// order, of source address, destination address, source port, destination port and protocol. Addresses count four
// bytes each if both are IPv4 and sixteen each otherwise: 13 or 37 bytes. Ports are in host order here. The XDP program
// computes the same value (forwarder/steer/bpf/flowhash.h).
func FlowHash(key *Key, src, dst Addr, srcPort, dstPort uint16, proto uint8) uint64 {
	// SipHash takes little-endian words from the bytes, so everything that is a number here is turned round.
	ports := uint64(bits.ReverseBytes16(srcPort)) | uint64(bits.ReverseBytes16(dstPort))<<16
	if src.is4() && dst.is4() {
		return hash4(key, bits.ReverseBytes64(src.Lo<<32|dst.Lo&0xffffffff), ports, proto)
	}
	return hash6(key,
		bits.ReverseBytes64(src.Hi), bits.ReverseBytes64(src.Lo),
		bits.ReverseBytes64(dst.Hi), bits.ReverseBytes64(dst.Lo), ports, proto)
}

// hash4 is the flow hash of an IPv4 packet: addrs are the eight bytes from the source address on and ports the four
// bytes from the source port on, both as loaded little-endian.
func hash4(key *Key, addrs, ports uint64, proto uint8) uint64 {
	v0, v1, v2, v3 := sipInit(key)
	last := ports | uint64(proto)<<32 | 13<<56 // the final word carries the length of the message in its top byte

	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^addrs)
	v0 ^= addrs
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^last)
	v0 ^= last

	v0, v1, v2, v3 = sipRound(v0, v1, v2^0xff, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	return v0 ^ v1 ^ v2 ^ v3
}

// hash6 is the flow hash of an IPv6 packet: s0 and s1 are the halves of the source address, d0 and d1 those of the
// destination and ports the four bytes from the source port on, all as loaded little-endian.
func hash6(key *Key, s0, s1, d0, d1, ports uint64, proto uint8) uint64 {
	v0, v1, v2, v3 := sipInit(key)
	last := ports | uint64(proto)<<32 | 37<<56

	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^s0)
	v0 ^= s0
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^s1)
	v0 ^= s1
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^d0)
	v0 ^= d0
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^d1)
	v0 ^= d1
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^last)
	v0 ^= last

	v0, v1, v2, v3 = sipRound(v0, v1, v2^0xff, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	return v0 ^ v1 ^ v2 ^ v3
}

// sipInit returns the initial state of SipHash under a key.
func sipInit(key *Key) (v0, v1, v2, v3 uint64) {
	return key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d,
		key[0] ^ 0x6c7967656e657261, key[1] ^ 0x7465646279746573
}

// sipRound is one round of SipHash. It stays within the inliner's budget.
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
