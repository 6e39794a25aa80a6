package guard

import (
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/prefetch"
)

// A word of a Proved: the upper half of the source's hash, and when it proved itself, in units of 2^26 ns, 67 ms. That wraps
// after 9 years.
const provedShift = 26

// ProvedLife is for how long a source that proved its address passes without another proof. It should outlast the pauses after
// which a client sends its SYN again, and spare a user who opens one connection after the other most of the proofs. It should
// not be long, since who learns that an address has proved itself can send in its name meanwhile: as much as the limits allow
// one source.
const ProvedLife = 60 * time.Second

// Proved is the set of sources that have proved that they receive what is sent to their address, in words that the caller gave:
// one each. If a line is full the oldest gives way. Only proofs add to it, so who sends from addresses that are not his
// cannot fill it. Of these 2^-29 pass at most, those whose hash agrees with one of the eight of their line. Who really has more
// addresses than there are words can push others out: they have to prove themselves again, no more. Its methods may be called
// from any goroutine.
type Proved struct {
	words []uint64 // read and written with sync/atomic only
	mask  uint64   // number of lines − 1
	key   [4]uint64
}

// NewProved returns the set in these words. Their number must be a power of two, 16 or more, as [LimiterWords] returns it. The
// first word should lie on a 64-byte boundary. Words that are not zero are taken as they are; they mean something only under
// the key that they were written with. The key should be random, and secret to those who send.
func NewProved(words []uint64, key [2]uint64) (*Proved, error) {
	if err := checkWords("proved sources", words); err != nil {
		return nil, err
	}
	return &Proved{words: words, mask: uint64(len(words))/lineWords - 1, key: expand(key)}, nil
}

// Shared returns what the steering program needs, beside the words, to look for a source: the key of the hash, and the number of
// lines less one.
func (p *Proved) Shared() (key [4]uint64, mask uint32) { return p.key, uint32(p.mask) }

// Hash returns what names a source, an address as two words; see [Source].
func (p *Proved) Hash(hi, lo uint64) uint64 { return mix(&p.key, hi, lo, 0) }

// Prefetch asks the processor for the line of each hash, so that the cache misses of a batch overlap.
func (p *Proved) Prefetch(hashes []uint64) { prefetch.Lines(p.words, p.mask, hashes) }

// line returns the line of a hash.
func (p *Proved) line(hash uint64) *[lineWords]uint64 {
	return (*[lineWords]uint64)(p.words[(hash&p.mask)*lineWords:])
}

// Add notes that a source has proved its address. hash is by [Proved.Hash]; now is ns of a monotonic clock, the same for all who
// share the words.
func (p *Proved) Add(hash uint64, now int64) {
	line := p.line(hash)
	next := hash>>32<<32 | uint64(provedTime(now))
	for {
		// The source's own word, else the first that is free, else the oldest.
		var at int
		var old uint64
		oldest := int64(-1 << 62)
		for i := range line {
			w := atomic.LoadUint64(&line[i])
			if w != 0 && w>>32 == hash>>32 {
				at, old = i, w
				break
			}
			age := int64(provedAge(w, now))
			if w == 0 {
				age = 1 << 62
			}
			if age > oldest {
				oldest, at, old = age, i, w
			}
		}
		if old == next || atomic.CompareAndSwapUint64(&line[at], old, next) {
			return
		}
	}
}

// Has says whether a source has proved its address within the last [ProvedLife], give or take 67 ms.
func (p *Proved) Has(hash uint64, now int64) bool {
	line := p.line(hash)
	for i := range line {
		w := atomic.LoadUint64(&line[i])
		if w>>32 == hash>>32 && w != 0 {
			age := provedAge(w, now)
			return age < int32(ProvedLife>>provedShift) && age > -int32(ProvedLife>>provedShift)
		}
	}
	return false
}

// provedTime is a time as words have it. In the first 9 years of the clock it is not 0, as the whole of an empty word is.
func provedTime(now int64) uint32 { return uint32(now>>provedShift) + 1 }

// provedAge is the age of a word, in units of its time. It is below 0 if a worker wrote the word whose clock is ahead.
func provedAge(w uint64, now int64) int32 { return int32(provedTime(now) - uint32(w)) }
