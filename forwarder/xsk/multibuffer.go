//go:build linux

package xsk

import "golang.org/x/sys/unix"

// Continued is set in Desc.Options of each frame of a packet but the last one. The frames of a packet follow each other in
// the ring, and in a batch. See "Multi-Buffer Support" in Documentation/networking/af_xdp.rst of the kernel.
const Continued = unix.XDP_PKT_CONTD

const (
	// maxParts is the most frames of one packet that the kernel sends in copy mode whatever the device: each becomes a
	// fragment of a socket buffer, of which there are MAX_SKB_FRAGS (xsk_build_skb_zerocopy in net/xdp/xsk.c;
	// xsk_build_skb, for other devices, takes one more). Frames of a longer one would be lost: they are dropped and never
	// completed. In zero-copy mode the limit is the driver's (xdp_zc_max_segs in its netdev, at least 2), which may be
	// lower and is not known here.
	maxParts = 17

	// behind is how far the memory goes on behind the last frame, see Umem.Memory: the length of a packet of as many
	// frames as a batch has.
	behind = 64 * ChunkSize
)

// whole returns how many of the next n descriptors in the RX ring make up whole packets; room is the length of the batch
// that they are for.
func (s *Socket) whole(n, room uint32) uint32 {
	if s.discarding {
		n -= s.discard(n)
	}
	whole := n
	for whole > 0 && s.rx.slot(whole-1).Options&Continued != 0 {
		whole--
	}
	if whole == 0 && n == room && n > 0 {
		// Not even this packet alone: it would be in the way for ever.
		s.counts.Discarded++
		s.discarding = true
		s.discard(n)
	}
	return whole
}

// discard recycles what the next n descriptors in the RX ring have of the packet that the ring begins with, and returns how
// many these are.
func (s *Socket) discard(n uint32) uint32 {
	done := uint32(0)
	for s.discarding && done < n {
		d := s.rx.slot(done)
		s.discarding = d.Options&Continued != 0
		s.umem.free = append(s.umem.free, d.Addr)
		done++
	}
	s.rx.release(done)
	s.counts.Received += uint64(done)
	s.changed = true
	return done
}

// wholePackets returns how many descriptors of batch make up whole packets.
func wholePackets(batch []Desc) int {
	n := len(batch)
	for n > 0 && batch[n-1].Options&Continued != 0 {
		n--
	}
	return n
}

// transmitPackets is Transmit for a batch, known to fit, with Options.MultiBuffer.
func (s *Socket) transmitPackets(batch []Desc) {
	place, number := s.umem.place, s.number
	before := 0 // frames of the same packet
	for i := range batch {
		d := &batch[i]
		if d.refused(Continued) || before == maxParts {
			s.transmitValid(batch)
			return
		}
		place[d.Addr>>chunkShift] = number
		before++
		if d.Options == 0 {
			before = 0
		}
	}
	if before > 0 {
		s.transmitValid(batch)
		return
	}
	s.put(batch)
}

// packet returns how many descriptors the first packet of batch has, and whether the kernel would take it.
func (s *Socket) packet(batch []Desc) (n int, valid bool) {
	options := uint32(0)
	if s.multiBuffer {
		options = Continued
	}
	valid = true
	for i := range batch {
		d := &batch[i]
		valid = valid && !d.refused(options)
		if d.Options&options == 0 {
			return i + 1, valid && i < maxParts
		}
	}
	return len(batch), false // the end is missing
}
