//go:build linux

package sim

import (
	"fmt"
	"sync/atomic"

	"github.com/sluice-lb/sluice/maglev"
)

// scheme is a way of choosing backends, on all nodes of a fleet. Its methods are called by the fleet's goroutine.
type scheme interface {
	name() string
	// forward has a node forward one packet of each of the flows, and writes to got the number of the backend that each
	// reached, or noBackend.
	forward(node int, kind packetKind, flows []uint32, got []int16) error
	configure(node int, v view) error             // the node's configuration is now that of v
	setState(node int, v view, backend int) error // the node's view of a backend is now that of v
	restart(node int, v view, keep bool) error    // the node forgets everything but v and, with keep, its table of flows
	sweep()                                       // the time for it has come; see sweepEvery
	close()
}

type schemeMaker func(f *fleet) (scheme, error)

// peers are the schemes that Sluice is compared with.
var peers = []schemeMaker{newMaglev, newMaglevLRU, newMod}

// stateless is what the peers have in common: each node has a table of the backends that are configured and up, and no memory
// of another. All of them rebuild it for health and for draining, as they have no admit words.
type stateless struct {
	f *fleet
}

func (*stateless) sweep() {}
func (*stateless) close() {}

// listed are the weights of the backends that a peer's table is made of; 0 is one that is not in it.
func listed(v view) (weights [allBackends]uint16) {
	for i, b := range v {
		if b.configured && b.state == maglev.Up {
			weights[i] = b.weight
		}
	}
	return weights
}

// maglevPeer is plain Maglev: every packet goes by the present lookup table of its node. The table is the product's own, built
// of the live backends alone.
type maglevPeer struct {
	stateless
	pools map[[allBackends]uint16]*maglev.Pool
	nodes [fleetNodes]*maglev.Pool
	slots maglev.Slots // all up: who is not does not get into the table
}

func newMaglev(f *fleet) (scheme, error) {
	p := new(maglevPeer)
	return p, p.init(f)
}

func (p *maglevPeer) init(f *fleet) error {
	p.f, p.pools = f, map[[allBackends]uint16]*maglev.Pool{}
	p.slots.Admit = make([]atomic.Uint32, allBackends)
	p.slots.Flows = make([]atomic.Int32, allBackends)
	for i := range p.slots.Admit {
		p.slots.Admit[i].Store(uint32(maglev.MakeAdmit(maglev.Up, maglev.All)))
	}
	for n, v := range f.views {
		if err := p.configure(n, v); err != nil {
			return err
		}
	}
	return nil
}

func (*maglevPeer) name() string { return "maglev" }

func (p *maglevPeer) configure(node int, v view) error {
	weights := listed(v)
	pool := p.pools[weights]
	if pool == nil {
		var backends []maglev.Backend
		var slots []uint32
		for i, w := range weights {
			if w > 0 {
				backends = append(backends, maglev.Backend{Name: backendName(i), Weight: w})
				slots = append(slots, uint32(i)) // names are in the order of numbers
			}
		}
		table, err := maglev.Build(backends, maglev.DefaultSize)
		if err != nil {
			return err
		}
		pool = maglev.NewPool(table, slots, maglev.Maglev, 1)
		p.pools[weights] = pool
	}
	p.nodes[node] = pool
	return nil
}

func (p *maglevPeer) setState(node int, v view, _ int) error { return p.configure(node, v) }
func (p *maglevPeer) restart(node int, v view, _ bool) error { return p.configure(node, v) }

func (p *maglevPeer) forward(node int, _ packetKind, flows []uint32, got []int16) error {
	for i, flow := range flows {
		got[i] = p.choose(node, flow)
	}
	return nil
}

func (p *maglevPeer) choose(node int, flow uint32) int16 {
	slot, ok := p.nodes[node].Existing(p.f.keys.Mix, p.f.hashes[flow], &p.slots)
	if !ok {
		return noBackend
	}
	return int16(slot)
}

// lruPeer is Maglev with a table of flows on each node, as in Katran (facebookincubator/katran,
// katran/lib/bpf/balancer_kern.c, process_packet and get_packet_dst): a SYN is not looked up; it goes by the lookup table and
// writes the flow's entry. Any other packet goes by the entry, whatever has become of its backend; without one it goes by the
// lookup table and writes an entry. The lookup table holds the live backends: health changes it from outside.
//
// Left out, all of it in Katran's favour: the LRU map evicts nothing here; it is one for all cores, not one for each; entries are
// written at any rate of new flows (there up to 125,000 a second and core). Left out too is what is off by default and needs
// help from elsewhere: the global LRU that other nodes fill, and server ids in TCP options or QUIC.
type lruPeer struct {
	maglevPeer
	entries [fleetNodes][]int16 // by flow: backend + 1; 0 is no entry
}

func newMaglevLRU(f *fleet) (scheme, error) {
	p := new(lruPeer)
	for n := range p.entries {
		p.entries[n] = make([]int16, f.flows)
	}
	return p, p.init(f)
}

func (*lruPeer) name() string { return "maglev-lru" }

// A process of Katran that ends can leave its maps pinned, and the next one take them over.
func (p *lruPeer) restart(node int, v view, keep bool) error {
	if !keep {
		clear(p.entries[node])
	}
	return p.configure(node, v)
}

func (p *lruPeer) forward(node int, kind packetKind, flows []uint32, got []int16) error {
	entries := p.entries[node]
	for i, flow := range flows {
		if e := entries[flow]; e != 0 && kind != syn {
			got[i] = e - 1
			continue
		}
		got[i] = p.choose(node, flow)
		entries[flow] = got[i] + 1
	}
	return nil
}

// modPeer is hash mod N over the live backends in the order of their names, where a backend of k times the weight is listed k
// times.
type modPeer struct {
	stateless
	nodes [fleetNodes][]int16
}

func newMod(f *fleet) (scheme, error) {
	p := &modPeer{stateless: stateless{f: f}}
	for n, v := range f.views {
		_ = p.configure(n, v)
	}
	return p, nil
}

func (*modPeer) name() string { return "mod" }

func (p *modPeer) configure(node int, v view) error {
	weights := listed(v)
	divisor := 0
	for _, w := range weights {
		divisor = gcd(int(w), divisor)
	}
	var list []int16
	for i, w := range weights {
		for range int(w) / max(divisor, 1) {
			list = append(list, int16(i))
		}
	}
	p.nodes[node] = list
	return nil
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (p *modPeer) setState(node int, v view, _ int) error { return p.configure(node, v) }
func (p *modPeer) restart(node int, v view, _ bool) error { return p.configure(node, v) }

func (p *modPeer) forward(node int, _ packetKind, flows []uint32, got []int16) error {
	list := p.nodes[node]
	for i, flow := range flows {
		got[i] = noBackend
		if len(list) > 0 {
			got[i] = list[p.f.hashes[flow]%uint64(len(list))]
		}
	}
	return nil
}

func backendName(b int) string { return fmt.Sprintf("backend-%04d", b) }
