//go:build linux

// Package rig is an engine with a worker on a memory NIC, as benchmarks want it that look at one part of it: services with backends,
// ways to all of them, and frames of their flows.
//
// A Rig belongs to one goroutine, but for its Engine, and for what package xsk lets others do with a NIC.
package rig

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/nexthop"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/internal/shm"
	"github.com/sluice-lb/sluice/maglev"
)

const (
	// Backends is how many a service has, unless Options says otherwise.
	Backends    = 100
	servicePort = 80
	// A frame of a TCP segment without payload is padded to the least of an Ethernet, without its checksum.
	leastFrame = 60
)

// TCP flags of frames.
const (
	SYN = 0x02
	ACK = 0x10
)

// family is the addresses of one: VIP i is vip + i, client i clients + i, backend i of each service backends + i.
type family struct{ vip, clients, backends, node, router netip.Addr }

var families = map[string]family{
	"v4": {
		vip: netip.MustParseAddr("192.0.2.10"), clients: netip.MustParseAddr("11.0.0.0"), backends: netip.MustParseAddr("10.0.1.0"),
		node: netip.MustParseAddr("10.0.0.1"), router: netip.MustParseAddr("0.0.0.0"),
	},
	"v6": {
		vip: netip.MustParseAddr("2001:db8::10"), clients: netip.MustParseAddr("2001:db8:b::"), backends: netip.MustParseAddr("2001:db8:1::"),
		node: netip.MustParseAddr("2001:db8:0:1::1"), router: netip.MustParseAddr("::"),
	},
}

// nth is the i-th address from a on; the last 32 bits count.
func nth(a netip.Addr, i uint32) netip.Addr {
	b := a.AsSlice()
	last := b[len(b)-4:]
	binary.BigEndian.PutUint32(last, binary.BigEndian.Uint32(last)+i)
	out, _ := netip.AddrFromSlice(b)
	return out
}

// Options say what is set up.
type Options struct {
	Family string // v4 or v6
	Mode   forwarder.Mode
	// Services there are, each with so many backends; 0: one, with Backends. Frames are for the first.
	Services, Backends int
	Flows              int // that the table is made for
	Defence            forwarder.Defence
	Limits             forwarder.Limits
	Clock              func() int64                     // nil: the machine's
	Port               func(*xsk.Socket) forwarder.Port // what the worker has for its queue; nil: the socket
	Wait               func(time.Duration) error        // how the worker waits; nil: for the NIC
}

// Rig is an engine, and a worker on a memory NIC of one queue.
type Rig struct {
	Engine *forwarder.Engine
	Worker *forwarder.Worker
	NIC    *xsk.MemoryNIC
	Socket *xsk.Socket
	Words  []uint64 // of the flow table

	options Options
	family  family
	memory  *shm.Memory
	descs   [64]xsk.Desc
}

// New makes a rig. Its rings are as large as those of the daemon's sockets.
func New(o Options) (_ *Rig, err error) {
	f, ok := families[o.Family]
	if !ok {
		return nil, fmt.Errorf("family %q: expected v4 or v6", o.Family)
	}
	o.Services, o.Backends = cmp.Or(o.Services, 1), cmp.Or(o.Backends, Backends)
	r := &Rig{options: o, family: f}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	words, err := conntrack.WordsFor(uint64(o.Flows))
	if err != nil {
		return nil, err
	}
	if r.memory, err = shm.NewMemfd("sluice-bench", int(words*8)); err != nil {
		return nil, err
	}
	r.Words = r.memory.Words()
	keys, err := forwarder.DeriveKeys([]byte("benchmark seed 0"))
	if err != nil {
		return nil, err
	}
	clock := o.Clock
	if clock == nil {
		if clock, err = forwarder.NewClock(); err != nil {
			return nil, err
		}
	}
	r.Engine, err = forwarder.NewEngine(forwarder.EngineConfig{
		Keys: keys, Words: r.Words, Clock: clock, LimitWords: make([]uint64, 1<<16), ProvedWords: make([]uint64, 1<<16),
	})
	if err != nil {
		return nil, err
	}
	if r.NIC, err = xsk.NewMemoryNIC(xsk.Options{}, 1); err != nil {
		return nil, err
	}
	umem := r.NIC.Umem()
	r.Socket = r.NIC.Sockets()[0]
	var port forwarder.Port = r.Socket
	if o.Port != nil {
		port = o.Port(r.Socket)
	}
	wait := o.Wait
	if wait == nil {
		wait = umem.Wait
	}
	r.Worker = r.Engine.NewWorker(forwarder.WorkerIO{Memory: umem.Memory(), Wait: wait, Queues: []forwarder.Queue{{Port: port}}})
	hop := forwarder.Hop{OnLink: true, Src: packet.MAC{2, 0, 0, 0, 0, 1}, Dst: packet.MAC{2, 0, 0, 0, 0, 3}, Source: f.node, MTU: 1600}
	hops := map[netip.Addr]forwarder.Hop{}
	for i := range o.Backends {
		hops[nth(f.backends, uint32(i))] = hop
	}
	r.Engine.SetHops(hops)
	way := netip.PrefixFrom(f.router, 0)
	r.Engine.SetRoutes(nexthop.NewRoutes(map[netip.Prefix]nexthop.Hop{way: {}}), []forwarder.Hop{hop})
	return r, r.Engine.Apply(r.Spec(100))
}

// Spec is what the engine was given, but for the weight of the first service's first backend.
func (r *Rig) Spec(weight uint16) forwarder.Spec {
	o := &r.options
	spec := forwarder.Spec{Tunnel: forwarder.Tunnel{Port: 6080}, Limits: o.Limits}
	for i := range o.Services {
		s := forwarder.ServiceSpec{
			Name: fmt.Sprintf("service-%d", i), VIP: nth(r.family.vip, uint32(i)), Protocol: packet.ProtoTCP,
			Ports: []forwarder.PortRange{{First: servicePort, Last: servicePort}}, Mode: o.Mode, Defence: o.Defence,
		}
		for k := range o.Backends {
			s.Backends = append(s.Backends, forwarder.BackendSpec{
				Name: fmt.Sprintf("backend-%d", k), Address: nth(r.family.backends, uint32(k)), Weight: 100,
				Admit: maglev.MakeAdmit(maglev.Up, maglev.All),
			})
		}
		spec.Services = append(spec.Services, s)
	}
	spec.Services[0].Backends[0].Weight = weight
	return spec
}

// Frame makes a TCP segment without payload of a flow: to the first service, or with reply back to its client. The TCP checksum
// stays wrong: nobody on the way looks at it, and NAT only updates it.
func (r *Rig) Frame(flow uint32, flags byte, reply bool) []byte {
	src, dst := nth(r.family.clients, flow/16), r.family.vip
	ports := [2]uint16{1024 + uint16(flow%16), servicePort}
	if reply {
		src, dst = nth(r.family.backends, flow%uint32(r.options.Backends)), src
		ports[0], ports[1] = ports[1], ports[0]
	}
	f := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00}
	if src.Is4() {
		ip := []byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, packet.ProtoTCP, 0, 0}
		ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
		sum := uint32(0)
		for k := 0; k < len(ip); k += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[k:]))
		}
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum))
		f = append(f, ip...)
	} else {
		f[12], f[13] = 0x86, 0xdd
		f = append(f, 0x60, 0, 0, 0, 0, 20, packet.ProtoTCP, 64)
		f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	}
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, ports[0])
	binary.BigEndian.PutUint16(tcp[2:], ports[1])
	tcp[12], tcp[13] = 5<<4, flags
	f = append(f, tcp...)
	return append(f, make([]byte, max(0, leastFrame-len(f)))...)
}

// Swap is the least that a forwarder can do on these rings, with one batch.
func (r *Rig) Swap() {
	memory := r.NIC.Umem().Memory()
	n := r.Socket.Receive(r.descs[:])
	for i := range r.descs[:n] {
		f := memory[r.descs[i].Addr : r.descs[i].Addr+12]
		a, b := [6]byte(f[:6]), [6]byte(f[6:])
		copy(f, b[:])
		copy(f[6:], a[:])
	}
	r.Socket.Transmit(r.descs[:n])
	_ = r.Socket.Wake()
}

// Close gives the memory back.
func (r *Rig) Close() {
	if r.NIC != nil {
		_ = r.NIC.Umem().Close()
	}
	if r.memory != nil {
		_ = r.memory.Close()
	}
}
