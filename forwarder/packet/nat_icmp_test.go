package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// segment builds a packet without Ethernet. udpSum says whether UDP has a checksum.
func segment(t testing.TB, src, dst netip.AddrPort, proto layers.IPProtocol, udpSum bool) []byte {
	ip := network(src.Addr(), dst.Addr(), proto)
	if proto == layers.IPProtocolUDP {
		l := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
		_ = l.SetNetworkLayerForChecksum(ip)
		p := build(t, ip, l, gopacket.Payload(make([]byte, 101)))
		if !udpSum {
			at := len(p) - 101 - 2
			p[at], p[at+1] = 0, 0
		}
		return p
	}
	l := &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), ACK: true, Seq: 12345}
	_ = l.SetNetworkLayerForChecksum(ip)
	return build(t, ip, l, gopacket.Payload(make([]byte, 101)))
}

// withExtensions puts 16 bytes of destination options behind the header of an IPv6 packet.
func withExtensions(p []byte) []byte {
	p = append(append(bytes.Clone(p[:ipv6Len]), append([]byte{p[6], 1, 1, 12}, make([]byte, 12)...)...), p[ipv6Len:]...)
	p[6] = nextOptions
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ipv6Len))
	return p
}

// withOptions puts 8 bytes of options into the header of an IPv4 packet.
func withOptions(p []byte) []byte {
	p = append(append(bytes.Clone(p[:ipv4Len]), 0x94, 4, 0, 0, 1, 1, 1, 0), p[ipv4Len:]...)
	p[0] += 2
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	setChecksum(p[:ipv4Len+8])
	return p
}

// An ICMP error about a translated flow becomes, in both directions, byte for byte what gopacket builds for the other side,
// whoever sends it and whatever is quoted.
func TestNATOfICMPErrors(t *testing.T) {
	for _, family := range icmpFamilies {
		c := natErrors{backend: netip.MustParseAddr("10.0.0.11"), router: netip.MustParseAddr("10.0.0.1")}
		if !family.vip.Is4() {
			c.backend, c.router = netip.MustParseAddr("fd00::11"), netip.MustParseAddr("fd00::1")
		}
		for _, c.proto = range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP} {
			for _, c.udpSum = range []bool{true, false} {
				for _, c.extended = range []bool{true, false} {
					for _, kind := range family.errors {
						for _, quoted := range []int{8, 17, 18, 25, 101} {
							c.check(t, family.client, family.vip, family.router, kind, quoted)
						}
					}
				}
			}
		}
	}
}

// natErrors are the errors about one kind of packet.
type natErrors struct {
	backend, router  netip.Addr // of the inside
	proto            layers.IPProtocol
	udpSum, extended bool // whether UDP has a checksum; whether there are options or extension headers
}

// quote returns the start of a packet: the headers up to the transport header, and n bytes.
func (c *natErrors) quote(t testing.TB, src, dst netip.AddrPort, n int) []byte {
	p := segment(t, src, dst, c.proto, c.udpSum)
	if c.extended && src.Addr().Is4() {
		p = withOptions(p)
	} else if c.extended {
		p = withExtensions(p)
	}
	header := len(p) - 101 - udpLen
	if c.proto == layers.IPProtocolTCP {
		header = len(p) - 101 - tcpLen
	}
	if n == 17 && c.proto == layers.IPProtocolTCP {
		p[header+16] = 0 // of a checksum that is cut the one half cannot be changed
	}
	return p[:header+n]
}

func (c *natErrors) check(t *testing.T, clientAddr, vip, router netip.Addr, kind uint8, n int) {
	client, outside := netip.AddrPortFrom(clientAddr, 40000), netip.AddrPortFrom(vip, 80)
	inside := netip.AddrPortFrom(c.backend, 8080)

	// Towards the backend: about what it sent, from the client or from a router.
	e := NewNAT(nextMAC, ownMAC, c.backend, 8080, 1000)
	for _, from := range []netip.Addr{clientAddr, router} {
		got := forth(t, icmpFrame(t, from, vip, kind, c.quote(t, outside, client, n)), &e)
		checkError(t, got, icmpFrame(t, from, c.backend, kind, c.quote(t, inside, client, n)))
	}
	// Towards the client: from the backend itself, which becomes the VIP, or from a router, which stays.
	for _, from := range [][2]netip.Addr{{c.backend, vip}, {c.router, c.router}} {
		got := back(t, icmpFrame(t, from[0], clientAddr, kind, c.quote(t, client, inside, n)), FromNetip(vip), 80, 1000)
		checkError(t, got, icmpFrame(t, from[1], clientAddr, kind, c.quote(t, client, outside, n)))
	}
	// The port may be kept.
	e = NewNAT(nextMAC, ownMAC, c.backend, 0, 0)
	got := forth(t, icmpFrame(t, router, vip, kind, c.quote(t, outside, client, n)), &e)
	kept := netip.AddrPortFrom(c.backend, 80)
	checkError(t, got, icmpFrame(t, router, c.backend, kind, c.quote(t, kept, client, n)))
}

// checkError compares a translated ICMP error with what it must be but for Ethernet addresses and a TTL that is one lower.
func checkError(t testing.TB, got, want []byte) {
	t.Helper()
	copy(want, got[:12])
	m := parse(got)
	if m.Reason != None || m.Flags&ICMPError == 0 {
		t.Fatalf("%x: %+v", got, m)
	}
	if want := lowered(want, 1); !bytes.Equal(got[ethLen:], want) {
		t.Fatalf("ICMP error:\n got %x\nwant %x", got[ethLen:], want)
	}
	checkSums(t, got)
}
