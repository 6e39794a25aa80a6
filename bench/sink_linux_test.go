package bench

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/testenv"
)

// What passes and what is swallowed, and under which destination it is counted.
func TestSinkVerdicts(t *testing.T) {
	testenv.RequireRoot(t)
	const drop, pass = 1, 2
	group := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	ip6 := layers.IPv6{Version: 6, NextHeader: layers.IPProtocolICMPv6, SrcIP: net.ParseIP("fd02::1"), DstIP: target6.Addr().AsSlice()}
	ip4 := layers.IPv4{Version: 4, Protocol: layers.IPProtocolIPv4, SrcIP: net.IP{10, 0, 0, 1}, DstIP: target4.Addr().AsSlice()}
	for _, c := range []struct {
		name    string
		mac     net.HardwareAddr
		typ     layers.EthernetType
		rest    []gopacket.SerializableLayer
		verdict uint32
		to      Destination
	}{
		{"ARP reply", rightMAC, layers.EthernetTypeARP, nil, pass, Destination{}},
		{"neighbour solicitation", rightMAC, layers.EthernetTypeIPv6, []gopacket.SerializableLayer{&ip6, icmp6(135)}, pass, Destination{}},
		{"redirect, the last kind of discovery", rightMAC, layers.EthernetTypeIPv6, []gopacket.SerializableLayer{&ip6, icmp6(137)}, pass, Destination{}},
		{"UDP to a group address", group, layers.EthernetTypeIPv4, []gopacket.SerializableLayer{&ip4}, pass, Destination{}},
		{"ICMPv6 echo request", rightMAC, layers.EthernetTypeIPv6, []gopacket.SerializableLayer{&ip6, icmp6(128)}, drop,
			Destination{[6]byte(rightMAC), target6.Addr(), 58}},
		{"ICMPv6 beyond discovery", rightMAC, layers.EthernetTypeIPv6, []gopacket.SerializableLayer{&ip6, icmp6(138)}, drop,
			Destination{[6]byte(rightMAC), target6.Addr(), 58}},
		{"IPIP", rightMAC, layers.EthernetTypeIPv4, []gopacket.SerializableLayer{&ip4}, drop,
			Destination{[6]byte(rightMAC), target4.Addr(), 4}},
		{"not IP", rightMAC, layers.EthernetTypeDot1Q, nil, drop, Destination{MAC: [6]byte(rightMAC)}},
		{"too short for IPv4", rightMAC, layers.EthernetTypeIPv4, nil, drop, Destination{MAC: [6]byte(rightMAC)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &Sink{}
			if err := loadSinkObjects(&s.objects, nil); err != nil {
				t.Fatal(err)
			}
			defer s.objects.Close()
			buf := gopacket.NewSerializeBuffer()
			eth := &layers.Ethernet{SrcMAC: leftMAC, DstMAC: c.mac, EthernetType: c.typ}
			err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, append([]gopacket.SerializableLayer{eth}, c.rest...)...)
			if err != nil {
				t.Fatal(err)
			}
			frame := buf.Bytes()
			if c.rest == nil {
				frame = frame[:etherLen+ip4Len-1] // gopacket has filled it up to 60 bytes
			}
			const times = 3
			for range times {
				if verdict, _, err := s.objects.Sink.Test(frame); err != nil || verdict != c.verdict {
					t.Fatalf("verdict %d, want %d; %v", verdict, c.verdict, err)
				}
			}
			want := make(map[Destination]Tally)
			var wantTotal Tally
			if c.verdict == drop {
				wantTotal = Tally{Packets: times, Bytes: times * uint64(len(frame))}
				want[c.to] = wantTotal
			}
			got, err := s.Destinations()
			if err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(got, want) {
				t.Errorf("counted %+v, want %+v", got, want)
			}
			if total, err := s.Total(); err != nil || total != wantTotal {
				t.Errorf("total %+v, want %+v; %v", total, wantTotal, err)
			}
		})
	}
}

func icmp6(kind uint8) gopacket.SerializableLayer {
	return gopacket.Payload([]byte{kind, 0, 0, 0, 0, 0, 0, 0})
}

// Address resolution works through a sink, and what is sent then is counted and goes no further.
func TestSinkResolvesAndSwallows(t *testing.T) {
	w := newWire(t)
	for _, c := range []struct{ left, right netip.Prefix }{
		{netip.MustParsePrefix("10.2.0.1/24"), netip.MustParsePrefix("10.2.0.2/24")},
		{netip.MustParsePrefix("fd02::1/64"), netip.MustParsePrefix("fd02::2/64")},
	} {
		if err := w.left.AddAddr("eth0", c.left); err != nil {
			t.Fatal(err)
		}
		if err := w.right.AddAddr("eth0", c.right); err != nil {
			t.Fatal(err)
		}
		to := netip.AddrPortFrom(c.right.Addr(), 9)
		listener, err := w.right.ListenPacket("udp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn, err := w.left.Dialer().DialContext(ctx, "udp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		const packets = 5
		for range packets {
			if _, err := conn.Write([]byte("swallow me")); err != nil {
				t.Fatal(err)
			}
		}
		key := Destination{MAC: [6]byte(rightMAC), Addr: c.right.Addr(), Protocol: UDP}
		var got Tally
		for deadline := time.Now().Add(2 * time.Second); got.Packets < packets; time.Sleep(5 * time.Millisecond) {
			all, err := w.sink.Destinations()
			if err != nil {
				t.Fatal(err)
			}
			if got = all[key]; time.Now().After(deadline) {
				t.Fatalf("%s: %+v of %d packets after two seconds; all: %+v", to, got, packets, all)
			}
		}
		if got.Packets != packets {
			t.Errorf("%s: counted %d of %d packets", to, got.Packets, packets)
		}
		if err := listener.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, from, err := listener.ReadFrom(make([]byte, 100)); err == nil {
			t.Errorf("%s: %d bytes from %s came through", to, n, from)
		}
	}
}
