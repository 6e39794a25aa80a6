package conformance

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

// formatter writes a frame in the notation, as gopacket decodes it. What it cannot decode it writes as hex.
type formatter struct {
	names   *names
	iface   string
	guePort uint16
	parts   []string
	v6      bool // the family of the innermost IP packet so far
}

func format(frame []byte, n *names, iface string, guePort uint16) string {
	f := &formatter{names: n, iface: iface, guePort: guePort}
	f.decode(frame, layers.LayerTypeEthernet)
	return strings.Join(f.parts, " | ")
}

func (f *formatter) add(format string, args ...any) {
	f.parts = append(f.parts, strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// decode writes what begins with a layer of a type. Bytes behind the last one of a packet are padding.
func (f *formatter) decode(b []byte, first gopacket.LayerType) {
	p := gopacket.NewPacket(b, first, gopacket.DecodeOptions{NoCopy: true, DecodeStreamsAsDatagrams: true})
	used := 0
	for _, l := range p.Layers() {
		used += len(l.LayerContents())
		if f.layer(l) {
			used += len(l.LayerPayload())
			break
		}
	}
	if n := len(b) - used; n > 0 && first == layers.LayerTypeEthernet {
		f.add("pad %d", n)
	}
}

// layer writes one layer. It reports true if it has written the payload, too.
func (f *formatter) layer(l gopacket.Layer) bool {
	switch l := l.(type) {
	case *layers.Ethernet:
		dst, src := packet.MAC(l.DstMAC), packet.MAC(l.SrcMAC)
		f.add("eth dst=%s src=%s", f.names.word(dst, f.iface), f.names.word(src, f.iface))
	case *layers.Dot1Q:
		f.add("vlan %d%s", l.VLANIdentifier, unless("prio", uint64(l.Priority), 0))
	case *layers.IPv4:
		f.v6 = false
		s := fmt.Sprintf("ip4 %s > %s ttl=%d", l.SrcIP, l.DstIP, l.TTL) +
			unless("tos", uint64(l.TOS), 0) + unless("id", uint64(l.Id), 0)
		for _, w := range flags4 {
			if l.Flags&w.bit != 0 {
				s += " " + w.word
			}
		}
		s += unless("off", uint64(l.FragOffset), 0)
		if l.IHL > 5 {
			s += " opts=" + hex.EncodeToString(l.Contents[20:])
		}
		f.add("%s%s", s, f.wrong(fold(sum(l.Contents)) != 0xffff, l.Checksum))
		if l.FragOffset != 0 || l.Flags&layers.IPv4MoreFragments != 0 {
			f.rest(l.Payload)
			return true
		}
	case *layers.IPv6:
		f.v6 = true
		s := fmt.Sprintf("ip6 %s > %s hop=%d", addr(l.SrcIP), addr(l.DstIP), l.HopLimit)
		f.add("%s", s+unless("tc", uint64(l.TrafficClass), 0)+unless("flow", uint64(l.FlowLabel), 0))
	case *layers.IPv6HopByHop:
		f.add("hbh %x", l.Contents[2:])
	case *layers.IPv6Destination:
		f.add("dstopts %x", l.Contents[2:])
	case *layers.IPv6Routing:
		f.add("routing type=%d left=%d", l.RoutingType, l.SegmentsLeft)
	case *layers.IPv6Fragment:
		mf := ""
		if l.MoreFragments {
			mf = " mf"
		}
		f.add("frag id=%d off=%d%s", l.Identification, l.FragmentOffset, mf)
		if l.MoreFragments || l.FragmentOffset != 0 {
			f.rest(l.Payload)
			return true
		}
	case *layers.TCP:
		flags := ""
		for _, w := range []struct {
			on bool
			c  string
		}{
			{l.FIN, "F"}, {l.SYN, "S"}, {l.RST, "R"}, {l.PSH, "P"}, {l.ACK, "A"}, {l.URG, "U"}, {l.ECE, "E"}, {l.CWR, "C"},
		} {
			if w.on {
				flags += w.c
			}
		}
		s := fmt.Sprintf("tcp %d > %d %s", l.SrcPort, l.DstPort, flags) +
			unless("seq", uint64(l.Seq), 0) + unless("ack", uint64(l.Ack), 0) + unless("win", uint64(l.Window), 1000)
		if len(l.Contents) > 20 {
			s += " opts=" + hex.EncodeToString(l.Contents[20:])
		}
		f.add("%s csum=0x%04x", s, l.Checksum)
	case *layers.UDP:
		s := fmt.Sprintf("udp %d > %d csum=0x%04x", l.SrcPort, l.DstPort, l.Checksum)
		if int(l.Length) != len(l.Contents)+len(l.Payload) {
			s += fmt.Sprintf(" len=%d", l.Length)
		}
		f.add("%s", s)
		if uint16(l.DstPort) == f.guePort && len(l.Payload) > 0 {
			f.packet(l.Payload)
		} else {
			f.rest(l.Payload)
		}
		return true
	case *layers.ICMPv4:
		kind := l.TypeCode.Type()
		f.icmp("icmp4", kind, l.TypeCode.Code(), uint32(l.Id)<<16|uint32(l.Seq), l.Checksum, kind == 0 || kind == 8)
		if kind == 3 || kind == 11 || kind == 12 {
			f.packet(l.Payload)
		} else {
			f.rest(l.Payload)
		}
		return true
	case *layers.ICMPv6:
		kind := l.TypeCode.Type()
		if len(l.Payload) < 4 {
			f.add("hex %x", l.Contents)
			f.rest(l.Payload)
			return true
		}
		f.icmp("icmp6", kind, l.TypeCode.Code(), binary.BigEndian.Uint32(l.Payload), l.Checksum, kind == 128 || kind == 129)
		if kind < 128 {
			f.packet(l.Payload[4:])
		} else {
			f.rest(l.Payload[4:])
		}
		return true
	default:
		f.rest(append(append([]byte{}, l.LayerContents()...), l.LayerPayload()...))
		return true
	}
	return false
}

func (f *formatter) icmp(name string, kind, code uint8, rest uint32, sum uint16, echo bool) {
	s := fmt.Sprintf("%s %d/%d", name, kind, code)
	switch {
	case echo:
		s += fmt.Sprintf(" id=%d seq=%d", rest>>16, rest&0xffff)
	case name == "icmp4" && kind == 3 && code == 4, name == "icmp6" && kind == 2:
		s += fmt.Sprintf(" mtu=%d", rest)
	case rest != 0:
		s += fmt.Sprintf(" rest=0x%08x", rest)
	}
	f.add("%s csum=0x%04x", s, sum)
}

// packet writes an IP packet, perhaps cut short.
func (f *formatter) packet(b []byte) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		f.decode(b, layers.LayerTypeIPv4)
	case len(b) >= 40 && b[0]>>4 == 6:
		f.decode(b, layers.LayerTypeIPv6)
	default:
		f.rest(b)
	}
}

// rest writes payload: as data if it is a part of the pattern.
func (f *formatter) rest(b []byte) {
	if len(b) == 0 {
		return
	}
	for i := range b {
		if c := b[i]; c < 'a' || c > 'z' || i > 0 && c != 'a'+(b[i-1]-'a'+1)%26 {
			f.add("hex %x", b)
			return
		}
	}
	if b[0] != 'a' {
		f.add("data %d from %c", len(b), b[0])
		return
	}
	f.add("data %d", len(b))
}

func (f *formatter) wrong(is bool, sum uint16) string {
	if !is {
		return ""
	}
	return fmt.Sprintf(" csum=0x%04x (wrong)", sum)
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// unless writes a key unless it has its usual value.
func unless(key string, value, usual uint64) string {
	if value == usual {
		return ""
	}
	return fmt.Sprintf(" %s=%d", key, value)
}
