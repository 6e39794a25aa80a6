package packet

import "golang.org/x/sys/cpu"

var hasAVX2 = cpu.X86.HasAVX2

// hash4AVX2 is hash4 for n flows, four at a time: of addrs and last, the two words of each one's message. It takes less than a third
// of the time. What stands in hashes behind the n is overwritten, up to a multiple of four.
//
//go:noescape
func hash4AVX2(state *[4]uint64, addrs, last, hashes *[scratchSize]uint64, n int)

// hash6AVX2 is hash6 for n flows, likewise. words are the five words of each one's message.
//
//go:noescape
func hash6AVX2(state *[4]uint64, words *[5][scratchSize]uint64, hashes *[scratchSize]uint64, n int)

// hashPlain4 computes the hashes of the first n packets of s, as if they were all plain IPv4 packets.
func (s *Scratch) hashPlain4(key *Key, hashes *[scratchSize]uint64, n int) {
	if !hasAVX2 {
		s.hashEach4(key, hashes, n)
		return
	}
	var state [4]uint64
	state[0], state[1], state[2], state[3] = sipInit(key)
	hash4AVX2(&state, &s.addrs, &s.last, hashes, n)
}

// hashPlain6 computes the hashes of the first n plain IPv6 packets of s.
func (s *Scratch) hashPlain6(key *Key, n int) {
	if !hasAVX2 {
		s.hashEach6(key, n)
		return
	}
	var state [4]uint64
	state[0], state[1], state[2], state[3] = sipInit(key)
	hash6AVX2(&state, &s.words6, &s.hashes6, n)
}
