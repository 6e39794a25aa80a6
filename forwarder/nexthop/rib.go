//go:build linux

package nexthop

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"
)

// rib is a copy of the kernel's routes: for each destination all entries, the one that counts first. A full table has a
// million destinations and a few different sets of entries, so a destination holds the number of a set.
type rib struct {
	table  *bart.Table[uint32] // numbers of sets
	sets   []set               // by number; those without uses are free
	index  map[string]uint32   // by key
	free   []uint32
	key    []byte // for building keys in
	frozen bool   // somebody reads table: it is no longer changed, but copied where it changes
	wide   map[netip.Prefix]struct{}
	spare  map[netip.Prefix]struct{}
}

// set is all entries to one destination, in the kernel's order of preference.
type set struct {
	key     string
	entries []entry
	uses    int
}

// blocked is the number of a set that lets nothing pass; it is always there.
const blocked = 0

func newRib() *rib {
	r := &rib{
		table: &bart.Table[uint32]{},
		index: map[string]uint32{},
		wide:  map[netip.Prefix]struct{}{},
		spare: map[netip.Prefix]struct{}{},
	}
	r.acquire([]entry{{table: tableLocal, reject: true}})
	for _, p := range noWay {
		r.edit(p, func([]entry) []entry { return r.sets[blocked].entries })
	}
	return r
}

// acquire returns the number of the set with these entries, which it keeps.
func (r *rib) acquire(entries []entry) uint32 {
	r.key = r.key[:0]
	for i := range entries {
		r.key = entries[i].appendKey(r.key)
	}
	if v, ok := r.index[string(r.key)]; ok {
		r.sets[v].uses++
		return v
	}
	var v uint32
	if n := len(r.free); n > 0 {
		v, r.free = r.free[n-1], r.free[:n-1]
	} else {
		v = uint32(len(r.sets))
		r.sets = append(r.sets, set{})
	}
	r.sets[v] = set{key: string(r.key), entries: entries, uses: 1}
	r.index[r.sets[v].key] = v
	return v
}

func (r *rib) release(v uint32) {
	s := &r.sets[v]
	if s.uses--; s.uses == 0 {
		delete(r.index, s.key)
		*s = set{}
		r.free = append(r.free, v)
	}
}

// appendKey appends what tells e from other entries.
func (e *entry) appendKey(b []byte) []byte {
	kind := e.table << 2
	if e.reject {
		kind |= 1
	}
	if e.host {
		kind |= 2
	}
	b = append(b, kind, byte(len(e.hops)), byte(len(e.hops)>>8))
	b = binary.NativeEndian.AppendUint32(b, e.metric)
	b = binary.NativeEndian.AppendUint32(b, uint32(e.mtu))
	b = appendAddr(b, e.source)
	for _, h := range e.hops {
		b = binary.NativeEndian.AppendUint32(b, uint32(h.link))
		b = binary.NativeEndian.AppendUint32(b, h.weight)
		b = appendAddr(b, h.gateway)
	}
	return b
}

func appendAddr(b []byte, a netip.Addr) []byte {
	b = append(b, byte(a.BitLen()))
	switch {
	case a.Is4():
		v := a.As4()
		b = append(b, v[:]...)
	case a.IsValid():
		v := a.As16()
		b = append(b, v[:]...)
	}
	return b
}

func (e *entry) equal(o *entry) bool {
	return e.compare(o) == 0 && e.reject == o.reject && e.host == o.host && e.mtu == o.mtu && e.source == o.source &&
		slices.Equal(e.hops, o.hops)
}

// edit replaces the entries to dst by what change makes of them. change must not write to what it gets.
func (r *rib) edit(dst netip.Prefix, change func(old []entry) []entry) {
	v, had := r.table.Get(dst)
	var old []entry
	if had {
		old = r.sets[v].entries
	}
	now := change(old)
	switch {
	case len(now) > 0:
		next := r.acquire(now)
		switch {
		case had && next == v: // many notices say nothing new; the table stays the same one
		case r.frozen:
			r.table = r.table.InsertPersist(dst, next)
		default:
			r.table.Insert(dst, next)
		}
	case had && r.frozen:
		r.table = r.table.DeletePersist(dst)
	case had:
		r.table.Delete(dst)
	}
	if had {
		r.release(v)
	}
	mark(r.wide, dst, len(now) > 0 && now[0].table == tableLocal && !dst.IsSingleIP())
	mark(r.spare, dst, len(now) > 0 && now[0].table == tableDefault)
}

func mark(m map[netip.Prefix]struct{}, p netip.Prefix, in bool) {
	if in {
		m[p] = struct{}{}
	} else {
		delete(m, p)
	}
}

// add puts an entry of a dump, which tells them in the kernel's order, behind those that are not worse.
func (r *rib) add(dst netip.Prefix, e entry) {
	r.edit(dst, func(old []entry) []entry { return insert(old, e) })
}

func insert(old []entry, e entry) []entry {
	if len(old) == 0 {
		return []entry{e}
	}
	i := len(old)
	for i > 0 && e.compare(&old[i-1]) < 0 {
		i--
	}
	return slices.Insert(slices.Clone(old), i, e)
}

// compare says which entry the kernel prefers.
func (e *entry) compare(o *entry) int {
	return cmp.Or(cmp.Compare(e.table, o.table), cmp.Compare(e.metric, o.metric))
}

// apply does what a notice says. The notices of the kernel do not tell everything when several entries have one
// destination and metric: sure is false when only a dump can say what is there now.
//
// Notices that come while a dump is under way are applied to it a second time, so they must not do harm then.
func (r *rib) apply(c *change) (sure bool) {
	sure = true
	v6 := c.dst.Addr().Is6()
	r.edit(c.dst, func(old []entry) []entry {
		var same []int // those that are known by the same name as the one of the notice
		for i := range old {
			switch {
			case old[i].compare(&c.entry) != 0:
			case old[i].equal(&c.entry) && c.gone:
				return slices.Delete(slices.Clone(old), i, i+1)
			case old[i].equal(&c.entry):
				return old
			default:
				same = append(same, i)
			}
		}
		switch {
		case len(same) == 0 && c.gone:
			return old
		case len(same) == 0, !v6 && c.flags&unix.NLM_F_APPEND != 0:
			return insert(old, c.entry)
		case len(same) > 1:
			sure = false
			return old
		}
		i, out := same[0], slices.Clone(old)
		switch {
		case c.gone && v6:
			// Next hops of an IPv6 route go singly.
			named := func(h nextHop) bool { return slices.Contains(c.entry.hops, h) }
			left := slices.DeleteFunc(slices.Clone(old[i].hops), named)
			if len(left) == 0 || len(left) == len(old[i].hops) {
				sure = false
				return old
			}
			out[i].hops = left
		case c.flags&unix.NLM_F_REPLACE != 0, c.flags&unix.NLM_F_EXCL != 0 && !v6:
			out[i] = c.entry
		case v6 && !c.gone && subset(old[i].hops, c.entry.hops):
			out[i] = c.entry // and come singly or together, but the notice holds all that are there now
		default:
			sure = false
		}
		return out
	})
	return sure
}

func subset(some, all []nextHop) bool {
	for _, h := range some {
		if !slices.Contains(all, h) {
			return false
		}
	}
	return len(some) > 0
}

// effective is the table that packets go by: the kernel asks its three tables one after the other, and only in the first
// one that has any route to a destination the longest prefix wins.
func (r *rib) effective() *bart.Table[uint32] {
	t := r.table
	for p := range r.wide {
		for q, v := range r.table.Subnets(p) {
			if r.sets[v].entries[0].table != tableLocal {
				t = t.InsertPersist(q, blocked)
			}
		}
	}
	for p := range r.spare {
		for q, v := range t.Supernets(p) {
			if q != p && r.sets[v].entries[0].table != tableDefault {
				t = t.InsertPersist(p, v)
				break
			}
		}
	}
	return t
}
