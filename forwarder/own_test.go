package forwarder

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/maglev"
)

// A packet that is too big and must not be fragmented is dropped, and its sender told how large it may be; one that may be
// goes in pieces; either only as far as frames and limits allow, and whatever happens is counted.
func TestTooBig(t *testing.T) {
	for _, c := range []struct {
		inner6, df, split bool
		told              bool
		pieces            int
	}{
		{df: true, split: true, told: true},
		{df: true, told: true},
		{split: true, pieces: 2},
		{},
		{inner6: true, split: true, told: true},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			r := newTestRig(t, 1000)
			s := web(IPIP, 3)
			f := client(1, "A")
			f.payload = 1400
			if c.inner6 {
				s.VIP = vip6
				f.src, f.dst = netip.MustParseAddr("2001:db8:5::7"), vip6
			}
			r.apply(s)
			r.engine.tunnel.Fragment = c.split
			r.changeHops(func(h *Hop) { h.MTU = 1400 })
			in := f.frame(t)
			if c.df {
				in[20] |= 0x40
				setIPv4Checksum(in[14:34])
			}
			for round := range 3 {
				before := r.worker.count.readTotals()
				var frames [][]byte
				for range 40 {
					frames = append(frames, in)
				}
				sent := r.pass(frames...)
				now := r.worker.count.readTotals()
				out := now.forwarded + now.answered + now.generated - before.forwarded - before.answered - before.generated
				if uint64(len(sent)) != out {
					t.Errorf("round %d: %d frames sent, %d counted", round, len(sent), out)
				}
				big := now.reasons[packet.TooBig] - before.reasons[packet.TooBig]
				switch {
				case c.told && (len(sent) != 40 || big != 40 || now.forwarded != before.forwarded):
					t.Errorf("round %d: %d answers to %d too big", round, len(sent), big)
				case c.pieces > 0 && (len(sent) != 40*c.pieces || big != 0):
					t.Errorf("round %d: %d pieces of %d packets, %d too big", round, len(sent), 40, big)
				case !c.told && c.pieces == 0 && (len(sent) != 0 || big != 40):
					t.Errorf("round %d: %d sent, %d too big", round, len(sent), big)
				}
				for _, f := range sent {
					p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default)
					if p.ErrorLayer() != nil {
						t.Fatal(p.ErrorLayer().Error())
					}
					if c.told && [6]byte(f[:6]) != peerMAC {
						t.Fatalf("the answer went to %x", f[:6])
					}
				}
				r.advance(time.Second)
			}
		})
	}
}

func setIPv4Checksum(h []byte) {
	h[10], h[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
}

// What a worker says by itself is limited, each kind for itself.
func TestOwnLimit(t *testing.T) {
	r := newTestRig(t, 1000)
	s := web(L2, 2)
	s.Reject = true
	r.apply(s)
	for i := range 2 {
		r.engine.SetAdmit("web", fmt.Sprintf("web-%d", i+1), maglev.MakeAdmit(maglev.Down, 0))
	}
	var frames [][]byte
	for i := range 5 * ownBurst {
		frames = append(frames, client(i, "S").frame(t))
	}
	sent := r.pass(frames...)
	c := r.worker.count.readTotals()
	if len(sent) != ownBurst || c.generated != ownBurst || c.reasons[packet.NoBackend] != 5*ownBurst {
		t.Fatalf("%d resets, %d generated, %d without backend", len(sent), c.generated, c.reasons[packet.NoBackend])
	}
	for _, f := range sent {
		tcp := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeTCP).(*layers.TCP)
		if !tcp.RST || !tcp.ACK || tcp.Ack != 1 || tcp.SrcPort != 80 {
			t.Fatalf("no reset of the SYN: %+v", tcp)
		}
	}
}
