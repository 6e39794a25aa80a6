package forwarder

import "github.com/sluice-lb/sluice/forwarder/packet"

// Echo requests that a worker answers: at most so many a second, of which so many at once.
const (
	echoesPerSecond = 1000
	echoBurst       = 100
)

// admitEcho says whether an echo request is answered: it must be to a VIP, and within the limit. The limit is a generic
// cell rate algorithm (ITU-T I.371): echoes is when the next request would come if all came evenly.
func (w *Worker) admitEcho(snap *Snapshot, m *packet.Meta, now int64) packet.Reason {
	if _, reason := snap.vips.find(m.Dst, protoTCP, 0); reason == packet.NotVIP {
		return packet.NotVIP
	}
	const interval = int64(1e9 / echoesPerSecond)
	next := max(w.echoes, now)
	if next > now+(echoBurst-1)*interval {
		return packet.EchoLimit
	}
	w.echoes = next + interval
	return packet.None
}
