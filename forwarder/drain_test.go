package forwarder

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

// openFlows opens n TCP flows, and returns where each is.
func (r *testRig) openFlows(n int) map[int]netip.Addr {
	at := map[int]netip.Addr{}
	for i := range n {
		r.target(client(i, "S").frame(r.t))
		at[i] = r.target(client(i, "A").frame(r.t))
	}
	return at
}

// at returns the flows that are at a backend.
func flowsAt(at map[int]netip.Addr, backend netip.Addr) (flows []int) {
	for i := range len(at) {
		if at[i] == backend {
			flows = append(flows, i)
		}
	}
	return flows
}

func (r *testRig) admit(backend string, s maglev.AdmitState) {
	r.t.Helper()
	fraction := uint32(0)
	if s == maglev.Up {
		fraction = maglev.All
	}
	if !r.engine.SetAdmit("web", backend, maglev.MakeAdmit(s, fraction)) {
		r.t.Fatalf("no backend %s", backend)
	}
}

// checkFlowCounts compares the live count of each slot with the words that are really in the table.
func (r *testRig) checkFlowCounts() {
	r.t.Helper()
	counts := map[uint32]int32{}
	for _, w := range r.words {
		if w := conntrack.Word(w); w != 0 {
			counts[w.Slot()]++
		}
	}
	for i := range r.engine.slots.states {
		if got := r.engine.live.Flows[i].Load(); got != counts[uint32(i)] {
			r.t.Errorf("slot %d: %d flows are counted, %d words name it", i, got, counts[uint32(i)])
		}
	}
}

// Weight 0 drains a backend, as does each further reload with weight 0, and its removal: no new flow comes, the ones it has
// stay. With a weight again it takes new flows again.
func TestWeightZeroThenReload(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 3))
	at := r.openFlows(300)
	drained := web(L2, 3)
	drained.Backends[1].Weight = 0
	drained.Backends[1].Admit = maglev.MakeAdmit(maglev.Draining, 0)
	next := 1000
	newFlows := func() (to map[netip.Addr]int) {
		to = map[netip.Addr]int{}
		for range 300 {
			to[r.target(client(next, "S").frame(t))]++
			next++
		}
		return to
	}
	check := func(what string) {
		t.Helper()
		if to := newFlows(); to[backend4(2)] != 0 || to[netip.Addr{}] != 0 {
			t.Errorf("%s: new flows went to %v", what, to)
		}
		for i, want := range at {
			if got := r.target(client(i, "A").frame(t)); got != want {
				t.Fatalf("%s: client %d was at %v, is at %v", what, i, want, got)
			}
		}
	}
	r.apply(drained)
	check("weight 0")
	r.apply(drained)
	check("weight 0, again")
	r.advance(2 * time.Minute)
	check("two minutes later")
	removed := web(L2, 3)
	removed.Backends = append(removed.Backends[:1:1], removed.Backends[2])
	r.apply(removed)
	check("removed")
	r.apply(drained)
	check("there again, with weight 0")
	r.apply(web(L2, 3))
	if to := newFlows(); to[backend4(2)] == 0 {
		t.Errorf("with a weight again, new flows went to %v", to)
	}
	r.checkFlowCounts()
}

// A service all of whose backends have weight 0 takes no new flow, and keeps those it has.
func TestAllWeightsZero(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 2))
	at := r.openFlows(50)
	s := web(L2, 2)
	for i := range s.Backends {
		s.Backends[i].Weight, s.Backends[i].Admit = 0, maglev.MakeAdmit(maglev.Draining, 0)
	}
	r.apply(s)
	for i, want := range at {
		if got := r.target(client(i, "A").frame(t)); got != want {
			t.Fatalf("client %d was at %v, is at %v", i, want, got)
		}
	}
	if got := r.target(client(999, "S").frame(t)); got.IsValid() || r.reason(packet.NoBackend) != 1 {
		t.Errorf("a new flow went to %v", got)
	}
}

// One address under two services is two slots: each has its flows, its admit word and its counters.
func TestSameAddressUnderTwoServices(t *testing.T) {
	r := newTestRig(t, 4000)
	other := web(L2, 2)
	other.Name, other.Ports = "other", []PortRange{{81, 81}}
	r.apply(web(L2, 2), other)
	at := r.openFlows(100)
	to := func(i int, flags string) netip.Addr { f := client(i, flags); f.dport = 81; return r.target(f.frame(t)) }
	r.engine.SetAdmit("other", "web-1", maglev.MakeAdmit(maglev.Down, 0))
	for i := range 100 {
		if got := to(i, "S"); got != backend4(2) {
			t.Fatalf("client %d of the service whose backend is down went to %v", i, got)
		}
		to(i, "A")
		if got := r.target(client(i, "A").frame(t)); got != at[i] {
			t.Fatalf("client %d of the other service was at %v, is at %v", i, at[i], got)
		}
	}
	for _, s := range r.engine.Stats().Services {
		if s.Flows != 100 || len(s.Backends) != 2 || s.Backends[0].Flows+s.Backends[1].Flows != 100 {
			t.Errorf("service %s: %d flows, backends %+v", s.Name, s.Flows, s.Backends)
		}
	}
}

// A TCP flow that is silent for an hour goes on where it was, also when the backends have changed meanwhile.
func TestIdleFlowOfAnHour(t *testing.T) {
	r := newTestRig(t, 4000)
	r.apply(web(L2, 4))
	at := r.openFlows(200)
	r.advance(5 * time.Second)
	for i := range 100 { // the others have had all of their packets within a tick
		r.target(client(i, "A").frame(t))
	}
	r.apply(web(L2, 7))
	for range 60 {
		r.advance(time.Minute)
		r.sweep()
	}
	for i, want := range at {
		if got := r.target(client(i, "A").frame(t)); got != want {
			t.Fatalf("client %d was at %v, is at %v", i, want, got)
		}
	}
}

// What becomes of the flows of a backend that is down is the service's choice.
func TestOnDown(t *testing.T) {
	for _, c := range []struct {
		onDown OnDown
		udp    bool
	}{{OnDownKeep, false}, {OnDownRehash, false}, {OnDownReset, false}, {OnDownKeep, true}, {OnDownRehash, true}} {
		t.Run(fmt.Sprint(c.onDown, c.udp), func(t *testing.T) {
			r := newTestRig(t, 4000)
			s := web(L2, 3)
			s.OnDown = c.onDown
			if c.udp {
				s.Protocol = protoUDP
			}
			r.apply(s)
			frame := func(i int, flags string) []byte { f := client(i, flags); f.udp = c.udp; return f.frame(t) }
			at := map[int]netip.Addr{}
			for i := range 100 {
				at[i] = r.target(frame(i, "A"))
			}
			r.admit("web-2", maglev.Down)
			for _, i := range flowsAt(at, backend4(2)) {
				switch sent := r.pass(frame(i, "A")); c.onDown {
				case OnDownKeep:
					if len(sent) != 1 || packet.MAC(sent[0][:6]) != macOf(backend4(2)) {
						t.Fatalf("flow %d left its backend", i)
					}
				case OnDownRehash:
					first := r.target(frame(i, "A"))
					if again := r.target(frame(i, "A")); !first.IsValid() || first == backend4(2) || again != first {
						t.Fatalf("flow %d went to %v, then to %v", i, first, again)
					}
				case OnDownReset:
					if len(sent) != 1 || !isReset(sent[0], i) {
						t.Fatalf("flow %d: %x was sent", i, sent)
					}
					if w := r.word(frame(i, "A")); w != 0 {
						t.Fatalf("flow %d has the word %x after its reset", i, w)
					}
				}
			}
			if got, want := r.reason(packet.BackendDown), len(flowsAt(at, backend4(2))); c.onDown == OnDownReset && got != uint64(want) {
				t.Errorf("%d packets under backend_down, want %d", got, want)
			}
			for i, was := range at { // nobody else notices
				if was != backend4(2) {
					if got := r.target(frame(i, "A")); got != was {
						t.Fatalf("flow %d was at %v, is at %v", i, was, got)
					}
				}
			}
			r.checkFlowCounts()
		})
	}
}

// isReset says whether a frame is a TCP reset to client i, from the VIP.
func isReset(frame []byte, i int) bool {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	ip, _ := p.NetworkLayer().(*layers.IPv4)
	tcp, _ := p.TransportLayer().(*layers.TCP)
	return ip != nil && tcp != nil && tcp.RST && ip.SrcIP.String() == vip4.String() &&
		ip.DstIP.String() == client(i, "").src.String() && int(tcp.DstPort) == int(client(i, "").sport) && tcp.SrcPort == 80
}

// A worker sends so many resets a second. A flow that gets none keeps its word, and gets its reset with a later packet.
func TestResetLimit(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 1)
	s.OnDown = OnDownReset
	r.apply(s)
	r.openFlows(300)
	r.admit("web-1", maglev.Down)
	reset := map[int]bool{}
	for range 4 {
		for i := range 300 {
			if reset[i] {
				continue
			}
			switch sent := r.pass(client(i, "A").frame(t)); {
			case len(sent) == 1 && isReset(sent[0], i):
				reset[i] = true
			case len(sent) != 0:
				t.Fatalf("flow %d: %x was sent", i, sent)
			case r.word(client(i, "A").frame(t)) == 0:
				t.Fatalf("flow %d lost its word without a reset", i)
			}
		}
		r.advance(time.Second)
	}
	if len(reset) != 300 {
		t.Errorf("%d of 300 flows were reset", len(reset))
	}
	r.checkFlowCounts()
}

// When a drain is cut off, TCP flows are reset and UDP flows get another backend, whatever on_down says.
func TestCut(t *testing.T) {
	for _, udp := range []bool{false, true} {
		r := newTestRig(t, 4000)
		s := web(L2, 3)
		if udp {
			s.Protocol = protoUDP
		}
		r.apply(s)
		frame := func(i int, flags string) []byte { f := client(i, flags); f.udp = udp; return f.frame(t) }
		at := map[int]netip.Addr{}
		for i := range 100 {
			at[i] = r.target(frame(i, "A"))
		}
		r.admit("web-1", maglev.Cut)
		for _, i := range flowsAt(at, backend4(1)) {
			if sent := r.pass(frame(i, "A")); !udp && (len(sent) != 1 || !isReset(sent[0], i)) {
				t.Fatalf("TCP flow %d: %x was sent", i, sent)
			} else if udp && (len(sent) != 1 || packet.MAC(sent[0][:6]) == macOf(backend4(1))) {
				t.Fatalf("UDP flow %d: %x was sent", i, sent)
			}
		}
		if n := r.engine.Stats().Services[0].Backends[0].Flows; n != 0 {
			t.Errorf("%d flows are left", n)
		}
	}
}

// UDP has no first packet that can be told from others: a flow without a word is a new one, which a draining backend does
// not take, and flows with a word go on.
func TestDrainingUDPTakesNoNewFlow(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 3)
	s.Protocol, s.OnDown = protoUDP, OnDownRehash
	r.apply(s)
	frame := func(i int) []byte { f := client(i, ""); f.udp = true; return f.frame(t) }
	at := map[int]netip.Addr{}
	for i := range 200 {
		at[i] = r.target(frame(i))
	}
	r.admit("web-3", maglev.Draining)
	for i := range 600 {
		got := r.target(frame(i))
		if was, old := at[i]; old && got != was {
			t.Fatalf("flow %d was at %v, is at %v", i, was, got)
		} else if !old && got == backend4(3) {
			t.Fatalf("the new flow %d went to the draining backend", i)
		}
	}
}

// Without words, each packet goes by the hash, and nothing is written.
func TestNoFlowTable(t *testing.T) {
	r := newTestRig(t, 1000)
	s := web(L2, 3)
	s.Protocol, s.OnDown, s.NoTable = protoUDP, OnDownRehash, true
	r.apply(s)
	frame := func(i int) []byte { f := client(i, ""); f.udp = true; return f.frame(t) }
	at := map[int]netip.Addr{}
	for i := range 300 {
		at[i] = r.target(frame(i))
	}
	r.admit("web-2", maglev.Draining)
	for i := range 300 {
		if got := r.target(frame(i)); got == backend4(2) || at[i] != backend4(2) && got != at[i] {
			t.Fatalf("flow %d was at %v, is at %v", i, at[i], got)
		}
	}
	for _, w := range r.words {
		if w != 0 {
			t.Fatalf("there is the word %x", w)
		}
	}
}

// Lifetimes are the service's own.
func TestLifetimes(t *testing.T) {
	r := newTestRig(t, 1000)
	s := web(L2, 2)
	s.Life = conntrack.Life{0, conntrack.Ticks(10 * time.Second), conntrack.Ticks(30 * time.Minute), conntrack.Ticks(5 * time.Second)}
	r.apply(s)
	r.target(client(1, "A").frame(t))
	r.target(client(2, "A").frame(t))
	r.advance(3 * time.Second)
	r.target(client(2, "A").frame(t)) // established
	r.advance(15 * time.Second)
	r.sweep()
	if a, b := r.word(client(1, "A").frame(t)), r.word(client(2, "A").frame(t)); a != 0 || b.State() != conntrack.Established {
		t.Fatalf("after 15 s the words are %x and %x", a, b)
	}
	r.advance(31 * time.Minute)
	r.sweep()
	if w := r.word(client(2, "A").frame(t)); w != 0 {
		t.Fatalf("after 31 minutes there is the word %x", w)
	}
	r.checkFlowCounts()
}
