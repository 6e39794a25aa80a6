package guard

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/dchest/siphash"
)

var (
	testSecret = [32]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32}
	client4    = [2]uint64{0, 0xffff_c6336407}
	vip4       = [2]uint64{0, 0xffff_c000020a}
	client6    = [2]uint64{0x20010db8_00050000, 7}
	vip6       = [2]uint64{0x20010db8_00000000, 0x10}
)

// The numbers are SipHash-2-4 by an independent implementation, over the bytes that the doc tells. A number that changes breaks
// groups in which not all nodes have been updated yet.
func TestNumberIsSipHash(t *testing.T) {
	c := NewChallenge(testSecret)
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(testSecret[8*i:]) }
	rng := rand.New(rand.NewPCG(5, 6))
	for range 1000 {
		src, dst := [2]uint64{0, 0xffff<<32 | uint64(rng.Uint32())}, [2]uint64{0, 0xffff<<32 | uint64(rng.Uint32())}
		sport, dport, epoch := uint16(rng.Uint32()), uint16(rng.Uint32()), rng.Uint32()
		le := binary.LittleEndian
		var m []byte
		m = le.AppendUint32(le.AppendUint32(m, uint32(src[1])), uint32(dst[1]))
		m = le.AppendUint32(le.AppendUint16(le.AppendUint16(m, sport), dport), epoch)
		want := uint32(siphash.Hash(word(0), word(1), m))
		if got := c.Number(src, dst, sport, dport, want+5, epoch); got != want {
			t.Fatalf("IPv4: %#x, want %#x", got, want)
		}
		src, dst = [2]uint64{rng.Uint64(), rng.Uint64()}, [2]uint64{rng.Uint64(), rng.Uint64()}
		m = m[:0]
		for _, w := range []uint64{src[0], src[1], dst[0], dst[1]} {
			m = le.AppendUint64(m, w)
		}
		m = le.AppendUint32(le.AppendUint16(le.AppendUint16(m, sport), dport), epoch)
		want = uint32(siphash.Hash(word(2), word(3), m))
		if got := c.Number(src, dst, sport, dport, want+5, epoch); got != want {
			t.Fatalf("IPv6: %#x, want %#x", got, want)
		}
	}
}

// A reset proves the very connection that was challenged, in its epoch and the ones beside it, with whatever sequence number the
// client began, and on any node that has the secret.
func TestChallenge(t *testing.T) {
	c, other := NewChallenge(testSecret), NewChallenge(testSecret)
	wrong := testSecret
	wrong[7], wrong[23] = 99, 99
	stranger := NewChallenge(wrong)
	const now, sport, dport = int64(1_800_000_003), 40000, 443
	for _, a := range []struct{ client, vip [2]uint64 }{{client4, vip4}, {client6, vip6}} {
		plain := c.Number(a.client, a.vip, sport, dport, 0x12345678, Epoch(now))
		for _, isn := range []uint32{0, 1, plain - 1, plain - 2, plain - 65536, plain - 65537, plain, plain + 1, plain ^ 1<<31, 1<<32 - 1} {
			n := c.Number(a.client, a.vip, sport, dport, isn, Epoch(now))
			if ahead := n - isn; ahead >= 1 && ahead <= 65536 {
				t.Errorf("the client that began with %#x may take %#x as an acknowledgement", isn, n)
			}
			if n != plain && n != plain^1<<31 {
				t.Errorf("%#x for a client that began with %#x, %#x for others", n, isn, plain)
			}
			for _, later := range []int64{-8, -3, 0, 5, 8} {
				if !other.Proves(n, a.client, a.vip, sport, dport, now+later) {
					t.Errorf("%#x does not prove anything %d s later", n, later)
				}
			}
			for _, later := range []int64{-20, -12, 16, 24, 3600, 8 << 31} {
				if c.Proves(n, a.client, a.vip, sport, dport, now+later) {
					t.Errorf("%#x still proves something %d s later", n, later)
				}
			}
		}
		for name, proves := range map[string]bool{
			"another number":     c.Proves(plain+1, a.client, a.vip, sport, dport, now),
			"another bit":        c.Proves(plain^1<<30, a.client, a.vip, sport, dport, now),
			"another client":     c.Proves(plain, [2]uint64{a.client[0], a.client[1] + 1}, a.vip, sport, dport, now),
			"another VIP":        c.Proves(plain, a.client, [2]uint64{a.vip[0], a.vip[1] + 1}, sport, dport, now),
			"the way back":       c.Proves(plain, a.vip, a.client, dport, sport, now),
			"another port":       c.Proves(plain, a.client, a.vip, sport+1, dport, now),
			"another VIP's port": c.Proves(plain, a.client, a.vip, sport, dport+1, now),
			"another secret":     stranger.Proves(plain, a.client, a.vip, sport, dport, now),
		} {
			if proves {
				t.Errorf("%v: %s is taken for a proof", a.client, name)
			}
		}
	}
}

// Ten million random resets, from random sources or from one, are taken for proofs about as often as 31 bits and three epochs
// say: 0.014 times.
func TestChallengeForged(t *testing.T) {
	c, rng := NewChallenge(testSecret), rand.New(rand.NewPCG(7, 8))
	n := 10_000_000
	if testing.Short() || raceEnabled {
		n = 500_000
	}
	proved := 0
	for i := range n {
		src := client4
		if i%2 == 0 {
			src[1] = 0xffff<<32 | uint64(rng.Uint32())
		}
		if c.Proves(rng.Uint32(), src, vip4, uint16(rng.Uint32()), 443, 1_800_000_000) {
			proved++
		}
	}
	if proved > 1 {
		t.Errorf("%d of %d random resets prove something", proved, n)
	}
}

// FuzzChallenge: every number that goes out is one that the client refuses and that proves its address, within 8 s.
func FuzzChallenge(f *testing.F) {
	f.Add(uint64(0), uint64(0xffff_01020304), uint64(0), uint64(0xffff_c000020a), uint16(1), uint16(2), uint32(3), int64(4), int8(5))
	f.Add(uint64(1)<<61, uint64(1), uint64(0), uint64(0), uint16(0), uint16(0), uint32(0), int64(-1), int8(-1))
	c := NewChallenge(testSecret)
	f.Fuzz(func(t *testing.T, sh, sl, dh, dl uint64, sport, dport uint16, isn uint32, now int64, skew int8) {
		src, dst := [2]uint64{sh, sl}, [2]uint64{dh, dl}
		plain := c.Number(src, dst, sport, dport, isn, Epoch(now))
		for _, isn := range []uint32{isn, plain - 1 - uint32(sport), plain + 1<<31 - 1} {
			n := c.Number(src, dst, sport, dport, isn, Epoch(now))
			if n-isn-1 < 1<<16 {
				t.Fatalf("isn %#x, number %#x", isn, n)
			}
			if !c.Proves(n, src, dst, sport, dport, now+int64(skew%9)) {
				t.Fatalf("%#x proves nothing", n)
			}
		}
	})
}
