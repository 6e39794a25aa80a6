package guard

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"github.com/dchest/siphash"
)

// families are a client and a VIP of each IP version.
var families = []struct{ client, vip [2]uint64 }{{client4, vip4}, {client6, vip6}}

// Cookies are SipHash-2-4 by an independent implementation, over the bytes that the doc tells, and the other fields are where it
// says. A cookie that changes breaks groups, and backends, of which not all have been updated yet.
func TestCookieIsSipHash(t *testing.T) {
	c := NewCookies(testSecret)
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(testSecret[8*i:]) }
	rng, be := rand.New(rand.NewPCG(9, 10)), binary.BigEndian
	for i := range 2000 {
		src, dst := [2]uint64{0, 0xffff<<32 | uint64(rng.Uint32())}, [2]uint64{0, 0xffff<<32 | uint64(rng.Uint32())}
		var m []byte
		k0, k1 := word(0), word(1)
		if i%2 == 0 {
			m = be.AppendUint32(be.AppendUint32(m, uint32(src[1])), uint32(dst[1]))
		} else {
			k0, k1 = word(2), word(3)
			// One address that looks like IPv4 does not make an IPv4 connection.
			src[0] = rng.Uint64() * uint64(i>>1&1)
			dst[0] = rng.Uint64() * uint64(^i>>1&1)
			m = be.AppendUint64(be.AppendUint64(m, src[0]), src[1])
			m = be.AppendUint64(be.AppendUint64(m, dst[0]), dst[1])
		}
		sport, dport, isn, epoch := uint16(rng.Uint32()), uint16(rng.Uint32()), rng.Uint32(), rng.Uint32()
		index, options := uint8(rng.IntN(8)), uint8(rng.Uint32())
		m = be.AppendUint16(be.AppendUint16(m, sport), dport)
		m = append(be.AppendUint32(be.AppendUint32(m, isn), epoch), index, options)
		want := uint32(siphash.Hash(k0, k1, m))&0x07ffffff | epoch%4<<27 | uint32(index)<<29
		if got := c.Number(src, dst, sport, dport, isn, epoch, index, options); got != want {
			t.Fatalf("%x: %#x, want %#x", m, got, want)
		}
	}
}

// A cookie tells the client's segment size, of the very connection that it was made for, in its epoch and the ones beside it, on
// any machine that has the secret.
func TestCookie(t *testing.T) {
	c, other := NewCookies(testSecret), NewCookies(testSecret)
	wrong := testSecret
	wrong[7], wrong[23] = 99, 99
	stranger := NewCookies(wrong)
	const sport, dport, isn, options = 40000, 443, 0x12345678, 0x37
	for _, a := range families {
		for index, want := range cookieMSS {
			index := uint8(index)
			// Epochs whose two bits are 0 to 3, and those in which the epoch wraps.
			for _, now := range []int64{1_800_000_000, 1_800_000_033, 1_800_000_065, 1_800_000_097, 0, 1 << 37, 1<<37 - 1} {
				n := c.Number(a.client, a.vip, sport, dport, isn, CookieEpoch(now), index, options)
				for _, later := range []int64{-32, -1, 0, 1, 31, 32} {
					if mss, ok := other.Check(n, a.client, a.vip, sport, dport, isn, now+later, options); !ok || mss != want {
						t.Errorf("index %d at %d: %d, %v %d s later", index, now, mss, ok, later)
					}
				}
				// Also after four epochs, when the two bits are the same again.
				for _, later := range []int64{-128, -96, -64, 64, 96, 128, 160, 256, 3600, 86400} {
					if _, ok := c.Check(n, a.client, a.vip, sport, dport, isn, now+later, options); ok {
						t.Errorf("index %d at %d: still a cookie %d s later", index, now, later)
					}
				}
			}
		}
		const now = 1_800_000_000
		n := c.Number(a.client, a.vip, sport, dport, isn, CookieEpoch(now), 6, options)
		check := func(c *Cookies, n uint32, src, dst [2]uint64, sport, dport uint16, isn uint32, options uint8) bool {
			_, ok := c.Check(n, src, dst, sport, dport, isn, now, options)
			return ok
		}
		cases := map[string]bool{
			"another client":          check(c, n, [2]uint64{a.client[0], a.client[1] + 1}, a.vip, sport, dport, isn, options),
			"another VIP":             check(c, n, a.client, [2]uint64{a.vip[0], a.vip[1] + 1}, sport, dport, isn, options),
			"the way back":            check(c, n, a.vip, a.client, dport, sport, isn, options),
			"another port":            check(c, n, a.client, a.vip, sport+1, dport, isn, options),
			"another VIP's port":      check(c, n, a.client, a.vip, sport, dport+1, isn, options),
			"another sequence number": check(c, n, a.client, a.vip, sport, dport, isn+1, options),
			"another window scale":    check(c, n, a.client, a.vip, sport, dport, isn, options^1),
			"no SACK":                 check(c, n, a.client, a.vip, sport, dport, isn, options^0x10),
			"no ECN":                  check(c, n, a.client, a.vip, sport, dport, isn, options^0x20),
			"no timestamps":           check(c, n, a.client, a.vip, sport, dport, isn, 0x0f),
			"another secret":          check(stranger, n, a.client, a.vip, sport, dport, isn, options),
		}
		for name, ok := range cases {
			if ok {
				t.Errorf("%x: %s has the same cookie", a.client, name)
			}
		}
		for bit := range 32 {
			if check(c, n^1<<bit, a.client, a.vip, sport, dport, isn, options) {
				t.Errorf("%x: bit %d of a cookie does not matter", a.client, bit)
			}
		}
	}
}

func TestMSSIndex(t *testing.T) {
	for _, c := range []struct{ mss, want, want6 uint16 }{
		{0, 536, 1220}, {1, 536, 1220}, {535, 536, 1220}, {536, 536, 1220}, {1219, 536, 1220}, {1220, 1220, 1220}, {1299, 1220, 1220},
		{1300, 1300, 1300}, {1380, 1300, 1300}, {1400, 1400, 1400}, {1440, 1440, 1440}, {1451, 1440, 1440}, {1452, 1452, 1452},
		{1460, 1460, 1460}, {8939, 1460, 1460}, {8940, 8940, 8940}, {8960, 8940, 8940}, {65535, 8940, 8940},
	} {
		if got, got6 := cookieMSS[MSSIndex(c.mss)], cookieMSS[MSSIndex6(c.mss)]; got != c.want || got6 != c.want6 {
			t.Errorf("%d becomes %d and over IPv6 %d, want %d and %d", c.mss, got, got6, c.want, c.want6)
		}
	}
}

// The secret of a seed is what HKDF-SHA-256 says, here as computed by Python's hmac: agents and nodes of any version agree.
func TestCookieSecret(t *testing.T) {
	got, err := CookieSecret([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "d832bb67f3e4c1bef11e95611384b1d4659f6d26ffd465d80498264915bcc637"; hex.EncodeToString(got[:]) != want {
		t.Errorf("%x, want %s", got, want)
	}
	if _, err := CookieSecret(make([]byte, 15)); err == nil {
		t.Error("15 bytes are taken")
	}
}

// Ten million random acknowledgements, from random sources or from one that was given a cookie for another connection, are taken
// for cookies about as often as 27 bits and three of four epochs say: 0.06 times.
func TestCookieForged(t *testing.T) {
	c, rng := NewCookies(testSecret), rand.New(rand.NewPCG(11, 12))
	n := 10_000_000
	if testing.Short() || raceEnabled {
		n = 500_000
	}
	const now = 1_800_000_000
	given := c.Number(client4, vip4, 40000, 443, 1, CookieEpoch(now), 6, 0x17)
	accepted := 0
	for i := range n {
		src, number, sport, isn := client4, rng.Uint32(), uint16(rng.Uint32()), rng.Uint32()
		switch i % 4 {
		case 0:
			src[1] = 0xffff<<32 | uint64(rng.Uint32())
		case 1:
			number = given
		}
		if _, ok := c.Check(number, src, vip4, sport, 443, isn, now, 0x17); ok {
			accepted++
		}
	}
	if accepted > 1 {
		t.Errorf("%d of %d random acknowledgements are accepted", accepted, n)
	}
}

// FuzzCookie: every cookie tells what it was made of in three epochs, and in the one before and after these nothing; any number
// at all can be checked.
func FuzzCookie(f *testing.F) {
	f.Add(uint64(0), uint64(0xffff_01020304), uint64(0), uint64(0xffff_c000020a), uint16(1), uint16(2), uint32(3), int64(4), uint16(1460), uint8(5), uint32(6))
	f.Add(uint64(1)<<61, uint64(1), uint64(0), uint64(0), uint16(0), uint16(0), uint32(0), int64(-1), uint16(0), uint8(255), uint32(1)<<31)
	c := NewCookies(testSecret)
	f.Fuzz(func(t *testing.T, sh, sl, dh, dl uint64, sport, dport uint16, isn uint32, now int64, mss uint16, options uint8, number uint32) {
		src, dst := [2]uint64{sh, sl}, [2]uint64{dh, dl}
		if got, ok := c.Check(number, src, dst, sport, dport, isn, now, options); !ok && got != 0 {
			t.Fatalf("%#x is no cookie and tells %d", number, got)
		}
		for _, index := range []uint8{MSSIndex(mss), MSSIndex6(mss)} {
			if index > 7 || cookieMSS[index] > max(mss, 1220) {
				t.Fatalf("%d has the index %d", mss, index)
			}
			n := c.Number(src, dst, sport, dport, isn, CookieEpoch(now), index, options)
			for _, epochs := range []int64{-2, -1, 0, 1, 2} {
				got, ok := c.Check(n, src, dst, sport, dport, isn, now+epochs*32, options)
				if want := epochs > -2 && epochs < 2; ok != want || ok && got != cookieMSS[index] {
					t.Fatalf("%#x, %d epochs later: %d, %v", n, epochs, got, ok)
				}
			}
		}
	})
}

func TestCookieAllocatesNothing(t *testing.T) {
	c, sum := NewCookies(testSecret), uint32(0)
	for _, a := range families {
		allocs := testing.AllocsPerRun(100, func() {
			n := c.Number(a.client, a.vip, 40000, 443, sum, 7, MSSIndex(1460), 0x17)
			mss, _ := c.Check(n, a.client, a.vip, 40000, 443, sum, 7<<cookieSeconds, 0x17)
			sum += uint32(mss)
		})
		if allocs != 0 {
			t.Errorf("%x: %v allocations", a.client, allocs)
		}
	}
	if sum != 2*101*1460 {
		t.Errorf("the cookies tell %d in all", sum)
	}
}

func BenchmarkCookie(b *testing.B) {
	c := NewCookies(testSecret)
	for i, a := range families {
		name := [...]string{"IPv4", "IPv6"}[i]
		b.Run(name+"/Number", func(b *testing.B) {
			sum := uint32(0)
			b.ReportAllocs()
			for b.Loop() {
				sum += c.Number(a.client, a.vip, 40000, 443, sum, 7, 6, 0x17)
			}
			benchSink = uint64(sum)
		})
		b.Run(name+"/Check-none", func(b *testing.B) {
			number := uint32(7 << cookieEpochShift)
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := c.Check(number, a.client, a.vip, 40000, 443, number, 7<<cookieSeconds, 0x17); ok {
					benchSink++
				}
				number += 1 << 8 // most of these are of the right epoch
			}
		})
	}
}
