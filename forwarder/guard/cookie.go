package guard

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
)

// A cookie has, from the top: 3 bits of MSS index, 2 of epoch, 27 of the hash.
const (
	cookieIndexShift = 29
	cookieEpochShift = 27
	cookieEpochMask  = 3
	cookieMACMask    = 1<<cookieEpochShift - 1

	cookieSeconds = 5 // epochs of 1 << 5 seconds
)

// cookieMSS holds the segment sizes that a cookie can tell, in bytes. The first is the least of IPv4 (RFC 9293, 3.7.1), the
// second that of IPv6.
var cookieMSS = [8]uint16{536, 1220, 1300, 1400, 1440, 1452, 1460, 8940}

// Cookies makes SYN cookies and knows them again: initial sequence numbers by which a node answers SYNs without keeping
// anything, and from which whoever has the secret can tell, when the client acknowledges one, that the client's address is its
// own and what it offered.
//
// A cookie holds an index into a table of segment sizes, the lowest two bits of an epoch of 32 seconds of the time of day, and 27
// bits of a keyed hash (SipHash-2-4) of the connection, the client's sequence number, the whole epoch, the index and the options
// byte. That byte tells the client's other options (package packet, SYNOptions); it travels in the timestamp that the client
// returns, and counts only as long as it is the one that was hashed.
//
// Accepted are cookies of the epoch that the checking machine is in, of the one before and the one after: so clocks may differ by
// 32 seconds less the time in which the client answers, and a cookie is good for no more than 64 seconds, or 96 on a machine
// whose clock is behind. The two bits tell which of the three epochs it must be, so one hash decides, and of random numbers one
// in 2^27 × 4/3 is taken for a cookie.
//
// Cookies is immutable. The agents of backends compute the same in C (internal/agent/bpf/cookie.h).
type Cookies struct{ key4, key6 [2]uint64 }

// CookieSecret derives the secret of cookies from the seed of a group, by HKDF-SHA-256 (RFC 5869). Nodes and agents that have
// the same seed understand each other's cookies. The seed must have at least 16 bytes.
func CookieSecret(seed []byte) ([32]byte, error) {
	if len(seed) < 16 {
		return [32]byte{}, fmt.Errorf("seed has %d bytes, at least 16 are needed", len(seed))
	}
	b, err := hkdf.Key(sha256.New, seed, nil, "sluice cookie keys v1", 32)
	if err != nil {
		return [32]byte{}, fmt.Errorf("derive the secret of cookies: %w", err)
	}
	return [32]byte(b), nil
}

// CookieVersion names the way in which cookies are made, with all that a node and an agent have to agree on. Another way has
// another number.
const CookieVersion = 1

// CookieKeyID names a secret without telling it: its holders can be compared.
func CookieKeyID(secret [32]byte) string {
	b, err := hkdf.Key(sha256.New, secret[:], nil, "sluice cookie key id v1", 8)
	if err != nil {
		panic(err) // 8 bytes are never too many
	}
	return hex.EncodeToString(b)
}

// NewCookies returns the Cookies of a secret, see [CookieSecret]. The two IP versions have half of it each, a key of 128 bits.
func NewCookies(secret [32]byte) *Cookies {
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(secret[8*i:]) }
	return &Cookies{key4: [2]uint64{word(0), word(1)}, key6: [2]uint64{word(2), word(3)}}
}

// CookieEpoch returns the epoch of a time, in seconds since 1970 (CLOCK_REALTIME).
func CookieEpoch(seconds int64) uint32 { return uint32(seconds >> cookieSeconds) }

// MSSIndex returns the index of the largest segment size that a cookie can tell and that is not above mss, in bytes. Sizes below
// 536, and 0 for a client that offers none, count as 536, as in other systems.
func MSSIndex(mss uint16) uint8 {
	for i := len(cookieMSS) - 1; i > 0; i-- {
		if mss >= cookieMSS[i] {
			return uint8(i)
		}
	}
	return 0
}

// MSSIndex6 is [MSSIndex] for connections over IPv6: what is below 1,220, and 0, counts as 1220. The kernel of a backend accepts
// no less.
func MSSIndex6(mss uint16) uint8 { return max(MSSIndex(mss), 1) }

// Number returns the cookie that answers a SYN: the sequence number of the SYN-ACK. Addresses, as two words, and ports are those
// of the SYN, isn is its sequence number; epoch is [CookieEpoch], mssIndex comes from [MSSIndex] or [MSSIndex6] and is at most 7.
func (c *Cookies) Number(src, dst [2]uint64, sport, dport uint16, isn, epoch uint32, mssIndex, options uint8) uint32 {
	return c.number(src[0], src[1], dst[0], dst[1], sport, dport, isn, epoch, mssIndex&7, options)
}

// Check says whether number is a cookie, and if so what segment size, in bytes, the client takes. number is one less than what a
// segment of the client acknowledges, and isn one less than its sequence number, if it is the client's first, with data or
// without; addresses and ports are those of the segment, and options is the byte that came back in its timestamp. now is in
// seconds since 1970.
func (c *Cookies) Check(number uint32, src, dst [2]uint64, sport, dport uint16, isn uint32, now int64,
	options uint8) (mss uint16, ok bool) {
	epoch := CookieEpoch(now) - 1
	ahead := (number>>cookieEpochShift - epoch) & cookieEpochMask
	if ahead > 2 {
		return 0, false
	}
	epoch += ahead
	index := uint8(number >> cookieIndexShift)
	if number != c.number(src[0], src[1], dst[0], dst[1], sport, dport, isn, epoch, index, options) {
		return 0, false
	}
	return cookieMSS[index&7], true
}

// number is Number without arrays, which the compiler keeps in memory and copies at every call. What is hashed is, in this order and
// in network order: source and destination address, of IPv4 four bytes each, else sixteen; source port, destination port, isn,
// epoch, index, options. These are 22 or 46 bytes.
func (c *Cookies) number(srcHi, srcLo, dstHi, dstLo uint64, sport, dport uint16, isn, epoch uint32, index, options uint8) uint32 {
	// SipHash takes little-endian words, so everything that is a number here is turned round.
	from := bits.ReverseBytes64(uint64(sport)<<48 | uint64(dport)<<32 | uint64(isn))
	last := uint64(bits.ReverseBytes32(epoch)) | uint64(index)<<32 | uint64(options)<<40
	var v0, v1, v2, v3 uint64
	if is4(srcHi, srcLo) && is4(dstHi, dstLo) {
		addrs := bits.ReverseBytes64(srcLo<<32 | dstLo&0xffffffff)
		v0, v1, v2, v3 = sipInit(&c.key4)
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^addrs)
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
		v0 ^= addrs
		last |= 22 << 56
	} else {
		v0, v1, v2, v3 = sipInit(&c.key6)
		for _, w := range [...]uint64{srcHi, srcLo, dstHi, dstLo} {
			w = bits.ReverseBytes64(w)
			v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^w)
			v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
			v0 ^= w
		}
		last |= 46 << 56
	}
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^from)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	mac := uint32(sipEnd(v0^from, v1, v2, v3, last))
	return uint32(index)<<cookieIndexShift | epoch&cookieEpochMask<<cookieEpochShift | mac&cookieMACMask
}
