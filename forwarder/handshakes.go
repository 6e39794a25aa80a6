package forwarder

import (
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/prefetch"
)

// How new connections fare at a backend shows in the client's packets alone, also where replies never pass: a client sends its
// SYN again if there was no answer, and goes on with an ACK if there was one. So a worker remembers the SYNs that it has sent on
// and whose ACK has not come.
//
// Each SYN has one place there is for it, by its flow's hash. If the SYN of another flow waits there, it is not counted at all,
// and so neither is its handshake: what is counted is a sample then, as good for each backend, since another hash chooses
// these. An entry lost instead would make a healthy backend look worse. 65,536 places hold as many SYNs as 650,000 a second
// are that get their ACK within 100 ms; of 10,000 such a second, 1.5 % find their place taken. For a backend that is dead each
// SYN takes a place for handshakeTime after it was last sent. A flood of SYNs takes all of them: a reader is told of the
// services that are defended against one, and of another the flood makes all backends look alike.
//
// For the same reason a packet whose SYN is not remembered completes nothing. Flows that ECMP has moved here from another node
// would else vouch for a backend that has died.

const (
	handshakePlaces = 1 << 16
	handshakeLines  = handshakePlaces / 8 // of 64 bytes
	// handshakeTime is how long a SYN is waited with: clients send theirs again after 1 s, and after 3 s.
	handshakeTime = 4 * time.Second
	// handshakeShift makes the time of an entry, in units of 2^26 ns: 67 ms. They wrap in 18 minutes; what has been left in its
	// place for as long is waited for once more.
	handshakeShift = 26
)

// handshakes are the SYNs that wait for their ACK. They are their worker's own.
type handshakes struct {
	places *[handshakePlaces]sentSYN
	// hitsUntil is until when the ACK of such a SYN may come to a flow that has a word, and thus be a hit; CLOCK_MONOTONIC ns.
	hitsUntil int64
	read      uint64 // what touch has read, so that it does
}

// sentSYN is a SYN that was sent to a backend: its flow's fingerprint in bits 63..32, the slot in 31..14, and when it was last
// sent in 13..0, see handshakeShift. Zero is a free place.
type sentSYN = uint64

const sentMask = 1<<14 - 1

func makeSYN(hash uint64, slot uint32, now int64) sentSYN {
	return hash&^(1<<32-1) | uint64(slot)<<14 | uint64(now>>handshakeShift)&sentMask
}

func slotOf(s sentSYN) uint32 { return uint32(s) >> 14 }

// waits says whether the ACK of s may still come.
func waits(s sentSYN, now int64) bool {
	return s != 0 && (uint64(now>>handshakeShift)-s)&sentMask <= uint64(handshakeTime>>handshakeShift)
}

// isOf says whether s is the SYN of the flow with this hash, or of one with the same fingerprint.
func isOf(s sentSYN, hash uint64) bool { return s>>32 == hash>>32 }

// place is where the SYN of the flow with this hash waits.
func (h *handshakes) place(hash uint64) *sentSYN {
	return &h.places[(hash%handshakeLines*8+hash/handshakeLines%8)%handshakePlaces]
}

// awaits says whether it is the SYN of the flow with this hash that waits in its place.
func (h *handshakes) awaits(hash uint64, now int64) bool {
	s := *h.place(hash)
	return isOf(s, hash) && waits(s, now)
}

// prefetch asks the processor for the places of the flows with these hashes.
func (h *handshakes) prefetch(hashes []uint64) { prefetch.Lines(h.places[:], handshakeLines-1, hashes) }

// touch reads the places of these flows, in a loop in which one reading does not wait for another. Of as many prefetches as there are
// in a batch of new flows some do not come to anything.
func (h *handshakes) touch(hashes []uint64) {
	read := uint64(0)
	for _, hash := range hashes {
		read += *h.place(hash)
	}
	h.read = read
}

// sendSYN counts a SYN of the flow with this hash that goes to the backend of a slot. word says that its flow has a word already.
func (w *Worker) sendSYN(snap *Snapshot, hash uint64, slot uint32, source packet.Addr, now int64, word bool) {
	if !snap.targets[slot].ready() { // it cannot be sent
		return
	}
	if word {
		w.handshakes.hitsUntil = now + int64(handshakeTime)
		w.engine.unsettle(now)
	}
	place := w.handshakes.place(hash)
	last := *place
	waits := waits(last, now)
	if waits && !isOf(last, hash) {
		return
	}
	*place = makeSYN(hash, slot, now)
	cell := w.count.signal(slot)
	if waits && slotOf(last) == slot {
		cell.retransmitted++
		return
	}
	// Also one that was sent to another backend before, which did not answer.
	cell.syns++
	cell.sources |= 1 << (w.engine.proved.Hash(guard.Source(source.Hi, source.Lo)) >> 58)
}

// complete counts the handshake of the flow with this hash, if its SYN waits for it: its client has sent what is neither SYN
// nor RST.
func (w *Worker) complete(hash uint64, now int64) {
	place := w.handshakes.place(hash)
	if s := *place; isOf(s, hash) && waits(s, now) {
		w.count.signal(slotOf(s)).completed++
		*place = 0
	}
}

// unsettled looks at packet i, no SYN, whose flow has a word that is not established.
func (w *Worker) unsettled(s *service, i int, word conntrack.Word, now int64, tick uint16) {
	m, probation := &w.metas[i], word.State() == conntrack.Probation
	if probation && s.defence != DefenceOff {
		w.leaveProbation(i, s, word.Tick() != tick)
	}
	switch {
	case !s.tcp:
	case m.Flags&packet.RST == 0:
		w.complete(m.Hash, now)
	case probation && conntrack.Age(tick, word.Tick()) <= 1 && !w.handshakes.awaits(m.Hash, now): // idle ones are on probation too
		w.count.signal(word.Slot()).resets++
	}
}
