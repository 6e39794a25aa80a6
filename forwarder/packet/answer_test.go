package packet

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// tagged puts a tag with a priority before the packet of a frame.
func tagged(frame []byte) []byte {
	return append(append(bytes.Clone(frame[:12]), 0x81, 0x00, 0xa0, 0x64), frame[12:]...)
}

// answer is the frame that a node sends to the client, by gopacket: back where the other came from.
func answer(t testing.TB, class uint8, vip, client netip.Addr, tag bool, proto layers.IPProtocol,
	rest ...gopacket.SerializableLayer) []byte {
	t.Helper()
	ip := network(vip, client, proto)
	switch l := ip.(type) {
	case *layers.IPv4:
		l.TTL, l.Flags, l.TOS = 64, layers.IPv4DontFragment, class
	case *layers.IPv6:
		l.HopLimit = 64
	}
	for _, l := range rest {
		if l, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			_ = l.SetNetworkLayerForChecksum(ip)
		}
	}
	packet := build(t, append([]gopacket.SerializableLayer{ip}, rest...)...)
	eth := ethernet(vip.Is4())
	eth.SrcMAC, eth.DstMAC = eth.DstMAC, eth.SrcMAC
	frame := append(build(t, eth)[:ethLen], packet...)
	if tag {
		return tagged(frame)
	}
	return frame
}

// icmpAnswer is an ICMP error as gopacket builds it, with the second word of its header.
func icmpAnswer(t testing.TB, vip, client netip.Addr, tag bool, kind, code uint8, word uint16, quote []byte) []byte {
	if vip.Is4() {
		return answer(t, 0xc0, vip, client, tag, layers.IPProtocolICMPv4,
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code), Seq: word}, gopacket.Payload(quote))
	}
	return answer(t, 0, vip, client, tag, layers.IPProtocolICMPv6,
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)},
		gopacket.Payload(append([]byte{0, 0, byte(word >> 8), byte(word)}, quote...)))
}

type rewriter func(mem []byte, start int, m *Meta) (newStart, newLen int)

// All ICMP errors are, byte for byte, what gopacket builds, about packets of all lengths and kinds.
func TestICMPAnswers(t *testing.T) {
	tooBig := func(mtu int) rewriter {
		return func(mem []byte, start int, m *Meta) (int, int) { return PacketTooBig(mem, start, m, mtu) }
	}
	type kind struct {
		kind, code uint8
		word       uint16
		write      rewriter
	}
	kinds := [][]kind{
		{{3, 4, 1400, tooBig(1400)}, {3, 4, 68, tooBig(20)}, {3, 4, 0xffff, tooBig(100000)},
			{11, 0, 0, TimeExceeded}, {3, 3, 0, Unreachable}},
		{{2, 0, 1400, tooBig(1400)}, {2, 0, 1280, tooBig(1260)}, {3, 0, 0, TimeExceeded}, {1, 4, 0, Unreachable}},
	}
	for i, f := range icmpFamilies {
		extend := []func([]byte) []byte{withOptions, withExtensions}[i]
		most := []int{576, 1280}[i] - f.header - icmpLen
		for _, n := range []int{0, 28, 48, 101, 501, 1400, 1460, 3000} {
			ip := network(f.client, f.vip, layers.IPProtocolUDP)
			l := &layers.UDP{SrcPort: 40000, DstPort: 53}
			_ = l.SetNetworkLayerForChecksum(ip)
			plain := build(t, ip, l, gopacket.Payload(bytes.Repeat([]byte{0xee, 0x11, 0x77}, n)[:n]))
			for _, packet := range [][]byte{plain, extend(plain)} {
				less := f.header + icmpLen
				if len(packet) < 2*less { // with an IP header and a UDP header: too short
					continue
				}
				quote := packet[:min(len(packet)-less, most)]
				for _, k := range kinds[i] {
					for _, tag := range []bool{false, true} {
						frame := append(build(t, ethernet(f.vip.Is4()))[:ethLen], packet...)
						if tag {
							frame = tagged(frame)
						}
						frame = append(frame, 1, 2, 3) // padding, which is not quoted
						got := rewritten(t, frame, 48, k.write)
						want := icmpAnswer(t, f.vip, f.client, tag, k.kind, k.code, k.word, quote)
						if !bytes.Equal(got, want) {
							t.Fatalf("type %d/%d, about %d bytes:\n got %x\nwant %x", k.kind, k.code, len(packet), got, want)
						}
					}
				}
			}
		}
	}
}

// About a packet that is too short for it, there is no ICMP error.
func TestQuotable(t *testing.T) {
	for i, f := range icmpFamilies {
		least := []int{28, 48}[i]
		for n := range 60 {
			ip := network(f.client, f.vip, layers.IPProtocolUDP)
			l := &layers.UDP{SrcPort: 40000, DstPort: 53}
			_ = l.SetNetworkLayerForChecksum(ip)
			frame := append(build(t, ethernet(f.vip.Is4()))[:ethLen], build(t, ip, l, gopacket.Payload(make([]byte, n)))...)
			var m Meta
			if Parse(frame, &Key{}, &m); m.Reason != None || Quotable(&m) != (n >= least) {
				t.Errorf("%d bytes to %v: quotable %v, %v", n, f.vip, Quotable(&m), m.Reason)
			}
		}
	}
}

// Resets are those of RFC 9293, 3.10.7.1.
func TestReset(t *testing.T) {
	const seq, ack = 0xfffffffe, 7_000_000
	for i, f := range icmpFamilies {
		extend := []func([]byte) []byte{withOptions, withExtensions}[i]
		for _, c := range []struct {
			name     string
			segment  layers.TCP
			data     int
			seq, ack uint32
			withACK  bool
		}{
			{"SYN", layers.TCP{SYN: true}, 0, 0, 0xffffffff, true},
			{"SYN with data", layers.TCP{SYN: true}, 10, 0, 9, true}, // the numbers wrap
			{"SYN and FIN", layers.TCP{SYN: true, FIN: true}, 0, 0, 0, true},
			{"FIN", layers.TCP{FIN: true}, 1, 0, 0, true},
			{"nothing", layers.TCP{}, 0, 0, seq, true},
			{"ACK", layers.TCP{ACK: true, Ack: ack}, 100, ack, 0, false},
			{"SYN-ACK", layers.TCP{SYN: true, ACK: true, Ack: ack}, 0, ack, 0, false},
			{"FIN and ACK", layers.TCP{FIN: true, ACK: true, Ack: ack}, 1, ack, 0, false},
		} {
			for _, variant := range []int{0, 1, 2} {
				ip := network(f.client, f.vip, layers.IPProtocolTCP)
				l := c.segment
				l.SrcPort, l.DstPort, l.Seq, l.Window = 40000, 80, seq, 1000
				if variant > 0 {
					mss := layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}
					l.Options = []layers.TCPOption{mss}
				}
				_ = l.SetNetworkLayerForChecksum(ip)
				packet := build(t, ip, &l, gopacket.Payload(make([]byte, c.data)))
				if variant == 2 {
					packet = extend(packet)
				}
				frame := append(build(t, ethernet(f.vip.Is4()))[:ethLen], packet...)
				if variant == 1 {
					frame = tagged(frame)
				}
				got := rewritten(t, append(frame, 1, 2, 3), 0, Reset)
				want := answer(t, 0, f.vip, f.client, variant == 1, layers.IPProtocolTCP,
					&layers.TCP{SrcPort: 80, DstPort: 40000, RST: true, ACK: c.withACK, Seq: c.seq, Ack: c.ack})
				if !bytes.Equal(got, want) {
					t.Errorf("%s, variant %d:\n got %x\nwant %x", c.name, variant, got, want)
				}
			}
		}
	}
}

// What must not be answered is not, whether Answerable says so or Parse refuses it before.
func TestAnswerable(t *testing.T) {
	for _, f := range icmpFamilies {
		segment := func(src netip.Addr, l layers.TCP) []byte {
			ip := network(src, f.vip, layers.IPProtocolTCP)
			l.SrcPort, l.DstPort = 40000, 80
			_ = l.SetNetworkLayerForChecksum(ip)
			return build(t, ethernet(f.vip.Is4()), ip, &l)
		}
		to := func(frame []byte, mac net.HardwareAddr) []byte {
			copy(frame, mac)
			return frame
		}
		syn := segment(f.client, layers.TCP{SYN: true})
		about := reply(t, f.vip, f.client, layers.IPProtocolTCP)
		for name, c := range map[string]struct {
			frame []byte
			flags uint16
			want  bool
		}{
			"a SYN":              {syn, 0, true},
			"a first fragment":   {syn, First, true},
			"a further fragment": {syn, Later, false},
			"a reset":            {segment(f.client, layers.TCP{RST: true, ACK: true}), 0, false},
			"an ICMP error":      {icmpFrame(t, f.router, f.vip, f.errors[0], about), 0, false},
			"a broadcast":        {to(bytes.Clone(syn), net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}), 0, false},
			"a multicast":        {to(bytes.Clone(syn), net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}), 0, false},
		} {
			m := parse(c.frame)
			if m.Reason != None {
				t.Fatalf("%s: %v", name, m.Reason)
			}
			m.Flags |= c.flags
			if got := Answerable(c.frame, &m); got != c.want {
				t.Errorf("%v, %s: %v, want %v", f.vip, name, got, c.want)
			}
		}
		for _, src := range []string{"0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
			"192.0.2.10", "::", "::1", "ff02::1", "ff0e::5", "2001:db8::10"} {
			if a := netip.MustParseAddr(src); a.Is4() == f.vip.Is4() {
				if m := parse(segment(a, layers.TCP{SYN: true})); m.Reason == None {
					t.Errorf("a SYN from %v goes on", a)
				}
			}
		}
	}
}
