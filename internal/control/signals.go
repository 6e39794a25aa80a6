package control

import (
	"context"
	"time"
)

const (
	signalsEvery = 100 * time.Millisecond // from one line to the next while something is counted
	busyFor      = 10 * time.Second       // and for so long after: that nothing comes tells as much
	signOfLife   = 500 * time.Millisecond // and then, if there is no news
)

// SignalReader reads how connections to backends fared since it was read last. One goroutine uses it.
type SignalReader interface {
	// Read returns the backends of which something was counted, or that cannot be reached, and the services whose counts
	// tell nothing now.
	Read() (backends []BackendSignals, suspended []string)
	// News has a value when there may be something to read since the last one was taken from it.
	News() <-chan struct{}
}

// FollowSignals sends what r reads, as long as ctx lasts and send returns no error: ten lines a second while anything is counted,
// and else a sign of life.
func FollowSignals(ctx context.Context, r SignalReader, send func(SignalsLine) error) error {
	read(r) // what was counted before anybody asked
	last, counted := time.Now(), time.Time{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait, news := signalsEvery, (<-chan struct{})(nil)
		if time.Since(counted) > busyFor {
			wait, news = signOfLife, r.News()
		}
		timer.Reset(time.Until(last.Add(wait)))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-news: // it goes into the line that comes next where there is one each time
			timer.Reset(signalsEvery - time.Since(last)%signalsEvery)
			select {
			case <-ctx.Done():
				return nil
			case <-timer.C:
			}
		}
		backends, suspended := read(r)
		if len(backends) > 0 {
			counted = time.Now()
		}
		line := SignalsLine{
			ElapsedMS: time.Since(last).Milliseconds(), Suspended: append([]string{}, suspended...), Backends: append([]BackendSignals{}, backends...),
		}
		if err := send(line); err != nil {
			return err
		}
		last = time.Now()
	}
}

// read is r.Read, after which r.News is of what comes then.
func read(r SignalReader) ([]BackendSignals, []string) {
	select {
	case <-r.News():
	default:
	}
	return r.Read()
}
