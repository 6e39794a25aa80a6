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

// socket is a connected socket as a [net.Conn]. It is made with the fewest system calls and in the runtime's poller: a probe by
// plain connect costs two thirds of what one through net.Dialer does, which asks for both addresses, sets options that are
// of no use here, and has a goroutine to watch its context (BenchmarkConnect).
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
func connect(ctx context.Context, kind, protocol int, addr netip.AddrPort) (*socket, error) {
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
	// Before the poller knows the socket: to epoll one that is not connecting yet has hung up.
	err = unix.Connect(fd, sa)
	s := &socket{os.NewFile(uintptr(fd), "socket"), addr}
	if errors.Is(err, unix.EINPROGRESS) {
		err = s.await(ctx, sa)
	}
	if err != nil {
		s.Close()
		return nil, os.NewSyscallError("connect", err)
	}
	return s, nil
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
