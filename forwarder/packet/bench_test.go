package packet

import "testing"

const batch = 64

// benchFrames is a UMEM of sorts: 64 equal frames of 64 bytes or more at the given stride, each after 64 bytes of headroom.
func benchFrames(b *testing.B, stride int, text string) (mem []byte, frames [][]byte) {
	mem = make([]byte, batch*stride)
	for i := range batch {
		f := mem[i*stride+64:][:128]
		frames = append(frames, f[:max(64, copy(f, fromHex(b, text)))])
	}
	return mem, frames
}

// perPacket reports the time of one packet beside that of a batch.
func perPacket(b *testing.B) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/packet")
}

func BenchmarkParse(b *testing.B) {
	for _, c := range []struct{ name, text string }{
		{"IPv4", eth4 + ip4TCP + tcpSYN},
		{"IPv6", eth6 + "60 00 00 00  00 0a 11 40" + ip6Addrs + "9c 40 00 35  00 0a 00 00  de ad"},
		{"IPv6-TCP", eth6 + "60 00 00 00  00 14 06 40" + ip6Addrs + tcpSYN},
		{"IPv4-tagged", eth4[:len(eth4)-6] + "81 00 00 64 08 00" + ip4TCP + tcpSYN},
		{"IPv4-fragment", eth4 + "45 00 00 20  00 07 00 02  40 11 ac b6  0a 01 02 03  c0 00 02 0a" + udp4},
		{"IPv6-options", eth6 + "60 00 00 00  00 1c 3c 40" + ip6Addrs + "06 00 01 04 00 00 00 00" + tcpSYN},
	} {
		b.Run(c.name, func(b *testing.B) {
			_, frames := benchFrames(b, 192, c.text)
			var metas [batch]Meta
			b.ReportAllocs()
			for b.Loop() {
				for i, f := range frames {
					Parse(f, &testKey, &metas[i])
				}
			}
			perPacket(b)
			for i := range metas {
				if metas[i].Reason != None {
					b.Fatal(metas[i].Reason)
				}
			}
		})
	}
}

// A fragment is parsed, read and given its ports.
func BenchmarkFragment(b *testing.B) {
	for _, c := range []struct {
		name string
		v4   bool
	}{{"IPv4", true}, {"IPv6", false}} {
		b.Run(c.name, func(b *testing.B) {
			frame := fragment(b, c.v4, ProtoUDP, 16, fromHex(b, udp4))
			var m Meta
			var sum uint64
			b.ReportAllocs()
			for b.Loop() {
				for range batch {
					Parse(frame, &testKey, &m)
					info := ReadFragment(frame, &testKey, &m)
					m.SetPorts(frame, &testKey, 40000, 53, ProtoUDP)
					sum += info.Key + m.Hash
				}
			}
			perPacket(b)
			benchSink = sum
		})
	}
}

func BenchmarkFlowHash(b *testing.B) {
	for _, c := range []struct{ name, src, dst string }{
		{"IPv4", "10.1.2.3", "192.0.2.10"},
		{"IPv6", "2001:db8::5", "2001:db8::10"},
	} {
		b.Run(c.name, func(b *testing.B) {
			src, dst := addr(c.src), addr(c.dst)
			var sum uint64
			for b.Loop() {
				for i := range uint16(batch) {
					sum += FlowHash(&testKey, src, dst, i, 80, ProtoTCP)
				}
			}
			perPacket(b)
			benchSink = sum
		})
	}
}

func BenchmarkApply(b *testing.B) {
	for _, e := range testEncaps(b) {
		b.Run(e.name, func(b *testing.B) {
			const stride = 256
			mem, frames := benchFrames(b, stride, eth4+ip4TCP+tcpSYN)
			var metas [batch]Meta
			for i, f := range frames {
				Parse(f, &testKey, &metas[i])
			}
			sum := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range metas {
					start, n := e.encap.Apply(mem, i*stride+64, &metas[i])
					sum += start + n
				}
			}
			perPacket(b)
			benchSink = uint64(sum)
		})
	}
}

var benchSink uint64
