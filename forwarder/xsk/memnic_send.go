//go:build linux

package xsk

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// This file is the sending side of a MemoryNIC.

// copyBudget is how many packets one sendto sends in copy mode. In the kernel it is as many frames (TX_BATCH_SIZE in
// net/xdp/xsk.c), and it remembers how far it came in a packet.
const copyBudget = 32

// Collect sends what is in the TX ring: it calls f, if not nil, with each frame as it is on the wire, whose bytes are valid
// during the call only, and completes it. It returns the number of such frames.
func (n *MemoryNIC) Collect(queue int, f func(frame []byte)) int {
	q := n.queues[queue]
	q.txMu.Lock()
	defer q.txMu.Unlock()
	faults := q.faults.Load()
	if q.copies {
		if !faults.CompletionsWithheld {
			q.complete()
		}
		wire := q.wire
		q.wire = nil
		for _, frame := range wire {
			if f != nil {
				f(frame)
			}
		}
		return len(wire)
	}
	if faults.Gone || faults.TXStuck || faults.NeedWakeup && !q.txAwake {
		return 0
	}
	sent := q.transmit(^uint32(0), f)
	if faults.NeedWakeup {
		q.txAwake = false
		atomic.StoreUint32(q.txFlags, ringNeedWakeup)
	}
	return sent
}

// transmit takes at most limit packets out of the TX ring and completes their frames, unless the completions are withheld.
// As in the kernel, a packet with a bad descriptor is dropped and never completed, and nothing is sent without room for its
// completion. It returns how many were sent.
func (q *memoryQueue) transmit(limit uint32, f func(frame []byte)) (sent int) {
	withhold := q.faults.Load().CompletionsWithheld
	if !withhold {
		q.complete()
	}
	room := q.completion.reserve(^uint32(0)) - uint32(len(q.withheld))
	n := min(q.tx.peek(^uint32(0)), room)
	taken, done := uint32(0), uint32(0)
	for ; taken < n && limit > 0; limit-- {
		parts, frame := q.packet(taken, n)
		if parts == 0 {
			break
		}
		if frame == nil {
			q.txInvalid += uint64(parts)
			taken += parts
			continue
		}
		if f != nil {
			f(frame)
		}
		for range parts {
			addr := q.tx.slot(taken).Addr
			if withhold {
				q.withheld = append(q.withheld, addr)
			} else {
				*q.completion.slot(done) = addr
			}
			taken++
			done++
		}
		sent++
	}
	if taken > 0 {
		q.tx.release(taken)
	}
	if done > 0 && !withhold {
		q.completion.submit(done)
	}
	return sent
}

// packet returns the packet that begins with entry i of the TX ring, of which n are there, and how many entries it has: none
// if its end is not there. The frame is nil if the kernel would refuse it.
func (q *memoryQueue) packet(i, n uint32) (parts uint32, frame []byte) {
	u, options := q.nic.umem, uint32(0)
	if u.options.MultiBuffer {
		options = Continued
	}
	for more := true; more; parts++ {
		if i+parts == n {
			return 0, nil
		}
		more = q.tx.slot(i+parts).Options&options != 0
	}
	q.joined = q.joined[:0]
	for k := range parts {
		d := *q.tx.slot(i + k)
		if d.Len == 0 || d.Addr%ChunkSize+uint64(d.Len) > ChunkSize || d.Addr>>chunkShift >= uint64(len(u.place)) ||
			d.Options&^options != 0 || parts > maxParts {
			return parts, nil
		}
		frame = u.memory[d.Addr : d.Addr+uint64(d.Len)]
		if parts > 1 {
			q.joined = append(q.joined, frame...)
			frame = q.joined
		}
	}
	return parts, frame
}

// complete lets go of what was withheld.
func (q *memoryQueue) complete() {
	n := q.completion.reserve(uint32(len(q.withheld)))
	for i := range n {
		*q.completion.slot(i) = q.withheld[i]
	}
	if n > 0 {
		q.completion.submit(n)
		q.withheld = q.withheld[n:]
	}
}

// send is the kernel's sendto on the socket.
func (q *memoryQueue) send() error {
	q.txMu.Lock()
	defer q.txMu.Unlock()
	f := q.faults.Load()
	switch {
	case f.Gone:
		return unix.ENXIO
	case f.WakeError == unix.EBUSY && q.copies:
		q.transmit(1, nil)
		return unix.EBUSY
	case f.WakeError != 0:
		return f.WakeError
	case q.copies:
		if f.TXStuck {
			return unix.EAGAIN
		}
		q.transmit(copyBudget, func(frame []byte) { q.wire = append(q.wire, append([]byte(nil), frame...)) })
		if q.tx.peek(1) > 0 {
			return unix.EAGAIN
		}
	default:
		q.txAwake = true
		atomic.StoreUint32(q.txFlags, 0)
	}
	return nil
}
