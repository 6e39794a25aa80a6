package forwarder

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

// The slot of a removed backend serves its flows until the last is gone, is then quarantined, and is given out again only
// when no worker can write it and no word names it.
func TestSlotLife(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 2))
	slot := r.engine.slots.byKey[slotKey{r.engine.services["web"].number, backend4(2), 0}]
	phase := func() slotPhase { return r.engine.slots.states[slot].phase }
	var mine []byte
	for i := 0; mine == nil; i++ {
		if f := client(i, "A").frame(t); r.target(f) == backend4(2) {
			mine = f
		}
	}
	r.apply(web(L2, 1))
	if phase() != slotLeaving {
		t.Fatalf("after the removal the slot is in phase %d", phase())
	}
	for range 4 { // the flow is alive
		r.advance(40 * time.Second)
		r.sweep()
		if got := r.target(mine); got != backend4(2) || phase() != slotLeaving {
			t.Fatalf("the flow is at %v, the slot in phase %d", got, phase())
		}
	}
	r.advance(125 * time.Minute) // it is not any more
	r.sweep()
	if phase() != slotQuarantined {
		t.Fatalf("without a flow the slot is in phase %d", phase())
	}
	// This sweep began before any worker acknowledged the snapshot without the slot.
	round := r.engine.beginRound()
	r.engine.endRound(round)
	if round.acked >= r.engine.snapshot.Load().generation || phase() != slotQuarantined {
		t.Fatalf("before workers acknowledged the slot is in phase %d", phase())
	}
	r.sweep()
	if phase() != slotFree {
		t.Fatalf("after a full sweep the slot is in phase %d", phase())
	}
	s := web(L2, 1)
	s.Backends = append(s.Backends, BackendSpec{"new", backend4(9), 0, 100, all})
	r.apply(s)
	if got := r.engine.slots.byKey[slotKey{r.engine.services["web"].number, backend4(9), 0}]; got != slot {
		t.Fatalf("the new backend has slot %d", got)
	}
	if n := r.engine.Stats().Services[0].Backends[0]; n.Name != "new" || n.Forwarded.Packets != 0 || n.NewFlows != 0 {
		t.Fatalf("the new backend begins with the counters of the old one: %+v", n)
	}
}

// A word that is left in a quarantined slot keeps it from being used.
func TestQuarantineWaitsForWords(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 2))
	for i := range 20 {
		r.target(client(i, "A").frame(t))
	}
	r.engine.Apply(Spec{}) // the service is gone at once, its words are still there
	for i := range r.engine.slots.states {
		if p := r.engine.slots.states[i].phase; p != slotQuarantined {
			t.Fatalf("slot %d is in phase %d", i, p)
		}
	}
	r.worker.turn()
	round := r.engine.beginRound()
	round.census.Slots[0].States[conntrack.Probation] = 1 // as if a word had been found
	r.engine.endRound(round)
	if a, b := r.engine.slots.states[0].phase, r.engine.slots.states[1].phase; a != slotQuarantined || b != slotFree {
		t.Fatalf("phases %d and %d", a, b)
	}
}

// A backend under its old name with another address is another backend: flows of the old one stay, new ones go to the new.
func TestBackendWithAnotherAddress(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 2))
	at := map[int]netip.Addr{}
	for i := range 100 {
		at[i] = r.target(client(i, "A").frame(t))
	}
	s := web(L2, 2)
	s.Backends[0].Address = backend4(77)
	r.apply(s)
	for i := range 100 {
		if got := r.target(client(i, "A").frame(t)); got != at[i] {
			t.Fatalf("client %d was at %v, is at %v", i, at[i], got)
		}
	}
	moved := 0
	for i := 100; i < 300; i++ {
		switch r.target(client(i, "S").frame(t)) {
		case backend4(1):
			t.Fatalf("client %d: a new flow went to the old address", i)
		case backend4(77):
			moved++
		}
	}
	if moved == 0 {
		t.Fatal("no new flow went to the new address")
	}
}

// A reload that changes nothing, or only the order, changes nothing: neither table nor slots, nor the time of the previous table.
func TestReloadOfTheSame(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 4))
	r.apply(web(L2, 5))
	before := r.engine.services["web"].live
	slots := slices.Clone(before.Pool.Slots())
	r.advance(time.Second)
	s := web(L2, 5)
	slices.Reverse(s.Backends)
	r.apply(s)
	after := r.engine.services["web"].live
	if after.Pool != before.Pool || !slices.Equal(after.Past, before.Past) || !slices.Equal(after.Pool.Slots(), slots) {
		t.Fatalf("before %+v, after %+v", before, after)
	}
}

func TestSpecIsRefused(t *testing.T) {
	for _, c := range []struct {
		want   string
		change func(*Spec)
	}{
		{"no VIP", func(s *Spec) { s.Services[0].VIP = netip.Addr{} }},
		{"protocol 1", func(s *Spec) { s.Services[0].Protocol = 1 }},
		{"no ports", func(s *Spec) { s.Services[0].Ports = nil }},
		{"is empty", func(s *Spec) { s.Services[0].Ports = []PortRange{{9, 8}} }},
		{"no backends", func(s *Spec) { s.Services[0].Backends = nil }},
		{"occurs twice", func(s *Spec) { s.Services = append(s.Services, s.Services[0]) }},
		{"another service", func(s *Spec) { x := s.Services[0]; x.Name = "x"; s.Services = append(s.Services, x) }},
		{"occurs twice", func(s *Spec) { s.Services[0].Backends[1].Name = "web-1" }},
		{"no address", func(s *Spec) { s.Services[0].Backends[1].Address = netip.Addr{} }},
		{"no UDP port", func(s *Spec) { s.Services[0].Mode = GUE }},
		{"another family", func(s *Spec) { s.Services[0].Backends[1].Address = source6 }},
	} {
		r := newTestRig(t, 1000)
		r.apply(web(L2, 2))
		before := r.engine.snapshot.Load()
		s := Spec{Services: []ServiceSpec{web(L2, 3)}}
		c.change(&s)
		if err := r.engine.Apply(s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want an error about %q, got %v", c.want, err)
		}
		if r.engine.snapshot.Load() != before {
			t.Errorf("%s: the refused spec changed the snapshot", c.want)
		}
	}
}

func TestDeriveKeys(t *testing.T) {
	a, err := DeriveKeys([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := DeriveKeys([]byte("0123456789abcdef"))
	c, _ := DeriveKeys([]byte("0123456789abcdeg"))
	if a != b || a == c || a.Flow[0] == 0 || a.Mix == 0 {
		t.Fatalf("%v %v %v", a, b, c)
	}
	if _, err := DeriveKeys(make([]byte, 15)); err == nil {
		t.Fatal("a short seed was taken")
	}
}

// The VIP table finds what a plain search finds.
func TestVIPTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var claims []vipPorts
	for i := range 200 {
		c := vipPorts{addr: packet.Addr{Hi: 0, Lo: 0xffff_c000_0200 + uint64(i/4)}, proto: []uint8{protoTCP, protoUDP}[i%2], service: uint32(i)}
		for p := range 5 {
			first := uint16(p*10_000 + i%4*1000 + rng.IntN(500))
			c.ports = append(c.ports, PortRange{first, first + uint16(rng.IntN(400))})
		}
		if i%2 == 0 || i%4 == 1 { // some protocols have no service
			claims = append(claims, c)
		}
	}
	table := newVIPTable(claims)
	snap := Snapshot{vips: table}
	for range 200_000 {
		addr := packet.Addr{Lo: 0xffff_c000_0200 + uint64(rng.IntN(60))}
		proto := []uint8{protoTCP, protoUDP}[rng.IntN(2)]
		port := uint16(rng.IntN(65536))
		want, reason := uint32(0), packet.NotVIP
		for _, c := range claims {
			if c.addr != addr {
				continue
			}
			if reason == packet.NotVIP {
				reason = packet.NoService
			}
			for _, p := range c.ports {
				if c.proto == proto && p.First <= port && port <= p.Last {
					want, reason = c.service, packet.None
				}
			}
		}
		if got, r := table.find(addr, proto, port); got != want || r != reason {
			t.Fatalf("%v %d %d: got %d, %v, want %d, %v", addr, proto, port, got, r, want, reason)
		}
		if snap.isVIP(addr) != (reason != packet.NotVIP) {
			t.Fatalf("%v: isVIP says %v, find %v", addr, snap.isVIP(addr), reason)
		}
	}
	empty := Snapshot{vips: newVIPTable(nil)}
	if _, r := empty.vips.find(packet.Addr{}, protoTCP, 80); r != packet.NotVIP || empty.isVIP(packet.Addr{}) {
		t.Fatalf("the empty table says %v, isVIP %v", r, empty.isVIP(packet.Addr{}))
	}
}

// While an established flow of a full table is active it is not evicted, whatever a flood of new flows does.
func TestFloodEvictsNoActiveFlow(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 3))
	var mine [][]byte
	for i := range 300 {
		mine = append(mine, client(i, "A").frame(t))
	}
	r.pass(mine...)
	r.advance(5 * time.Second)
	r.pass(mine...) // established
	r.engine.SetAdmit("web", "web-1", maglev.MakeAdmit(maglev.Draining, 0))
	for round := range 10 {
		var flood [][]byte
		for i := range 2000 {
			flood = append(flood, client(1_000_000+round*2000+i, "A").frame(t))
		}
		r.pass(flood...)
		r.advance(20 * time.Second)
		r.pass(mine...)
	}
	for i, f := range mine {
		if s := r.word(f).State(); s != conntrack.Established {
			t.Fatalf("flow %d: %v", i, s)
		}
	}
}

// A backend that is removed, and comes back under the same name with another address, is another backend: its old flows go on
// at the old address, and end there, and new ones go to the new.
func TestBackendReaddedWithAnotherAddress(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 3))
	at := r.openFlows(200)
	r.apply(web(L2, 2))
	r.advance(10 * time.Second)
	for i, want := range at {
		if got := r.target(client(i, "A").frame(t)); got != want {
			t.Fatalf("removed: client %d was at %v, is at %v", i, want, got)
		}
	}
	again := web(L2, 3)
	again.Backends[2].Address = backend4(33)
	r.apply(again)
	for i, want := range at {
		if got := r.target(client(i, "A").frame(t)); got != want {
			t.Fatalf("there again: client %d was at %v, is at %v", i, want, got)
		}
	}
	moved := 0
	for i := 1000; i < 1300; i++ {
		switch to := r.target(client(i, "S").frame(t)); to {
		case backend4(3):
			t.Fatalf("a new flow went to the old address")
		case backend4(33):
			moved++
		}
	}
	if moved == 0 {
		t.Error("no new flow went to the new address")
	}
	var old, now BackendStats
	for _, b := range r.engine.Stats().Services[0].Backends {
		if b.Name == "web-3" && b.Leaving {
			old = b
		} else if b.Name == "web-3" {
			now = b
		}
	}
	if int(old.Flows) != len(flowsAt(at, backend4(3))) || old.Admit != "draining" || now.Address != "10.1.0.33" {
		t.Errorf("the old one %+v, the new one %+v", old, now)
	}
	// Once its flows have ended it is gone, and its slot is another's.
	for _, i := range flowsAt(at, backend4(3)) {
		r.target(client(i, "FA").frame(t))
	}
	r.advance(2 * time.Minute)
	r.sweep()
	r.sweep()
	if n := len(r.engine.Stats().Services[0].Backends); n != 3 || r.engine.slots.states[old.Slot].phase != slotFree {
		t.Errorf("%d backends, the old slot is %v", n, r.engine.slots.states[old.Slot].phase)
	}
}

// Many backends: applying, health and status take time in proportion to them.
func BenchmarkManyBackends(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newTestRig(b, 1000)
			s := ServiceSpec{Name: "web", VIP: vip4, Protocol: protoTCP, Ports: []PortRange{{80, 80}}, Mode: L2}
			for i := range n {
				s.Backends = append(s.Backends, BackendSpec{Name: fmt.Sprint("b", i), Address: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Weight: 100, Admit: all})
			}
			for b.Loop() {
				if err := r.engine.Apply(Spec{Services: []ServiceSpec{s}}); err != nil {
					b.Fatal(err)
				}
				for i := range n {
					r.engine.SetAdmit("web", fmt.Sprint("b", i), all)
				}
				r.engine.Stats()
			}
		})
	}
}
