package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/cilium/ebpf"
)

// Steer is what the programs on all interfaces share: the set of VIPs, and the counters.
type Steer struct {
	spec  *ebpf.CollectionSpec // the program, with vips sized; copied for each interface
	vips  *ebpf.Map
	stats *ebpf.Map

	mu  sync.Mutex
	set map[netip.Addr]struct{} // what vips holds; under mu
}

// Stats is what the programs counted on all interfaces since New. ToVIPs = Redirected + NoSocket.
type Stats struct {
	ToVIPs     uint64 // packets whose destination is a VIP
	Redirected uint64 // of these, given to an AF_XDP socket
	NoSocket   uint64 // of these, dropped because their queue has no socket
}

// New makes the shared maps, with room for maxVIPs addresses. No frame is touched before [Steer.Attach].
func New(maxVIPs int) (_ *Steer, err error) {
	if maxVIPs < 1 {
		return nil, fmt.Errorf("new steer: room for %d VIPs; at least 1 is needed", maxVIPs)
	}
	spec, err := loadSteer()
	if err != nil {
		return nil, fmt.Errorf("read the steering program: %w", err)
	}
	spec.Maps[steerMapVips].MaxEntries = uint32(maxVIPs)

	s := &Steer{spec: spec, set: make(map[netip.Addr]struct{})}
	if s.vips, err = ebpf.NewMap(spec.Maps[steerMapVips]); err != nil {
		return nil, fmt.Errorf("make the map of %d VIPs: %w%s", maxVIPs, err, privilegeHint(err))
	}
	if s.stats, err = ebpf.NewMap(spec.Maps[steerMapStats]); err != nil {
		s.vips.Close()
		return nil, fmt.Errorf("make the map of counters: %w%s", err, privilegeHint(err))
	}
	return s, nil
}

// Close lets go of the shared maps. Links stay attached, with the VIPs they have, until they are closed themselves.
func (s *Steer) Close() error {
	return errors.Join(s.vips.Close(), s.stats.Close())
}

// SetVIPs makes the set of VIPs exactly addrs, in any order; doubles count once. Only the difference is written: packets
// to an address that was in the set and stays are steered throughout. Either everything is applied, or an error says
// which address was not; then calling it again with the same addresses does the rest.
func (s *Steer) SetVIPs(addrs []netip.Addr) error {
	want := make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("set VIPs: %q is not a plain IPv4 or IPv6 address", a)
		}
		want[a] = struct{}{}
	}
	if room := int(s.vips.MaxEntries()); len(want) > room {
		return fmt.Errorf("set VIPs: %d addresses, but room for %d", len(want), room)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	// Removes come first, so that the new set fits whenever it is small enough.
	for a := range s.set {
		if _, stays := want[a]; stays {
			continue
		}
		if err := s.vips.Delete(a.As16()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove VIP %s: %w", a, err)
		}
		delete(s.set, a)
	}
	for a := range want {
		if _, there := s.set[a]; there {
			continue
		}
		if err := s.vips.Put(a.As16(), uint8(0)); err != nil {
			return fmt.Errorf("add VIP %s: %w", a, err)
		}
		s.set[a] = struct{}{}
	}
	return nil
}

// Stats sums the counters of all CPUs. They only grow. While frames arrive the three may be of slightly different
// instants; at rest they balance.
func (s *Steer) Stats() (Stats, error) {
	var perCPU []steerCounters
	if err := s.stats.Lookup(uint32(0), &perCPU); err != nil {
		return Stats{}, fmt.Errorf("read the steering counters: %w", err)
	}
	var sum Stats
	for _, c := range perCPU {
		sum.ToVIPs += c.ToVips
		sum.Redirected += c.Redirected
		sum.NoSocket += c.NoSocket
	}
	return sum, nil
}

// privilegeHint names the likely cause of a refusal.
func privilegeHint(err error) string {
	if errors.Is(err, os.ErrPermission) {
		return "; needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (run as root)"
	}
	return ""
}
