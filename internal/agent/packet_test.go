//go:build linux

package agent

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	vip4  = netip.MustParseAddr("192.0.2.10")
	vip6  = netip.MustParseAddr("2001:db8::10")
	here4 = netip.MustParseAddr("10.0.0.2")
	here6 = netip.MustParseAddr("fd00::2")
	node4 = netip.MustParseAddr("10.0.0.1")
	node6 = netip.MustParseAddr("fd00::1")

	client4 = netip.MustParseAddr("203.0.113.5")
	client6 = netip.MustParseAddr("2001:db8:c::5")
)

// pair is a pair of families: outer, inner; by IP-in-IP or GUE.
type pair struct{ outer6, inner6, gue bool }

var pairs = []pair{{}, {inner6: true}, {outer6: true}, {outer6: true, inner6: true}}

// inGUE are the same pairs, with UDP in between.
func inGUE(pairs []pair) []pair {
	var out []pair
	for _, p := range pairs {
		p.gue = true
		out = append(out, p)
	}
	return out
}

// tunnels are the pairs by both ways.
func tunnels(pairs []pair) []pair { return slices.Concat(pairs, inGUE(pairs)) }

func (p pair) String() string {
	n := map[bool]string{false: "4", true: "6"}
	way := map[bool]string{true: " GUE"}
	return n[p.inner6] + "in" + n[p.outer6] + way[p.gue]
}

// outerLen is the length of the headers to be taken off, without IPv4 options.
func (p pair) outerLen() int {
	n := 20
	if p.outer6 {
		n = 40
	}
	if p.gue {
		n += 8
	}
	return n
}

// testPacket is an encapsulated packet to be built, changed by the test first.
type testPacket struct {
	eth layers.Ethernet
	// The outer header is o4 or o6, the inner one i4 or i6.
	pair
	o4, i4  layers.IPv4
	o6, i6  layers.IPv6
	udp     struct{ port, extra, checksum uint16 } // of GUE; extra is added to the length
	payload []byte                                 // of the inner packet
}

// newTestPacket is a good packet from the node to here, around one from the client to the VIP.
func newTestPacket(p pair) *testPacket {
	t := &testPacket{pair: p}
	t.eth = layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 1}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	if p.outer6 {
		t.eth.EthernetType = layers.EthernetTypeIPv6
	}
	inner := layers.IPProtocolIPv4
	if p.inner6 {
		inner = layers.IPProtocolIPv6
	}
	if p.gue {
		inner = layers.IPProtocolUDP
	}
	t.udp.port = DefaultGUEPort
	t.o4 = layers.IPv4{Version: 4, TTL: 64, Protocol: inner, Flags: layers.IPv4DontFragment, SrcIP: node4.AsSlice(), DstIP: here4.AsSlice()}
	t.o6 = layers.IPv6{Version: 6, HopLimit: 64, NextHeader: inner, SrcIP: node6.AsSlice(), DstIP: here6.AsSlice()}
	t.i4 = layers.IPv4{Version: 4, TTL: 60, Protocol: layers.IPProtocolTCP, Id: 7, SrcIP: client4.AsSlice(), DstIP: vip4.AsSlice()}
	t.i6 = layers.IPv6{Version: 6, HopLimit: 60, NextHeader: layers.IPProtocolTCP, FlowLabel: 0xabcde, SrcIP: client6.AsSlice(), DstIP: vip6.AsSlice()}
	t.payload = bytes.Repeat([]byte("payload "), 10)
	return t
}

func (t *testPacket) innerBytes() []byte {
	var ip gopacket.SerializableLayer = &t.i4
	if t.inner6 {
		ip = &t.i6
	}
	return serialize(ip, gopacket.Payload(t.payload))
}

// frame is the packet as it arrives.
func (t *testPacket) frame() []byte {
	var ip gopacket.SerializableLayer = &t.o4
	if t.outer6 {
		ip = &t.o6
	}
	var udp []byte
	inner := t.innerBytes()
	if t.gue {
		for _, word := range []uint16{40000, t.udp.port, uint16(8+len(inner)) + t.udp.extra, t.udp.checksum} {
			udp = binary.BigEndian.AppendUint16(udp, word)
		}
	}
	return ethernet(t.eth, serialize(ip, gopacket.Payload(slices.Concat(udp, inner))))
}

// bare is the packet without its outer header, as it should go on.
func (t *testPacket) bare() []byte {
	eth := t.eth
	eth.EthernetType = layers.EthernetTypeIPv4
	if t.inner6 {
		eth.EthernetType = layers.EthernetTypeIPv6
	}
	return ethernet(eth, t.innerBytes())
}

// ethernet makes a frame without padding.
func ethernet(eth layers.Ethernet, packet []byte) []byte {
	return slices.Concat(serialize(&eth)[:14], packet)
}

func serialize(l ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, l...); err != nil {
		panic(err)
	}
	return bytes.Clone(buf.Bytes())
}
