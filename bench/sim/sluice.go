//go:build linux

package sim

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/maglev"
)

const (
	// burst is how many frames a node gets at a time.
	burst = 512

	tcpPort = 80
	udpPort = 53

	frameLen = 64
	ethLen   = 14
	ipLen    = 20
)

var vip = netip.MustParseAddr("192.0.2.10")

// node is one Sluice node: the product's engine and worker, on a memory NIC.
type node struct {
	keys   forwarder.Keys
	clock  func() int64
	nic    *xsk.MemoryNIC
	engine *forwarder.Engine
	worker *forwarder.Worker
	words  []uint64 // of its flow table
	spec   forwarder.Spec
	// directory is what the words of the table mean, for a process that takes them over.
	directory *forwarder.Directory
	frames    [burst][]byte
	sum       uint32 // of the fixed part of a frame's IP header
	proto     uint8  // of the frames made last
}

// newNode makes a node with a flow table for this many flows. Its first start makes it ready.
func newNode(keys forwarder.Keys, flows int, clock func() int64) (*node, error) {
	words, err := conntrack.WordsFor(uint64(flows))
	if err != nil {
		return nil, err
	}
	n := &node{keys: keys, clock: clock, words: make([]uint64, words)}
	n.nic, err = xsk.NewMemoryNIC(xsk.Options{
		Frames: 4 * burst, FillSize: burst, CompletionSize: burst, RXSize: burst, TXSize: burst,
	}, 1)
	if err != nil {
		return nil, err
	}
	for i := range n.frames {
		n.frames[i] = make([]byte, frameLen)
	}
	return n, nil
}

func (n *node) close() { _ = n.nic.Umem().Close() }

// start begins anew, with an empty flow table or, with keep, that of the process before; and with the spec.
func (n *node) start(spec forwarder.Spec, keep bool) (err error) {
	if !keep {
		clear(n.words)
		n.directory = nil
	}
	n.engine, err = forwarder.NewEngine(forwarder.EngineConfig{
		Keys: n.keys, Words: n.words, Clock: n.clock, Adopt: n.directory, Record: func(d *forwarder.Directory) { n.directory = d },
	})
	if err != nil {
		return err
	}
	umem := n.nic.Umem()
	n.worker = n.engine.NewWorker(forwarder.WorkerIO{
		Memory: umem.Memory(), Wait: umem.Wait, Queues: []forwarder.Queue{{Port: n.nic.Sockets()[0]}},
	})
	hops := make(map[netip.Addr]forwarder.Hop, allBackends)
	for b := range allBackends {
		hops[backendAddr(b)] = forwarder.Hop{
			OnLink: true, MTU: 1500, Source: netip.MustParseAddr("10.0.0.1"),
			Src: packet.MAC{2, 0, 0, 0, 0, 1}, Dst: packet.MAC{2, 0xbb, 0, 0, byte(b >> 8), byte(b)},
		}
	}
	n.engine.SetHops(hops)
	n.spec = spec
	return n.engine.Apply(spec)
}

func backendAddr(b int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(b >> 8), byte(b)}) }

// specOf is the configuration and health of a view. With udp there is a UDP service beside that for TCP.
func specOf(v view, s maglev.Scheduler, udp bool) forwarder.Spec {
	service := forwarder.ServiceSpec{
		Name: "tcp", VIP: vip, Protocol: packet.ProtoTCP, Ports: []forwarder.PortRange{{First: tcpPort, Last: tcpPort}},
		Mode: forwarder.L2, Scheduler: s,
	}
	for i, b := range v {
		if b.configured {
			service.Backends = append(service.Backends, forwarder.BackendSpec{
				Name: backendName(i), Address: backendAddr(i), Weight: b.weight, Admit: maglev.MakeAdmit(b.state, maglev.All),
			})
		}
	}
	services := []forwarder.ServiceSpec{service}
	if udp {
		service.Name, service.Protocol = "udp", packet.ProtoUDP
		service.Ports = []forwarder.PortRange{{First: udpPort, Last: udpPort}}
		services = append(services, service)
	}
	return forwarder.Spec{Services: services}
}

// prepare makes all frames be of one protocol, TCP or UDP, to the node's service for it.
func (n *node) prepare(proto uint8) {
	if n.proto == proto {
		return
	}
	n.proto = proto
	for _, f := range n.frames {
		clear(f)
		copy(f, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x08, 0x00})
		ip := f[ethLen:]
		copy(ip, []byte{0x45, 0, 0, frameLen - ethLen, 0, 0, 0x40, 0, 64, proto})
		to := vip.As4()
		copy(ip[16:], to[:])
		l4 := ip[ipLen:]
		if proto == packet.ProtoUDP {
			binary.BigEndian.PutUint16(l4[2:], udpPort)
			binary.BigEndian.PutUint16(l4[4:], frameLen-ethLen-ipLen)
			continue
		}
		binary.BigEndian.PutUint16(l4[2:], tcpPort)
		l4[12] = 5 << 4
	}
	n.sum = 0
	for k := 0; k < ipLen; k += 2 {
		n.sum += uint32(binary.BigEndian.Uint16(n.frames[0][ethLen+k:]))
	}
}

// put makes frame i one of the flow with this source.
func (n *node) put(i int, src uint32, port uint16, kind packetKind) {
	f := n.frames[i]
	ip := f[ethLen : ethLen+ipLen+20]
	binary.BigEndian.PutUint32(ip[12:], src)
	sum := n.sum + src>>16 + src&0xffff
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum))
	binary.BigEndian.PutUint16(ip[ipLen:], port)
	if n.proto == packet.ProtoTCP {
		ip[ipLen+13] = 0x10 // ACK
		if kind == syn {
			ip[ipLen+13] = 0x02
		}
	}
}

// pass has the worker treat the first count frames, and calls sent, if not nil, with each frame that it sends.
func (n *node) pass(count int, sent func(frame []byte)) error {
	if took := n.nic.DeliverBatch(0, n.frames[:count]); took != count {
		return fmt.Errorf("the memory NIC took %d of %d frames", took, count)
	}
	for n.worker.Poll(0) > 0 {
	}
	n.nic.Collect(0, sent)
	return nil
}

// forward sends one packet of each flow through the node, and writes to got the backends that they reached.
func (n *node) forward(proto uint8, kind packetKind, flows []uint32, got []int16) error {
	n.prepare(proto)
	for len(flows) > 0 {
		count := min(len(flows), burst)
		for i, flow := range flows[:count] {
			src, port := tuple(flow)
			n.put(i, src, port, kind)
			got[i] = noBackend
		}
		// The worker keeps the order of what it does not drop.
		next := 0
		err := n.pass(count, func(f []byte) {
			flow := (binary.BigEndian.Uint32(f[ethLen+12:])-0x0b000000)<<8 + uint32(binary.BigEndian.Uint16(f[ethLen+ipLen:])-1024)
			for next < count && flows[next] != flow {
				next++
			}
			if next < count {
				got[next] = int16(binary.BigEndian.Uint16(f[4:]))
				next++
			}
		})
		if err != nil {
			return err
		}
		flows, got = flows[count:], got[count:]
	}
	return nil
}

// sluiceScheme is the product on every node of a fleet.
type sluiceScheme struct {
	label     string
	scheduler maglev.Scheduler
	nodes     [fleetNodes]*node
}

// newSluice makes Sluice nodes whose service has this scheduler.
func newSluice(label string, scheduler maglev.Scheduler) schemeMaker {
	return func(f *fleet) (_ scheme, err error) {
		s := &sluiceScheme{label: label, scheduler: scheduler}
		for i := range s.nodes {
			if s.nodes[i], err = newNode(f.keys, f.flows, func() int64 { return f.now }); err == nil {
				err = s.restart(i, f.views[i], false)
			}
			if err != nil {
				s.close()
				return nil, err
			}
		}
		return s, nil
	}
}

func (s *sluiceScheme) name() string { return s.label }

func (s *sluiceScheme) forward(node int, kind packetKind, flows []uint32, got []int16) error {
	return s.nodes[node].forward(packet.ProtoTCP, kind, flows, got)
}

func (s *sluiceScheme) configure(node int, v view) error {
	return s.nodes[node].engine.Apply(specOf(v, s.scheduler, false))
}

func (s *sluiceScheme) setState(node int, v view, b int) error {
	if !s.nodes[node].engine.SetAdmit("tcp", backendName(b), maglev.MakeAdmit(v[b].state, maglev.All)) {
		return fmt.Errorf("there is no %s", backendName(b))
	}
	return nil
}

func (s *sluiceScheme) restart(node int, v view, keep bool) error {
	return s.nodes[node].start(specOf(v, s.scheduler, false), keep)
}

func (s *sluiceScheme) sweep() {
	for _, n := range s.nodes {
		n.engine.SweepNow()
	}
}

func (s *sluiceScheme) close() {
	for _, n := range s.nodes {
		if n != nil {
			n.close()
		}
	}
}
