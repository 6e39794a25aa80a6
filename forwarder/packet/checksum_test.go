package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// naiveSum adds big-endian 16-bit words and folds until nothing is carried, as RFC 1071 describes it.
func naiveSum(b []byte) uint16 {
	var sum uint64
	for i := 0; i < len(b); i += 2 {
		sum += uint64(b[i])<<8 | uint64(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// Headers near the carries, of bytes that are mostly 0xff or 0x00: exactly those whose sum folds to 0xffff pass.
func TestHeaderSum(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	passed := 0
	for range 200000 {
		h := make([]byte, 20+4*rng.IntN(11))
		for i := range h {
			h[i] = []byte{0xff, 0xff, 0xff, 0x00, 0x01, byte(rng.Uint32())}[rng.IntN(6)]
		}
		if rng.IntN(4) == 0 {
			for i := range h[:20] {
				h[i] = 0xff
			}
		}
		if rng.IntN(2) == 0 {
			setChecksum(h)
		}
		sum := sum20(binary.LittleEndian.Uint64(h[0:]), binary.LittleEndian.Uint64(h[8:]), binary.LittleEndian.Uint32(h[16:]))
		want := naiveSum(h) == 0xffff
		if got := sumIsZero(addWords(sum, h[20:])); got != want && naiveSum(h) != 0 {
			t.Fatalf("%x: passes %v, want %v", h, got, want)
		}
		if want {
			passed++
		}
	}
	if passed < 50000 || passed > 150000 {
		t.Errorf("%d of 200000 headers were right: the test has grown blunt", passed)
	}
}

// The cases in which the very last addition carries, which random bytes do not reach.
func TestHeaderSumCarries(t *testing.T) {
	const ones = 0xffff_ffff_ffff_ffff // worth nothing: a multiple of 65535
	for _, c := range []struct {
		w0, w1 uint64
		w2     uint32
		zero   bool
	}{
		{ones, ones, 0xffff_ffff, true},
		{ones, 1, 0, false},
		{ones, 0, 1, false},
		{ones, 0, 0xffff, true},
		{ones - 1, 0, 1, true},
		{ones - 1, 0, 2, false},
		{ones - 0xffff, 0, 0x1_fffe, true},
		{ones - 0xffff, 0, 0x1_fffd, false},
	} {
		if got := sumIsZero(sum20(c.w0, c.w1, c.w2)); got != c.zero {
			t.Errorf("%#x + %#x + %#x is zero: %v, want %v", c.w0, c.w1, c.w2, got, c.zero)
		}
	}
	var options [4]byte
	for first := range uint32(3) {
		binary.LittleEndian.PutUint32(options[:], first)
		if got, want := sumIsZero(addWords(ones-1, options[:])), first == 1; got != want {
			t.Errorf("%#x + %#x is zero: %v, want %v", uint64(ones-1), first, got, want)
		}
	}
}

// Every sum that an outer header can have: ten words.
func TestChecksumFold(t *testing.T) {
	for sum := range uint32(10 * 0xffff) {
		want := sum
		for want > 0xffff {
			want = want>>16 + want&0xffff
		}
		if got := checksum(sum); got != ^uint16(want) {
			t.Fatalf("checksum of sum %#x: %#04x, want %#04x", sum, got, ^uint16(want))
		}
	}
}
