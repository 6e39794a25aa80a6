package forwarder

import (
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

// In a flood auto answers with cookies while the backends take them, and with challenges else; whichever it does, and without a
// flood, no handshake is lost.
func TestAutoAnswersWithWhatBackendsCan(t *testing.T) {
	r := newTestRig(t, 4000)
	s := web(L2, 3)
	s.Defence = DefenceAuto
	r.apply(s)
	flooded := &r.engine.flooded[r.engine.services["web"].number]
	answer := func(i int) *layers.TCP {
		t.Helper()
		sent := r.pass(client(i, "S").frame(t))
		if len(sent) != 1 {
			t.Fatalf("client %d: %d frames", i, len(sent))
		}
		p := gopacket.NewPacket(sent[0], layers.LayerTypeEthernet, gopacket.Default)
		if ip := p.NetworkLayer().(*layers.IPv4); ip.DstIP.String() != client(i, "").src.String() {
			return nil // it went to a backend
		}
		return p.TransportLayer().(*layers.TCP)
	}
	next := 0
	check := func(what string, wantCookie, wantAnswer bool) {
		t.Helper()
		next += 1 << 16
		tcp := answer(next)
		if tcp == nil {
			if wantAnswer {
				t.Errorf("%s: the SYN went to a backend", what)
			}
			return
		}
		isCookie := tcp.Ack == seqOf(t, next)+1
		if !wantAnswer || isCookie != wantCookie {
			t.Errorf("%s: the answer is a cookie: %v", what, isCookie)
		}
		if isCookie {
			before := r.engine.Stats().Services[0].Defence.Proofs
			if sent := r.pass(ackOf(t, next, tcp, 0)); len(sent) != 1 {
				t.Errorf("%s: the cookie that came back went nowhere", what)
			}
			if got := r.engine.Stats().Services[0].Defence.Proofs; got != before+1 {
				t.Errorf("%s: %d proofs, want %d", what, got, before+1)
			}
		}
	}
	if !r.engine.SetCookies("web", CookieOffer{Ready: true}) || r.engine.SetCookies("nobody", CookieOffer{}) {
		t.Error("SetCookies")
	}
	check("no flood", false, false)
	flooded.Store(true)
	check("a flood", true, true)
	if got := r.engine.Stats().Services[0].Defence.Answer; got != "cookie" {
		t.Errorf("answer: %q", got)
	}
	r.engine.SetCookies("web", CookieOffer{})
	check("a backend takes none any more", false, true)
	if got := r.engine.Stats().Services[0].Defence.Answer; got != "challenge" {
		t.Errorf("answer: %q", got)
	}
	r.engine.SetCookies("web", CookieOffer{Ready: true})
	r.apply()
	r.apply(s)
	flooded.Store(true)
	check("another service has its number", false, true)
}

// A SYN-ACK agrees to nothing that a backend does not.
func TestLimitOptions(t *testing.T) {
	all := packet.SYNOptions{TSVal: 5, MSS: 1460, WScale: 9, SYNFlags: packet.SYNFlags{SACK: true, ECN: true, Timestamps: true}}
	for _, c := range []struct {
		offer CookieOffer
		want  packet.SYNOptions
	}{
		{CookieOffer{}, all},
		{CookieOffer{Ready: true}, all},
		{CookieOffer{NoWindowScale: true}, packet.SYNOptions{TSVal: 5, MSS: 1460, WScale: packet.NoWScale, SYNFlags: packet.SYNFlags{SACK: true, ECN: true, Timestamps: true}}},
		{CookieOffer{NoSACK: true}, packet.SYNOptions{TSVal: 5, MSS: 1460, WScale: 9, SYNFlags: packet.SYNFlags{ECN: true, Timestamps: true}}},
		{CookieOffer{NoTimestamps: true}, packet.SYNOptions{TSVal: 5, MSS: 1460, WScale: 9, SYNFlags: packet.SYNFlags{SACK: true, ECN: true}}},
		{CookieOffer{NoECN: true}, packet.SYNOptions{TSVal: 5, MSS: 1460, WScale: 9, SYNFlags: packet.SYNFlags{SACK: true, Timestamps: true}}},
	} {
		if got := limitOptions(all, c.offer.word()); got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.offer, got, c.want)
		}
	}
}
