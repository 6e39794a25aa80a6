//go:build linux && floods

package main

import (
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/sluice-lb/sluice/testenv"
)

// TestDropsInXDP compares what it costs to drop a packet of a denied source in the XDP program and to drop it in the worker, by a
// ceiling of one packet a second. The generator, which shares a core with the XDP program, takes most of the time; so what making
// and carrying packets costs, to an interface whose program drops them at once, is taken off. The three take turns, and the
// cheapest round of each counts: what else the machine does only adds.
func TestDropsInXDP(t *testing.T) {
	const rounds, least = 5, 5
	c := shareCores(t)
	s := newFloodSystem(t, c, false)
	s.limits = limitsWith("")
	udp := s.service(testVIP4, "udp", "7001", "ipip", false)
	udp.Options = "limits: {total: {packets: 1/s}}"
	s.upOn(c, udp)
	nowhere, toNode := s.voidPort(), s.nodes[0].Port()
	var carried, denied, dropped time.Duration // what one packet costs
	var deniedRate, droppedRate float64
	for range rounds {
		n := s.atFullSpeed(floodOfUDP, deniedSources, nowhere)
		carried = cheaper(carried, n.cpu, n.sent)
		n = s.atFullSpeed(floodOfUDP, deniedSources, toNode)
		denied = cheaper(denied, n.cpu, n.denied)
		deniedRate = max(deniedRate, n.perSecond(n.denied))
		n = s.atFullSpeed(floodOfUDP, floodSources, toNode)
		lost := time.Duration(n.sent-n.received) * carried // these cost no less
		dropped = cheaper(dropped, n.cpu-lost, n.received)
		droppedRate = max(droppedRate, n.perSecond(n.received))
	}
	inXDP, inWorker := denied-carried, dropped-carried
	t.Logf("at most, generator and XDP program on one core: %.0f/s denied, %.0f/s dropped by the worker on another one", deniedRate, droppedRate)
	t.Logf("of cores' time a packet takes %v to make and carry, %v more to die in the XDP program when it is denied, %v more to die in the worker: %.1f times as much",
		carried, inXDP, inWorker, inWorker.Seconds()/inXDP.Seconds())
	if inWorker < least*inXDP {
		t.Errorf("a packet that is dropped in the worker costs %v, one that is denied %v: want %d times as much", inWorker, inXDP, least)
	}
	s.down()
}

// cheaper is the lesser of what a packet cost so far, 0 if nothing is known, and what each of n did that took so long together.
func cheaper(sofar, took time.Duration, n uint64) time.Duration {
	now := took / time.Duration(max(n, 1))
	if sofar == 0 {
		return now
	}
	return min(sofar, now)
}

// voidPort is the router's end of a cable to an interface whose program drops everything.
func (s *system) voidPort() string {
	s.t.Helper()
	const name = "void"
	void, err := s.env.Namespace(name)
	if err == nil {
		err = s.env.Veth(testenv.End{Namespace: s.net.Router.Namespace, Name: name}, testenv.End{Namespace: void, Name: "eth0"}, 1)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	const drop = 1 // XDP_DROP
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Apache-2.0", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, drop), asm.Return()},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	defer program.Close()
	err = void.Do(func() error {
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: dev.Index, Flags: link.XDPDriverMode})
		if err == nil {
			s.t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return name
}
