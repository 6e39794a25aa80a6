package packet

import (
	"net/netip"
	"testing"
)

// Sources that no packet on a network has, and their neighbours that are good. Whatever the packet is, the source comes
// first.
func TestMartianSources(t *testing.T) {
	for _, c := range []struct {
		src  string
		want Reason
	}{
		{"0.0.0.0", SourceInvalid},
		{"0.255.255.255", SourceInvalid},
		{"1.0.0.0", None},
		{"10.0.0.1", None},
		{"126.255.255.255", None},
		{"127.0.0.0", SourceLoopback},
		{"127.255.255.255", SourceLoopback},
		{"128.0.0.0", None},
		{"192.0.2.9", None},
		{"192.0.2.10", Land},
		{"223.255.255.255", None},
		{"224.0.0.0", SourceMulticast},
		{"239.255.255.255", SourceMulticast},
		{"240.0.0.0", SourceInvalid},
		{"255.255.255.255", SourceInvalid},

		{"::", SourceInvalid},
		{"::1", SourceLoopback},
		{"::2", None},
		{"0:0:0:1::", None},
		{"0:0:0:1::1", None},
		{"1::", None},
		{"2001:db8::10", Land},
		{"2001:db8::11", None},
		{"2001:db8:0:1::10", None},
		{"fe80::1", None},
		{"feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None},
		{"ff00::", SourceMulticast},
		{"ff02::1", SourceMulticast},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", SourceMulticast},
	} {
		src := netip.MustParseAddr(c.src)
		data := fromHex(t, tcpSYN)
		data[5] = 20 // the length of a UDP packet, if it is one
		for _, proto := range []uint8{ProtoTCP, ProtoUDP, ProtoICMP, ProtoICMPv6, 47, nextOptions, nextFragment} {
			frame := frame4(t, proto, 0, data)
			at, end := 26, 30
			if src.Is6() {
				frame = frame6(t, proto, data)
				at, end = 22, 38
			}
			was := parse(frame)
			copy(frame[at:end], src.AsSlice())
			if src.Is4() {
				setChecksum(frame[14:34])
			}
			m := parse(frame)
			checkMeta(t, frame, m)
			if Source(frame, &m) != FromNetip(src) {
				t.Errorf("source %v, want %v", Source(frame, &m), src)
			}
			if c.want == None && m.Reason != was.Reason || c.want != None && m.Reason != c.want || m.Dst != was.Dst {
				t.Errorf("%v, protocol %d: %+v, want %v", src, proto, m, c.want)
			}
		}
	}
}

// Land is told before what else may be wrong with the address.
func TestLandFirst(t *testing.T) {
	frame := frame4(t, ProtoTCP, 0, fromHex(t, tcpSYN))
	copy(frame[26:], "\x7f\x00\x00\x01\x7f\x00\x00\x01")
	setChecksum(frame[14:34])
	if m := parse(frame); m.Reason != Land {
		t.Errorf("127.0.0.1 to itself: %v", m.Reason)
	}
	frame = frame6(t, ProtoTCP, fromHex(t, tcpSYN))
	copy(frame[22:], make([]byte, 32))
	if m := parse(frame); m.Reason != Land {
		t.Errorf(":: to itself: %v", m.Reason)
	}
	frame[32], frame[33], frame[48], frame[49] = 0xff, 0xff, 0xff, 0xff
	if m := parse(frame); m != (Meta{Reason: BadIPHeader}) {
		t.Errorf("a mapped address to itself: %+v", m)
	}
}

func TestTTL(t *testing.T) {
	for _, ttl := range []uint8{0, 1, 2, 64, 255} {
		for _, v4 := range []bool{true, false} {
			frame := fragment(t, v4, ProtoUDP, 16, []byte{1})
			if frame[21] = ttl; v4 {
				frame[21], frame[22] = 2, ttl
				setChecksum(frame[14:34])
			}
			tagged := append(make([]byte, 4), frame...)
			PushVLAN(tagged, 4, len(frame), 1)
			m, mt := parse(frame), parse(tagged)
			if a, b := TTL(frame, &m), TTL(tagged, &mt); m.Reason != None || a != ttl || b != ttl {
				t.Errorf("IPv4 %v: %d, with a tag %d, want %d (%v)", v4, a, b, ttl, m.Reason)
			}
		}
	}
}
