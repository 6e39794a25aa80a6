package steer

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/sluice-lb/sluice/testenv"
)

// What enum xdp_action calls the verdicts.
const (
	xdpRedirect = 4
)

var (
	ownMAC    = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}
	routerMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x02}

	vip4   = netip.MustParseAddr("192.0.2.10")
	vip6   = netip.MustParseAddr("2001:db8::10")
	other4 = netip.MustParseAddr("192.0.2.11")
	other6 = netip.MustParseAddr("2001:db8::11")
)

// rig is the program in the kernel, attached to nothing: test runs give it frames.
type rig struct {
	*Steer
	link Link
}

func newRig(t *testing.T, maxVIPs int, vips ...netip.Addr) *rig {
	t.Helper()
	return newSizedRig(t, maxVIPs, 1, AttachOptions{Queues: 1}, vips...)
}

func newSizedRig(t testing.TB, maxVIPs, maxReplies int, o AttachOptions, vips ...netip.Addr) *rig {
	t.Helper()
	return newPreparedRig(t, maxVIPs, maxReplies, o, func(*Steer) error { return nil }, vips...)
}

// newPreparedRig is newSizedRig with something done before the program is loaded.
func newPreparedRig(t testing.TB, maxVIPs, maxReplies int, o AttachOptions, prepare func(*Steer) error, vips ...netip.Addr) *rig {
	t.Helper()
	testenv.RequireRoot(t)
	s, err := New(maxVIPs, maxReplies, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := prepare(s); err != nil {
		t.Fatal(err)
	}
	r := &rig{Steer: s, link: Link{name: "test"}}
	if err := s.load(&r.link.objects, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.link.objects.Close() })
	if err := r.link.SetMAC(ownMAC); err != nil {
		t.Fatal(err)
	}
	if err := s.SetVIPs(vips); err != nil {
		t.Fatal(err)
	}
	return r
}

// run shows the program one frame and returns its verdict. The frame must come out as it went in.
func (r *rig) run(t *testing.T, frame []byte) uint32 {
	t.Helper()
	verdict, out, err := r.link.objects.SluiceSteer.Test(frame)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out, frame) {
		t.Fatalf("the frame came out changed:\n%x\n%x", frame, out)
	}
	return verdict
}

func (r *rig) stats(t *testing.T) Stats {
	t.Helper()
	s, err := r.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// giveSocket gives queue 0 an AF_XDP socket.
func (r *rig) giveSocket(t *testing.T) {
	t.Helper()
	if err := r.link.SetSocket(0, xskSocket(t)); err != nil {
		t.Fatal(err)
	}
}

func build(t testing.TB, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	for _, l := range parts {
		if tr, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			for _, n := range parts {
				if n, ok := n.(gopacket.NetworkLayer); ok {
					if err := tr.SetNetworkLayerForChecksum(n); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if err := gopacket.SerializeLayers(buf, opts, parts...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func ether(dst net.HardwareAddr, typ layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: routerMAC, DstMAC: dst, EthernetType: typ}
}

func ip4(dst netip.Addr, proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: net.IP{198, 51, 100, 1}, DstIP: dst.AsSlice()}
}

func ip6(dst netip.Addr, next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: net.ParseIP("2001:db8:1::1"), DstIP: dst.AsSlice()}
}

var (
	tcp     = &layers.TCP{SrcPort: 40000, DstPort: 80, SYN: true, Window: 65535}
	udp     = &layers.UDP{SrcPort: 40000, DstPort: 53}
	payload = gopacket.Payload("some bytes of payload")
)

// The packets to the VIPs, each of which must be steered whatever it is.
func vipFrames(t testing.TB) map[string][]byte {
	t.Helper()
	eth4, eth6 := ether(ownMAC, layers.EthernetTypeIPv4), ether(ownMAC, layers.EthernetTypeIPv6)
	first, later := ip4(vip4, layers.IPProtocolUDP), ip4(vip4, layers.IPProtocolUDP)
	first.Flags = layers.IPv4MoreFragments
	later.FragOffset = 100
	options := ip4(vip4, layers.IPProtocolTCP)
	options.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	icmp4 := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0)}
	icmp6 := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}
	badChecksum := build(t, eth4, ip4(vip4, layers.IPProtocolTCP), tcp)
	badChecksum[14+10] ^= 0xff

	return map[string][]byte{
		"IPv4 TCP":                build(t, eth4, ip4(vip4, layers.IPProtocolTCP), tcp, payload),
		"IPv4 UDP":                build(t, eth4, ip4(vip4, layers.IPProtocolUDP), udp, payload),
		"IPv4 ICMP":               build(t, eth4, ip4(vip4, layers.IPProtocolICMPv4), icmp4),
		"IPv4 GRE":                build(t, eth4, ip4(vip4, layers.IPProtocolGRE), payload),
		"IPv4 IPIP":               build(t, eth4, ip4(vip4, layers.IPProtocolIPv4), ip4(other4, layers.IPProtocolTCP), tcp),
		"IPv4 options":            build(t, eth4, options, tcp),
		"IPv4 first fragment":     build(t, eth4, first, udp, payload),
		"IPv4 later fragment":     build(t, eth4, later, payload),
		"IPv4 bad checksum":       badChecksum,
		"IPv4 full size":          build(t, eth4, ip4(vip4, layers.IPProtocolTCP), tcp, gopacket.Payload(make([]byte, 1460))),
		"IPv4 padded to 60 bytes": append(build(t, eth4, ip4(vip4, layers.IPProtocolTCP), tcp), 0, 0, 0, 0, 0, 0),
		"IPv6 TCP":                build(t, eth6, ip6(vip6, layers.IPProtocolTCP), tcp, payload),
		"IPv6 UDP":                build(t, eth6, ip6(vip6, layers.IPProtocolUDP), udp, payload),
		"IPv6 ICMP":               build(t, eth6, ip6(vip6, layers.IPProtocolICMPv6), icmp6),
		"IPv6 fragment":           build(t, eth6, ip6(vip6, layers.IPProtocolIPv6Fragment), gopacket.Payload{17, 0, 0, 1, 0, 0, 0, 1}, payload),
		"IPv6 hop-by-hop":         build(t, eth6, ip6(vip6, layers.IPProtocolIPv6HopByHop), gopacket.Payload{6, 0, 1, 4, 0, 0, 0, 0}, payload),
	}
}

// What belongs to the stack.
func stackFrames(t testing.TB) map[string][]byte {
	t.Helper()
	eth4, eth6 := ether(ownMAC, layers.EthernetTypeIPv4), ether(ownMAC, layers.EthernetTypeIPv6)
	vlan := &layers.Dot1Q{VLANIdentifier: 5, Type: layers.EthernetTypeIPv4}
	arp := &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6,
		ProtAddressSize: 4, Operation: 1, SourceHwAddress: routerMAC, SourceProtAddress: []byte{192, 0, 2, 1},
		DstHwAddress: make([]byte, 6), DstProtAddress: vip4.AsSlice()}
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	fromVIP := ip4(other4, layers.IPProtocolTCP)
	fromVIP.SrcIP = vip4.AsSlice()
	mapped := ip6(vip6, layers.IPProtocolTCP)
	mapped.DstIP = net.IP{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 10}
	mappedFrame := build(t, eth6, mapped, payload)
	// Before its last byte changes, the other host's MAC is ours: every byte counts.
	neighbours := make(map[string][]byte)
	for i := range ownMAC {
		mac := bytes.Clone(ownMAC)
		mac[i] ^= 0x10
		neighbours[fmt.Sprintf("to another MAC, byte %d", i)] = build(t, ether(mac, layers.EthernetTypeIPv4), ip4(vip4, layers.IPProtocolTCP), tcp)
	}
	frames := map[string][]byte{
		"IPv4 TCP to another address":    build(t, eth4, ip4(other4, layers.IPProtocolTCP), tcp),
		"IPv4 ICMP to another address":   build(t, eth4, ip4(other4, layers.IPProtocolICMPv4), payload),
		"IPv4 from a VIP":                build(t, eth4, fromVIP, tcp),
		"IPv4 VIP inside IPIP":           build(t, eth4, ip4(other4, layers.IPProtocolIPv4), ip4(vip4, layers.IPProtocolTCP), tcp),
		"IPv6 TCP to another address":    build(t, eth6, ip6(other6, layers.IPProtocolTCP), tcp),
		"IPv6 to an IPv4 VIP, v4-mapped": mappedFrame,
		"ARP for a VIP":                  build(t, ether(broadcast, layers.EthernetTypeARP), arp),
		"VLAN-tagged, to a VIP":          build(t, ether(ownMAC, layers.EthernetTypeDot1Q), vlan, ip4(vip4, layers.IPProtocolTCP), tcp),
		"LLDP":                           build(t, ether(ownMAC, layers.EthernetTypeLinkLayerDiscovery), payload),
		"to a VIP, broadcast MAC":        build(t, ether(broadcast, layers.EthernetTypeIPv4), ip4(vip4, layers.IPProtocolUDP), udp),
		"Ethernet header only":           build(t, eth4),
	}
	for name, frame := range neighbours {
		frames[name] = frame
	}
	return frames
}

func TestVerdicts(t *testing.T) {
	r := newRig(t, 4, vip4, vip6)
	var want Stats
	check := func(t *testing.T, frame []byte, verdict uint32) {
		t.Helper()
		if got := r.run(t, frame); got != verdict {
			t.Errorf("verdict %d, want %d", got, verdict)
		}
		if got := r.stats(t); got != want {
			t.Errorf("counted %+v, want %+v", got, want)
		}
	}
	for name, frame := range stackFrames(t) {
		t.Run(name, func(t *testing.T) { check(t, frame, xdpPass) })
	}
	for name, frame := range vipFrames(t) {
		t.Run(name+", no socket", func(t *testing.T) {
			want.ToVIPs++
			want.NoSocket++
			check(t, frame, xdpDrop)
		})
	}
	r.giveSocket(t)
	for name, frame := range vipFrames(t) {
		t.Run(name, func(t *testing.T) {
			want.ToVIPs++
			want.Redirected++
			check(t, frame, xdpRedirect)
		})
	}
	for name, frame := range stackFrames(t) {
		t.Run(name+", with a socket", func(t *testing.T) { check(t, frame, xdpPass) })
	}
}

// A frame that ends before its destination address does passes; from there on it is the worker's to refuse. The kernel
// takes no frame below 14 bytes.
func TestTruncatedFrames(t *testing.T) {
	r := newRig(t, 4, vip4, vip6)
	for _, c := range []struct {
		name    string
		enough  int // bytes from which on the destination is there
		packets []byte
	}{
		{"IPv4 TCP", 14 + 20, vipFrames(t)["IPv4 TCP"]},
		{"IPv6 TCP", 14 + 40, vipFrames(t)["IPv6 TCP"]},
	} {
		for length := 14; length <= 60; length++ {
			want := uint32(xdpPass)
			if length >= c.enough {
				want = xdpDrop // there is no socket
			}
			if got := r.run(t, c.packets[:length]); got != want {
				t.Errorf("%s cut to %d bytes: verdict %d, want %d", c.name, length, got, want)
			}
		}
	}
}

func TestRandomBytesNeverReachASocket(t *testing.T) {
	r := newRig(t, 4, vip4, vip6)
	r.giveSocket(t)
	random := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		frame := make([]byte, 14+random.IntN(200))
		for i := range frame {
			frame[i] = byte(random.Uint32())
		}
		copy(frame, ownMAC)
		copy(frame[12:], [][]byte{{8, 0}, {0x86, 0xdd}}[random.IntN(2)])
		if got := r.run(t, frame); got != xdpPass {
			t.Fatalf("verdict %d on %x", got, frame)
		}
	}
	if got := r.stats(t); got != (Stats{}) {
		t.Errorf("counted %+v", got)
	}
}

func TestMACFollows(t *testing.T) {
	r := newRig(t, 4, vip4)
	moved := net.HardwareAddr{0x06, 0x11, 0x22, 0x33, 0x44, 0x55}
	if err := r.link.SetMAC(moved); err != nil {
		t.Fatal(err)
	}
	old := build(t, ether(ownMAC, layers.EthernetTypeIPv4), ip4(vip4, layers.IPProtocolTCP), tcp)
	now := build(t, ether(moved, layers.EthernetTypeIPv4), ip4(vip4, layers.IPProtocolTCP), tcp)
	if got := r.run(t, old); got != xdpPass {
		t.Errorf("old MAC: verdict %d", got)
	}
	if got := r.run(t, now); got != xdpDrop {
		t.Errorf("new MAC: verdict %d", got)
	}
	if err := r.link.SetMAC(net.HardwareAddr{1, 2, 3, 4, 5, 6, 7, 8}); err == nil {
		t.Error("an InfiniBand address was taken for a MAC")
	}
}

func TestSetVIPs(t *testing.T) {
	r := newRig(t, 100)
	steered := func(a netip.Addr) bool {
		t.Helper()
		if a.Is4() {
			return r.run(t, build(t, ether(ownMAC, layers.EthernetTypeIPv4), ip4(a, layers.IPProtocolUDP), udp)) == xdpDrop
		}
		return r.run(t, build(t, ether(ownMAC, layers.EthernetTypeIPv6), ip6(a, layers.IPProtocolUDP), udp)) == xdpDrop
	}
	random := rand.New(rand.NewPCG(3, 4))
	all := make([]netip.Addr, 200)
	for i := range all {
		var b [16]byte
		for j := range b {
			b[j] = byte(random.Uint32())
		}
		all[i] = netip.AddrFrom16(b)
		if i%2 == 0 {
			all[i] = netip.AddrFrom4([4]byte(b[:4]))
		}
	}
	// Full, half replaced, wholly replaced, with doubles, empty: exactly the given ones are steered.
	for _, set := range [][]netip.Addr{all[:100], all[50:150], all[100:], all[:1], append(all[:99:99], all[:99]...), nil} {
		if err := r.SetVIPs(set); err != nil {
			t.Fatal(err)
		}
		want := make(map[netip.Addr]bool)
		for _, a := range set {
			want[a] = true
		}
		for _, a := range all {
			if got := steered(a); got != want[a] {
				t.Fatalf("with %d VIPs: %s steered: %v, want %v", len(want), a, got, want[a])
			}
		}
	}
	// A refused set changes nothing.
	if err := r.SetVIPs(all[:10]); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]netip.Addr{
		"too many": all[:101],
		"zero":     {all[20], {}},
		"zone":     {all[20], netip.MustParseAddr("fe80::1%eth0")},
		"mapped":   {all[20], netip.MustParseAddr("::ffff:192.0.2.1")},
	} {
		if err := r.SetVIPs(bad); err == nil {
			t.Errorf("%s: taken", name)
		}
		for i, a := range all[:30] {
			if steered(a) != (i < 10) {
				t.Errorf("%s: the refused set has changed what happens to %s", name, a)
			}
		}
	}
}

// A VIP that stays is steered at every moment of any number of changes to the others.
func TestVIPThatStaysIsNeverMissed(t *testing.T) {
	r := newRig(t, 64, vip4)
	frame := vipFrames(t)["IPv4 TCP"]
	stop, changes := make(chan struct{}), make(chan int)
	go func() {
		random := rand.New(rand.NewPCG(5, 6))
		n := 0
		defer func() { changes <- n }()
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			set := []netip.Addr{vip4}
			for range 63 {
				set = append(set, netip.AddrFrom4([4]byte{10, 0, 0, byte(random.Uint32())}))
			}
			if err := r.SetVIPs(set); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	const packets = 50_000
	for i := range packets {
		verdict, err := r.link.objects.SluiceSteer.Run(&ebpf.RunOptions{Data: frame})
		if err != nil {
			t.Fatal(err)
		}
		if verdict != xdpDrop { // there is no socket
			t.Fatalf("packet %d to the VIP: verdict %d", i, verdict)
		}
	}
	close(stop)
	if n := <-changes; n < 100 {
		t.Errorf("the test was too weak: %d changes of the set", n)
	}
	if s := r.stats(t); s != (Stats{ToVIPs: packets, NoSocket: packets}) {
		t.Errorf("counted %+v of %d packets", s, packets)
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	for _, room := range [][2]int{{0, 1}, {1, 0}, {-1, 1}} {
		if _, err := New(room[0], room[1], 0); err == nil {
			t.Errorf("room for %d VIPs and %d sources of replies was accepted", room[0], room[1])
		}
	}
}
