package healthd

import (
	"context"
	"sync/atomic"
	"time"
)

// A process that was stopped for a while, or got no CPU, sees the timeouts of all its probes run out at once. That says nothing about
// backends. So a clock beats in it, and a probe in whose time a beat stayed away has no result unless it is a good one.
const (
	beat      = 50 * time.Millisecond
	longPause = 500 * time.Millisecond // between two beats: more than load does to a healthy node
)

// pulse is that clock.
type pulse struct {
	base   time.Time
	last   atomic.Int64 // the last beat, since base
	paused atomic.Int64 // the end of the last pause, since base
}

// serve beats until ctx is done, and calls told after each pause with how long it was.
func (p *pulse) serve(ctx context.Context, told func(time.Duration)) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := int64(time.Since(p.base))
		gap := time.Duration(now - p.last.Load())
		if gap > longPause {
			p.paused.Store(now) // before the beat: whoever sees the beat sees the pause
		}
		p.last.Store(now)
		if gap > longPause {
			told(gap)
		}
	}
}

// pausedSince says whether there was a pause after the time t, or is one: the first to run after it need not be the clock.
func (p *pulse) pausedSince(t time.Time) bool {
	last := p.last.Load()
	return time.Since(p.base)-time.Duration(last) > longPause || t.Sub(p.base) < time.Duration(p.paused.Load())
}
