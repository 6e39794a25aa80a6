//go:build linux

package xsk

import (
	"golang.org/x/sys/unix"
)

// FailingSystem makes one system call fail.
type FailingSystem struct {
	linux
	At    int   // the call that fails, counted from 1; 0: none
	Errno error // with what
	Calls []string

	NoMultiBuffer bool // as a kernel before 6.6

	opens int
}

// NewFailingUmem is NewUmem on a FailingSystem.
func NewFailingUmem(o Options, f *FailingSystem) (*Umem, error) { return newUmem(o, f) }

// Open reports whether descriptors that were opened through f are open.
func (f *FailingSystem) Open() int { return f.opens }

func (f *FailingSystem) fails(call string) bool {
	f.Calls = append(f.Calls, call)
	return len(f.Calls) == f.At
}

func (f *FailingSystem) memory(length int) ([]byte, bool, error) {
	if f.fails("memory") {
		return nil, false, f.Errno
	}
	return f.linux.memory(length)
}

func (f *FailingSystem) socket() (int, error) {
	if f.fails("socket") {
		return 0, f.Errno
	}
	fd, err := f.linux.socket()
	if err == nil {
		f.opens++
	}
	return fd, err
}

func (f *FailingSystem) close(fd int) error {
	f.opens--
	return f.linux.close(fd)
}

func (f *FailingSystem) register(fd int, mem []byte, headroom int) error {
	if f.fails("register") {
		return f.Errno
	}
	return f.linux.register(fd, mem, headroom)
}

func (f *FailingSystem) setInt(fd, level, option, value int) error {
	if f.fails("setInt") {
		return f.Errno
	}
	return f.linux.setInt(fd, level, option, value)
}

// mapRings fails at the third ring: the kernel refuses to map more than there is.
func (f *FailingSystem) mapRings(fd int, o *Options) (*mappedRings, error) {
	if f.fails("mapRings") {
		larger := *o
		larger.RXSize *= 1024
		return f.linux.mapRings(fd, &larger)
	}
	return f.linux.mapRings(fd, o)
}

func (f *FailingSystem) bind(fd int, address *unix.SockaddrXDP) error {
	if f.fails("bind") {
		return f.Errno
	}
	if f.NoMultiBuffer && address.Flags&unix.XDP_USE_SG != 0 {
		return unix.EINVAL
	}
	return f.linux.bind(fd, address)
}

func (f *FailingSystem) zeroCopy(fd int) (bool, error) {
	if f.fails("zeroCopy") {
		return false, f.Errno
	}
	return f.linux.zeroCopy(fd)
}

// OpenAlone is Open in copy mode with a registration of the memory of its own.
func (u *Umem) OpenAlone(ifname string, ifindex, queue int) (*Socket, error) {
	return u.openMode(ifname, ifindex, queue, Copy, nil)
}
