package packet

import "golang.org/x/sys/cpu"

var hasAVX2 = cpu.X86.HasAVX2

// hash4AVX2 is hash4 for n flows, four at a time: of addrs and last, the two words of each one's message. It takes less than a third
// of the time. What stands in hashes behind the n is overwritten, up to a multiple of four.
//
//go:noescape
func hash4AVX2(state *[4]uint64, addrs, last, hashes *[scratchSize]uint64, n int)

// hashPlain computes the hashes of the first n flows of s.
func (s *Scratch) hashPlain(key *Key, hashes *[scratchSize]uint64, n int) {
	if !hasAVX2 {
		s.hashEach(key, hashes, n)
		return
	}
	var state [4]uint64
	state[0], state[1], state[2], state[3] = sipInit(key)
	hash4AVX2(&state, &s.addrs, &s.last, hashes, n)
}
