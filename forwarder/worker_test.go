package forwarder

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/nexthop"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/maglev"
)

// A packet's target costs one cache line.
func TestTargetSize(t *testing.T) {
	if s := reflect.TypeFor[target]().Size(); s != 64 {
		t.Errorf("a target has %d bytes, not 64", s)
	}
}

// Every reason that a worker gives is given for what its sentence says, and the packet is counted once.
func TestReasons(t *testing.T) {
	good := client(1, "S")
	otherVIP := netip.MustParseAddr("192.0.2.99")
	with := func(change func(*flow)) []byte { f := good; change(&f); return f.frame(t) }
	edit := func(change func([]byte)) []byte { f := good.frame(t); change(f); return f }
	for _, c := range []struct {
		want  packet.Reason
		frame []byte
		setup func(*testRig)
	}{
		{want: packet.None, frame: good.frame(t)},
		{want: packet.Truncated, frame: good.frame(t)[:30]},
		{want: packet.NotIP, frame: edit(func(b []byte) { b[12], b[13] = 0x08, 0x06 })},
		{want: packet.BadIPHeader, frame: edit(func(b []byte) { b[14] = 0x65 })},
		{want: packet.BadIHL, frame: edit(func(b []byte) { b[14] = 0x44 })},
		{want: packet.BadChecksum, frame: edit(func(b []byte) { b[24]++ })},
		{want: packet.NotVIP, frame: with(func(f *flow) { f.dst = netip.MustParseAddr("192.0.2.11") })},
		{want: packet.Land, frame: with(func(f *flow) { f.src = f.dst })},
		{want: packet.SourceVIP, frame: with(func(f *flow) { f.src = otherVIP }), setup: func(r *testRig) {
			other := web(L2, 1)
			other.Name, other.VIP = "other", otherVIP
			r.apply(web(L2, 3), other)
		}},
		{want: packet.NoService, frame: with(func(f *flow) { f.dport = 81 })},
		{want: packet.NoService, frame: with(func(f *flow) { f.udp = true })},
		{want: packet.NoBackend, frame: good.frame(t), setup: func(r *testRig) {
			for i := range 3 {
				r.engine.SetAdmit("web", fmt.Sprintf("web-%d", i+1), maglev.MakeAdmit(maglev.Draining, 0))
			}
		}},
		{want: packet.NoRoute, frame: good.frame(t), setup: func(r *testRig) { r.engine.SetHops(nil) }},
		{want: packet.NoRoute, frame: good.frame(t), setup: func(r *testRig) {
			r.changeHops(func(h *Hop) { h.OnLink = false }) // L2 behind a gateway
		}},
		{want: packet.NoNeighbour, frame: good.frame(t), setup: func(r *testRig) {
			r.changeHops(func(h *Hop) { h.Problem = packet.NoNeighbour })
		}},
		{want: packet.EgressDown, frame: good.frame(t), setup: func(r *testRig) {
			r.changeHops(func(h *Hop) { h.Egress = 3 }) // an interface where this worker has no queue
		}},
		{want: packet.TooBig, frame: with(func(f *flow) { f.payload = 1000 }), setup: func(r *testRig) {
			r.changeHops(func(h *Hop) { h.MTU = 1000 })
		}},
	} {
		t.Run(c.want.String(), func(t *testing.T) {
			r := newTestRig(t, 1000)
			r.apply(web(L2, 3))
			if c.setup != nil {
				c.setup(r)
			}
			sent := r.pass(c.frame)
			if c.want == packet.None {
				if len(sent) != 1 {
					t.Fatal("it was not forwarded")
				}
				return
			}
			if len(sent) != 0 || r.reason(c.want) != 1 {
				t.Fatalf("%d frames sent; counted: %v", len(sent), r.worker.count.readTotals().reasons)
			}
			st := r.engine.Stats()
			if of := st.Services[0].Dropped[c.want]; (of == 1) != (c.want >= packet.NoBackend) {
				t.Fatalf("the service counted it %d times", of)
			}
		})
	}
}

// changeHops changes the way to every backend of the service web.
func (r *testRig) changeHops(change func(*Hop)) {
	hops := map[netip.Addr]Hop{}
	for _, a := range r.engine.Addresses() {
		h := hopTo(a)
		change(&h)
		hops[a] = h
	}
	r.engine.SetHops(hops)
}

// What goes in comes out, once, with the right outer header, for every mode and pair of families.
func TestForward(t *testing.T) {
	backend := map[bool]netip.Addr{false: backend4(1), true: netip.MustParseAddr("2001:db8:1::b")}
	for _, c := range []struct {
		mode           Mode
		inner6, outer6 bool
	}{{L2, false, false}, {L2, true, true}, {IPIP, false, false}, {IPIP, false, true}, {IPIP, true, false}, {IPIP, true, true},
		{GUE, false, false}, {GUE, false, true}, {GUE, true, false}, {GUE, true, true}} {
		t.Run(fmt.Sprintf("%v inner6=%v outer6=%v", c.mode, c.inner6, c.outer6), func(t *testing.T) {
			r := newTestRig(t, 1000)
			f := client(1, "A")
			f.payload = 700
			if c.inner6 {
				f.src, f.dst = netip.MustParseAddr("2001:db8:5::7"), vip6
			}
			r.apply(ServiceSpec{Name: "web", VIP: f.dst, Protocol: protoTCP, Ports: []PortRange{{80, 80}}, Mode: c.mode,
				Backends: []BackendSpec{{"b", backend[c.outer6], 0, 100, all}}})
			in := f.frame(t)
			sent := r.pass(append(bytes.Clone(in), 0, 0, 0)) // with padding, which must go
			if len(sent) != 1 {
				t.Fatalf("%d frames sent: %v", len(sent), r.worker.count.readTotals().reasons)
			}
			p := gopacket.NewPacket(sent[0], layers.LayerTypeEthernet, gopacket.Default)
			if p.ErrorLayer() != nil {
				t.Fatal(p.ErrorLayer().Error())
			}
			eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			if dst := macOf(backend[c.outer6]); !bytes.Equal(eth.DstMAC, dst[:]) || !bytes.Equal(eth.SrcMAC, nodeMAC[:]) {
				t.Fatalf("MACs: %v", eth)
			}
			if !bytes.HasSuffix(sent[0], in[14:]) {
				t.Fatal("the inner packet was changed")
			}
			outer := len(sent[0]) - len(in)
			want := map[Mode]int{IPIP: 20, GUE: 28}[c.mode]
			if c.outer6 && c.mode != L2 {
				want += 20
			}
			if outer != want {
				t.Fatalf("%d bytes were added", outer)
			}
			if st := r.engine.Stats().Services[0].Backends[0].Forwarded; st.Packets != 1 || st.Bytes != uint64(len(in)-14) {
				t.Fatalf("counted %+v", st)
			}
		})
	}
}

// Forwarding allocates nothing: neither for known flows, nor for new ones, nor for what is dropped.
func TestNoAllocations(t *testing.T) {
	r := newTestRig(t, 100_000)
	r.apply(web(IPIP, 10))
	var frames [][]byte
	for i := range 16 {
		frames = append(frames, client(i, "S").frame(t), client(i, "A").frame(t), client(i, "F").frame(t), client(i, "A").frame(t)[:40])
	}
	fresh := 0
	allocs := testing.AllocsPerRun(200, func() {
		for _, f := range frames { // other flows each time
			fresh++
			f[29], f[28] = byte(fresh), byte(fresh>>8)
		}
		r.nic.DeliverBatch(0, frames)
		if r.worker.turn() == 0 {
			t.Fatal("nothing was received")
		}
		r.nic.Collect(0, nil)
	})
	if allocs != 0 {
		t.Fatalf("%v allocations a batch of %d packets", allocs, len(frames))
	}
	r.checkBooks()
}

// A transmit ring that is full costs the packets that find no room, under tx_full, and nothing else; when it drains,
// forwarding goes on.
func TestFullRing(t *testing.T) {
	r := newTestRig(t, 10_000)
	r.apply(web(IPIP, 3))
	r.nic.Inject(0, xsk.Faults{TXStuck: true})
	frame := client(1, "A").frame(t)
	for range 50 {
		for range 64 {
			r.nic.Deliver(0, frame)
		}
		r.worker.turn()
	}
	r.checkBooks()
	full := r.reason(packet.TxFull)
	if full == 0 || r.worker.count.readTotals().forwarded+full != 50*64 {
		t.Fatalf("tx_full: %d, forwarded: %d", full, r.worker.count.readTotals().forwarded)
	}
	r.nic.Inject(0, xsk.Faults{})
	r.nic.Collect(0, nil)
	for range 100 {
		if len(r.pass(frame)) != 1 {
			t.Fatal("it was not forwarded after the ring drained")
		}
	}
	if r.reason(packet.TxFull) != full {
		t.Fatal("more was dropped after the ring drained")
	}
}

// A panic costs the batch under way, under internal, and no frame; the worker goes on. Three within a minute end it.
func TestPanic(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 3))
	var panics atomic.Int32 // to come, each in the middle of a batch
	r.engine.clock = func() int64 {
		if r.worker.received > 0 && panics.Add(-1) >= 0 {
			panic("provoked by the test")
		}
		return r.now.Load()
	}
	var stop atomic.Bool
	ended := make(chan error)
	go func() { ended <- r.worker.Run(&stop, func(error) { r.advance(time.Second) }) }()
	frame := client(1, "A").frame(t)
	batch := func(panic int32) {
		received := r.engine.Stats().Workers[0].Received
		panics.Store(panic)
		r.nic.DeliverBatch(0, [][]byte{frame, frame, frame, frame})
		for deadline := time.Now().Add(5 * time.Second); r.engine.Stats().Workers[0].Received < received+4; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the batch was not treated: %+v", r.engine.Stats().Workers[0])
			}
			r.nic.Collect(0, nil)
		}
	}
	batch(0)
	batch(1)
	batch(0)
	batch(1)
	batch(0)
	w := r.engine.Stats().Workers[0]
	if w.Restarts != 2 || w.Dropped[packet.Internal]+w.Forwarded != w.Received || w.Dropped[packet.Internal] == 0 || w.Forwarded < 12 {
		t.Fatalf("after two panics: %+v", w)
	}
	panics.Store(1)
	r.nic.Deliver(0, frame)
	select {
	case err := <-ended:
		if err == nil {
			t.Fatal("the worker ended without an error")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the worker goes on after three panics within a minute")
	}
	r.nic.Collect(0, nil)
	r.worker.turn() // takes the completions back
}

// Snapshots, admit words, hops and counters change while workers forward; under -race this shows that nothing is shared
// that must not be, and the books balance in the end.
func TestConcurrentChanges(t *testing.T) {
	r := newTestRig(t, 20_000)
	second, err := xsk.NewMemoryNIC(xsk.Options{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Umem().Close()
	io := WorkerIO{Memory: second.Umem().Memory(), Wait: second.Umem().Wait,
		Queues: []Queue{{Port: second.Sockets()[0]}}}
	other := r.engine.NewWorker(io)
	r.apply(web(IPIP, 5))
	var stop atomic.Bool
	var running sync.WaitGroup
	for _, w := range []*Worker{r.worker, other} {
		running.Go(func() {
			if err := w.Run(&stop, func(err error) { t.Error(err) }); err != nil {
				t.Error(err)
			}
		})
	}
	var frames [][]byte
	for i := range 256 {
		frames = append(frames, client(i, "S").frame(t), client(i, "A").frame(t))
	}
	until := time.Now().Add(time.Second)
	var traffic, control sync.WaitGroup
	for _, n := range []*xsk.MemoryNIC{r.nic, second} {
		traffic.Go(func() {
			for time.Now().Before(until) {
				n.DeliverBatch(0, frames)
				n.Collect(0, nil)
				time.Sleep(time.Millisecond)
			}
		})
	}
	control.Go(func() {
		for i := 0; time.Now().Before(until); i++ {
			if err := r.engine.Apply(Spec{Services: []ServiceSpec{web(IPIP, 3+i%4)}}); err != nil {
				t.Error(err)
			}
			r.engine.SetAdmit("web", "web-1", maglev.MakeAdmit(maglev.AdmitState(i%3), maglev.All))
			r.engine.SetHops(map[netip.Addr]Hop{backend4(1): hopTo(backend4(1)), backend4(2): hopTo(backend4(2))})
			r.advance(time.Second)
		}
	})
	control.Go(func() {
		for time.Now().Before(until) {
			r.engine.Stats()
			round := r.engine.beginRound()
			for line := 0; ; {
				if line = r.engine.sweepStep(round, line); line == 0 {
					break
				}
			}
			r.engine.endRound(round)
		}
	})
	traffic.Wait()
	control.Wait()
	stop.Store(true)
	running.Wait()
	for _, w := range r.engine.Stats().Workers {
		sum := w.Forwarded
		for _, n := range w.Dropped {
			sum += n
		}
		if w.Received == 0 || w.Received != sum {
			t.Errorf("worker %d: %+v", w.ID, w)
		}
	}
}

// Random frames, and mutations of good ones, never make a worker panic, and are all accounted for.
func FuzzWorker(f *testing.F) {
	for _, c := range []flow{client(1, "S"), client(2, "A"), {src: source6, dst: vip6, sport: 9, dport: 53, udp: true, payload: 20},
		{src: source4, dst: natVIP, sport: 7, dport: 80, flags: "S"}, {src: backend4(9), dst: source4, sport: 8080, dport: 7, flags: "SA"}} {
		f.Add(c.frame(f))
	}
	for _, piece := range datagram(f, 1, 2, 3) {
		f.Add(piece)
	}
	f.Add([]byte{})
	r := newTestRig(f, 1000)
	any6 := ServiceSpec{Name: "any6", VIP: vip6, Protocol: protoUDP, Ports: []PortRange{{0, 65535}}, Mode: IPIP,
		Backends: []BackendSpec{{"d", netip.MustParseAddr("2001:db8:9::1"), 0, 100, all}}}
	translated := ServiceSpec{Name: "nat", VIP: natVIP, Protocol: protoTCP, Ports: []PortRange{{80, 80}}, Mode: NAT, ClampMSS: 1000,
		Backends: []BackendSpec{{"n", backend4(9), 8080, 100, all}}}
	refused := ServiceSpec{Name: "refused", VIP: vip4, Protocol: protoTCP, Ports: []PortRange{{81, 81}}, Mode: L2, Reject: true,
		Backends: []BackendSpec{{"r", backend4(8), 0, 100, maglev.MakeAdmit(maglev.Down, 0)}}}
	r.apply(web(IPIP, 3), any6, dns(2), translated, refused)
	r.engine.tunnel.Fragment = true
	r.toClients(1000)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > 1500 {
			return
		}
		r.t = t
		r.advance(time.Millisecond)
		frames := [][]byte{frame}
		if h := 14 + int(frame14(frame)&0xf)*4; frame14(frame)>>4 == 4 && h >= 34 && h <= len(frame) {
			// Hardly any mutation has the right checksum.
			right := bytes.Clone(frame)
			setIPv4Checksum(right[14:h])
			frames = append(frames, right)
		}
		for _, out := range r.pass(frames...) {
			p := gopacket.NewPacket(out, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
			ip := p.NetworkLayer()
			if ip == nil {
				t.Fatalf("the frame that was sent has no IP layer: %x", out)
			}
			length := 14
			if p.Layer(layers.LayerTypeDot1Q) != nil {
				length += 4 // an answer goes back with its tag
			}
			if v4, ok := ip.(*layers.IPv4); ok && int(v4.Length)+length != len(out) {
				t.Fatalf("the frame that was sent is %d bytes long, its IP header says %d + %d", len(out), v4.Length, length)
			}
		}
	})
}

// frame14 returns the first byte of the IP header, 0 if there is none.
func frame14(frame []byte) byte {
	if len(frame) < 15 {
		return 0
	}
	return frame[14]
}

var natVIP = netip.MustParseAddr("192.0.2.20")

// toClients gives the engine routes to everywhere, with an MTU.
func (r *testRig) toClients(mtu int) {
	ways := map[netip.Prefix]nexthop.Hop{netip.MustParsePrefix("0.0.0.0/0"): {}, netip.MustParsePrefix("::/0"): {}}
	routes := nexthop.NewRoutes(ways)
	hops := make([]Hop, len(routes.Ways()))
	for i := range hops {
		hops[i] = Hop{Src: nodeMAC, Dst: peerMAC, MTU: mtu}
	}
	r.engine.SetRoutes(routes, hops)
}

// The packets of one batch leave by the interfaces that their backends are reached by, in the order in which they came. A
// full ring holds up only its own packets.
func TestEgress(t *testing.T) {
	r := newTestRig(t, 1000)
	const stuck = 2 // the interface whose ring fills up; the worker has no queue of the next one
	nic, err := xsk.NewMemoryNIC(xsk.Options{Frames: 1 << 14, TXSize: 64, Audit: true}, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer nic.Umem().Close()
	io := WorkerIO{Memory: nic.Umem().Memory(), Wait: nic.Umem().Wait}
	for i, s := range nic.Sockets() {
		io.Queues = append(io.Queues, Queue{Port: s, Interface: i})
	}
	r.worker.Attach(io)
	r.apply(web(L2, 8))
	hops, egress := map[netip.Addr]Hop{}, map[packet.MAC]int{}
	for i, a := range r.engine.Addresses() {
		h := hopTo(a)
		h.Egress = i % 4
		hops[a], egress[macOf(a)] = h, h.Egress
	}
	r.engine.SetHops(hops)

	var batch [][]byte
	for i := range batchSize {
		batch = append(batch, client(i, "A").frame(t))
	}
	nic.Inject(stuck, xsk.Faults{TXStuck: true})
	for range 8 {
		if n := nic.DeliverBatch(0, batch); n != len(batch) {
			t.Fatalf("delivered %d", n)
		}
		for r.worker.turn() > 0 {
		}
		for q := range stuck {
			last := 0
			nic.Collect(q, func(f []byte) {
				if at := egress[packet.MAC(f[:6])]; at != q {
					t.Errorf("a packet for interface %d left by interface %d", at, q)
				}
				i := slices.IndexFunc(batch, func(b []byte) bool { return bytes.HasPrefix(b[14:], f[14:]) })
				if i < last {
					t.Errorf("packet %d left after packet %d", i, last)
				}
				last = i
			})
		}
	}
	r.checkBooks()
	c := r.worker.count.readTotals()
	if full, down := c.reasons[packet.TxFull], c.reasons[packet.EgressDown]; c.received != 8*batchSize || full == 0 || down == 0 || c.forwarded != c.received-full-down {
		t.Errorf("%+v", c)
	}
	if held := nic.Umem().Held(); held != 0 {
		t.Errorf("the worker holds %d frames", held)
	}
}

// A word of another service with the same hash is a false hit: the packet goes to its own service, and the word stays.
func TestFalseHit(t *testing.T) {
	r := newTestRig(t, 1000)
	udp := web(L2, 2)
	udp.Name, udp.Protocol = "dns", protoUDP
	for i := range udp.Backends {
		udp.Backends[i].Address = backend4(100 + i)
	}
	r.apply(web(L2, 2), udp)
	f := client(5, "A").frame(t)
	var m packet.Meta
	packet.Parse(f, &r.engine.keys.Flow, &m)
	foreign := r.engine.slots.byKey[slotKey{r.engine.services["dns"].number, backend4(100), 0}]
	if o := r.engine.table.Insert(m.Hash, foreign, conntrack.Tick(r.now.Load()), conntrack.Established, r.engine.snapshot.Load().lives); o != conntrack.Inserted {
		t.Fatal(o)
	}
	for range 3 {
		if to := r.target(f); to != backend4(1) && to != backend4(2) {
			t.Fatalf("sent to %v", to)
		}
	}
	if w := r.word(f); w.Slot() != foreign {
		t.Fatalf("the word names slot %d now", w.Slot())
	}
}
