package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// testHeader is an extension header, its first byte still to be filled in.
type testHeader struct {
	kind uint8
	body []byte
}

// chain returns data behind headers, and the next header that leads to it all.
func chain(next uint8, data []byte, headers ...testHeader) (uint8, []byte) {
	for i := len(headers) - 1; i >= 0; i-- {
		b := append([]byte(nil), headers[i].body...)
		if len(b) > 0 {
			b[0] = next
		}
		next, data = headers[i].kind, append(b, data...)
	}
	return next, data
}

// options returns a header of options that say nothing (PadN), 8 to 32 bytes long.
func options(kind uint8, rng *rand.Rand) testHeader { return optionsOf(kind, 8+rng.IntN(4)*8) }

func optionsOf(kind uint8, length int) testHeader {
	b := make([]byte, length)
	b[1] = byte(length/8 - 1)
	for at := 2; at < length; {
		n := min(length-at, 255)
		if length-at == n+1 {
			n-- // no room for one byte that is no option
		}
		b[at], b[at+1] = 1, byte(n-2)
		at += n
	}
	return testHeader{kind, b}
}

// routing returns a routing header of eight bytes.
func routing(kind, segmentsLeft uint8) testHeader {
	return testHeader{nextRouting, []byte{0, 0, kind, segmentsLeft, 0, 0, 0, 0}}
}

// fragmentHeader returns a fragment header: word is the offset in bytes and, in the lowest bit, whether more follow.
func fragmentHeader(word uint16, id uint32) testHeader {
	b := []byte{0, 0xff, 0, 0, 0, 0, 0, 0} // the reserved byte is to be ignored
	binary.BigEndian.PutUint16(b[2:], word)
	binary.BigEndian.PutUint32(b[4:], id)
	return testHeader{nextFragment, b}
}

// frame6 is a frame from 2001:db8::5 to 2001:db8::10.
func frame6(t testing.TB, next uint8, payload []byte) []byte {
	f := fromHex(t, eth6+"60 00 00 00  00 00 00 40"+ip6Addrs)
	binary.BigEndian.PutUint16(f[18:], uint16(len(payload)))
	f[20] = next
	return append(f, payload...)
}

func TestExtensionHeaders(t *testing.T) {
	syn := fromHex(t, tcpSYN)
	echo := fromHex(t, "80 00 00 00 00 00 00 00")
	hop, dst := optionsOf(nextHopByHop, 8), optionsOf(nextOptions, 8)
	cut := func(h testHeader, n int) testHeader { h.body = h.body[:n]; return h }
	times := func(n int, h testHeader) (list []testHeader) {
		for range n {
			list = append(list, h)
		}
		return list
	}
	for _, c := range []struct {
		name    string
		headers []testHeader
		proto   uint8 // behind them
		data    []byte
		want    Reason
		l4      uint16 // behind the IPv6 header
		at      uint8  // Meta.Proto
		flags   uint16
	}{
		{"hop-by-hop", []testHeader{hop}, 6, syn, None, 8, 6, SYN},
		{"destination options", []testHeader{dst}, 6, syn, None, 8, 6, SYN},
		{"24 bytes of them", []testHeader{optionsOf(nextOptions, 24)}, 6, syn, None, 24, 6, SYN},
		{"routing used up", []testHeader{routing(4, 0)}, 6, syn, None, 8, 6, SYN},
		{"in the order of RFC 8200", []testHeader{hop, dst, routing(3, 0), fragmentHeader(0, 1), dst}, 6, syn, None, 40, 6, SYN},
		{"in another order", []testHeader{dst, fragmentHeader(0, 1), routing(3, 0), dst}, 6, syn, None, 32, 6, SYN},
		{"UDP", []testHeader{hop, dst}, 17, fromHex(t, udp4), None, 16, 17, 0},
		{"echo request", []testHeader{hop, dst}, 58, echo, None, 16, 58, Echo},
		{"echo request in a fragment of its own", []testHeader{fragmentHeader(0, 1)}, 58, echo, None, 8, 58, Echo},
		{"neighbour solicitation", []testHeader{hop}, 58, fromHex(t, "87 00 00 00 00 00 00 00"), ICMP, 8, 58, 0},
		{"ICMPv6 cut", []testHeader{dst}, 58, echo[:7], BadICMP, 8, 58, 0},
		{"ICMP", []testHeader{dst}, 1, echo, Protocol, 8, 1, 0},
		{"no next header", []testHeader{hop}, 59, syn, Protocol, 8, 59, 0},
		{"IP in IP", []testHeader{dst}, 4, syn, Protocol, 8, 4, 0},

		{"eight", times(8, dst), 6, syn, None, 64, 6, SYN},
		{"nine", times(9, dst), 6, syn, ExtensionHeader, 64, 60, 0},
		{"256 bytes", []testHeader{optionsOf(nextHopByHop, 128), optionsOf(nextOptions, 128)}, 6, syn, None, 256, 6, SYN},
		{"256 bytes in one", []testHeader{optionsOf(nextOptions, 256)}, 6, syn, None, 256, 6, SYN},
		{"264 bytes", []testHeader{optionsOf(nextHopByHop, 128), optionsOf(nextOptions, 136)},
			6, syn, ExtensionHeader, 128, 60, 0},
		{"264 bytes in one", []testHeader{optionsOf(nextHopByHop, 264)}, 6, syn, ExtensionHeader, 0, 0, 0},
		{"264 bytes with a fragment header", []testHeader{optionsOf(nextOptions, 256), fragmentHeader(0, 1)},
			6, syn, ExtensionHeader, 256, 44, 0},

		{"second hop-by-hop", []testHeader{hop, hop}, 6, syn, ExtensionHeader, 8, 0, 0},
		{"hop-by-hop behind others", []testHeader{dst, hop}, 6, syn, ExtensionHeader, 8, 0, 0},
		{"two fragment headers", []testHeader{fragmentHeader(0, 1), fragmentHeader(0, 1)}, 6, syn, ExtensionHeader, 8, 44, 0},
		{"behind others", []testHeader{hop, dst}, 50, syn, ExtensionHeader, 16, 50, 0},
		{"announced, not there", []testHeader{cut(dst, 0)}, 0, nil, ExtensionHeader, 0, 60, 0},
		{"one byte", []testHeader{cut(dst, 1)}, 6, nil, ExtensionHeader, 0, 60, 0},
		{"seven bytes", []testHeader{dst, cut(dst, 7)}, 6, nil, ExtensionHeader, 8, 60, 0},
		{"sixteen cut to fifteen", []testHeader{cut(optionsOf(nextOptions, 16), 15)}, 6, nil, ExtensionHeader, 0, 60, 0},
		{"routing of four bytes", []testHeader{cut(routing(0, 1), 4)}, 6, nil, ExtensionHeader, 0, 43, 0},
		{"fragment header cut", []testHeader{cut(fragmentHeader(0, 1), 7)}, 6, nil, ExtensionHeader, 0, 44, 0},
		{"transport header cut", []testHeader{dst}, 6, syn[:19], BadTransport, 8, 6, 0},
		{"no transport header", []testHeader{dst}, 17, nil, BadTransport, 8, 17, 0},

		{"routing type 0", []testHeader{routing(0, 1)}, 6, syn, RoutingHeader, 0, 43, 0},
		{"routing type 0, used up", []testHeader{routing(0, 0)}, 6, syn, RoutingHeader, 0, 43, 0},
		{"routing type 2, segments left", []testHeader{hop, routing(2, 1)}, 6, syn, RoutingHeader, 8, 43, 0},
		{"segment routing, segments left", []testHeader{routing(4, 255)}, 6, syn, RoutingHeader, 0, 43, 0},
		{"routing used up, then not", []testHeader{routing(4, 0), routing(4, 1)}, 6, syn, RoutingHeader, 8, 43, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			next, payload := chain(c.proto, c.data, c.headers...)
			frame := frame6(t, next, payload)
			want := Meta{Dst: addr("2001:db8::10"), L3: 14, L4: 54 + c.l4, End: uint16(len(frame)), Proto: c.at}
			want.Flags, want.Reason = V6|c.flags, c.want
			if c.want == None && c.flags&Echo == 0 {
				want.SrcPort, want.DstPort = 40000, binary.BigEndian.Uint16(c.data[2:])
				want.Hash = from6(want.SrcPort, want.DstPort, c.proto)
			}
			if got := parse(append(frame, 0, 0, 0)); got != want {
				t.Errorf("%x\n got %+v\nwant %+v", payload, got, want)
			}
		})
	}
}

// Every IPv6 next header behind another header has the reason that it has as the first one, but for hop-by-hop options.
func TestNextHeaders(t *testing.T) {
	for proto := range 256 {
		data := fromHex(t, tcpSYN)
		binary.BigEndian.PutUint16(data[4:], 20) // a good length, where UDP has it
		want := parse(frame6(t, uint8(proto), data)).Reason
		if proto == nextHopByHop {
			want = ExtensionHeader
		}
		next, payload := chain(uint8(proto), data, optionsOf(nextOptions, 8))
		if m := parse(frame6(t, next, payload)); m.Reason != want {
			t.Errorf("next header %d: %v behind options, %v without", proto, m.Reason, want)
		}
	}
}

// A packet with extension headers that is cut anywhere is no packet; nor can a shorter payload length make it one that is
// read beyond its end.
func TestExtensionHeadersCut(t *testing.T) {
	next, payload := chain(6, fromHex(t, tcpSYN), optionsOf(nextHopByHop, 16), optionsOf(nextOptions, 8), routing(4, 0),
		fragmentHeader(0, 1), optionsOf(nextOptions, 24))
	if m := parse(frame6(t, next, payload)); m.Reason != None {
		t.Fatal(m.Reason)
	}
	for n := range payload {
		want := ExtensionHeader
		if n >= len(payload)-20 {
			want = BadTransport
		}
		if m := parse(append(frame6(t, next, payload[:n]), payload[n:]...)); m.Reason != want || int(m.End) != 54+n {
			t.Errorf("%d of %d bytes: %v, want %v", n, len(payload), m.Reason, want)
		}
	}
}
