//go:build linux && !amd64 && !arm64

package xsk

// prefetch does nothing here: a read would have to wait for what it fetches.
func prefetch([]byte, []Desc) {}
