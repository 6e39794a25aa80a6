package packet

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/dchest/siphash"
)

// sipReference is SipHash-c-d as the paper describes it, byte by byte: an independent second implementation.
func sipReference(c, d int, k0, k1 uint64, msg []byte) uint64 {
	v := [4]uint64{k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573}
	rounds := func(n int) {
		for range n {
			v[0] += v[1]
			v[2] += v[3]
			v[1] = bits.RotateLeft64(v[1], 13)
			v[3] = bits.RotateLeft64(v[3], 16)
			v[1] ^= v[0]
			v[3] ^= v[2]
			v[0] = bits.RotateLeft64(v[0], 32)
			v[2] += v[1]
			v[0] += v[3]
			v[1] = bits.RotateLeft64(v[1], 17)
			v[3] = bits.RotateLeft64(v[3], 21)
			v[1] ^= v[2]
			v[3] ^= v[0]
			v[2] = bits.RotateLeft64(v[2], 32)
		}
	}
	padded := append([]byte(nil), msg...)
	for len(padded)%8 != 7 {
		padded = append(padded, 0)
	}
	padded = append(padded, byte(len(msg)))
	for i := 0; i < len(padded); i += 8 {
		var w uint64
		for j := range 8 {
			w |= uint64(padded[i+j]) << (8 * j)
		}
		v[3] ^= w
		rounds(c)
		v[0] ^= w
	}
	v[2] ^= 0xff
	rounds(d)
	return v[0] ^ v[1] ^ v[2] ^ v[3]
}

// The reference itself is checked against another implementation of SipHash-2-4 and against its paper.
func TestSipReference(t *testing.T) {
	msg := make([]byte, 64)
	for i := range msg {
		msg[i] = byte(i)
	}
	const k0, k1 = 0x0706050403020100, 0x0f0e0d0c0b0a0908
	if got := sipReference(2, 4, k0, k1, msg[:15]); got != 0xa129ca6149be45e5 { // appendix A of the paper
		t.Errorf("SipHash-2-4 of the paper's example: %#x", got)
	}
	for n := range msg {
		if got, want := sipReference(2, 4, k0, k1, msg[:n]), siphash.Hash(k0, k1, msg[:n]); got != want {
			t.Errorf("SipHash-2-4 of %d bytes: %#x, want %#x", n, got, want)
		}
	}
}

// The designers' reference program, built with one compression and three finalisation rounds, prints these for the key
// 00 01 … 0f and the messages 00 01 … 0c (13 bytes) and 00 01 … 24 (37 bytes).
func TestFlowHashVectors(t *testing.T) {
	key := Key{0x0706050403020100, 0x0f0e0d0c0b0a0908}
	v4 := FlowHash(&key, FromNetip(netip.MustParseAddr("0.1.2.3")), FromNetip(netip.MustParseAddr("4.5.6.7")),
		0x0809, 0x0a0b, 0x0c)
	if v4 != 0x306f760c1229ffa7 {
		t.Errorf("IPv4: %#x", v4)
	}
	v6 := FlowHash(&key, FromNetip(netip.MustParseAddr("1:203:405:607:809:a0b:c0d:e0f")),
		FromNetip(netip.MustParseAddr("1011:1213:1415:1617:1819:1a1b:1c1d:1e1f")), 0x2021, 0x2223, 0x24)
	if v6 != 0xb6101c2da3c33057 {
		t.Errorf("IPv6: %#x", v6)
	}
}

// tupleBytes is the message that is hashed, from the documentation of FlowHash.
func tupleBytes(src, dst netip.Addr, srcPort, dstPort uint16, proto uint8) []byte {
	msg := append(src.AsSlice(), dst.AsSlice()...)
	msg = binary.BigEndian.AppendUint16(msg, srcPort)
	msg = binary.BigEndian.AppendUint16(msg, dstPort)
	return append(msg, proto)
}

func TestFlowHashReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 20000 {
		key := Key{rng.Uint64(), rng.Uint64()}
		src, dst := randomAddr(rng, rng.IntN(2) == 0), netip.Addr{}
		if dst = randomAddr(rng, src.Is4()); rng.IntN(50) == 0 {
			dst = randomAddr(rng, !src.Is4()) // never on the wire, but defined: sixteen bytes each
		}
		sp, dp, proto := uint16(rng.Uint32()), uint16(rng.Uint32()), uint8(rng.Uint32())
		msg := tupleBytes(src, dst, sp, dp, proto)
		if src.Is4() != dst.Is4() {
			msg = tupleBytes(netip.AddrFrom16(src.As16()), netip.AddrFrom16(dst.As16()), sp, dp, proto)
		}
		want := sipReference(1, 3, key[0], key[1], msg)
		if got := FlowHash(&key, FromNetip(src), FromNetip(dst), sp, dp, proto); got != want {
			t.Fatalf("FlowHash(%x, %v, %v, %d, %d, %d) = %#x, want %#x", key, src, dst, sp, dp, proto, got, want)
		}
	}
}

func randomAddr(rng *rand.Rand, v4 bool) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], rng.Uint64())
	binary.BigEndian.PutUint64(b[8:], rng.Uint64())
	if v4 {
		return netip.AddrFrom4([4]byte(b[:]))
	}
	b[0] = 0x20 // no IPv4-mapped address, whatever the numbers
	return netip.AddrFrom16(b)
}

func TestAddr(t *testing.T) {
	for _, c := range []struct {
		text   string
		hi, lo uint64
		is4    bool
	}{
		{"192.0.2.10", 0, 0xffff_c000020a, true},
		{"0.0.0.0", 0, 0xffff_00000000, true},
		{"2001:db8::10", 0x20010db8_00000000, 0x10, false},
		{"::", 0, 0, false},
		{"::ffff", 0, 0xffff, false},
		{"1::ffff:c000:20a", 0x00010000_00000000, 0xffff_c000020a, false},
	} {
		want := Addr{c.hi, c.lo}
		a := FromNetip(netip.MustParseAddr(c.text))
		if a != want || a.is4() != c.is4 || a.String() != c.text || a.Netip() != netip.MustParseAddr(c.text) {
			t.Errorf("%s: %x, IPv4 %v, back to %v; want %x, %v", c.text, a, a.is4(), a, want, c.is4)
		}
	}
	if a := FromNetip(netip.MustParseAddr("::ffff:192.0.2.10")); a != FromNetip(netip.MustParseAddr("192.0.2.10")) {
		t.Errorf("the mapped form of an IPv4 address differs from it: %x", a)
	}
	if a := FromNetip(netip.MustParseAddr("fe80::1%eth0")); a.Netip() != netip.MustParseAddr("fe80::1") {
		t.Errorf("a zone is not dropped: %v", a)
	}
	if a := FromNetip(netip.Addr{}); a != (Addr{}) {
		t.Errorf("the zero address: %x", a)
	}
}
