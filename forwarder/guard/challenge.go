package guard

import "encoding/binary"

// epochShift makes epochs of 8 seconds.
const epochShift = 3

// Challenge makes the numbers by which clients prove their address, and knows them again. The number goes out as the
// acknowledgement of a SYN-ACK, and it is not the one that the client waits for. A client that receives that answers with a reset
// whose sequence number is the same (RFC 9293, 3.10.7.3), and sends its SYN again. Nothing is kept meanwhile: any node that has
// the secret can check the reset.
//
// A number is a keyed hash (SipHash-2-4) of the connection and an epoch of 8 seconds of the time of day. Checked are the epoch
// that the checking node is in, the one before and the one after: so the nodes' clocks may differ by 8 seconds less the time
// in which the client answers, and a number is good for no more than 16 seconds, or 24 on a node whose clock is behind.
//
// The topmost bit of a number is free (see [Challenge.Number]), hence of random resets one in 2^31 / 3 is taken for a proof.
//
// A Challenge is immutable.
type Challenge struct{ key4, key6 [2]uint64 }

// NewChallenge returns the Challenge of a secret, which is random, the same on all nodes of a group and used for nothing else.
// The two IP versions have half of it each, a key of 128 bits.
func NewChallenge(secret [32]byte) *Challenge {
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(secret[8*i:]) }
	return &Challenge{key4: [2]uint64{word(0), word(1)}, key6: [2]uint64{word(2), word(3)}}
}

// Epoch returns the epoch of a time, in seconds since 1970 (CLOCK_REALTIME).
func Epoch(seconds int64) uint32 { return uint32(seconds >> epochShift) }

// Number returns the acknowledgement number that answers a SYN. Addresses, as two words, and ports are those of the SYN; isn is
// its sequence number.
//
// No client takes the number for an acknowledgement of its SYN, nor of data that came with it (RFC 7413): it is neither isn + 1
// nor one of the 65,535 that follow. Where the hash would be one of these its topmost bit is changed, which is why checking
// ignores that bit. It could not do otherwise, for the reset does not tell isn.
func (c *Challenge) Number(src, dst [2]uint64, sport, dport uint16, isn, epoch uint32) uint32 {
	return c.number(src[0], src[1], dst[0], dst[1], sport, dport, isn, epoch)
}

// number is Number without arrays; see Cookies.number.
func (c *Challenge) number(srcHi, srcLo, dstHi, dstLo uint64, sport, dport uint16, isn, epoch uint32) uint32 {
	n := c.mac(srcHi, srcLo, dstHi, dstLo, sport, dport, epoch)
	if n-isn-1 < 1<<16 {
		n ^= 1 << 31
	}
	return n
}

// Proves says whether a reset with the sequence number seq answers a challenge. Addresses and ports are those of the reset, hence
// of the SYN as well; now is in seconds since 1970.
func (c *Challenge) Proves(seq uint32, src, dst [2]uint64, sport, dport uint16, now int64) bool {
	epoch := Epoch(now)
	for _, e := range [...]uint32{epoch, epoch - 1, epoch + 1} {
		if (seq^c.mac(src[0], src[1], dst[0], dst[1], sport, dport, e))<<1 == 0 {
			return true
		}
	}
	return false
}

// mac hashes, in this order and as little-endian numbers: source and destination address, of IPv4 four bytes each, else two words
// each; source port, destination port, epoch.
func (c *Challenge) mac(srcHi, srcLo, dstHi, dstLo uint64, sport, dport uint16, epoch uint32) uint32 {
	rest := uint64(sport) | uint64(dport)<<16 | uint64(epoch)<<32
	if is4(srcHi, srcLo) && is4(dstHi, dstLo) {
		return uint32(sip2(&c.key4, srcLo&0xffffffff|dstLo<<32, rest))
	}
	return uint32(sip5(&c.key6, &[5]uint64{srcHi, srcLo, dstHi, dstLo, rest}))
}

// is4 says whether an address is an IPv4 one, ::ffff:a.b.c.d.
func is4(hi, lo uint64) bool { return hi == 0 && lo>>32 == 0xffff }
