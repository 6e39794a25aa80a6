package guard

import (
	"math/bits"
	"math/rand/v2"
)

const (
	maxEvery = 16 // the most events of which one is drawn, a power of two

	// What a Lots remembers of refusals is forgotten a word at a time, each of them once in 4.3 s.
	refusedWords = 1 << 10
	forgetShift  = 22      // a word each 4.2 ms
	refusedShift = 64 - 16 // from a source's half hash to its bit
)

// Lots draws lots for one worker's limits of packets, of which there are too many to ask a [Limiter] about each. Of a rate whose
// burst is 512 events or more, one event in some, at most 16, is drawn, and counts for as many ([Limiter.AdmitSome]). The others
// are asked about only if their source was refused lately, which a filter of 8 KiB tells: one bit a source, by its hash, cleared
// once in 4.3 s. Of other rates every event is drawn.
//
// So the rate stays what it is on average. A burst is cut off some events early or late, and each time that its bit is cleared a
// source above its limit passes until it is drawn again: by 15 events on average, each 4.3 s and worker. As such a rate is at
// least 410 events a second, and with a burst of 1 s 4,096 where one in 16 is drawn, that is less than a hundredth, or with the
// latter a thousandth, for each worker. Nobody is refused by the filter. Two sources that share a bit are asked about alike, and
// one who fills it has the limiter asked about every event, no more.
//
// The zero Lots is ready. It is one goroutine's.
type Lots struct {
	random  rand.PCG
	refused [refusedWords]uint64 // a bit for each source that was refused lately
	count   int                  // how many bits are set
	cleared int64                // words that have been cleared, since the clock's zero
}

// Draw draws the lots of a batch of at most 64 events, of which event i is drawn if bit i of drawn is set, and forgets what is due.
// Those whose bits in look are not set need no more: they are within the limit. Of those that are in look but not drawn
// [Lots.Refused] tells, by their sources. now is as for [Limiter.Admit].
func (l *Lots) Draw(n int, r Rate, now int64) (drawn, look uint64) {
	l.forget(now)
	all := ^uint64(0) >> (64 - n)
	if r.every <= 1 {
		return all, all
	}
	// Each event for itself, not one out of each so many: how many of a source pass before one is drawn must not depend on when the
	// last one was.
	drawn = all
	for every := r.every; every > 1; every /= 2 {
		drawn &= l.random.Uint64()
	}
	if l.count > 0 {
		return drawn, all
	}
	return drawn, drawn
}

// Refused says whether a source, by its [Limiter.Half], may have been refused lately.
func (l *Lots) Refused(half uint64) bool {
	bit := half >> refusedShift
	return l.refused[bit/64]>>(bit%64)&1 != 0
}

// Refuse notes that an event of a source was refused.
func (l *Lots) Refuse(half uint64) {
	if !l.Refused(half) {
		bit := half >> refusedShift
		l.refused[bit/64] |= 1 << (bit % 64)
		l.count++
	}
}

// forget clears the words whose time has come.
func (l *Lots) forget(now int64) {
	due := now >> forgetShift
	for l.cleared = max(l.cleared, due-refusedWords); l.cleared < due; l.cleared++ {
		word := &l.refused[l.cleared%refusedWords]
		l.count -= bits.OnesCount64(*word)
		*word = 0
	}
}
