//go:build linux

package agent

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/testenv"
)

//go:generate go tool -modfile=../../tools/go.mod bpf2go -cc clang-14 -target bpfel -tags linux -type answer -output-stem cookie -cflags "-O2 -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" cookieCodec bpf/testing/cookie.c

// Where the members of struct answer are.
const (
	answerSrc     = 0
	answerDst     = 16
	answerPorts   = 32
	answerISN     = 36
	answerEpoch   = 40
	answerNumber  = 44
	answerIndex   = 48
	answerOptions = 49
	answerV6      = 50
	answerMade    = 52
	answerMSS     = 56
	answerSize    = 60
	answerStride  = 64 // the kernel pads elements to eight bytes
)

// Cookies in C equal those in Go, and tell the same, for 1,048,576 random connections under 16 random secrets, half of them over
// IPv6. Of the numbers that are checked most are cookies, of epochs up to five away from the current one, or differ from one in
// one bit.
func TestCookieEqualsGo(t *testing.T) {
	testenv.RequireRoot(t)
	var objs cookieCodecObjects
	if err := loadCookieCodecObjects(&objs, nil); err != nil {
		t.Fatal(err)
	}
	defer objs.Close()
	memory, err := objs.Answers.Memory()
	if err != nil {
		t.Fatal(err)
	}
	if size := binary.Size(cookieCodecAnswer{}); size != answerSize {
		t.Fatalf("struct answer has %d bytes", size)
	}

	source := rand.NewChaCha8([32]byte{8})
	random, le := rand.New(source), binary.LittleEndian
	count := int(objs.Answers.MaxEntries())
	given, answered := make([]byte, count*answerStride), make([]byte, count*answerStride)
	good := 0
	for range 16 {
		var secret [32]byte
		source.Read(secret[:])
		word := func(i int) uint64 { return le.Uint64(secret[8*i:]) }
		err := objs.Secret.Set(cookieCodecCookieSecret{Ipv4: [2]uint64{word(0), word(1)}, Ipv6: [2]uint64{word(2), word(3)}})
		if err != nil {
			t.Fatal(err)
		}
		cookies := guard.NewCookies(secret)
		source.Read(given)
		for i := range count {
			a := given[i*answerStride:][:answerStride]
			a[answerIndex] &= 7
			a[answerV6] = byte(i & 1)
			clear(a[answerMade:])
			switch i % 16 {
			case 0: // a random number
			case 1:
				le.PutUint32(a[answerNumber:], goCookie(cookies, a, 0)^1<<random.IntN(32))
			default:
				le.PutUint32(a[answerNumber:], goCookie(cookies, a, uint32(random.IntN(11))-5))
			}
		}
		if _, err := memory.WriteAt(given, 0); err != nil {
			t.Fatal(err)
		}
		if n, err := objs.AnswerAll.Run(&ebpf.RunOptions{}); err != nil || int(n) != count {
			t.Fatalf("answered %d of %d: %v", n, count, err)
		}
		if _, err := memory.ReadAt(answered, 0); err != nil {
			t.Fatal(err)
		}
		for i := range count {
			a := answered[i*answerStride:][:answerStride]
			if made, want := le.Uint32(a[answerMade:]), goCookie(cookies, a, 0); made != want {
				t.Fatalf("secret %x, %x: C makes %#x, Go %#x", secret, a[:answerMade], made, want)
			}
			mss, want := le.Uint32(a[answerMSS:]), goCheck(cookies, a)
			if mss != uint32(want) {
				t.Fatalf("secret %x, %x: the number tells %d in C, %d in Go", secret, a[:answerMade], mss, want)
			}
			if mss > 0 {
				good++
			}
		}
	}
	// Three epochs of eleven, of 14 numbers in 16.
	if total := 16 * count; good < total/5 || good > total/3 {
		t.Errorf("%d of %d numbers are cookies", good, total)
	}
}

// goCookie is the cookie of an answer, of an epoch so many after its own.
func goCookie(c *guard.Cookies, a []byte, later uint32) uint32 {
	sport, dport := binary.BigEndian.Uint16(a[answerPorts:]), binary.BigEndian.Uint16(a[answerPorts+2:])
	return c.Number(wordsOf(a[answerSrc:], a[answerV6]), wordsOf(a[answerDst:], a[answerV6]), sport, dport,
		binary.LittleEndian.Uint32(a[answerISN:]), binary.LittleEndian.Uint32(a[answerEpoch:])+later, a[answerIndex], a[answerOptions])
}

// goCheck is the segment size that the number of an answer tells, or 0.
func goCheck(c *guard.Cookies, a []byte) uint16 {
	sport, dport := binary.BigEndian.Uint16(a[answerPorts:]), binary.BigEndian.Uint16(a[answerPorts+2:])
	mss, ok := c.Check(binary.LittleEndian.Uint32(a[answerNumber:]), wordsOf(a[answerSrc:], a[answerV6]),
		wordsOf(a[answerDst:], a[answerV6]), sport, dport, binary.LittleEndian.Uint32(a[answerISN:]),
		int64(binary.LittleEndian.Uint32(a[answerEpoch:]))<<5+7, a[answerOptions])
	if !ok {
		return 0
	}
	return mss
}

// wordsOf makes of an address as it lies in a packet the two words that package guard takes.
func wordsOf(b []byte, v6 byte) [2]uint64 {
	if v6 == 0 {
		return [2]uint64{0, 0xffff<<32 | uint64(binary.BigEndian.Uint32(b))}
	}
	return [2]uint64{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}
