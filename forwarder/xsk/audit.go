//go:build linux

package xsk

import "fmt"

// Census says where the frames of a Umem are.
type Census struct {
	Free       int // on the free list
	Fill       int // in fill rings
	RX         int // in RX rings
	Worker     int // received, and neither transmitted nor recycled yet
	TX         int // in TX rings
	Completion int // in completion rings
	Kernel     int // given to the kernel and in none of the rings: with the driver or the NIC
	Settling   int // of closed sockets, on their way to the free list
}

// Audit looks at every frame and every ring and says where the frames are. An error means that a frame is in two places
// or in none, which is a programming error. It may run while the kernel moves frames, but not the worker; it takes some
// ten microseconds per thousand frames.
func (u *Umem) Audit() (Census, error) {
	var c Census
	seen := make([]string, len(u.place)) // where each frame was found
	find := func(addr uint64, where string) error {
		i := addr >> chunkShift
		if i >= uint64(len(u.place)) {
			return fmt.Errorf("audit: address %#x in the %s is outside of the umem", addr, where)
		}
		if seen[i] != "" {
			return fmt.Errorf("audit: frame %d is in the %s and in the %s", i, seen[i], where)
		}
		seen[i] = where
		return nil
	}

	for _, a := range u.free {
		if err := find(a, "free list"); err != nil {
			return c, err
		}
	}
	c.Free = len(u.free)
	for _, s := range u.settling {
		for _, a := range s.frames {
			if err := find(a, "list of settling frames"); err != nil {
				return c, err
			}
		}
		c.Settling += len(s.frames)
	}
	for i, held := range u.held {
		if held {
			if err := find(uint64(i)<<chunkShift, "hands of the worker"); err != nil {
				return c, err
			}
		}
	}
	owned := make([]int, maxSockets+1) // frames not free by socket
	for _, s := range u.sockets {
		if err := s.audit(&c, find); err != nil {
			return c, err
		}
	}
	for i, p := range u.place {
		switch seen[i] {
		case "free list", "list of settling frames", "hands of the worker":
			continue
		}
		if !u.numbers[p] {
			return c, fmt.Errorf("audit: frame %d is nowhere: not free, and given to no open socket (%d)", i, p)
		}
		owned[p]++
	}

	// The frames against the books.
	inKernel := 0
	for _, s := range u.sockets {
		inKernel += s.inKernel()
		if n := owned[s.number]; n < s.inKernel() || u.held != nil && n != s.inKernel() {
			return c, fmt.Errorf("audit: %s was given %d frames that it has not returned, and %d are with it", s, s.inKernel(), n)
		}
	}
	c.Worker = len(u.place) - c.Free - c.Settling - inKernel
	c.Kernel = inKernel - c.Fill - c.RX - c.TX - c.Completion
	return c, nil
}

// audit finds the frames in the rings of a socket. A frame goes from fill to RX and from TX to completion, and so the
// later ring is read first: a frame that moves meanwhile is seen once or not at all, never twice.
func (s *Socket) audit(c *Census, find func(addr uint64, where string) error) error {
	n := s.rx.peek(^uint32(0))
	for i := range n {
		if err := find(s.rx.slot(i).Addr, "RX ring of "+s.String()); err != nil {
			return err
		}
	}
	c.RX += int(n)
	n = s.completion.peek(^uint32(0))
	for i := range n {
		if err := find(*s.completion.slot(i), "completion ring of "+s.String()); err != nil {
			return err
		}
	}
	c.Completion += int(n)
	n = s.fill.pending()
	for i := range n {
		if err := find(s.fill.slots[(s.fill.next-n+i)&uint32(len(s.fill.slots)-1)], "fill ring of "+s.String()); err != nil {
			return err
		}
	}
	c.Fill += int(n)
	n = s.tx.pending()
	for i := range n {
		if err := find(s.tx.slots[(s.tx.next-n+i)&uint32(len(s.tx.slots)-1)].Addr, "TX ring of "+s.String()); err != nil {
			return err
		}
	}
	c.TX += int(n)
	return nil
}
