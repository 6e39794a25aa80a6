package forwarder

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

// icmpAbout builds the error that a router sends to the VIP about a reply of the flow's backend.
func icmpAbout(t testing.TB, f flow) []byte {
	t.Helper()
	back := flow{src: f.dst, dst: f.src, sport: f.dport, dport: f.sport, udp: f.udp, flags: "A", payload: 100}.frame(t)[14:]
	ip := &layers.IPv4{Version: 4, TTL: 60, Protocol: layers.IPProtocolICMPv4, SrcIP: net.IP{203, 0, 113, 1}, DstIP: net.IP(f.dst.AsSlice())}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: peerMAC[:], DstMAC: nodeMAC[:], EthernetType: layers.EthernetTypeIPv4}, ip,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 1300}, gopacket.Payload(back[:28]))
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// An error about a flow reaches the flow's backend: by its word, and on a node that has none by the hash. It leaves no word,
// and keeps none alive.
func TestICMPErrorReachesTheBackend(t *testing.T) {
	r := newTestRig(t, 10_000)
	r.apply(web(IPIP, 5))
	for i := range 200 {
		at := r.target(client(i, "S").frame(t)) // leaves no word
		if got := r.target(icmpAbout(t, client(i, ""))); got != at {
			t.Fatalf("client %d: SYN to %v, ICMP to %v", i, at, got)
		}
		if w := r.word(client(i, "A").frame(t)); w != 0 {
			t.Fatalf("client %d: the ICMP error left the word %x", i, w)
		}
	}
	at := map[int]netip.Addr{}
	for i := range 200 {
		at[i] = r.target(client(i, "A").frame(t))
	}
	r.apply(web(IPIP, 2)) // the words tell now, not the table
	for _, state := range []maglev.AdmitState{maglev.Up, maglev.Draining, maglev.Down} {
		r.engine.SetAdmit("web", "web-1", maglev.MakeAdmit(state, maglev.All))
		for i := range 200 {
			if got := r.target(icmpAbout(t, client(i, ""))); got != at[i] {
				t.Fatalf("web-1 %v, client %d: the flow is at %v, ICMP to %v", state, i, at[i], got)
			}
		}
	}
	before := r.word(client(1, "A").frame(t))
	r.advance(10 * time.Second)
	r.target(icmpAbout(t, client(1, "")))
	if after := r.word(client(1, "A").frame(t)); after != before {
		t.Fatalf("the error changed the word from %x to %x", before, after)
	}
}

// An error about something that is no service's is not forwarded.
func TestICMPErrorOfNoFlow(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 3))
	f := client(1, "")
	f.dport = 81
	if sent := r.pass(icmpAbout(t, f)); len(sent) != 0 || r.reason(packet.NoService) != 1 {
		t.Fatalf("%d frames sent; %v", len(sent), r.worker.count.readTotals().reasons)
	}
}

// echo builds an echo request.
func echo(t testing.TB, to netip.Addr) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 3, Protocol: layers.IPProtocolICMPv4, SrcIP: net.IP{198, 51, 100, 7}, DstIP: net.IP(to.AsSlice())}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: peerMAC[:], DstMAC: nodeMAC[:], EthernetType: layers.EthernetTypeIPv4}, ip,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 7, Seq: 1}, gopacket.Payload("ping"))
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A VIP answers echo requests, whichever its services, up to the limit; other addresses do not.
func TestEcho(t *testing.T) {
	r := newTestRig(t, 1000)
	r.apply(web(L2, 1))
	sent := r.pass(echo(t, vip4))
	if len(sent) != 1 {
		t.Fatalf("%d frames sent: %v", len(sent), r.worker.count.readTotals().reasons)
	}
	p := gopacket.NewPacket(sent[0], layers.LayerTypeEthernet, gopacket.Default)
	ip, icmp := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if !ip.DstIP.Equal(net.IP{198, 51, 100, 7}) || !ip.SrcIP.Equal(net.IP(vip4.AsSlice())) || icmp.TypeCode.Type() != 0 || icmp.Id != 7 || string(icmp.Payload[:4]) != "ping" {
		t.Fatal(p)
	}
	if r.pass(echo(t, netip.MustParseAddr("192.0.2.99"))); r.reason(packet.NotVIP) != 1 {
		t.Fatal("an address that is no VIP was answered for")
	}
	for range 10 * ownBurst {
		r.pass(echo(t, vip4))
	}
	c := r.worker.count.readTotals()
	if c.answered != ownBurst || c.reasons[packet.EchoLimit] != 9*ownBurst+1 {
		t.Fatalf("%d answered, %d over the limit, in an instant", c.answered, c.reasons[packet.EchoLimit])
	}
	r.advance(time.Second)
	for range 10 * ownBurst {
		r.pass(echo(t, vip4))
		r.advance(time.Millisecond)
	}
	if now := r.worker.count.readTotals().answered; now != c.answered+10*ownBurst {
		t.Fatalf("%d of %d answered within the limit", now-c.answered, 10*ownBurst)
	}
}

// In the minute after a change of backends an error of a flow without a word reaches both backends that the flow may be at.
func TestICMPErrorReachesBothCandidates(t *testing.T) {
	r := newTestRig(t, 10_000)
	r.apply(web(L2, 4))
	old := map[int]netip.Addr{}
	for i := range 300 {
		old[i] = r.target(client(i, "S").frame(t))
	}
	r.apply(web(L2, 8))
	moved := 0
	for i := range 300 {
		now := r.target(client(i, "S").frame(t)) // leaves a word if it differs: another hash without one is needed below
		if now == old[i] {
			continue
		}
		moved++
		clear(r.words)
		reached := map[packet.MAC]bool{}
		for _, f := range r.pass(icmpAbout(t, client(i, ""))) {
			reached[packet.MAC(f[:6])] = true
		}
		if len(reached) != 2 || !reached[macOf(old[i])] || !reached[macOf(now)] {
			t.Fatalf("client %d: the flow was at %v and would be at %v now; the error reached %v", i, old[i], now, reached)
		}
	}
	if moved < 50 {
		t.Fatalf("only %d flows would move: the test shows nothing", moved)
	}
	if c := r.worker.count.readTotals(); c.generated != uint64(moved) {
		t.Fatalf("%d generated, want %d", c.generated, moved)
	}
	// A batch full of them: no more copies than there is room for, and no frame is lost.
	var many [][]byte
	for i := range 512 {
		many = append(many, icmpAbout(t, client(i, "")))
	}
	clear(r.words)
	r.pass(many...)
	r.advance(2 * time.Minute)
	before := r.worker.count.readTotals().generated
	r.pass(many...)
	if after := r.worker.count.readTotals().generated; after != before {
		t.Fatalf("%d copies after the transition", after-before)
	}
}
