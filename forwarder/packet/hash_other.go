//go:build !amd64

package packet

// hashPlain4 computes the hashes of the first n packets of s, as if they were all plain IPv4 packets.
func (s *Scratch) hashPlain4(key *Key, hashes *[scratchSize]uint64, n int) {
	s.hashEach4(key, hashes, n)
}

// hashPlain6 computes the hashes of the first n plain IPv6 packets of s.
func (s *Scratch) hashPlain6(key *Key, n int) { s.hashEach6(key, n) }
