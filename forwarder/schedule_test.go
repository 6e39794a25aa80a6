package forwarder

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/maglev"
)

// With a scheduler that goes by what the node has seen, the first packet of a flow leaves a word, so that a SYN that is sent
// again, and everything after it, goes to the same backend.
func TestLocalSchedulersKeepTheirFlows(t *testing.T) {
	for _, scheduler := range []maglev.Scheduler{maglev.WRR, maglev.LeastConn, maglev.P2C} {
		for _, udp := range []bool{false, true} {
			t.Run(fmt.Sprint(scheduler, udp), func(t *testing.T) {
				r := newTestRig(t, 8000)
				s := web(L2, 5)
				s.Scheduler = scheduler
				if udp {
					s.Protocol, s.OnDown = protoUDP, OnDownRehash
				}
				r.apply(s)
				frame := func(i int, flags string) []byte { f := client(i, flags); f.udp = udp; return f.frame(t) }
				per := map[netip.Addr]int{}
				for i := range 1000 {
					at := r.target(frame(i, "S"))
					per[at]++
					for _, flags := range []string{"S", "A", "A", "FA"} {
						if got := r.target(frame(i, flags)); got != at {
							t.Fatalf("flow %d: %s went to %v, the first packet to %v", i, flags, got, at)
						}
					}
				}
				spread := 0 // how far apart backends may be
				switch scheduler {
				case maglev.LeastConn:
					spread = 2
				case maglev.P2C:
					spread = 20
				}
				for a, n := range per {
					if n < 200-spread || n > 200+spread {
						t.Errorf("%v got %d of 1000 flows for five equal backends: %v", a, n, per)
					}
				}
				r.checkFlowCounts()
			})
		}
	}
}

// A change of the scheduler alone moves no flow and no table.
func TestChangeOfScheduler(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 4))
	at := r.openFlows(200)
	before := r.engine.services["web"].live
	s := web(L2, 4)
	s.Scheduler = maglev.LeastConn
	r.apply(s)
	if after := r.engine.services["web"].live; after.Pool.Table() != before.Pool.Table() || len(after.Past) != 0 {
		t.Error("the lookup table is another one")
	}
	for i, want := range at {
		if got := r.target(client(i, "A").frame(t)); got != want {
			t.Fatalf("client %d was at %v, is at %v", i, want, got)
		}
	}
}

// With the scheduler source, all flows of a client, or of a prefix of clients, go to one backend, on every port of the
// service, and on every node.
func TestSourceAffinity(t *testing.T) {
	for _, c := range []struct {
		vip, base netip.Addr
		prefix    int
		same      int // leading bits in which clients that go together are alike
	}{
		{vip4, netip.MustParseAddr("198.51.100.0"), 0, 32},
		{vip4, netip.MustParseAddr("198.51.100.0"), 24, 24},
		{vip6, netip.MustParseAddr("2001:db8:77::"), 64, 64},
		{vip6, netip.MustParseAddr("2001:db8:77::"), 48, 48},
		{vip6, netip.MustParseAddr("2001:db8:77::"), 0, 128},
	} {
		t.Run(fmt.Sprint(c.vip, c.prefix), func(t *testing.T) {
			s := web(IPIP, 8)
			s.VIP, s.Scheduler, s.SourcePrefix, s.Ports = c.vip, maglev.Source, c.prefix, []PortRange{{80, 90}}
			a, b := newTestRig(t, 8000), newTestRig(t, 8000)
			a.apply(s)
			b.apply(s)
			per := map[netip.Addr]int{}
			for i := range 100 {
				group := c.base.AsSlice()
				group[c.same/8-1] += byte(i)
				var first netip.Addr
				for k := range 6 {
					src := slices.Clone(group)
					if c.same < 8*len(src) {
						src[len(src)-1] = byte(k * 40)
					}
					addr, _ := netip.AddrFromSlice(src)
					f := flow{src: addr, dst: c.vip, sport: uint16(1000 + i*7 + k), dport: uint16(80 + k), flags: "S"}
					at := a.target(f.frame(t))
					f.flags = "A"
					if got := b.target(f.frame(t)); got != at {
						t.Fatalf("client %v: one node chooses %v, the other %v", addr, at, got)
					}
					if first.IsValid() && at != first {
						t.Fatalf("client %v went to %v, one like it to %v", addr, at, first)
					}
					first = at
				}
				per[first]++
			}
			if len(per) < 7 {
				t.Errorf("100 clients use %d of 8 backends: %v", len(per), per)
			}
		})
	}
}

// Weights say how new flows are shared.
func TestWeights(t *testing.T) {
	r := newTestRig(t, 1000)
	s := web(L2, 3)
	s.Backends[0].Weight, s.Backends[1].Weight, s.Backends[2].Weight = 50, 100, 350
	r.apply(s)
	per := map[netip.Addr]int{}
	const n = 20_000
	for i := range n {
		per[r.target(client(i, "S").frame(t))]++
	}
	for i, share := range []float64{0.1, 0.2, 0.7} {
		if got := float64(per[backend4(i+1)]) / n; got < share*0.93 || got > share*1.07 {
			t.Errorf("backend %d got %.3f of the flows, its weight says %.3f", i+1, got, share)
		}
	}
}

// Another name is not another service, nor another backend: flows go on, also without a word, and counters too.
func TestRename(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 4))
	at := r.openFlows(100)
	old := r.engine.Stats().Services[0]

	s := web(L2, 4)
	s.Name = "shop"
	r.apply(s)
	for i, want := range at {
		if got := r.target(client(i, "A").frame(t)); got != want {
			t.Fatalf("client %d of the renamed service was at %v, is at %v", i, want, got)
		}
	}
	now := r.engine.Stats().Services[0]
	if now.Name != "shop" || now.Forwarded.Packets != old.Forwarded.Packets+100 || now.Flows != 100 {
		t.Errorf("before %+v, after %+v", old, now)
	}

	s.Backends[0].Name = "renamed"
	r.apply(s)
	for i, want := range at {
		if got := r.target(client(i, "A").frame(t)); got != want {
			t.Fatalf("client %d of the renamed backend was at %v, is at %v", i, want, got)
		}
	}
	for _, b := range r.engine.Stats().Services[0].Backends {
		if b.Leaving || b.Name == "web-1" {
			t.Errorf("after the backend's renaming there is %+v", b)
		}
	}
}

// Two services that swap their names stay what they are.
func TestSwappedNames(t *testing.T) {
	r := newTestRig(t, 4000)
	other := web(L2, 3)
	other.Name, other.Ports = "other", []PortRange{{81, 81}}
	for i := range other.Backends {
		other.Backends[i].Address = backend4(50 + i)
	}
	r.apply(web(L2, 3), other)
	at := r.openFlows(100)
	a, b := web(L2, 3), other
	a.Name, b.Name = b.Name, a.Name
	r.apply(a, b)
	for i, want := range at {
		if got := r.target(client(i, "A").frame(t)); got != want {
			t.Fatalf("client %d was at %v, is at %v", i, want, got)
		}
	}
}

// What the engine tells of one flow is what happens to it.
func TestFlow(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 5))
	for i := range 50 {
		f := client(i, "S")
		src, dst := netip.AddrPortFrom(f.src, f.sport), netip.AddrPortFrom(f.dst, f.dport)
		before, err := r.engine.Flow(src, dst, protoTCP)
		if err != nil || before.Found || before.Service != "web" || !before.Opens.Address.IsValid() || before.Opens != before.Continues {
			t.Fatalf("%+v, %v", before, err)
		}
		if at := r.target(f.frame(t)); at != before.Opens.Address {
			t.Fatalf("a SYN would go to %v, and went to %v", before.Opens.Address, at)
		}
		r.target(client(i, "A").frame(t))
		after, err := r.engine.Flow(src, dst, protoTCP)
		if err != nil || !after.Found || after.Backend != before.Opens || after.Word.State() != conntrack.Probation || after.Expires <= 0 {
			t.Fatalf("%+v, %v", after, err)
		}
	}
	for _, c := range []struct{ src, dst string }{{"198.51.100.1:1", "192.0.2.99:80"}, {"198.51.100.1:1", "192.0.2.10:81"}, {"[2001:db8::1]:1", "192.0.2.10:80"}} {
		if f, err := r.engine.Flow(netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst), protoTCP); err == nil {
			t.Errorf("%v: %+v", c, f)
		}
	}
}

// The census tells whose flows there are, and changes nothing; the sources that opened them are known.
func TestFlowsAndSources(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 3))
	at := r.openFlows(300)
	c, err := r.engine.Flows(t.Context())
	if err != nil || len(c.Backends) != 3 || c.States[conntrack.Probation] != 300 {
		t.Fatalf("%+v, %v", c, err)
	}
	for _, b := range c.Backends {
		if want := len(flowsAt(at, b.Address)); int(b.Flows()) != want || b.Service != "web" {
			t.Errorf("%+v: want %d flows", b, want)
		}
	}
	heavy := client(0, "A")
	for i := range 500 {
		heavy.sport = uint16(20_000 + i)
		r.pass(heavy.frame(t))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		top, total := r.engine.TopSources(TopFlows)
		if len(top) == 0 || total != 800 || top[0].N < 500 {
			t.Errorf("%d sources of %d flows, the first %+v", len(top), total, top[:1])
		}
	}()
	for {
		select {
		case <-done:
			return
		default:
			r.worker.turn()
		}
	}
}
