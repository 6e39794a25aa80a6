//go:build race

package maglev

// raceEnabled shortens tests of a single goroutine, which the race detector only slows, and leaves out those
// that it disturbs.
const raceEnabled = true
