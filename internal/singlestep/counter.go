//go:build linux

package singlestep

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Counter is a hardware counter of the instructions that the thread which opened it executes outside the kernel.
type Counter struct{ fd int }

// OpenCounter opens the counter of the calling thread. The error says so where there is none.
func OpenCounter() (*Counter, error) {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_HARDWARE, Config: unix.PERF_COUNT_HW_INSTRUCTIONS, Size: unix.PERF_ATTR_SIZE_VER0,
		Bits: unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv,
	}
	fd, err := unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("hardware counter of instructions (perf_event_open): %w", err)
	}
	return &Counter{fd}, nil
}

// Read returns how many instructions there were since the counter was opened.
func (c *Counter) Read() (uint64, error) {
	var b [8]byte
	if _, err := unix.Read(c.fd, b[:]); err != nil {
		return 0, fmt.Errorf("read the hardware counter of instructions: %w", err)
	}
	return binary.NativeEndian.Uint64(b[:]), nil
}

// Close gives the counter back.
func (c *Counter) Close() error { return unix.Close(c.fd) }
