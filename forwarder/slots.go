package forwarder

import (
	"net/netip"

	"github.com/sluice-lb/sluice/conntrack"
)

// slotPhase is the life of a slot. It only goes forward, but for a backend that comes back while its slot is leaving.
type slotPhase uint8

const (
	slotFree        slotPhase = iota
	slotActive                // in its service's lookup table
	slotLeaving               // no longer configured; its flows go on, it takes no new ones
	slotQuarantined           // in no snapshot from a certain generation on; words may still name it
)

// slotKey says what a slot stands for: where its flows go. A backend whose address or port changed is another one; one
// that has only got another name is not.
type slotKey struct {
	service uint32 // its number
	address netip.Addr
	port    uint16 // NAT: that it receives on; 0: the client's
}

// slotState is the control side of one slot.
type slotState struct {
	phase slotPhase
	key   slotKey
	// backend is what the configuration calls it, or called it last.
	backend string
	// since is when the phase began, CLOCK_MONOTONIC ns.
	since int64
	// generation is the first snapshot without the slot, once it is quarantined.
	generation uint64
	// base is what the workers' counters of this slot stood at when it was given to its backend.
	base        slotCounts
	signalsBase signalCounts
	// swept is what the last full sweep found of it.
	swept conntrack.SlotCensus
}

// slotTable gives out slots and takes them back. All calls are made under Engine.mu.
type slotTable struct {
	states []slotState
	free   []uint32           // slots of states that are free
	byKey  map[slotKey]uint32 // active and leaving slots
}

// take returns the slot of a backend: its own if it still has one, or a free one.
func (t *slotTable) take(k slotKey) (slot uint32, fresh, ok bool) {
	if s, have := t.byKey[k]; have {
		return s, false, true
	}
	if n := len(t.free); n > 0 {
		s := t.free[n-1]
		t.free = t.free[:n-1]
		t.byKey[k] = s
		return s, true, true
	}
	if len(t.states) >= conntrack.MaxSlots {
		return 0, false, false
	}
	t.states = append(t.states, slotState{})
	s := uint32(len(t.states) - 1)
	t.byKey[k] = s
	return s, true, true
}

// quarantine takes a slot out of use. generation is the first snapshot without it.
func (t *slotTable) quarantine(slot uint32, now int64, generation uint64) {
	s := &t.states[slot]
	delete(t.byKey, s.key)
	s.phase, s.since, s.generation = slotQuarantined, now, generation
}

// swept is told of a full sweep: counts holds the words found for each slot, acked the oldest snapshot that any worker
// still used when the sweep began, and began when that was. It frees quarantined slots that nothing names any more, and
// returns the leaving slots that are done: without a word, and older than any previous table that could still choose them.
func (t *slotTable) swept(counts []conntrack.SlotCensus, acked uint64, began int64) (done []uint32) {
	for i := range counts { // slots given out since the sweep began have no count yet
		s := &t.states[i]
		s.swept = counts[i]
		if s.swept.Flows() != 0 {
			continue
		}
		switch s.phase {
		case slotQuarantined:
			if s.generation <= acked {
				*s = slotState{}
				t.free = append(t.free, uint32(i))
			}
		case slotLeaving:
			if began-s.since > previousTableNanos {
				done = append(done, uint32(i))
			}
		}
	}
	return done
}
