package conformance

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// sum adds up the big-endian words of b (RFC 1071).
func sum(b []byte) (s uint64) {
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// pseudo is the sum of the pseudo header of a transport checksum (RFC 768, RFC 9293, RFC 8200).
func pseudo(src, dst netip.Addr, proto, length int) uint64 {
	return sum(src.AsSlice()) + sum(dst.AsSlice()) + uint64(proto) + uint64(length)
}

// verify checks a frame without looking at what was expected: gopacket decodes all of it, lengths fit, and every checksum,
// outer, inner and quoted, is right when calculated anew. odd holds the layers whose checksum or length the case itself made
// wrong.
func verify(frame []byte, guePort uint16, odd map[string]bool) error {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	var behind []byte // the Ethernet header and its tags
	for _, l := range p.Layers() {
		switch l.LayerType() {
		case layers.LayerTypeEthernet, layers.LayerTypeDot1Q:
		case layers.LayerTypeIPv4, layers.LayerTypeIPv6:
			return verifyPacket(frame[len(frame)-len(behind):], guePort, odd, false)
		}
		behind = l.LayerPayload()
	}
	return fmt.Errorf("no IP packet in it: %v", p)
}

// verifyPacket is verify for an IP packet; of a quoted one the end may be missing.
func verifyPacket(b []byte, guePort uint16, odd map[string]bool, quoted bool) error {
	first := layers.LayerTypeIPv4
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	p := gopacket.NewPacket(b, first, gopacket.DecodeOptions{NoCopy: true, DecodeStreamsAsDatagrams: true})
	// What is wrong behind TCP or UDP is data, which gopacket has taken for an application's; and of routing headers it
	// knows but the type that nobody may send.
	if e := p.ErrorLayer(); e != nil && !quoted && p.TransportLayer() == nil &&
		!strings.Contains(e.Error().Error(), "Unknown IPv6 routing header type") {
		return fmt.Errorf("gopacket cannot decode it: %w", e.Error())
	}
	var src, dst netip.Addr
	whole, proto := true, byte(0)
	var content []byte
	if first == layers.LayerTypeIPv4 {
		head := int(b[0]&0xf) * 4
		if !odd["ip4"] && fold(sum(b[:head])) != 0xffff {
			return fmt.Errorf("IPv4 header checksum %x is wrong", b[10:12])
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		whole, proto = binary.BigEndian.Uint16(b[6:])&0x3fff == 0, b[9]
		length := int(binary.BigEndian.Uint16(b[2:]))
		if length != len(b) && !quoted && !odd["ip4"] {
			return fmt.Errorf("the IPv4 header tells of %d bytes, and there are %d", length, len(b))
		}
		if whole = whole && length <= len(b); whole {
			content = b[head:length]
		}
	} else {
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		at, length := 40, 40+int(binary.BigEndian.Uint16(b[4:]))
		if length != len(b) && !quoted {
			return fmt.Errorf("the IPv6 header tells of %d bytes, and there are %d", length, len(b))
		}
		proto, whole = b[6], length <= len(b)
		for whole && (proto == nextHopByHop || proto == nextDstOpts || proto == nextRouting || proto == nextFragment) {
			if proto == nextFragment {
				whole = binary.BigEndian.Uint16(b[at+2:])&0xfff9 == 0
				proto, at = b[at], at+8
				continue
			}
			proto, at = b[at], at+8+8*int(b[at+1])
		}
		if whole {
			content = b[at:length]
		}
	}
	if !whole {
		return nil // a part of something; the whole was checked where it was cut
	}
	name := map[byte]string{nextTCP: "tcp", nextUDP: "udp", nextICMP: "icmp4", nextICMPv6: "icmp6"}[proto]
	switch proto {
	case nextIPv4, nextIPv6:
		return within("inner packet", verifyPacket(content, guePort, odd, false))
	case nextTCP, nextUDP, nextICMPv6:
		none := proto == nextUDP && content[6] == 0 && content[7] == 0
		if !odd[name] && !none && fold(sum(content)+pseudo(src, dst, int(proto), len(content))) != 0xffff {
			return fmt.Errorf("%s checksum is wrong", name)
		}
	case nextICMP:
		if !odd[name] && fold(sum(content)) != 0xffff {
			return fmt.Errorf("%s checksum is wrong", name)
		}
	}
	switch {
	case proto == nextUDP && binary.BigEndian.Uint16(content[2:]) == guePort && guePort != 0:
		return within("inner packet", verifyPacket(content[8:], guePort, odd, false))
	case proto == nextICMP && (content[0] == 3 || content[0] == 11 || content[0] == 12),
		proto == nextICMPv6 && content[0] < 128:
		return within("quoted packet", verifyPacket(content[8:], guePort, odd, true))
	}
	return nil
}

func within(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// oddities are the kinds of layers of a line that have checksums or lengths of its own.
func oddities(ls []layer) map[string]bool {
	odd := map[string]bool{}
	for _, l := range ls {
		for key, value := range l.keys {
			none := l.kind == "udp" && key == "csum" && value == "0" // there is none, which is not wrong
			if strings.Contains("csum len ihl version doff", key) && !none {
				odd[l.kind] = true
			}
		}
	}
	return odd
}
