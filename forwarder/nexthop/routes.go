//go:build linux

package nexthop

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/gaissmai/bart"
)

// Routes is the way to every address, as it was at one moment. It is immutable and may be used from any goroutine.
type Routes struct {
	table  *bart.Table[uint32]
	groups []group // by what the table holds
	ways   []Hop
}

// group is the ways of one route.
type group struct {
	way     int32        // of all packets, unless there are choices; noway: there is none
	choices []choice     // in ascending order of below
	used    *atomic.Bool // set when a neighbour's own route is used; nil for other routes
}

// choice is one of several ways, for the hashes whose upper half is below a bound and not below the one before.
type choice struct {
	below uint64
	way   int32
}

const noway = -1

// Find returns the way to a, as an index into [Routes.Ways]: that of the route with the longest prefix. Where this has
// several next hops, the upper 32 bits of hash choose, in proportion to their weights. ok is false when there is no
// route, or one that is not for forwarding (to an address of this node, broadcast, blackhole, unreachable, prohibit), and
// for multicast and link-local addresses.
//
// a must not be an IPv4 address in IPv6 form, nor have a zone. Find does not allocate.
func (r *Routes) Find(a netip.Addr, hash uint64) (way int, ok bool) {
	v, ok := r.table.Lookup(a)
	if !ok {
		return 0, false
	}
	g := &r.groups[v]
	if g.used != nil && !g.used.Load() { // the line stays shared by the workers: it is written once in resyncEvery
		g.used.Store(true)
	}
	for i := range g.choices {
		if hash>>32 < g.choices[i].below {
			return int(g.choices[i].way), true
		}
	}
	return int(g.way), g.way != noway
}

// Ways returns all ways. A way may be other than Ready:
//   - NoNeighbour with a gateway: it does not answer, or the link is down;
//   - NoNeighbour without one: the destination is on the link, and its Ethernet address is not known; see
//     [Watcher.Resolve];
//   - NoRoute: the route leads over a link that is not Ethernet, or gone.
//
// Source is zero unless the route names a preferred one.
func (r *Routes) Ways() []Hop { return slices.Clone(r.ways) }

// NewRoutes returns a table of the given routes, each with one way: for an engine that has no kernel around it, as on the
// memory NIC.
func NewRoutes(ways map[netip.Prefix]Hop) *Routes {
	r := &Routes{table: new(bart.Table[uint32])}
	for p, h := range ways {
		r.table.Insert(p, uint32(len(r.ways)))
		r.groups = append(r.groups, group{way: int32(len(r.ways))})
		r.ways = append(r.ways, h)
	}
	return r
}

// layer makes Routes of the kernel's routes, links and neighbours.
type layer struct {
	rib   *rib
	of    *bart.Table[uint32]     // rib.table as it was when base was made of it
	base  *bart.Table[uint32]     // what the kernel's routes amount to
	table *bart.Table[uint32]     // that, and neighbours on the links
	hosts map[netip.Addr]*hostWay // neighbours in table
}

// hostWay is a neighbour that has a route of its own, because its address is on the link by the kernel's routes.
type hostWay struct {
	key  neighKey
	set  uint32 // its set in the rib
	used *atomic.Bool
}

func newLayer(r *rib) *layer { return &layer{rib: r, hosts: map[netip.Addr]*hostWay{}} }

// neighbours brings the neighbours' own routes up to date.
func (l *layer) neighbours(neighs map[neighKey]neigh) {
	old := l.hosts
	if l.of != l.rib.table {
		l.rib.frozen = true
		l.of, l.base = l.rib.table, l.rib.effective()
		l.table = l.base
		l.hosts = make(map[netip.Addr]*hostWay, len(old))
		for _, h := range old {
			l.rib.release(h.set)
		}
	}
	for a, h := range l.hosts {
		if neighs[h.key].usable() {
			continue
		}
		l.rib.release(h.set)
		delete(l.hosts, a)
		if v, ok := l.base.Get(hostPrefix(a)); ok {
			l.table = l.table.InsertPersist(hostPrefix(a), v)
		} else {
			l.table = l.table.DeletePersist(hostPrefix(a))
		}
	}
	for k, n := range neighs {
		if !n.usable() || l.hosts[k.addr] != nil || !l.onLink(k) {
			continue
		}
		e := *l.entry(k.addr)
		e.host, e.hops = true, []nextHop{{link: k.link, gateway: k.addr, weight: 1}}
		h := &hostWay{key: k, set: l.rib.acquire([]entry{e}), used: new(atomic.Bool)}
		if was := old[k.addr]; was != nil {
			h.used = was.used
		}
		l.hosts[k.addr] = h
		l.table = l.table.InsertPersist(hostPrefix(k.addr), h.set)
	}
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// entry returns the one that the kernel goes by for a.
func (l *layer) entry(a netip.Addr) *entry {
	v, ok := l.base.Lookup(a)
	if !ok {
		v = blocked
	}
	return &l.rib.sets[v].entries[0]
}

// onLink reports whether the kernel's route to a neighbour's address says that it is on that very link.
func (l *layer) onLink(k neighKey) bool {
	if k.addr.Is4In6() || k.addr.Zone() != "" {
		return false
	}
	e := l.entry(k.addr)
	return !e.reject && len(e.hops) == 1 && e.hops[0].link == k.link && !e.hops[0].gateway.IsValid()
}

// compile makes the Routes of the present state, or returns old if nothing is different.
func (l *layer) compile(links map[int]LinkInfo, neighs map[neighKey]neigh, old *Routes) *Routes {
	l.neighbours(neighs)
	r := &Routes{table: l.table, groups: make([]group, len(l.rib.sets))}
	known := map[route]int32{}
	wayOf := func(e *entry, h *nextHop) int32 {
		rt := route{link: h.link, next: h.gateway, gateway: h.gateway, mtu: e.mtu, source: e.source}
		if e.host {
			rt.gateway = netip.Addr{}
		}
		k, ok := known[rt]
		if !ok {
			k = int32(len(r.ways))
			known[rt] = k
			r.ways = append(r.ways, hop(&rt, links, neighs))
		}
		return k
	}
	for v := range l.rib.sets {
		g := &r.groups[v]
		g.way = noway
		if l.rib.sets[v].uses == 0 || l.rib.sets[v].entries[0].reject {
			continue
		}
		e := &l.rib.sets[v].entries[0]
		hops := slices.Clone(e.hops)
		up := func(h nextHop) bool { return links[h.link].Up }
		if slices.ContainsFunc(hops, up) {
			hops = slices.DeleteFunc(hops, func(h nextHop) bool { return !up(h) })
		}
		if len(hops) == 1 {
			g.way = wayOf(e, &hops[0])
			continue
		}
		var total, sum uint64
		for i := range hops {
			total += uint64(hops[i].weight)
		}
		for i := range hops {
			sum += uint64(hops[i].weight)
			g.choices = append(g.choices, choice{below: sum << 32 / total, way: wayOf(e, &hops[i])})
		}
	}
	for _, h := range l.hosts {
		r.groups[h.set].used = h.used
	}
	if old != nil && old.table == r.table && slices.Equal(old.ways, r.ways) &&
		slices.EqualFunc(old.groups, r.groups, sameGroup) {
		return old
	}
	return r
}

func sameGroup(a, b group) bool {
	return a.way == b.way && a.used == b.used && slices.Equal(a.choices, b.choices)
}

// gateways calls f for every next hop that the routes in use lead to.
func (l *layer) gateways(f func(neighKey)) {
	for i := range l.rib.sets {
		s := &l.rib.sets[i]
		if s.uses == 0 || s.entries[0].reject || s.entries[0].host {
			continue
		}
		for _, h := range s.entries[0].hops {
			if h.gateway.IsValid() {
				f(neighKey{h.link, h.gateway})
			}
		}
	}
}
