package guard

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/internal/prefetch"
)

// A word of a Limiter, from the top: tag 16, count of refusals 6, scale 5, theoretical arrival time 37. The time counts units
// of 64 ns, so it wraps after 2.4 hours; what lies more than maxAhead in the future is therefore in the past.
const (
	lineWords = 8 // words in a line: 64 bytes
	maxLines  = 1 << 32
	minLines  = 2

	tagShift   = 48
	wayShift   = 45 // where a hash says at which place of its line its word is looked for first
	countShift = 42
	countMask  = 1<<6 - 1
	scaleShift = 37
	scaleMask  = 1<<5 - 1
	timeMask   = 1<<scaleShift - 1
	// nameMask is what says whose word it is. Its scale is a part of that: a source whose tag is that of another one under a
	// limit of long intervals must not have to wait as long.
	nameMask = 0xffff<<tagShift | scaleMask<<scaleShift

	fraction  = 8  // bits behind the nanosecond in a Rate
	unitShift = 14 // from there to units of 64 ns
	unit      = 1 << unitShift

	// maxAhead is the farthest that a theoretical arrival time may be in the future, 17.2 s in units of a Rate: more than
	// the largest tolerance and interval of NewRate and skewed together.
	maxAhead = 1 << 42
	// skewed is by how much the clocks of two workers may differ, 1.07 s: each reads it once a batch.
	skewed = 1 << 38

	far = 32 // so many refusals more than admissions make a source one that is far over its limit
)

const maxBurst = 10 * time.Second // the longest burst of a Rate

// Rate is how often something may happen, as GCRA takes it (ITU-T I.371, the virtual scheduling algorithm): one event each
// Interval, and Tolerance by which events may come early. Both are in units of 1/256 ns. The zero Rate is no limit. Tolerance
// and Interval together are at most 16 s; [NewRate] keeps to that.
type Rate struct {
	Interval, Tolerance uint64
	every               uint64 // of so many events Lots draws one; 0: every one
}

// NewRate returns the rate of so many events a second, of which as many may come at once, after a pause, as would come in the
// time burst, and one more: two at the least, so that neither jitter nor a single event of another source that shares the word
// has one refused. burst counts as 10 s if it is longer. No events a second are no limit, not a ban; more than 256e9 are taken
// as 256e9.
func NewRate(perSecond uint64, burst time.Duration) Rate {
	if perSecond == 0 {
		return Rate{}
	}
	const second = uint64(time.Second) << fraction
	r := Rate{Interval: max(1, (second+min(perSecond, second)/2)/perSecond)}
	r.Tolerance = max(uint64(min(max(burst, 0), maxBurst))<<fraction, r.Interval)
	for r.every = 1; r.every < maxEvery && r.Tolerance/r.Interval >= 512*r.every; r.every *= 2 {
	}
	return r
}

// Verdict is what a limit says of one event.
type Verdict struct {
	OK bool // the event is within the limit, and was counted
	// Far says of a refused event that its source is far over the limit: lately, it was refused 32 times more often than
	// admitted, so it sends more than twice as much as it may.
	Far bool
	// Over is, for a refused event, after how many ns at the least one will be admitted.
	Over uint64
}

// Limiter limits many sources, each to a rate, in words that the caller gave: one word for each (source, limit) that was seen
// lately. See the package comment for what happens when there are more of them than words. Its methods may be called from any
// goroutine.
type Limiter struct {
	words []uint64 // read and written with sync/atomic only
	mask  uint64   // number of lines − 1
	key   [4]uint64
}

// NewLimiter returns a limiter in these words. Their number must be what [LimiterWords] returns: a power of two, 16 or more. The
// first word should lie on a 64-byte boundary. Words that are not zero are taken as they are; they mean something only under
// the key that they were written with. The key should be random, and secret to those who send.
func NewLimiter(words []uint64, key [2]uint64) (*Limiter, error) {
	if err := checkWords("limits", words); err != nil {
		return nil, err
	}
	return &Limiter{words: words, mask: uint64(len(words))/lineWords - 1, key: expand(key)}, nil
}

// LimiterWords returns how many words a limiter takes in which n pairs of source and limit have room at the same time: two
// each, rounded up to a power of two.
func LimiterWords(n uint64) (words uint64, err error) {
	const most = maxLines * lineWords / 2
	if n == 0 || n > most {
		return 0, fmt.Errorf("limits for %d sources: the number must be from 1 to %d", n, uint64(most))
	}
	return 1 << bits.Len64(max(2*n, minLines*lineWords)-1), nil
}

// checkWords says what is wrong with the number of words of a table of lines.
func checkWords(what string, words []uint64) error {
	n := uint64(len(words))
	if bits.OnesCount64(n) != 1 || n < minLines*lineWords || n > maxLines*lineWords {
		return fmt.Errorf("%s in %d words: the number of words must be a power of two from 16 to 2^35; take it from LimiterWords", what, n)
	}
	return nil
}

// Hash returns what names a source, an address as two words (see [Source]), under a limit, any number: those with different
// numbers are independent. It is keyed, so nobody who sends can choose sources that share a line.
func (l *Limiter) Hash(hi, lo uint64, limit uint32) uint64 { return l.Whole(l.Half(hi, lo), limit) }

// Half returns the first half of the work of Hash, in which the limit has no part.
func (l *Limiter) Half(hi, lo uint64) uint64 { return mixHalf(&l.key, hi, lo) }

// Whole returns the Hash of the source that Half was about.
func (l *Limiter) Whole(half uint64, limit uint32) uint64 {
	return mixWhole(&l.key, half, uint64(limit))
}

// Prefetch asks the processor for the line of each hash, so that the cache misses of a batch overlap. Call it in a pass of its
// own, some way before Admit.
func (l *Limiter) Prefetch(hashes []uint64) { prefetch.Lines(l.words, l.mask, hashes) }

// Lines is the number of lines, which [Limiter.Sweep] counts in.
func (l *Limiter) Lines() int { return len(l.words) / lineWords }

// Admit counts an event of a source against its limit, and says whether it is within it. hash is by [Limiter.Hash]; now is ns
// of a monotonic clock, the same for all who share the words. An event that is refused uses up nothing. A source without a
// word is always admitted.
func (l *Limiter) Admit(hash uint64, r Rate, now int64) Verdict { return l.admit(hash, r, 1, now) }

// AdmitSome is Admit for a rate of which not every event is counted, see [Lots]: one that is drawn counts for as many as are drawn
// from, and another one is compared with what the word says, no more.
func (l *Limiter) AdmitSome(hash uint64, r Rate, now int64, drawn bool) Verdict {
	if drawn {
		return l.admit(hash, r, max(r.every, 1), now)
	}
	line, name, first := l.line(hash), nameOf(hash, r), hash>>wayShift%lineWords
	t := uint64(now) << fraction
	at := first
	w := atomic.LoadUint64(&line[at])
	if w&nameMask != name {
		if at, w = place(line, name, first, t); w&nameMask != name {
			return Verdict{OK: true}
		}
	}
	if ahead := lead(w, t); r.exceeds(ahead) {
		return refuse(&line[at], w, ahead-r.Tolerance)
	}
	return Verdict{OK: true}
}

// admit is Admit for n events, or none of them.
func (l *Limiter) admit(hash uint64, r Rate, n uint64, now int64) Verdict {
	if r.Interval == 0 {
		return Verdict{OK: true}
	}
	line, name, first := l.line(hash), nameOf(hash, r), hash>>wayShift%lineWords
	t := uint64(now) << fraction
	for {
		at := first
		w := atomic.LoadUint64(&line[at])
		if w&nameMask != name {
			at, w = place(line, name, first, t)
		}
		var ahead, count uint64
		if w&nameMask == name {
			ahead, count = lead(w, t), w>>countShift&countMask
			if r.exceeds(ahead) {
				return refuse(&line[at], w, ahead-r.Tolerance)
			}
			if ahead == 0 || ahead > r.Tolerance+unit { // idle; or from before the tolerance was lowered, or from long ago
				ahead, count = 0, 0
			}
		}
		next := name | (count-min(count, n))<<countShift | arrival(t+ahead+n*r.Interval, w)
		if atomic.CompareAndSwapUint64(&line[at], w, next) {
			return Verdict{OK: true}
		}
	}
}

// exceeds says whether an arrival time so far ahead is beyond the tolerance, by more than rounding may have added. What is ahead
// still farther than this rate can have brought it there means nothing.
func (r Rate) exceeds(ahead uint64) bool {
	return ahead > r.Tolerance+unit && ahead <= r.Tolerance+r.Interval+skewed
}

// line returns the line of a hash.
func (l *Limiter) line(hash uint64) *[lineWords]uint64 {
	return (*[lineWords]uint64)(l.words[(hash&l.mask)*lineWords:])
}

// refuse notes one more refusal in a word. If another worker changes the word meanwhile, one is not noted, which does no harm;
// and a source that goes on and on costs no writes.
func refuse(at *uint64, w, over uint64) Verdict {
	count := w >> countShift & countMask
	if count < countMask {
		count++
		atomic.CompareAndSwapUint64(at, w, w+1<<countShift)
	}
	return Verdict{Far: count >= far, Over: over >> fraction}
}

// place finds the word of this name in a line, or else the place for it: an idle word, or the one by whose loss the fewest
// events are forgiven.
func place(line *[lineWords]uint64, name, first, t uint64) (at, w uint64) {
	least := ^uint64(0)
	for k := range uint64(lineWords) {
		i := (first + k) % lineWords
		v := atomic.LoadUint64(&line[i])
		if v&nameMask == name {
			return i, v
		}
		if r := rank(v, t); r < least {
			least, at, w = r, i, v
		}
	}
	return at, w
}

// rank orders words by what is lost with them: nothing if they are idle, else by the events that they hold against their
// source, with its refusals, then by time. It is fair between limits whose intervals differ: a single event ranks as 0 events.
func rank(w, t uint64) uint64 {
	ahead := lead(w, t)
	if ahead == 0 {
		return 0
	}
	events := min(ahead>>(fraction+w>>scaleShift&scaleMask), 1<<20)
	return (events+w>>countShift&countMask)<<30 | ahead>>unitShift + 1
}

// lead returns by how much the word's arrival time is ahead of t, in units of a Rate; 0 if it is not, when the word is idle.
func lead(w, t uint64) uint64 {
	units := (w - t>>unitShift) & timeMask
	if units-1 >= maxAhead>>unitShift || w == 0 { // also 0
		return 0
	}
	return units<<unitShift - t%unit
}

// arrival rounds an arrival time to units: up or down, so that on average it stays what it is. Else no rate above some 1 M/s
// could be kept. What decides are the old word and the time, which for this purpose are random enough.
func arrival(t, w uint64) uint64 {
	dither := (t ^ w) * 0x9e3779b97f4a7c15 >> (64 - unitShift)
	return (t + dither) >> unitShift & timeMask
}

// nameOf returns what of a word says that it is this source's under a limit of this rate: the tag, which is not 0 as that of an
// empty word, and the scale, the power of two of nanoseconds above the interval.
func nameOf(hash uint64, r Rate) uint64 {
	scale := min(uint64(bits.Len64(r.Interval>>fraction)), scaleMask)
	return max(hash>>tagShift, 1)<<tagShift | scale<<scaleShift
}

// Sweep frees the idle words of some lines, from one on, and returns where to go on, 0 after the last line, and how many words
// it left. An idle word does no harm before 2.4 hours, when its time comes round: a source that returns then may be refused
// for an interval. So sweep all lines once an hour, on any goroutine.
func (l *Limiter) Sweep(from, lines int, now int64) (next, live int) {
	end := min(from+lines, l.Lines())
	t := uint64(now) << fraction
	words := l.words[from*lineWords : end*lineWords]
	for i := range words {
		w := atomic.LoadUint64(&words[i])
		if w == 0 {
			continue
		}
		if lead(w, t) > 0 {
			live++
			continue
		}
		atomic.CompareAndSwapUint64(&words[i], w, 0) // if it fails, somebody needs it
	}
	if end == l.Lines() {
		return 0, live
	}
	return end, live
}

// expand makes the four words of a hash's key from a key of two.
func expand(key [2]uint64) (words [4]uint64) {
	state := key[0]
	for i := range words {
		// The generator SplitMix64 (Steele, Lea and Flood, 2014), with the second half of the key thrown in half way.
		state += 0x9e3779b97f4a7c15
		if i == 2 {
			state ^= key[1]
		}
		z := (state ^ state>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		words[i] = z ^ z>>31
	}
	words[0], words[1] = words[0]|1, words[1]^key[1]
	words[3] |= 1 // a factor that loses nothing
	return words
}

// mix hashes a source and a number: two products of 128 bits, each folded. See Top.hash for why that is enough: of a limiter too
// a sender sees nothing but whether it is refused itself.
func mix(key *[4]uint64, hi, lo, n uint64) uint64 { return mixWhole(key, mixHalf(key, hi, lo), n) }

func mixHalf(key *[4]uint64, hi, lo uint64) uint64 {
	a, b := bits.Mul64(hi^key[0], lo^key[1])
	return a ^ b
}

func mixWhole(key *[4]uint64, half, n uint64) uint64 {
	a, b := bits.Mul64(half^key[2]^n, key[3])
	return a ^ b
}
