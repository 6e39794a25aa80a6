package maglev

// candidates is how many entries of the table are tried before the list of backends.
const candidates = 8

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

// scale returns where the high half of a mix points to among n things. Multiplying and shifting spreads 32 bits as
// evenly as a remainder would, without dividing.
func scale(mix uint64, n int) uint64 { return (mix >> 32) * uint64(n) >> 32 }

// at returns the slot of the backend that a mix points to. The table is not empty.
func (p *Pool) at(mix uint64) uint32 {
	return p.slots[p.entries[scale(mix, len(p.entries))]]
}

// newByHash returns the slot for a new flow by its hash alone: the first candidate that is up and whose fraction takes
// the flow. If none of the eight does, a fraction is no reason to refuse a client: then it is the first of the candidates
// that is open at all, else the first in the list of backends, from a place in it that the hash gives. ok is false if
// there is none.
func (p *Pool) newByHash(key, hash uint64, s *Slots) (slot uint32, ok bool) {
	if len(p.entries) == 0 {
		return 0, false
	}
	mix := Mix(key, hash, 0)
	spare := p.at(mix)
	a := Admit(s.Admit[spare].Load())
	if a.takesNew(mix) {
		return spare, true
	}
	ok = a.open()
	for i := 1; i < candidates; i++ {
		mix = Mix(key, hash, i)
		slot = p.at(mix)
		a = Admit(s.Admit[slot].Load())
		if a.takesNew(mix) {
			return slot, true
		}
		if !ok && a.open() {
			spare, ok = slot, true
		}
	}
	if ok {
		return spare, true
	}
	start := scale(Mix(key, hash, candidates), len(p.slots))
	for _, part := range [2][]uint32{p.slots[start:], p.slots[:start]} {
		for _, slot := range part {
			if Admit(s.Admit[slot].Load()).open() {
				return slot, true
			}
		}
	}
	return 0, false
}

// Existing returns the slot for a packet of a flow that has no word in the flow table and is not opened by the packet:
// the first candidate unless it is down or cut, for that is where the flow was sent if nothing has changed; else the
// first of the other candidates that is up, else the first in the list of backends, from a place in it that the hash
// gives. Neither fractions nor the scheduler matter. ok is false if there is none.
func (p *Pool) Existing(key, hash uint64, s *Slots) (slot uint32, ok bool) {
	if len(p.entries) == 0 {
		return 0, false
	}
	slot = p.at(Mix(key, hash, 0))
	if Admit(s.Admit[slot].Load()).holds() {
		return slot, true
	}
	for i := 1; i < candidates; i++ {
		slot = p.at(Mix(key, hash, i))
		if Admit(s.Admit[slot].Load()).State() == Up {
			return slot, true
		}
	}
	start := scale(Mix(key, hash, candidates), len(p.slots))
	for _, part := range [2][]uint32{p.slots[start:], p.slots[:start]} {
		for _, slot := range part {
			if Admit(s.Admit[slot].Load()).State() == Up {
				return slot, true
			}
		}
	}
	return 0, false
}
