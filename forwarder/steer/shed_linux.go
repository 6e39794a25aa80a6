package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Classes of packets that can be shed apart.
const (
	ShedSYN      = iota // TCP with SYN and without ACK
	ShedTCP             // other TCP
	ShedUDP             // UDP
	ShedPortless        // fragments without ports, and ICMP: whatever VIP they are to
	ShedClasses
)

const (
	// MaxShed is how many destinations can be shed at once.
	MaxShed = 64
	// ShedAll is the share of all sources.
	ShedAll = 256
)

// Shed is what is dropped of the packets to one destination while the workers cannot take all: a share of the sources that are
// not in the set of those that have proved their address (see [Steer.ShareProved]).
type Shed struct {
	// VIP, Proto (6, TCP, or 17, UDP) and Ports are the destination. A zero VIP stands for packets that have no ports.
	VIP   netip.Addr
	Proto uint8
	Ports []PortRange
	// Share is how many of 256 sources are dropped, by class. Which they are changes every four seconds.
	Share [ShedClasses]uint16
	// Place is where packets that are dropped are counted, below MaxShed; see [Steer.ShedCounts].
	Place int
}

// ShareProved gives the programs the set of sources that have proved their address: a BPF array of lines of eight words, as
// shm.NewArrayMap makes it, which stays the caller's, and what guard.Proved.Shared returns for it. Before any Attach; without
// it no source has proved anything.
func (s *Steer) ShareProved(lines *ebpf.Map, key [4]uint64, mask uint32) error {
	err := errors.Join(s.spec.Variables[steerVarProvedKey].Set(key), s.spec.Variables[steerVarProvedMask].Set(mask))
	if err != nil {
		return fmt.Errorf("share the set of proved sources: %w", err)
	}
	if err := s.replace(steerMapProved, lines); err != nil {
		return fmt.Errorf("share the set of proved sources: %w", err)
	}
	return nil
}

// SetShed makes exactly this what is dropped; none ends it. Only the difference is written. No port may be in two of the same
// VIP and protocol. Either everything is applied, or an error says what was not; then calling it again does the rest. Any
// goroutine may call it.
func (s *Steer) SetShed(list []Shed) error {
	want := map[trieKey]steerShedValue{}
	for i := range list {
		d := &list[i]
		if d.Place < 0 || d.Place >= MaxShed {
			return fmt.Errorf("shed packets to %v: place %d; places are 0 to %d", d.VIP, d.Place, MaxShed-1)
		}
		keys := []trieKey{{Bits: 8 * keyBytes}}
		if d.VIP.IsValid() {
			if !plain(d.VIP) || d.Proto != unix.IPPROTO_TCP && d.Proto != unix.IPPROTO_UDP {
				return fmt.Errorf("shed packets to %v, protocol %d: a plain address, and TCP (6) or UDP (17) is expected", d.VIP, d.Proto)
			}
			if len(d.Ports) == 0 {
				return fmt.Errorf("shed packets to %v, protocol %d: no ports; for all of them say 0 to 65535", d.VIP, d.Proto)
			}
			keys = destinationKeys(d.VIP, d.Proto, d.Ports)
		}
		for _, k := range keys {
			if _, twice := want[k]; twice {
				return fmt.Errorf("shed packets to %v, protocol %d: two shares for the same ports", d.VIP, d.Proto)
			}
			want[k] = steerShedValue{Share: d.Share, Place: uint32(d.Place)}
		}
	}
	s.shedding.Lock()
	defer s.shedding.Unlock()
	err := s.shed.fits(want)
	if err == nil && len(want) > 0 {
		err = s.refuse(byShed, 0)
	}
	if err == nil {
		err = s.shed.remove(want)
	}
	if err == nil {
		err = s.shed.put(want)
	}
	if err == nil && len(want) == 0 {
		err = s.refuse(0, byShed)
	}
	if err != nil {
		return fmt.Errorf("shed packets: %w", err)
	}
	return nil
}

// destinationKeys are those of ranges of ports: the largest aligned blocks.
func destinationKeys(vip netip.Addr, proto uint8, ports []PortRange) (keys []trieKey) {
	for _, p := range union(slices.Clone(ports)) {
		for first := uint32(p.First); first <= uint32(p.Last); {
			size, bits := uint32(1), uint32(0)
			for first&(2*size-1) == 0 && first+2*size-1 <= uint32(p.Last) {
				size, bits = 2*size, bits+1
			}
			key := destinationKey(vip, proto, uint16(first))
			key.Bits -= bits
			keys = append(keys, key)
			first += size
		}
	}
	return keys
}

// ShedCounts returns how many packets were dropped on all interfaces since New, by place and class. Any goroutine may call it.
func (s *Steer) ShedCounts() (sum [MaxShed][ShedClasses]uint64, err error) {
	for place := range sum {
		var perCPU []steerShedCount
		if err := s.maps[steerMapShedCounts].Lookup(uint32(place), &perCPU); err != nil {
			return sum, fmt.Errorf("read what was shed: %w", err)
		}
		for _, c := range perCPU {
			for class, n := range c.Packets {
				sum[place][class] += n
			}
		}
	}
	return sum, nil
}
