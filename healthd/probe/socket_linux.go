package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a connected socket of any kind as a [net.Conn], in the runtime's poller. It is made with few system calls: a whole probe
// by plain connect costs a tenth less than the net.Dialer's part of one alone, which sets options that are of no use here
// (BenchmarkConnect). Nearly all of what is left is the kernel's connect and close.
type socket struct {
	*os.File
	remote netip.AddrPort
}

// LocalAddr is nil: nothing asks for it.
func (s *socket) LocalAddr() net.Addr { return nil }

// RemoteAddr is who the socket is connected to.
func (s *socket) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.remote) }

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// connect makes a socket, and connects it to addr. A stream is reset when it is closed, not shut down in order: ten thousand
// backends probed every two seconds would otherwise leave 300,000 sockets in TIME_WAIT. It is plain TCP, as is what the
// backend's clients speak to it through the forwarder: net.Dialer would ask for MPTCP.
//
// With glance set, the SYN-ACK is the answer that is waited for, and nothing is to be said: its acknowledgement is delayed, and the
// reset comes instead. So a backend makes no connection of it, which no server has to accept, and no log has. It is a quarter of the work for
// both ends (BenchmarkConnect). HAProxy's checks do the same.
func connect(ctx context.Context, kind, protocol int, addr netip.AddrPort, glance bool) (*socket, error) {
	to := addr.Addr().Unmap()
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if to.Is4() {
		sa = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: to.As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: to.As16()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if kind == unix.SOCK_STREAM {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // only costs the TIME_WAIT
	}
	if glance {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0) // only costs a packet
	}
	// Before the poller knows the socket: to epoll one that is not connecting yet has hung up.
	err = unix.Connect(fd, sa)
	s := &socket{os.NewFile(uintptr(fd), "socket"), addr}
	if errors.Is(err, unix.EINPROGRESS) {
		err = s.await(ctx, sa)
	}
	if err == nil && kind == unix.SOCK_STREAM && isSelf(fd, sa) {
		err = unix.ECONNREFUSED
	}
	if err != nil {
		s.Close()
		return nil, os.NewSyscallError("connect", err)
	}
	return s, nil
}

// isSelf reports whether a socket is connected to itself: on this node, where nobody listens on a port of those that are given to
// clients, the kernel may give that very port.
func isSelf(fd int, to unix.Sockaddr) bool {
	from, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch to := to.(type) {
	case *unix.SockaddrInet4:
		from, ok := from.(*unix.SockaddrInet4)
		return ok && from.Port == to.Port && from.Addr == to.Addr
	case *unix.SockaddrInet6:
		from, ok := from.(*unix.SockaddrInet6)
		return ok && from.Port == to.Port && from.Addr == to.Addr
	}
	return false
}

// await waits until the socket is connected. To connect once more tells: EALREADY while it is going on, then how it ended.
func (s *socket) await(ctx context.Context, sa unix.Sockaddr) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = s.SetWriteDeadline(longAgo) })()
	// Asked before the first wait too: the answer may have come, and the poller forgotten it, since the socket was made.
	waitErr := raw.Write(func(fd uintptr) bool {
		err = unix.Connect(int(fd), sa)
		return !errors.Is(err, unix.EALREADY)
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(waitErr, err)
}
