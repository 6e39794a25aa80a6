package forwarder

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

// TestRewriteAlike: what the loop of rewrite writes out is what packet.Encap.Apply does, which has tests of its own.
func TestRewriteAlike(t *testing.T) {
	backends := []netip.Addr{backend4(1), netip.MustParseAddr("2001:db8:2::1")}
	sources := map[netip.Addr]netip.Addr{vip4: netip.MustParseAddr("198.51.100.7"), vip6: netip.MustParseAddr("2001:db8:5::7")}
	for _, mode := range []Mode{L2, IPIP, GUE} {
		for _, vip := range []netip.Addr{vip4, vip6} {
			for _, backend := range backends {
				if mode == L2 && vip.Is4() != backend.Is4() {
					continue
				}
				t.Run(fmt.Sprint(mode, vip, backend), func(t *testing.T) {
					r := newTestRig(t, 1000)
					s := web(mode, 1)
					s.VIP, s.Backends[0].Address = vip, backend
					r.apply(s)
					for class := range 256 {
						frame := flow{src: sources[vip], dst: vip, sport: uint16(1000 + class), dport: 80, flags: "A", payload: class * 5}.frame(t)
						setClass(frame, uint8(class))
						m := packet.Meta{}
						packet.Parse(frame, &r.engine.keys.Flow, &m)
						if m.Reason != packet.None || m.Class != uint8(class) {
							t.Fatalf("%x: %+v", frame, m)
						}
						sent := r.pass(frame, frame)
						memory := append(make([]byte, packet.Headroom), frame...)
						start, length := r.engine.snapshot.Load().targets[0].encap.Apply(memory, packet.Headroom, &m)
						want := memory[start : start+length]
						if len(sent) != 2 || !bytes.Equal(sent[0], want) || !bytes.Equal(sent[1], want) {
							t.Fatalf("%x: sent\n%x, want twice\n%x", frame, sent, want)
						}
					}
				})
			}
		}
	}
}

// setClass gives a frame, whose traffic class is zero, another one.
func setClass(frame []byte, class uint8) {
	if frame[14]>>4 == 6 {
		frame[14], frame[15] = 0x60|class>>4, class<<4
		return
	}
	frame[15] = class
	sum := uint32(^binary.BigEndian.Uint16(frame[24:])) + uint32(class)
	binary.BigEndian.PutUint16(frame[24:], ^uint16(sum>>16+sum))
}
