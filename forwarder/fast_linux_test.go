package forwarder

import (
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/maglev"
)

// differentialPackets is how many packets TestFastPathEqualsWorker compares; SLUICE_DIFFERENTIAL gives another number.
func differentialPackets(t *testing.T) int {
	text := os.Getenv("SLUICE_DIFFERENTIAL")
	if text == "" {
		return 300_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("SLUICE_DIFFERENTIAL=%s: a number of packets is expected", text)
	}
	return n
}

// Whatever the program forwards, a worker would forward byte for byte to the same backend, and the flow's word is the same afterwards.
// What the program does not forward it does not touch.
func TestFastPathEqualsWorker(t *testing.T) {
	r := newFastRig(t, 1)
	services := fastServices()
	if err := r.steer.SetVIPs([]netip.Addr{vip4, vip6, netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")}); err != nil {
		t.Fatal(err)
	}
	r.apply(services...)
	frames := r.fastFrames(services)
	forwarded := 0
	n := differentialPackets(t)
	for i := range n {
		switch r.rng.IntN(400) {
		case 0:
			s := &services[r.rng.IntN(len(services))]
			a := maglev.MakeAdmit(maglev.AdmitState(r.rng.IntN(4)), maglev.All)
			r.engine.SetAdmit(s.Name, s.Backends[r.rng.IntN(len(s.Backends))].Name, a)
		case 1:
			for s := range services {
				for b := range services[s].Backends {
					r.engine.SetAdmit(services[s].Name, services[s].Backends[b].Name, all)
				}
			}
		}
		if r.rng.IntN(4) == 0 {
			r.age()
		}
		if i == n/2 { // other generations: some backends behind a tag, sources that vary
			hops := map[netip.Addr]Hop{}
			for k, a := range r.engine.Addresses() {
				hops[a] = hopTo(a)
				if k%2 == 0 {
					h := hopTo(a)
					h.VLAN = 100
					hops[a] = h
				}
			}
			r.engine.SetHops(hops)
			tunnel := Tunnel{Port: 6081, Source4: netip.MustParsePrefix("10.7.0.0/16"), Source6: netip.MustParsePrefix("fd00:7::/64")}
			if err := r.engine.Apply(Spec{Services: services, Tunnel: tunnel}); err != nil {
				t.Fatal(err)
			}
		}
		if r.compare(r.mutate(frames[r.rng.IntN(len(frames))])) {
			forwarded++
		}
	}
	t.Logf("%d packets, of which the program forwarded %d", n, forwarded)
	if forwarded < n/10 {
		t.Errorf("the program forwarded %d of %d packets: the test shows little", forwarded, n)
	}
	st, err := r.steer.Stats()
	if err != nil {
		t.Fatal(err)
	}
	var slots uint64
	for slot := range 64 {
		packets, _ := r.steer.SlotCount(slot)
		slots += packets
	}
	if st.Forwarded != uint64(forwarded) || slots != st.Forwarded {
		t.Errorf("%d packets were forwarded; the program counted %d, and %d for slots", forwarded, st.Forwarded, slots)
	}
}

// While no daemon runs, packets without a word go by the lookup tables and admit words, flows that have one where it says, and what cannot
// be forwarded is the kernel's or dropped; later all of it is.
func TestFastPathWithoutDaemon(t *testing.T) {
	r := newFastRig(t, 2)
	services := fastServices()
	if err := r.steer.SetVIPs([]netip.Addr{vip4, vip6, netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")}); err != nil {
		t.Fatal(err)
	}
	r.apply(services...)
	frames := r.fastFrames(services)
	words := map[string]netip.Addr{} // where flows go that have a word, by one of their packets
	for i, f := range frames {
		if i%3 == 0 {
			r.pass(f)
		}
	}
	copy(r.words, r.testRig.words)
	for _, f := range frames {
		if w := r.word(f); w != 0 {
			words[string(f)] = r.engine.slots.states[w.Slot()].key.address
		}
	}
	if len(words) < len(frames)/10 {
		t.Fatalf("%d of %d packets are of flows with a word: the test shows little", len(words), len(frames))
	}
	r.alive(false)
	r.steer.SetOrphans(steer.Orphans{For: time.Hour * 1e5, Drop: true}) // the clock began when the machine did
	before, err := r.steer.Stats()
	if err != nil {
		t.Fatal(err)
	}
	forwarded, refused := uint64(0), uint64(0)
	for round := range 3 {
		if round == 1 { // some are down: flows of these and new ones go elsewhere
			for _, s := range services {
				r.engine.SetAdmit(s.Name, s.Backends[r.rng.IntN(3)].Name, maglev.MakeAdmit(maglev.Down, 0))
			}
		}
		if round == 2 { // others drain, and take no new ones
			for _, s := range services {
				r.engine.SetAdmit(s.Name, s.Backends[r.rng.IntN(3)].Name, maglev.MakeAdmit(maglev.Draining, 0))
			}
		}
		for n, f := range frames {
			s := r.engine.services[services[n/(24*8)].Name]
			verdict, to := r.shown(f)
			if FastProblem(&s.spec, &r.engine.limits, &r.engine.tunnel) != "" {
				if refused++; verdict != xdpDrop {
					t.Fatalf("%s: verdict %d for a packet that the fast path cannot forward", s.spec.Name, verdict)
				}
				continue
			}
			want, known := words[string(f)], false
			if want.IsValid() {
				slot := r.engine.slots.byKey[slotKey{service: s.number, address: want}]
				state := maglev.Admit(r.engine.live.Admit[slot].Load()).State()
				syn := packetFlags(f)&packet.SYN != 0
				known = state == maglev.Up || !syn && (state == maglev.Draining || state == maglev.Down && s.spec.OnDown == OnDownKeep)
			}
			if !known {
				want = r.byTable(s, f)
			}
			if !want.IsValid() { // all of its backends are down or draining
				if refused++; verdict != xdpDrop {
					t.Fatalf("%s: verdict %d without a backend", s.spec.Name, verdict)
				}
				continue
			}
			if forwarded++; to != want {
				t.Fatalf("round %d: %s: %x goes to %v, verdict %d, want %v (by its word: %v)", round, s.spec.Name, f, to, verdict, want, known)
			}
		}
	}
	after, err := r.steer.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if got := after.Orphaned - before.Orphaned; got != forwarded || after.Forwarded-before.Forwarded != forwarded || after.NoDaemon-before.NoDaemon != refused {
		t.Errorf("%d forwarded and %d refused, counted %d orphaned, %d forwarded, %d without a daemon", forwarded, refused, got,
			after.Forwarded-before.Forwarded, after.NoDaemon-before.NoDaemon)
	}
	r.steer.SetOrphans(steer.Orphans{For: 1, Drop: false})
	for _, f := range frames {
		if verdict, _ := r.shown(f); verdict != 2 {
			t.Fatalf("verdict %d after the time without a daemon, want that the kernel gets the packet", verdict)
		}
	}
}

// Of what the fast path forwards enough is sampled to tell who sends most, also of clients that send in turns.
func TestFastPathSamples(t *testing.T) {
	r := newFastRig(t, 2)
	if err := r.steer.SetVIPs([]netip.Addr{netip.MustParseAddr("192.0.2.11")}); err != nil {
		t.Fatal(err)
	}
	r.apply(fastServices()...)
	var frames [][]byte
	for _, host := range []byte{1, 2} {
		f := flow{src: netip.AddrFrom4([4]byte{198, 51, 100, host}), dst: netip.MustParseAddr("192.0.2.11"), sport: 4000, dport: 53, udp: true}
		frames = append(frames, f.frame(t))
		r.pass(f.frame(t))
	}
	copy(r.words, r.testRig.words)
	const turns = 20_000
	for i := range turns {
		for _, f := range frames {
			if verdict, _ := r.shown(f); verdict != xdpTX && verdict != xdpRedirect {
				t.Fatalf("verdict %d", verdict)
			}
		}
		if i%1000 == 0 {
			if err := r.engine.takeSamples(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.engine.takeSamples(); err != nil {
		t.Fatal(err)
	}
	top := r.engine.fastTops.of[TopPackets]
	if n := top.Total(); n < 2*turns*8/10 || n > 2*turns*12/10 {
		t.Errorf("%d packets by samples, want some %d", n, 2*turns)
	}
	counts := guard.Merge(top.AppendTo(nil))
	if len(counts) != 2 || counts[1].N < turns*7/10 || counts[0].N > turns*13/10 {
		t.Errorf("%+v, want two clients with some %d packets each", counts, turns)
	}
	if counts := top.AppendTo(nil); TopPackets.Name(counts[0]) != "198.51.100.1" && TopPackets.Name(counts[0]) != "198.51.100.2" {
		t.Errorf("a sample of %s, which has sent nothing", TopPackets.Name(counts[0]))
	}
}

// Who is refused is refused on known flows too, and others go on by the fast path.
func TestFastPathRefuses(t *testing.T) {
	r := newFastRig(t, 2)
	vip := netip.MustParseAddr("192.0.2.11")
	if err := r.steer.SetVIPs([]netip.Addr{vip}); err != nil {
		t.Fatal(err)
	}
	r.apply(fastServices()...)
	packetOf := func(host byte, dst netip.Addr) []byte {
		f := flow{src: netip.AddrFrom4([4]byte{198, 51, 100, host}), dst: dst, sport: 4000, dport: 53, udp: true}
		return f.frame(t)
	}
	banned, other, foreign := packetOf(1, vip), packetOf(2, vip), packetOf(1, netip.MustParseAddr("203.0.113.9"))
	r.pass(banned)
	r.pass(other)
	copy(r.words, r.testRig.words)
	const pass = 2
	want := func(what string, frame []byte, verdicts ...uint32) {
		t.Helper()
		if v, _ := r.shown(frame); !slices.Contains(verdicts, v) {
			t.Errorf("%s: verdict %d, want one of %v", what, v, verdicts)
		}
	}
	want("a known flow", banned, xdpTX, xdpRedirect)
	if err := r.steer.Ban(netip.AddrFrom4([4]byte{198, 51, 100, 1}), math.MaxInt64); err != nil {
		t.Fatal(err)
	}
	before, err := r.steer.Stats()
	if err != nil {
		t.Fatal(err)
	}
	want("a known flow of a banned source", banned, xdpDrop)
	want("a known flow of another one", other, xdpTX, xdpRedirect)
	want("no packet to a VIP", foreign, pass)
	after, err := r.steer.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if after.Banned-before.Banned != 1 || after.Forwarded-before.Forwarded != 1 || after.ToVIPs-before.ToVIPs != 2 {
		t.Errorf("%d banned, %d forwarded, %d to VIPs; want 1, 1, 2", after.Banned-before.Banned, after.Forwarded-before.Forwarded, after.ToVIPs-before.ToVIPs)
	}
}
