//go:build !amd64 && !arm64

package guard

import "sync/atomic"

// prefetch reads a word of the line of each hash, which brings the line into the cache.
func prefetch(words []uint64, mask uint64, hashes []uint64) {
	for _, hash := range hashes {
		atomic.LoadUint64(&words[(hash&mask)*lineWords])
	}
}
