//go:build linux

package forwarder

import (
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/internal/shm"
)

// Room of the fast path: for as many backends and services as a reload may well bring, at some 300 bytes each. What a larger
// configuration has beyond that goes by the workers.
const (
	leastFastSlots    = 1 << 12
	leastFastServices = 1 << 9
)

// mayFast says whether any interface may come to use the fast path, which needs the flow table in a BPF array.
func (c *NodeConfig) mayFast() bool {
	for i := range c.Interfaces {
		if ic := &c.Interfaces[i]; ic.Fast == FastOn || ic.Fast == FastAuto && ic.Mode != xsk.ZeroCopy {
			return true
		}
	}
	return false
}

// shareFlows gives the XDP programs the flow table, if they can read it, and returns what the engine is to know of that.
func (n *Node) shareFlows() (FastPath, []atomic.Uint32, error) {
	array := n.tableFile.array
	if array == nil {
		return nil, nil, nil
	}
	memory, admits, err := shm.NewArrayMap("sluice_admits", conntrack.MaxSlots/2)
	if err != nil {
		return nil, nil, fmt.Errorf("admit words: %w", err)
	}
	defer admits.Close() // the program and the memory keep what they need
	n.admitMemory = memory
	err = n.steer.ShareFlows(steer.FastTable{
		Flows: array, Lines: len(n.tableFile.words) / (shm.LineBytes / 8), Admits: admits, Key: n.config.Keys.Flow, Mix: n.config.Keys.Mix,
		Slots: fastRoom(n.config.Backends, leastFastSlots, conntrack.MaxSlots), Services: fastRoom(n.config.Services, leastFastServices, MaxServices),
	})
	if err != nil {
		return nil, nil, err
	}
	return n.steer, memory.Uint32s(), nil
}

// fastRoom is for how many the fast path has room, if there are so many now.
func fastRoom(now, least, most int) int { return min(max(least, 1<<bits.Len(uint(2*now))), most) }

// setFast has an interface use the fast path, or not, as it is set and as the driver can. n.mu is held.
func (n *Node) setFast(nc *nic) {
	on, why := n.fastOn(nc)
	n.setFastExits()
	if nc.fast == on && nc.fastWhy == why {
		return
	}
	if err := nc.program.SetFast(on); err != nil {
		n.log.Error("interface", "interface", nc.Name, "error", err)
		return
	}
	nc.fast, nc.fastWhy = on, why
	if nc.Fast == FastOn && !on {
		n.log.Warn("no fast path: workers forward all packets", "interface", nc.Name, "cause", why)
		return
	}
	n.log.Info("fast path", "interface", nc.Name, "on", on, "cause", why)
}

// setFastExits tells the engine which interfaces can send for XDP programs. n.mu is held.
func (n *Node) setFastExits() {
	var exits [MaxInterfaces]bool
	for _, nc := range n.nics {
		exits[nc.index] = nc.ifindex != 0 && nc.sends
	}
	n.SetFastExits(exits)
}

// fastOn decides whether an interface uses the fast path, and says why if it does not.
func (n *Node) fastOn(nc *nic) (on bool, why string) {
	nc.sends = false
	switch {
	case nc.Fast == FastOff:
		return false, "fast_path is off"
	case n.tableFile.array == nil && n.config.mayFast():
		return false, "the flow table is larger than a BPF array can be (4 GiB)"
	case n.tableFile.array == nil:
		return false, "the interface is in zero-copy mode, where workers are as fast"
	case nc.Fast == FastAuto && nc.program.Generic():
		return false, "the XDP program runs in generic mode"
	}
	if nc.Fast == FastAuto {
		for _, s := range nc.sockets {
			if s.Mode() != xsk.Copy {
				return false, "the interface is in zero-copy mode, where workers are as fast"
			}
		}
	}
	can, err := steer.CanSend(nc.ifindex)
	nc.sends = can || err != nil && nc.Fast == FastOn
	switch {
	case err != nil && nc.Fast == FastAuto:
		return false, "the kernel does not say whether the driver can send for XDP programs (Linux 6.3 does); fast_path: on does without"
	case err == nil && !can:
		return false, "the driver cannot send for XDP programs; that of a veth can once its other end has one too, or GRO (ethtool -K NAME gro on)"
	}
	return true, ""
}
