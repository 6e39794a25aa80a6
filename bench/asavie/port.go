//go:build linux

// Package asavie puts the forwarder on the AF_XDP sockets of github.com/asavie/xdp, code that others wrote, beside our own
// rings, and measures both.
//
// A [Port] is a forwarder.Port on one queue, which uses that library as its documentation shows. It belongs to one goroutine,
// the worker's; its memory is the library's and is gone after Close. What the library cannot do shows in the Port: each
// socket has memory of its own, so a frame leaves by the queue it came in on; each Transmit is a system call; free
// frames are searched for. The library keeps 256 bytes free in front of a received frame, as the kernel does, which is room for outer
// headers: they are written in place, as on our own rings.
package asavie

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/asavie/xdp"

	"github.com/sluice-lb/sluice/forwarder/xsk"
)

// frameSize is the library's default, in bytes. It has room for a frame of 1,792 bytes behind the kernel's headroom.
const frameSize = 2048

// Options are the sizes of a socket.
type Options struct {
	// RingSize is how many entries a ring has, a power of two, the fill ring twice as many; 0: 2048, as on our own rings. There are as
	// many frames as the fill ring and the TX ring take.
	RingSize int
}

// Port is a queue on a socket of github.com/asavie/xdp.
type Port struct {
	socket *xdp.Socket
	size   int // of the RX and the TX ring
	memory []byte
	// held marks the frames that the worker has, and holding is how many that are: the library takes what it has received for
	// free.
	held    []bool
	holding int
	scratch []xdp.Desc
	calls   atomic.Uint64
}

// Open binds a socket of the library to a queue of an interface of the calling thread's network namespace, and fills its fill
// ring. Frames come once its FD is in the socket map of an XDP program there.
func Open(ifindex, queue int, o Options) (*Port, error) {
	if o.RingSize == 0 {
		o.RingSize = 2048
	}
	fill, frames := 2*o.RingSize, 3*o.RingSize
	s, err := xdp.NewSocket(ifindex, queue, &xdp.SocketOptions{
		NumFrames: frames, FrameSize: frameSize, FillRingNumDescs: fill, CompletionRingNumDescs: o.RingSize,
		RxRingNumDescs: o.RingSize, TxRingNumDescs: o.RingSize,
	})
	if err != nil {
		return nil, fmt.Errorf("open interface %d queue %d with asavie/xdp, %d frames: %w; run as root, and close what else uses the queue",
			ifindex, queue, frames, err)
	}
	p := &Port{
		socket: s, size: o.RingSize, held: make([]bool, frames), scratch: make([]xdp.Desc, o.RingSize),
		memory: s.GetFrame(xdp.Desc{Len: uint32(frames * frameSize)}),
	}
	p.refill()
	return p, nil
}

// Memory is the packet memory, to which Desc.Addr is an offset.
func (p *Port) Memory() []byte { return p.memory }

// FD is the socket's descriptor, for an XSKMAP.
func (p *Port) FD() int { return p.socket.FD() }

// Calls is how many system calls were made for the rings. Any goroutine may call it.
func (p *Port) Calls() uint64 { return p.calls.Load() }

// Close closes the socket and gives its memory back.
func (p *Port) Close() error {
	p.memory = nil
	if err := p.socket.Close(); err != nil {
		return fmt.Errorf("close a socket of asavie/xdp: %w", err)
	}
	return nil
}

// Wait sleeps until a frame may have arrived, at most so long.
func (p *Port) Wait(timeout time.Duration) error {
	p.calls.Add(1)
	if _, _, err := p.socket.Poll(int(timeout.Milliseconds())); err != nil {
		return fmt.Errorf("wait for frames: poll: %w", err)
	}
	return nil
}

// Receive implements forwarder.Port.
func (p *Port) Receive(batch []xsk.Desc) int {
	p.complete()
	p.refill()
	n := min(len(batch), p.socket.NumReceived())
	if n == 0 {
		return 0
	}
	for i, d := range p.socket.Receive(n) {
		batch[i] = xsk.Desc(d)
		p.held[d.Addr/frameSize] = true
	}
	p.holding += n
	return n
}

// Transmit implements forwarder.Port. The library makes a system call each time.
func (p *Port) Transmit(batch []xsk.Desc) int {
	n := min(len(batch), len(p.scratch))
	for i, d := range batch[:n] {
		p.scratch[i] = xdp.Desc(d)
	}
	sent := p.transmit(p.scratch[:n])
	p.release(batch[:sent])
	return sent
}

func (p *Port) transmit(descs []xdp.Desc) int {
	p.calls.Add(1)
	return p.socket.Transmit(descs)
}

// Recycle implements forwarder.Port.
func (p *Port) Recycle(batch []xsk.Desc) { p.release(batch) }

// Spare implements forwarder.Port.
func (p *Port) Spare() (addr uint64, ok bool) {
	for _, d := range p.free(1) {
		p.held[d.Addr/frameSize] = true
		p.holding++
		return d.Addr + headroom, true
	}
	return 0, false
}

// headroom is what is free in front of a received frame, in bytes: XDP_PACKET_HEADROOM of linux/bpf.h.
const headroom = 256

// Backlog implements forwarder.Port.
func (p *Port) Backlog() (waiting, size int) { return p.socket.NumReceived(), p.size }

// Wake implements forwarder.Port: in copy mode one system call sends 32 frames at most, and what the one of Transmit has left
// waits for another.
func (p *Port) Wake() error {
	for left := p.waiting(); left > 0; {
		completed := p.socket.NumCompleted()
		p.transmit(nil)
		now := p.waiting()
		if now == left && p.socket.NumCompleted() == completed { // the device takes no more
			break
		}
		left = now
	}
	return nil
}

// waiting is how many frames are in the TX ring.
func (p *Port) waiting() int { return p.size - p.socket.NumFreeTxSlots() }

// complete takes back what was sent.
func (p *Port) complete() {
	if n := p.socket.NumCompleted(); n > 0 {
		p.socket.Complete(n)
	}
}

// refill fills the fill ring as far as there are free frames.
func (p *Port) refill() {
	if n := p.socket.NumFreeFillSlots(); n > 0 {
		p.socket.Fill(p.free(n))
	}
}

// free returns at most n free frames.
func (p *Port) free(n int) []xdp.Desc {
	if p.holding == 0 {
		return p.socket.GetDescs(n)
	}
	descs := p.socket.GetDescs(n + p.holding)
	free := descs[:0]
	for _, d := range descs {
		if len(free) < n && !p.held[d.Addr/frameSize] {
			free = append(free, d)
		}
	}
	return free
}

// release notes that the worker has given frames back.
func (p *Port) release(batch []xsk.Desc) {
	for i := range batch {
		p.held[batch[i].Addr/frameSize] = false
	}
	p.holding -= len(batch)
}
