package forwarder

import (
	"cmp"
	"slices"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

// vipTable finds the service of a destination. It is an open-addressed table of (VIP, protocol), at most half full, each
// entry with its sorted, disjoint port ranges. Immutable once built.
type vipTable struct {
	entries []vipEntry
	mask    uint32
	ranges  []portRange
	// some has a bit for each VIP, by a hash of it: the bit of nearly every other address is not set, since no more than one in 32 is.
	// Its length is a power of two.
	some []uint64
}

type vipEntry struct {
	addr  packet.Addr
	first uint32 // in ranges
	count uint32 // 0: the place is free
	proto uint8
	// other says that the address is a VIP and this protocol is not one of its services': ports are not looked at.
	other bool
}

type portRange struct {
	first, last uint16 // host order, inclusive
	service     uint32
}

// vipHash spreads addresses over the table. Only configured addresses are in it, so it need not be keyed.
func vipHash(a packet.Addr, proto uint8) uint32 {
	h := (a.Hi ^ a.Lo ^ uint64(proto)<<56) * 0x9e3779b97f4a7c15
	return uint32(h >> 32)
}

// find returns the service of a destination and None, or NotVIP or NoService.
func (t *vipTable) find(addr packet.Addr, proto uint8, port uint16) (service uint32, reason packet.Reason) {
	for i := vipHash(addr, proto) & t.mask; ; i = (i + 1) & t.mask {
		e := &t.entries[i]
		if e.count == 0 {
			return 0, packet.NotVIP
		}
		if e.addr != addr || e.proto != proto {
			continue
		}
		if e.other {
			return 0, packet.NoService
		}
		ranges := t.ranges[e.first : e.first+e.count]
		lo, hi := 0, len(ranges) // binary search for the first range that ends at or after port
		for lo < hi {
			mid := int(uint(lo+hi) / 2)
			if ranges[mid].last < port {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		if lo < len(ranges) && ranges[lo].first <= port {
			return ranges[lo].service, packet.None
		}
		return 0, packet.NoService
	}
}

// isVIP says whether an address is a VIP.
func (snap *Snapshot) isVIP(a packet.Addr) bool {
	return snap.vips.mayHave(a) && snap.vips.has(a)
}

// mayHave is true for each VIP, and for hardly any other address.
func (t *vipTable) mayHave(a packet.Addr) bool {
	word, bit := t.bitOf(a)
	return t.some[word]&bit != 0
}

// has says whether an address is a VIP.
func (t *vipTable) has(a packet.Addr) bool {
	_, reason := t.find(a, protoTCP, 0)
	return reason != packet.NotVIP
}

// bitOf is the place of an address in some.
func (t *vipTable) bitOf(a packet.Addr) (word int, bit uint64) {
	h := vipHash(a, protoTCP)
	return int(h/64) & (len(t.some) - 1), 1 << (h % 64)
}

// only returns the service of a VIP and protocol if there is exactly one.
func (t *vipTable) only(addr packet.Addr, proto uint8) (service uint32, ok bool) {
	for i := vipHash(addr, proto) & t.mask; t.entries[i].count != 0; i = (i + 1) & t.mask {
		e := &t.entries[i]
		if e.addr != addr || e.proto != proto {
			continue
		}
		if e.other {
			return 0, false
		}
		ranges := t.ranges[e.first : e.first+e.count]
		for _, r := range ranges[1:] {
			if r.service != ranges[0].service {
				return 0, false
			}
		}
		return ranges[0].service, true
	}
	return 0, false
}

// vipPorts is one service's claim on a VIP.
type vipPorts struct {
	addr    packet.Addr
	proto   uint8
	ports   []PortRange
	service uint32
}

// overlaps says whether two claims want a packet in common.
func (c vipPorts) overlaps(d vipPorts) bool {
	if c.addr != d.addr || c.proto != d.proto {
		return false
	}
	for _, p := range c.ports {
		for _, q := range d.ports {
			if p.First <= q.Last && q.First <= p.Last {
				return true
			}
		}
	}
	return false
}

// newVIPTable builds the table. Claims must be disjoint; Engine.Apply has checked that.
func newVIPTable(claims []vipPorts) vipTable {
	type key struct {
		addr  packet.Addr
		proto uint8
	}
	byKey := map[key][]portRange{}
	for _, c := range claims {
		k := key{c.addr, c.proto}
		for _, p := range c.ports {
			byKey[k] = append(byKey[k], portRange{first: p.First, last: p.Last, service: c.service})
		}
		// A packet of the other protocol to a VIP is for no service, which is not the same as for no VIP.
		for _, proto := range []uint8{protoTCP, protoUDP} {
			if _, ok := byKey[key{c.addr, proto}]; !ok {
				byKey[key{c.addr, proto}] = nil
			}
		}
	}
	size := uint32(2)
	for size < uint32(2*len(byKey)) {
		size *= 2
	}
	t := vipTable{entries: make([]vipEntry, size), mask: size - 1, some: make([]uint64, max(1, size/8))}
	for k, ranges := range byKey {
		word, bit := t.bitOf(k.addr)
		t.some[word] |= bit
		slices.SortFunc(ranges, func(a, b portRange) int { return cmp.Compare(a.first, b.first) })
		e := vipEntry{addr: k.addr, proto: k.proto, first: uint32(len(t.ranges)), count: uint32(len(ranges))}
		if len(ranges) == 0 {
			e.count, e.other = 1, true
		}
		t.ranges = append(t.ranges, ranges...)
		i := vipHash(k.addr, k.proto) & t.mask
		for t.entries[i].count != 0 {
			i = (i + 1) & t.mask
		}
		t.entries[i] = e
	}
	return t
}
