//go:build linux

package nexthop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Protocol is the number by which routes and neighbours of Sluice are known to the kernel (rtm_protocol,
// NDA_PROTOCOL). Neither linux/rtnetlink.h, iproute2's rt_protos nor FRR assign it.
const Protocol = 83

// neighKey names a neighbour.
type neighKey struct {
	link int
	addr netip.Addr
}

// neigh is what the kernel knows of one.
type neigh struct {
	mac     [6]byte
	state   uint16 // NUD_…
	managed bool   // NTF_EXT_MANAGED: the kernel resolves it without traffic, every 5 s
	ours    bool   // its protocol is ours
	foreign bool   // set by somebody who knows better (permanent, or learned by a control plane): hands off
	hasMAC  bool   // an Ethernet address is there
}

// usable reports whether frames may be sent to it. These are the kernel's NUD_VALID states (include/net/neighbour.h):
// a stale entry is as good as a fresh one until a probe has failed.
func (n neigh) usable() bool {
	const valid = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY
	return n.hasMAC && n.state&valid != 0
}

// sameWay reports whether frames go on as before: the kernel tells of many changes (stale, probing, reachable again)
// that are none to us.
func (n neigh) sameWay(o neigh) bool {
	return n.usable() == o.usable() && n.mac == o.mac
}

// extManaged is NTF_EXT_MANAGED of linux/neighbour.h, kernel ≥ 5.16.
const extManaged = netlink.NTF_EXT_MANAGED

// parseNeigh reads a struct ndmsg with its attributes. ok is false for what is no IP neighbour on a link: bridge
// forwarding entries, proxies.
func parseNeigh(data []byte) (k neighKey, n neigh, ok bool) {
	if len(data) < unix.SizeofNdMsg {
		return k, n, false
	}
	family, flags := data[0], data[10]
	if (family != unix.AF_INET && family != unix.AF_INET6) || flags&unix.NTF_PROXY != 0 {
		return k, n, false
	}
	k.link = int(int32(binary.NativeEndian.Uint32(data[4:])))
	n.state = binary.NativeEndian.Uint16(data[8:])
	for typ, value := range attributes(data[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			k.addr, ok = netip.AddrFromSlice(value)
		case unix.NDA_LLADDR:
			if len(value) == len(n.mac) {
				copy(n.mac[:], value)
				n.hasMAC = true
			}
		case netlink.NDA_PROTOCOL:
			n.ours = len(value) > 0 && value[0] == Protocol
		case netlink.NDA_FLAGS_EXT:
			n.managed = len(value) >= 4 && binary.NativeEndian.Uint32(value)&extManaged != 0
		}
	}
	n.foreign = n.state&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0 || flags&unix.NTF_EXT_LEARNED != 0
	return k, n, ok
}

// attributes walks over netlink attributes (type, value), and ends where they stop making sense.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.SizeofRtAttr || length > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&nlaTypeMask, b[unix.SizeofRtAttr:length]) {
				return
			}
			b = b[min((length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(b)):]
		}
	}
}

// nlaTypeMask is NLA_TYPE_MASK of linux/netlink.h: the type without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const nlaTypeMask = 0x3fff

// solicit has the kernel resolve the neighbour now, or probe it if it is stale; and keep it resolved if managed, or
// no longer, if not. Its Ethernet address stays as it is.
//
// NTF_USE also makes the request harmless for a kernel that does not know NTF_EXT_MANAGED: that one would otherwise
// take NUD_NONE for the new state and forget the address (neigh_add, __neigh_update in net/core/neighbour.c).
func (w *Watcher) solicit(k neighKey, managed bool) error {
	attrs := []*nl.RtAttr{nl.NewRtAttr(netlink.NDA_PROTOCOL, []byte{Protocol})}
	if managed {
		attrs = append(attrs, nl.NewRtAttr(netlink.NDA_FLAGS_EXT, nl.Uint32Attr(extManaged)))
	}
	return w.newNeigh(k, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, unix.NUD_NONE, unix.NTF_USE, attrs...)
}

// confirm has the kernel ask a neighbour that it holds for reachable whether it still is, by up to three unicast
// probes. As a side effect of every change of state by hand the kernel takes the managed flag away; the notice of that
// makes keep ask for it again.
func (w *Watcher) confirm(k neighKey) error {
	return w.newNeigh(k, unix.NLM_F_REPLACE, unix.NUD_PROBE, 0)
}

// newNeigh sends an RTM_NEWNEIGH.
func (w *Watcher) newNeigh(k neighKey, mode int, state uint16, flags uint8, attrs ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, mode|unix.NLM_F_ACK)
	req.Sockets = w.sockets
	req.AddData(&netlink.Ndmsg{Family: family(k.addr), Index: uint32(k.link), State: state, Flags: flags})
	req.AddData(nl.NewRtAttr(unix.NDA_DST, k.addr.AsSlice()))
	for _, a := range attrs {
		req.AddData(a)
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		hint := ""
		if errors.Is(err, unix.ENOBUFS) {
			hint = fmt.Sprintf("; the neighbour table is full, raise net.%s.neigh.default.gc_thresh3",
				map[bool]string{true: "ipv4", false: "ipv6"}[k.addr.Is4()])
		}
		return fmt.Errorf("ask for neighbour %s on link %d: %w%s", k.addr, k.link, err, hint)
	}
	return nil
}

// look reads one neighbour from the kernel.
func (w *Watcher) look(k neighKey) (neigh, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.Sockets = w.sockets
	req.AddData(&netlink.Ndmsg{Family: family(k.addr), Index: uint32(k.link)})
	req.AddData(nl.NewRtAttr(unix.NDA_DST, k.addr.AsSlice()))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil {
		return neigh{}, fmt.Errorf("read neighbour %s on link %d: %w", k.addr, k.link, err)
	}
	for _, m := range msgs {
		if _, n, ok := parseNeigh(m); ok {
			return n, nil
		}
	}
	return neigh{}, fmt.Errorf("read neighbour %s on link %d: %w", k.addr, k.link, fs.ErrNotExist)
}

// dumpNeighs reads all neighbours.
func (w *Watcher) dumpNeighs() (map[neighKey]neigh, error) {
	var msgs [][]byte
	err := uninterrupted(func() (err error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.Sockets = w.sockets
		req.AddData(&netlink.Ndmsg{})
		msgs, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	all := make(map[neighKey]neigh, len(msgs))
	for _, m := range msgs {
		if k, n, ok := parseNeigh(m); ok {
			all[k] = n
		}
	}
	return all, nil
}

// adopt takes over the neighbours that an earlier life of this program left managed, after a crash or at a hand-over:
// the first call of Track keeps those that are still wanted and releases the others.
func (w *Watcher) adopt() {
	for k, n := range w.neighs.m {
		if n.ours && n.managed {
			w.kept[k] = time.Time{}
		}
	}
}

// keep has the kernel keep exactly those neighbours resolved that the routes lead to, and reports whether something
// has to be tried again. The caller holds work.
func (w *Watcher) keep() (again bool) {
	var ask, release []neighKey
	w.mu.Lock()
	managed := w.managed && !w.plain
	wanted := make(map[neighKey]struct{}, len(w.kept))
	need := func(k neighKey) {
		if l := w.links.m[k.link]; l.Up && l.Ethernet {
			wanted[k] = struct{}{}
		}
	}
	for _, t := range w.targets {
		need(neighKey{t.route.link, t.route.next})
	}
	if w.follow.layer != nil {
		w.follow.layer.gateways(need)
	}
	for k := range w.follow.asked {
		need(k)
	}
	for k := range wanted {
		if _, ok := w.kept[k]; ok {
			continue
		}
		if n := w.neighs.m[k]; n.foreign || (n.managed && !n.ours) {
			continue // somebody else sees to it
		}
		ask = append(ask, k)
	}
	for k := range w.kept {
		if _, ok := wanted[k]; !ok {
			delete(w.kept, k)
			if _, there := w.neighs.m[k]; there {
				release = append(release, k)
			}
		}
	}
	w.mu.Unlock()

	var failed error
	for _, k := range ask {
		// Before the request, so that a notice which takes the flag away is never overtaken by this.
		w.mu.Lock()
		w.kept[k] = time.Now()
		w.mu.Unlock()
		err := w.solicit(k, managed)
		if err == nil && !w.probed {
			managed, err = w.probe(k)
		}
		if err != nil {
			w.mu.Lock()
			delete(w.kept, k)
			w.mu.Unlock()
			failed = err
		}
	}
	if failed != nil && !w.failing {
		w.log.Warn("Ethernet addresses of next hops cannot be asked for; trying again every second", "error", failed)
	}
	w.failing = failed != nil
	// A destination that was asked for may well be absent: the others do not wait for it.
	w.settle(slices.DeleteFunc(ask, func(k neighKey) bool { return !w.follow.asked[k].IsZero() }))
	for _, k := range release {
		if err := w.solicit(k, false); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENETDOWN) {
			w.log.Warn("a neighbour that is no longer needed stays managed by the kernel", "error", err)
		}
	}
	return w.failing
}

// settleFor is how long new neighbours may take to answer before the hops that need them are published without.
const settleFor = 50 * time.Millisecond

// settle waits until the neighbours have answered, which takes well below a millisecond in most networks: so a route
// that moves to another gateway moves without a gap, and Track returns with hops that are Ready.
func (w *Watcher) settle(keys []neighKey) {
	for deadline := time.Now().Add(settleFor); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		keys = slices.DeleteFunc(keys, func(k neighKey) bool { return w.neighs.m[k].usable() })
		w.mu.Unlock()
		if len(keys) == 0 {
			return
		}
	}
}

// probe finds out, by the first neighbour asked for, whether this kernel keeps neighbours itself.
func (w *Watcher) probe(k neighKey) (managed bool, err error) {
	n, err := w.look(k)
	if err != nil {
		return false, err
	}
	w.probed = true
	w.mu.Lock()
	w.managed = n.managed
	w.mu.Unlock()
	if !n.managed {
		w.log.Warn("this kernel cannot keep neighbours resolved by itself (NTF_EXT_MANAGED, Linux 5.16); asking every 5 s instead")
	}
	return n.managed, nil
}

const (
	// refreshAfter is the kernel's own interval for managed neighbours (INTERVAL_PROBE_TIME_MS).
	refreshAfter = 5 * time.Second
	// maxRefreshed bounds the probes of one tick: a thousand neighbours are probed every 5 s, more of them less often.
	maxRefreshed = 200
)

// refresh probes neighbours of which the kernel has not been told for a while. Those that it does not hold for
// reachable it looks after by itself, if it is not too old for that.
func (w *Watcher) refresh(now time.Time) {
	w.work.Lock()
	defer w.work.Unlock()
	var reachable, others []neighKey
	w.mu.Lock()
	for k, last := range w.kept {
		n := w.neighs.m[k]
		if n.foreign || now.Sub(last) < refreshAfter {
			continue
		}
		switch {
		case n.state&unix.NUD_REACHABLE != 0:
			reachable = append(reachable, k)
		case !w.managed:
			others = append(others, k)
		default:
			continue
		}
		w.kept[k] = now
		if len(reachable)+len(others) == maxRefreshed {
			break
		}
	}
	w.mu.Unlock()

	var err error
	for _, k := range reachable {
		err = errors.Join(err, w.confirm(k))
	}
	for _, k := range others {
		err = errors.Join(err, w.solicit(k, false))
	}
	if err != nil {
		// No harm: the kernel ages the entry, and the link or the route that went away brings a notice.
		w.log.Debug("probing neighbours", "error", err)
	}
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// dumpTries bounds how often a dump is asked for that a change interrupted: the next resync comes anyway.
const dumpTries = 8

// uninterrupted repeats dump while the kernel says that its answer is inconsistent. The last answer counts, complete or
// not: every change after it comes as a notice.
func uninterrupted(dump func() error) (err error) {
	for range dumpTries {
		if err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return nil
}
