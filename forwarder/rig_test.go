package forwarder

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/maglev"
)

// testRig is an engine with one worker on a memory NIC of one queue, and a clock that stands still until it is moved.
type testRig struct {
	t      testing.TB
	engine *Engine
	worker *Worker
	nic    *xsk.MemoryNIC
	now    atomic.Int64
	words  []uint64
}

var (
	nodeMAC = packet.MAC{2, 0, 0, 0, 0, 1}
	peerMAC = packet.MAC{2, 0, 0, 0, 0, 2}
	source4 = netip.MustParseAddr("10.0.0.1")
	source6 = netip.MustParseAddr("2001:db8:1::1")
	vip4    = netip.MustParseAddr("192.0.2.10")
	vip6    = netip.MustParseAddr("2001:db8::10")
	all     = maglev.MakeAdmit(maglev.Up, maglev.All)
)

func newTestRig(t testing.TB, flows uint64) *testRig {
	t.Helper()
	keys, err := DeriveKeys([]byte("a seed for tests"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := conntrack.WordsFor(flows)
	if err != nil {
		t.Fatal(err)
	}
	r := &testRig{t: t, words: make([]uint64, n)}
	r.now.Store(int64(time.Hour))
	if r.engine, err = NewEngine(EngineConfig{
		Keys: keys, Words: r.words, Clock: r.now.Load, LimitWords: make([]uint64, 1<<12), ProvedWords: make([]uint64, 1<<12),
		Wall: func() int64 { return r.now.Load() / 1e9 },
	}); err != nil {
		t.Fatal(err)
	}
	if r.nic, err = xsk.NewMemoryNIC(xsk.Options{Audit: true}, 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.worker.giveUp()
		if at, err := r.nic.Umem().Audit(); err != nil || at.Worker != 0 {
			t.Errorf("frames: %+v, %v", at, err)
		}
		r.nic.Umem().Close()
	})
	r.worker = r.engine.NewWorker(r.io())
	return r
}

func (r *testRig) io() WorkerIO {
	u := r.nic.Umem()
	return WorkerIO{Memory: u.Memory(), Wait: u.Wait, Queues: []Queue{{Port: r.nic.Sockets()[0]}}}
}

// apply applies a spec, with all backends reachable.
func (r *testRig) apply(services ...ServiceSpec) {
	r.t.Helper()
	hops := map[netip.Addr]Hop{}
	for _, s := range services {
		for _, b := range s.Backends {
			hops[b.Address] = hopTo(b.Address)
		}
	}
	for _, a := range r.engine.Addresses() {
		hops[a] = hopTo(a)
	}
	r.engine.SetHops(hops)
	if err := r.engine.Apply(Spec{Services: services, Tunnel: Tunnel{Port: 6080}}); err != nil {
		r.t.Fatal(err)
	}
}

func hopTo(a netip.Addr) Hop {
	h := Hop{OnLink: true, Src: nodeMAC, Dst: macOf(a), Source: source4, MTU: 1600}
	if a.Is6() {
		h.Source = source6
	}
	return h
}

// macOf makes a MAC from an address, so that a frame tells which backend it goes to.
func macOf(a netip.Addr) packet.MAC {
	b := a.AsSlice()
	return packet.MAC{2, 0xbb, b[len(b)-4], b[len(b)-3], b[len(b)-2], b[len(b)-1]}
}

// pass delivers frames, has the worker treat them, and returns what it sent.
func (r *testRig) pass(frames ...[]byte) (sent [][]byte) {
	r.t.Helper()
	for len(frames) > 0 {
		n := min(len(frames), 512)
		if got := r.nic.DeliverBatch(0, frames[:n]); got != n {
			r.t.Fatalf("the memory NIC took %d of %d frames", got, n)
		}
		frames = frames[n:]
		for r.worker.turn() > 0 {
			r.nic.Collect(0, func(f []byte) { sent = append(sent, append([]byte(nil), f...)) })
		}
	}
	r.checkBooks()
	return sent
}

// target returns the backend that a packet of the flow is sent to, or the zero address if it is dropped.
func (r *testRig) target(frame []byte) netip.Addr {
	r.t.Helper()
	sent := r.pass(frame)
	if len(sent) == 0 {
		return netip.Addr{}
	}
	for _, a := range r.engine.Addresses() {
		if m := macOf(a); [6]byte(sent[0][:6]) == m {
			return a
		}
	}
	r.t.Fatalf("the frame was sent to the unknown MAC %x", sent[0][:6])
	return netip.Addr{}
}

// checkBooks checks that every frame is accounted for.
func (r *testRig) checkBooks() {
	r.t.Helper()
	r.worker.count.publish(r.now.Load())
	c := r.worker.count.readTotals()
	sum := c.forwarded + c.answered + c.held
	for _, n := range c.reasons {
		sum += n
	}
	if c.received != sum {
		r.t.Fatalf("books: %d received, but %d forwarded and dropped: %+v", c.received, sum, c)
	}
}

func (r *testRig) reason(x packet.Reason) uint64 { return r.worker.count.readTotals().reasons[x] }

func (r *testRig) advance(d time.Duration) { r.now.Add(int64(d)) }

// word returns the word of a frame's flow.
func (r *testRig) word(frame []byte) conntrack.Word {
	var m packet.Meta
	packet.Parse(frame, &r.engine.keys.Flow, &m)
	_, w := r.engine.table.Lookup(m.Hash)
	return w
}

// web returns a TCP service on port 80 with n backends 10.1.0.1 ….
func web(mode Mode, n int) ServiceSpec {
	s := ServiceSpec{Name: "web", VIP: vip4, Protocol: protoTCP, Ports: []PortRange{{80, 80}}, Mode: mode}
	for i := range n {
		s.Backends = append(s.Backends, BackendSpec{Name: fmt.Sprintf("web-%d", i+1), Address: backend4(i + 1), Weight: 100, Admit: all})
	}
	return s
}

func backend4(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }

// flow describes a packet of a test.
type flow struct {
	src, dst     netip.Addr
	sport, dport uint16
	udp          bool
	flags        string // of S A F R
	payload      int    // bytes
}

// client returns a TCP packet of client number i to port 80 of vip4.
func client(i int, flags string) flow {
	return flow{src: netip.AddrFrom4([4]byte{198, 51, byte(100 + i>>24), byte(i >> 16)}), dst: vip4, sport: uint16(i), dport: 80, flags: flags}
}

// frame builds the packet with gopacket.
func (f flow) frame(t testing.TB) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: peerMAC[:], DstMAC: nodeMAC[:], EthernetType: layers.EthernetTypeIPv4}
	proto := layers.IPProtocolTCP
	if f.udp {
		proto = layers.IPProtocolUDP
	}
	var network interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	}
	if f.dst.Is4() {
		network = &layers.IPv4{Version: 4, TTL: 60, Protocol: proto, SrcIP: net.IP(f.src.AsSlice()), DstIP: net.IP(f.dst.AsSlice())}
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		network = &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: proto, SrcIP: net.IP(f.src.AsSlice()), DstIP: net.IP(f.dst.AsSlice())}
	}
	var transport gopacket.SerializableLayer
	if f.udp {
		l := &layers.UDP{SrcPort: layers.UDPPort(f.sport), DstPort: layers.UDPPort(f.dport)}
		_ = l.SetNetworkLayerForChecksum(network)
		transport = l
	} else {
		l := &layers.TCP{SrcPort: layers.TCPPort(f.sport), DstPort: layers.TCPPort(f.dport), Window: 1000}
		for _, c := range f.flags {
			switch c {
			case 'S':
				l.SYN = true
			case 'A':
				l.ACK = true
			case 'F':
				l.FIN = true
			case 'R':
				l.RST = true
			}
		}
		_ = l.SetNetworkLayerForChecksum(network)
		transport = l
	}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		eth, network, transport, gopacket.Payload(make([]byte, f.payload)))
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sweep makes one full round over the table.
func (r *testRig) sweep() {
	r.worker.turn() // acknowledges the snapshot
	r.engine.SweepNow()
}
