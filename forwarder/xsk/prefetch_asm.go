//go:build linux && (amd64 || arm64)

package xsk

// prefetch asks for the cache lines in which the headers of each frame lie: those of its first byte and of byte 54, where
// the TCP header of an IPv4 packet ends. It reads nothing, so a wrong address would be harmless.
//
//go:noescape
func prefetch(memory []byte, batch []Desc)
