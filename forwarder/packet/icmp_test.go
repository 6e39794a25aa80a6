package packet

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// build serialises layers with lengths and checksums.
func build(t testing.TB, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(b.Bytes())
}

// network returns an IP header.
func network(src, dst netip.Addr, proto layers.IPProtocol) interface {
	gopacket.NetworkLayer
	gopacket.SerializableLayer
} {
	if src.Is4() {
		return &layers.IPv4{Version: 4, TTL: 9, Protocol: proto, SrcIP: net.IP(src.AsSlice()), DstIP: net.IP(dst.AsSlice())}
	}
	return &layers.IPv6{Version: 6, HopLimit: 9, NextHeader: proto, SrcIP: net.IP(src.AsSlice()), DstIP: net.IP(dst.AsSlice())}
}

func ethernet(v4 bool) *layers.Ethernet {
	e := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv6}
	if v4 {
		e.EthernetType = layers.EthernetTypeIPv4
	}
	return e
}

// reply builds a packet of a backend's, from the VIP's port 80 to the client's port 40000, without Ethernet.
func reply(t testing.TB, vip, client netip.Addr, proto layers.IPProtocol) []byte {
	ip := network(vip, client, proto)
	if proto == layers.IPProtocolUDP {
		l := &layers.UDP{SrcPort: 80, DstPort: 40000}
		_ = l.SetNetworkLayerForChecksum(ip)
		return build(t, ip, l, gopacket.Payload(make([]byte, 100)))
	}
	l := &layers.TCP{SrcPort: 80, DstPort: 40000, ACK: true}
	_ = l.SetNetworkLayerForChecksum(ip)
	return build(t, ip, l, gopacket.Payload(make([]byte, 100)))
}

// icmpFrame builds an ICMP message to the VIP.
func icmpFrame(t testing.TB, from, vip netip.Addr, kind uint8, payload []byte) []byte {
	if vip.Is4() {
		return build(t, ethernet(true), network(from, vip, layers.IPProtocolICMPv4),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0)}, gopacket.Payload(payload))
	}
	ip := network(from, vip, layers.IPProtocolICMPv6)
	l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	_ = l.SetNetworkLayerForChecksum(ip)
	return build(t, ethernet(false), ip, l, gopacket.Payload(append(make([]byte, 4), payload...))) // gopacket's ICMPv6 has 4 bytes
}

var icmpFamilies = []struct {
	vip, client, router netip.Addr
	errors              []uint8
	others              []uint8 // neither errors nor echo requests
	header              int
}{
	{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("203.0.113.1"), []uint8{3, 11, 12}, []uint8{0, 4, 5, 9, 13}, 20},
	{netip.MustParseAddr("2001:db8::10"), netip.MustParseAddr("2001:db8:5::7"), netip.MustParseAddr("2001:db8:6::1"), []uint8{1, 2, 3, 4}, []uint8{129, 130, 135, 136, 137}, 40},
}

// An error about a flow's packet has the hash, ports and protocol of the flow, also when only the legal minimum is quoted.
func TestICMPErrorBelongsToItsFlow(t *testing.T) {
	for _, f := range icmpFamilies {
		for _, proto := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP} {
			quoted := reply(t, f.vip, f.client, proto)
			want := FlowHash(&testKey, FromNetip(f.client), FromNetip(f.vip), 40000, 80, uint8(proto))
			for _, kind := range f.errors {
				for _, n := range []int{f.header + 8, f.header + 20, len(quoted)} {
					frame := icmpFrame(t, f.router, f.vip, kind, quoted[:n])
					m := parse(frame)
					if m.Reason != None || m.Flags&ICMPError == 0 || m.Hash != want || m.SrcPort != 40000 || m.DstPort != 80 || m.Proto != uint8(proto) || m.Dst != FromNetip(f.vip) {
						t.Errorf("type %d, %v, %d bytes quoted: %+v, want hash %x", kind, proto, n, m, want)
					}
					if dst := QuotedDst(frame, &m); dst != FromNetip(f.client) {
						t.Errorf("type %d, %v, %d bytes quoted: about a packet to %v, want %v", kind, proto, n, dst, f.client)
					}
				}
			}
			for _, kind := range f.others {
				if m := parse(icmpFrame(t, f.router, f.vip, kind, quoted)); m.Reason != ICMP {
					t.Errorf("type %d: %+v", kind, m)
				}
			}
		}
	}
}

// Extension headers, before the ICMPv6 header and in the packet that it quotes, hide nothing.
func TestICMPErrorBehindExtensionHeaders(t *testing.T) {
	f := icmpFamilies[1]
	quoted := reply(t, f.vip, f.client, layers.IPProtocolTCP)
	want := FlowHash(&testKey, FromNetip(f.client), FromNetip(f.vip), 40000, 80, ProtoTCP)
	hop, dst := optionsOf(nextHopByHop, 16), optionsOf(nextOptions, 8)
	for _, c := range []struct {
		name   string
		outer  []testHeader
		quoted []testHeader
		cut    int // bytes that are missing at the end of the quoted headers and eight bytes
		want   Reason
	}{
		{"before the ICMPv6 header", []testHeader{hop, dst, fragmentHeader(0, 1)}, nil, 0, None},
		{"in the quoted packet", nil, []testHeader{hop, dst, routing(4, 0)}, 0, None},
		{"both", []testHeader{dst}, []testHeader{dst, dst}, 0, None},
		{"about a packet in one fragment", nil, []testHeader{fragmentHeader(0, 1)}, 0, None},
		{"about a first fragment", nil, []testHeader{fragmentHeader(1, 1), dst}, 0, None},
		{"about a further fragment", nil, []testHeader{fragmentHeader(16, 1)}, 0, BadICMP},
		{"quoted ports cut", nil, []testHeader{hop, dst}, 1, BadICMP},
		{"quoted header cut", nil, []testHeader{hop, dst}, 9, BadICMP},
		{"quoted first fragment, header cut", nil, []testHeader{fragmentHeader(1, 1), dst}, 9, BadICMP},
		{"quoted headers of a kind not followed", nil, []testHeader{dst, {51, make([]byte, 8)}}, 0, BadICMP},
		{"too many quoted headers", nil, []testHeader{dst, dst, dst, dst, dst, dst, dst, dst, dst}, 0, BadICMP},
		{"in several fragments", []testHeader{fragmentHeader(1, 1)}, nil, 0, BadFragment},
	} {
		for _, kind := range f.errors {
			ip := bytes.Clone(quoted[:40])
			next, inner := chain(ProtoTCP, quoted[40:48], c.quoted...)
			ip[6] = next
			message := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, append(ip, inner[:len(inner)-c.cut]...)...)
			next, message = chain(ProtoICMPv6, message, c.outer...)
			frame := frame6(t, next, message)
			m := parse(frame)
			if m.Reason != c.want || m.Dst != FromNetip(f.vip) {
				t.Errorf("%s, type %d: %+v, want %v", c.name, kind, m, c.want)
			}
			if c.want != None {
				continue
			}
			if m.Flags != V6|ICMPError || m.Hash != want || m.SrcPort != 40000 || m.DstPort != 80 || m.Proto != ProtoTCP ||
				frame[m.L4] != kind || QuotedDst(frame, &m) != FromNetip(f.client) {
				t.Errorf("%s, type %d: %+v, want hash %x", c.name, kind, m, want)
			}
		}
	}
}

// What is not about a packet that the VIP sent, or cannot be read, is no error of a flow.
func TestBadICMP(t *testing.T) {
	for _, f := range icmpFamilies {
		quoted := reply(t, f.vip, f.client, layers.IPProtocolTCP)
		edit := func(change func([]byte)) []byte { q := bytes.Clone(quoted); change(q); return q }
		cases := map[string][]byte{
			"nothing":              nil,
			"one byte short":       quoted[:f.header+7],
			"header cut":           quoted[:f.header-1],
			"from somebody else":   reply(t, f.client, f.vip, layers.IPProtocolTCP),
			"of the other version": edit(func(b []byte) { b[0] ^= 0x20 }),
		}
		if f.vip.Is4() {
			cases["a later fragment"] = edit(func(b []byte) { b[7] = 1 })
			cases["no header"] = edit(func(b []byte) { b[0] = 0x44 })
			cases["options cut"] = edit(func(b []byte) { b[0] = 0x4f })[:40]
			cases["about ICMP"] = edit(func(b []byte) { b[9] = 1 })
		} else {
			cases["about ICMP"] = edit(func(b []byte) { b[6] = 58 })
		}
		for name, q := range cases {
			if m := parse(icmpFrame(t, f.router, f.vip, f.errors[0], q)); m.Reason != BadICMP {
				t.Errorf("%v, %s: %+v", f.vip, name, m)
			}
		}
	}
}

// A reply to an echo request is what gopacket would have built, whatever the payload, and leaves the padding out.
func TestEchoReply(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, f := range icmpFamilies {
		for n := range 200 {
			payload := make([]byte, 4+n)
			for i := range payload {
				payload[i] = byte(rng.Uint32())
			}
			kind := uint8(8)
			if !f.vip.Is4() {
				kind = 128
			}
			frame := icmpFrame(t, f.client, f.vip, kind, payload)
			length := ethLen + f.header + icmpLen + len(payload) // gopacket pads to 60 bytes
			frame = append(frame, 1, 2, 3)
			m := parse(frame)
			if m.Flags&Echo == 0 || m.Reason != None {
				t.Fatalf("%+v", m)
			}
			if got := EchoReply(frame, &m); got != length {
				t.Fatalf("%d bytes, want %d", got, length)
			}
			want := icmpFrame(t, f.vip, f.client, map[uint8]uint8{8: 0, 128: 129}[kind], payload)[:length]
			copy(want[0:6], []byte{2, 0, 0, 0, 0, 1}) // back to where it came from
			copy(want[6:12], []byte{2, 0, 0, 0, 0, 2})
			if f.vip.Is4() {
				want[22] = 64 // TTL
				setChecksum(want[14:34])
			} else {
				want[21] = 64
			}
			if !bytes.Equal(frame[:length], want) {
				t.Fatalf("%v, %d bytes of payload:\n got %x\nwant %x", f.vip, n, frame[:length], want)
			}
		}
	}
}

// A reply is sent with the tag that its request came with.
func TestEchoReplyTagged(t *testing.T) {
	for _, f := range icmpFamilies {
		kind := uint8(8)
		if !f.vip.Is4() {
			kind = 128
		}
		frame := icmpFrame(t, f.client, f.vip, kind, []byte{1, 2, 3, 4, 5, 6, 7, 8})
		tagged := append(make([]byte, 4), frame...)
		PushVLAN(tagged, 4, len(frame), 100)
		m, mt := parse(frame), parse(tagged)
		n, nt := EchoReply(frame, &m), EchoReply(tagged, &mt)
		if nt != n+4 || !bytes.Equal(tagged[16:nt], frame[12:n]) ||
			!bytes.Equal(tagged[:16], append(frame[:12:12], 0x81, 0, 0, 100)) {
			t.Errorf("%v:\n got %x\nwant %x with a tag", f.vip, tagged[:nt], frame[:n])
		}
	}
}

func ExampleEchoReply() {
	frame := []byte("\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x08\x00" +
		"\x45\x00\x00\x1c\x00\x00\x40\x00\x40\x01\x6c\xd3\x0a\x01\x02\x03\xc0\x00\x02\x0a\x08\x00\xf7\xff\x00\x00\x00\x00")
	var m Meta
	Parse(frame, &Key{}, &m)
	fmt.Println(EchoReply(frame, &m), frame[34])
	// Output: 42 0
}
