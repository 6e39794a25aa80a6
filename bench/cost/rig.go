//go:build linux

package cost

import (
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
	backendCount = 100
	servicePort  = 80
	// A frame of a TCP segment without payload is padded to the least of an Ethernet, without its checksum.
	leastFrame = 60
)

// TCP flags.
const (
	flagSYN = 0x02
	flagACK = 0x10
)

// family is the addresses of one: client i is clients + i, backend i backends + i.
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

// rig is an engine with one service, and a worker on a memory NIC of one queue.
type rig struct {
	family family
	engine *forwarder.Engine
	worker *forwarder.Worker
	nic    *xsk.MemoryNIC
	socket *xsk.Socket
	memory *shm.Memory
	descs  [64]xsk.Desc
	// What clock is made of.
	machine func() int64
	began   int64
	passed  time.Duration
}

// clock is the engine's. It reads the machine's, as the daemon does, but goes on only by what is passed: how many flows have their
// word renewed would depend on how long it takes to count.
func (r *rig) clock() int64 { return min(r.machine(), r.began) + int64(r.passed) }

func newRig(c *Case) (_ *rig, err error) {
	f, ok := families[c.Family]
	if !ok {
		return nil, fmt.Errorf("family %q: expected v4 or v6", c.Family)
	}
	r := &rig{family: f}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	words, err := conntrack.WordsFor(uint64(c.Flows))
	if err != nil {
		return nil, err
	}
	if r.memory, err = shm.NewMemfd("sluice-bench", int(words*8)); err != nil {
		return nil, err
	}
	keys, err := forwarder.DeriveKeys([]byte("benchmark seed 0"))
	if err != nil {
		return nil, err
	}
	clock, err := forwarder.NewClock()
	if err != nil {
		return nil, err
	}
	r.machine, r.began = clock, clock()
	r.engine, err = forwarder.NewEngine(forwarder.EngineConfig{
		Keys: keys, Words: r.memory.Words(), LimitWords: make([]uint64, 1<<16), ProvedWords: make([]uint64, 1<<16),
		Clock: r.clock,
	})
	if err != nil {
		return nil, err
	}
	// The rings of the daemon's sockets.
	if r.nic, err = xsk.NewMemoryNIC(xsk.Options{}, 1); err != nil {
		return nil, err
	}
	umem := r.nic.Umem()
	r.socket = r.nic.Sockets()[0]
	r.worker = r.engine.NewWorker(forwarder.WorkerIO{
		Memory: umem.Memory(), Wait: umem.Wait, Queues: []forwarder.Queue{{Port: r.socket}},
	})
	return r, r.configure(c)
}

// configure gives the engine its service, and the ways to everybody.
func (r *rig) configure(c *Case) error {
	service := forwarder.ServiceSpec{
		Name: "bench", VIP: r.family.vip, Protocol: packet.ProtoTCP, Ports: []forwarder.PortRange{{First: servicePort, Last: servicePort}},
	}
	switch c.Mode {
	case "ipip", "swap":
		service.Mode = forwarder.IPIP
	case "l2":
		service.Mode = forwarder.L2
	case "gue":
		service.Mode = forwarder.GUE
	case "nat":
		service.Mode = forwarder.NAT
	default:
		return fmt.Errorf("mode %q: expected swap, ipip, l2, gue or nat", c.Mode)
	}
	spec := forwarder.Spec{Tunnel: forwarder.Tunnel{Port: 6080}}
	switch c.Mix {
	case "cookie":
		service.Defence = forwarder.DefenceCookie
	case "challenge":
		service.Defence = forwarder.DefenceChallenge
	case "limits":
		spec.Limits.PerSource = forwarder.Rates{Packets: 100_000_000, Burst: time.Second}
	}
	hop := forwarder.Hop{
		OnLink: true, Src: packet.MAC{2, 0, 0, 0, 0, 1}, Dst: packet.MAC{2, 0, 0, 0, 0, 3}, Source: r.family.node, MTU: 1600,
	}
	hops := map[netip.Addr]forwarder.Hop{}
	for i := range backendCount {
		a := nth(r.family.backends, uint32(i))
		service.Backends = append(service.Backends, forwarder.BackendSpec{
			Name: fmt.Sprintf("backend-%d", i), Address: a, Weight: 100, Admit: maglev.MakeAdmit(maglev.Up, maglev.All),
		})
		hops[a] = hop
	}
	r.engine.SetHops(hops)
	way := netip.PrefixFrom(r.family.router, 0)
	r.engine.SetRoutes(nexthop.NewRoutes(map[netip.Prefix]nexthop.Hop{way: {}}), []forwarder.Hop{hop})
	spec.Services = []forwarder.ServiceSpec{service}
	return r.engine.Apply(spec)
}

// frame makes a TCP segment without payload of a flow: to the service, or with reply back to its client. The TCP checksum
// stays wrong: nobody on the way looks at it, and NAT only updates it.
func (r *rig) frame(flow uint32, flags byte, reply bool) []byte {
	src, dst := nth(r.family.clients, flow/16), r.family.vip
	ports := [2]uint16{1024 + uint16(flow%16), servicePort}
	if reply {
		src, dst = nth(r.family.backends, flow%backendCount), src
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

// swapMACs is the least that a forwarder can do on these rings, with one batch.
func (r *rig) swapMACs() {
	memory := r.nic.Umem().Memory()
	n := r.socket.Receive(r.descs[:])
	for i := range r.descs[:n] {
		f := memory[r.descs[i].Addr : r.descs[i].Addr+12]
		a, b := [6]byte(f[:6]), [6]byte(f[6:])
		copy(f, b[:])
		copy(f[6:], a[:])
	}
	r.socket.Transmit(r.descs[:n])
	_ = r.socket.Wake()
}

func (r *rig) close() {
	if r.nic != nil {
		_ = r.nic.Umem().Close()
	}
	if r.memory != nil {
		_ = r.memory.Close()
	}
}
