package forwarder

import (
	"fmt"
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

// news reads signals into a map by service and backend, such as web/web-1; sources are counted, not told.
func news(r *SignalReader) (signals map[string]Signal, sources map[string]int) {
	signals, sources = map[string]Signal{}, map[string]int{}
	all, _ := r.Read()
	for _, s := range all {
		name := s.Service + "/" + s.Backend
		sources[name] = bits.OnesCount64(s.Sources)
		s.Service, s.Backend, s.Sources = "", "", 0
		signals[name] = s
	}
	return signals, sources
}

// What clients send tells how their connections fare, whichever scheduler has chosen the backend.
func TestSignals(t *testing.T) {
	for _, c := range []struct {
		name  string
		steps []string // flags of the client's packets; +5s passes that time
		want  Signal
	}{
		{"a connection", []string{"S", "A", "A", "FA"}, Signal{SYNs: 1, Completed: 1}},
		{"no answer", []string{"S", "+1s", "S", "+2s", "S"}, Signal{SYNs: 1, Retransmitted: 2}},
		{"a late answer", []string{"S", "+1s", "S", "+3s", "A", "A"}, Signal{SYNs: 1, Retransmitted: 1, Completed: 1}},
		{"no answer for long, and again", []string{"S", "+5s", "S"}, Signal{SYNs: 2}},
		{"a flow of another node", []string{"A", "A", "+3s", "A"}, Signal{}},
		{"another node's, used again", []string{"A", "FA", "S", "A", "A"}, Signal{SYNs: 1, Completed: 1}},
		{"a port used again", []string{"S", "A", "FA", "A", "S", "A", "A"}, Signal{SYNs: 2, Completed: 2}},
		{"forged SYNs to a connection", []string{"S", "A", "+3s", "A", "S", "S", "A"}, Signal{SYNs: 1, Completed: 1}},
		{"a SYN that nobody wanted answered", []string{"S", "R"}, Signal{SYNs: 1}},
		{"a reset at once", []string{"S", "A", "R", "R"}, Signal{SYNs: 1, Completed: 1, Resets: 1}},
		{"a reset soon", []string{"S", "A", "+2s", "R"}, Signal{SYNs: 1, Completed: 1, Resets: 1}},
		{"a reset after a while", []string{"S", "A", "+5s", "R"}, Signal{SYNs: 1, Completed: 1}},
		{"a reset of what has lived", []string{"S", "A", "+3s", "A", "R"}, Signal{SYNs: 1, Completed: 1}},
		{"a reset of what is over", []string{"S", "A", "FA", "R"}, Signal{SYNs: 1, Completed: 1}},
	} {
		for _, scheduler := range []maglev.Scheduler{maglev.Maglev, maglev.LeastConn} {
			t.Run(fmt.Sprint(c.name, " ", scheduler), func(t *testing.T) {
				r := newTestRig(t, 1000)
				s := web(IPIP, 1)
				s.Scheduler = scheduler
				r.apply(s)
				reader := r.engine.NewSignalReader()
				defer reader.Close()
				for _, step := range c.steps {
					if d, err := time.ParseDuration(step); err == nil {
						r.advance(d)
						continue
					}
					r.pass(client(1, step).frame(t))
				}
				c.want.HopReady = true
				got, sources := news(reader)
				if c.want == (Signal{HopReady: true}) {
					if len(got) != 0 {
						t.Fatalf("signals %+v of what tells nothing", got)
					}
					return
				}
				if got["web/web-1"] != c.want {
					t.Errorf("got %+v, want %+v", got["web/web-1"], c.want)
				}
				if sources["web/web-1"] != 1 {
					t.Errorf("%d sources", sources["web/web-1"])
				}
				b := r.engine.Stats().Services[0].Backends[0]
				if (Signal{"", "", b.SYNs, b.Handshakes, b.Retransmitted, b.Resets, b.Unreachable, 0, true}) != c.want {
					t.Errorf("status: %+v", b)
				}
				if got, _ := news(reader); len(got) != 0 {
					t.Errorf("the second reading: %+v", got)
				}
			})
		}
	}
}

// A SYN that gets a word though its service's scheduler needs none, since its flow's backend drains, is counted like others.
func TestSignalsWhileOneDrains(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 2))
	r.engine.SetAdmit("web", "web-1", maglev.MakeAdmit(maglev.Draining, 0))
	reader := r.engine.NewSignalReader()
	defer reader.Close()
	words := 0
	for i := range 200 {
		r.pass(client(i, "S").frame(t))
		if r.word(client(i, "S").frame(t)) != 0 {
			words++
		}
		r.pass(client(i, "A").frame(t))
	}
	if words < 50 {
		t.Fatalf("%d SYNs got a word: the test shows nothing", words)
	}
	got, _ := news(reader)
	if want := (Signal{SYNs: 200, Completed: 200, HopReady: true}); got["web/web-2"] != want || len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

// A SYN that is sent again to another backend tells of both: the first did not answer it.
func TestSignalsAfterABackendIsOut(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 2))
	reader := r.engine.NewSignalReader()
	defer reader.Close()
	first := r.target(client(1, "S").frame(t))
	r.engine.SetAdmit("web", fmt.Sprintf("web-%d", first.As4()[3]), maglev.MakeAdmit(maglev.Down, 0))
	r.advance(time.Second)
	second := r.target(client(1, "S").frame(t))
	r.pass(client(1, "A").frame(t))
	got, _ := news(reader)
	a, b := got[fmt.Sprintf("web/web-%d", first.As4()[3])], got[fmt.Sprintf("web/web-%d", second.As4()[3])]
	if first == second || a != (Signal{SYNs: 1, HopReady: true}) || b != (Signal{SYNs: 1, Completed: 1, HopReady: true}) {
		t.Errorf("%v: %+v, %v: %+v", first, a, second, b)
	}
}

// UDP has no handshakes, and a flow without a word tells as much as one with.
func TestSignalsOfOtherServices(t *testing.T) {
	r := newTestRig(t, 1000)
	udp, bare := web(L2, 1), web(L2, 1)
	udp.Name, udp.Protocol = "dns", protoUDP
	bare.Name, bare.Ports, bare.NoTable = "bare", []PortRange{{81, 81}}, true
	r.apply(udp, bare)
	reader := r.engine.NewSignalReader()
	defer reader.Close()
	for i := range 20 {
		f := client(i, "")
		f.udp = true
		r.pass(f.frame(t), f.frame(t))
		for _, flags := range []string{"S", "S", "A", "A"} {
			f := client(i, flags)
			f.dport = 81
			r.pass(f.frame(t))
		}
	}
	got, _ := news(reader)
	if want := (Signal{SYNs: 20, Retransmitted: 20, Completed: 20, HopReady: true}); len(got) != 1 || got["bare/web-1"] != want {
		t.Errorf("%+v", got)
	}
}

// What the defence answers says nothing of a backend, and the reader is told of defences that are on.
func TestSignalsOfADefendedService(t *testing.T) {
	r := newTestRig(t, 1000)
	s, auto := web(L2, 1), web(L2, 1)
	s.Defence = DefenceChallenge
	auto.Name, auto.Ports, auto.Defence = "auto", []PortRange{{81, 81}}, DefenceAuto
	r.apply(s, auto)
	reader := r.engine.NewSignalReader()
	defer reader.Close()
	r.pass(client(1, "S").frame(t), client(2, "S").frame(t))
	signals, suspended := reader.Read()
	if len(signals) != 0 || len(suspended) != 1 || suspended[0] != "web" {
		t.Errorf("%+v, suspended %v", signals, suspended)
	}
	r.engine.flooded[r.engine.services["auto"].number].Store(true)
	if _, suspended = reader.Read(); len(suspended) != 2 {
		t.Errorf("suspended %v", suspended)
	}
	f := client(1, "S")
	number := challengeTo(t, r.pass(f.frame(t))[0], 1)
	r.pass(resetOf(t, 1, number), f.frame(t), client(1, "A").frame(t))
	if got, _ := news(reader); got["web/web-1"] != (Signal{SYNs: 1, Completed: 1, HopReady: true}) {
		t.Errorf("a client that has proved its address: %+v", got)
	}
}

// Of two SYNs for one place the first is waited for, and the other not counted, until the first has its ACK or its time is over.
func TestHandshakePlaces(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 1))
	reader := r.engine.NewSignalReader()
	defer reader.Close()
	want := func(what string, w Signal) {
		t.Helper()
		w.HopReady = true
		if got, _ := news(reader); got["web/web-1"] != w && (w != (Signal{HopReady: true}) || len(got) > 0) {
			t.Fatalf("%s: %+v", what, got)
		}
	}
	a, b := client(1, "S").frame(t), client(2, "S").frame(t)
	r.pass(a)
	want("a SYN", Signal{SYNs: 1})
	// Whatever place b has, make it a's.
	var hashes [2]uint64
	for i, f := range [][]byte{a, b} {
		r.pass(f)
		hashes[i] = r.worker.hashes[0]
	}
	reader.Read()
	h := &r.worker.handshakes
	*h.place(hashes[1]) = makeSYN(hashes[0], 0, r.now.Load())
	r.pass(b, client(2, "A").frame(t))
	want("a SYN whose place is taken", Signal{})
	r.advance(handshakeTime + 100*time.Millisecond)
	r.pass(b)
	want("later", Signal{SYNs: 1})
}

// A slot that is given to another backend has none of the signals of the one before, for any reader.
func TestSignalsOfAReusedSlot(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 2))
	slot := r.engine.services["web"].slots["web-2"]
	readers := []*SignalReader{r.engine.NewSignalReader(), r.engine.NewSignalReader()}
	for i := range 100 {
		r.pass(client(i, "S").frame(t))
	}
	readers[0].Read()
	for i := 100; i < 200; i++ {
		r.pass(client(i, "S").frame(t))
	}
	r.apply(web(L2, 1))
	r.advance(2 * time.Minute)
	for range 3 {
		r.sweep()
	}
	s := web(L2, 1)
	s.Backends = append(s.Backends, BackendSpec{Name: "web-3", Address: backend4(3), Weight: 100, Admit: all})
	r.apply(s)
	if r.engine.services["web"].slots["web-3"] != slot {
		t.Fatal("the slot was not used again")
	}
	for n, reader := range append(readers, r.engine.NewSignalReader()) {
		if got, _ := news(reader); got["web/web-3"] != (Signal{}) {
			t.Errorf("reader %d, before the first SYN: %+v", n, got)
		}
	}
	i := 200
	for ; r.target(client(i, "S").frame(t)) != backend4(3); i++ {
	}
	for n, reader := range readers {
		got, sources := news(reader)
		if got["web/web-3"] != (Signal{SYNs: 1, HopReady: true}) || sources["web/web-3"] != 1 {
			t.Errorf("reader %d: %+v, %v sources", n, got, sources)
		}
		reader.Close()
	}
}

// Readers do not take anything from each other, sources included, whichever comes first.
func TestSignalReaders(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 1))
	early, late := r.engine.NewSignalReader(), r.engine.NewSignalReader()
	want := func(reader *SignalReader, syns uint64, least int) {
		t.Helper()
		got, sources := news(reader)
		if got["web/web-1"].SYNs != syns || sources["web/web-1"] < least || uint64(sources["web/web-1"]) > syns {
			t.Errorf("%+v, %v sources; want %d SYNs", got, sources, syns)
		}
	}
	syns := func(from, n int) {
		for i := range n {
			f := client(from+i, "S")
			f.src = netip.AddrFrom4([4]byte{198, 51, 100, byte(from + i)})
			r.pass(f.frame(t))
		}
	}
	syns(0, 3)
	want(early, 3, 2)
	syns(3, 30)
	want(early, 30, 15)
	want(late, 33, 15)
	third := r.engine.NewSignalReader()
	syns(33, 2)
	early.Close()
	want(third, 2, 1)
	want(late, 2, 1)
	if n := len(r.engine.signalReaders); n != 2 {
		t.Errorf("%d readers in use", n)
	}
}

// Readings while a worker counts miss nothing and tell nothing twice.
func TestSignalsWhileBusy(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 3))
	readers := []*SignalReader{r.engine.NewSignalReader(), r.engine.NewSignalReader()}
	var sums [2]Signal
	read := func(n int) {
		signals, _ := readers[n].Read()
		for _, s := range signals {
			sums[n].SYNs += s.SYNs
			sums[n].Completed += s.Completed
			sums[n].Sources |= s.Sources
		}
	}
	var stop atomic.Bool
	var running sync.WaitGroup
	for n := range readers {
		running.Go(func() {
			for !stop.Load() {
				read(n)
			}
		})
	}
	const flows = 2000
	for i := range flows {
		f, g := client(i, "S"), client(i, "A")
		f.src = netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
		g.src = f.src
		r.pass(f.frame(t))
		r.pass(g.frame(t))
	}
	stop.Store(true)
	running.Wait()
	for n := range readers {
		read(n)
		if s := sums[n]; s.SYNs != flows || s.Completed != flows || s.Sources != 1<<64-1 {
			t.Errorf("reader %d: %+v", n, s)
		}
	}
}

// A backend that cannot be reached is told of in each reading, and SYNs that cannot be sent are not counted.
func TestSignalsWithoutAHop(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 1))
	reader := r.engine.NewSignalReader()
	defer reader.Close()
	ready := r.engine.hops
	r.engine.SetHops(nil)
	for range 2 {
		r.pass(client(1, "S").frame(t))
		if got, _ := news(reader); len(got) != 1 || got["web/web-1"] != (Signal{}) {
			t.Errorf("%+v", got)
		}
	}
	r.engine.SetHops(ready)
	if got, _ := news(reader); len(got) != 0 {
		t.Errorf("reachable again: %+v", got)
	}
}

// natError builds the ICMP error that a router sends to a client whose packet did not reach a NAT backend.
func natError(t *testing.T, f flow, backend netip.Addr, kind, code uint8) []byte {
	f.dst = backend
	quoted := f.frame(t)[14:]
	router := netip.MustParseAddr("10.9.9.9")
	b := gopacket.NewSerializeBuffer()
	ip := &layers.IPv4{Version: 4, TTL: 60, Protocol: layers.IPProtocolICMPv4, SrcIP: router.AsSlice(), DstIP: f.src.AsSlice()}
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: peerMAC[:], DstMAC: nodeMAC[:], EthernetType: layers.EthernetTypeIPv4}, ip,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code)}, gopacket.Payload(quoted))
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// An error that comes from behind a NAT backend's address says that it is unreachable, if that is what it says.
func TestUnreachableNAT(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(NAT, 2))
	r.toClients(1000)
	reader := r.engine.NewSignalReader()
	defer reader.Close()
	for _, c := range []struct{ kind, code uint8 }{{3, 1}, {3, 3}, {3, 13}, {3, 4}, {11, 0}, {12, 0}} {
		r.pass(natError(t, client(1, "S"), backend4(2), c.kind, c.code))
	}
	r.pass(natError(t, client(1, "S"), backend4(3), 3, 1))
	if got, _ := news(reader); len(got) != 1 || got["web/web-2"] != (Signal{Unreachable: 3, HopReady: true}) {
		t.Errorf("%+v", got)
	}
}

// An error about an outer packet is counted for the backends that such packets go to.
func TestCountRefused(t *testing.T) {
	r := newTestRig(t, 1000)
	services := []ServiceSpec{web(IPIP, 2), web(GUE, 2), web(L2, 2), web(NAT, 2)}
	for i := range services {
		services[i].Name, services[i].Ports = services[i].Mode.String(), []PortRange{{uint16(80 + i), uint16(80 + i)}}
	}
	r.apply(services...)
	reader := r.engine.NewSignalReader()
	defer reader.Close()
	for _, p := range []packet.Refused{
		{Dst: backend4(2), Proto: 4}, {Dst: backend4(2), Proto: 41}, {Dst: backend4(3), Proto: 4},
		{Dst: backend4(1), Proto: 17, Port: 6080}, {Dst: backend4(1), Proto: 17, Port: 6081},
	} {
		r.engine.countRefused(p)
	}
	got, _ := news(reader)
	if len(got) != 2 || got["ipip/web-2"].Unreachable != 2 || got["gue/web-1"].Unreachable != 1 {
		t.Errorf("%+v", got)
	}
	for _, s := range r.engine.Stats().Services {
		for _, b := range s.Backends {
			if b.Unreachable != got[s.Name+"/"+b.Name].Unreachable {
				t.Errorf("status of %s/%s: %d", s.Name, b.Name, b.Unreachable)
			}
		}
	}
	// After a change it is the new backends' addresses that count, and what leaves is still counted.
	s := web(IPIP, 1)
	s.Name = "ipip"
	s.Backends = append(s.Backends, BackendSpec{Name: "new", Address: backend4(9), Weight: 100, Admit: all})
	r.apply(s)
	for _, a := range []netip.Addr{backend4(9), backend4(2)} {
		r.engine.countRefused(packet.Refused{Dst: a, Proto: 4})
	}
	if got, _ := news(reader); len(got) != 1 || got["ipip/new"].Unreachable != 1 {
		t.Errorf("after a change: %+v", got)
	}
}

// Nothing that counts signals allocates: neither a worker, nor a reading without news.
func TestSignalsAllocateNothing(t *testing.T) {
	r := newTestRig(t, 1000)
	s := web(IPIP, 1)
	s.Scheduler = maglev.LeastConn
	r.apply(s)
	snap := r.engine.snapshot.Load()
	w := r.worker
	reader := r.engine.NewSignalReader()
	defer reader.Close()
	word := conntrack.MakeWord(1, r.engine.services["web"].slots["web-1"], 0, conntrack.Probation)
	if n := testing.AllocsPerRun(1000, func() {
		now := r.now.Load()
		w.metas[0].Hash++
		w.metas[0].Flags = packet.SYN
		w.sendSYN(snap, w.metas[0].Hash, word.Slot(), packet.Addr{Lo: 1}, now, true)
		w.sendSYN(snap, w.metas[0].Hash, word.Slot(), packet.Addr{Lo: 1}, now, true)
		w.metas[0].Flags = 0
		w.unsettled(&snap.services[0], 0, word, now, 0)
		w.metas[0].Flags = packet.RST
		w.unsettled(&snap.services[0], 0, word, now, 0)
		w.count.publish(now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if got, _ := news(reader); got["web/web-1"] != (Signal{SYNs: 1001, Completed: 1001, Retransmitted: 1001, Resets: 1001, HopReady: true}) {
		t.Errorf("%+v", got)
	}
	if n := testing.AllocsPerRun(1000, func() { reader.Read() }); n != 0 {
		t.Errorf("a reading without news: %v allocations", n)
	}
}

// What a reading of 10,000 backends takes, and one worker's publishing before it: without news, with some, and of all.
func BenchmarkSignals10k(b *testing.B) {
	r := newTestRig(b, 1000)
	var services []ServiceSpec
	for i := range 100 {
		s := web(IPIP, 100)
		s.Name, s.Ports, s.TableSize = fmt.Sprint("web-", i), []PortRange{{uint16(i + 1), uint16(i + 1)}}, 1009
		for k := range s.Backends {
			s.Backends[k].Address = backend4(i*100 + k)
		}
		services = append(services, s)
	}
	r.apply(services...)
	reader := r.engine.NewSignalReader()
	defer reader.Close()
	for _, n := range []int{0, 100, 10_000} {
		b.Run(fmt.Sprintf("news=%d", n), func(b *testing.B) {
			for b.Loop() {
				for slot := range n {
					cell := r.worker.count.signal(uint32(slot))
					cell.syns++
					cell.sources = 1
				}
				r.worker.count.publish(0)
				if signals, _ := reader.Read(); len(signals) != n {
					b.Fatalf("%d signals", len(signals))
				}
			}
		})
	}
}
