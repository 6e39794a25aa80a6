//go:build linux

package forwarder

import (
	"fmt"

	"github.com/sluice-lb/sluice/forwarder/xsk"
)

// Stats reads all counters: the engine's, the XDP programs' and the sockets'.
func (n *Node) Stats() Stats {
	st := n.Engine.Stats()
	st.Table.HugePages = n.tableFile.memory.Huge()
	if s, err := n.steer.Stats(); err == nil {
		st.Steer = SteerStats(s) // the same counters, with names for JSON
	}
	if sheds := n.shedStats(); len(sheds) > 0 {
		counts := n.shedCounts()
		for _, s := range sheds {
			s.Packets = counts[s.place][s.class]
			st.Shed = append(st.Shed, s.ShedStats)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.lanes {
		st.Workers[l.worker.id].Frames = l.umem.Frames()
	}
	for _, nc := range n.nics {
		st.Interfaces = append(st.Interfaces, nc.stats())
	}
	return st
}

func (nc *nic) stats() InterfaceStats {
	st := InterfaceStats{Name: nc.Name, Up: nc.up(), Attach: "detached", Problem: nc.problem, Closed: nc.closed, FastPath: nc.fast, FastPathCause: nc.fastWhy}
	if nc.program != nil {
		st.Attach = "native"
		if nc.program.Generic() {
			st.Attach = "generic"
		}
	}
	for _, s := range nc.sockets {
		st.Queues = append(st.Queues, QueueStats{
			Queue: s.queue, Worker: s.lane.worker.id, Mode: s.Mode().String(), SocketStats: socketStats(s.Socket),
		})
	}
	return st
}

func socketStats(s *xsk.Socket) SocketStats {
	c := s.Counts()
	st := SocketStats{Received: c.Received, Sent: c.Sent, TXInvalid: c.Invalid}
	if k, err := s.Stats(); err == nil {
		st.RXDropped, st.RXInvalid, st.RXRingFull = k.RXDropped, k.RXInvalid, k.RXRingFull
		st.FillEmpty, st.TXRingEmpty = k.FillEmpty, k.TXRingEmpty
		st.TXInvalid += k.TXInvalid
	}
	return st
}

func (s *SocketStats) add(d SocketStats) {
	s.Received += d.Received
	s.Sent += d.Sent
	s.RXDropped += d.RXDropped
	s.RXInvalid += d.RXInvalid
	s.RXRingFull += d.RXRingFull
	s.FillEmpty += d.FillEmpty
	s.TXInvalid += d.TXInvalid
	s.TXRingEmpty += d.TXRingEmpty
}

// stuckNanos is how long a worker may go without a turn before the node is not ready.
const stuckNanos = 2e9

// Ready says whether the node forwards: every interface is attached and up, and every worker has made a turn lately. If
// not, why.
func (n *Node) Ready() (bool, string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, nc := range n.nics {
		switch {
		case nc.ifindex == 0:
			return false, fmt.Sprintf("interface %s is not attached: %s", nc.Name, nc.problem)
		case !nc.up():
			return false, fmt.Sprintf("interface %s is down", nc.Name)
		}
	}
	now := n.clock()
	for _, l := range n.lanes {
		if age := now - l.worker.heartbeat.Load(); age > stuckNanos {
			return false, fmt.Sprintf("worker %d has not made a turn for %d ms", l.worker.id, age/1e6)
		}
	}
	return true, ""
}
