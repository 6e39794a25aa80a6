//go:build race

package conntrack

// raceEnabled shortens tests of a single goroutine, which the race detector only slows.
const raceEnabled = true
