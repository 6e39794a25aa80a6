package control

import (
	"context"
	"slices"
	"time"
)

const (
	signalsEvery = 100 * time.Millisecond // how often signals are looked at for a stream
	busyFor      = 10 * time.Second       // a line comes each time for so long after something was counted: that nothing comes tells as much
	signOfLife   = 500 * time.Millisecond // and then so often
)

// SignalReader reads how connections to backends fared since it was read last. One goroutine uses it.
type SignalReader interface {
	// Read returns the backends of which something was counted, or that cannot be reached, and the services whose counts
	// tell nothing now.
	Read() (backends []BackendSignals, suspended []string)
}

// FollowSignals sends what r reads, as long as ctx lasts and send returns no error: ten lines a second while anything is counted,
// and else a sign of life.
func FollowSignals(ctx context.Context, r SignalReader, send func(SignalsLine) error) error {
	tick := time.NewTicker(signalsEvery)
	defer tick.Stop()
	last, news := time.Now(), time.Time{}
	var before []string
	r.Read() // what was counted before anybody asked
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		backends, suspended := r.Read()
		elapsed := time.Since(last)
		if len(backends) > 0 {
			news = time.Now()
		}
		if time.Since(news) > busyFor && slices.Equal(suspended, before) && elapsed < signOfLife {
			continue
		}
		line := SignalsLine{ElapsedMS: elapsed.Milliseconds(), Suspended: append([]string{}, suspended...), Backends: append([]BackendSignals{}, backends...)}
		if err := send(line); err != nil {
			return err
		}
		last, before = time.Now(), line.Suspended
	}
}
