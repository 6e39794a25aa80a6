package packet

import (
	"encoding/binary"
	"testing"
)

// frame4 is a frame from 10.1.2.3 to 192.0.2.10 with the given fragment field.
func frame4(t testing.TB, proto uint8, fragment uint16, payload []byte) []byte {
	f := fromHex(t, eth4+ip4TCP)
	binary.BigEndian.PutUint16(f[16:], uint16(ipv4Len+len(payload)))
	binary.BigEndian.PutUint16(f[20:], fragment)
	f[23] = proto
	setChecksum(f[14:34])
	return append(f, payload...)
}

// fragment is a fragment in either family, with the identification 0: word is the offset in bytes and, in the lowest bit,
// whether more follow.
func fragment(t testing.TB, v4 bool, proto uint8, word uint16, data []byte) []byte {
	if v4 {
		return frame4(t, proto, word>>3|word&1<<13, data)
	}
	next, data := chain(proto, data, fragmentHeader(word, 0))
	return frame6(t, next, data)
}

func TestFragments(t *testing.T) {
	const more = 1
	syn := fromHex(t, tcpSYN+"01 01 01 01")
	udp := fromHex(t, "9c 40 00 35  20 00 00 00  00 00 00 00 00 00 00 00") // of 8 KB
	with := func(data []byte, at int, b byte) []byte {
		data = append([]byte(nil), data...)
		data[at] = b
		return data
	}
	for _, c := range []struct {
		name         string
		proto        uint8
		word         uint16
		data         []byte
		want4, want6 Reason
		flags        uint16
	}{
		{"first TCP", 6, more, syn, None, None, First | SYN},
		{"first TCP with options", 6, more, with(syn, 12, 0x60), None, None, First | SYN},
		{"first TCP, options cut", 6, more, with(syn, 12, 0x70), TinyFragment, TinyFragment, 0},
		{"first TCP of 16 bytes", 6, more, syn[:16], TinyFragment, TinyFragment, 0},
		{"first TCP of 8 bytes", 6, more, syn[:8], TinyFragment, TinyFragment, 0},
		{"first TCP, offset 4", 6, more, with(syn, 12, 0x40), BadTransport, BadTransport, 0},
		{"first UDP", 17, more, udp, None, None, First},
		{"first UDP of 8 bytes", 17, more, udp[:8], None, None, First},
		{"first UDP, length 7", 17, more, with(with(udp, 4, 0), 5, 7), BadTransport, BadTransport, 0},
		{"first UDP, length 8", 17, more, with(with(udp, 4, 0), 5, 8), None, None, First},
		{"first, 20 bytes", 6, more, syn[:20], BadFragment, BadFragment, 0},
		{"first, nothing", 17, more, nil, BadFragment, BadFragment, 0},
		{"first GRE", 47, more, udp, Protocol, Protocol, 0},

		{"further TCP", 6, 16 | more, syn, None, None, Later},
		{"last TCP", 6, 16, syn, None, None, Later},
		{"last TCP of one byte", 6, 24, syn[:1], None, None, Later},
		{"TCP at offset 1", 6, 8, syn, TinyFragment, None, Later},
		{"TCP at offset 1, more", 6, 8 | more, syn, TinyFragment, None, Later},
		{"UDP at offset 1", 17, 8 | more, udp, None, None, Later},
		{"further, 15 bytes", 17, 16 | more, udp[:15], BadFragment, BadFragment, 0},
		{"last, nothing", 17, 16, nil, BadFragment, BadFragment, 0},
		{"further GRE", 47, 16, udp, Protocol, Protocol, 0},
		{"up to 65,535", 17, 65528, udp[:7], None, None, Later},
		{"up to 65,536", 17, 65528, udp[:8], BadFragment, BadFragment, 0},
		{"up to 65,536, more", 17, 65528 | more, udp[:8], BadFragment, BadFragment, 0},
		{"up to 65,528, more", 17, 65520 | more, udp[:8], None, None, Later},
		{"first ICMP", 1, more, udp, BadFragment, Protocol, 0},
		{"further ICMP", 1, 16, udp, BadFragment, Protocol, 0},
		{"first ICMPv6", 58, more, with(udp, 0, 128), Protocol, BadFragment, 0},
		{"further ICMPv6", 58, 16, udp, Protocol, BadFragment, 0},

		{"first options", 60, more, append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udp...), Protocol, None, First},
		{"first options, no transport header", 60, more, []byte{17, 0, 1, 4, 0, 0, 0, 0}, Protocol, TinyFragment, 0},
		{"first options, TCP cut", 60, more, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, syn[:16]...), Protocol, TinyFragment, 0},
		{"first options, cut", 60, more, []byte{17, 1, 1, 12, 0, 0, 0, 0}, Protocol, TinyFragment, 0},
		{"further options", 60, 16, udp, Protocol, None, Later},
		{"further options at offset 1", 60, 8 | more, udp, Protocol, None, Later},
		{"further routing header", 43, 16, udp, Protocol, Protocol, 0},
		{"further hop-by-hop", 0, 16, udp, Protocol, Protocol, 0},
		{"further fragment header", 44, 16, udp, Protocol, Protocol, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, v4 := range []bool{true, false} {
				frame := fragment(t, v4, c.proto, c.word, c.data)
				got := parse(append(frame, 0, 0))
				checkMeta(t, append(frame, 0, 0), got)
				want := Meta{Dst: addr("192.0.2.10"), L3: 14, L4: 34, End: uint16(len(frame)), Proto: c.proto, Reason: c.want4}
				if !v4 {
					want.Dst, want.L4, want.Flags, want.Reason = addr("2001:db8::10"), 62, V6, c.want6
					if c.proto == nextOptions && c.flags&First != 0 {
						want.L4, want.Proto = 70, c.data[0]
					}
				}
				if want.Reason == None {
					want.Flags |= c.flags
				}
				if want.Flags&First != 0 {
					want.SrcPort, want.DstPort = 40000, binary.BigEndian.Uint16(frame[want.L4+2:])
					if want.Hash = from4(want.SrcPort, want.DstPort, want.Proto); !v4 {
						want.Hash = from6(want.SrcPort, want.DstPort, want.Proto)
					}
				}
				if c.proto == nextOptions && !v4 && want.Reason == TinyFragment {
					want.L4, want.Proto = got.L4, got.Proto // where reading came to an end
				}
				if got != want {
					t.Errorf("IPv4 %v:\n got %+v\nwant %+v", v4, got, want)
				}
			}
		})
	}
}

// Each single bit of the IPv4 fragment field: thirteen bits of offset and "more fragments" make a fragment, "don't
// fragment" and the reserved bit do not.
func TestParseFragmentBits(t *testing.T) {
	for bit := range 16 {
		want := Later
		switch bit {
		case 13:
			want = First | SYN
		case 14, 15:
			want = SYN
		}
		m := parse(frame4(t, ProtoTCP, 1<<bit, fromHex(t, tcpSYN+"00 00 00 00")))
		if bit == 0 {
			if m.Reason != TinyFragment {
				t.Errorf("offset 1: %v", m.Reason)
			}
		} else if m.Reason != None || m.Flags != want {
			t.Errorf("fragment field %#04x: reason %v, flags %#02x; want %#02x", 1<<bit, m.Reason, m.Flags, want)
		}
	}
	// Of the IPv6 one the two reserved bits say nothing.
	for bit := range 16 {
		want := V6 | Later
		switch bit {
		case 0:
			want = V6 | First | SYN
		case 1, 2:
			want = V6 | SYN
		}
		if m := parse(fragment(t, false, ProtoTCP, 1<<bit, fromHex(t, tcpSYN+"00 00 00 00"))); m.Reason != None || m.Flags != want {
			t.Errorf("fragment word %#04x: reason %v, flags %#02x; want %#02x", 1<<bit, m.Reason, m.Flags, want)
		}
	}
}

func read(t testing.TB, frame []byte) FragmentInfo {
	t.Helper()
	m := parse(frame)
	if m.Reason != None || m.Flags&(First|Later) == 0 {
		t.Fatalf("%x is no fragment: %+v", frame, m)
	}
	return ReadFragment(frame, &testKey, &m)
}

func TestReadFragment(t *testing.T) {
	udp := fromHex(t, "9c 40 00 35  20 00 00 00  00 00 00 00 00 00 00 00")
	for _, v4 := range []bool{true, false} {
		for _, c := range []struct {
			word   uint16
			length int
			want   FragmentInfo
		}{
			{1, 16, FragmentInfo{From: 0, To: 2}},
			{1, 8, FragmentInfo{From: 0, To: 1}},
			{16 | 1, 16, FragmentInfo{From: 2, To: 4}},
			{16, 16, FragmentInfo{From: 2, To: 4, Last: true}},
			{16, 9, FragmentInfo{From: 2, To: 4, Last: true}},
			{16, 1, FragmentInfo{From: 2, To: 3, Last: true}},
			{65528, 7, FragmentInfo{From: 8191, To: 8192, Last: true}},
		} {
			got := read(t, append(fragment(t, v4, ProtoUDP, c.word, udp[:c.length]), 1, 2, 3))
			if got.Key = 0; got != c.want {
				t.Errorf("IPv4 %v, word %d, %d bytes: %+v, want %+v", v4, c.word, c.length, got, c.want)
			}
		}
	}
	// Headers before the fragment header are no part of what is fragmented; those behind it are.
	next, payload := chain(ProtoUDP, udp, optionsOf(nextHopByHop, 24), fragmentHeader(1, 0), optionsOf(nextOptions, 16))
	if got := read(t, frame6(t, next, payload)); got.From != 0 || got.To != 4 || got.Last {
		t.Errorf("with headers before and behind: %+v", got)
	}
}

// The key of a datagram is that of all its fragments, and of no others.
func TestFragmentKey(t *testing.T) {
	udp := fromHex(t, "9c 40 00 35  20 00 00 00  00 00 00 00 00 00 00 00")
	for _, v4 := range []bool{true, false} {
		id, src, dst := 61, 22, 38 // the last byte of one, the first of the others
		if v4 {
			id, src, dst = 19, 26, 30
		}
		key := func(word uint16, at int) uint64 {
			f := fragment(t, v4, ProtoUDP, word, udp)
			if at != 0 {
				f[at] ^= 1
			}
			if v4 {
				setChecksum(f[14:34])
			}
			return read(t, f).Key
		}
		want := key(1, 0)
		if key(16|1, 0) != want || key(800, 0) != want {
			t.Errorf("IPv4 %v: fragments of one datagram have different keys", v4)
		}
		seen := map[uint64]int{want: 0, parse(fragment(t, v4, ProtoUDP, 1, udp)).Hash: -1}
		for _, at := range []int{id, id - 1, src, src + 3, dst, dst + 3} {
			k := key(1, at)
			if other, twice := seen[k]; twice {
				t.Errorf("IPv4 %v: changing byte %d gives the key of %d", v4, at, other)
			}
			seen[k] = at
		}
		f := fragment(t, v4, ProtoUDP, 16, udp)
		m := parse(f)
		if k := ReadFragment(f, &Key{testKey[0] ^ 1, testKey[1]}, &m).Key; k == want {
			t.Errorf("IPv4 %v: the key of the group changes nothing", v4)
		}
		// The protocol is part of it in IPv4, and not in IPv6, where it may differ from fragment to fragment.
		if tcp := read(t, fragment(t, v4, ProtoTCP, 16, udp)).Key; (tcp == want) == v4 {
			t.Errorf("IPv4 %v: TCP has key %#x, UDP %#x", v4, tcp, want)
		}
	}
}

// SetPorts makes a further fragment one of its flow.
func TestSetPorts(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		for _, tag := range []bool{false, true} {
			whole := fromHex(t, eth4+ip4UDP+udp4)
			later := fragment(t, v4, ProtoUDP, 16, whole)
			if !v4 {
				whole = fromHex(t, eth6+"60 00 00 00  00 0c 11 40"+ip6Addrs+udp4)
				later = fragment(t, false, nextOptions, 16, whole)
			}
			if tag {
				mem := append(make([]byte, 4), later...)
				PushVLAN(mem, 4, len(later), 7)
				later = mem
			}
			flow, m := parse(whole), parse(later)
			want := m
			want.Hash, want.SrcPort, want.DstPort, want.Proto = flow.Hash, 40000, 53, ProtoUDP
			m.SetPorts(later, &testKey, 40000, 53, ProtoUDP)
			if m != want || m.Flags&Later == 0 {
				t.Errorf("IPv4 %v, tag %v:\n got %+v\nwant %+v", v4, tag, m, want)
			}
		}
	}
}
