package forwarder

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

// challengeTo returns the number in the challenge that a frame is, to client i.
func challengeTo(t *testing.T, frame []byte, i int) uint32 {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	ip, _ := p.NetworkLayer().(*layers.IPv4)
	tcp, _ := p.TransportLayer().(*layers.TCP)
	if ip == nil || tcp == nil || !tcp.SYN || !tcp.ACK || ip.SrcIP.String() != vip4.String() || ip.DstIP.String() != client(i, "").src.String() || tcp.DstPort != layers.TCPPort(client(i, "").sport) {
		t.Fatalf("no challenge to client %d: %v", i, p)
	}
	return tcp.Ack
}

// resetOf is what client i sends when it gets a challenge.
func resetOf(t *testing.T, i int, number uint32) []byte {
	f := client(i, "R").frame(t)
	binary.BigEndian.PutUint32(f[14+20+4:], number)
	return f
}

// A SYN is challenged until its source has proved its address; then its connection goes on as any, and further ones are not
// challenged for a while. Who does not answer leaves nothing behind.
func TestChallenge(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 3)
	s.Defence = DefenceChallenge
	r.apply(s)
	for i := range 100 {
		sent := r.pass(client(i<<16, "S").frame(t))
		if len(sent) != 1 {
			t.Fatalf("client %d: %d frames", i, len(sent))
		}
		number := challengeTo(t, sent[0], i<<16)
		if len(sent[0]) > 60 {
			t.Fatalf("the challenge has %d bytes", len(sent[0]))
		}
		if i%2 == 1 { // guesses
			if sent := r.pass(resetOf(t, i<<16, number+uint32(i))); len(sent) == 0 {
				t.Fatalf("a reset of anybody's was taken for a proof")
			}
			if sent := r.pass(client(i<<16, "S").frame(t)); challengeTo(t, sent[0], i<<16) == 0 {
				t.Fatal("no challenge after a wrong answer")
			}
			continue
		}
		if sent := r.pass(resetOf(t, i<<16, number)); len(sent) != 0 {
			t.Fatalf("the answer went on: %x", sent)
		}
		to := r.target(client(i<<16, "S").frame(t))
		if got := r.target(client(i<<16, "A").frame(t)); !to.IsValid() || got != to {
			t.Fatalf("client %d: SYN to %v, ACK to %v", i, to, got)
		}
		next := client(i<<16, "S")
		next.sport += 7
		if got := r.target(next.frame(t)); !got.IsValid() {
			t.Fatal("the next connection of a proved source went nowhere")
		}
	}
	d := r.engine.Stats().Services[0].Defence
	if d.Challenged != 150 || d.Proofs != 50 || !d.Active {
		t.Errorf("%+v", d)
	}
	if a, b := r.reason(packet.Challenged), r.reason(packet.ChallengeAnswer); a != 150 || b != 50 {
		t.Errorf("%d challenged, %d answers", a, b)
	}
	// A proof is forgotten, and a number is good for a short time only.
	sent := r.pass(client(1<<16, "S").frame(t))
	number := challengeTo(t, sent[0], 1<<16)
	r.advance(time.Minute)
	if sent := r.pass(resetOf(t, 1<<16, number)); len(sent) == 0 {
		t.Error("a number of a minute ago was taken")
	}
	r.advance(10 * time.Minute)
	again := client(0, "S")
	again.sport += 9 // the connection of before still has its word, and nothing to prove
	sent = r.pass(again.frame(t))
	challengeTo(t, sent[0], 9)
}

// Established flows never notice that SYNs are challenged.
func TestChallengeLeavesFlowsAlone(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 3)
	r.apply(s)
	at := r.openFlows(100)
	s.Defence = DefenceChallenge
	r.apply(s)
	for i, want := range at {
		for _, flags := range []string{"A", "S", "A", "FA"} {
			if got := r.target(client(i, flags).frame(t)); got != want {
				t.Fatalf("client %d: %s went to %v, it is at %v", i, flags, got, want)
			}
		}
	}
	// Flows that ECMP moved here go by the hash.
	if got := r.target(client(5000, "A").frame(t)); !got.IsValid() {
		t.Error("a packet of an unknown flow went nowhere")
	}
}

// With auto, SYNs are challenged while there is a flood of them, and not before and after.
func TestDetect(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 3)
	s.Defence = DefenceAuto
	r.apply(s)
	next := 0
	second := func(flood, clients int) (changes []FloodChange) {
		for range 4 {
			var frames [][]byte
			for range flood / 4 {
				frames = append(frames, client(next<<8, "S").frame(t))
				next++
			}
			r.pass(frames...)
			for i := range clients / 4 {
				r.pass(client(1<<28+next+i, "S").frame(t))
				r.pass(client(1<<28+next+i, "A").frame(t))
			}
			next += clients
			r.advance(detectPeriod)
			changes = append(changes, r.engine.Detect()...)
		}
		return changes
	}
	active := func() bool { return r.engine.Stats().Services[0].Defence.Active }
	second(0, 0)
	if c := second(0, 800); len(c) != 0 || active() {
		t.Fatalf("many clients are a flood: %+v", c)
	}
	if c := second(400, 100); len(c) != 0 || active() {
		t.Fatalf("a few SYNs are a flood: %+v", c)
	}
	if c := second(4000, 100); len(c) != 1 || !c[0].Began || c[0].Service != "web" || !active() {
		t.Fatalf("a flood is not noticed: %+v", c)
	}
	for range 5 {
		if c := second(4000, 0); len(c) != 0 || !active() {
			t.Fatalf("the defence ends during the flood: %+v", c)
		}
	}
	for range 9 {
		if c := second(0, 0); len(c) != 0 || !active() {
			t.Fatalf("the defence ends at once: %+v", c)
		}
	}
	var off []FloodChange
	for range 3 {
		off = append(off, second(0, 0)...)
	}
	if len(off) != 1 || off[0].Began || active() {
		t.Fatalf("the defence does not end: %+v", off)
	}
	if c := off[0]; c.Lasted < 14*time.Second || c.Lasted > 17*time.Second || c.SYNs < 20_000 || c.SYNs > 25_000 || c.Challenged < 20_000 || c.Proofs != 0 {
		t.Errorf("the flood: %+v", c)
	}
	if n := r.engine.Stats().Services[0].Defence.Switches; n != 2 {
		t.Errorf("%d switches", n)
	}
}

// The detector as a pure function: a single spike is none, and it does not flap.
func TestDetector(t *testing.T) {
	var d detector
	syns, completed := uint64(0), uint64(0)
	look := func(s, c int) bool {
		syns += uint64(s)
		completed += uint64(c)
		return d.look(syns, completed, 250*time.Millisecond)
	}
	if look(10_000, 0) || look(10, 10) || look(10_000, 0) {
		t.Error("a spike is a flood")
	}
	if !look(10_000, 0) {
		t.Error("two in a row are none")
	}
	switches, was := 0, true
	for i := range 1000 { // a flood that comes and goes
		if now := look(i%8*1000, 0); now != was {
			switches, was = switches+1, now
		}
	}
	if switches != 0 || !was {
		t.Errorf("%d switches", switches)
	}
}

// synAckTo reads the SYN-ACK that a frame is, to client i.
func synAckTo(t *testing.T, frame []byte, i int) *layers.TCP {
	t.Helper()
	challengeTo(t, frame, i)
	return gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default).TransportLayer().(*layers.TCP)
}

// ackOf is client i's acknowledgement of a SYN-ACK, off by some.
func ackOf(t *testing.T, i int, synAck *layers.TCP, off uint32) []byte {
	f := client(i, "A").frame(t)
	binary.BigEndian.PutUint32(f[14+20+4:], synAck.Ack)
	binary.BigEndian.PutUint32(f[14+20+8:], synAck.Seq+1+off)
	return f
}

// With cookies, no SYN reaches a backend. Who brings the cookie back gets a flow, established; who does not leaves nothing behind
// while there is a flood.
func TestCookie(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 3)
	s.Defence = DefenceCookie
	r.apply(s)
	r.engine.flooded[r.engine.services["web"].number].Store(true)
	for i := range 100 {
		sent := r.pass(client(i<<16, "S").frame(t))
		if len(sent) != 1 {
			t.Fatalf("client %d: %d frames", i, len(sent))
		}
		synAck := synAckTo(t, sent[0], i<<16)
		if syn := binary.BigEndian.Uint32(client(i<<16, "S").frame(t)[14+20+4:]); synAck.Ack != syn+1 {
			t.Fatalf("SYN %d was acknowledged with %d", syn, synAck.Ack)
		}
		if len(r.pass(ackOf(t, i<<16, synAck, uint32(i%2)))) != 1 { // a wrong one may be of a flow that another node has opened
			t.Fatalf("client %d: the acknowledgement went nowhere", i)
		}
	}
	r.engine.SweepNow()
	if n := r.engine.Stats().Table.Established; n != 50 {
		t.Errorf("%d flows are established, want 50", n)
	}
	d := r.engine.Stats().Services[0].Defence
	if d.Challenged != 100 || d.Proofs != 50 || d.Mode != "cookie" {
		t.Errorf("%+v", d)
	}
}

// passUnproved sends far more packets of flows that nobody has proved than are taken in a second, and checks that the rest is dropped.
func (r *testRig) passUnproved() {
	r.t.Helper()
	const packets = 120_000
	gone := 0
	for i := range packets {
		gone += 1 - len(r.pass(client(2+i, "A").frame(r.t)))
	}
	if n := r.reason(packet.Unproved); n != uint64(gone) || n < packets-50_001 || n > packets-49_900 {
		r.t.Errorf("%d packets are unproved, %d of %d went nowhere", n, gone, packets)
	}
}

// In a flood, packets without a word of sources that have proved nothing go on by the hash, so many a second, and leave nothing
// behind; without one they are any flow's.
func TestUnproved(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 3)
	s.Defence = DefenceAuto
	r.apply(s)
	flows := func() uint64 {
		r.engine.SweepNow()
		return r.engine.Stats().Table.Probation
	}
	r.target(client(1, "A").frame(t))
	if n := flows(); n != 1 {
		t.Fatalf("without a flood: %d flows", n)
	}
	r.engine.flooded[r.engine.services["web"].number].Store(true)
	r.passUnproved()
	if n := flows(); n > 1 {
		t.Errorf("%d flows", n)
	}
}

// A service that always answers with cookies takes no more than that of flows that nobody has proved either, but without a flood of SYNs
// they get their words: ECMP may have moved them here.
func TestUnprovedWithCookies(t *testing.T) {
	r := newTestRig(t, 200_000)
	s := web(L2, 3)
	s.Defence = DefenceCookie
	r.apply(s)
	r.passUnproved()
	r.engine.SweepNow()
	if n := r.engine.Stats().Table.Probation; n < 40_000 || n > 50_001 {
		t.Errorf("%d flows", n)
	}
}

// Whose flow was established in calm times needs no proof in a flood.
func TestUsersAreProved(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 3)
	s.Defence = DefenceAuto
	r.apply(s)
	r.target(client(1, "S").frame(t))
	r.target(client(1, "A").frame(t))
	r.advance(3 * time.Second)
	r.target(client(1, "A").frame(t))
	r.target(client(2<<16, "A").frame(t)) // its first packet only
	r.engine.flooded[r.engine.services["web"].number].Store(true)
	user := client(1, "S")
	user.sport += 7
	if to := r.target(user.frame(t)); !to.IsValid() {
		t.Error("the user's next SYN went nowhere")
	}
	before := r.reason(packet.Challenged)
	other := client(2<<16, "S")
	other.sport += 7
	r.pass(other.frame(t))
	if n := r.reason(packet.Challenged) - before; n != 1 || before != 0 {
		t.Errorf("%d SYNs were challenged before, and %d of who has proved nothing", before, n)
	}
}

// With a scheduler that gives the SYN a word, the acknowledgement shows nothing; still, many short connections are no flood, and
// SYNs alone are.
func TestDetectWithWordsForSYNs(t *testing.T) {
	r := newTestRig(t, 40_000)
	s := web(L2, 3)
	s.Defence, s.Scheduler = DefenceAuto, maglev.WRR
	r.apply(s)
	next := 0
	second := func(flags ...string) (changes []FloodChange) {
		for range 4 {
			for range 250 {
				for _, f := range flags {
					r.pass(client(next<<8, f).frame(t))
				}
				next++
			}
			r.advance(detectPeriod)
			changes = append(changes, r.engine.Detect()...)
		}
		return changes
	}
	for range 8 {
		if c := second("S", "A", "FA"); len(c) != 0 {
			t.Fatalf("many clients are a flood: %+v", c)
		}
	}
	for i := range 5 {
		if c := second("S"); len(c) != 0 {
			if i < 3 || !c[0].Began {
				t.Errorf("after %d s: %+v", i+1, c)
			}
			return
		}
	}
	t.Error("a flood is not noticed")
}

// seqOf is the sequence number of client i's SYN.
func seqOf(t *testing.T, i int) uint32 {
	return binary.BigEndian.Uint32(client(i, "S").frame(t)[14+20+4:])
}

// Of SYNs a sample is counted, each for as many as it stands for, so that counts and shares are those of all.
func TestTopSYNs(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 3)
	s.Defence = DefenceCookie
	r.apply(s)
	const others, each = 400, 3 // of three SYNs one is of another source
	for i := range others {
		r.pass(client(1, "S").frame(t), client(1, "S").frame(t), client(i<<16, "S").frame(t))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		top, total := r.engine.TopSources(TopSYNs)
		if total != others*each || len(top) < others/10 || packet.FromNetip(client(1, "").src) != (packet.Addr{Hi: top[0].Hi, Lo: top[0].Lo}) {
			t.Errorf("%d SYNs of %d sources, the first %+v", total, len(top), top)
			return
		}
		if n := top[0].N - top[0].Error; n < 2*others-8 || n > 2*others+8 {
			t.Errorf("%d SYNs of the heavy source, want %d", n, 2*others)
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
