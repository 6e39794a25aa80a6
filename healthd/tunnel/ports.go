//go:build linux

package tunnel

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// firstPort is the first local port of connections, and 65535 the last one. Linux gives its own connections those below
	// (net.ipv4.ip_local_port_range); should some of them be above, no harm is done: they have other remote addresses.
	firstPort = 61000
	portCount = 1<<16 - firstPort

	// portRest is how long a port is not used again after its connection: longer than a packet of that is on its way.
	portRest = time.Second
)

// ports are the local ports of one address family. Flows may be looked up at any time.
type ports struct {
	mu   sync.Mutex
	free []freePort // a ring: the longest free one is at next
	next int
	left int // how many are free

	// flows has what each port was last taken for, also after its connection: what still comes for that is answered by a
	// reset, on the same way.
	flows [portCount]atomic.Pointer[flow]
}

type freePort struct {
	port  uint16
	since time.Time // zero: it was not used yet
}

// newPorts begins anywhere, so that a process does not take those first that its predecessor took last.
func newPorts() *ports {
	p := &ports{free: make([]freePort, portCount), left: portCount}
	first := rand.IntN(portCount)
	for i := range p.free {
		p.free[i].port = uint16(firstPort + (first+i)%portCount)
	}
	return p
}

// take gives out the port that has been free for the longest time. It fails with EADDRNOTAVAIL, since that is a want of this
// node's and says nothing about a backend.
func (p *ports) take(now time.Time, f *flow) (uint16, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	oldest := &p.free[p.next]
	if p.left == 0 || now.Sub(oldest.since) < portRest {
		return 0, fmt.Errorf("all %d local ports are in use, or were within %v; probe less often: %w", portCount, portRest, syscall.EADDRNOTAVAIL)
	}
	p.next = (p.next + 1) % portCount
	p.left--
	p.flows[oldest.port-firstPort].Store(f)
	return oldest.port, nil
}

// put takes a port back.
func (p *ports) put(now time.Time, port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free[(p.next+p.left)%portCount] = freePort{port, now}
	p.left++
}

// flow returns what a port was last taken for; nil: nothing, or it is not one of ours.
func (p *ports) flow(port uint16) *flow {
	if port < firstPort {
		return nil
	}
	return p.flows[port-firstPort].Load()
}
