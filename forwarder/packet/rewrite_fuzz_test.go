package packet

import (
	"bytes"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// decodes checks that gopacket decodes a frame that a rewriter has made down to its IP header, and that the header's lengths
// and checksum are right; what is behind it was not the rewriter's.
func decodes(t *testing.T, name string, frame []byte) {
	t.Helper()
	g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	length := len(frame) - ethLen
	if g.Layer(layers.LayerTypeDot1Q) != nil {
		length -= vlanLen
	}
	switch ip := g.NetworkLayer().(type) {
	case *layers.IPv4:
		if naiveSum(ip.Contents) != 0xffff || int(ip.Length) != length {
			t.Fatalf("%s: %x: %+v", name, frame, ip)
		}
	case *layers.IPv6:
		if int(ip.Length) != length-ipv6Len {
			t.Fatalf("%s: %x: %+v", name, frame, ip)
		}
	default:
		t.Fatalf("%s: %x: gopacket finds no IP: %v", name, frame, g.ErrorLayer())
	}
}

// FuzzRewrite: whatever Parse lets through can be translated both ways, answered and cut. Nothing outside the frame and its
// headroom is written, and the outcome is a packet.
func FuzzRewrite(f *testing.F) {
	addSeeds(f, func(frame []byte) {
		f.Add(frame, uint16(8080), uint16(536))
		if len(frame) > 12 {
			f.Add(tagged(frame), uint16(0), uint16(0))
		}
	})
	f.Fuzz(func(t *testing.T, frame []byte, port, mss uint16) {
		m := parse(frame)
		if len(frame) > 16000 || m.Reason != None || m.Flags&Echo != 0 {
			return
		}
		v4 := m.Flags&V6 == 0
		f := icmpFamilies[1]
		if v4 {
			f = icmpFamilies[0]
		}
		e := NewNAT(nextMAC, ownMAC, f.router, port, mss)
		out, reply := forth(t, frame, &e), back(t, frame, FromNetip(f.vip), port, mss)
		// Unlike Parse, gopacket looks into hop-by-hop options, and takes none that are malformed.
		if gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy).NetworkLayer() != nil {
			decodes(t, "NAT", out)
			decodes(t, "reply", reply)
		}
		if m.Flags&ICMPError == 0 && (m.DstPort != 0 || m.Flags&Later != 0) { // port 0 would stay what it became
			compareBack(t, frame, turned(back(t, turned(out, &m), m.Dst, m.DstPort, 0), &m), &m, mss)
		}

		if Answerable(frame, &m) {
			for name, answer := range map[string]rewriter{
				"too big":       func(mem []byte, start int, m *Meta) (int, int) { return PacketTooBig(mem, start, m, 1300) },
				"time exceeded": TimeExceeded, "unreachable": Unreachable,
			} {
				if !Quotable(&m) {
					break
				}
				out := rewritten(t, frame, 48, answer)
				if len(out) > len(frame) {
					t.Errorf("%s has %d bytes, about a frame of %d", name, len(out), len(frame))
				}
				decodes(t, name, out)
				if parse(out).Reason == None { // which Parse takes for an error about a packet of the client's
					checkSums(t, out)
				}
			}
			if m.Proto == ProtoTCP {
				out := rewritten(t, frame, 0, Reset)
				decodes(t, "reset", out)
				if parse(out).Reason == None {
					checkSums(t, out)
				}
			}
		}
		if MayFragment(frame, &m) {
			mtu := 128 + int(mss%1500) // room for the longest headers, without which a first fragment is a tiny one
			frames, metas := split(t, frame, mtu)
			checkPieces(t, frame, mtu, frames, metas)
			for i := range frames {
				decodes(t, "fragment", frames[i])
				again := append(make([]byte, 96), frames[i]...)
				at, n := e.Apply(again, 96, &metas[i])
				decodes(t, "translated fragment", again[at:at+n])
			}
		}
	})
}

// compareBack compares a frame, out, that was translated and translated back with what it was. An MSS that was clamped stays
// so.
func compareBack(t *testing.T, frame, out []byte, m *Meta, mss uint16) {
	want := lowered(frame, 2)
	l4 := int(m.L4 - m.L3)
	got := out[ethLen:]
	if m.Flags&Later == 0 && m.Proto == ProtoTCP && frame[m.L4+13]&uint8(SYN) != 0 && mss != 0 {
		ClampMSS(want[l4:], mss)
	}
	// A checksum of 0xffff that no sender computes, and no receiver tells from zero, comes back as zero.
	if at := l4 + 16; m.Flags&Later == 0 && m.Proto == ProtoTCP {
		normal(got[at : at+2])
		normal(want[at : at+2])
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("there and back:\n got %x\nwant %x", got, want)
	}
}

func normal(sum []byte) {
	if sum[0]&sum[1] == 0xff {
		sum[0], sum[1] = 0, 0
	}
}
