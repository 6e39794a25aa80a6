package packet

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/forwarder/guard"
)

// TCP options as gopacket has them.
func tcpOption(kind layers.TCPOptionKind, data ...byte) layers.TCPOption {
	return layers.TCPOption{OptionType: kind, OptionLength: uint8(2 + len(data)), OptionData: data}
}

var tcpNop = layers.TCPOption{OptionType: layers.TCPOptionKindNop, OptionLength: 1}

func timesOption(val, ecr uint32) layers.TCPOption {
	data := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, val), ecr)
	return tcpOption(layers.TCPOptionKindTimestamps, data...)
}

// clientSegment is a TCP segment of a client, as gopacket builds it. variant 1 has IP options or extension headers, 2 a tag, 4 padding.
func clientSegment(t testing.TB, client, vip netip.Addr, class uint8, l layers.TCP, data, variant int) []byte {
	t.Helper()
	ip := network(client, vip, layers.IPProtocolTCP)
	switch ip := ip.(type) {
	case *layers.IPv4:
		ip.TOS = class
	case *layers.IPv6:
		ip.TrafficClass = class
	}
	l.SrcPort, l.DstPort = 40000, 443
	_ = l.SetNetworkLayerForChecksum(ip)
	packet := build(t, ip, &l, gopacket.Payload(make([]byte, data)))
	if variant&1 != 0 {
		if client.Is4() {
			packet = withOptions(packet)
		} else {
			packet = withExtensions(packet)
		}
	}
	frame := append(build(t, ethernet(client.Is4()))[:ethLen], packet...)
	if variant&2 != 0 {
		frame = tagged(frame)
	}
	if variant&4 != 0 {
		frame = append(frame, 1, 2, 3)
	}
	return frame
}

// cookieReply is the SYN-ACK that answers a SYN that offers o, without Ethernet and IP.
func cookieReply(o SYNOptions, isn, ack uint32, mss uint16, tsval uint32) *layers.TCP {
	l := &layers.TCP{SrcPort: 443, DstPort: 40000, SYN: true, ACK: true, Seq: isn, Ack: ack, Window: 65535}
	if o.MSS != 0 {
		l.Options = append(l.Options, tcpOption(layers.TCPOptionKindMSS, byte(mss>>8), byte(mss)))
	}
	if !o.Timestamps {
		return l
	}
	if o.SACK {
		l.Options = append(l.Options, tcpOption(layers.TCPOptionKindSACKPermitted))
	} else {
		l.Options = append(l.Options, tcpNop, tcpNop)
	}
	l.Options = append(l.Options, timesOption(tsval-tsval%64+uint32(o.Byte()), o.TSVal))
	if o.WScale != NoWScale {
		l.Options = append(l.Options, tcpNop, tcpOption(layers.TCPOptionKindWindowScale, 7))
	}
	l.ECE = o.ECN
	return l
}

// SYNs with all sets of options, in any order, packed or aligned, are read as they were written, and the SYN-ACK is byte for byte
// what gopacket builds, and never longer than the SYN. So it is when the node agrees to less than was offered.
func TestSYNCookie(t *testing.T) {
	const isn, mss, tsval, seq = 0xdeadbeef, 1440, 0xabcdef7f, math.MaxUint32
	rng := rand.New(rand.NewPCG(13, 14))
	for _, f := range icmpFamilies {
		for set := range 32 {
			for variant := range 16 {
				want := SYNOptions{WScale: NoWScale}
				l := layers.TCP{Seq: seq, SYN: true, Window: 64240}
				if set&1 != 0 {
					want.MSS = uint16(1 + rng.IntN(math.MaxUint16))
					l.Options = append(l.Options, tcpOption(layers.TCPOptionKindMSS, byte(want.MSS>>8), byte(want.MSS)))
				}
				if set&2 != 0 {
					scale := uint8(rng.IntN(18))
					want.WScale = min(scale, 14)
					l.Options = append(l.Options, tcpOption(layers.TCPOptionKindWindowScale, scale))
				}
				if set&4 != 0 {
					want.SACK = true
					l.Options = append(l.Options, tcpOption(layers.TCPOptionKindSACKPermitted))
				}
				if set&8 != 0 {
					want.Timestamps, want.TSVal = true, rng.Uint32()
					l.Options = append(l.Options, timesOption(want.TSVal, rng.Uint32()))
				}
				if set&16 != 0 {
					want.ECN, l.ECE, l.CWR, l.NS = true, true, true, variant&1 != 0
				}
				if variant&8 != 0 { // fast open
					l.Options = append(l.Options, tcpOption(34, 1, 2, 3, 4, 5, 6, 7, 8), tcpNop)
				}
				rng.Shuffle(len(l.Options), func(i, j int) { l.Options[i], l.Options[j] = l.Options[j], l.Options[i] })
				frame := clientSegment(t, f.client, f.vip, 0, l, rng.IntN(2)*101, variant)
				m := parse(frame)
				if m.Flags&SYN == 0 {
					t.Fatalf("%x: %+v", frame, m)
				}
				got := ReadSYN(frame, &m)
				if got != want {
					t.Fatalf("%x: %+v, want %+v", frame, got, want)
				}
				for less := range 16 {
					o := got
					if less&1 != 0 {
						o.WScale = NoWScale
					}
					o.SACK, o.ECN, o.Timestamps = o.SACK && less&2 == 0, o.ECN && less&4 == 0, o.Timestamps && less&8 == 0
					answered := rewritten(t, frame, 0, func(mem []byte, start int, m *Meta) (int, int) {
						return SYNCookie(mem, start, m, o, isn, mss, tsval)
					})
					wanted := answer(t, 0, f.vip, f.client, variant&2 != 0, layers.IPProtocolTCP, cookieReply(o, isn, 0, mss, tsval))
					if !bytes.Equal(answered, wanted) || len(answered) > int(m.End) {
						t.Fatalf("%v, set %d, variant %d, %+v:\n got %x\nwant %x", f.vip, set, variant, o, answered, wanted)
					}
				}
			}
		}
	}
}

// What a SYN offers that is not sound: it counts up to there.
func TestReadSYN(t *testing.T) {
	none := SYNOptions{WScale: NoWScale}
	mss := SYNOptions{WScale: NoWScale, MSS: 1460}
	for _, c := range []struct {
		name, options string
		want          SYNOptions
	}{
		{"no options", "", none},
		{"the end before others", "00 02 04 05 b4 00 00 00", none},
		{"an MSS, and one after the end", "02 04 05 b4 00 02 04 01", mss},
		{"a length of zero", "02 04 05 b4 03 00 07 00", mss},
		{"a length of one", "02 04 05 b4 03 01 07 00", mss},
		{"a length beyond the header", "02 04 05 b4 08 0a 00 00", mss},
		{"a kind without a length", "02 04 05 b4 01 01 01 03", mss},
		{"an MSS of six bytes", "02 06 05 b4 00 00 04 02", SYNOptions{WScale: NoWScale, SYNFlags: SYNFlags{SACK: true}}},
		{"a window scale of four bytes", "03 04 07 07", none},
		{"SACK permitted of three bytes", "04 03 00 00", none},
		{"timestamps of eight bytes", "08 08 00 00 00 01 00 00", none},
		{"an MSS of zero", "02 04 00 00", none},
		{"two of each", "02 04 00 01 02 04 05 b4 03 03 01 03 03 07 01 01", SYNOptions{WScale: 7, MSS: 1460}},
		{"a window scale of 255", "03 03 ff 00", SYNOptions{WScale: 14}},
		{"Linux", "02 04 05 b4 04 02 08 0a 01 02 03 04 00 00 00 00 01 03 03 0a",
			SYNOptions{MSS: 1460, TSVal: 0x01020304, WScale: 10, SYNFlags: SYNFlags{SACK: true, Timestamps: true}}},
		{"macOS", "02 04 05 b4 01 03 03 06 01 01 08 0a 01 02 03 04 00 00 00 00 04 02 00 00",
			SYNOptions{MSS: 1460, TSVal: 0x01020304, WScale: 6, SYNFlags: SYNFlags{SACK: true, Timestamps: true}}},
		{"Windows", "02 04 05 b4 01 03 03 08 01 01 04 02", SYNOptions{MSS: 1460, WScale: 8, SYNFlags: SYNFlags{SACK: true}}},
	} {
		for _, f := range icmpFamilies {
			frame := withTCPOptions(clientSegment(t, f.client, f.vip, 0, layers.TCP{SYN: true}, 0, 0), fromHex(t, c.options))
			m := parse(frame)
			if got := ReadSYN(frame, &m); got != c.want {
				t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
			}
		}
	}
}

// withTCPOptions puts options, whose length is a multiple of four, at the end of a segment without options or data. The checksum
// of TCP does not hold then.
func withTCPOptions(frame, options []byte) []byte {
	m := parse(frame)
	frame = append(bytes.Clone(frame[:m.L4+tcpLen]), options...)
	frame[m.L4+12] = byte(tcpLen+len(options)) << 2
	ip := frame[m.L3:]
	if m.Flags&V6 != 0 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ipv6Len))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		setChecksum(ip[:int(ip[0]&15)*4])
	}
	return frame
}

// ECN is what both flags say, of a packet that is not marked itself.
func TestReadSYNOfECN(t *testing.T) {
	for _, f := range icmpFamilies {
		for bits := range 16 {
			ece, cwr, class := bits&1 != 0, bits&2 != 0, uint8(0xb8+bits>>2)
			frame := clientSegment(t, f.client, f.vip, class, layers.TCP{SYN: true, ECE: ece, CWR: cwr}, 0, 0)
			m := parse(frame)
			if got, want := ReadSYN(frame, &m).ECN, ece && cwr && class&3 == 0; got != want {
				t.Errorf("ECE %v, CWR %v, class %#x: %v", ece, cwr, class, got)
			}
		}
	}
}

// The byte survives its way to the client and back, or without timestamps says that nothing was agreed to.
func TestOptionsByte(t *testing.T) {
	seen := map[uint8]bool{}
	for scale := range uint8(16) {
		for bits := range 4 {
			o := SYNOptions{WScale: scale, SYNFlags: SYNFlags{SACK: bits&1 != 0, ECN: bits&2 != 0, Timestamps: true}}
			b := o.Byte()
			if seen[b] || b > 0x3f || b&0xf != scale || b&0x10 != 0 != o.SACK || b&0x20 != 0 != o.ECN {
				t.Errorf("%+v: %#x", o, b)
			}
			seen[b] = true
			if back := CookieOptions(0xffffffc0|uint32(b), true); back != b {
				t.Errorf("%#x comes back as %#x", b, back)
			}
			o.Timestamps = false
			if o.Byte() != 0x0f || CookieOptions(uint32(b), false) != 0x0f {
				t.Errorf("%+v: %#x, %#x", o, o.Byte(), CookieOptions(uint32(b), false))
			}
		}
	}
}

func TestReadACK(t *testing.T) {
	const seq, ack, val, ecr = 0xfffffff0, 0x80000001, 5, 0xabcdef37
	times := timesOption(val, ecr)
	sack := tcpOption(layers.TCPOptionKindSACK, 0, 0, 0, 1, 0, 0, 0, 2)
	for _, f := range icmpFamilies {
		for name, c := range map[string]struct {
			options []layers.TCPOption
			hasTS   bool
		}{
			"none":            {nil, false},
			"the usual way":   {[]layers.TCPOption{tcpNop, tcpNop, times}, true},
			"packed":          {[]layers.TCPOption{times}, true},
			"behind":          {[]layers.TCPOption{tcpNop, tcpNop, sack, times, tcpNop, tcpNop}, true},
			"before":          {[]layers.TCPOption{tcpNop, tcpNop, times, tcpNop, tcpNop, sack}, true},
			"twice":           {[]layers.TCPOption{times, timesOption(1, 2)}, true},
			"of wrong length": {[]layers.TCPOption{tcpOption(layers.TCPOptionKindTimestamps, 1, 2, 3, 4, 5, 6), sack}, false},
		} {
			for variant := range 8 {
				for _, data := range []int{0, 12} {
					l := layers.TCP{ACK: true, Seq: seq, Ack: ack, Options: c.options}
					frame := clientSegment(t, f.client, f.vip, 0, l, data, variant)
					m := parse(frame)
					gotSeq, gotACK, gotECR, hasTS := ReadACK(frame, &m)
					want := uint32(0)
					if c.hasTS {
						want = ecr
					}
					if gotSeq != seq || gotACK != ack || gotECR != want || hasTS != c.hasTS || !CarriesACK(frame, &m) {
						t.Errorf("%s: %#x %#x %#x %v", name, gotSeq, gotACK, gotECR, hasTS)
					}
				}
			}
		}
		for bits := range 64 {
			l := layers.TCP{FIN: bits&1 != 0, SYN: bits&2 != 0, RST: bits&4 != 0, PSH: bits&8 != 0, ACK: bits&16 != 0, URG: bits&32 != 0}
			frame := clientSegment(t, f.client, f.vip, 0, l, 1, 0)
			m := parse(frame)
			if got, want := CarriesACK(frame, &m), l.ACK && !l.SYN && !l.RST; got != want {
				t.Errorf("flags %#x: %v", bits, got)
			}
		}
	}
}

// The whole way, with the codec: SYN, SYN-ACK, ACK or the first data, of a client that takes what it is offered.
func TestCookieRoundTrip(t *testing.T) {
	cookies := guard.NewCookies([32]byte{1, 2, 3})
	const now, clientISN = 1_800_000_000, 0x01020304
	for _, f := range icmpFamilies {
		src, dst := words(FromNetip(f.client)), words(FromNetip(f.vip))
		for _, options := range [][]layers.TCPOption{
			{tcpOption(layers.TCPOptionKindMSS, 5, 0xb4), tcpOption(layers.TCPOptionKindSACKPermitted), timesOption(77, 0), tcpOption(layers.TCPOptionKindWindowScale, 9)},
			{tcpOption(layers.TCPOptionKindMSS, 5, 0xb4), tcpOption(layers.TCPOptionKindWindowScale, 9)},
			nil,
		} {
			syn := clientSegment(t, f.client, f.vip, 0, layers.TCP{SYN: true, Seq: clientISN, Options: options, ECE: true, CWR: true}, 0, 0)
			m := parse(syn)
			o := ReadSYN(syn, &m)
			index := guard.MSSIndex(o.MSS)
			isn := cookies.Number(src, dst, m.SrcPort, m.DstPort, SYNSeq(syn, &m), guard.CookieEpoch(now), index, o.Byte())
			back := rewritten(t, syn, 0, func(mem []byte, start int, m *Meta) (int, int) {
				return SYNCookie(mem, start, m, o, isn, 1440, 123456789)
			})
			var synACK layers.TCP
			bm := parse(back)
			if err := synACK.DecodeFromBytes(back[bm.L4:bm.End], gopacket.NilDecodeFeedback); err != nil {
				t.Fatal(err)
			}
			l := layers.TCP{ACK: true, Seq: synACK.Ack, Ack: synACK.Seq + 1}
			for _, opt := range synACK.Options {
				if opt.OptionType == layers.TCPOptionKindTimestamps {
					l.Options = []layers.TCPOption{tcpNop, tcpNop, timesOption(78, binary.BigEndian.Uint32(opt.OptionData))}
				}
			}
			for _, data := range []int{0, 100} {
				frame := clientSegment(t, f.client, f.vip, 0, l, data, 0)
				m := parse(frame)
				seq, ack, tsecr, hasTS := ReadACK(frame, &m)
				options := CookieOptions(tsecr, hasTS)
				mss, ok := cookies.Check(ack-1, src, dst, m.SrcPort, m.DstPort, seq-1, now+5, options)
				want := uint16(1460)
				if o.MSS == 0 {
					want = 536
				}
				if !ok || mss != want || options != o.Byte() {
					t.Errorf("%v, %d bytes: %d, %v, options %#x of %#x", f.vip, data, mss, ok, options, o.Byte())
				}
				if _, ok := cookies.Check(ack-1, src, dst, m.SrcPort, m.DstPort, seq+uint32(data), now+5, options); ok {
					t.Error("a later segment is taken for the first")
				}
			}
		}
	}
}

func words(a Addr) [2]uint64 { return [2]uint64{a.Hi, a.Lo} }

func TestCookieAllocatesNothing(t *testing.T) {
	for _, f := range icmpFamilies {
		syn := clientSegment(t, f.client, f.vip, 0, linuxSYN, 0, 0)
		mem := make([]byte, len(syn))
		m, sum := parse(syn), uint32(0)
		allocs := testing.AllocsPerRun(100, func() {
			copy(mem, syn)
			SYNCookie(mem, 0, &m, ReadSYN(syn, &m), 7, 1440, 99)
			_, ack, tsecr, _ := ReadACK(mem, &m)
			sum += ack + tsecr
		})
		if allocs != 0 {
			t.Errorf("%v allocations", allocs)
		}
	}
}

// linuxSYN is a SYN as a Linux client sends it.
var linuxSYN = layers.TCP{Seq: 7_000_000, SYN: true, Window: 64240, Options: []layers.TCPOption{
	tcpOption(layers.TCPOptionKindMSS, 5, 0xb4), tcpOption(layers.TCPOptionKindSACKPermitted), timesOption(0x01020304, 0),
	tcpNop, tcpOption(layers.TCPOptionKindWindowScale, 7)}}
