package maglev

import "slices"

// Service is what the packets of one service go by if their flow has no word: the pool now and, for a while after each
// change of the configuration, those before. It is immutable once it is in use. Slots, worker and now are as for Pool.New.
type Service struct {
	Pool *Pool // not nil
	// Past is the pools before, the oldest first, each for longer than the one before it. Only the oldest whose time is not
	// over matters: if each has been kept for a minute since its end, that is the pool that was in force a minute ago, under
	// which the flows were opened that are older than that.
	Past []Past
}

// Past is a pool that is no longer in force.
type Past struct {
	Pool  *Pool
	Until int64 // CLOCK_MONOTONIC ns: from then on it does not matter
}

// maxPast is how many pools before are kept. With more changes than that in their time, those in the middle are left out.
const maxPast = 8

// Next returns what v becomes at the time now when pool takes the place of v.Pool, which is kept until the time until.
func (v *Service) Next(pool *Pool, now, until int64) Service {
	past := make([]Past, 0, len(v.Past)+1)
	for _, p := range v.Past {
		if now < p.Until {
			past = append(past, p)
		}
	}
	if past = append(past, Past{v.Pool, until}); len(past) > maxPast {
		past = slices.Delete(past, 1, 2)
	}
	return Service{pool, past}
}

// before returns the pool that matters beside the one now, or nil.
func (v *Service) before(now int64) *Pool {
	for i := range v.Past {
		if now < v.Past[i].Until {
			return v.Past[i].Pool
		}
	}
	return nil
}

// NoSlot is no slot: it is beyond all.
const NoSlot = ^uint32(0)

// Settle sets slots, of the length of hashes or more, to the slot that New, Existing and Datagram all return for the flow with each of
// these hashes: its first candidate, if that takes the flow, and the scheduler goes by the hash, and no pool from before matters. That
// is what most flows find. Of others it is NoSlot, and they have to be asked.
func (v *Service) Settle(key uint64, hashes []uint64, s *Slots, now int64, slots []uint32) {
	slots = slots[:len(hashes)]
	p := v.Pool
	if !p.scheduler.Agrees() || len(p.entries) == 0 || v.before(now) != nil {
		for i := range slots {
			slots[i] = NoSlot
		}
		return
	}
	for i, hash := range hashes {
		mix := Mix(key, hash, 0)
		slot := p.at(mix)
		if !Admit(s.Admit[slot].Load()).takesNew(mix) {
			slot = NoSlot
		}
		slots[i] = slot
	}
}

// New returns the slot for a packet that opens a flow for certain, a TCP SYN: by the pool now.
func (v *Service) New(key, hash uint64, s *Slots, worker int, now int64) (slot uint32, ok bool) {
	return v.Pool.New(key, hash, s, worker, now)
}

// Existing returns the slot for a packet without a word that opens no flow. The flow may have been opened on another
// node, or before a change: while there is a pool from before, it is asked first.
func (v *Service) Existing(key, hash uint64, s *Slots, now int64) (slot uint32, ok bool) {
	if p := v.before(now); p != nil {
		if slot, ok = p.Existing(key, hash, s); ok {
			return slot, true
		}
	}
	return v.Pool.Existing(key, hash, s)
}

// Datagram returns the slot for a UDP packet without a word. It may or may not be the first of its flow, so it counts as
// one that opens a flow: draining backends do not get it, and fractions count. But while there is a pool from before, and
// nodes agree about both pools, the first candidate of that pool gets it if it takes the flow: the flow may have been
// opened on another node, or before the change. Only the first: when most backends have gone, the few that stay would be
// given everything.
func (v *Service) Datagram(key, hash uint64, s *Slots, worker int, now int64) (slot uint32, ok bool) {
	if p := v.before(now); p != nil && p.scheduler.Agrees() && v.Pool.scheduler.Agrees() && len(p.entries) > 0 {
		mix := Mix(key, hash, 0)
		if slot = p.at(mix); Admit(s.Admit[slot].Load()).takesNew(mix) {
			return slot, true
		}
	}
	return v.Pool.New(key, hash, s, worker, now)
}
