//go:build amd64 || arm64

package prefetch

// Lines asks for the line of 64 bytes at words + (hash & mask) * 64 for each hash. It reads no word, so a wrong address would be
// harmless, and the race detector has nothing to see. Any goroutine may call it.
//
//go:noescape
func Lines(words []uint64, mask uint64, hashes []uint64)
