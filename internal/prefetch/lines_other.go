//go:build !amd64 && !arm64

package prefetch

import "sync/atomic"

// Lines reads a word of the line of 64 bytes at words + (hash & mask) * 64 for each hash, which brings the line into the cache.
// Any goroutine may call it.
func Lines(words []uint64, mask uint64, hashes []uint64) {
	for _, hash := range hashes {
		atomic.LoadUint64(&words[(hash&mask)*8])
	}
}
