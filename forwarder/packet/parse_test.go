package packet

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

var testKey = Key{0x0123456789abcdef, 0xfedcba9876543210}

// fromHex reads hexadecimal bytes; what follows # in a line is a comment.
func fromHex(t testing.TB, text string) []byte {
	t.Helper()
	text = regexp.MustCompile(`#[^\n]*`).ReplaceAllString(text, "")
	b, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// parse is Parse on a copy of frame whose capacity ends with it, into a Meta full of rubbish.
func parse(frame []byte) Meta {
	m := Meta{Hash: 1, Dst: Addr{2, 3}, SrcPort: 4, DstPort: 5, L3: 6, L4: 7, End: 8, Flags: 0xfff9, Proto: 12, Class: 10, Reason: 11}
	exact := make([]byte, len(frame))
	copy(exact, frame)
	Parse(exact[:len(exact):len(exact)], &testKey, &m)
	return m
}

func addr(text string) Addr { return FromNetip(netip.MustParseAddr(text)) }

const (
	eth4 = "02 00 00 00 00 02  02 00 00 00 00 01  08 00 "
	eth6 = "02 00 00 00 00 02  02 00 00 00 00 01  86 dd "

	// 10.1.2.3 to 192.0.2.10, with right checksums.
	ip4TCP = "45 00 00 28  00 00 40 00  40 06 6c c2  0a 01 02 03  c0 00 02 0a "
	ip4UDP = "45 00 00 20  00 00 40 00  40 11 6c bf  0a 01 02 03  c0 00 02 0a "

	// 2001:db8::5 to 2001:db8::10, before it: payload length, next header, hop limit.
	ip6Addrs = "20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 05  20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 10 "

	tcpSYN = "9c 40 00 50  00 00 00 01 00 00 00 00  50 02 ff ff  00 00 00 00 " // 40000 to 80
	udp4   = "9c 40 00 35  00 0c 00 00  de ad be ef "                          // 40000 to 53, four bytes
)

// from4 is the hash of the flow of most test frames.
func from4(srcPort, dstPort uint16, proto uint8) uint64 {
	return FlowHash(&testKey, addr("10.1.2.3"), addr("192.0.2.10"), srcPort, dstPort, proto)
}

func from6(srcPort, dstPort uint16, proto uint8) uint64 {
	return FlowHash(&testKey, addr("2001:db8::5"), addr("2001:db8::10"), srcPort, dstPort, proto)
}

func TestParse(t *testing.T) {
	to4 := func(l4, end uint16, proto uint8, r Reason) Meta {
		return Meta{Dst: addr("192.0.2.10"), L3: 14, L4: l4, End: end, Proto: proto, Reason: r}
	}
	to6 := func(end uint16, proto uint8, r Reason) Meta {
		return Meta{Dst: addr("2001:db8::10"), L3: 14, L4: 54, End: end, Proto: proto, Flags: V6, Reason: r}
	}
	flow := func(m Meta, hash uint64, srcPort, dstPort, flags uint16) Meta {
		m.Hash, m.SrcPort, m.DstPort = hash, srcPort, dstPort
		m.Flags |= flags
		return m
	}
	flagged := func(m Meta, f uint16) Meta { m.Flags |= f; return m }
	class := func(m Meta, c uint8) Meta { m.Class = c; return m }
	only := func(r Reason) Meta { return Meta{Reason: r} }
	tcp4 := flow(to4(34, 54, 6, None), from4(40000, 80, 6), 40000, 80, 0)
	tcp6 := flow(to6(74, 6, None), from6(40000, 80, 6), 40000, 80, 0)

	for _, c := range []struct {
		name, frame string
		want        Meta
	}{
		{"empty", "", only(Truncated)},
		{"thirteen bytes", "02 00 00 00 00 02  02 00 00 00 00 01  08", only(Truncated)},
		{"no packet", eth4, only(Truncated)},
		{"ARP", "ff ff ff ff ff ff  02 00 00 00 00 01  08 06  00 01 08 00 06 04 00 01", only(NotIP)},
		{"802.3 length", "02 00 00 00 00 02  02 00 00 00 00 01  00 28" + ip4TCP + tcpSYN, only(NotIP)},

		{"SYN", eth4 + ip4TCP + tcpSYN, flow(tcp4, tcp4.Hash, 40000, 80, SYN)},
		{"SYN padded", eth4 + ip4TCP + tcpSYN + "00 00 00 00 00 00", flow(tcp4, tcp4.Hash, 40000, 80, SYN)},
		{"UDP", eth4 + ip4UDP + udp4, flow(to4(34, 46, 17, None), from4(40000, 53, 17), 40000, 53, 0)},
		{"IPv4 options", eth4 + `
			46 00 00 2c  00 00 40 00  40 06 d7 b8  0a 01 02 03  c0 00 02 0a
			94 04 00 01  # router alert
` + tcpSYN,
			flow(to4(38, 58, 6, None), from4(40000, 80, 6), 40000, 80, SYN)},
		{"IPv4 options, one bit wrong", eth4 + `
			46 00 00 2c  00 00 40 00  40 06 d7 b8  0a 01 02 03  c0 00 02 0a
			94 04 00 00` + tcpSYN, only(BadChecksum)},
		{"IPv4 version 5", eth4 + "55" + ip4TCP[2:] + tcpSYN, only(BadIPHeader)},
		{"IPv6 in Ethernet type IPv4", eth4 + "60 00 00 00 00 14 06 40" + ip6Addrs + tcpSYN, only(BadIPHeader)},
		{"IPv4 header of 16 bytes", eth4 + "44" + ip4TCP[2:] + tcpSYN, only(BadIHL)},
		{"IPv4 header of no bytes", eth4 + "40" + ip4TCP[2:] + tcpSYN, only(BadIHL)},
		{"IPv4 total length 0", eth4 + "45 00 00 00  00 00 40 00  40 06 6c ea  0a 01 02 03  c0 00 02 0a" + tcpSYN, only(BadLength)},
		{"IPv4 total length 19", eth4 + "45 00 00 13  00 00 40 00  40 06 6c d7  0a 01 02 03  c0 00 02 0a" + tcpSYN, only(BadLength)},
		{"IPv4 total length within the options", eth4 + `
			46 00 00 17  00 00 40 00  40 06 6b d3  0a 01 02 03  c0 00 02 0a  00 00 00 00` + tcpSYN, only(BadLength)},
		{"IPv4 checksum off by one", eth4 + strings.Replace(ip4TCP, "6c c2", "6c c3", 1) + tcpSYN, only(BadChecksum)},
		{"IPv4 checksum zero", eth4 + strings.Replace(ip4TCP, "6c c2", "00 00", 1) + tcpSYN, only(BadChecksum)},
		{"IPv4 one byte short", eth4 + ip4TCP + strings.TrimSuffix(tcpSYN, "00 "), only(Truncated)},
		{"IPv4 header only", eth4 + "45 00 00 14  00 00 40 00  40 06 6c d6  0a 01 02 03  c0 00 02 0a", to4(34, 34, 6, BadTransport)},
		{"ICMP echo", eth4 + "45 00 00 1c  00 00 40 00  40 01 6c d3  0a 01 02 03  c0 00 02 0a  08 00 f7 ff 00 00 00 00", flagged(to4(34, 42, 1, None), Echo)},
		{"ICMP echo reply", eth4 + "45 00 00 1c  00 00 40 00  40 01 6c d3  0a 01 02 03  c0 00 02 0a  00 00 ff ff 00 00 00 00", to4(34, 42, 1, ICMP)},
		{"ICMPv6 in IPv4", eth4 + "45 00 00 1c  00 00 40 00  40 3a 6c 9a  0a 01 02 03  c0 00 02 0a  80 00 00 00 00 00 00 00", to4(34, 42, 58, Protocol)},
		{"GRE", eth4 + "45 00 00 18  00 00 40 00  40 2f 6c a9  0a 01 02 03  c0 00 02 0a  00 00 08 00", to4(34, 38, 47, Protocol)},

		{"TCP of 19 bytes", eth4 + "45 00 00 27  00 00 40 00  40 06 6c c3  0a 01 02 03  c0 00 02 0a" + tcpSYN, to4(34, 53, 6, BadTransport)},
		{"TCP offset 4", eth4 + ip4TCP + strings.Replace(tcpSYN, "50 02", "40 02", 1), to4(34, 54, 6, BadTransport)},
		{"TCP offset beyond the packet", eth4 + ip4TCP + strings.Replace(tcpSYN, "50 02", "60 02", 1) + "00 00 00 00", to4(34, 54, 6, BadTransport)},
		{"UDP of 7 bytes", eth4 + "45 00 00 1b  00 00 40 00  40 11 6c c4  0a 01 02 03  c0 00 02 0a" + udp4, to4(34, 41, 17, BadTransport)},
		{"UDP length 7", eth4 + ip4UDP + strings.Replace(udp4, "00 0c", "00 07", 1), to4(34, 46, 17, BadTransport)},
		{"UDP length beyond the packet", eth4 + ip4UDP + strings.Replace(udp4, "00 0c", "00 0d", 1) + "00", to4(34, 46, 17, BadTransport)},
		{"UDP length 8 of 12", eth4 + ip4UDP + strings.Replace(udp4, "00 0c", "00 08", 1),
			flow(to4(34, 46, 17, None), from4(40000, 53, 17), 40000, 53, 0)},

		{"SYN over IPv6", eth6 + "60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN, flow(tcp6, tcp6.Hash, 40000, 80, SYN)},
		{"UDP over IPv6, class and label, padded", eth6 + "6f f1 23 45  00 0c 11 40" + ip6Addrs + udp4 + "00 00",
			flow(class(to6(66, 17, None), 0xff), from6(40000, 53, 17), 40000, 53, 0)},
		{"IPv6 header cut", eth6 + "60 00 00 00  00 14 06 40" + strings.TrimSuffix(ip6Addrs, "10 "), only(Truncated)},
		{"IPv6 one byte short", eth6 + "60 00 00 00  00 15 06 40" + ip6Addrs + tcpSYN, only(Truncated)},
		{"IPv6 version 4", eth6 + "40 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN, only(BadIPHeader)},
		{"IPv6 from a mapped address", eth6 + "60 00 00 00  00 14 06 40" +
			"00 00 00 00 00 00 00 00 00 00 ff ff 0a 01 02 03  20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 10" + tcpSYN, only(BadIPHeader)},
		{"IPv6 to a mapped address", eth6 + "60 00 00 00  00 14 06 40" +
			"20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 10  00 00 00 00 00 00 00 00 00 00 ff ff c0 00 02 0a" + tcpSYN, only(BadIPHeader)},
		{"IPv6 empty", eth6 + "60 00 00 00  00 00 06 40" + ip6Addrs, to6(54, 6, BadTransport)},
		{"IPv6 UDP length 0", eth6 + "60 00 00 00  00 0c 11 40" + ip6Addrs + strings.Replace(udp4, "00 0c", "00 00", 1), to6(66, 17, BadTransport)},
		{"ICMPv6 echo", eth6 + "60 00 00 00  00 08 3a 40" + ip6Addrs + "80 00 00 00 00 00 00 00", flagged(to6(62, 58, None), Echo)},
		{"ICMPv6 echo reply", eth6 + "60 00 00 00  00 08 3a 40" + ip6Addrs + "81 00 00 00 00 00 00 00", to6(62, 58, ICMP)},
		{"ICMPv6 cut", eth6 + "60 00 00 00  00 07 3a 40" + ip6Addrs + "80 00 00 00 00 00 00", to6(61, 58, BadICMP)},
		{"ICMP in IPv6", eth6 + "60 00 00 00  00 08 01 40" + ip6Addrs + "08 00 00 00 00 00 00 00", to6(62, 1, Protocol)},
		{"IPv6 no next header", eth6 + "60 00 00 00  00 00 3b 40" + ip6Addrs, to6(54, 59, Protocol)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parse(fromHex(t, c.frame)); got != c.want {
				t.Errorf("\n got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// Each of the 512 combinations of the nine TCP flags, in both families.
func TestParseTCPFlags(t *testing.T) {
	for _, text := range []string{eth4 + ip4TCP + tcpSYN, eth6 + "60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN} {
		frame := fromHex(t, text)
		l4 := len(frame) - tcpLen
		for bits := range 512 {
			binary.BigEndian.PutUint16(frame[l4+12:], 0x5000|uint16(bits))
			var want uint16
			if bits&0x01 != 0 {
				want |= FIN
			}
			if bits&0x02 != 0 && bits&0x10 == 0 {
				want |= SYN
			}
			if bits&0x04 != 0 {
				want |= RST
			}
			if l4 == 54 {
				want |= V6
			}
			if m := parse(frame); m.Reason != None || m.Flags != want {
				t.Fatalf("TCP flags %03x: Flags %02x, reason %v; want %02x", bits, m.Flags, m.Reason, want)
			}
		}
	}
}

// Each IPv6 next header and each IPv4 protocol number has its reason. TestExtensionHeaders has the headers that are followed.
func TestParseProtocols(t *testing.T) {
	for proto := range 256 {
		want4, want6 := Protocol, Protocol
		switch proto {
		case 6, 17:
			want4, want6 = None, None
		case 1:
			want4 = ICMP
		case 58:
			want6 = ICMP
		case 50, 51, 135, 139, 140, 253, 254:
			want6 = ExtensionHeader
		}
		frame := fromHex(t, eth4+ip4TCP+tcpSYN)
		frame[23] = byte(proto)
		setChecksum(frame[14:34])
		binary.BigEndian.PutUint16(frame[38:], 20) // a good length, where UDP has it
		if m := parse(frame); m.Reason != want4 || m.Proto != uint8(proto) {
			t.Errorf("IPv4 protocol %d: reason %v, protocol %d; want %v", proto, m.Reason, m.Proto, want4)
		}
		if proto == nextHopByHop || proto == nextRouting || proto == nextFragment || proto == nextOptions {
			continue
		}
		frame = fromHex(t, eth6+"60 00 00 00  00 14 06 40"+ip6Addrs+tcpSYN)
		frame[20] = byte(proto)
		binary.BigEndian.PutUint16(frame[58:], 20)
		if m := parse(frame); m.Reason != want6 || m.Proto != uint8(proto) {
			t.Errorf("IPv6 next header %d: reason %v, protocol %d; want %v", proto, m.Reason, m.Proto, want6)
		}
	}
}

// No single flipped bit of an IPv4 header goes unnoticed.
func TestParseNoticesFlippedBits(t *testing.T) {
	good := fromHex(t, eth4+"46 00 00 2c  00 00 40 00  40 06 d7 b8  0a 01 02 03  c0 00 02 0a  94 04 00 01"+tcpSYN)
	if m := parse(good); m.Reason != None {
		t.Fatal(m.Reason)
	}
	for bit := range 24 * 8 {
		frame := append([]byte(nil), good...)
		frame[14+bit/8] ^= 1 << (bit % 8)
		switch m := parse(frame); m.Reason {
		case BadChecksum, BadIPHeader, BadIHL, BadLength, Truncated:
			if m != (Meta{Reason: m.Reason}) {
				t.Errorf("bit %d flipped: fields are set: %+v", bit, m)
			}
		default:
			t.Errorf("bit %d flipped: reason %v", bit, m.Reason)
		}
	}
}

// A frame cut anywhere within its packet is truncated; padding of any length changes nothing.
func TestParseCut(t *testing.T) {
	for _, text := range []string{
		eth4 + ip4TCP + tcpSYN,
		eth4 + ip4UDP + udp4,
		eth6 + "60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN,
	} {
		frame := fromHex(t, text)
		whole := parse(frame)
		for n := range frame {
			if m := parse(frame[:n]); m != (Meta{Reason: Truncated}) {
				t.Errorf("%d of %d bytes: %+v", n, len(frame), m)
			}
		}
		for _, n := range []int{1, 6, 46, 1500, 4000, 65535 - len(frame)} {
			if m := parse(append(append([]byte(nil), frame...), make([]byte, n)...)); m != whole {
				t.Errorf("%d bytes of padding: %+v, want %+v", n, m, whole)
			}
		}
		if m := parse(append(frame, make([]byte, 65536-len(frame))...)); m != (Meta{Reason: Truncated}) {
			t.Errorf("65,536 bytes: %+v", m)
		}
	}
}

// The largest packet that offsets of 16 bits reach, and the smallest that they do not.
func TestParseLargest(t *testing.T) {
	for _, total := range []int{65521, 65522, 65535} {
		frame := make([]byte, ethLen+total)
		copy(frame, fromHex(t, eth4+ip4UDP+udp4))
		binary.BigEndian.PutUint16(frame[16:], uint16(total))
		setChecksum(frame[14:34])
		binary.BigEndian.PutUint16(frame[38:], uint16(total-20))
		want := Meta{Reason: Truncated}
		if total == 65521 {
			want = Meta{Hash: from4(40000, 53, 17), Dst: addr("192.0.2.10"), SrcPort: 40000, DstPort: 53, L3: 14, L4: 34, End: 65535, Flags: 0, Proto: 17, Class: 0, Reason: None}
		}
		if m := parse(frame); m != want {
			t.Errorf("IPv4 packet of %d bytes: %+v, want %+v", total, m, want)
		}
	}
}

// Random bytes, and frames with random bytes in the places that decide, never panic, and offsets stay in order.
func TestParseTotal(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	seen := map[Reason]int{}
	for range 300000 {
		frame := make([]byte, rng.IntN(120))
		for i := range frame {
			frame[i] = byte(rng.Uint32() >> 13)
		}
		if len(frame) >= 60 {
			at := ethLen
			if rng.IntN(8) == 0 {
				binary.BigEndian.PutUint16(frame[12:], typeVLAN)
				at += 4
			}
			binary.BigEndian.PutUint16(frame[at-2:], typeIPv4)
			ip, land := frame[at:], rng.IntN(50) == 0
			if rng.IntN(2) == 0 {
				binary.BigEndian.PutUint16(frame[at-2:], typeIPv6)
				ip[0] = 0x60
				binary.BigEndian.PutUint16(ip[4:], uint16(rng.IntN(90)))
				ip[6] = []byte{6, 17, 58, 44, 0, 59, 43, 60}[rng.IntN(8)]
				if rng.IntN(10) == 0 {
					copy(ip[8:24], make([]byte, 15)) // :: or ::1, perhaps
					ip[23] = byte(rng.IntN(3))
				}
				if copy(ip[40:], []byte{[]byte{6, 17, 44, 60, 43}[rng.IntN(5)], 0}); land && len(ip) >= 40 {
					copy(ip[24:40], ip[8:24])
				}
			} else {
				ip[0] = 0x40 | byte(rng.IntN(9)+2)
				binary.BigEndian.PutUint16(ip[2:], uint16(rng.IntN(130)))
				ip[9] = []byte{6, 17, 1, 4}[rng.IntN(4)]
				if land {
					copy(ip[16:20], ip[12:16])
				}
				if n := int(ip[0]&0xf) * 4; n <= len(ip) && n >= 20 && rng.IntN(8) != 0 {
					if ip[6] &= 0x20; rng.IntN(4) != 0 {
						ip[6], ip[7] = 0, 0
					} else if ip[7] &= 3; rng.IntN(2) == 0 {
						ip[7] = 0
					}
					setChecksum(ip[:n])
				}
			}
		}
		if len(frame) > 30 && rng.IntN(50) == 0 {
			frame[14+rng.IntN(2)*4] ^= 0x10
		}
		m := parse(frame)
		checkMeta(t, frame, m)
		seen[m.Reason]++
	}
	for r := None; r <= BadICMP; r++ {
		if seen[r] < 20 {
			t.Errorf("%v seen %d times only: the test has grown blunt", r, seen[r])
		}
	}
}

// checkMeta checks what holds for the Meta of any frame.
func checkMeta(t testing.TB, frame []byte, m Meta) {
	t.Helper()
	length := int(m.End) - int(m.L4)
	switch m.Reason {
	case None:
		flags := m.Flags &^ V6
		known := m.Proto == ProtoTCP || m.Proto == ProtoUDP
		switch {
		case flags == Echo:
			known = m.Hash == 0 && (m.Proto == ProtoICMP || m.Proto == ProtoICMPv6) && length >= icmpLen
		case flags == Later:
			known = m.Hash == 0 && length > 0 && (known || m.Proto == nextOptions && m.Flags&V6 != 0)
		case flags == ICMPError:
			known = known && length >= icmpLen+ipv4Len+udpLen
		case flags&^(FIN|SYN|RST|First) == 0:
			known = known && length >= udpLen
		default:
			known = false
		}
		if !known || flags&(Echo|Later) != 0 && (m.SrcPort != 0 || m.DstPort != 0) {
			t.Fatalf("%x goes on as %+v", frame, m)
		}
	case Truncated, NotIP, BadIPHeader, BadIHL, BadLength, BadChecksum:
		if m != (Meta{Reason: m.Reason}) {
			t.Fatalf("%x: fields without meaning are set: %+v", frame, m)
		}
		return
	case Land, SourceLoopback, SourceMulticast, SourceInvalid, ExtensionHeader, RoutingHeader, BadFragment, TinyFragment,
		Protocol, BadTransport, ICMP, BadICMP:
		if m.Hash != 0 || m.SrcPort != 0 || m.DstPort != 0 || m.Flags&^V6 != 0 {
			t.Fatalf("%x: fields without meaning are set: %+v", frame, m)
		}
	default:
		t.Fatalf("%x: Parse gives %v", frame, m.Reason)
	}
	v6 := m.Flags&V6 != 0
	if m.L3 != ethLen && m.L3 != ethLen+4 || m.L4 < m.L3+ipv4Len || length < 0 || int(m.End) > len(frame) ||
		v6 != (frame[m.L3-2] == 0x86) || v6 == m.Dst.is4() {
		t.Fatalf("%x: %+v", frame, m)
	}
}

func TestMetaSize(t *testing.T) {
	if s := reflect.TypeFor[Meta]().Size(); s != 64 {
		t.Errorf("Meta has %d bytes, want 64", s)
	}
	if s := reflect.TypeFor[Encap]().Size(); s > 72 {
		t.Errorf("Encap has %d bytes, more than 72", s)
	}
}

func TestNothingAllocates(t *testing.T) {
	frames := [][]byte{
		fromHex(t, eth4+ip4TCP+tcpSYN),
		fromHex(t, eth6+"60 00 00 00  00 14 06 40"+ip6Addrs+tcpSYN),
		fromHex(t, eth4+ip4TCP),
		fromHex(t, eth4+strings.Replace(ip4TCP, "6c c2", "6c c3", 1)+tcpSYN),
		fromHex(t, "ff ff ff ff ff ff  02 00 00 00 00 01  08 06  00 01 08 00 06 04 00 01"),
		fromHex(t, eth6+"60 00 00 00  00 24 3c 40"+ip6Addrs+"2c 00 01 04 00 00 00 00  06 00 00 00 00 00 00 07"+tcpSYN),
	}
	var fragments [][]byte
	for _, v4 := range []bool{true, false} {
		for _, word := range []uint16{1, 800} {
			fragments = append(fragments, fragment(t, v4, ProtoUDP, word, fromHex(t, udp4+"00 00 00 00")))
		}
	}
	encaps := testEncaps(t)
	mem := make([]byte, 256)
	var m Meta
	var hash uint64
	if n := testing.AllocsPerRun(1000, func() {
		for _, f := range frames {
			Parse(f, &testKey, &m)
			if m.Reason != None {
				continue
			}
			hash += FlowHash(&testKey, m.Dst, m.Dst, m.SrcPort, m.DstPort, m.Proto)
			for i := range encaps {
				copy(mem[64:], f)
				encaps[i].encap.Apply(mem, 64, &m)
			}
		}
		for _, f := range fragments {
			Parse(f, &testKey, &m)
			m.SetPorts(f, &testKey, 1, 2, ProtoUDP)
			info := ReadFragment(f, &testKey, &m)
			hash += info.Key
		}
	}); n != 0 {
		t.Errorf("%v allocations a run, want none", n)
	}
}

// setChecksum puts the right checksum into an IPv4 header, word by word as RFC 791 has it.
func setChecksum(h []byte) {
	h[10], h[11] = 0, 0
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(h[i])<<8 | uint32(h[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
}
