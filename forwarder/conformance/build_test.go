package conformance

import (
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/google/gopacket/layers"
)

// Protocol numbers (IANA) of the layers.
const (
	nextHopByHop = 0
	nextICMP     = 1
	nextIPv4     = 4
	nextTCP      = 6
	nextUDP      = 17
	nextIPv6     = 41
	nextRouting  = 43
	nextFragment = 44
	nextICMPv6   = 58
	nextNothing  = 59
	nextDstOpts  = 60
)

// builder makes the frame of a line: headers by gopacket, from the innermost outwards, and what the line sets by itself into
// their bytes afterwards.
type builder struct {
	ls    []layer
	names *names
	iface string
	inner int // index of the innermost IP layer: what piece and cut are about
	piece *layer
	cut   int // bytes that are left of the innermost IP packet; 0: all
}

// build makes the frame of a line that is about an interface.
func build(ls []layer, n *names, iface string) ([]byte, error) {
	b := &builder{names: n, iface: iface, inner: -1}
	pad, trunc := 0, -1
	for _, l := range ls {
		var amount uint64
		var err error
		switch l.kind {
		case "cut", "pad", "trunc":
			if amount, err = l.first(); err != nil {
				return nil, err
			}
		}
		switch l.kind {
		case "piece":
			b.piece = &l
		case "cut":
			b.cut = int(amount)
		case "pad":
			pad = int(amount)
		case "trunc":
			trunc = int(amount)
		default:
			if l.kind == "ip4" || l.kind == "ip6" {
				b.inner = len(b.ls)
			}
			b.ls = append(b.ls, l)
		}
	}
	frame, _, err := b.ethernet(0)
	if err != nil {
		return nil, err
	}
	frame = append(frame, make([]byte, pad)...)
	if trunc >= 0 && trunc < len(frame) {
		frame = frame[:trunc]
	}
	return frame, nil
}

// ethernet makes the layers from i on, which begin with those of Ethernet. It returns their type, too.
func (b *builder) ethernet(i int) (frame []byte, etherType uint64, err error) {
	if i == len(b.ls) {
		return nil, 0, nil
	}
	l := b.ls[i]
	if !isFraming(l.kind) {
		frame, err = b.network(i)
		return frame, map[string]uint64{"ip4": 0x0800, "ip6": 0x86dd}[l.kind], err
	}
	rest, next, err := b.ethernet(i + 1)
	if err != nil {
		return nil, 0, err
	}
	if next, err = l.number("type", next); err != nil {
		return nil, 0, err
	}
	var head []byte
	if l.kind == "eth" {
		for _, key := range []string{"dst", "src"} {
			mac, err := b.names.mac(l.keys[key], b.iface)
			if err != nil {
				return nil, 0, fmt.Errorf("%s=: %w", key, err)
			}
			head = append(head, mac[:]...)
		}
	} else {
		id, err := l.first()
		if err != nil {
			return nil, 0, err
		}
		prio, err := l.number("prio", 0)
		if err != nil {
			return nil, 0, err
		}
		head = binary.BigEndian.AppendUint16(nil, uint16(prio<<13|id))
	}
	head = binary.BigEndian.AppendUint16(head, uint16(next))
	return append(head, rest...), map[string]uint64{"vlan": 0x8100, "qinq": 0x88a8}[l.kind], nil
}

// network makes the IP packet, or what else there is, from layer i on.
func (b *builder) network(i int) (p []byte, err error) {
	if i == len(b.ls) {
		return nil, nil
	}
	switch b.ls[i].kind {
	case "ip4":
		p, err = b.ip4(i)
	case "ip6":
		p, err = b.ip6(i)
	default:
		return b.payload(i)
	}
	if err == nil && i == b.inner && b.cut > 0 && b.cut < len(p) {
		p = p[:b.cut]
	}
	return p, err
}

// payload is what carries no further protocol.
func (b *builder) payload(i int) ([]byte, error) {
	var out []byte
	for _, l := range b.ls[i:] {
		switch l.kind {
		case "data":
			n, err := l.first()
			if err != nil {
				return nil, err
			}
			out = append(out, pattern(int(n))...)
		case "hex":
			h, err := l.bytes()
			if err != nil {
				return nil, err
			}
			out = append(out, h...)
		default:
			return nil, fmt.Errorf("%s cannot stand here", l.kind)
		}
	}
	return out, nil
}

// pattern is what data consists of.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = 'a' + byte(i%26)
	}
	return p
}

// cutOut is the part of an IP packet's payload that a piece line names, in bytes.
func (b *builder) cutOut(payload []byte) (from, to int, more bool, err error) {
	first, last, ok := strings.Cut(strings.Join(b.piece.words, ""), "-")
	if from, err = strconv.Atoi(first); !ok || err != nil {
		return 0, 0, false, fmt.Errorf("piece: %q is no range of bytes, as 0-800 or 800-end", b.piece.words)
	}
	if to = len(payload); last != "end" {
		if to, err = strconv.Atoi(last); err != nil {
			return 0, 0, false, fmt.Errorf("piece: %q is no range of bytes, as 0-800 or 800-end", b.piece.words)
		}
	}
	if from > to || to > len(payload) || from%8 != 0 {
		return 0, 0, false, fmt.Errorf("piece: %d-%d of %d bytes", from, to, len(payload))
	}
	return from, to, to < len(payload), nil
}

// flags4 are the words for the flags of IPv4.
var flags4 = []struct {
	word string
	bit  layers.IPv4Flag
}{{"df", layers.IPv4DontFragment}, {"mf", layers.IPv4MoreFragments}, {"rf", layers.IPv4EvilBit}}

func (b *builder) ip4(i int) ([]byte, error) {
	l := b.ls[i]
	src, dst, err := l.addresses()
	if err != nil {
		return nil, err
	}
	payload, proto, err := b.transport(i+1, src, dst)
	if err != nil {
		return nil, err
	}
	var v [5]uint64
	for k, key := range []string{"ttl", "tos", "id", "off", "proto"} {
		if v[k], err = l.number(key, []uint64{64, 0, 0, 0, proto}[k]); err != nil {
			return nil, err
		}
	}
	h := layers.IPv4{Version: 4, TTL: uint8(v[0]), TOS: uint8(v[1]), Id: uint16(v[2]), FragOffset: uint16(v[3]),
		Protocol: layers.IPProtocol(v[4]), SrcIP: net.IP(src.AsSlice()), DstIP: net.IP(dst.AsSlice())}
	for _, w := range flags4 {
		if l.has(w.word) {
			h.Flags |= w.bit
		}
	}
	if b.piece != nil && i == b.inner {
		from, to, more, err := b.cutOut(payload)
		if err != nil {
			return nil, err
		}
		payload, h.FragOffset = payload[from:to], uint16(from/8)
		if more {
			h.Flags |= layers.IPv4MoreFragments
		}
	}
	p, err := serialize(&h, payload)
	if err != nil {
		return nil, err
	}
	if s, ok := l.keys["opts"]; ok { // gopacket knows few of them
		options, err := layer{kind: "opts", words: []string{s}}.bytes()
		if err != nil || len(options)%4 != 0 || len(options) > 40 {
			return nil, fmt.Errorf("ip4: opts=%s is no list of options of 4 to 40 bytes", s)
		}
		p = append(append(append([]byte{}, p[:20]...), options...), p[20:]...)
		p[0] = 4<<4 | byte(5+len(options)/4)
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	}
	for key, set := range map[string]func(uint64){
		"version": func(n uint64) { p[0] = byte(n)<<4 | p[0]&0xf },
		"ihl":     func(n uint64) { p[0] = p[0]&0xf0 | byte(n) },
		"len":     func(n uint64) { binary.BigEndian.PutUint16(p[2:], uint16(n)) },
	} {
		if _, ok := l.keys[key]; ok {
			n, err := l.number(key, 0)
			if err != nil {
				return nil, err
			}
			set(n)
		}
	}
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^fold(sum(p[:min(max(int(p[0]&0xf)*4, 20), len(p))])))
	return p, l.override("csum", p[10:12])
}

func (b *builder) ip6(i int) ([]byte, error) {
	l := b.ls[i]
	src, dst, err := l.addresses()
	if err != nil {
		return nil, err
	}
	payload, proto, err := b.transport(i+1, src, dst)
	if err != nil {
		return nil, err
	}
	if b.piece != nil && i == b.inner {
		from, to, more, err := b.cutOut(payload)
		if err != nil {
			return nil, err
		}
		id, err := b.piece.number("id", 0)
		if err != nil {
			return nil, err
		}
		h := binary.BigEndian.AppendUint16([]byte{byte(proto), 0}, uint16(from))
		if more {
			h[3] |= 1
		}
		payload, proto = append(binary.BigEndian.AppendUint32(h, uint32(id)), payload[from:to]...), nextFragment
	}
	var v [4]uint64
	for k, key := range []string{"hop", "tc", "flow", "next"} {
		if v[k], err = l.number(key, []uint64{64, 0, 0, proto}[k]); err != nil {
			return nil, err
		}
	}
	h := layers.IPv6{Version: 6, HopLimit: uint8(v[0]), TrafficClass: uint8(v[1]), FlowLabel: uint32(v[2]),
		NextHeader: layers.IPProtocol(v[3]), SrcIP: net.IP(src.AsSlice()), DstIP: net.IP(dst.AsSlice())}
	p, err := serialize(&h, payload)
	if err != nil {
		return nil, err
	}
	// gopacket takes next header 0 for one of its own.
	p[6] = byte(v[3])
	if n, err := l.number("version", 6); err != nil {
		return nil, err
	} else {
		p[0] = byte(n)<<4 | p[0]&0xf
	}
	return p, l.override("len", p[4:6])
}
