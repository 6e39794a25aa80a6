//go:build linux

package tunnel

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// conn is a connection. It gives errors as the kernel would, and returns its port when it is closed.
type conn struct {
	net.Conn
	flow    *flow
	largest int // bytes of a datagram; TCP: 0
	closed  atomic.Bool
	release func()
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, c.failure(err)
}

func (c *conn) Write(b []byte) (int, error) {
	if c.largest == 0 {
		n, err := c.Conn.Write(b)
		return n, c.failure(err)
	}
	errno := syscall.EMSGSIZE
	if len(b) <= c.largest {
		if _, err := c.Conn.Write(b); err != nil {
			return 0, c.failure(err)
		}
		errno = syscall.Errno(c.flow.failed.Load()) // it was sent at once, or not
	}
	if errno != 0 {
		return 0, &net.OpError{Op: "write", Net: "udp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: errno}
	}
	return len(b), nil
}

// Close resets the connection. Closing twice is an error, as with the kernel's connections.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: c.network(), Err: net.ErrClosed}
	}
	err := c.Conn.Close()
	c.release()
	return err
}

func (c *conn) network() string {
	if c.largest > 0 {
		return "udp"
	}
	return "tcp"
}

// failure puts the kernel's error in the place of netstack's.
func (c *conn) failure(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) {
		return err
	}
	if c.closed.Load() {
		op.Err = net.ErrClosed
	} else if !op.Timeout() {
		op.Err = textErrno(op.Err.Error())
	}
	return err
}

// errnos are the kernel's errors for those of netstack that a connection can meet. By text, since package gonet gives no
// more.
var errnos = map[string]syscall.Errno{
	(&tcpip.ErrConnectionRefused{}).String():  syscall.ECONNREFUSED,
	(&tcpip.ErrConnectionReset{}).String():    syscall.ECONNRESET,
	(&tcpip.ErrConnectionAborted{}).String():  syscall.ECONNABORTED,
	(&tcpip.ErrTimeout{}).String():            syscall.ETIMEDOUT,
	(&tcpip.ErrHostUnreachable{}).String():    syscall.EHOSTUNREACH,
	(&tcpip.ErrHostDown{}).String():           syscall.EHOSTDOWN,
	(&tcpip.ErrNetworkUnreachable{}).String(): syscall.ENETUNREACH,
	(&tcpip.ErrNoNet{}).String():              syscall.ENONET,
	(&tcpip.ErrClosedForSend{}).String():      syscall.EPIPE,
	(&tcpip.ErrMessageTooLong{}).String():     syscall.EMSGSIZE,
	(&tcpip.ErrNoBufferSpace{}).String():      syscall.ENOBUFS,
	(&tcpip.ErrPortInUse{}).String():          syscall.EADDRNOTAVAIL,
}

// asErrno returns the kernel's error for one of netstack's; nil for nil.
func asErrno(err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return textErrno(err.String())
}

func textErrno(text string) error {
	if errno, ok := errnos[text]; ok {
		return errno
	}
	return errors.New(text)
}
