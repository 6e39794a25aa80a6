package healthd

import (
	"math/bits"
	"time"
)

// latencies is a histogram of how long good probes took, in buckets of an eighth, which forgets: from some point on, each half of what
// was counted gives way to what comes. So percentiles are those of the last hundred probes or two.
type latencies struct {
	counts [numBuckets]uint8
	total  uint16
}

const (
	perOctave  = 8
	numOctaves = 25 // of microseconds: beyond a minute
	numBuckets = perOctave * numOctaves
	forgetAt   = 200 // fits into a uint8
)

// add counts a probe.
func (l *latencies) add(d time.Duration) {
	l.counts[bucketOf(d)]++
	if l.total++; l.total < forgetAt {
		return
	}
	l.total = 0
	for i := range l.counts {
		l.counts[i] /= 2
		l.total += uint16(l.counts[i])
	}
}

// bucketOf returns the bucket of d: the octave of its microseconds, and the next three bits.
func bucketOf(d time.Duration) int {
	us := max(uint64(d/time.Microsecond), perOctave)
	octave := bits.Len64(us) - 4 // 0 for 8 to 15
	return min(octave*perOctave+int(us>>octave)-perOctave, numBuckets-1)
}

// percentile returns the microseconds that a share of the probes, 0 to 1, did not exceed; 0: there were none.
func (l *latencies) percentile(share float64) uint32 {
	need := max(1, int(share*float64(l.total)+0.999))
	for i, n := range l.counts {
		if need -= int(n); need <= 0 && l.total > 0 {
			return uint32(perOctave+i%perOctave+1) << (i / perOctave) // the bucket's upper end
		}
	}
	return 0
}
