//go:build linux

package forwarder

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/forwarder/nexthop"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/forwarder/xsk"
)

// reattachEvery is how often a configured interface that is missing, or could not be attached to, is tried again.
const reattachEvery = time.Second

// nic is a configured interface: attached, or waiting for the interface to come (back). Node.mu guards it.
type nic struct {
	InterfaceConfig
	index   int // in the node's list
	ifindex int // 0 while detached
	link    nexthop.LinkInfo
	program *steer.Link
	sockets []nicSocket
	problem string // why it is detached, as a sentence
	fast    bool   // packets of known flows that arrive here are forwarded by the XDP program
	fastWhy string // why they are not, in words
	sends   bool   // the driver can send for XDP programs
	dropsZC bool   // but not what was received in zero-copy mode, which it drops
	closed  SocketStats
}

// nicSocket is the socket of one queue.
type nicSocket struct {
	queue int
	lane  *lane
	*xsk.Socket
}

func (nc *nic) up() bool { return nc.ifindex != 0 && nc.link.Up }

// zeroCopy reports whether a queue is in zero-copy mode.
func (nc *nic) zeroCopy() bool {
	return slices.ContainsFunc(nc.sockets, func(s nicSocket) bool { return s.Mode() != xsk.Copy })
}

// countQueues returns how many queues of the interface are to be taken.
func (nc *nic) countQueues() (int, error) {
	have, err := steer.Queues(nc.Name)
	if err != nil {
		return 0, err
	}
	if nc.Queues == 0 {
		return have, nil
	}
	if nc.Queues > have {
		return 0, fmt.Errorf("interface %s: queues: %d, but it has %d; set it to all, or give it more with ethtool -L", nc.Name, nc.Queues, have)
	}
	return nc.Queues, nil
}

// attach puts the program on the interface and opens a socket on every queue. On an error nothing stays.
func (n *Node) attach(nc *nic) (err error) {
	ifindex := 0
	for index, l := range n.watcher.Links() {
		if l.Name == nc.Name {
			ifindex, nc.link = index, l
		}
	}
	if ifindex == 0 {
		return fmt.Errorf("interface %s: there is none of this name in this network namespace", nc.Name)
	}
	defer func() {
		if err != nil {
			n.detach(nc, err.Error())
		}
	}()
	all, err := steer.Queues(nc.Name)
	if err != nil {
		return err
	}
	options := steer.AttachOptions{
		Queues: all, VLAN: nc.VLAN, Frags: n.multiBuffer, Number: nc.index, Pin: n.pinOf(nc), Keep: n.config.Orphans.For > 0,
	}
	if nc.program, err = n.steer.Attach(ifindex, nc.Name, options, n.log); err != nil {
		return err
	}
	// virtio_net adds queues for each processor when a program is attached, if there are more pairs than it used before
	// (virtnet_xdp_set in drivers/net/virtio_net.c). Frames on these would find no socket.
	if now, err := steer.Queues(nc.Name); err != nil {
		return err
	} else if now != all {
		return fmt.Errorf("interface %s: the driver changed its number of queues from %d to %d when the XDP program was attached; "+
			"give the machine as many queue pairs as processors, or set the number before the start with ethtool -L", nc.Name, all, now)
	}
	queues, err := nc.countQueues()
	if err != nil {
		return err
	}
	nc.ifindex = ifindex
	for _, l := range n.lanes {
		if err := n.onLane(l, func() error { return n.openQueues(nc, l, queues) }); err != nil {
			return err
		}
	}
	for _, s := range nc.sockets {
		if err := nc.program.SetSocket(s.queue, s.FD()); err != nil {
			return err
		}
	}
	if err := nc.program.SetTaken(queues); err != nil {
		return err
	}
	nc.problem, nc.fast, nc.fastWhy, nc.dropsZC = "", false, "", steer.DropsZeroCopy(nc.Name)
	if err := n.steer.SetExit(nc.index, ifindex); err != nil {
		return err
	}
	n.setFast(nc)
	mode := ""
	if len(nc.sockets) > 0 {
		mode = nc.sockets[0].Mode().String()
	}
	n.log.Info("interface attached", "interface", nc.Name, "queues", len(nc.sockets), "mode", mode, "generic", nc.program.Generic())
	if len(nc.sockets) < all {
		n.log.Warn("packets to VIPs that arrive on the other queues are dropped; have RSS use the taken queues only",
			"interface", nc.Name, "taken", len(nc.sockets), "queues", all)
	}
	return nil
}

// openQueues opens the sockets of one lane on an interface, and tells the worker. On the lane.
func (n *Node) openQueues(nc *nic, l *lane, queues int) error {
	for q := range queues {
		if n.lanes[q%len(n.lanes)] != l {
			continue
		}
		s, err := l.umem.Open(nc.Name, nc.ifindex, q, nc.Mode)
		if err != nil {
			return err
		}
		nc.sockets = append(nc.sockets, nicSocket{queue: q, lane: l, Socket: s})
	}
	n.rewire(l)
	return nil
}

// rewire gives a worker the queues that its lane has now. On the lane.
func (n *Node) rewire(l *lane) {
	io := workerIO(l.umem)
	for _, nc := range n.nics {
		for _, s := range nc.sockets {
			if s.lane == l {
				io.Queues = append(io.Queues, Queue{Port: s.Socket, Interface: nc.index, Number: s.queue})
			}
		}
	}
	l.worker.Attach(io)
}

func workerIO(u *xsk.Umem) WorkerIO {
	return WorkerIO{Memory: u.Memory(), MultiBuffer: u.MultiBuffer(), Wait: u.Wait}
}

// onLane calls f where it may change what the lane's worker owns.
func (n *Node) onLane(l *lane, f func() error) (err error) {
	if !l.running {
		return f()
	}
	l.worker.Do(func() { err = f() })
	return err
}

// detachProgram takes the program off the interface. Safe to repeat.
func (nc *nic) detachProgram() {
	if nc.program != nil {
		_ = nc.program.Close() // the interface may be gone already
		nc.program = nil
	}
}

// detach gives up an interface: program and sockets.
func (n *Node) detach(nc *nic, problem string) {
	nc.sends = false
	n.setFastExits()
	_ = n.steer.SetExit(nc.index, 0) // nothing is sent there any more
	nc.detachProgram()
	sockets := nc.sockets
	nc.sockets, nc.ifindex, nc.problem = nil, 0, problem
	for _, l := range n.lanes {
		_ = n.onLane(l, func() error {
			n.rewire(l)
			for _, s := range sockets {
				if s.lane == l {
					_ = s.Close() // frames go back to the UMEM
					nc.closed.add(socketStats(s.Socket))
				}
			}
			return nil
		})
	}
}

// followLinks keeps the interfaces attached: what vanished is given up, what came back is attached again.
func (n *Node) followLinks(ctx context.Context) {
	retry := time.NewTicker(reattachEvery)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-retry.C:
		}
		n.mu.Lock()
		for _, nc := range n.nics {
			n.followLink(nc)
		}
		n.setHops()
		if err := n.setSteer(); err != nil {
			n.log.Error("the XDP program could not be told of a change", "error", err)
		}
		n.mu.Unlock()
	}
}

func (n *Node) followLink(nc *nic) {
	links := n.watcher.Links()
	if nc.ifindex != 0 {
		l, ok := links[nc.ifindex]
		switch {
		case !ok:
			n.log.Error("interface is gone", "interface", nc.Name)
			n.detach(nc, "the interface is gone; it is attached again when it comes back")
			return
		case l.Name != nc.Name:
			n.log.Error("interface was renamed", "interface", nc.Name, "name", l.Name)
			n.detach(nc, fmt.Sprintf("the interface is now called %s; name it back, or change the configuration and restart", l.Name))
			return
		case !nc.program.Attached():
			n.log.Error("the XDP program was taken off the interface", "interface", nc.Name)
			n.detach(nc, "the XDP program was taken off by force; it is attached again")
		}
		if l.MAC != nc.link.MAC {
			if err := nc.program.SetMAC(l.MAC[:]); err != nil {
				n.log.Error("interface", "interface", nc.Name, "error", err)
			}
		}
		if l.Up != nc.link.Up {
			n.log.Warn("interface changed state", "interface", nc.Name, "up", l.Up)
		}
		nc.link = l
		n.setFast(nc)
		return
	}
	for _, l := range links {
		if l.Name != nc.Name || !l.Up {
			continue
		}
		if err := n.attach(nc); err != nil {
			n.log.Error("interface is not attached", "interface", nc.Name, "error", err, "retry", reattachEvery)
		}
	}
}
