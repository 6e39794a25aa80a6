package packet

import (
	"math"
	"testing"
)

// addSeeds gives a fuzz target, or another test, one frame of each kind that matters.
func addSeeds(tb testing.TB, add func(frame []byte)) {
	tb.Helper()
	for _, text := range []string{
		"",
		eth4 + ip4TCP + tcpSYN,
		eth4 + ip4UDP + udp4,
		eth4 + "46 00 00 2c  00 00 40 00  40 06 d7 b8  0a 01 02 03  c0 00 02 0a  94 04 00 01" + tcpSYN,
		eth6 + "60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN + "00 00",
		eth6 + "6f f1 23 45  00 0c 11 40" + ip6Addrs + udp4,
		eth4 + "45 00 00 2c  00 07 20 00  40 06 8c b7  0a 01 02 03  c0 00 02 0a" + tcpSYN + "00 00 00 00",
		eth4 + "45 00 00 20  00 07 00 02  40 11 ac b6  0a 01 02 03  c0 00 02 0a" + udp4,
		eth6 + "60 00 00 00  00 20 2c 40" + ip6Addrs + "06 00 00 01 00 00 00 07" + tcpSYN + "00 00 00 00",
		eth6 + "60 00 00 00  00 14 2c 40" + ip6Addrs + "3c 00 00 10 00 00 00 07" + udp4,
		eth6 + "60 00 00 00  00 34 00 40" + ip6Addrs + "3c 00 01 04 00 00 00 00  2b 00 01 04 00 00 00 00" +
			"2c 00 04 00 00 00 00 00  06 00 00 00 00 00 00 07" + tcpSYN,
		eth4 + "45 00 00 38  00 00 00 00  40 01 ac b7  0a 01 02 03  c0 00 02 0a  03 04 00 00 00 00 05 dc" +
			"45 00 00 28  00 00 40 00  40 06 00 00  c0 00 02 0a  c6 33 64 07  00 50 9c 40 00 00 00 01",
		eth6 + "60 00 00 00  00 40 3a 40" + ip6Addrs + "02 00 00 00 00 00 05 00" +
			"60 00 00 00  00 10 3c 40  20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 10" +
			"20 01 0d b8 00 05 00 00 00 00 00 00 00 00 00 07" +
			"06 00 01 04 00 00 00 00  00 50 9c 40 00 00 00 01",
	} {
		add(fromHex(tb, text))
	}
}

// FuzzParse: any frame gives a Meta whose fields hold together, and which only depends on the bytes of the packet. Whatever
// else reads the frame by that Meta agrees with it.
func FuzzParse(f *testing.F) {
	addSeeds(f, func(frame []byte) {
		f.Add(frame)
		if len(frame) > 0 {
			tagged := append(make([]byte, 4), frame...)
			PushVLAN(tagged, 4, len(frame), 100)
			f.Add(tagged)
		}
	})
	f.Fuzz(func(t *testing.T, frame []byte) {
		m := parse(frame)
		if len(frame) > math.MaxUint16 {
			if m != (Meta{Reason: Truncated}) {
				t.Fatalf("%d bytes: %+v", len(frame), m)
			}
			return
		}
		checkMeta(t, frame, m)
		checkBatch(t, frame, frame)
		if m.End != 0 {
			if again := parse(frame[:m.End]); again != m {
				t.Fatalf("%x: without padding %+v, with it %+v", frame, again, m)
			}
			checkReaders(t, frame[:m.End:m.End], m)
		}
	})
}

// checkReaders checks what reads a frame that Parse has found a packet in. frame ends with the packet.
func checkReaders(t *testing.T, frame []byte, m Meta) {
	src := Source(frame, &m)
	if src.is4() == (m.Flags&V6 != 0) {
		t.Fatalf("%x: source %v of %+v", frame, src, m)
	}
	TTL(frame, &m)
	if m.Reason != None {
		return
	}
	if m.Flags&ICMPError != 0 {
		if h := FlowHash(&testKey, QuotedDst(frame, &m), m.Dst, m.SrcPort, m.DstPort, m.Proto); h != m.Hash {
			t.Fatalf("%x: hash %#x, that of the quoted packet's flow is %#x", frame, m.Hash, h)
		}
	}
	if m.Flags&(First|Later) == 0 {
		return
	}
	info := ReadFragment(frame, &testKey, &m)
	if info.From >= info.To || info.To > 8192 || (info.From == 0) != (m.Flags&First != 0) || info.Last && m.Flags&First != 0 {
		t.Fatalf("%x: %+v, %+v", frame, m, info)
	}
	later := m
	later.SetPorts(frame, &testKey, m.SrcPort, m.DstPort, m.Proto)
	if m.Flags&First != 0 && later != m || later.Hash != FlowHash(&testKey, src, m.Dst, m.SrcPort, m.DstPort, m.Proto) {
		t.Fatalf("%x: with its own ports %+v becomes %+v", frame, m, later)
	}
}

// FuzzEncap: whatever Parse lets through can be encapsulated in all ways, and comes out of the other end unchanged.
func FuzzEncap(f *testing.F) {
	addSeeds(f, func(frame []byte) { f.Add(frame) })
	f.Fuzz(func(t *testing.T, frame []byte) {
		if m := parse(frame); len(frame) > 16000 || m.Reason != None || m.L3 != ethLen {
			return // a tag is taken off on the way
		}
		encaps := testEncaps(t)
		for i := range encaps {
			checkApply(t, &encaps[i], frame)
		}
	})
}
