package forwarder

import (
	"sync/atomic"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

const (
	// fragmentSets times fragmentWays is how many datagrams whose fragments are under way are remembered, at 256 bytes each.
	fragmentSets = 1 << 11
	fragmentWays = 4
	// fragmentNanos is how long a datagram is remembered after its last fragment: longer than routes differ in delay, and
	// shorter than the 16 bits of IPv4 identification take to come round at most rates (RFC 4963).
	fragmentNanos = int64(5e9)
)

// fragmentTable remembers datagrams of which fragments have come: the ports, which only the first fragment has, and which
// parts have been seen. All workers share it, since the fragments of a datagram may arrive at different queues. Nobody ever
// waits: entries change by compare-and-swap, and who comes late loses a memory, not a packet.
type fragmentTable struct {
	entries [fragmentSets * fragmentWays]fragmentEntry
}

// fragmentEntry is one datagram, in four cache lines.
type fragmentEntry struct {
	key  atomic.Uint64 // of the datagram; 0: free, 1: being taken
	seen atomic.Int64  // CLOCK_MONOTONIC ns of the last fragment
	flow atomic.Uint64 // see flowKnown
	// units is how many eight-byte units have been seen, and in the upper half how many there are, once the last fragment
	// has told.
	units  atomic.Uint64
	ranges [56]atomic.Uint32 // what has been seen: first unit in the upper half, one past the last in the lower; 0: free
}

// Bits of fragmentEntry.flow above ports and protocol. The source port is in bits 16 to 31, the destination port in bits 0
// to 15, the protocol in bits 32 to 39.
const (
	flowKnown   = 1 << 63 // the first fragment has come
	flowOverlap = 1 << 62 // fragments overlapped: the datagram is not to be trusted
)

// keyBusy is the key of an entry that is being taken.
const keyBusy = 1

// packFlow is the flow word of a first fragment.
func packFlow(m *packet.Meta) uint64 {
	return flowKnown | uint64(m.Proto)<<32 | uint64(m.SrcPort)<<16 | uint64(m.DstPort)
}

// unpackFlow makes a further fragment, whose frame this is, one of the flow.
func unpackFlow(flow uint64, frame []byte, key *packet.Key, m *packet.Meta) {
	m.SetPorts(frame, key, uint16(flow>>16), uint16(flow), uint8(flow>>32))
}

// add notes a fragment, and the flow if it is a first one, else flow is 0. It returns the datagram's flow, 0 while that is
// not known, and whether the fragment may go on: not if it overlaps another one but for being its exact copy, nor if there
// are more of them than a datagram has (RFC 5722, RFC 8200 4.5).
func (t *fragmentTable) add(f *packet.FragmentInfo, flow uint64, now int64) (known uint64, ok bool) {
	e := t.entry(f.Key, now)
	if e == nil {
		return flow, true // all of its places are being taken right now
	}
	e.seen.Store(now)
	if flow != 0 && e.flow.Load()&(flowKnown|flowOverlap) == 0 {
		e.flow.CompareAndSwap(0, flow)
	}
	if known, ok = t.flow(f.Key, now); !ok {
		return 0, false
	}
	if !e.note(f) {
		e.flow.Store(flowOverlap)
		return 0, false
	}
	return known, true
}

// flow returns a datagram's flow, 0 if it is not known (yet), and whether its fragments may go on.
func (t *fragmentTable) flow(key uint64, now int64) (flow uint64, ok bool) {
	set := t.set(key)
	// Two workers that see a datagram at the same moment may make an entry each: what either knows counts.
	for i := range set {
		e := &set[i]
		if e.key.Load() != key || now-e.seen.Load() >= fragmentNanos {
			continue
		}
		if flow = e.flow.Load(); flow != 0 {
			return flow &^ flowOverlap, flow&flowOverlap == 0
		}
	}
	return 0, true
}

// note takes a range into the list, unless it overlaps another.
func (e *fragmentEntry) note(f *packet.FragmentInfo) bool {
	mine := uint32(f.From)<<16 | uint32(f.To)
	for i := range e.ranges {
		r := &e.ranges[i]
		other := r.Load()
		if other == 0 {
			if r.CompareAndSwap(0, mine) {
				add := uint64(f.To - f.From)
				if f.Last {
					add |= uint64(f.To) << 32
				}
				e.units.Add(add)
				return true
			}
			other = r.Load() // another worker was quicker
		}
		if other == mine {
			return true
		}
		if f.From < uint16(other) && uint16(other>>16) < f.To {
			return false
		}
	}
	return false
}

// complete says whether every part of the datagram has been seen: a further fragment under its key is of another datagram.
func (e *fragmentEntry) complete() bool {
	u := e.units.Load()
	return u>>32 != 0 && u>>32 == u&0xffffffff
}

// set returns the places that a datagram may have.
func (t *fragmentTable) set(key uint64) []fragmentEntry {
	at := key % fragmentSets * fragmentWays
	return t.entries[at : at+fragmentWays]
}

// entry returns the entry of a datagram that is not complete, taking one for it if there is none: a free one, else the one
// that has been silent for longest. It returns nil only if other workers are taking its places at this very moment.
func (t *fragmentTable) entry(key uint64, now int64) *fragmentEntry {
	for range 16 {
		if e := t.tryEntry(key, now); e != nil {
			return e
		}
	}
	return nil
}

// tryEntry is entry, but returns nil whenever another worker was quicker.
func (t *fragmentTable) tryEntry(key uint64, now int64) *fragmentEntry {
	set := t.set(key)
	var victim *fragmentEntry
	var was uint64 // its key
	oldest := now + 1
	for i := range set {
		e := &set[i]
		k, seen := e.key.Load(), e.seen.Load()
		switch {
		case k == keyBusy:
			continue
		case k == key && now-seen < fragmentNanos && !e.complete():
			return e
		case k == key: // over: taken for the new datagram
			seen = -1
		case k == 0:
			seen = min(seen, 0)
		}
		if seen < oldest {
			victim, was, oldest = e, k, seen
		}
	}
	if victim == nil || !victim.key.CompareAndSwap(was, keyBusy) {
		return nil
	}
	victim.flow.Store(0)
	victim.units.Store(0)
	for i := range victim.ranges {
		if victim.ranges[i].Load() == 0 {
			break
		}
		victim.ranges[i].Store(0)
	}
	victim.seen.Store(now)
	victim.key.Store(key)
	return victim
}
