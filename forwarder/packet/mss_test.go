package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

func TestClampMSS(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 13))
	for _, c := range []struct {
		name, options string
		mss           uint16
		want          string
	}{
		{"lowered", "02 04 05 b4", 1400, "02 04 05 78"},
		{"equal", "02 04 05 b4", 1460, "02 04 05 b4"},
		{"never raised", "02 04 02 18", 1400, "02 04 02 18"},
		{"to one byte's worth", "02 04 05 b4", 1, "02 04 00 01"},
		{"none", "", 1400, ""},
		{"behind others", "04 02 08 0a 00 00 00 01 00 00 00 02 02 04 ff ff", 1400, "04 02 08 0a 00 00 00 01 00 00 00 02 02 04 05 78"},
		{"at an odd place", "01 02 04 05 b4 01 01 01", 1400, "01 02 04 05 78 01 01 01"},
		{"twice", "02 04 05 b4 01 02 04 ff ff 00 00 00", 1400, "02 04 05 78 01 02 04 05 78 00 00 00"},
		{"behind the end", "00 02 04 05 b4 00 00 00", 1400, "00 02 04 05 b4 00 00 00"},
		{"of length 3", "02 03 ff 01", 14, "02 03 ff 01"},
		{"of length 5", "02 05 ff ff ff 00 00 00", 14, "02 05 ff ff ff 00 00 00"},
		{"of length 3, another follows", "02 03 ff 01 02 04 ff ff", 14, "02 03 ff 01 02 04 00 0e"},
		{"behind one of length 0", "03 00 02 04 05 b4 00 00", 14, "03 00 02 04 05 b4 00 00"},
		{"behind one of length 1", "03 01 02 04 05 b4 00 00", 14, "03 01 02 04 05 b4 00 00"},
		{"beyond the header", "01 01 02 04", 14, "01 01 02 04"},
		{"kind alone", "01 01 01 02", 14, "01 01 01 02"},
		{"behind one too long", "03 09 02 04 05 b4 00 00", 14, "03 09 02 04 05 b4 00 00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			options := fromHex(t, c.options)
			tcp := append(randomBytes(rng, tcpLen), options...)
			tcp[12], tcp[13] = uint8(len(tcp)/4)<<4, uint8(SYN)
			tcp = append(tcp, 0x02, 0x04, 0xff, 0xff) // what looks like an option in the data is none
			tcp[16], tcp[17] = 0, 0
			src, dst := randomBytes(rng, 4), randomBytes(rng, 4)
			binary.BigEndian.PutUint16(tcp[16:], scratch(src, dst, ProtoTCP, tcp))
			want := bytes.Clone(tcp)
			copy(want[tcpLen:], fromHex(t, c.want))
			want[16], want[17] = 0, 0
			binary.BigEndian.PutUint16(want[16:], scratch(src, dst, ProtoTCP, want))
			ClampMSS(tcp, c.mss)
			if !bytes.Equal(tcp, want) {
				t.Errorf("\n got %x\nwant %x", tcp, want)
			}
		})
	}
}

// Whatever the options are, nothing is read beyond the bytes given, and the checksum goes with what was changed.
func TestClampMSSOfAnything(t *testing.T) {
	rng := rand.New(rand.NewPCG(14, 14))
	changed := 0
	for range 100000 {
		tcp := make([]byte, tcpLen+rng.IntN(45))
		for i := range tcp {
			tcp[i] = []byte{0, 1, 2, 2, 4, 4, 3, byte(rng.Uint32())}[rng.IntN(8)]
		}
		tcp[12] = uint8(5+rng.IntN(11)) << 4
		tcp = tcp[:len(tcp):len(tcp)]
		sum := func() uint16 { return naiveSum(append(bytes.Clone(tcp), make([]byte, len(tcp)&1)...)) }
		tcp[16], tcp[17] = 0, 0
		binary.BigEndian.PutUint16(tcp[16:], ^sum())
		before := bytes.Clone(tcp)
		ClampMSS(tcp, 300)
		if sum() != 0xffff {
			t.Fatalf("%x became %x", before, tcp)
		}
		if !bytes.Equal(tcp, before) {
			changed++
		}
	}
	if changed < 5000 {
		t.Errorf("%d of 100000 changed: the test has grown blunt", changed)
	}
}
