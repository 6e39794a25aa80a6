package conformance

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// transport makes what an IP packet between two addresses carries, from layer i on, and its protocol number.
func (b *builder) transport(i int, src, dst netip.Addr) (p []byte, proto uint64, err error) {
	if i == len(b.ls) {
		return nil, nextNothing, nil
	}
	l := b.ls[i]
	switch l.kind {
	case "ip4":
		p, err = b.network(i)
		return p, nextIPv4, err
	case "ip6":
		p, err = b.network(i)
		return p, nextIPv6, err
	case "tcp":
		p, err = b.tcp(i, src, dst)
		return p, nextTCP, err
	case "udp":
		p, err = b.udp(i, src, dst)
		return p, nextUDP, err
	case "icmp4", "icmp6":
		return b.icmp(i, src, dst)
	case "proto":
		if proto, err = l.first(); err != nil {
			return nil, 0, err
		}
		p, err = b.payload(i + 1)
		return p, proto, err
	case "hbh", "dstopts", "routing", "frag", "ext":
		return b.extension(i, src, dst)
	}
	p, err = b.payload(i)
	return p, nextUDP, err
}

// extension makes an IPv6 extension header and what follows.
func (b *builder) extension(i int, src, dst netip.Addr) (p []byte, proto uint64, err error) {
	l := b.ls[i]
	rest, next, err := b.transport(i+1, src, dst)
	if err != nil {
		return nil, 0, err
	}
	if next, err = l.number("next", next); err != nil {
		return nil, 0, err
	}
	h := []byte{byte(next), 0}
	proto = map[string]uint64{"hbh": nextHopByHop, "dstopts": nextDstOpts, "routing": nextRouting, "frag": nextFragment}[l.kind]
	switch l.kind {
	case "frag":
		off, err := l.number("off", 0)
		if err != nil {
			return nil, 0, err
		}
		id, err := l.number("id", 0)
		if err != nil {
			return nil, 0, err
		}
		word := uint16(off << 3)
		if l.has("mf") {
			word |= 1
		}
		h = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(h, word), uint32(id))
		return append(h, rest...), proto, nil
	case "routing":
		kind, err := l.number("type", 2)
		if err != nil {
			return nil, 0, err
		}
		left, err := l.number("left", 0)
		if err != nil {
			return nil, 0, err
		}
		h = append(h, byte(kind), byte(left), 0, 0, 0, 0)
		for _, w := range l.words {
			a, err := netip.ParseAddr(w)
			if err != nil {
				return nil, 0, fmt.Errorf("routing: %w", err)
			}
			h = append(h, a.AsSlice()...)
		}
	case "ext":
		if proto, err = l.first(); err != nil {
			return nil, 0, err
		}
		h = append(h, make([]byte, 6)...)
	default:
		content, err := l.bytes()
		if err != nil {
			return nil, 0, err
		}
		h = append(h, content...)
		if fill := -len(h) & 7; fill == 1 {
			h = append(h, 0) // Pad1
		} else if fill > 1 {
			h = append(append(h, 1, byte(fill-2)), make([]byte, fill-2)...) // PadN
		}
	}
	length, err := l.number("len", uint64(len(h)/8-1))
	if err != nil {
		return nil, 0, err
	}
	h[1] = byte(length)
	return append(h, rest...), proto, nil
}

func (b *builder) tcp(i int, src, dst netip.Addr) ([]byte, error) {
	l := b.ls[i]
	sport, dport, err := l.ports()
	if err != nil {
		return nil, err
	}
	body, err := b.payload(i + 1)
	if err != nil {
		return nil, err
	}
	var v [3]uint64
	for k, key := range []string{"seq", "ack", "win"} {
		if v[k], err = l.number(key, []uint64{0, 0, 1000}[k]); err != nil {
			return nil, err
		}
	}
	h := layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport),
		Seq: uint32(v[0]), Ack: uint32(v[1]), Window: uint16(v[2])}
	for _, w := range l.words[2:] {
		for _, c := range w {
			flag := map[rune]*bool{'F': &h.FIN, 'S': &h.SYN, 'R': &h.RST, 'P': &h.PSH,
				'A': &h.ACK, 'U': &h.URG, 'E': &h.ECE, 'C': &h.CWR}[c]
			if flag == nil {
				return nil, fmt.Errorf("tcp: %q is no list of flags FSRPAUEC", w)
			}
			*flag = true
		}
	}
	if s, ok := l.keys["mss"]; ok {
		mss, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("tcp: mss=%s: %w", s, err)
		}
		h.Options = append(h.Options, layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionLength: 4,
			OptionData: binary.BigEndian.AppendUint16(nil, uint16(mss))})
	}
	_ = h.SetNetworkLayerForChecksum(networkOf(src, dst, nextTCP))
	p, err := serialize(&h, body)
	if err != nil {
		return nil, err
	}
	if s, ok := l.keys["opts"]; ok { // as they stand, which gopacket would put in order
		options, err := layer{kind: "opts", words: []string{s}}.bytes()
		if err != nil || len(options)%4 != 0 {
			return nil, fmt.Errorf("tcp: opts=%s is no list of options of a multiple of 4 bytes", s)
		}
		head := int(p[12]>>4) * 4
		p = append(append(append([]byte{}, p[:head]...), options...), p[head:]...)
		p[12] = byte((head+len(options))/4) << 4
	}
	if _, ok := l.keys["doff"]; ok {
		n, err := l.number("doff", 0)
		if err != nil {
			return nil, err
		}
		p[12] = byte(n) << 4
	}
	p[16], p[17] = 0, 0
	binary.BigEndian.PutUint16(p[16:], ^fold(sum(p)+pseudo(src, dst, nextTCP, len(p))))
	return p, l.override("csum", p[16:18])
}

func (b *builder) udp(i int, src, dst netip.Addr) ([]byte, error) {
	l := b.ls[i]
	sport, dport, err := l.ports()
	if err != nil {
		return nil, err
	}
	var body []byte
	if i+1 < len(b.ls) && strings.HasPrefix(b.ls[i+1].kind, "ip") {
		body, err = b.network(i + 1)
	} else {
		body, err = b.payload(i + 1)
	}
	if err != nil {
		return nil, err
	}
	h := layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	_ = h.SetNetworkLayerForChecksum(networkOf(src, dst, nextUDP))
	p, err := serialize(&h, body)
	if err != nil {
		return nil, err
	}
	if err := l.override("len", p[4:6]); err != nil {
		return nil, err
	}
	if p[6] == 0 && p[7] == 0 {
		p[6], p[7] = 0xff, 0xff // RFC 768
	}
	return p, l.override("csum", p[6:8])
}

func (b *builder) icmp(i int, src, dst netip.Addr) (p []byte, proto uint64, err error) {
	l := b.ls[i]
	if len(l.words) != 1 {
		return nil, 0, fmt.Errorf("%s: expected type/code", l.kind)
	}
	t, c, _ := strings.Cut(l.words[0], "/")
	kind, err1 := strconv.ParseUint(t, 10, 8)
	code, err2 := strconv.ParseUint(c, 10, 8)
	if err1 != nil || err2 != nil {
		return nil, 0, fmt.Errorf("%s: %q is no type/code", l.kind, l.words[0])
	}
	var v [4]uint64
	for k, key := range []string{"id", "seq", "mtu", "rest"} {
		if v[k], err = l.number(key, 0); err != nil {
			return nil, 0, err
		}
	}
	var body []byte
	if i+1 < len(b.ls) && strings.HasPrefix(b.ls[i+1].kind, "ip") {
		body, err = b.network(i + 1)
	} else {
		body, err = b.payload(i + 1)
	}
	if err != nil {
		return nil, 0, err
	}
	rest := uint32(v[0]<<16 | v[1] | v[2] | v[3])
	if l.kind == "icmp4" {
		h := layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(uint8(kind), uint8(code)),
			Id: uint16(rest >> 16), Seq: uint16(rest)}
		if p, err = serialize(&h, body); err != nil {
			return nil, 0, err
		}
		return p, nextICMP, l.override("csum", p[2:4])
	}
	h := layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(uint8(kind), uint8(code))}
	_ = h.SetNetworkLayerForChecksum(networkOf(src, dst, nextICMPv6))
	if p, err = serialize(&h, append(binary.BigEndian.AppendUint32(nil, rest), body...)); err != nil {
		return nil, 0, err
	}
	return p, nextICMPv6, l.override("csum", p[2:4])
}

// override sets a field of two bytes to what a key says: a number, or `bad` for what it is not.
func (l layer) override(key string, at []byte) error {
	s, ok := l.keys[key]
	switch {
	case !ok:
	case s == "bad":
		at[0] ^= 0x5a
	default:
		n, err := l.number(key, 0)
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint16(at, uint16(n))
	}
	return nil
}

// networkOf is what gopacket wants to know for a checksum.
func networkOf(src, dst netip.Addr, proto layers.IPProtocol) gopacket.NetworkLayer {
	if src.Is4() {
		return &layers.IPv4{Version: 4, Protocol: proto, SrcIP: net.IP(src.AsSlice()), DstIP: net.IP(dst.AsSlice())}
	}
	return &layers.IPv6{Version: 6, NextHeader: proto, SrcIP: net.IP(src.AsSlice()), DstIP: net.IP(dst.AsSlice())}
}

// serialize makes the bytes of one layer and its payload.
func serialize(l gopacket.SerializableLayer, payload []byte) ([]byte, error) {
	b := gopacket.NewSerializeBuffer()
	o := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	err := gopacket.SerializeLayers(b, o, l, gopacket.Payload(payload))
	return b.Bytes(), err
}
