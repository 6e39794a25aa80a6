package packet

import (
	"bytes"
	"math"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// A challenge is, byte for byte, what gopacket builds, and never longer than the SYN, which may have options, IP options or
// extension headers, data, a tag and padding. None of these but the tag is in the answer.
func TestSYNChallenge(t *testing.T) {
	for i, f := range icmpFamilies {
		extend := []func([]byte) []byte{withOptions, withExtensions}[i]
		for _, n := range [][2]uint32{{0, 0}, {1, 0xfffffffe}, {0xdeadbeef, 0x01020304}, {math.MaxUint32, math.MaxUint32}} {
			for variant := range 32 {
				ip := network(f.client, f.vip, layers.IPProtocolTCP)
				l := layers.TCP{SrcPort: 40000, DstPort: 443, Seq: 7_000_000, SYN: true, ECE: true, CWR: true, Window: 64240}
				if variant&1 != 0 {
					l.Options = []layers.TCPOption{
						{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}},
						{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}},
					}
				}
				_ = l.SetNetworkLayerForChecksum(ip)
				packet := build(t, ip, &l, gopacket.Payload(make([]byte, variant>>1&1*101)))
				if variant&4 != 0 {
					packet = extend(packet)
				}
				frame := append(build(t, ethernet(f.vip.Is4()))[:ethLen], packet...)
				tag := variant&8 != 0
				if tag {
					frame = tagged(frame)
				}
				if variant&16 != 0 {
					frame = append(frame, 1, 2, 3)
				}
				m := parse(frame)
				if m.Flags&SYN == 0 || SYNSeq(frame, &m) != 7_000_000 {
					t.Fatalf("%x: %+v, number %d", frame, m, SYNSeq(frame, &m))
				}
				got := rewritten(t, frame, 0, func(mem []byte, start int, m *Meta) (int, int) {
					return SYNChallenge(mem, start, m, n[0], n[1])
				})
				want := answer(t, 0, f.vip, f.client, tag, layers.IPProtocolTCP,
					&layers.TCP{SrcPort: 443, DstPort: 40000, SYN: true, ACK: true, Seq: n[0], Ack: n[1]})
				if !bytes.Equal(got, want) || len(got) > int(m.End) {
					t.Errorf("%v, variant %d:\n got %x\nwant %x", f.vip, variant, got, want)
				}
			}
		}
	}
}

// A client's reset of a challenge (RFC 9293, 3.10.7.3) has the acknowledgement number as its own.
func TestRSTSeq(t *testing.T) {
	for _, f := range icmpFamilies {
		for _, seq := range []uint32{0, 1, 0x80000000, math.MaxUint32} {
			ip := network(f.client, f.vip, layers.IPProtocolTCP)
			l := layers.TCP{SrcPort: 40000, DstPort: 443, Seq: seq, RST: true}
			_ = l.SetNetworkLayerForChecksum(ip)
			frame := build(t, ethernet(f.vip.Is4()), ip, &l)
			for _, frame := range [][]byte{frame, tagged(frame)} {
				if m := parse(frame); m.Flags&RST == 0 || RSTSeq(frame, &m) != seq {
					t.Errorf("%x: %+v, number %d, want %d", frame, m, RSTSeq(frame, &m), seq)
				}
			}
		}
	}
}

// FuzzSYNChallenge: any SYN that Parse lets through becomes a sound answer within the bytes of its packet.
func FuzzSYNChallenge(f *testing.F) {
	addSeeds(f, func(frame []byte) { f.Add(frame, uint32(1), uint32(2)) })
	f.Fuzz(func(t *testing.T, frame []byte, seq, ack uint32) {
		m := parse(frame)
		if m.Reason != None || m.Flags&SYN == 0 || m.Proto != ProtoTCP || m.Flags&(Later|ICMPError) != 0 || len(frame) > 10000 {
			return
		}
		client := Source(frame, &m)
		got := rewritten(t, frame, 0, func(mem []byte, start int, m *Meta) (int, int) { return SYNChallenge(mem, start, m, seq, ack) })
		if len(got) > int(m.End) {
			t.Fatalf("%x: %d bytes become %d", frame, m.End, len(got))
		}
		back := parse(got)
		switch back.Reason {
		case SourceInvalid, SourceLoopback, SourceMulticast: // the SYN was for no VIP
			return
		}
		if back.Reason != None || back.Flags&^V6 != 0 || back.Dst != client || Source(got, &back) != m.Dst ||
			back.SrcPort != m.DstPort || back.DstPort != m.SrcPort || SYNSeq(got, &back) != seq {
			t.Fatalf("%x becomes %x, %+v", frame, got, back)
		}
		addrs := got[back.L3+12 : back.L3+20]
		if back.Flags&V6 != 0 {
			addrs = got[back.L3+8 : back.L3+40]
		}
		if !sumIsZero(transportSum(addrs, ProtoTCP, got[back.L4:back.End])) {
			t.Fatalf("%x becomes %x, with a wrong checksum", frame, got)
		}
	})
}

func TestSYNChallengeAllocatesNothing(t *testing.T) {
	for _, text := range []string{eth4 + ip4TCP + tcpSYN, eth6 + "60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN} {
		syn := fromHex(t, text)
		mem := make([]byte, len(syn))
		m := parse(syn)
		allocs := testing.AllocsPerRun(100, func() {
			copy(mem, syn)
			SYNChallenge(mem, 0, &m, SYNSeq(syn, &m), 7)
		})
		if allocs != 0 {
			t.Errorf("%v allocations", allocs)
		}
	}
}

func BenchmarkSYNChallenge(b *testing.B) {
	for _, c := range []struct{ name, text string }{
		{"IPv4", eth4 + ip4TCP + tcpSYN},
		{"IPv6", eth6 + "60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN},
	} {
		b.Run(c.name, func(b *testing.B) {
			const stride = 192
			mem, frames := benchFrames(b, stride, c.text)
			var metas [batch]Meta
			for i, f := range frames {
				Parse(f, &testKey, &metas[i])
			}
			sum := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range metas {
					start, n := SYNChallenge(mem, i*stride+64, &metas[i], uint32(i), uint32(sum))
					sum += start + n
				}
			}
			perPacket(b)
			benchSink = uint64(sum)
		})
	}
}
