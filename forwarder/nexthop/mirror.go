//go:build linux

package nexthop

import "net/netip"

// mirror is a copy of a kernel table that is kept by notices and now and then compared with a dump. The notices go on
// while the dump is under way, and those are newer than it: what they touched is left as they made it.
type mirror[K comparable, V any] struct {
	m       map[K]V
	touched map[K]struct{} // keys that notices named since the dump began; nil when no dump is under way
}

func newMirror[K comparable, V any]() mirror[K, V] {
	return mirror[K, V]{m: map[K]V{}}
}

// set stores v as told by a notice and returns what was there.
func (t *mirror[K, V]) set(k K, v V) (old V) {
	if t.touched != nil {
		t.touched[k] = struct{}{}
	}
	old = t.m[k]
	t.m[k] = v
	return old
}

// remove takes k away as told by a notice and returns what was there.
func (t *mirror[K, V]) remove(k K) (old V, ok bool) {
	if t.touched != nil {
		t.touched[k] = struct{}{}
	}
	old, ok = t.m[k]
	delete(t.m, k)
	return old, ok
}

// begin is called before the dump is asked for.
func (t *mirror[K, V]) begin() { t.touched = map[K]struct{}{} }

// abandon is called when the dump failed.
func (t *mirror[K, V]) abandon() { t.touched = nil }

// finish takes the dump over, map and all.
func (t *mirror[K, V]) finish(dump map[K]V) {
	for k := range t.touched {
		if v, ok := t.m[k]; ok {
			dump[k] = v
		} else {
			delete(dump, k)
		}
	}
	t.m, t.touched = dump, nil
}

// pending is what the next pass has to ask the kernel. It puts all hops together again in any case.
type pending struct {
	routes   bool                      // every route has to be asked for again
	prefixes map[netip.Prefix]struct{} // routes to these have changed; unless routes is set
	resync   bool                      // notices were lost, or it is time: compare with a dump
}

// maxPrefixes is where comparing every address with every changed prefix costs more than asking for every route.
const maxPrefixes = 64

func newPending() pending { return pending{prefixes: map[netip.Prefix]struct{}{}} }

func (p *pending) prefix(dst netip.Prefix) {
	if p.routes {
		return
	}
	p.prefixes[dst] = struct{}{}
	if len(p.prefixes) > maxPrefixes {
		p.everyRoute()
	}
}

func (p *pending) everyRoute() {
	p.routes = true
	clear(p.prefixes)
}

// routesTaken is called when every address that is concerned has been marked.
func (p *pending) routesTaken() {
	p.routes = false
	clear(p.prefixes)
}

// concerns reports whether the route to a may have changed.
func (p *pending) concerns(a netip.Addr) bool {
	if p.routes {
		return true
	}
	for dst := range p.prefixes {
		if dst.Contains(a) {
			return true
		}
	}
	return false
}
