//go:build linux

package xsk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrGone means that the interface of a socket has vanished. The socket has to be closed; a new one can be opened when
// the interface is back.
var ErrGone = errors.New("the interface has vanished; close the socket and open it again when the interface is back")

// callError is a failed step of Open.
type callError struct {
	call  string // the system call and its argument
	cause error
	hint  string // the likely cause and what to do, or empty
}

func (e *callError) Error() string {
	if e.hint == "" {
		return fmt.Sprintf("%s: %v", e.call, e.cause)
	}
	return fmt.Sprintf("%s: %v; %s", e.call, e.cause, e.hint)
}

func (e *callError) Unwrap() error { return e.cause }

// The calls of Open as errors name them.
const (
	callSocket   = "socket AF_XDP"
	callRegister = "setsockopt XDP_UMEM_REG"
	callBind     = "bind"

	// callMultiBuffer is bind on a kernel that does not know Options.MultiBuffer.
	callMultiBuffer = "bind with XDP_USE_SG"
)

// explain adds the likely cause to a failed call of Open.
func explain(call string, cause error, o *Options, queue int, mode Mode) error {
	e := &callError{call: call, cause: cause}
	is := func(errno unix.Errno) bool { return errors.Is(cause, errno) }
	const linkHeader = 14 + 4 // Ethernet with a VLAN tag
	lowerMTU := fmt.Sprintf("lower the MTU to at most %d, with which no packet needs several frames", o.MaxFrame()-linkHeader)
	switch {
	case call == callSocket && is(unix.EPERM):
		e.hint = "run as root or with CAP_NET_RAW"
	case call == callSocket && is(unix.EAFNOSUPPORT):
		e.hint = "the kernel has no AF_XDP: it needs CONFIG_XDP_SOCKETS"
	case call == callRegister && (is(unix.ENOBUFS) || is(unix.EPERM)):
		e.hint = fmt.Sprintf("more than %d MiB would be locked in memory: raise the limit (ulimit -l, LimitMEMLOCK=infinity) "+
			"or give CAP_IPC_LOCK", o.Frames*ChunkSize>>20)
	case call == callRegister && is(unix.ENOMEM):
		e.hint = fmt.Sprintf("no memory to pin %d MiB: use fewer frames", o.Frames*ChunkSize>>20)
	case is(unix.EPERM) || is(unix.EACCES):
		e.hint = "run as root or with CAP_NET_ADMIN and CAP_NET_RAW"
	case call == callBind && is(unix.ENODEV):
		e.hint = "there is no such interface in this network namespace"
	case call == callBind && is(unix.EBUSY):
		e.hint = "another AF_XDP socket is bound to this queue, of this or another program"
	case call == callMultiBuffer:
		e.hint = "the kernel has no packets in several frames: use Linux 6.6 or later, or " + lowerMTU
	case call == callBind && is(unix.EOPNOTSUPP) && mode == ZeroCopy && o.MultiBuffer:
		e.hint = "the driver has no zero-copy, or none for packets in several frames: use mode auto or copy, or " + lowerMTU
	case call == callBind && is(unix.EOPNOTSUPP):
		e.hint = "the driver has no zero-copy: use mode auto or copy"
		if mode == Copy {
			e.hint = "the driver has no AF_XDP"
		}
	case call == callBind && is(unix.EINVAL) && mode == ZeroCopy:
		e.hint = fmt.Sprintf("the interface may have no queue %d (ethtool -l), or its driver cannot do zero-copy as it is "+
			"set up: use mode auto or copy", queue)
	case call == callBind && is(unix.EINVAL):
		e.hint = fmt.Sprintf("the interface has probably no queue %d: see ethtool -l", queue)
	case call == callBind && is(unix.ENETDOWN):
		e.hint = "set the interface up"
	}
	return e
}
