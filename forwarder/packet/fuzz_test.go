package packet

import (
	"math"
	"testing"
)

// addSeeds gives a fuzz target one frame of each kind that matters.
func addSeeds(f *testing.F, add func(frame []byte)) {
	f.Helper()
	for _, text := range []string{
		"",
		eth4 + ip4TCP + tcpSYN,
		eth4 + ip4UDP + udp4,
		eth4 + "46 00 00 2c  00 00 40 00  40 06 d7 b8  0a 01 02 03  c0 00 02 0a  94 04 00 01" + tcpSYN,
		eth6 + "60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN + "00 00",
		eth6 + "6f f1 23 45  00 0c 11 40" + ip6Addrs + udp4,
		eth6 + "60 00 00 00  00 1c 2c 40" + ip6Addrs + "06 00 00 01 00 00 00 07" + tcpSYN,
	} {
		add(fromHex(f, text))
	}
}

// FuzzParse: any frame gives a Meta whose fields hold together, and which only depends on the bytes of the packet.
func FuzzParse(f *testing.F) {
	addSeeds(f, func(frame []byte) { f.Add(frame) })
	f.Fuzz(func(t *testing.T, frame []byte) {
		m := parse(frame)
		if len(frame) > math.MaxUint16 {
			if m != (Meta{Reason: Truncated}) {
				t.Fatalf("%d bytes: %+v", len(frame), m)
			}
			return
		}
		checkMeta(t, frame, m)
		if m.End != 0 {
			if again := parse(frame[:m.End]); again != m {
				t.Fatalf("%x: without padding %+v, with it %+v", frame, again, m)
			}
		}
	})
}

// FuzzEncap: whatever Parse lets through can be encapsulated in all ways, and comes out of the other end unchanged.
func FuzzEncap(f *testing.F) {
	addSeeds(f, func(frame []byte) { f.Add(frame) })
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > 16000 || parse(frame).Reason != None {
			return
		}
		encaps := testEncaps(t)
		for i := range encaps {
			checkApply(t, &encaps[i], frame)
		}
	})
}
