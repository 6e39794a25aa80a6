package forwarder

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

// info is the fragment of a datagram that covers units from to to.
func info(key uint64, from, to int, last bool) *packet.FragmentInfo {
	return &packet.FragmentInfo{Key: key, From: uint16(from), To: uint16(to), Last: last}
}

func TestFragmentTable(t *testing.T) {
	const key, flow = 0x1234567890, flowKnown | 17<<32 | 5
	type step struct {
		f     *packet.FragmentInfo
		flow  uint64
		after time.Duration
		known uint64
		bad   bool
	}
	for name, steps := range map[string][]step{
		"in order": {
			{f: info(key, 0, 185, false), flow: flow, known: flow}, {f: info(key, 185, 370, false), known: flow}, {f: info(key, 370, 400, true), known: flow}},
		"out of order": {
			{f: info(key, 370, 400, true)}, {f: info(key, 185, 370, false)}, {f: info(key, 0, 185, false), flow: flow, known: flow}},
		"a copy is no overlap": {
			{f: info(key, 0, 185, false), flow: flow, known: flow}, {f: info(key, 185, 370, false), known: flow}, {f: info(key, 185, 370, false), known: flow}},
		"overlap, and what follows it": {
			{f: info(key, 0, 185, false), flow: flow, known: flow}, {f: info(key, 184, 370, true), bad: true},
			{f: info(key, 185, 370, true), bad: true}, {f: info(key, 0, 185, false), flow: flow, bad: true}},
		"overlap from the left": {{f: info(key, 100, 200, false)}, {f: info(key, 50, 101, false), bad: true}},
		"inside of another":     {{f: info(key, 100, 200, false)}, {f: info(key, 120, 130, false), bad: true}},
		"around another":        {{f: info(key, 100, 200, false)}, {f: info(key, 90, 230, false), bad: true}},
		"two first ones":        {{f: info(key, 0, 100, false), flow: flow, known: flow}, {f: info(key, 0, 50, false), flow: flow + 1, bad: true}},
		"a complete datagram's identification comes again": {
			{f: info(key, 0, 185, false), flow: flow, known: flow}, {f: info(key, 185, 300, true), known: flow},
			{f: info(key, 0, 100, false), flow: flow + 1, known: flow + 1}, {f: info(key, 100, 250, true), known: flow + 1}},
		"forgotten": {
			{f: info(key, 0, 185, false), flow: flow, known: flow}, {f: info(key, 185, 300, true), after: 6 * time.Second}},
		"kept by its fragments": {
			{f: info(key, 0, 100, false), flow: flow, known: flow}, {f: info(key, 100, 200, false), after: 4 * time.Second, known: flow},
			{f: info(key, 200, 300, true), after: 4 * time.Second, known: flow}},
	} {
		t.Run(name, func(t *testing.T) {
			table, now := new(fragmentTable), int64(time.Hour)
			for i, s := range steps {
				now += int64(s.after)
				known, ok := table.add(s.f, s.flow, now)
				if known != s.known || ok == s.bad {
					t.Fatalf("step %d: flow %#x, ok %v; want %#x, %v", i, known, ok, s.known, !s.bad)
				}
				if got, ok := table.flow(s.f.Key, now); !s.bad && (got != s.known || !ok) {
					t.Fatalf("step %d: then flow %#x, ok %v", i, got, ok)
				}
			}
		})
	}
}

// A datagram has as many fragments as one of 64 KB over an MTU of 1,280 bytes; more are not believed.
func TestFragmentCount(t *testing.T) {
	table := new(fragmentTable)
	for i := range 56 {
		if _, ok := table.add(info(77, i*10, i*10+10, false), 0, 1); !ok {
			t.Fatalf("fragment %d was refused", i)
		}
	}
	if _, ok := table.add(info(77, 600, 610, false), 0, 1); ok {
		t.Fatal("fragment 57 was taken")
	}
}

// When a set is full, the datagram that has been silent for longest is forgotten.
func TestFragmentEviction(t *testing.T) {
	table := new(fragmentTable)
	key := func(i int) uint64 { return uint64(i)*fragmentSets + 5 + 1<<40 } // all in one set
	for i := range fragmentWays + 1 {
		table.add(info(key(i), 0, 10, false), flowKnown|uint64(i), int64(time.Hour)+int64(i))
	}
	for i := range fragmentWays + 1 {
		flow, _ := table.flow(key(i), int64(time.Hour)+100)
		if (flow == 0) != (i == 0) {
			t.Errorf("datagram %d: flow %#x", i, flow)
		}
	}
}

// Workers that see the fragments of the same datagrams at the same time agree about them: none is refused, and each datagram
// is known in the end to all.
func TestFragmentTableConcurrent(t *testing.T) {
	const workers, datagrams, pieces = 4, 400, 8
	table := new(fragmentTable)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for d := range datagrams {
				for _, p := range rng.Perm(pieces) {
					if p%workers != w {
						continue
					}
					flow := uint64(0)
					if p == 0 {
						flow = flowKnown | uint64(d)
					}
					if _, ok := table.add(info(uint64(d)<<20|uint64(d+2), p*10, p*10+10, p == pieces-1), flow, int64(time.Hour)); !ok {
						t.Errorf("datagram %d, piece %d: refused", d, p)
					}
				}
			}
		})
	}
	group.Wait()
	for d := range datagrams {
		if flow, ok := table.flow(uint64(d)<<20|uint64(d+2), int64(time.Hour)); !ok || flow != flowKnown|uint64(d) {
			t.Errorf("datagram %d: flow %#x, ok %v", d, flow, ok)
		}
	}
}

// datagram returns the fragments of a UDP datagram from a client to vip4, port 53.
func datagram(t testing.TB, client, id, pieces int) [][]byte {
	t.Helper()
	f := flow{src: netip.AddrFrom4([4]byte{198, 51, 100, byte(client)}), dst: vip4, sport: 4000, dport: 53, udp: true, payload: 80*pieces - 8}
	whole := f.frame(t)
	var out [][]byte
	for i := range pieces {
		ip := &layers.IPv4{Version: 4, TTL: 60, Id: uint16(id), Protocol: layers.IPProtocolUDP, FragOffset: uint16(i * 10),
			SrcIP: net.IP(f.src.AsSlice()), DstIP: net.IP(f.dst.AsSlice())}
		if i < pieces-1 {
			ip.Flags = layers.IPv4MoreFragments
		}
		b := gopacket.NewSerializeBuffer()
		err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			&layers.Ethernet{SrcMAC: peerMAC[:], DstMAC: nodeMAC[:], EthernetType: layers.EthernetTypeIPv4}, ip, gopacket.Payload(whole[34+80*i:34+80*i+80]))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b.Bytes())
	}
	return out
}

// dns returns a UDP service on port 53 with n backends.
func dns(n int) ServiceSpec {
	s := web(L2, n)
	s.Name, s.Protocol, s.Ports = "dns", protoUDP, []PortRange{{53, 53}}
	return s
}

// Fragments in any order go where the whole packets of their flow go.
func TestFragmentsFollowTheirFlow(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(dns(7), func() ServiceSpec { s := web(L2, 7); s.Protocol = protoUDP; return s }()) // two services: no guessing
	rng := rand.New(rand.NewPCG(1, 2))
	for client := range 50 {
		whole := flow{src: netip.AddrFrom4([4]byte{198, 51, 100, byte(client)}), dst: vip4, sport: 4000, dport: 53, udp: true}
		want := r.target(whole.frame(t))
		pieces := datagram(t, client, 1000+client, 6)
		rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		sent := r.pass(pieces...)
		if len(sent) != len(pieces) {
			t.Fatalf("client %d: %d of %d fragments sent: %+v", client, len(sent), len(pieces), r.worker.count.readTotals())
		}
		for _, f := range sent {
			if m := macOf(want); [6]byte(f[:6]) != m {
				t.Fatalf("client %d: a fragment went to %x, want %x", client, f[:6], m)
			}
		}
	}
}

// A fragment whose first one does not come waits 50 ms. Then it goes to the VIP's only service, if it has just one, by its
// addresses; else it is dropped with a reason.
func TestOrphans(t *testing.T) {
	for _, several := range []bool{false, true} {
		t.Run(fmt.Sprint("several services: ", several), func(t *testing.T) {
			r := newTestRig(t, 1000)
			services := []ServiceSpec{dns(3)}
			if several {
				other := web(L2, 3)
				other.Protocol = protoUDP
				services = append(services, other)
			}
			r.apply(services...)
			pieces := datagram(t, 1, 7, 3)
			if sent := r.pass(pieces[1:]...); len(sent) != 0 || r.worker.count.readTotals().held != 2 {
				t.Fatalf("%d sent, %d held", len(sent), r.worker.count.readTotals().held)
			}
			r.advance(51 * time.Millisecond)
			sent := r.pass(client(9, "S").frame(t)) // not of these services, or of the other
			for r.worker.turn() > 0 {
			}
			r.nic.Collect(0, func(f []byte) { sent = append(sent, f) })
			r.checkBooks()
			c := r.worker.count.readTotals()
			if several && (len(sent) != 0 || c.reasons[packet.FragmentUnknown] != 2) || !several && len(sent) != 2 || c.held != 0 {
				t.Fatalf("%d sent; %+v", len(sent), c)
			}
			if got := r.engine.Stats().Table.Inserted; !several && got != 0 {
				t.Errorf("%d words for what is no flow", got)
			}
		})
	}
}

// No more than 64 fragments wait; those beyond are treated as if their time were over.
func TestHeldLimit(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(dns(3))
	for i := range 100 {
		r.pass(datagram(t, i, i, 2)[1])
	}
	c := r.worker.count.readTotals()
	if c.held != maxHeld || c.forwarded != 100-maxHeld {
		t.Fatalf("%d held, %d forwarded", c.held, c.forwarded)
	}
	for i := range 100 {
		r.pass(datagram(t, i, i, 2)[0])
	}
	if c = r.worker.count.readTotals(); c.held != 0 || c.forwarded != 200 {
		t.Fatalf("then %d held, %d forwarded", c.held, c.forwarded)
	}
}

// What is held when the worker's queues change is dropped and counted, and no frame is lost.
func TestHeldAtRewiring(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(dns(3))
	r.pass(datagram(t, 1, 1, 3)[1:]...)
	r.worker.Attach(r.io())
	r.checkBooks()
	if c := r.worker.count.readTotals(); c.held != 0 || c.reasons[packet.FragmentUnknown] != 2 {
		t.Fatalf("%+v", c)
	}
}
