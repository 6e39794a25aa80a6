//go:build !amd64

package packet

// hashPlain computes the hashes of the first n flows of s.
func (s *Scratch) hashPlain(key *Key, hashes *[scratchSize]uint64, n int) { s.hashEach(key, hashes, n) }
