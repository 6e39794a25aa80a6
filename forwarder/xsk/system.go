//go:build linux

package xsk

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// system is the system calls of a Umem and of opening a socket. There is one implementation; tests wrap it to make
// calls fail.
type system interface {
	memory(length int) (mem []byte, huge bool, err error)
	munmap(mem []byte) error
	socket() (fd int, err error)
	register(fd int, mem []byte, headroom int) error
	setInt(fd, level, option, value int) error
	mapRings(fd int, o *Options) (*mappedRings, error)
	bind(fd int, address *unix.SockaddrXDP) error
	zeroCopy(fd int) (bool, error)
	statistics(fd int) (Statistics, error)
	close(fd int) error
	poll(sockets []*Socket, timeout time.Duration) error
}

// linux is the system that the program runs on.
type linux struct{}

// memory maps anonymous memory, on huge pages of 2 MiB if enough of them are free.
func (linux) memory(length int) ([]byte, bool, error) {
	const (
		hugePage = 2 << 20
		prot     = unix.PROT_READ | unix.PROT_WRITE
		flags    = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	)
	rounded := (length + hugePage - 1) &^ (hugePage - 1)
	if mem, err := unix.Mmap(-1, 0, rounded, prot, flags|unix.MAP_HUGETLB); err == nil {
		return mem, true, nil
	}
	mem, err := unix.Mmap(-1, 0, rounded, prot, flags)
	if err != nil {
		return nil, false, err
	}
	// The next best: the kernel may put transparent huge pages under it, if they are not switched off.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	return mem, false, nil
}

func (linux) munmap(mem []byte) error { return unix.Munmap(mem) }

func (linux) socket() (int, error) {
	return unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
}

func (linux) setInt(fd, level, option, value int) error {
	return unix.SetsockoptInt(fd, level, option, value)
}

func (linux) bind(fd int, address *unix.SockaddrXDP) error { return unix.Bind(fd, address) }

func (linux) close(fd int) error { return unix.Close(fd) }

// poll also makes the kernel send what is in the TX rings of sockets in copy mode (xsk_poll in net/xdp/xsk.c). It is not
// a raw system call: the Go scheduler must be able to use the processor meanwhile.
func (linux) poll(sockets []*Socket, timeout time.Duration) error {
	fds := make([]unix.PollFd, 0, 16) // on the stack for up to 16 sockets
	for _, s := range sockets {
		fds = append(fds, unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN})
	}
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	_, err := unix.Poll(fds, ms)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// boundSocket is the kernel's side of a socket that is bound to a queue.
type boundSocket struct {
	system
	fd    int
	rings *mappedRings
}

// The two calls below go past unix.Sendto and Recvfrom, which want an address and a buffer.

func (b *boundSocket) send() error {
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(b.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return asError(errno)
}

func (b *boundSocket) receive() error {
	_, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(b.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return asError(errno)
}

// asError keeps zero from becoming an error. Small numbers become interfaces without an allocation.
func asError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func (b *boundSocket) statistics() (Statistics, error) { return b.system.statistics(b.fd) }

func (b *boundSocket) settle() time.Duration { return settleTime }

func (b *boundSocket) close() error {
	return errors.Join(b.rings.unmap(), b.system.close(b.fd))
}
