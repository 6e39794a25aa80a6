package control

import (
	"context"
	"slices"
	"time"
)

const (
	signalsEvery = 100 * time.Millisecond // how often signals are looked at for a stream
	signOfLife   = time.Second            // and how often a line comes, also without any
)

// SignalReader reads how connections to backends fared since it was read last. One goroutine uses it.
type SignalReader interface {
	// Read returns the backends of which something was counted, or that cannot be reached, and the services whose counts
	// tell nothing now.
	Read() (backends []BackendSignals, suspended []string)
}

// FollowSignals sends what r reads, as long as ctx lasts and send returns no error: soon after something was counted, and a
// sign of life each second.
func FollowSignals(ctx context.Context, r SignalReader, send func(SignalsLine) error) error {
	tick := time.NewTicker(signalsEvery)
	defer tick.Stop()
	last := time.Now()
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
		if len(backends) == 0 && slices.Equal(suspended, before) && elapsed < signOfLife {
			continue
		}
		line := SignalsLine{ElapsedMS: elapsed.Milliseconds(), Suspended: append([]string{}, suspended...), Backends: append([]BackendSignals{}, backends...)}
		if err := send(line); err != nil {
			return err
		}
		last, before = time.Now(), line.Suspended
	}
}
