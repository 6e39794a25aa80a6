//go:build linux

package agent

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// TestGUE: which UDP packets are GUE, and which of these are good. What GUE shares with IP-in-IP is in decap_test.go.
func TestGUE(t *testing.T) {
	d := load(t)
	taken := Counters{DecapsulatedIPv4: 1, DecapsulatedIPv6: 1} // the one or the other
	short := func(n int) uint16 { return uint16(-n) }
	for _, c := range []struct {
		name    string
		pairs   []pair
		change  func(*testPacket)
		version byte // of the inner packet, in the finished frame; 0: as it is
		counted Counters
	}{
		{"no checksum", pairs, func(p *testPacket) { p.udp.checksum = 0 }, 0, taken},
		{"any checksum", pairs, func(p *testPacket) { p.udp.checksum = 0xbad }, 0, taken},
		{"more in the datagram than the inner packet", pairs, func(p *testPacket) { p.udp.extra = 10 }, 0, taken},
		{"another port", pairs, func(p *testPacket) { p.udp.port++ }, 0, Counters{}},
		{"the port in the other byte order", pairs, func(p *testPacket) { p.udp.port = DefaultGUEPort>>8 | DefaultGUEPort&0xff<<8 }, 0, Counters{}},
		{"variant 0, a GUE header", pairs, nil, 0x04, Counters{Malformed: 1}},
		{"variant 1, version 5", pairs, nil, 0x55, Counters{Malformed: 1}},
		{"variant 1, version 7", pairs, nil, 0x75, Counters{Malformed: 1}},
		{"variant 2", pairs, nil, 0x85, Counters{Malformed: 1}},
		{"inner header length 4 words", []pair{pairs[0], pairs[2]}, nil, 0x44, Counters{Malformed: 1}},
		{"the datagram ends a byte before the inner packet", pairs, func(p *testPacket) { p.udp.extra = short(1) }, 0, Counters{Malformed: 1}},
		{"the datagram ends in the inner header", pairs, func(p *testPacket) { p.udp.extra = short(81) }, 0, Counters{Malformed: 1}},
		{"the datagram is shorter than its header", pairs, func(p *testPacket) { p.udp.extra = short(len(p.innerBytes()) + 1) }, 0, Counters{Malformed: 1}},
		{"first fragment", pairs[:2], func(p *testPacket) { p.o4.Flags = 1 }, 0, Counters{Fragment: 1}},
		{"later fragment, which has no port", pairs[:2], func(p *testPacket) { p.o4.FragOffset = 1 }, 0, Counters{}},
		{"IPv6 fragment header", pairs[2:], func(p *testPacket) { p.o6.NextHeader = 44 }, 0, Counters{}},
	} {
		for _, p := range inGUE(c.pairs) {
			t.Run(fmt.Sprint(c.name, "/", p), func(t *testing.T) {
				pkt := newTestPacket(p)
				if c.change != nil {
					c.change(pkt)
				}
				frame := pkt.frame()
				if c.version != 0 {
					frame[14+p.outerLen()] = c.version
				}
				if c.counted == taken {
					d.expect(t, frame, next, pkt.bare(), p.decapsulated(1))
				} else {
					d.expect(t, frame, next, nil, c.counted)
				}
			})
		}
	}

	t.Run("port changed and turned off", func(t *testing.T) {
		for _, c := range []struct {
			listen, port uint16
			taken        bool
		}{{6081, 6081, true}, {6081, 6080, false}, {0, 6080, false}, {0, 0, false}, {65535, 65535, true}} {
			if err := d.setParameters(parameters{GUEPort: c.listen}); err != nil {
				t.Fatal(err)
			}
			for _, p := range inGUE(pairs) {
				pkt := newTestPacket(p)
				pkt.udp.port = c.port
				if c.taken {
					d.expect(t, pkt.frame(), next, pkt.bare(), p.decapsulated(1))
				} else {
					d.expect(t, pkt.frame(), next, nil, Counters{})
				}
			}
		}
		// IP-in-IP does not care.
		d.expect(t, newTestPacket(pairs[0]).frame(), next, newTestPacket(pairs[0]).bare(), Counters{DecapsulatedIPv4: 1})
	})
}

// TestMergingInterface: an interface that merges datagrams is told of, merged packets are left alone and counted, and
// those without a checksum, which the kernel does not merge, arrive as ever.
func TestMergingInterface(t *testing.T) {
	r := newRig(t)
	r.wrap()
	r.gue.Store(true)
	r.ok(r.node.SetFeatures("eth0", map[string]bool{testenv.TXChecksum: false}))
	r.ok(r.backend.SetFeatures("eth0", map[string]bool{testenv.SoftMerge: true, "rx-udp-gro-forwarding": true}))
	r.flushAfter("2000000")
	agent := r.start(both...)
	r.ok(agent.WaitOutput(10*time.Second, "ethtool -K eth0 rx-udp-gro-forwarding off"))
	payload := bytes.Repeat([]byte("payload "), 100_000)
	r.serve(payload)
	r.ok(r.exchange(vip4, payload))
	if n := r.status().Packets; n.Merged != 0 || n.DecapsulatedIPv4 == 0 {
		t.Errorf("without checksums: counted %+v", n)
	}

	// A burst of packets of one size, so that they are merged.
	w := wrapper{}
	r.ok(r.node.Do(w.open))
	defer w.close()
	pkt := newTestPacket(pairs[0])
	pkt.i4.Protocol = unix.IPPROTO_UDP
	r.eventually("a burst is merged", func() bool {
		for range 10 {
			r.ok(w.send(pair{gue: true}, true, pkt.innerBytes()))
		}
		return r.status().Packets.Merged >= 2
	})

	r.ok(r.backend.SetFeatures("eth0", map[string]bool{"rx-udp-gro-forwarding": false}))
	r.checksums.Store(true)
	before := r.status().Packets
	r.ok(r.exchange(vip4, payload))
	if n := minus(r.status().Packets, before); n.Merged != 0 || n.DecapsulatedIPv4 == 0 {
		t.Errorf("with checksums, not merging: counted %+v", n)
	}
}
