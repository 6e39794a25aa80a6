package forwarder

import "github.com/sluice-lb/sluice/forwarder/packet"

// What a worker sends by itself, of each kind: at most so many a second, of which so many at once.
const (
	ownPerSecond = 1000
	ownBurst     = 100
)

// pace limits what is done to so many a second: a generic cell rate algorithm (ITU-T I.371). Its value is when the next would
// come if all came evenly, CLOCK_MONOTONIC ns.
type pace int64

// admit says whether one more is done now.
func (p *pace) admit(now int64) bool {
	const interval = int64(1e9 / ownPerSecond)
	next := max(int64(*p), now)
	if next > now+(ownBurst-1)*interval {
		return false
	}
	*p = pace(next + interval)
	return true
}

// admitEcho says whether an echo request is answered: it must be to a VIP, and within the limit.
func (w *Worker) admitEcho(snap *Snapshot, m *packet.Meta, now int64) packet.Reason {
	if !snap.isVIP(m.Dst) {
		return packet.NotVIP
	}
	if !w.echoes.admit(now) {
		return packet.EchoLimit
	}
	return packet.None
}
