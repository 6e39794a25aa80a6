//go:build linux

package forwarder

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

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
	n.steer.SetOrphans(n.config.Orphans)
	if n.config.Pins != "" && n.config.Orphans.For > 0 {
		if err := n.pinTable(); err != nil {
			n.log.Warn("forwarding ends with the daemon", "error", err)
			n.config.Pins, n.config.Orphans.For = "", 0
			n.steer.SetOrphans(n.config.Orphans)
		}
	}
	return n.steer, memory.Uint32s(), nil
}

// The daemon says that it is alive every beatPeriod, for beatTime: so long it may stand still before the program goes on without it. When it
// dies its sockets do too, and the program notices at once.
const (
	beatPeriod = 250 * time.Millisecond
	beatTime   = 1500 * time.Millisecond
)

// beat tells the fast path that there is a daemon, as long as its workers make turns, and takes what it has sampled.
func (n *Node) beat(ctx context.Context) {
	if n.tableFile.array == nil {
		return
	}
	tick := time.NewTicker(beatPeriod)
	defer tick.Stop()
	for failed := false; ; {
		now := n.clock()
		stuck := false
		for _, l := range n.lanes {
			stuck = stuck || now-l.worker.heartbeat.Load() > int64(beatTime)
		}
		if !stuck && n.config.Orphans.For > 0 {
			n.live(now + int64(beatTime))
		}
		if err := n.takeSamples(); err != nil && !failed {
			failed = true
			n.log.Error("sources that send most by the fast path do not show", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// live tells the fast path until when there is a daemon.
func (n *Node) live(until int64) {
	if n.tableFile.array != nil {
		atomic.StoreUint64(n.steer.Words().Alive, uint64(until))
	}
}

// activate has the programs take the place of those that a process before this one left on the interfaces. n.mu is held.
func (n *Node) activate() error {
	if n.config.Orphans.For == 0 { // the program goes with the daemon
		n.live(math.MaxInt64)
	} else {
		n.live(n.clock() + int64(10*beatTime)) // until Run has begun
	}
	for _, nc := range n.nics {
		if nc.program == nil {
			continue
		}
		if err := nc.program.Activate(); err != nil {
			return err
		}
	}
	return nil
}

// leave gives the interfaces up: those with a fast path go on with it alone, if their programs are pinned. n.mu is held.
func (n *Node) leave() {
	if n.Engine != nil {
		n.live(n.clock())
	}
	for _, nc := range n.nics {
		if nc.fast && nc.program != nil {
			if err := nc.program.Leave(); err != nil {
				n.log.Error("interface", "interface", nc.Name, "error", err)
			}
			nc.program = nil
		}
		nc.detachProgram()
	}
}

// pinOf is where the attachment of an interface is pinned; empty: nowhere.
func (n *Node) pinOf(nc *nic) string {
	dir := pinsHere(n.config.Pins)
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, linkPin+strings.ReplaceAll(nc.Name, ".", ":")) // such a file system takes no dots, and interfaces no colons
}

// Names of what is pinned: the flow table, the programs' counters, and the attachment to each interface.
const (
	tablePin    = "flows"
	countersPin = "counters"
	linkPin     = "link-"
)

// pinsHere is the part of a directory of pins that is for this network namespace: interfaces of others may have the same names and numbers.
// Empty: the kernel cannot tell them apart (Linux 5.14 can), or there is no directory.
func pinsHere(pins string) string {
	if pins == "" {
		return ""
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return ""
	}
	return filepath.Join(pins, fmt.Sprintf("netns-%d", cookie))
}

// pinTable pins the flow table, so that the process after this one finds it.
func (n *Node) pinTable() error {
	dir := pinsHere(n.config.Pins)
	if dir == "" {
		return errors.New("the kernel does not tell network namespaces apart (Linux 5.14 does)")
	}
	// The parent may be no BPF file system, where directories are left behind: it is looked at first.
	var fs unix.Statfs_t
	for parent := n.config.Pins; ; parent = filepath.Dir(parent) {
		if err := unix.Statfs(parent, &fs); err == nil {
			break
		} else if parent == "/" {
			return fmt.Errorf("%s: %w", n.config.Pins, err)
		}
	}
	if uint32(fs.Type) != unix.BPF_FS_MAGIC {
		return fmt.Errorf("without_daemon.pins: %s is in no BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf", n.config.Pins)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file := filepath.Join(dir, tablePin)
	if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := n.tableFile.array.Pin(file); err != nil {
		return err
	}
	counters := filepath.Join(dir, countersPin)
	if forwarded, refused, err := steer.OrphansOf(counters); err == nil {
		n.log.Info("packets while no daemon ran", "forwarded", forwarded, "not_forwarded", refused)
	}
	return n.steer.PinCounters(counters)
}

// pinnedTable opens the flow table that a process before this one has pinned, and returns its descriptor; 0: there is none.
func pinnedTable(pins string) int {
	dir := pinsHere(pins)
	if dir == "" {
		return 0
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, tablePin), nil)
	if err != nil {
		return 0
	}
	defer m.Close()
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return 0
	}
	return fd
}

// Detach takes off all XDP programs that a process has left on interfaces of this network namespace, by their pins in this directory, and
// removes the flow table. It returns the interfaces.
func Detach(pins string) (interfaces []string, err error) {
	dir := pinsHere(pins)
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		name, isLink := strings.CutPrefix(e.Name(), linkPin)
		switch {
		case isLink:
			if err := steer.Detach(file); err != nil {
				return interfaces, err
			}
			interfaces = append(interfaces, strings.ReplaceAll(name, ":", "."))
		case e.Name() == tablePin, e.Name() == countersPin:
			if err := os.Remove(file); err != nil {
				return interfaces, err
			}
		}
	}
	return interfaces, nil
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
		n.log.Error("fast path: it stays as it was", "interface", nc.Name, "on", nc.fast, "error", err)
		return // tried again with the next change
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
	zeroCopy := slices.ContainsFunc(n.nics, (*nic).zeroCopy)
	for _, nc := range n.nics {
		exits[nc.index] = nc.ifindex != 0 && nc.sends && !(nc.dropsZC && zeroCopy)
	}
	n.SetFastExits(exits)
}

// inZeroCopy is why auto leaves the fast path off there; see docs/fastpath.md for what was measured.
const inZeroCopy = "the interface is in zero-copy mode, where the kernel would copy what the XDP program sends"

// fastOn decides whether an interface uses the fast path, and says why if it does not.
func (n *Node) fastOn(nc *nic) (on bool, why string) {
	nc.sends = false
	switch {
	case nc.Fast == FastOff:
		return false, "fast_path is off"
	case n.tableFile.array == nil && n.config.mayFast():
		return false, "the flow table is larger than a BPF array can be (4 GiB)"
	case n.tableFile.array == nil:
		return false, inZeroCopy
	case nc.Fast == FastAuto && nc.program.Generic():
		return false, "the XDP program runs in generic mode"
	}
	if err := n.FastFailed(); err != nil {
		return false, "the XDP program could not be told of the last change: " + err.Error()
	}
	switch zeroCopy := nc.zeroCopy(); {
	case zeroCopy && nc.Fast == FastAuto:
		return false, inZeroCopy
	case zeroCopy && nc.dropsZC:
		return false, "the interface is in zero-copy mode, and its driver, virtio_net, drops what XDP programs send of frames received so"
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
