//go:build linux && guest

package zerocopy

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// service is one combination of protocol, mode and families.
type service struct {
	name, protocol, forward string
	vip, backend            netip.Addr
	port                    uint16
}

var (
	vip4, vip6 = netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")

	services = []service{
		{"tcp4-in-4", "tcp", "ipip", vip4, backend4, 80},
		{"tcp4-in-6", "tcp", "ipip", vip4, backend6, 81},
		{"tcp6-in-4", "tcp", "ipip", vip6, backend4, 80},
		{"tcp6-in-6", "tcp", "ipip", vip6, backend6, 81},
		{"udp4-in-4", "udp", "ipip", vip4, backend4, 54},
		{"udp6-in-6", "udp", "ipip", vip6, backend6, 54},
		{"udp4-l2", "udp", "l2", vip4, backend4, 53},
		{"udp6-l2", "udp", "l2", vip6, backend6, 53},
		{"tcp4-l2", "tcp", "l2", vip4, backend4, 82},
		{"tcp6-l2", "tcp", "l2", vip6, backend6, 82},
	}

	// Frame sizes in bytes, around what has ever been a boundary: the least frame, chunk halves and quarters, the most.
	sizes = []int{60, 61, 62, 63, 64, 74, 75, 128, 255, 256, 511, 512, 513, 1023, 1024, 1025, 1279, 1280, 1400, 1500, 1513, 1514}
)

// exchange sends every size of frame to every service, on flows that no earlier round has used, and compares what comes
// out at the backend byte by byte. A machine that has too little time loses a frame in its cables now and then, and once lost all
// of the first moments after a driver had reset its queues: what is missing is sent again, twice.
func (r *rig) exchange(round int) {
	r.t.Helper()
	r.out.drain()
	sent, lost := 0, 0
	for _, s := range services {
		want := map[string][]byte{} // IP packets that have yet to come, and their frames
		for i, size := range sizes {
			for flow := range 4 {
				frame, packet := r.frame(s, size, uint16(1000*round+4*i+flow+1))
				if frame == nil {
					continue
				}
				want[string(packet)] = frame
				r.in.send(frame)
			}
		}
		sent += len(want)
		for try, deadline := 0, time.Now().Add(5*time.Second); len(want) > 0; {
			if time.Now().After(deadline) {
				lost += len(want)
				if try++; try > 2 {
					break
				}
				if len(want) > 4 {
					r.t.Logf("round %d, %s: %d frames are sent again; counters of the cards: %s", round, s.name, len(want), r.counters())
				}
				for _, frame := range want {
					r.in.send(frame)
				}
				deadline = time.Now().Add(5 * time.Second)
			}
			frame := r.out.receive()
			if frame == nil || !bytes.Equal(frame[:6], r.backendMAC[:]) || !bytes.Equal(frame[6:12], r.nodeOut[:]) {
				continue
			}
			inner, err := s.inner(frame)
			if err != nil {
				continue // the node's kernel speaks too: neighbours, ICMP
			}
			if want[string(inner)] == nil {
				if bytes.Contains(inner, s.vip.AsSlice()) {
					r.t.Errorf("%s: a damaged or repeated packet of %d bytes came out: % x", s.name, len(inner), frame)
				}
				continue
			}
			delete(want, string(inner))
		}
		if len(want) > 0 {
			lengths := map[int]int{}
			for p := range want {
				lengths[len(p)]++
			}
			traffic, _ := json.Marshal(r.status().Traffic) // a Status always can be encoded
			r.t.Fatalf("round %d, %s: packets that did not come out, or not whole, by IP length: %v; counters of the cards: %s; status: %s",
				round, s.name, lengths, r.counters(), traffic)
		}
	}
	r.t.Logf("round %d: %d frames came out undamaged, %d of them at a further try", round, sent, lost)
}

// counters tells what each card's kernel has counted.
func (r *rig) counters() string {
	var b strings.Builder
	for _, c := range []struct {
		ns   *testenv.Namespace
		card string
	}{{r.client, "eth1"}, {r.node, "eth0"}, {r.node, "eth2"}, {r.backend, "eth3"}} {
		if l, err := c.ns.Link(c.card); err == nil {
			fmt.Fprintf(&b, "%s %v %+v ", c.card, l.Attrs().OperState, *l.Attrs().Statistics)
		}
	}
	if st, err := unix.GetsockoptTpacketStats(r.out.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		fmt.Fprintf(&b, "socket of the backend %+v", *st)
	}
	return b.String()
}

// inner takes the outer header off a frame for the backend, after a look at it.
func (s *service) inner(frame []byte) ([]byte, error) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	network := p.NetworkLayer()
	if network == nil {
		return nil, fmt.Errorf("no IP packet")
	}
	ip := frame[14:]
	if s.forward == "ipip" {
		next, src := layers.IPProtocolIPv4, node4
		if s.vip.Is6() {
			next = layers.IPProtocolIPv6
		}
		if s.backend.Is6() {
			src = node6
		}
		from, to := network.NetworkFlow().Endpoints()
		if !bytes.Equal(from.Raw(), src.AsSlice()) || !bytes.Equal(to.Raw(), s.backend.AsSlice()) {
			return nil, fmt.Errorf("from %v to %v", from, to)
		}
		switch outer := network.(type) {
		case *layers.IPv4:
			if outer.Protocol != next || outer.IHL != 5 || fold(ip[:20], 0) != 0xffff || int(outer.Length) > len(ip) {
				return nil, fmt.Errorf("outer header %+v", outer)
			}
			ip = ip[20:outer.Length]
		case *layers.IPv6:
			if outer.NextHeader != next || 40+int(outer.Length) > len(ip) {
				return nil, fmt.Errorf("outer header %+v", outer)
			}
			ip = ip[40 : 40+outer.Length]
		}
	}
	// Short frames are padded.
	length := 0
	switch {
	case s.vip.Is4() && len(ip) >= 20 && ip[0]>>4 == 4:
		length = int(binary.BigEndian.Uint16(ip[2:]))
	case s.vip.Is6() && len(ip) >= 40 && ip[0]>>4 == 6:
		length = 40 + int(binary.BigEndian.Uint16(ip[4:]))
	}
	if length == 0 || length > len(ip) {
		return nil, fmt.Errorf("inner length %d of %d", length, len(ip))
	}
	return ip[:length], nil
}

// fold adds 16-bit words in one's complement.
func fold(b []byte, sum uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// frame makes a frame of so many bytes for a service, and the IP packet in it; nil where headers alone are longer.
func (r *rig) frame(s service, size int, port uint16) (frame, packet []byte) {
	r.t.Helper()
	ethernet := &layers.Ethernet{SrcMAC: r.clientMAC[:], DstMAC: r.nodeIn[:], EthernetType: layers.EthernetTypeIPv4}
	protocol, header := layers.IPProtocolTCP, 20
	if s.protocol == "udp" {
		protocol, header = layers.IPProtocolUDP, 8
	}
	var network gopacket.NetworkLayer
	if s.vip.Is4() {
		header += 20
		network = &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Id: port, Protocol: protocol, SrcIP: []byte{10, 0, 0, 2}, DstIP: s.vip.AsSlice()}
	} else {
		header += 40
		ethernet.EthernetType = layers.EthernetTypeIPv6
		client := netip.MustParseAddr("fd00::2")
		network = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: client.AsSlice(), DstIP: s.vip.AsSlice()}
	}
	if size < 14+header {
		return nil, nil
	}
	payload := make([]byte, size-14-header)
	for i := range payload {
		payload[i] = byte(i>>8) ^ byte(i)*31 ^ byte(port)*7
	}
	var transport gopacket.SerializableLayer
	if s.protocol == "udp" {
		l := &layers.UDP{SrcPort: layers.UDPPort(port), DstPort: layers.UDPPort(s.port)}
		_ = l.SetNetworkLayerForChecksum(network) // only fails for other layers than IP
		transport = l
	} else {
		l := &layers.TCP{SrcPort: layers.TCPPort(port), DstPort: layers.TCPPort(s.port), ACK: true, Seq: uint32(port) << 12, Window: 1024}
		_ = l.SetNetworkLayerForChecksum(network)
		transport = l
	}
	buffer := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		ethernet, network.(gopacket.SerializableLayer), transport, gopacket.Payload(payload))
	if err != nil {
		r.t.Fatal(err)
	}
	frame = buffer.Bytes()
	return frame, frame[14 : 14+header+len(payload)]
}

// packetSocket sends and receives whole frames on an interface.
type packetSocket struct {
	t      *testing.T
	fd     int
	buffer [4096]byte
}

func openPacketSocket(t *testing.T, ns *testenv.Namespace, name string) *packetSocket {
	t.Helper()
	link, err := ns.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	s := &packetSocket{t: t}
	err = ns.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order
	for _, err := range []error{
		unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
		unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}),
	} {
		if err != nil {
			t.Fatalf("packet socket on %s: %v", name, err)
		}
	}
	return s
}

func (s *packetSocket) send(frame []byte) {
	s.t.Helper()
	if _, err := unix.Write(s.fd, frame); err != nil {
		s.t.Fatal(err)
	}
}

// receive returns a frame, valid until the next call, or nil after a tenth of a second without any.
func (s *packetSocket) receive() []byte {
	s.t.Helper()
	n, _, err := unix.Recvfrom(s.fd, s.buffer[:], 0)
	if err == unix.EAGAIN || err == unix.EINTR {
		return nil
	}
	if err == unix.ENETDOWN { // told once after the interface was down
		return nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return s.buffer[:n]
}

// drain forgets what has come so far.
func (s *packetSocket) drain() {
	for s.receive() != nil {
	}
}
