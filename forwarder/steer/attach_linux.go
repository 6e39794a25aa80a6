package steer

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// The kernel detaches a dead owner's program within some 50 ms; a program of our own name that is still there after
	// a second has a living owner.
	predecessorWait = time.Second
	predecessorPoll = 10 * time.Millisecond

	programName = steerProgSluiceSteer // as the kernel lists it
)

// Link is the program on one interface.
type Link struct {
	name    string
	objects steerObjects
	link    link.Link
	generic bool
	pin     string // where the attachment is pinned while it has a fast path; empty: nowhere, it ends with the process
	keep    bool   // it is to be pinned there; else only what is found there is taken over
	pinned  bool
	waits   bool // the interface has a predecessor's program still, until Activate
}

// AttachOptions say what the program on one interface is to do.
type AttachOptions struct {
	Queues int    // receive queues, each of which can have a socket (see [Queues])
	VLAN   uint16 // 802.1Q tag of the frames to look at, 1 to 4094; 0: those with none, or with a priority only (id 0)
	Number int    // of this interface among those of the node (see [Steer.SetExit])
	// Pin is a file in a BPF file system. If a process before this one has pinned its attachment there, that one's program stays until
	// [Link.Activate]. Keep has this attachment pinned there, while it has a fast path ([Link.SetFast]): it outlives the process then.
	Pin   string
	Keep  bool
	Frags bool // take frames of several buffers, as drivers make them of large MTUs (Linux 5.18)
}

// Attach puts the program on an interface. Until [Link.SetSocket] gives a queue its socket, packets to a VIP on that queue
// are dropped and counted.
//
// With a VLAN, the NIC must leave tags in the frames: most take them off before XDP can see them. That offload is turned
// off, and stays so after [Link.Close]: the stack does as well without, and some NICs lose the carrier when it changes.
// Without a VLAN it is left alone; then a NIC that has it shows tagged frames as untagged ones.
//
// The program runs in the driver (native) or, if the driver refuses, in the stack (generic, several times slower), which
// is logged as a warning and told by [Link.Generic]. If a program is attached already, Attach fails and names it; one of
// our own name may belong to a process that has just died, and is waited for, up to a second.
func (s *Steer) Attach(ifindex int, name string, o AttachOptions, log *slog.Logger) (*Link, error) {
	if o.Queues < 1 {
		return nil, fmt.Errorf("attach XDP to %s: %d receive queues; at least 1 is needed", name, o.Queues)
	}
	if o.VLAN > maxVLAN {
		return nil, fmt.Errorf("attach XDP to %s: VLAN %d; VLANs are 1 to %d", name, o.VLAN, maxVLAN)
	}
	dev, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return nil, fmt.Errorf("attach XDP to %s (interface %d): %w", name, ifindex, err)
	}

	if o.VLAN != 0 {
		if err := keepTags(dev.Attrs().Name, log); err != nil {
			return nil, fmt.Errorf("attach XDP to %s for VLAN %d: %w", name, o.VLAN, err)
		}
	}
	l := &Link{name: name, pin: o.Pin, keep: o.Keep}
	if dev.Type() == "veth" {
		o.Number = noNumber
	}
	if err := s.load(&l.objects, o); err != nil {
		return nil, fmt.Errorf("load the steering program for %s: %w%s", name, err, privilegeHint(err))
	}
	if err := l.SetMAC(dev.Attrs().HardwareAddr); err != nil {
		l.objects.Close()
		return nil, err
	}
	if l.inherit(ifindex, log) {
		return l, nil
	}
	if err := l.attach(ifindex, log); err != nil {
		l.objects.Close()
		return nil, err
	}
	return l, nil
}

// inherit takes over a pinned attachment to the interface. It reports false if there is none; one that leads elsewhere is removed.
func (l *Link) inherit(ifindex int, log *slog.Logger) bool {
	if l.pin == "" {
		return false
	}
	pinned, err := link.LoadPinnedLink(l.pin, nil)
	if err != nil {
		return false
	}
	if info, err := pinned.Info(); err == nil && info.XDP() != nil && info.XDP().Ifindex == uint32(ifindex) {
		l.link, l.pinned, l.waits, l.generic = pinned, true, true, generic(ifindex)
		log.Info("XDP program of the process before; this one takes its place", "interface", l.name)
		return true
	}
	log.Info("a pinned XDP program is removed: its interface is gone", "interface", l.name)
	_ = pinned.Unpin()
	_ = pinned.Close()
	return false
}

// Activate puts the program in the place of a predecessor's, if there is one, in a single step.
func (l *Link) Activate() error {
	if !l.waits {
		return nil
	}
	if err := l.link.Update(l.objects.SluiceSteer); err != nil {
		return fmt.Errorf("put the XDP program of %s in the place of the one before: %w", l.name, err)
	}
	l.waits = false
	return nil
}

// Leave lets go of the program without taking it off the interface, if it is pinned: it goes on, as SetOrphans says. Else it is Close.
func (l *Link) Leave() error {
	if !l.pinned {
		return l.Close()
	}
	if err := errors.Join(l.link.Close(), l.objects.Close()); err != nil {
		return fmt.Errorf("leave the XDP program of %s: %w", l.name, err)
	}
	return nil
}

// generic reports whether the program of an interface runs in the stack.
func generic(ifindex int) bool {
	dev, err := netlink.LinkByIndex(ifindex)
	return err == nil && dev.Attrs().Xdp != nil && dev.Attrs().Xdp.AttachMode == nl.XDP_ATTACHED_SKB
}

// Detach takes a program off its interface that a process has left pinned in this file.
func Detach(pin string) error {
	pinned, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return fmt.Errorf("detach the XDP program pinned at %s: %w", pin, err)
	}
	if err := errors.Join(pinned.Unpin(), pinned.Close()); err != nil {
		return fmt.Errorf("detach the XDP program pinned at %s: %w", pin, err)
	}
	return nil
}

// load puts the program into the kernel, with a socket map of its own.
func (s *Steer) load(objects *steerObjects, o AttachOptions) error {
	spec := s.spec.Copy()
	spec.Maps[steerMapXsks].MaxEntries = uint32(o.Queues)
	v := spec.Variables
	err := errors.Join(v[steerVarVlan].Set(o.VLAN), v[steerVarOwnExit].Set(uint32(o.Number)))
	if err != nil {
		return err
	}
	if o.Frags {
		spec.Programs[steerProgSluiceSteer].Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	return spec.LoadAndAssign(objects, &ebpf.CollectionOptions{MapReplacements: s.maps})
}

// attach tries until the interface has our program, or the reason is one that waiting does not cure.
func (l *Link) attach(ifindex int, log *slog.Logger) error {
	for deadline := time.Now().Add(predecessorWait); ; time.Sleep(predecessorPoll) {
		native := l.attachMode(ifindex, link.XDPDriverMode)
		if native == nil {
			return nil
		}
		err := native
		if driverRefuses(native) {
			if err = l.attachMode(ifindex, link.XDPGenericMode); err == nil {
				l.generic = true
				log.Warn("XDP program attached in generic mode, several times slower than native: the driver refuses it",
					"interface", l.name, "mode", "generic", "cause", native, "hint", nativeHint(native))
				return nil
			}
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("attach XDP to %s: %w%s", l.name, err, privilegeHint(err))
		}
		// No name means that it went just now.
		id, holder := attached(ifindex)
		if (holder == "" || holder == programName) && time.Now().Before(deadline) {
			continue
		}
		return l.occupied(id, holder, err)
	}
}

func (l *Link) attachMode(ifindex int, mode link.XDPAttachFlags) (err error) {
	l.link, err = link.AttachXDP(link.XDPOptions{Program: l.objects.SluiceSteer, Interface: ifindex, Flags: mode})
	return err
}

// driverRefuses tells a driver that cannot run this program natively on this interface as it is set up, from a failure
// that generic mode would not cure.
func driverRefuses(err error) bool {
	for _, errno := range []unix.Errno{unix.EOPNOTSUPP, unix.EINVAL, unix.ERANGE, unix.ENOSPC} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

func nativeHint(err error) string {
	switch {
	case errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL):
		return "an MTU too large for native XDP, or an offload such as LRO, is the usual cause"
	case errors.Is(err, unix.ENOSPC):
		return "the interface has fewer receive queues than its veth peer has transmit queues"
	default:
		return "the driver has no native XDP"
	}
}

// attached returns the program on an interface; zero if there is none (any more), and no name if it cannot be read.
func attached(ifindex int) (id uint32, name string) {
	dev, err := netlink.LinkByIndex(ifindex)
	if err != nil || dev.Attrs().Xdp == nil || !dev.Attrs().Xdp.Attached {
		return 0, ""
	}
	id = dev.Attrs().Xdp.ProgId
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return id, ""
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return id, ""
	}
	return id, info.Name
}

func (l *Link) occupied(id uint32, holder string, err error) error {
	switch {
	case holder == programName:
		return fmt.Errorf("attach XDP to %s: a running sluice has its program %d there; stop it first: %w", l.name, id, err)
	case id == 0:
		return fmt.Errorf("attach XDP to %s: the kernel says busy, though no program is attached to %s itself; look for "+
			"one on a device above it, such as a bond: %w", l.name, l.name, err)
	default:
		return fmt.Errorf("attach XDP to %s: another program is attached, id %d, name %q; stop what owns it, or remove it "+
			"with: ip link set dev %s xdp off: %w", l.name, id, holder, l.name, err)
	}
}

// SetSocket gives packets of a receive queue to the AF_XDP socket with this descriptor, which must be bound to the same
// interface and queue: the kernel discards uncounted what reaches another. A socket that closes leaves by itself.
func (l *Link) SetSocket(queue, fd int) error {
	if err := l.objects.Xsks.Put(uint32(queue), uint32(fd)); err != nil {
		return fmt.Errorf("steer %s queue %d to socket %d: %w; queues 0 to %d can be set",
			l.name, queue, fd, err, l.objects.Xsks.MaxEntries()-1)
	}
	return nil
}

// SetTaken says how many receive queues, from 0 on, have a socket as long as the process lives. Where one of these has none the process
// has died.
func (l *Link) SetTaken(queues int) error {
	if err := l.objects.Taken.Set(uint32(queues)); err != nil {
		return fmt.Errorf("set the queues of %s that are taken: %w", l.name, err)
	}
	return nil
}

// SetMAC tells the program the interface's own MAC, 6 bytes. Attach sets it; call it when the interface's MAC changes,
// or VIP packets are left to the stack from then on.
func (l *Link) SetMAC(mac net.HardwareAddr) error {
	if len(mac) != 6 {
		return fmt.Errorf("attach XDP to %s: MAC %q; only Ethernet interfaces can be used", l.name, mac)
	}
	var word uint64
	for i, b := range mac {
		word |= uint64(b) << (8 * i)
	}
	if err := l.objects.OwnMac.Set(word); err != nil {
		return fmt.Errorf("set the MAC of %s: %w", l.name, err)
	}
	return nil
}

// noNumber is no interface's number.
const noNumber = 0xffff

// SetFast has the program forward packets of known flows that arrive on the interface, or leave them to the workers, as it does until
// then. See [Steer.ShareFlows]. With it the attachment is pinned. On an error that says so it is not, and the fast path ends with the
// process.
func (l *Link) SetFast(on bool) error {
	if err := l.objects.FastOn.Set(flag(on)); err != nil {
		return fmt.Errorf("turn the fast path of %s on or off: %w", l.name, err)
	}
	var err error
	switch {
	case on && l.keep && !l.pinned:
		err = l.link.Pin(l.pin)
	case l.pinned && !(on && l.keep):
		err = l.link.Unpin()
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("pin the XDP program of %s, or take the pin away: %w", l.name, err)
	}
	l.pinned = !l.pinned
	return nil
}

// Generic reports whether the program runs in the stack because the driver refused it.
func (l *Link) Generic() bool { return l.generic }

// Attached reports whether the program is still on the interface: false once the interface is gone, or after somebody
// detached it by force.
func (l *Link) Attached() bool {
	info, err := l.link.Info()
	return err == nil && info.XDP() != nil && info.XDP().Ifindex != 0
}

// Close detaches the program, if the interface is still there, and lets go of the socket map. From then on the kernel's
// stack sees all frames of the interface.
func (l *Link) Close() error {
	var err error
	if l.pinned && !l.waits { // a predecessor's program goes on
		err = l.link.Unpin()
	}
	err = errors.Join(err, l.link.Close(), l.objects.Close())
	if err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("detach XDP from %s: %w", l.name, err)
	}
	return nil
}
