package conntrack

import "time"

// Word is a flow's entry. From the top: fingerprint (bits 63..32), slot (31..14), tick (13..2), state (1..0).
// Zero is an empty word; no other word has the state Empty.
type Word uint64

// State is the two lowest bits of a word.
type State uint8

const (
	Empty       State = iota // the word is free
	Probation                // inserted, and no packet of the flow was seen in a later tick
	Established              // packets were seen in different ticks
	Closing                  // a FIN or RST was seen; the word lives shorter and is given up sooner
)

// String returns the state's name in lower case.
func (s State) String() string {
	switch s {
	case Empty:
		return "empty"
	case Probation:
		return "probation"
	case Established:
		return "established"
	case Closing:
		return "closing"
	}
	return "invalid"
}

const (
	slotShift = 14
	tickShift = 2
	tickMask  = 1<<12 - 1
	stateMask = 3

	// clockSkew is how many ticks a word may be ahead of the caller's clock reading and still be taken as new.
	clockSkew = 64

	// tickBits is log2 of a tick's length in nanoseconds.
	tickBits = 31
)

// MaxSlots is the number of different slots that a word can name.
const MaxSlots = 1 << 18

// MaxLife is the longest life in ticks: 2 hours. With a sweep every 20 minutes and the clock skew it stays below the
// 2.4 hours after which ticks repeat.
const MaxLife = 3353

// MakeWord puts a word together. Of slot the low 18 bits count, of tick the low 12. The state must not be Empty.
func MakeWord(fp uint32, slot uint32, tick uint16, s State) Word {
	return Word(fp)<<32 | Word(slot&(MaxSlots-1))<<slotShift | Word(tick&tickMask)<<tickShift | Word(s&stateMask)
}

// Fingerprint is the high half of the flow's hash.
func (w Word) Fingerprint() uint32 { return uint32(w >> 32) }

// Slot is the (service, backend) pair that the flow was given.
func (w Word) Slot() uint32 { return uint32(w>>slotShift) & (MaxSlots - 1) }

// Tick is when the word was last written, which is within a tick of when its flow last had a packet.
func (w Word) Tick() uint16 { return uint16(w>>tickShift) & tickMask }

// State is the flow's state.
func (w Word) State() State { return State(w & stateMask) }

// Tick is the tick of a reading of CLOCK_MONOTONIC in nanoseconds (2.15 s each, modulo 4096). BPF programs compute the
// same from bpf_ktime_get_ns, which reads the same clock; so do all processes of one boot.
func Tick(monotonicNanos int64) uint16 { return uint16(monotonicNanos>>tickBits) & tickMask }

// Ticks is the number of ticks that a duration takes, rounded up, at most [MaxLife]. Zero and less give 0.
func Ticks(d time.Duration) uint16 {
	if d <= 0 {
		return 0
	}
	n := (d-1)>>tickBits + 1
	return uint16(min(n, MaxLife))
}

// Age is the number of ticks from then to now, modulo 4096. A then that lies up to 64 ticks ahead of now gives 0:
// workers read the clock once a batch, so another worker's word can be newer than one's own reading.
func Age(now, then uint16) uint16 {
	age := (now - then) & tickMask
	if age > tickMask-clockSkew {
		return 0
	}
	return age
}

// Life is how many ticks a word of one slot may idle in each state, at most [MaxLife], before it expires. Life[Empty] is
// zero. A zero means that words in this state are expired at once; the zero Life is that of a slot out of use.
type Life [4]uint16

// Expired reports whether w, a word of the slot whose life this is, has idled for longer than it may. An empty word is
// expired.
func (l *Life) Expired(w Word, tick uint16) bool {
	return max(Age(tick, w.Tick()), 1) > l[w.State()] // a zero is over at any age
}

// expired is Life.Expired with the lives of all slots. A slot beyond them is out of use, and its words are expired.
func expired(w Word, tick uint16, lives []Life) bool {
	slot := uint64(w.Slot())
	return slot >= uint64(len(lives)) || lives[slot].Expired(w, tick)
}
