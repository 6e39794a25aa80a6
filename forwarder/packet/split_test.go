package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/ip4defrag"
	"github.com/google/gopacket/layers"
)

// split returns all fragments of a frame, cut as a worker does: piece 0 last, and in place.
func split(t testing.TB, frame []byte, mtu int) (frames [][]byte, metas []Meta) {
	t.Helper()
	m := parse(frame)
	frame = bytes.Clone(frame)
	frames, metas = make([][]byte, Pieces(&m, mtu)), make([]Meta, Pieces(&m, mtu))
	for piece := len(frames) - 1; piece >= 0; piece-- {
		out := frame
		if piece > 0 {
			out = make([]byte, int(m.L3)+mtu)
		}
		metas[piece] = Split(frame, &m, mtu, piece, out)
		frames[piece] = out[:metas[piece].End]
	}
	return frames, metas
}

// layer4 decodes the IPv4 header of a frame.
func layer4(t testing.TB, frame []byte) *layers.IPv4 {
	t.Helper()
	g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	ip, _ := g.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	if ip == nil {
		t.Fatalf("%x: %v", frame, g)
	}
	return ip
}

// reassembled puts the data of fragments together: by the RFC's rule that offset and length tell the place, and by gopacket,
// unless there are options or a last fragment of less than eight bytes, which it does not reckon with.
func reassembled(t testing.TB, frames [][]byte) []byte {
	t.Helper()
	odd := slices.ContainsFunc(frames, func(f []byte) bool { ip := layer4(t, f); return ip.IHL > 5 || len(ip.Payload) < 8 })
	defrag := ip4defrag.NewIPv4Defragmenter()
	data, filled, length := make([]byte, 1<<16), 0, -1
	for i, f := range frames {
		ip := layer4(t, f)
		if naiveSum(ip.Contents) != 0xffff || len(ip.Payload) == 0 {
			t.Fatalf("fragment %x", f)
		}
		from := int(ip.FragOffset) * 8
		if len(bytes.Trim(data[from:from+len(ip.Payload)], "\x00")) > 0 {
			t.Fatalf("fragment %x overlaps another one", f)
		}
		filled += copy(data[from:], ip.Payload)
		if ip.Flags&layers.IPv4MoreFragments == 0 {
			length = from + len(ip.Payload)
		}
		if odd {
			continue
		}
		whole, err := defrag.DefragIPv4(ip)
		if err != nil || (whole != nil) != (i == len(frames)-1) {
			t.Fatalf("fragment %d of %d: %v, %v", i, len(frames), whole, err)
		}
		if whole != nil && !bytes.Equal(whole.Payload, data[:length]) {
			t.Fatalf("gopacket: %x, want %x", whole.Payload, data[:length])
		}
	}
	if filled != length {
		t.Fatalf("%d bytes of %d in the fragments", filled, length)
	}
	return data[:length]
}

// randomWhole is a random IPv4 packet that may be cut and is none yet, perhaps tagged, with options of both kinds.
func randomWhole(t testing.TB, rng *rand.Rand) []byte {
	for {
		p := randomPacket(t, rng)
		m := parse(p.frame)
		if m.Flags&V6 != 0 {
			continue
		}
		p.frame = bytes.Clone(p.frame[:m.End])
		if m.L4 == ethLen+ipv4Len && rng.IntN(2) == 0 {
			p.frame = append(p.frame[:ethLen], withOptions(p.frame[ethLen:])...)
			if rng.IntN(2) == 0 {
				copy(p.frame[ethLen+ipv4Len:], []byte{1, 7, 7, 4, 10, 0, 0, 1}) // record route, which is not copied
			}
		}
		p.frame[ethLen+6] = byte(rng.IntN(2)) << 7 // the reserved bit stays what it is
		setChecksum(p.frame[ethLen : ethLen+int(p.frame[ethLen]&0xf)*4])
		if m := parse(p.frame); m.Reason != None {
			t.Fatalf("%x: %+v", p.frame, m)
		}
		if rng.IntN(3) == 0 {
			return tagged(p.frame)
		}
		return p.frame
	}
}

// checkPieces checks what must hold of the fragments of a frame one by one.
func checkPieces(t testing.TB, frame []byte, mtu int, frames [][]byte, metas []Meta) {
	t.Helper()
	was := parse(frame)
	for i, f := range frames {
		m := parse(f)
		if was.Flags&ICMPError != 0 && len(frames) > 1 { // of which Parse takes no fragments
			m = metas[i]
		}
		if m.Reason != None || int(m.End) != len(f) || int(m.End-m.L3) > mtu || !bytes.Equal(f[:m.L3], frame[:m.L3]) {
			t.Fatalf("piece %d of %x\nis %x\n%+v", i, frame, f, m)
		}
		if i < len(frames)-1 && int(m.End-m.L3) <= mtu-fragmentUnit {
			t.Fatalf("piece %d of %d has only %d bytes of %d", i, len(frames), m.End-m.L3, mtu)
		}
		// Split keeps what Parse cannot find in a further fragment.
		want := was
		want.End = m.End
		if i > 0 {
			want.Flags = was.Flags&^(First|FIN|SYN|RST|ICMPError) | Later
		} else if len(frames) > 1 && was.Flags&Later == 0 {
			want.Flags |= First
		}
		if metas[i] != want {
			t.Fatalf("piece %d:\n got %+v\nwant %+v", i, metas[i], want)
		}
		m.SetPorts(f, &testKey, was.SrcPort, was.DstPort, was.Proto)
		if was.Flags&(Later|ICMPError) == 0 && m != want {
			t.Fatalf("piece %d parses as\n     %+v\nwant %+v", i, m, want)
		}
	}
}

// Cut, perhaps cut again, and put together by gopacket in any order, it is the packet again.
func TestSplitAndReassemble(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 15))
	several := 0
	for range 3000 {
		frame := randomWhole(t, rng)
		m := parse(frame)
		mtu := 100 + rng.IntN(700)
		frames, metas := split(t, frame, mtu)
		checkPieces(t, frame, mtu, frames, metas)
		if len(frames) == 1 {
			if !bytes.Equal(frames[0], frame) {
				t.Fatalf("%x fits and became %x", frame, frames[0])
			}
			continue
		}
		several++
		if rng.IntN(2) == 0 { // a further router has less room
			var finer [][]byte
			for _, f := range frames {
				again, metas := split(t, f, 92)
				checkPieces(t, f, 92, again, metas)
				finer = append(finer, again...)
			}
			frames = finer
		}
		rng.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
		if got := reassembled(t, frames); !bytes.Equal(got, frame[m.L4:m.End]) {
			t.Fatalf("put together:\n got %x\nwant %x", got, frame[m.L4:m.End])
		}
	}
	if several < 1000 {
		t.Errorf("%d packets were cut: the test has grown blunt", several)
	}
}

// Options go into further fragments if they are to be copied; else there is padding in place of them.
func TestSplitOptions(t *testing.T) {
	for _, c := range []struct{ name, options, want string }{
		{"copied", "94 04 00 00", "94 04 00 00"},
		{"not copied", "07 07 04 0a 00 00 01 00", "01 01 01 01 01 01 01 00"},
		{"both", "44 04 05 00 01 01 94 04 00 00 07 03 04 00 00 00", "01 01 01 01 01 01 94 04 00 00 01 01 01 00 00 00"},
		{"behind the end", "00 07 03 04", "00 07 03 04"},
		{"of length 1", "07 01 07 03", "07 01 07 03"},
		{"too long", "07 05 07 03", "07 05 07 03"},
		{"kind alone", "01 01 01 07", "01 01 01 07"},
	} {
		options := fromHex(t, c.options)
		frame := fromHex(t, eth4+ip4UDP)
		frame = append(append(frame, options...), make([]byte, 200)...)
		frame[14] += uint8(len(options) / 4)
		binary.BigEndian.PutUint16(frame[16:], uint16(len(frame)-ethLen))
		binary.BigEndian.PutUint16(frame[34+len(options)+4:], 200)
		frame[20] = 0
		setChecksum(frame[14 : 34+len(options)])
		frames, _ := split(t, frame, 100)
		for i, f := range frames {
			want := fromHex(t, c.want)
			if i == 0 {
				want = options
			}
			if got := f[34 : 34+len(options)]; !bytes.Equal(got, want) {
				t.Errorf("%s, piece %d: %x, want %x", c.name, i, got, want)
			}
		}
	}
}

// Fragments of the translation are the translation of the fragments, and an encapsulated one comes out as it was.
func TestSplitAndApply(t *testing.T) {
	rng := rand.New(rand.NewPCG(16, 16))
	e := NewNAT(nextMAC, ownMAC, randomHost(rng, true), 8080, 0)
	outer := testEncaps(t)[1].encap
	for range 500 {
		frame := randomWhole(t, rng)
		m := parse(frame)
		e.sum = uint16(rng.IntN(2)) * 100 // MSS
		want, _ := split(t, forth(t, frame, &e), 300)
		frames, metas := split(t, frame, 300)
		for i, f := range frames {
			mem := append(make([]byte, 96), f...)
			at, n := e.Apply(mem, 96, &metas[i])
			if !bytes.Equal(mem[at:at+n], want[i]) {
				t.Fatalf("piece %d:\n got %x\nwant %x", i, mem[at:at+n], want[i])
			}
			mem = append(make([]byte, 96), f...)
			at, n = outer.Apply(mem, 96, &metas[i])
			if !bytes.Equal(mem[at+ethLen+ipv4Len:at+n], f[m.L3:]) {
				t.Fatalf("piece %d in IPIP: %x, was %x", i, mem[at:at+n], f)
			}
		}
	}
}

func TestMayFragment(t *testing.T) {
	v4 := fromHex(t, eth4+ip4TCP+tcpSYN) // with DF
	free := slices.Clone(v4)
	free[20] = 0
	setChecksum(free[14:34])
	for name, c := range map[string]struct {
		frame []byte
		want  bool
	}{
		"DF":        {v4, false},
		"no DF":     {free, true},
		"DF tagged": {tagged(v4), false}, "no DF tagged": {tagged(free), true},
		"IPv6": {fromHex(t, eth6+"60 00 00 00  00 14 06 40"+ip6Addrs+tcpSYN), false},
	} {
		m := parse(c.frame)
		if got := MayFragment(c.frame, &m); got != c.want || m.Reason != None {
			t.Errorf("%s: %v (%v), want %v", name, got, m.Reason, c.want)
		}
	}
}
