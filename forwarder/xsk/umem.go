//go:build linux

package xsk

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// Umem is packet memory: frames of ChunkSize bytes, and the sockets that share them. See the package documentation for
// who may call its methods.
type Umem struct {
	memory  []byte
	options Options
	huge    bool
	system  system

	// free is a stack of the addresses of free frames, each anywhere in its chunk. Its capacity is the number of frames,
	// and it never grows.
	free []uint64

	// place names for each chunk the socket through which it was given to the kernel last, by its number. What is
	// neither free nor the worker's is there. It is what makes it possible to close one of several sockets and lose no
	// frame: neither the rings nor the kernel can name all frames that the kernel holds.
	place []uint8

	// held marks the frames that the worker holds, if Options.Audit is set; else it is nil.
	held []bool

	sockets  []*Socket            // open ones
	numbers  [maxSockets + 1]bool // socket numbers in use; 0 is none
	settling []settling

	// wait sleeps until a socket has something to receive; see Wait.
	wait func(timeout time.Duration) error
}

// settling is what a closed socket had in the kernel. The kernel takes a queue down a little after close(2) returns
// (xp_release_deferred in net/xdp/xsk_buff_pool.c), and until then a zero-copy NIC may still write to frames it had
// been given.
type settling struct {
	until  time.Time
	frames []uint64
}

// settleTime is many times what the kernel was seen to need, 20 ms.
const settleTime = 250 * time.Millisecond

// NewUmem reserves the memory, on huge pages if the system has free ones. Nothing is known to the kernel before the
// first Open.
func NewUmem(o Options) (*Umem, error) {
	return newUmem(o, linux{})
}

func newUmem(o Options, sys system) (*Umem, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	length := o.Frames * ChunkSize
	if o.MultiBuffer {
		length += behind
	}
	memory, huge, err := sys.memory(length)
	if err != nil {
		return nil, fmt.Errorf("umem of %d MiB: mmap: %w; lower Frames or give the machine more memory",
			o.Frames*ChunkSize>>20, err)
	}
	u := &Umem{
		memory: memory, huge: huge, options: o, system: sys,
		free:  make([]uint64, o.Frames),
		place: make([]uint8, o.Frames),
	}
	for i := range u.free {
		// The lowest address on top.
		u.free[i] = uint64(o.Frames-1-i) << chunkShift
	}
	if o.Audit {
		u.held = make([]bool, o.Frames)
	}
	u.wait = func(timeout time.Duration) error { return u.system.poll(u.sockets, timeout) }
	return u, nil
}

// Memory returns the packet memory, to which Desc.Addr is an offset. It stays valid, and the same, until Close. With
// Options.MultiBuffer it goes on for 256 KiB behind the last frame, so that from a packet's first byte a slice of the whole
// packet's length can be taken wherever it lies, though only the first frame's part of it is the packet's.
func (u *Umem) Memory() []byte { return u.memory }

// MultiBuffer reports whether packets come and go in several frames: Options.MultiBuffer.
func (u *Umem) MultiBuffer() bool { return u.options.MultiBuffer }

// Huge reports whether the memory lies on explicit huge pages.
func (u *Umem) Huge() bool { return u.huge }

// Frames returns the number of frames.
func (u *Umem) Frames() int { return len(u.place) }

// Free returns the number of frames on the free list.
func (u *Umem) Free() int { return len(u.free) }

// Wait sleeps until a socket of this Umem has frames to receive, or the timeout is over (rounded up to milliseconds;
// negative: none). It returns early without an error when a signal comes. It also does what Wake does in copy mode, and
// lets the frames of sockets that were closed return to the free list.
func (u *Umem) Wait(timeout time.Duration) error {
	u.settle(time.Now())
	if err := u.wait(timeout); err != nil {
		return fmt.Errorf("wait for frames: poll: %w", err)
	}
	return nil
}

// Held returns the number of frames that the worker holds: received, and neither transmitted nor recycled. It is zero
// between batches, if the worker loses none.
func (u *Umem) Held() int {
	held := len(u.place) - len(u.free)
	for _, s := range u.settling {
		held -= len(s.frames)
	}
	for _, s := range u.sockets {
		held -= s.inKernel()
	}
	return held
}

// inKernel returns the number of frames that were given to the kernel through this socket and have not come back.
func (s *Socket) inKernel() int {
	return int(s.filled - s.counts.Received + s.counts.Sent - s.counts.Completed)
}

// take notes that the worker holds the frames of batch. For Options.Audit.
func (u *Umem) take(batch []Desc) {
	for _, d := range batch {
		u.held[d.Addr>>chunkShift] = true
	}
}

// giveBack notes that it does not any longer. For Options.Audit.
func (u *Umem) giveBack(op string, batch []Desc) {
	for _, d := range batch {
		if !u.held[d.Addr>>chunkShift] {
			panic(fmt.Sprintf("xsk: %s of frame %d (address %#x), which the worker does not hold", op, d.Addr>>chunkShift, d.Addr))
		}
		u.held[d.Addr>>chunkShift] = false
	}
}

// Close closes the sockets that are still open and gives the memory back. Further calls do nothing.
func (u *Umem) Close() error {
	if u.memory == nil {
		return nil
	}
	var errs []error
	for len(u.sockets) > 0 {
		errs = append(errs, u.sockets[0].Close())
	}
	if err := u.system.munmap(u.memory); err != nil {
		errs = append(errs, fmt.Errorf("umem: munmap: %w", err))
	}
	u.memory, u.free, u.place, u.settling = nil, nil, nil, nil
	return errors.Join(errs...)
}

// number reserves a socket number.
func (u *Umem) number() (uint8, error) {
	if u.memory == nil {
		return 0, fmt.Errorf("umem: %w", os.ErrClosed)
	}
	for n := 1; n <= maxSockets; n++ {
		if !u.numbers[n] {
			u.numbers[n] = true
			return uint8(n), nil
		}
	}
	return 0, fmt.Errorf("umem: already has %d sockets, the most that fit; use another umem", maxSockets)
}

// vacate gives the socket number back and takes the frames that were given to that socket last, and are not free, out
// of the kernel's hands: at once, or when the given time has passed.
func (u *Umem) vacate(number uint8, after time.Duration) {
	for _, a := range u.free {
		u.place[a>>chunkShift] = 0
	}
	var frames []uint64
	for i, p := range u.place {
		if p == number {
			u.place[i] = 0
			frames = append(frames, uint64(i)<<chunkShift)
			if u.held != nil {
				u.held[i] = false
			}
		}
	}
	u.numbers[number] = false
	now := time.Now()
	if len(frames) > 0 {
		u.settling = append(u.settling, settling{now.Add(after), frames})
	}
	u.settle(now)
}

// settle returns to the free list what has settled.
func (u *Umem) settle(now time.Time) {
	kept := u.settling[:0]
	for _, s := range u.settling {
		if now.Before(s.until) {
			kept = append(kept, s)
			continue
		}
		u.free = append(u.free, s.frames...)
	}
	clear(u.settling[len(kept):])
	u.settling = kept
}

// require waits until n frames are free, if settling frames can make it so.
func (u *Umem) require(n int) error {
	coming := 0
	for _, s := range u.settling {
		coming += len(s.frames)
	}
	if len(u.free)+coming < n {
		return fmt.Errorf("umem: %d of %d frames are free, and the fill ring takes %d; "+
			"give Options.Frames at least FramesFor(number of sockets)", len(u.free), u.Frames(), n)
	}
	for len(u.free) < n {
		time.Sleep(time.Until(u.settling[0].until))
		u.settle(time.Now())
	}
	return nil
}
