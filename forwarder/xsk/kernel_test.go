//go:build linux

package xsk_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	asavie "github.com/asavie/xdp"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/testenv"
)

// The tests in this file run on the kernel's own AF_XDP, over veth pairs between namespaces:
//
//	namespace lb          namespace peer
//	  left  ───────────────  left       (2 queues each)
//	  right ───────────────  right
//
// Our sockets are bound to both queues of both interfaces of lb, on one Umem. At the peer, frames are sent and received
// by github.com/asavie/xdp, code that we did not write.

const queues = 2

var kernelOptions = xsk.Options{
	Frames: 1024, FillSize: 128, CompletionSize: 128, RXSize: 64, TXSize: 128, Audit: true,
}

// rig is the network above.
type rig struct {
	t        *testing.T
	env      *testenv.Env
	lb, peer *testenv.Namespace
	umem     *xsk.Umem
	alone    bool // sockets are opened with a registration of their own
	frags    bool // programs are loaded for packets in fragments
}

func newRig(t *testing.T) *rig { return newRigWith(t, kernelOptions) }

func newRigWith(t *testing.T, o xsk.Options) *rig {
	t.Helper()
	r := &rig{t: t, env: testenv.ForTest(t)}
	var err error
	if r.lb, err = r.env.Namespace("lb"); err != nil {
		t.Fatal(err)
	}
	if r.peer, err = r.env.Namespace("peer"); err != nil {
		t.Fatal(err)
	}
	// The kernels' own IPv6 frames (MLD) come at times of their own, and would lie in a ring that a test wants to see empty.
	for _, ns := range []*testenv.Namespace{r.lb, r.peer} {
		if err := ns.SetSysctl("net/ipv6/conf/all/disable_ipv6", "1"); err != nil {
			t.Fatal(err)
		}
	}
	r.cable("left")
	r.cable("right")
	if r.umem, err = xsk.NewUmem(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := r.umem.Audit(); err != nil {
			t.Error(err)
		}
		if err := r.umem.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// cable makes one of the veth pairs.
func (r *rig) cable(name string) {
	r.t.Helper()
	err := r.env.Veth(testenv.End{Namespace: r.lb, Name: name}, testenv.End{Namespace: r.peer, Name: name}, queues)
	if err != nil {
		r.t.Fatal(err)
	}
}

func index(t *testing.T, ns *testenv.Namespace, name string) int {
	t.Helper()
	l, err := ns.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

// redirect attaches a program to an interface of lb that gives every frame to the socket of its queue, and returns the
// map of sockets.
func (r *rig) redirect(name string) *ebpf.Map {
	r.t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: queues})
	if err != nil {
		r.t.Fatal(err)
	}
	flags := uint32(0)
	if r.frags {
		flags = unix.BPF_F_XDP_HAS_FRAGS
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Apache-2.0", Flags: flags,
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 16, asm.Word), // xdp_md.rx_queue_index
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Imm(asm.R3, 1), // without a socket: XDP_DROP
			asm.FnRedirectMap.Call(),
			asm.Return(),
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	var attached link.Link
	err = r.lb.Do(func() (err error) {
		attached, err = link.AttachXDP(link.XDPOptions{
			Program: p, Interface: index(r.t, r.lb, name), Flags: link.XDPDriverMode,
		})
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { attached.Close(); p.Close(); m.Close() })
	return m
}

// open opens the sockets of all queues of an interface and gives them to its program.
func (r *rig) open(name string) []*xsk.Socket {
	r.t.Helper()
	m := r.redirect(name)
	var sockets []*xsk.Socket
	for q := range queues {
		s := r.openQueue(name, q, xsk.Auto)
		if err := m.Put(uint32(q), uint32(s.FD())); err != nil {
			r.t.Fatal(err)
		}
		sockets = append(sockets, s)
	}
	return sockets
}

func (r *rig) openQueue(name string, queue int, mode xsk.Mode) *xsk.Socket {
	r.t.Helper()
	s, err := r.tryOpen(r.umem, name, index(r.t, r.lb, name), queue, mode)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) tryOpen(u *xsk.Umem, name string, index, queue int, mode xsk.Mode) (s *xsk.Socket, err error) {
	err = r.lb.Do(func() (err error) {
		if r.alone {
			s, err = u.OpenAlone(name, index, queue)
		} else {
			s, err = u.Open(name, index, queue, mode)
		}
		return err
	})
	return s, err
}

// stranger is a socket of the other library on a queue of the peer.
type stranger struct {
	*asavie.Socket
	t *testing.T
}

// strangers opens one on each queue of an interface of the peer, with that library's own program.
func (r *rig) strangers(name string) []*stranger {
	r.t.Helper()
	var all []*stranger
	err := r.peer.Do(func() error {
		index := index(r.t, r.peer, name)
		program, err := asavie.NewProgram(queues)
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { program.Close() })
		if err := program.Attach(index); err != nil {
			return err
		}
		for q := range queues {
			s, err := asavie.NewSocket(index, q, &asavie.SocketOptions{
				NumFrames: 256, FrameSize: 2048,
				FillRingNumDescs: 128, CompletionRingNumDescs: 64, RxRingNumDescs: 128, TxRingNumDescs: 64,
			})
			if err != nil {
				return err
			}
			r.t.Cleanup(func() { s.Close() })
			if err := program.Register(q, s.FD()); err != nil {
				return err
			}
			s.Fill(s.GetDescs(128))
			all = append(all, &stranger{s, r.t})
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

// send sends frames; at most 64.
func (s *stranger) send(frames ...[]byte) {
	s.t.Helper()
	if n := s.NumCompleted(); n > 0 {
		s.Complete(n)
	}
	descs := s.GetDescs(len(frames))
	for i := range descs {
		descs[i].Len = uint32(len(frames[i]))
		copy(s.GetFrame(descs[i]), frames[i])
	}
	for len(descs) > 0 {
		n := s.Transmit(descs)
		if n == 0 {
			s.t.Fatal("the peer cannot send")
		}
		descs = descs[n:]
	}
}

// receive calls f with the frames that are there and returns their number.
func (s *stranger) receive(f func(frame []byte)) int {
	descs := s.Receive(s.NumReceived())
	for _, d := range descs {
		f(bytes.Clone(s.GetFrame(d)))
	}
	n := len(descs)
	s.Fill(descs)
	return n
}

// forward is a worker's round: everything that came in on one side goes out on the other, on the same queue.
func (r *rig) forward(left, right []*xsk.Socket) (moved int) {
	r.t.Helper()
	var batch [64]xsk.Desc
	for q := range queues {
		for _, way := range [][2]*xsk.Socket{{left[q], right[q]}, {right[q], left[q]}} {
			n := way[0].Receive(batch[:])
			taken := way[1].Transmit(batch[:n])
			way[1].Recycle(batch[taken:n])
			if err := way[1].Wake(); err != nil {
				r.t.Fatal(err)
			}
			moved += taken
		}
	}
	return moved
}

// numbered makes a frame that can be told from all others. It has the length of a real one.
func numbered(number int) []byte {
	f := make([]byte, 60+number*37%1454)
	binary.BigEndian.PutUint64(f[14:], uint64(number))
	for i := 22; i < len(f); i++ {
		f[i] = byte(number ^ i)
	}
	return f
}

// until runs f until it returns true, but not for long.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("after 5 s: %s", what)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// exchange sends count numbered frames from each queue of both sides and checks that each arrives at the other side,
// once, byte for byte.
func (r *rig) exchange(left, right []*xsk.Socket, peerLeft, peerRight []*stranger, count int) {
	r.t.Helper()
	want := map[string]bool{}
	next := 0
	for range (count + 31) / 32 {
		for q := range queues {
			for side, from := range map[string]*stranger{"right": peerLeft[q], "left": peerRight[q]} {
				var frames [][]byte
				for range 32 {
					frames = append(frames, numbered(next))
					want[fmt.Sprint(side, q, string(numbered(next)))] = true
					next++
				}
				from.send(frames...)
			}
		}
		until(r.t, "frames are missing", func() bool {
			r.forward(left, right)
			for q := range queues {
				for side, to := range map[string]*stranger{"right": peerRight[q], "left": peerLeft[q]} {
					to.receive(func(f []byte) {
						if key := fmt.Sprint(side, q, string(f)); want[key] {
							delete(want, key)
						} else {
							r.t.Errorf("%s queue %d: a frame that was not sent, or came before: % x", side, q, f)
						}
					})
				}
			}
			return len(want) == 0
		})
	}
}

// settled brings the frames of closed sockets and of everything sent back to the free list and returns the census.
func (r *rig) settled(sockets ...*xsk.Socket) xsk.Census {
	r.t.Helper()
	var c xsk.Census
	until(r.t, "frames are not back", func() bool {
		if err := r.umem.Wait(10 * time.Millisecond); err != nil {
			r.t.Fatal(err)
		}
		for _, s := range sockets {
			s.Receive(nil)
		}
		var err error
		if c, err = r.umem.Audit(); err != nil {
			r.t.Fatal(err)
		}
		return c.Settling == 0 && c.TX == 0 && c.Completion == 0
	})
	return c
}
