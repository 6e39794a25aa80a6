//go:build linux

package xsk

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// busyTime is how long Open waits for a queue that another socket still holds: the kernel frees a queue some time after
// its socket was closed.
const busyTime = time.Second

// Open binds a socket to a queue of an interface of the calling thread's network namespace; the name is for errors and
// logs. In mode Auto it is zero-copy if the driver can; Socket.Mode says what was obtained. Sockets of both modes can
// share a Umem. Open takes a ring full of free frames, and may block for a second while a socket that was closed lately
// still holds the queue.
func (u *Umem) Open(ifname string, ifindex, queue int, mode Mode) (*Socket, error) {
	fail := func(err error) (*Socket, error) {
		return nil, fmt.Errorf("open %s queue %d: %w", ifname, queue, err)
	}
	switch {
	case u.memory == nil:
		return fail(os.ErrClosed)
	case ifindex <= 0:
		return fail(fmt.Errorf("interface index %d: must be positive", ifindex))
	case queue < 0 || queue > 1<<16-1:
		return fail(fmt.Errorf("queue %d: must be from 0 to 65535", queue))
	case mode > Copy:
		return fail(fmt.Errorf("mode %v: must be auto, zerocopy or copy", mode))
	}
	if slices.ContainsFunc(u.sockets, func(s *Socket) bool {
		return s.name == ifname && s.ifindex == ifindex && s.queue == queue && !s.unbound
	}) {
		return fail(errors.New("is open already; close it first"))
	}

	first := mode
	if mode == Auto {
		first = ZeroCopy
	}
	s, err := u.openShared(ifname, ifindex, queue, first)
	if mode == Auto && refusesZeroCopy(err) {
		refusal := err
		if s, err = u.openShared(ifname, ifindex, queue, Copy); err == nil {
			s.refusal = refusal
		}
	}
	if err != nil {
		return fail(err)
	}
	return s, nil
}

// refusesZeroCopy reports whether copy mode may succeed where zero-copy failed with err. Drivers say no in many ways:
// EOPNOTSUPP, EINVAL, ENOENT, ENOMEM …
func refusesZeroCopy(err error) bool {
	var call *callError
	return errors.As(err, &call) && call.call == callBind &&
		!errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENODEV)
}

// openShared opens a socket on the registration of another one in the same mode, or with one of its own. The kernel ties
// zero-copy or copy mode to a registration of the memory (struct xdp_umem), not to a socket; the memory may be
// registered more than once.
func (u *Umem) openShared(ifname string, ifindex, queue int, mode Mode) (*Socket, error) {
	for _, lender := range u.sockets {
		if lender.mode != mode || lender.unbound {
			continue
		}
		s, err := u.openMode(ifname, ifindex, queue, mode, lender)
		if errors.Is(err, unix.EBADF) {
			// The lender's interface has vanished.
			lender.unbound = true
			continue
		}
		return s, err
	}
	return u.openMode(ifname, ifindex, queue, mode, nil)
}

// openMode makes the socket and its rings and binds it. Each resource is followed by what undoes it.
func (u *Umem) openMode(ifname string, ifindex, queue int, mode Mode, lender *Socket) (_ *Socket, err error) {
	o, sys := &u.options, u.system
	failed := func(call string, cause error) (*Socket, error) { return nil, explain(call, cause, o, queue, mode) }
	undo := func(f func()) {
		if err != nil {
			f()
		}
	}

	if err = u.require(o.FillSize); err != nil {
		return nil, err
	}
	number, err := u.number()
	if err != nil {
		return nil, err
	}
	bound := false
	defer undo(func() {
		var after time.Duration
		if bound {
			after = settleTime
		}
		u.vacate(number, after)
	})

	fd, err := sys.socket()
	if err != nil {
		return failed(callSocket, err)
	}
	defer undo(func() { _ = sys.close(fd) })

	if lender == nil {
		if err = sys.register(fd, u.memory[:u.Frames()*ChunkSize], o.Headroom); err != nil {
			return failed(callRegister, err)
		}
	}
	for _, ring := range []struct {
		call        string
		option, len int
	}{
		{"setsockopt XDP_UMEM_FILL_RING", unix.XDP_UMEM_FILL_RING, o.FillSize},
		{"setsockopt XDP_UMEM_COMPLETION_RING", unix.XDP_UMEM_COMPLETION_RING, o.CompletionSize},
		{"setsockopt XDP_RX_RING", unix.XDP_RX_RING, o.RXSize},
		{"setsockopt XDP_TX_RING", unix.XDP_TX_RING, o.TXSize},
	} {
		if err = sys.setInt(fd, unix.SOL_XDP, ring.option, ring.len); err != nil {
			return failed(ring.call, err)
		}
	}
	rings, err := sys.mapRings(fd, o)
	if err != nil {
		return failed("map rings", err)
	}
	defer undo(func() { _ = rings.unmap() })

	// How many frames one sendto sends in copy mode: 32 if this fails, as it does on kernels before 6.17.
	_ = sys.setInt(fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, o.TXSize)
	if o.BusyPoll {
		for _, option := range []struct {
			call          string
			option, value int
		}{
			{"setsockopt SO_PREFER_BUSY_POLL", unix.SO_PREFER_BUSY_POLL, 1},
			{"setsockopt SO_BUSY_POLL", unix.SO_BUSY_POLL, 20}, // microseconds
			{"setsockopt SO_BUSY_POLL_BUDGET", unix.SO_BUSY_POLL_BUDGET, 64},
		} {
			if err = sys.setInt(fd, unix.SOL_SOCKET, option.option, option.value); err != nil {
				return failed(option.call, err)
			}
		}
	}

	s := &Socket{
		umem: u, number: number, mode: mode, busyPoll: o.BusyPoll,
		multiBuffer: o.MultiBuffer, name: ifname, ifindex: ifindex, queue: queue, fd: fd,
	}
	s.attach(rings.set)
	// Some drivers want the fill ring full before bind, or leak what they could not get.
	s.refill()

	address := &unix.SockaddrXDP{Flags: unix.XDP_SHARED_UMEM, Ifindex: uint32(ifindex), QueueID: uint32(queue)}
	switch {
	case lender != nil:
		address.SharedUmemFD = uint32(lender.fd) // and no other flag: the kernel takes the lender's
	case mode == ZeroCopy:
		address.Flags = unix.XDP_ZEROCOPY | unix.XDP_USE_NEED_WAKEUP
	default:
		address.Flags = unix.XDP_COPY | unix.XDP_USE_NEED_WAKEUP
	}
	if o.MultiBuffer && lender == nil {
		address.Flags |= unix.XDP_USE_SG
	}
	for deadline := time.Now().Add(busyTime); ; {
		err = sys.bind(fd, address)
		if err != unix.EBUSY || time.Now().After(deadline) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err == unix.EINVAL && address.Flags&unix.XDP_USE_SG != 0 &&
		sys.bind(fd, &unix.SockaddrXDP{Flags: unix.XDP_USE_SG}) == unix.EINVAL {
		// A kernel that knows the flag would have gone on, and found that there is no interface 0.
		return failed(callMultiBuffer, err)
	}
	if err != nil {
		return failed(callBind, err)
	}
	bound = true

	zerocopy, err := sys.zeroCopy(fd)
	if err != nil {
		return failed("getsockopt XDP_OPTIONS", err)
	}
	s.mode = Copy
	if zerocopy {
		s.mode = ZeroCopy
	}
	s.kernel = &boundSocket{system: sys, fd: fd, rings: rings}
	u.sockets = append(u.sockets, s)
	return s, nil
}

// ringSet is the four rings of a socket as the socket sees them.
type ringSet struct {
	fill       producer[uint64]
	rx         consumer[Desc]
	tx         producer[Desc]
	completion consumer[uint64]
}

// attach gives the socket its rings.
func (s *Socket) attach(r ringSet) {
	s.fill, s.rx, s.tx, s.completion = r.fill, r.rx, r.tx, r.completion
}

// Close unbinds the socket. Its frames return to the free list, those that were in the kernel a quarter of a second
// later, with the next Wait, Open or Close on the Umem. The worker must hold no frames that it received from this
// socket: Close takes them back too. Other sockets of the Umem go on. Afterwards Receive and Transmit do nothing, Recycle
// works, and Wake returns os.ErrClosed. Further calls do nothing.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	u := s.umem
	s.reclaim()
	s.publish()
	// The rings are about to be unmapped, and are replaced by some that nobody is at the other end of.
	s.attach(ringSet{
		fill: closedProducer[uint64](), rx: closedConsumer[Desc](),
		tx: closedProducer[Desc](), completion: closedConsumer[uint64](),
	})
	s.stop = fmt.Errorf("wake %s: %w", s, os.ErrClosed)
	if st, err := s.kernel.statistics(); err == nil {
		s.last = st
	}
	err := s.kernel.close()
	u.sockets = slices.DeleteFunc(u.sockets, func(o *Socket) bool { return o == s })
	u.vacate(s.number, s.kernel.settle())
	if err != nil {
		return fmt.Errorf("close %s: %w", s, err)
	}
	return nil
}
