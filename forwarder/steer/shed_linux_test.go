package steer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/shm"
	"github.com/sluice-lb/sluice/testenv"
)

// shedRig is a rig that shares a set of proved sources, of so many words.
func shedRig(t *testing.T, words int) (*rig, *guard.Proved) {
	t.Helper()
	testenv.RequireRoot(t)
	memory, lines, err := shm.NewArrayMap("proved", words)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lines.Close(); memory.Close() })
	proved, err := guard.NewProved(memory.Words(), [2]uint64{rand.Uint64(), rand.Uint64()})
	if err != nil {
		t.Fatal(err)
	}
	r := newPreparedRig(t, 4, 1, AttachOptions{Queues: 1}, func(s *Steer) error {
		key, mask := proved.Shared()
		return s.ShareProved(lines, key, mask)
	}, vip4, vip6)
	r.giveSocket(t)
	return r, proved
}

// sheds reports whether a frame to a VIP is shed.
func (r *rig) sheds(t *testing.T, frame []byte) bool {
	t.Helper()
	return r.dies(t, frame, func(s *Stats) *uint64 { return &s.Shed })
}

func prove(p *guard.Proved, source netip.Addr, now int64) {
	a := packet.FromNetip(source)
	p.Add(p.Hash(a.Hi, a.Lo), now)
}

// tcpFrame is a segment with these flags (byte 13 of its header).
func tcpFrame(t *testing.T, src string, vip netip.Addr, flags byte, port uint16) []byte {
	frame := append(sent(t, src, vip.String(), protoTCP, 1, port), make([]byte, 12)...)
	header := 14 + 20
	if vip.Is6() {
		header = 14 + 40
	}
	frame[header+13] = flags
	return frame
}

const (
	flagSYN = 0x02
	flagACK = 0x10
)

// What is shed is told by destination and class, and never what comes from a source that has proved its address.
func TestShed(t *testing.T) {
	r, proved := shedRig(t, 1<<10)
	syn := func(port uint16) []byte { return tcpFrame(t, "198.51.100.7", vip4, flagSYN, port) }
	if r.sheds(t, syn(80)) || r.watched.Refusals != 0 {
		t.Error("without anything to shed")
	}
	set := func(list ...Shed) {
		t.Helper()
		if err := r.SetShed(list); err != nil {
			t.Fatal(err)
		}
	}
	web := Shed{VIP: vip4, Proto: 6, Ports: []PortRange{{80, 80}, {8000, 8999}}, Place: 3}
	web.Share[ShedSYN] = ShedAll
	set(web)
	udp4 := sent(t, "198.51.100.7", vip4.String(), protoUDP, 1, 80)
	ping := sent(t, "198.51.100.7", vip4.String(), layers.IPProtocolICMPv4, 0, 0)
	for _, c := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"SYN", syn(80), true},
		{"SYN, a range's first port", syn(8000), true},
		{"SYN, its last", syn(8999), true},
		{"SYN, the next", syn(9000), false},
		{"SYN, another port", syn(81), false},
		{"SYN with ECN", tcpFrame(t, "198.51.100.7", vip4, flagSYN|0xc0, 80), true},
		{"SYN-ACK", tcpFrame(t, "198.51.100.7", vip4, flagSYN|flagACK, 80), false},
		{"ACK", tcpFrame(t, "198.51.100.7", vip4, flagACK, 80), false},
		{"the other VIP", tcpFrame(t, "2001:db8:1::7", vip6, flagSYN, 80), false},
		{"UDP", udp4, false},
		{"ICMP", ping, false},
	} {
		if got := r.sheds(t, c.frame); got != c.want {
			t.Errorf("%s: shed %v, want %v", c.name, got, c.want)
		}
	}

	dns := Shed{VIP: vip6, Proto: 17, Ports: []PortRange{{0, 65535}}, Place: 4}
	dns.Share[ShedUDP] = ShedAll
	rest := Shed{Place: 5}
	rest.Share[ShedPortless] = ShedAll
	web.Share[ShedSYN], web.Share[ShedTCP] = 0, ShedAll
	set(dns, rest, web)
	if r.sheds(t, syn(80)) || !r.sheds(t, tcpFrame(t, "198.51.100.7", vip4, flagACK, 80)) || r.sheds(t, udp4) || !r.sheds(t, ping) ||
		!r.sheds(t, sent(t, "2001:db8:1::7", vip6.String(), protoUDP, 1, 53)) {
		t.Error("after a change")
	}

	// Proof counts for the very address, and not for ever.
	now := monotonic(t)
	dns.VIP, dns.Ports = vip4, []PortRange{{80, 80}}
	set(dns, rest, web)
	for _, c := range []struct {
		name string
		at   int64
		want bool
	}{{"a minute ago", now - 60e9, false}, {"an hour ago and more", now - 3660e9, true}, {"now", now, false}, {"by a clock ahead", now + 1e9, false}} {
		prove(proved, netip.MustParseAddr("198.51.100.7"), c.at)
		if got := r.sheds(t, udp4); got != c.want {
			t.Errorf("proved %s: shed %v, want %v", c.name, got, c.want)
		}
	}
	if r.sheds(t, ping) || !r.sheds(t, sent(t, "198.51.100.8", vip4.String(), protoUDP, 1, 80)) {
		t.Error("proof is of an address")
	}

	counts, err := r.ShedCounts()
	if err != nil {
		t.Fatal(err)
	}
	sum := uint64(0)
	for _, c := range counts {
		for _, n := range c {
			sum += n
		}
	}
	if counts[3][ShedSYN] != 4 || counts[3][ShedTCP] != 1 || counts[4][ShedUDP] != 3 || counts[5][ShedPortless] != 1 || sum != r.stats(t).Shed {
		t.Errorf("counts by place and class: %v, of %d", counts[:6], r.stats(t).Shed)
	}
	set()
	if r.sheds(t, ping) || r.watched.Refusals != 0 {
		t.Error("with nothing to shed any more")
	}
}

// Go and the program find the same sources in the set, of both IP versions, and no other.
func TestShedKnowsProved(t *testing.T) {
	r, proved := shedRig(t, 1<<14)
	all := Shed{VIP: vip4, Proto: 17, Ports: []PortRange{{53, 53}}}
	all.Share[ShedUDP] = ShedAll
	six := all
	six.VIP, six.Place = vip6, 1
	if err := r.SetShed([]Shed{all, six}); err != nil {
		t.Fatal(err)
	}
	now := monotonic(t)
	for i := range 500 {
		source, vip := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), vip4
		if i%2 == 1 {
			a := netip.MustParseAddr("2001:db8:1::").As16()
			a[4], a[7], a[14], a[15] = byte(rand.Uint32()), byte(i), byte(rand.Uint32()), byte(rand.Uint32())
			source, vip = netip.AddrFrom16(a), vip6
		}
		frame := sent(t, source.String(), vip.String(), protoUDP, 1, 53)
		if !r.sheds(t, frame) {
			t.Fatalf("%v has proved nothing, and passes", source)
		}
		prove(proved, source, now)
		if r.sheds(t, frame) {
			t.Fatalf("%v has proved its address, and is shed", source)
		}
	}
}

// A share is one of the sources, and a source is all in or all out for a while.
func TestShedShare(t *testing.T) {
	r, _ := shedRig(t, 1<<10)
	d := Shed{VIP: vip4, Proto: 17, Ports: []PortRange{{53, 53}}}
	for _, share := range []uint16{0, 64, 192, ShedAll} {
		d.Share[ShedUDP] = share
		if err := r.SetShed([]Shed{d}); err != nil {
			t.Fatal(err)
		}
		const sources = 2000
		shed := 0
		for i := range sources {
			if r.sheds(t, sent(t, fmt.Sprintf("203.0.%d.%d", i>>8, i&255), vip4.String(), protoUDP, 1, 53)) {
				shed++
			}
		}
		// Four standard deviations of a binomial distribution, at its widest 0.045.
		if got, want := float64(shed)/sources, float64(share)/256; got < want-0.05 || got > want+0.05 {
			t.Errorf("share %d: of the sources %.3f were shed, want about %.3f", share, got, want)
		}
	}
}

func TestSetShedRefuses(t *testing.T) {
	r := newRig(t, 4, vip4)
	web := Shed{VIP: vip4, Proto: 6, Ports: []PortRange{{80, 80}}}
	for _, c := range []struct {
		name, want string
		list       []Shed
	}{
		{"two for one port", "same ports", []Shed{web, web}},
		{"a place too high", "places are", []Shed{{VIP: vip4, Proto: 6, Place: MaxShed}}},
		{"a protocol without ports", "TCP (6) or UDP", []Shed{{VIP: vip4, Proto: 1}}},
		{"no ports", "no ports", []Shed{{VIP: vip4, Proto: 6}}},
		{"a mapped address", "plain address", []Shed{{VIP: netip.MustParseAddr("::ffff:192.0.2.1"), Proto: 6}}},
	} {
		if err := r.SetShed(c.list); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
	if err := r.SetShed([]Shed{web}); err != nil {
		t.Error(err)
	}
}
