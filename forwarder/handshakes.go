package forwarder

import (
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
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
// services that are defended against one.
//
// For the same reason a packet whose SYN is not remembered completes nothing. Flows that ECMP has moved here from another node
// would else vouch for a backend that has died.

const (
	handshakePlaces = 1 << 16
	// handshakeTime is how long a SYN is waited with: clients send theirs again after 1 s, and after 3 s.
	handshakeTime = 4 * time.Second
	// handshakeShift makes the time of an entry, in units of 2^20 ns. They wrap in 52 days, and what has been left in its place
	// for as long is waited for once more.
	handshakeShift = 20
)

// handshakes are the SYNs that wait for their ACK. They are their worker's own.
type handshakes struct {
	places []sentSYN // by the low bits of the hash
	// hitsUntil is until when the ACK of such a SYN may come to a flow that has a word, and thus be a hit; CLOCK_MONOTONIC ns.
	hitsUntil int64
}

// sentSYN is a SYN that was sent to a backend.
type sentSYN struct {
	hash uint64 // of its flow; 0: the place is free
	slot uint32
	sent uint32 // when it was last sent; see handshakeShift
}

// waits says whether its ACK may still come.
func (s *sentSYN) waits(now int64) bool {
	return s.hash != 0 && uint32(now>>handshakeShift)-s.sent <= uint32(handshakeTime>>handshakeShift)
}

func (h *handshakes) place(hash uint64) *sentSYN { return &h.places[hash%handshakePlaces] }

// awaits says whether it is the SYN of the flow with this hash that waits in its place.
func (h *handshakes) awaits(hash uint64, now int64) bool {
	syn := h.place(hash)
	return syn.hash == hash && syn.waits(now)
}

// sendSYN counts packet i, a SYN that goes to a backend. word says that its flow has a word already.
func (w *Worker) sendSYN(snap *Snapshot, i uint8, source packet.Addr, now int64, word bool) {
	m, slot := &w.metas[i], w.slots[i]
	if !snap.targets[slot].ready() { // it cannot be sent
		return
	}
	if word {
		w.handshakes.hitsUntil = now + int64(handshakeTime)
	}
	syn := w.handshakes.place(m.Hash)
	waits := syn.waits(now)
	switch {
	case waits && syn.hash != m.Hash:
		return
	case waits && syn.slot == slot:
		w.count.signal(slot).retransmitted++
	default: // also one that was sent to another backend before, which did not answer
		cell := w.count.signal(slot)
		cell.syns++
		cell.sources |= 1 << (w.engine.proved.Hash(guard.Source(source.Hi, source.Lo)) >> 58)
	}
	*syn = sentSYN{m.Hash, slot, uint32(now >> handshakeShift)}
}

// complete counts the handshake of the flow with this hash, if its SYN waits for it: its client has sent what is neither SYN
// nor RST.
func (w *Worker) complete(hash uint64, now int64) {
	if w.handshakes.awaits(hash, now) {
		syn := w.handshakes.place(hash)
		w.count.signal(syn.slot).completed++
		syn.hash = 0
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
