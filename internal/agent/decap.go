//go:build linux

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Counters are the books of the decapsulator since its program was loaded, in packets as they were on the wire. Packets
// that are not IP-in-IP to this host are in none of them.
type Counters struct {
	DecapsulatedIPv4 uint64 `json:"decapsulated_ipv4"` // inner IPv4 packets given to the kernel
	DecapsulatedIPv6 uint64 `json:"decapsulated_ipv6"` // inner IPv6 packets given to the kernel
	NotVIP           uint64 `json:"not_vip"`           // the inner destination is not a VIP: untouched
	Fragment         uint64 `json:"fragment"`          // a fragment of an outer packet: untouched
	Malformed        uint64 `json:"malformed"`         // a header is cut short or wrong: untouched
	Source           uint64 `json:"source"`            // to a VIP, from a source that is not allowed: dropped
	ECN              uint64 `json:"ecn"`               // RFC 6040 says to drop it: dropped
	Failed           uint64 `json:"failed"`            // the kernel refused to take the header off: dropped
}

// LogValue makes a group of the counters.
func (c Counters) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Uint64("decapsulated_ipv4", c.DecapsulatedIPv4), slog.Uint64("decapsulated_ipv6", c.DecapsulatedIPv6),
		slog.Uint64("not_vip", c.NotVIP), slog.Uint64("fragment", c.Fragment), slog.Uint64("malformed", c.Malformed),
		slog.Uint64("source", c.Source), slog.Uint64("ecn", c.ECN), slog.Uint64("failed", c.Failed))
}

// decapsulator is the loaded program and its maps. Attached or not is the host's business.
type decapsulator struct {
	objs      decapObjects
	id        ebpf.ProgramID
	addresses map[netip.Addr]bool // in the map now
}

// sourceKey is struct prefix of bpf/decap.c.
type sourceKey struct {
	Bits    uint32
	Address [16]byte
}

// loadDecapsulator loads the program for VIPs and sources that stay as they are. No sources: any.
func loadDecapsulator(vips []netip.Addr, sources []netip.Prefix) (*decapsulator, error) {
	keys := []sourceKey{{}} // ::/0 matches v4-mapped addresses too
	if len(sources) > 0 {
		keys = keys[:0]
		for _, p := range sources {
			key := sourceKey{Bits: uint32(p.Bits()), Address: p.Addr().As16()}
			if p.Addr().Is4() {
				key.Bits += 96
			}
			keys = append(keys, key)
		}
	}
	spec, err := loadDecap()
	if err != nil {
		return nil, fmt.Errorf("load BPF program: %w", err)
	}
	spec.Maps[decapMapVips].MaxEntries = uint32(len(vips))
	spec.Maps[decapMapSources].MaxEntries = uint32(len(keys))

	d := &decapsulator{addresses: map[netip.Addr]bool{}}
	if err := spec.LoadAndAssign(&d.objs, nil); err != nil {
		return nil, fmt.Errorf("load BPF program: %w%s", err, hint(err))
	}
	info, err := d.objs.SluiceDecap.Info()
	if err != nil {
		d.close()
		return nil, fmt.Errorf("read BPF program: %w", err)
	}
	d.id, _ = info.ID()
	for _, vip := range vips {
		if err := d.objs.Vips.Put(vip.As16(), uint8(1)); err != nil {
			d.close()
			return nil, fmt.Errorf("add VIP %s to BPF map: %w", vip, err)
		}
	}
	for i := range keys {
		if err := d.objs.Sources.Put(&keys[i], uint8(1)); err != nil {
			d.close()
			return nil, fmt.Errorf("add source to BPF map: %w", err)
		}
	}
	return d, nil
}

// setAddresses makes these the outer destinations that are taken. Those that stay are taken throughout.
func (d *decapsulator) setAddresses(addrs []netip.Addr) error {
	want := map[netip.Addr]bool{}
	for _, a := range addrs {
		want[a] = true
		if d.addresses[a] {
			continue
		}
		if err := d.objs.Addresses.Put(a.As16(), uint8(1)); err != nil {
			return fmt.Errorf("add address %s to BPF map: %w; name the one that nodes send to with --address", a, err)
		}
		d.addresses[a] = true
	}
	for a := range d.addresses {
		if want[a] {
			continue
		}
		if err := d.objs.Addresses.Delete(a.As16()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove address %s from BPF map: %w", a, err)
		}
		delete(d.addresses, a)
	}
	return nil
}

// counters sums up what the CPUs counted.
func (d *decapsulator) counters() (Counters, error) { return readCounters(d.objs.Counts) }

func readCounters(m *ebpf.Map) (Counters, error) {
	var perCPU []decapCounters
	if err := m.Lookup(uint32(0), &perCPU); err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	var sum Counters
	for _, c := range perCPU {
		sum.DecapsulatedIPv4 += c.DecapsulatedIpv4
		sum.DecapsulatedIPv6 += c.DecapsulatedIpv6
		sum.NotVIP += c.NotVip
		sum.Fragment += c.Fragment
		sum.Malformed += c.Malformed
		sum.Source += c.Source
		sum.ECN += c.Ecn
		sum.Failed += c.Failed
	}
	return sum, nil
}

// attach puts the program first at the ingress of an interface, or in the place of old without a gap between the two.
// It is attached without a BPF link on purpose: a link would be gone with a killed agent, and the backend with it.
func (d *decapsulator) attach(l hostLink, old *ebpf.Program) error {
	anchor := link.Head()
	if old != nil {
		anchor = link.ReplaceProgram(old)
	}
	err := link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: l.index, Program: d.objs.SluiceDecap, Attach: ebpf.AttachTCXIngress, Anchor: anchor,
	})
	if err != nil {
		return fmt.Errorf("attach to %s: %w%s", l.name, err, hint(err))
	}
	return nil
}

func (d *decapsulator) close() { d.objs.Close() }

// detach takes a program off the ingress of an interface; nil also if it is not there or the interface has gone.
func detach(a attachment, p *ebpf.Program) error {
	err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: a.Link, Program: p, Attach: ebpf.AttachTCXIngress})
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("detach from %s: %w", a.Interface, err)
}

// attached returns the IDs of the programs at the ingress of an interface. It also finds out whether the kernel has tcx.
func attached(l hostLink) ([]ebpf.ProgramID, error) {
	res, err := link.QueryPrograms(link.QueryOptions{Target: l.index, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("query programs of %s: %w; this kernel has no tcx: Linux 6.6 or newer is needed", l.name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("query programs of %s: %w%s", l.name, err, hint(err))
	}
	var ids []ebpf.ProgramID
	for _, p := range res.Programs {
		ids = append(ids, p.ID)
	}
	return ids, nil
}

// openAttached opens a program of a killed agent; nil if it is no longer there. IDs are given again only after four
// billion programs, but the name costs nothing to compare.
func openAttached(a attachment) (*ebpf.Program, error) {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(a.Program))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		what := ""
		if errors.Is(err, unix.EPERM) {
			what = "; to take the place of an agent that was killed, CAP_SYS_ADMIN is needed"
		}
		return nil, fmt.Errorf("open program %d on %s: %w%s", a.Program, a.Interface, err, what)
	}
	info, err := p.Info()
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("read program %d: %w", a.Program, err)
	}
	if info.Name != decapProgSluiceDecap {
		p.Close()
		return nil, nil
	}
	return p, nil
}

// hint is the cure of the classic failure.
func hint(err error) string {
	if errors.Is(err, unix.EPERM) {
		return "; run as root, or with CAP_BPF and CAP_NET_ADMIN"
	}
	return ""
}
