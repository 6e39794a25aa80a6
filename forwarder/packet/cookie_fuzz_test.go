package packet

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/forwarder/guard"
)

// decoded is what gopacket makes of a TCP header, and its options up to the first malformed one.
func decoded(tcp []byte) (*layers.TCP, []layers.TCPOption) {
	var l layers.TCP
	err := l.DecodeFromBytes(tcp, gopacket.NilDecodeFeedback)
	options := l.Options
	if err != nil && len(options) > 0 {
		options = options[:len(options)-1]
	}
	return &l, options
}

// FuzzSYNOptions: what a SYN offers is what gopacket reads, whatever its options are.
func FuzzSYNOptions(f *testing.F) {
	for _, text := range []string{"", "02 04 05 b4 04 02 08 0a 01 02 03 04 00 00 00 00 01 03 03 0a", "03 03 ff 02 00 00 08 0a", "01 01 01 08",
		"08 0a 01 02 03 04 05 06 07 08 08 0a 01 02 03 04 05 06 07 09"} {
		f.Add(fromHex(f, text))
	}
	base := clientSegment(f, icmpFamilies[0].client, icmpFamilies[0].vip, 0, layers.TCP{SYN: true}, 0, 0)
	ackBase := clientSegment(f, icmpFamilies[0].client, icmpFamilies[0].vip, 0, layers.TCP{ACK: true, Seq: 8, Ack: 9}, 0, 0)
	f.Fuzz(func(t *testing.T, options []byte) {
		options = options[:min(len(options), 40)&^3]
		frame := withTCPOptions(base, options)
		m := parse(frame)
		_, all := decoded(frame[m.L4:m.End])
		want, times := SYNOptions{WScale: NoWScale}, []uint32(nil)
		for _, o := range all {
			data := o.OptionData
			switch {
			case o.OptionType == layers.TCPOptionKindMSS && len(data) == 2:
				want.MSS = binary.BigEndian.Uint16(data)
			case o.OptionType == layers.TCPOptionKindWindowScale && len(data) == 1:
				want.WScale = min(data[0], 14)
			case o.OptionType == layers.TCPOptionKindSACKPermitted && len(data) == 0:
				want.SACK = true
			case o.OptionType == layers.TCPOptionKindTimestamps && len(data) == 8:
				want.Timestamps, want.TSVal = true, binary.BigEndian.Uint32(data)
				times = append(times, binary.BigEndian.Uint32(data[4:]))
			}
		}
		if got := ReadSYN(frame, &m); got != want {
			t.Fatalf("%x: %+v, gopacket reads %+v", options, got, want)
		}

		frame = withTCPOptions(ackBase, options)
		m = parse(frame)
		seq, ack, tsecr, hasTS := ReadACK(frame, &m)
		if seq != 8 || ack != 9 || hasTS != (len(times) > 0) || hasTS && tsecr != times[0] || !hasTS && tsecr != 0 {
			t.Fatalf("%x: numbers %d, %d, timestamp %#x %v, gopacket reads %#x", options, seq, ack, tsecr, hasTS, times)
		}
	})
}

// FuzzSYNCookie: any SYN that Parse lets through becomes a sound answer within the bytes of its packet, with no option that it has
// not itself.
func FuzzSYNCookie(f *testing.F) {
	addSeeds(f, func(frame []byte) { f.Add(frame, uint32(1), uint16(1440), uint32(2)) })
	for _, family := range icmpFamilies {
		f.Add(clientSegment(f, family.client, family.vip, 0, linuxSYN, 0, 0), uint32(1), uint16(1440), uint32(2))
		f.Add(clientSegment(f, family.client, family.vip, 0, linuxSYN, 5, 7), uint32(1), uint16(1440), uint32(2))
	}
	f.Fuzz(func(t *testing.T, frame []byte, isn uint32, mss uint16, tsval uint32) {
		m := parse(frame)
		if m.Reason != None || m.Proto != ProtoTCP || m.Flags&(Later|ICMPError) != 0 || len(frame) > 10000 {
			return
		}
		ReadACK(frame, &m)
		if m.Flags&SYN == 0 {
			return
		}
		client, o := Source(frame, &m), ReadSYN(frame, &m)
		got := rewritten(t, frame, 0, func(mem []byte, start int, m *Meta) (int, int) {
			return SYNCookie(mem, start, m, o, isn, mss, tsval)
		})
		if len(got) > int(m.End) {
			t.Fatalf("%x: %d bytes become %d", frame, m.End, len(got))
		}
		back := parse(got)
		switch back.Reason {
		case SourceInvalid, SourceLoopback, SourceMulticast: // the SYN was for no VIP
			return
		}
		if back.Reason != None || back.Flags&^V6 != 0 || back.Dst != client || Source(got, &back) != m.Dst ||
			back.SrcPort != m.DstPort || back.DstPort != m.SrcPort || CarriesACK(got, &back) {
			t.Fatalf("%x becomes %x, %+v", frame, got, back)
		}
		addrs := got[back.L3+12 : back.L3+20]
		if back.Flags&V6 != 0 {
			addrs = got[back.L3+8 : back.L3+40]
		}
		if !sumIsZero(transportSum(addrs, ProtoTCP, got[back.L4:back.End])) {
			t.Fatalf("%x becomes %x, with a wrong checksum", frame, got)
		}
		l, options := decoded(got[back.L4:back.End])
		want := cookieReply(o, isn, SYNSeq(frame, &m)+1, mss, tsval)
		if !l.SYN || !l.ACK || l.Seq != want.Seq || l.Ack != want.Ack || l.Window != want.Window || l.ECE != want.ECE ||
			l.CWR || l.RST || l.FIN || len(options) != len(want.Options) {
			t.Fatalf("%x becomes %x, %+v, want %+v", frame, got, l, want)
		}
		for i, w := range want.Options {
			if g := options[i]; g.OptionType != w.OptionType || !bytes.Equal(g.OptionData, w.OptionData) {
				t.Fatalf("%x becomes %x: option %d is %v, want %v", frame, got, i, g, w)
			}
		}
	})
}

// A SYN is answered from the frame as it came in: parse, read, cookie, SYN-ACK. That the frames are put back before is part of
// the time; "parsed" is the time up to Parse, with that.
func BenchmarkSYNCookie(b *testing.B) {
	cookies := guard.NewCookies([32]byte{1, 2, 3})
	for i, f := range icmpFamilies {
		syn := clientSegment(b, f.client, f.vip, 0, linuxSYN, 0, 0)
		const stride = 256
		mem := make([]byte, batch*stride)
		frames := func(i int) []byte { return mem[i*stride+64:][:len(syn)] }
		name := [...]string{"IPv4", "IPv6"}[i]
		var metas [batch]Meta
		b.Run(name+"/parsed", func(b *testing.B) {
			for b.Loop() {
				for i := range metas {
					copy(frames(i), syn)
					Parse(frames(i), &testKey, &metas[i])
				}
			}
			perPacket(b)
		})
		b.Run(name+"/answered", func(b *testing.B) {
			sum := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range metas {
					copy(frames(i), syn)
					Parse(frames(i), &testKey, &metas[i])
				}
				for i := range metas {
					m := &metas[i]
					frame := frames(i)
					src, o := Source(frame, m), ReadSYN(frame, m)
					isn := cookies.Number([2]uint64{src.Hi, src.Lo}, [2]uint64{m.Dst.Hi, m.Dst.Lo}, m.SrcPort, m.DstPort,
						SYNSeq(frame, m), 7, guard.MSSIndex(o.MSS), o.Byte())
					start, n := SYNCookie(mem, i*stride+64, m, o, isn, 1440, uint32(sum))
					sum += start + n
				}
			}
			perPacket(b)
			benchSink = uint64(sum)
		})
	}
}

func BenchmarkReadSYN(b *testing.B) {
	for i, f := range icmpFamilies {
		b.Run([...]string{"IPv4", "IPv6"}[i], func(b *testing.B) {
			frame := clientSegment(b, f.client, f.vip, 0, linuxSYN, 0, 0)
			m := parse(frame)
			for b.Loop() {
				benchSink += uint64(ReadSYN(frame, &m).TSVal)
			}
		})
	}
}

func BenchmarkReadACK(b *testing.B) {
	f := icmpFamilies[0]
	for _, c := range []struct {
		name    string
		options []layers.TCPOption
	}{
		{"none", nil},
		{"usual", []layers.TCPOption{tcpNop, tcpNop, timesOption(1, 2)}},
		{"packed", []layers.TCPOption{timesOption(1, 2)}},
	} {
		b.Run(c.name, func(b *testing.B) {
			frame := clientSegment(b, f.client, f.vip, 0, layers.TCP{ACK: true, Options: c.options}, 0, 0)
			m := parse(frame)
			for b.Loop() {
				_, ack, tsecr, _ := ReadACK(frame, &m)
				benchSink += uint64(ack + tsecr)
			}
		})
	}
}
