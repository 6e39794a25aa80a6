package forwarder

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

// A SYN goes where its flow's next packet would go without a word, so it leaves none; the next packet does.
func TestSYNLeavesNoWord(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 3))
	for i := range 100 {
		to := r.target(client(i, "S").frame(t))
		if w := r.word(client(i, "S").frame(t)); w != 0 {
			t.Fatalf("client %d: the SYN left the word %x", i, w)
		}
		if got := r.target(client(i, "A").frame(t)); got != to {
			t.Fatalf("client %d: SYN to %v, ACK to %v", i, to, got)
		}
		if w := r.word(client(i, "A").frame(t)); w.State() != conntrack.Probation {
			t.Fatalf("client %d: the ACK left the word %x", i, w)
		}
	}
}

// Whatever happens to the set of backends, a TCP flow that has a word stays where it is.
func TestFlowsStay(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(r *testRig)
	}{
		{"a backend is added", func(r *testRig) { r.apply(web(L2, 5)) }},
		{"half of the backends are removed", func(r *testRig) { r.apply(web(L2, 2)) }},
		{"all backends are replaced", func(r *testRig) {
			s := web(L2, 3)
			for i := range s.Backends {
				s.Backends[i].Name, s.Backends[i].Address = fmt.Sprint("new-", i), backend4(100+i)
			}
			r.apply(s)
		}},
		{"a backend drains", func(r *testRig) { r.engine.SetAdmit("web", "web-1", maglev.MakeAdmit(maglev.Draining, 0)) }},
		{"a backend is down", func(r *testRig) { r.engine.SetAdmit("web", "web-1", maglev.MakeAdmit(maglev.Down, 0)) }},
		{"all backends are down", func(r *testRig) {
			for i := range 4 {
				r.engine.SetAdmit("web", fmt.Sprintf("web-%d", i+1), maglev.MakeAdmit(maglev.Down, 0))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newTestRig(t, 4000)
			r.apply(web(L2, 4))
			before := map[int]netip.Addr{}
			for i := range 300 {
				r.target(client(i, "S").frame(t))
				before[i] = r.target(client(i, "A").frame(t))
			}
			c.change(r)
			for range 3 {
				r.advance(40 * time.Second) // in all beyond the time of the previous table
				for i := range 300 {
					if got := r.target(client(i, "A").frame(t)); got != before[i] {
						t.Fatalf("client %d: was at %v, is at %v", i, before[i], got)
					}
				}
			}
		})
	}
}

// New flows go only where new flows are wanted, from the first packet after the change.
func TestNewFlowsAvoid(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(r *testRig)
	}{
		{"a removed backend", func(r *testRig) { s := web(L2, 3); s.Backends = s.Backends[1:]; r.apply(s) }},
		{"a draining backend", func(r *testRig) { r.engine.SetAdmit("web", "web-1", maglev.MakeAdmit(maglev.Draining, 0)) }},
		{"a backend that is down", func(r *testRig) { r.engine.SetAdmit("web", "web-1", maglev.MakeAdmit(maglev.Down, 0)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newTestRig(t, 4000)
			r.apply(web(L2, 3))
			c.change(r)
			for i := range 1000 {
				to := r.target(client(i, "S").frame(t))
				if to == backend4(1) || !to.IsValid() {
					t.Fatalf("client %d: new flow to %v", i, to)
				}
				if got := r.target(client(i, "A").frame(t)); got != to {
					t.Fatalf("client %d: SYN to %v, ACK to %v", i, to, got)
				}
			}
		})
	}
}

// A flow that another node carried, and that has no word here, is sent where that node sent it: for a minute after a change
// of the backends that is by the table from before.
func TestPreviousTable(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 4))
	before := map[int]netip.Addr{}
	for i := range 500 {
		before[i] = r.target(client(i, "S").frame(t)) // leaves no word
	}
	r.apply(web(L2, 3))
	r.advance(59 * time.Second)
	for i := range 250 {
		if got := r.target(client(i, "A").frame(t)); got != before[i] {
			t.Fatalf("client %d: was at %v, is at %v", i, before[i], got)
		}
	}
	r.advance(2 * time.Second)
	for i := range 500 {
		got := r.target(client(i, "A").frame(t))
		if i < 250 && got != before[i] || i >= 250 && got == backend4(4) {
			t.Fatalf("client %d: was at %v, is at %v", i, before[i], got)
		}
	}
}

// A SYN, FIN or RST that somebody forges moves no flow.
func TestForgedPacketsMoveNothing(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 4))
	at := map[int]netip.Addr{}
	for i := range 200 {
		r.target(client(i, "S").frame(t))
		at[i] = r.target(client(i, "A").frame(t))
	}
	r.advance(5 * time.Second)
	for i := range 200 {
		r.target(client(i, "A").frame(t)) // a second sign of life: established
	}
	r.apply(web(L2, 7))
	r.advance(2 * time.Minute)
	for _, flags := range []string{"S", "F", "R", "FA", "RA"} {
		for i := range 200 {
			if flags != "S" {
				r.target(client(i, "A").frame(t)) // alive
			}
			r.target(client(i, flags).frame(t))
			r.advance(time.Millisecond)
			if got := r.target(client(i, "A").frame(t)); got != at[i] {
				t.Fatalf("client %d after a forged %s: was at %v, is at %v", i, flags, at[i], got)
			}
		}
	}
}

// A closing flow's word dies soon when nothing follows, and lives on when packets do.
func TestClosing(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 2))
	f := client(1, "A").frame(t)
	r.target(f)
	r.target(client(1, "FA").frame(t))
	if s := r.word(f).State(); s != conntrack.Closing {
		t.Fatalf("after FIN the word is %v", s)
	}
	for range 10 {
		r.advance(20 * time.Second)
		r.target(f)
		r.sweep()
	}
	if s := r.word(f).State(); s != conntrack.Closing {
		t.Fatalf("with traffic the word became %v", s)
	}
	r.advance(time.Minute)
	r.sweep()
	if w := r.word(f); w != 0 {
		t.Fatalf("a minute after the last packet there is still the word %x", w)
	}
}

// A client that uses its port again reaches a backend that takes new flows, also when its old one does not any more.
func TestPortReuse(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 3))
	syn, ack := client(7, "S").frame(t), client(7, "A").frame(t)
	r.target(syn)
	old := r.target(ack)
	r.target(client(7, "FA").frame(t))
	if got := r.target(syn); got != old {
		t.Fatalf("reuse with the old backend up: %v, was %v", got, old)
	}
	name := fmt.Sprintf("web-%d", old.As4()[3])
	r.engine.SetAdmit("web", name, maglev.MakeAdmit(maglev.Draining, 0))
	now := r.target(syn)
	if now == old {
		t.Fatalf("reuse with the old backend draining went to it")
	}
	if got := r.target(ack); got != now {
		t.Fatalf("SYN to %v, ACK to %v", now, got)
	}
}

// UDP has no connection that only one backend can continue: its flows leave a backend that is down.
func TestUDPLeavesDeadBackend(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 3)
	s.Protocol, s.OnDown = protoUDP, OnDownRehash
	r.apply(s)
	dns := func(i int) []byte { f := client(i, ""); f.udp = true; return f.frame(t) }
	for i := range 300 {
		r.target(dns(i))
	}
	r.engine.SetAdmit("web", "web-2", maglev.MakeAdmit(maglev.Down, 0))
	for i := range 300 {
		first := r.target(dns(i))
		if first == backend4(2) || !first.IsValid() {
			t.Fatalf("flow %d goes to %v", i, first)
		}
		if again := r.target(dns(i)); again != first {
			t.Fatalf("flow %d: first to %v, then to %v", i, first, again)
		}
	}
}

// Nodes with the same config, seed and health choose the same backend for every tuple, whatever the order in their files.
func TestNodesAgree(t *testing.T) {
	a, b := newTestRig(t, 1000), newTestRig(t, 1000)
	s := web(L2, 50)
	a.apply(s)
	other := ServiceSpec{Name: "other", VIP: vip6, Protocol: protoUDP, Ports: []PortRange{{53, 53}}, Backends: []BackendSpec{{"x", netip.MustParseAddr("2001:db8:9::1"), 0, 100, all}}}
	back := s
	back.Backends = nil
	for i := range s.Backends {
		back.Backends = append(back.Backends, s.Backends[len(s.Backends)-1-i])
	}
	b.apply(other, back)
	for _, r := range []*testRig{a, b} {
		r.engine.SetAdmit("web", "web-17", maglev.MakeAdmit(maglev.Down, 0))
		r.engine.SetAdmit("web", "web-23", maglev.MakeAdmit(maglev.Draining, 0))
	}
	choose := func(r *testRig, hash uint64) (netip.Addr, netip.Addr) {
		snap := r.engine.snapshot.Load()
		s := &snap.services[r.engine.services["web"].number]
		fresh, ok1 := s.New(r.engine.keys.Mix, hash, &r.engine.live, 0, r.now.Load())
		old, ok2 := s.Existing(r.engine.keys.Mix, hash, &r.engine.live, r.now.Load())
		if !ok1 || !ok2 {
			t.Fatal("no choice")
		}
		return r.engine.slots.states[fresh].key.address, r.engine.slots.states[old].key.address
	}
	dst := packet.FromNetip(vip4)
	for i := range 1_000_000 {
		src := packet.FromNetip(netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1}))
		ha := packet.FlowHash(&a.engine.keys.Flow, src, dst, uint16(i*7), 80, protoTCP)
		hb := packet.FlowHash(&b.engine.keys.Flow, src, dst, uint16(i*7), 80, protoTCP)
		a1, a2 := choose(a, ha)
		b1, b2 := choose(b, hb)
		if a1 != b1 || a2 != b2 {
			t.Fatalf("tuple %d: one node chooses %v and %v, the other %v and %v", i, a1, a2, b1, b2)
		}
	}
}
