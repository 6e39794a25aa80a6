//go:build linux

package veth

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	asavie "github.com/asavie/xdp"

	"github.com/sluice-lb/sluice/testenv"
)

// asavieReflector is a reflector as that library's documentation has it, in a process of its own.
var asavieReflector = &System{
	Name:  "asavie",
	what:  "github.com/asavie/xdp v0.3.3 as a reflector that swaps MACs, 2,048 descriptors a ring",
	peer:  "sluice",
	start: startChild("reflect", reflecting),
}

// Child are the arguments by which the sluice program becomes a system: the word for it, the interface and the number of flows follow.
// With "reflect" it calls [Reflect], with "forward" [Forward].
var Child = []string{"bench", "veth", "system"}

// startChild starts this program as a system, and waits until it has said that it works.
func startChild(word, ready string) func(context.Context, *Rig) (func() error, error) {
	return func(_ context.Context, r *Rig) (func() error, error) {
		p, err := r.start(testenv.Cmd{Path: r.program, Args: append(slices.Clone(Child), word, eth, strconv.Itoa(r.room()))})
		if err != nil {
			return nil, err
		}
		if err := p.WaitOutput(10*time.Second, ready); err != nil {
			return nil, errors.Join(err, p.Kill())
		}
		return stopper(p), nil
	}
}

const reflecting = "reflecting"

// Reflect sends back what queue 0 of an interface receives, with the MACs swapped, on the rings of asavie/xdp, until ctx ends.
func Reflect(ctx context.Context, ifname string) error {
	dev, err := net.InterfaceByName(ifname)
	if err != nil {
		return err
	}
	program, err := asavie.NewProgram(1)
	if err != nil {
		return fmt.Errorf("load the program: %w", err)
	}
	defer program.Close()
	if err := program.Attach(dev.Index); err != nil {
		return fmt.Errorf("attach the program to %s: %w", ifname, err)
	}
	defer program.Detach(dev.Index)
	// As many as the rings of others have.
	socket, err := asavie.NewSocket(dev.Index, 0, &asavie.SocketOptions{
		NumFrames: 4096, FrameSize: 2048,
		FillRingNumDescs: 2048, CompletionRingNumDescs: 2048, RxRingNumDescs: 2048, TxRingNumDescs: 2048,
	})
	if err != nil {
		return fmt.Errorf("open a socket on %s: %w", ifname, err)
	}
	defer socket.Close()
	if err := program.Register(0, socket.FD()); err != nil {
		return err
	}
	var ending atomic.Bool
	context.AfterFunc(ctx, func() { ending.Store(true) })
	fmt.Println(reflecting)
	for !ending.Load() {
		socket.Fill(socket.GetDescs(socket.NumFreeFillSlots()))
		received, _, err := socket.Poll(100) // ms
		if err != nil {
			return err
		}
		descs := socket.Receive(received)
		for _, d := range descs {
			swapMACs(socket.GetFrame(d))
		}
		socket.Transmit(descs)
	}
	return nil
}

func swapMACs(frame []byte) {
	var mac [6]byte
	copy(mac[:], frame)
	copy(frame[:6], frame[6:12])
	copy(frame[6:], mac[:])
}
