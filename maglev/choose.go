package maglev

import "sync/atomic"

// candidates is how many entries of the table are tried before the list of backends.
const candidates = 8

// Pool is the backends of one service: their table, and the slot of each.
type Pool struct {
	Table *Table
	// Slots[i] is the slot of the backend with index i of Table: as many as Table has names. The admit word of a
	// backend is the one with the index of its slot.
	Slots []uint32
}

// Mix returns the 64 bits that choose candidate i of a flow: the high half points to the table entry, and the low
// sixteen bits are compared with a fraction. It is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", OOPSLA 2014; the constants are Stafford's variant 13) over the flow's hash and a key,
// for each i from another point of its sequence. All operations are on 64 bits, so that BPF can do the same.
//
// The key is the group's, so that nodes agree. The mix need not resist attacks by itself: hash is a keyed hash already,
// which nobody outside can compute. It makes the choice independent of the table line and the fingerprint, which are
// bits of the same hash.
func Mix(key, hash uint64, i int) uint64 {
	x := (hash ^ key) + uint64(i)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// ChooseNew returns the slot for a new flow, as a SYN is: the first candidate that is up and whose fraction takes the
// flow. If none of the eight does, a fraction is no reason to refuse a client: then it is the first of the candidates
// that is up at all, else the first in the list of backends, fractions of zero excepted. ok is false if there is none.
// admit is indexed by slot.
func (p *Pool) ChooseNew(key, hash uint64, admit []atomic.Uint32) (slot uint32, ok bool) {
	var spare uint32
	var haveSpare bool
	for i := range candidates {
		mix := Mix(key, hash, i)
		slot := p.Slots[p.Table.at(mix)]
		a := Admit(admit[slot].Load())
		if a.takesNew(mix) {
			return slot, true
		}
		if !haveSpare && a.open() {
			spare, haveSpare = slot, true
		}
	}
	if haveSpare {
		return spare, true
	}
	for _, slot := range p.Slots {
		if Admit(admit[slot].Load()).open() {
			return slot, true
		}
	}
	return 0, false
}

// ChooseExisting returns the slot for a packet of a flow that has no word in the flow table: the first candidate unless
// it is down, for that is where the flow was sent if nothing has changed; else the first of the other candidates that
// is up, else the first in the list of backends. Fractions do not matter. ok is false if there is none. admit is
// indexed by slot.
func (p *Pool) ChooseExisting(key, hash uint64, admit []atomic.Uint32) (slot uint32, ok bool) {
	slot = p.Slots[p.Table.at(Mix(key, hash, 0))]
	if Admit(admit[slot].Load()).State() != Down {
		return slot, true
	}
	for i := 1; i < candidates; i++ {
		slot = p.Slots[p.Table.at(Mix(key, hash, i))]
		if Admit(admit[slot].Load()).State() == Up {
			return slot, true
		}
	}
	for _, slot := range p.Slots {
		if Admit(admit[slot].Load()).State() == Up {
			return slot, true
		}
	}
	return 0, false
}
