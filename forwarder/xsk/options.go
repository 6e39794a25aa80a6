//go:build linux

package xsk

import (
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

// Sizes that are fixed.
const (
	// ChunkSize is the size in bytes of a frame with its headroom. It is the page size, the largest that the kernel
	// accepts for aligned chunks; smaller ones corrupt frames above 1 KiB on some drivers (igb).
	ChunkSize = 1 << chunkShift

	chunkShift     = 12
	kernelHeadroom = unix.XDP_PACKET_HEADROOM // bytes that the kernel itself keeps free in front of a received frame
	ringNeedWakeup = unix.XDP_RING_NEED_WAKEUP
	maxSockets     = 250 // on one Umem; a socket's number is a byte, see Umem.place
)

// Mode says whether the NIC reads and writes frames in the Umem itself (ZeroCopy) or the kernel copies them (Copy).
type Mode uint8

// The modes. Auto is a wish only: zero-copy where the driver can, else copy.
const (
	Auto Mode = iota
	ZeroCopy
	Copy
)

var modeNames = [...]string{Auto: "auto", ZeroCopy: "zerocopy", Copy: "copy"}

// String returns auto, zerocopy or copy.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// ParseMode is the inverse of String.
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if s == name {
			return Mode(m), nil
		}
	}
	return Auto, fmt.Errorf("mode %q: expected auto, zerocopy or copy", s)
}

// Options are the sizes of a Umem and of the rings of its sockets. Zero fields mean the defaults.
type Options struct {
	// Frames is the number of chunks; FramesFor(1) if zero. FramesFor says how many are enough.
	Frames int

	// Entries of the rings, powers of two; by default 4096 for the fill ring and 2048 for the others. FillSize should
	// be at least the receive ring of the NIC (ethtool -g) plus RXSize, CompletionSize at least TXSize.
	FillSize, CompletionSize, RXSize, TXSize int

	// Headroom is what is left free in front of a received frame, in bytes, beyond the 256 that the kernel leaves; by
	// default 32, with which an outer header written in front of the frame falls into a cache line that the frame
	// touches anyway.
	Headroom int

	// BusyPoll asks for preferred busy polling: the driver is run by Wake, on the worker's core, instead of by
	// interrupts. Wake then makes a system call each time.
	BusyPoll bool

	// MultiBuffer lets packets be longer than a frame: they come and go in several, see Continued. Without it longer ones
	// are dropped; MaxFrame tells from which length on it is needed. It takes Linux 6.6, for zero-copy a driver that can
	// do it too, and an XDP program that was loaded for fragments (section xdp.frags).
	MultiBuffer bool

	// Audit keeps track of each frame that the worker holds: Transmit and Recycle panic when given a frame that it does
	// not hold, and Umem.Audit sees frames that two parts of the program hold at once. It is for tests; it costs some
	// nanoseconds a packet.
	Audit bool
}

// withDefaults fills the zero fields.
func (o Options) withDefaults() Options {
	for _, f := range []struct {
		v     *int
		deflt int
	}{{&o.FillSize, 4096}, {&o.CompletionSize, 2048}, {&o.RXSize, 2048}, {&o.TXSize, 2048}, {&o.Headroom, 32}} {
		if *f.v == 0 {
			*f.v = f.deflt
		}
	}
	if o.Frames == 0 {
		o.Frames = o.FramesFor(1)
	}
	return o
}

// FramesFor returns the number of frames with which this many sockets can have their fill rings full at all times: those
// of the receiving side are bounded by the fill ring, those of the sending side by the TX ring.
func (o Options) FramesFor(sockets int) int {
	o.Frames = 1 // not to be derived from itself
	o = o.withDefaults()
	return sockets * (o.FillSize + o.TXSize)
}

// MaxFrame returns the length of the longest packet in bytes, with its link header, that is received without MultiBuffer,
// and in one frame with it: xsk_pool_get_rx_frame_size in include/net/xdp_sock_drv.h. In zero-copy mode the driver's limit
// may be a little lower.
func (o Options) MaxFrame() int {
	return ChunkSize - kernelHeadroom - o.withDefaults().Headroom
}

// validate checks options that have their defaults.
func (o *Options) validate() error {
	for _, f := range []struct {
		name string
		v    int
	}{{"FillSize", o.FillSize}, {"CompletionSize", o.CompletionSize}, {"RXSize", o.RXSize}, {"TXSize", o.TXSize}} {
		if f.v < 1 || f.v > 1<<20 || bits.OnesCount(uint(f.v)) != 1 {
			return fmt.Errorf("umem options: %s is %d: must be a power of two, at most %d", f.name, f.v, 1<<20)
		}
	}
	if o.MultiBuffer && min(o.RXSize, o.TXSize) < maxParts {
		return fmt.Errorf("umem options: RXSize is %d, TXSize %d: with MultiBuffer a packet of %d frames must have room; "+
			"make both at least 32", o.RXSize, o.TXSize, maxParts)
	}
	if o.FillSize < o.RXSize {
		return fmt.Errorf("umem options: FillSize is %d, below RXSize %d: the RX ring could never be full; "+
			"make FillSize at least RXSize", o.FillSize, o.RXSize)
	}
	if o.CompletionSize < o.TXSize {
		return fmt.Errorf("umem options: CompletionSize is %d, below TXSize %d: transmitting would wait for room there; "+
			"make CompletionSize at least TXSize", o.CompletionSize, o.TXSize)
	}
	if o.Frames < o.FillSize || o.Frames > 1<<24 {
		return fmt.Errorf("umem options: Frames is %d: must be from FillSize (%d), since a fill ring has to be full, to %d",
			o.Frames, o.FillSize, 1<<24)
	}
	if o.Headroom < 0 || o.Headroom > 1024 {
		return fmt.Errorf("umem options: Headroom is %d: must be from 0 to 1024 bytes", o.Headroom)
	}
	return nil
}
