//go:build amd64 || arm64

package guard

// prefetch asks for the line of 64 bytes at words + (hash & mask) * 64 for each hash. It reads no word, so a wrong
// address would be harmless, and the race detector has nothing to see.
//
//go:noescape
func prefetch(words []uint64, mask uint64, hashes []uint64)
