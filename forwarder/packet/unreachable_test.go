package packet

import (
	"net/netip"
	"testing"
)

// Quoted outer headers, from 192.0.2.1 and 2001:db8:1::1 to 10.1.0.2 and 2001:db8:5::7, and what follows of the packet in them.
const (
	quotedIPIP  = "45 00 00 3c  00 00 40 00  3f 04 00 00  c0 00 02 01  0a 01 00 02"
	quotedIP6in = "45 00 00 3c  00 00 40 00  3f 29 00 00  c0 00 02 01  0a 01 00 02"
	quotedGUE   = "45 00 00 3c  00 00 40 00  3f 11 00 00  c0 00 02 01  0a 01 00 02"
	quoted6     = "20 01 0d b8 00 01 00 00 00 00 00 00 00 00 00 01  20 01 0d b8 00 05 00 00 00 00 00 00 00 00 00 07"
	quotedIP6   = "60 00 00 00  00 3c 29 3f" + quoted6
	quoted4in6  = "60 00 00 00  00 3c 04 3f" + quoted6
	quotedGUE6  = "60 00 00 00  00 3c 11 3f" + quoted6
	quotedUDP   = "c0 01 17 c0  00 28 00 00" // to port 6080
	quotedInner = "45 00 00 28  00 00 40 00"
)

func TestReadRefused(t *testing.T) {
	to4, to6 := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("2001:db8:5::7")
	for _, c := range []struct {
		name    string
		v6      bool
		message string
		want    Refused // the zero value: none
	}{
		{"protocol unreachable", false, "03 02 00 00 00 00 00 00" + quotedIPIP + quotedInner, Refused{to4, 4, 0}},
		{"host unreachable", false, "03 01 00 00 00 00 00 00" + quotedIPIP + quotedInner, Refused{to4, 4, 0}},
		{"prohibited", false, "03 0d 00 00 00 00 00 00" + quotedIP6in + quotedInner, Refused{to4, 41, 0}},
		{"port unreachable", false, "03 03 00 00 00 00 00 00" + quotedGUE + quotedUDP, Refused{to4, 17, 6080}},
		{"options in the quoted header", false, "03 03 00 00 00 00 00 00" + "46" + quotedGUE[2:] + "01 01 01 01" + quotedUDP, Refused{to4, 17, 6080}},
		{"fragmentation needed", false, "03 04 00 00 00 00 05 dc" + quotedIPIP + quotedInner, Refused{}},
		{"time exceeded", false, "0b 00 00 00 00 00 00 00" + quotedIPIP + quotedInner, Refused{}},
		{"parameter problem", false, "0c 01 00 00 00 00 00 00" + quotedIPIP + quotedInner, Refused{}},
		{"echo reply", false, "00 00 00 00 00 00 00 00" + quotedIPIP + quotedInner, Refused{}},
		{"of a connection of the node's", false, "03 03 00 00 00 00 00 00" + "45 00 00 3c  00 00 40 00  3f 06 00 00  c0 00 02 01  0a 01 00 02" + quotedUDP, Refused{}},
		{"of a further fragment", false, "03 03 00 00 00 00 00 00" + "45 00 00 3c  00 00 00 07  3f 11 00 00  c0 00 02 01  0a 01 00 02" + quotedUDP, Refused{}},
		{"quoted header of 16 bytes", false, "03 02 00 00 00 00 00 00" + "44" + quotedIPIP[2:] + quotedInner, Refused{}},
		{"cut in the quoted header", false, "03 02 00 00 00 00 00 00" + quotedIPIP[:39], Refused{}},
		{"cut in the UDP header", false, "03 03 00 00 00 00 00 00" + quotedGUE + quotedUDP[:11], Refused{}},
		{"IPv6 quoted in ICMP", false, "03 02 00 00 00 00 00 00" + quotedIP6 + quotedInner, Refused{}},
		{"IPv6: no route", true, "01 00 00 00 00 00 00 00" + quotedIP6 + quotedInner, Refused{to6, 41, 0}},
		{"IPv6: no such next header", true, "04 01 00 00 00 00 00 06" + quoted4in6 + quotedInner, Refused{to6, 4, 0}},
		{"IPv6: port unreachable", true, "01 04 00 00 00 00 00 00" + quotedGUE6 + quotedUDP, Refused{to6, 17, 6080}},
		{"IPv6: packet too big", true, "02 00 00 00 00 00 05 dc" + quotedIP6 + quotedInner, Refused{}},
		{"IPv6: time exceeded", true, "03 00 00 00 00 00 00 00" + quotedIP6 + quotedInner, Refused{}},
		{"IPv6: bad header field", true, "04 00 00 00 00 00 00 06" + quotedIP6 + quotedInner, Refused{}},
		{"IPv6: cut in the quoted header", true, "01 00 00 00 00 00 00 00" + quotedIP6[:99], Refused{}},
		{"IPv4 quoted in ICMPv6", true, "01 00 00 00 00 00 00 00" + quotedIPIP + quotedInner + quoted6, Refused{}},
		{"only a header", false, "03 02 00 00 00 00 00 00", Refused{}},
		{"less", false, "03 02 00", Refused{}},
	} {
		r, ok := ReadRefused(fromHex(t, c.message), c.v6)
		if r != c.want && ok || ok != (c.want != Refused{}) {
			t.Errorf("%s: %+v, %v", c.name, r, ok)
		}
	}
}

// FuzzReadRefused: any bytes are read without a panic, and what is taken for a refused packet tells where it was sent to.
func FuzzReadRefused(f *testing.F) {
	for _, text := range []string{
		"03 02 00 00 00 00 00 00" + quotedIPIP + quotedInner, "03 03 00 00 00 00 00 00" + quotedGUE + quotedUDP,
		"01 04 00 00 00 00 00 00" + quotedGUE6 + quotedUDP, "04 01 00 00 00 00 00 06" + quotedIP6 + quotedInner,
	} {
		f.Add(fromHex(f, text), false)
		f.Add(fromHex(f, text), true)
	}
	f.Fuzz(func(t *testing.T, message []byte, v6 bool) {
		r, ok := ReadRefused(message, v6)
		if !ok {
			return
		}
		if !TellsUnreachable(message, v6) || r.Dst.Is6() != v6 || (r.Port != 0 && r.Proto != ProtoUDP) {
			t.Fatalf("%+v of %x", r, message)
		}
		if again, _ := ReadRefused(append(message, 0), v6); again != r {
			t.Fatalf("with a byte more: %+v, without: %+v", again, r)
		}
	})
}
