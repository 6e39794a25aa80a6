//go:build linux && guest

package zerocopy

import (
	"fmt"
	"os"

	asavie "github.com/asavie/xdp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// reflectorArgument makes this binary the reflector on the interface that follows. It is a process of its own, since the library
// keeps a socket's rings mapped, and so its queue busy, for as long as the process lives.
const reflectorArgument = "reflector"

const reflectorReady = "reflecting"

// runReflector sends every frame of queue 0 back with its MACs swapped, by github.com/asavie/xdp in zero-copy mode: what somebody
// who takes a library gets, and less work than any balancer's. It does not return but with an error: a signal ends it, and
// with it its sockets; the program stays on the interface.
func runReflector(card string) error {
	asavie.DefaultSocketFlags, asavie.DefaultXdpFlags = unix.XDP_ZEROCOPY, unix.XDP_FLAGS_DRV_MODE
	l, err := netlink.LinkByName(card)
	if err != nil {
		return err
	}
	index := l.Attrs().Index
	p, err := asavie.NewProgram(1)
	if err != nil {
		return err
	}
	if err := p.Attach(index); err != nil {
		return err
	}
	s, err := asavie.NewSocket(index, 0, &asavie.SocketOptions{
		NumFrames: 2048, FrameSize: 4096, FillRingNumDescs: 1024, CompletionRingNumDescs: 1024, RxRingNumDescs: 1024, TxRingNumDescs: 1024,
	})
	if err != nil {
		return err
	}
	if err := p.Register(0, s.FD()); err != nil {
		return err
	}
	fmt.Println(reflectorReady)
	for {
		s.Fill(s.GetDescs(s.NumFreeFillSlots()))
		n, _, err := s.Poll(-1)
		if err != nil {
			return err
		}
		descs := s.Receive(n)
		for _, d := range descs {
			var destination [6]byte
			frame := s.GetFrame(d)
			copy(destination[:], frame)
			copy(frame, frame[6:12])
			copy(frame[6:], destination[:])
		}
		if len(descs) > 0 {
			s.Transmit(descs)
		}
	}
}

// reflectorMain is TestMain of a binary that was started as the reflector.
func reflectorMain() {
	fmt.Fprintln(os.Stderr, runReflector(os.Args[2]))
	os.Exit(1)
}
