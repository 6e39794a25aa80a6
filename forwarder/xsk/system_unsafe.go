//go:build linux

package xsk

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file alone goes past Go's types: system calls that take structures, and rings that lie in memory mapped from the
// kernel. (The prefetch in assembly names memory, but neither reads nor writes it.)

func (linux) register(fd int, mem []byte, headroom int) error {
	reg := unix.XDPUmemReg{
		Addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))), Len: uint64(len(mem)),
		Size: ChunkSize, Headroom: uint32(headroom),
	}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_UMEM_REG,
		uintptr(unsafe.Pointer(&reg)), unsafe.Sizeof(reg), 0)
	return asError(errno)
}

// getsockopt reads a structure of the SOL_XDP level. The kernel may know a shorter one; the rest stays zero.
func getsockopt[T any](fd, option int) (value T, err error) {
	length := uint32(unsafe.Sizeof(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option),
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&length)), 0)
	return value, asError(errno)
}

func (linux) zeroCopy(fd int) (bool, error) {
	flags, err := getsockopt[uint32](fd, unix.XDP_OPTIONS)
	return flags&unix.XDP_OPTIONS_ZEROCOPY != 0, err
}

func (linux) statistics(fd int) (Statistics, error) {
	x, err := getsockopt[unix.XDPStatistics](fd, unix.XDP_STATISTICS)
	return Statistics{
		RXDropped: x.Rx_dropped, RXInvalid: x.Rx_invalid_descs, TXInvalid: x.Tx_invalid_descs,
		RXRingFull: x.Rx_ring_full, FillEmpty: x.Rx_fill_ring_empty_descs, TXRingEmpty: x.Tx_ring_empty_descs,
	}, err
}

// mappedRings are the mappings of a socket's four rings.
type mappedRings struct {
	set      ringSet
	mappings [][]byte
}

// mapRings maps the rings of a socket that has their sizes set.
func (linux) mapRings(fd int, o *Options) (_ *mappedRings, err error) {
	off, err := getsockopt[unix.XDPMmapOffsets](fd, unix.XDP_MMAP_OFFSETS)
	if err != nil {
		return nil, fmt.Errorf("getsockopt XDP_MMAP_OFFSETS: %w", err)
	}
	if off.Fr.Flags == 0 {
		return nil, errors.New("getsockopt XDP_MMAP_OFFSETS: the kernel has no need_wakeup; Linux 5.4 or later is needed")
	}
	m := &mappedRings{}
	defer func() {
		if err != nil {
			_ = m.unmap()
		}
	}()

	w, at, err := m.ring(fd, unix.XDP_UMEM_PGOFF_FILL_RING, off.Fr, o.FillSize, unsafe.Sizeof(uint64(0)))
	if err != nil {
		return nil, fmt.Errorf("mmap fill ring: %w", err)
	}
	m.set.fill = newProducer(w, unsafe.Slice((*uint64)(at), o.FillSize))

	w, at, err = m.ring(fd, unix.XDP_UMEM_PGOFF_COMPLETION_RING, off.Cr, o.CompletionSize, unsafe.Sizeof(uint64(0)))
	if err != nil {
		return nil, fmt.Errorf("mmap completion ring: %w", err)
	}
	m.set.completion = newConsumer(w, unsafe.Slice((*uint64)(at), o.CompletionSize))

	w, at, err = m.ring(fd, unix.XDP_PGOFF_RX_RING, off.Rx, o.RXSize, unsafe.Sizeof(Desc{}))
	if err != nil {
		return nil, fmt.Errorf("mmap RX ring: %w", err)
	}
	m.set.rx = newConsumer(w, unsafe.Slice((*Desc)(at), o.RXSize))

	w, at, err = m.ring(fd, unix.XDP_PGOFF_TX_RING, off.Tx, o.TXSize, unsafe.Sizeof(Desc{}))
	if err != nil {
		return nil, fmt.Errorf("mmap TX ring: %w", err)
	}
	m.set.tx = newProducer(w, unsafe.Slice((*Desc)(at), o.TXSize))
	return m, nil
}

// ring maps one ring and finds its words and its first entry.
func (m *mappedRings) ring(fd int, page int64, off unix.XDPRingOffset, entries int, size uintptr) (
	ringWords, unsafe.Pointer, error) {
	mem, err := unix.Mmap(fd, page, int(off.Desc)+entries*int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return ringWords{}, nil, err
	}
	m.mappings = append(m.mappings, mem)
	return ringWords{
		producer: (*uint32)(unsafe.Pointer(&mem[off.Producer])),
		consumer: (*uint32)(unsafe.Pointer(&mem[off.Consumer])),
		flags:    (*uint32)(unsafe.Pointer(&mem[off.Flags])),
	}, unsafe.Pointer(&mem[off.Desc]), nil
}

// unmap releases what was mapped. Nothing may look at the rings afterwards.
func (m *mappedRings) unmap() error {
	var errs []error
	for _, mem := range m.mappings {
		if err := unix.Munmap(mem); err != nil {
			errs = append(errs, fmt.Errorf("munmap: %w", err))
		}
	}
	m.mappings = nil
	return errors.Join(errs...)
}
