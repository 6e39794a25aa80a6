//go:build race

package sim

// raceEnabled shortens the runs: the race detector slows them tenfold.
const raceEnabled = true
