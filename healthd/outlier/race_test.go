//go:build race

package outlier

// raceEnabled shortens the simulations: there is one goroutine, which the race detector only slows.
const raceEnabled = true
