package packet

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// frameDesc is a Desc, as the rings have them.
type frameDesc struct {
	Addr    uint64
	Len     uint32
	Options uint32
}

// checkBatch compares ParseBatch with Parse for a batch of these frames, which lie close together in memory, the last at its very end.
func checkBatch(t testing.TB, frames ...[]byte) {
	t.Helper()
	var memory []byte
	var descs []frameDesc
	for _, f := range frames {
		descs = append(descs, frameDesc{Addr: uint64(len(memory)), Len: uint32(len(f))})
		memory = append(memory, f...)
	}
	memory = memory[:len(memory):len(memory)]
	metas := make([]Meta, len(frames))
	for i := range metas {
		metas[i] = Meta{Hash: 1, Dst: Addr{2, 3}, SrcPort: 4, DstPort: 5, L3: 6, L4: 7, End: 8, Flags: 0xfff9, Proto: 12, Class: 10, Reason: 11}
	}
	var hashes [scratchSize]uint64
	fragments := ParseBatch(memory, descs, &testKey, metas, &hashes, new(Scratch))
	want := false
	for i, f := range frames {
		m := parse(f)
		if metas[i] != m || hashes[i] != m.Hash {
			t.Fatalf("frame %d of %d: %x: %+v and hash %#x, want %+v", i, len(frames), f, metas[i], hashes[i], m)
		}
		want = want || m.Reason == None && m.Flags&(First|Later) != 0
	}
	if fragments != want {
		t.Fatalf("fragments %v, want %v", fragments, want)
	}
}

// TestParseBatchIsParse mutates frames of each kind, at the places that are looked at, so that each test in the loop of plain packets
// fails in turn.
func TestParseBatchIsParse(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var kinds, plain [][]byte
	addSeeds(t, func(frame []byte) { kinds = append(kinds, append(frame, make([]byte, 60)...)) })
	for _, k := range kinds {
		if m := parse(k); m.Reason == None && (m.Proto == ProtoTCP || m.Proto == ProtoUDP) && m.Flags&(First|Later|ICMPError) == 0 {
			plain = append(plain, k)
		}
	}
	checkBatch(t)
	for range 20_000 {
		var frames [][]byte
		for range 1 + rng.IntN(scratchSize) {
			f := bytes.Clone(plain[rng.IntN(len(plain))])
			if rng.IntN(4) == 0 {
				f = bytes.Clone(kinds[rng.IntN(len(kinds))])
			}
			for range rng.IntN(3) {
				f[12+rng.IntN(min(len(f), 80)-12)] = byte(rng.Uint32()) >> rng.IntN(8)
			}
			if rng.IntN(2) == 0 && f[14] == 0x45 {
				setChecksum(f[14:34])
			}
			if rng.IntN(4) == 0 {
				f = f[:rng.IntN(len(f)+1)]
			}
			frames = append(frames, f)
		}
		checkBatch(t, frames...)
	}
}

// TestHashesTogether compares all ways to hash plain packets, in batches of all sizes.
func TestHashesTogether(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for n := range scratchSize + 1 {
		var s Scratch
		last := func() uint64 { return uint64(rng.Uint32()) | ProtoUDP<<32 }
		for i := range n {
			s.addrs[i], s.last[i] = rng.Uint64(), last()
			for w := range 4 {
				s.words6[w][i] = rng.Uint64()
			}
			s.words6[4][i] = last()
		}
		var together, each [scratchSize]uint64
		s.hashPlain4(&testKey, &together, n)
		s.hashEach4(&testKey, &each, n)
		if !slices.Equal(together[:n], each[:n]) {
			t.Fatalf("%d flows: %x, want %x", n, together[:n], each[:n])
		}
		s.hashPlain6(&testKey, n)
		together = s.hashes6
		s.hashEach6(&testKey, n)
		if !slices.Equal(together[:n], s.hashes6[:n]) {
			t.Fatalf("%d flows of IPv6: %x, want %x", n, together[:n], s.hashes6[:n])
		}
	}
}
