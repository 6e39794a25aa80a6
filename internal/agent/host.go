//go:build linux

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/agent/capability"
)

// hostLink is an interface by its name and index; both have to stay.
type hostLink struct {
	name  string
	index int
}

// host is the agent's side of everything that it changes outside the BPF maps. What state names is changed, or was
// about to be when the agent was killed; it is saved before each change.
type host struct {
	log   *slog.Logger
	store *store
	links []hostLink
	vips  []netip.Addr
	state state

	secret  *[32]byte            // of SYN cookies; nil: none are accepted
	nat     []capability.Mapping // only with a secret
	listen  string               // where others ask; "": nowhere
	tell    teller               // what they are told
	refused []string             // the sysctls that the log has been told of as refusing options
}

// plan is what apply will do: the state to reach, and what of the present state no longer belongs to it.
type plan struct {
	next          state
	add           []netip.Addr // VIPs that are not on the host
	staleVIPs     []netip.Addr
	staleSettings []setting
}

// findLinks looks the interfaces up.
func findLinks(names []string) ([]hostLink, error) {
	var links []hostLink
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("find interface %s: %w", name, err)
		}
		if kind := l.Attrs().EncapType; kind != "ether" {
			return nil, fmt.Errorf("use interface %s: it is of type %s; name an Ethernet interface, on which nodes' packets arrive",
				name, kind)
		}
		links = append(links, hostLink{name, l.Attrs().Index})
	}
	return links, nil
}

// goneLink returns the name of an interface that has gone, or whose name another has now; "" if there is none.
func (h *host) goneLink() (string, error) {
	for _, l := range h.links {
		now, err := netlink.LinkByName(l.name)
		if gone := (netlink.LinkNotFoundError{}); errors.As(err, &gone) || err == nil && now.Attrs().Index != l.index {
			return l.name, nil
		}
		if err != nil {
			return "", fmt.Errorf("find interface %s: %w", l.name, err)
		}
	}
	return "", nil
}

// placed is an address and the interface that has it.
type placed struct {
	addr netip.Addr
	link int
}

// placedAddresses lists the addresses of all interfaces.
func placedAddresses() ([]placed, error) {
	var list []netlink.Addr
	var err error
	for range 5 { // a dump that a change interrupted may lack entries
		if list, err = netlink.AddrList(nil, netlink.FAMILY_ALL); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []placed
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, placed{ip.Unmap(), a.LinkIndex})
		}
	}
	return out, nil
}

// localAddresses returns the outer destinations to take, sorted: the fixed ones, if any, else all addresses of the
// interfaces but link-local ones (nodes cannot route to them) and VIPs (clients can send to them). Without VIPs nothing is
// decapsulated, and there are none.
func (h *host) localAddresses(fixed []netip.Addr) ([]netip.Addr, error) {
	if len(fixed) > 0 || len(h.vips) == 0 {
		return fixed, nil
	}
	all, err := placedAddresses()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, p := range all {
		if h.ours(p.link) && !p.addr.IsLinkLocalUnicast() && !slices.Contains(h.vips, p.addr) {
			out = append(out, p.addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// ours reports whether the agent works on the interface with this index.
func (h *host) ours(index int) bool {
	return slices.ContainsFunc(h.links, func(l hostLink) bool { return l.index == index })
}

// plan compares the host with what it should be, and changes nothing.
func (h *host) plan() (plan, error) {
	p := plan{next: state{VIPs: h.vips, NAT: h.nat, Listen: h.listen, Programs: h.state.Programs}}
	if len(h.vips) == 0 {
		// Nothing is put on loopback.
	} else if lo, err := netlink.LinkByName("lo"); err != nil {
		return plan{}, fmt.Errorf("find loopback: %w", err)
	} else if lo.Attrs().Flags&net.FlagUp == 0 {
		return plan{}, errors.New("put VIPs on lo: it is down; set it up first (ip link set lo up)")
	}

	all, err := placedAddresses()
	if err != nil {
		return plan{}, err
	}
	for _, vip := range h.vips {
		there := false
		for _, a := range all {
			if a.addr != vip {
				continue
			}
			if h.ours(a.link) {
				return plan{}, fmt.Errorf("use VIP %s: it is an address of an interface that nodes' packets arrive on, where the host "+
					"answers ARP and neighbour discovery for it and draws traffic past the nodes; remove it there", vip)
			}
			there = true
		}
		if slices.Contains(h.state.Added, vip) || !there {
			p.next.Added = append(p.next.Added, vip)
		}
		if !there {
			p.add = append(p.add, vip)
		}
	}
	for _, vip := range h.state.Added {
		if !slices.Contains(h.vips, vip) {
			p.staleVIPs = append(p.staleVIPs, vip)
		}
	}

	p.next.Settings, p.staleSettings, err = planSettings(h.links, anyIPv4(h.vips), h.secret != nil, h.state.Settings)
	return p, err
}

// apply does what was planned. The state names it all beforehand.
func (h *host) apply(p plan) error {
	// The state must name what is stale until it is undone, too.
	h.state = p.next
	h.state.Added = slices.Concat(p.next.Added, p.staleVIPs)
	h.state.Settings = slices.Concat(p.next.Settings, p.staleSettings)
	if err := h.store.save(h.state); err != nil {
		return err
	}
	// ARP is suppressed before there is anything to answer for.
	for _, s := range p.next.Settings {
		if err := s.apply(); err != nil {
			return err
		}
	}
	for _, vip := range p.add {
		if err := addVIP(vip); err != nil {
			return err
		}
	}
	for _, vip := range p.staleVIPs {
		if err := removeVIP(vip); err != nil {
			return err
		}
	}
	for _, s := range p.staleSettings {
		if err := s.undo(h.log); err != nil {
			return err
		}
	}
	h.state = p.next
	return h.store.save(h.state)
}

// restoreVIPs puts back what somebody (a network manager, most often) took from loopback.
func (h *host) restoreVIPs() error {
	all, err := placedAddresses()
	if err != nil {
		return err
	}
	for _, vip := range h.vips {
		if slices.ContainsFunc(all, func(p placed) bool { return p.addr == vip }) {
			continue
		}
		if !slices.Contains(h.state.Added, vip) {
			h.state.Added = append(h.state.Added, vip)
			if err := h.store.save(h.state); err != nil {
				return err
			}
		}
		if err := addVIP(vip); err != nil {
			return err
		}
		h.log.Warn("put a VIP back that somebody removed", "vip", vip)
	}
	return nil
}

// predecessors are the programs that killed agents left on interfaces.
type predecessors map[attachment]*ebpf.Program

func (p predecessors) close() {
	for _, program := range p {
		program.Close()
	}
}

// findPredecessors opens those of the recorded programs that are attached still, after it has found out that the kernel
// can attach ours.
func findPredecessors(links []hostLink, recorded []attachment) (predecessors, error) {
	for _, l := range links {
		if _, err := attached(l, ebpf.AttachTCXIngress); err != nil {
			return nil, err
		}
	}
	found := predecessors{}
	for _, a := range recorded {
		ids, err := attached(hostLink{a.Interface, a.Link}, a.hook())
		if errors.Is(err, unix.ENODEV) {
			continue // gone with its interface
		}
		var p *ebpf.Program
		if err == nil && slices.Contains(ids, ebpf.ProgramID(a.Program)) {
			p, err = openAttached(a)
		}
		if err != nil {
			found.close()
			return nil, err
		}
		if p != nil {
			found[a] = p
		}
	}
	return found, nil
}

// attach attaches the programs everywhere, in the place of predecessors where there are any, and removes those from where
// no program is wanted any longer. Where clamping is off, none is at the egress.
func (h *host) attach(p *programs, old predecessors) error {
	var mine []attachment
	for _, l := range h.links {
		mine = append(mine, attachment{Interface: l.name, Link: l.index, Program: uint32(p.decap)})
		if p.parameters.MSS != (MSS{}) {
			mine = append(mine, attachment{Interface: l.name, Link: l.index, Egress: true, Program: uint32(p.clamp)})
		}
	}
	h.state.Programs = slices.Clone(mine)
	for a := range old {
		h.state.Programs = append(h.state.Programs, a)
	}
	if err := h.store.save(h.state); err != nil {
		return err
	}
	replaced := map[attachment]bool{}
	for a, program := range old {
		i := slices.IndexFunc(mine, a.sameHook)
		if i < 0 || replaced[mine[i]] {
			if err := detach(a, program); err != nil {
				return err
			}
			continue
		}
		if err := p.attach(mine[i], program); err != nil {
			return err
		}
		replaced[mine[i]] = true
		h.log.Info("took the place of an agent that was killed", "interface", a.Interface, "hook", a.hook())
	}
	for _, a := range mine {
		if replaced[a] {
			continue
		}
		if err := p.attach(a, nil); err != nil {
			return err
		}
	}
	h.state.Programs = mine
	return h.store.save(h.state)
}

// undo takes back what the state names, in the reverse order, and goes on after a failure; what failed stays in the
// state for the next agent.
func (h *host) undo(p *programs) error {
	var problems []error
	left := state{VIPs: h.state.VIPs, NAT: h.state.NAT}
	for _, a := range h.state.Programs {
		if err := h.detachRecorded(p, a); err != nil {
			problems = append(problems, err)
			left.Programs = append(left.Programs, a)
		}
	}
	for _, vip := range h.state.Added {
		if err := removeVIP(vip); err != nil {
			problems = append(problems, err)
			left.Added = append(left.Added, vip)
		}
	}
	// ARP stays suppressed until there is nothing to answer for.
	for _, s := range h.state.Settings {
		if err := s.undo(h.log); err != nil {
			problems = append(problems, err)
			left.Settings = append(left.Settings, s)
		}
	}
	h.state = left
	if len(problems) == 0 {
		return h.store.remove()
	}
	if err := h.store.save(left); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// detachRecorded detaches a program that may be our own or, if taking a place failed half-way, a killed agent's.
func (h *host) detachRecorded(p *programs, a attachment) error {
	switch ebpf.ProgramID(a.Program) {
	case p.decap:
		return detach(a, p.objs.SluiceDecap)
	case p.clamp:
		return detach(a, p.objs.SluiceClamp)
	}
	old, err := openAttached(a)
	if err != nil || old == nil {
		return err
	}
	defer old.Close()
	return detach(a, old)
}

// onLoopback is a VIP as an address of lo: never the source of the host's own connections, since scope host is too
// narrow for them (inet_select_addr) and a deprecated address is chosen last (RFC 6724, rule 3).
func onLoopback(vip netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())}}
	if vip.Is4() {
		a.Scope = unix.RT_SCOPE_HOST
	} else {
		a.Flags = unix.IFA_F_NODAD
		a.PreferedLft, a.ValidLft = 0, math.MaxUint32
	}
	return a
}

func addVIP(vip netip.Addr) error {
	if err := netlink.AddrAdd(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo"}}, onLoopback(vip)); err != nil {
		what := hint(err)
		if vip.Is6() && what == "" {
			what = "; is IPv6 disabled on lo (net.ipv6.conf.lo.disable_ipv6)?"
		}
		return fmt.Errorf("add VIP %s to lo: %w%s", vip, err, what)
	}
	return nil
}

// removeVIP is content if it is not there.
func removeVIP(vip netip.Addr) error {
	err := netlink.AddrDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo"}}, onLoopback(vip))
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove VIP %s from lo: %w", vip, err)
	}
	return nil
}
