package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// builtPacket is a frame that gopacket built, and what went into it.
type builtPacket struct {
	frame    []byte
	src, dst netip.Addr
}

// randomPacket has gopacket build a valid TCP or UDP packet, with everything random that may vary.
func randomPacket(t testing.TB, rng *rand.Rand) builtPacket {
	t.Helper()
	v4 := rng.IntN(2) == 0
	p := builtPacket{src: randomHost(rng, v4), dst: randomAddr(rng, v4)}
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
	proto := []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP}[rng.IntN(2)]

	var ip interface {
		gopacket.SerializableLayer
		gopacket.NetworkLayer
	}
	if v4 {
		h := &layers.IPv4{
			Version: 4, TOS: uint8(rng.Uint32()), Id: uint16(rng.Uint32()), TTL: uint8(rng.Uint32()), Protocol: proto,
			Flags: layers.IPv4Flag(rng.IntN(2)) * layers.IPv4DontFragment,
			SrcIP: p.src.AsSlice(), DstIP: p.dst.AsSlice(),
		}
		for range rng.IntN(3) * rng.IntN(2) {
			h.Options = append(h.Options, layers.IPv4Option{OptionType: 0x94, OptionLength: 4, OptionData: randomBytes(rng, 2)})
		}
		eth.EthernetType, ip = layers.EthernetTypeIPv4, h
	} else {
		eth.EthernetType, ip = layers.EthernetTypeIPv6, &layers.IPv6{
			Version: 6, TrafficClass: uint8(rng.Uint32()), FlowLabel: rng.Uint32() >> 12, HopLimit: uint8(rng.Uint32()),
			NextHeader: proto, SrcIP: p.src.AsSlice(), DstIP: p.dst.AsSlice(),
		}
	}

	var transport gopacket.SerializableLayer
	if proto == layers.IPProtocolTCP {
		h := &layers.TCP{
			SrcPort: layers.TCPPort(rng.Uint32()), DstPort: layers.TCPPort(rng.Uint32()), Seq: rng.Uint32(), Ack: rng.Uint32(),
			FIN: rng.IntN(4) == 0, SYN: rng.IntN(2) == 0, RST: rng.IntN(4) == 0, PSH: rng.IntN(2) == 0, ACK: rng.IntN(2) == 0,
			URG: rng.IntN(4) == 0, ECE: rng.IntN(4) == 0, CWR: rng.IntN(4) == 0, NS: rng.IntN(4) == 0, Window: uint16(rng.Uint32()),
		}
		for range rng.IntN(3) {
			h.Options = append(h.Options, layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: randomBytes(rng, 2)})
		}
		if err := h.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		transport = h
	} else {
		h := &layers.UDP{SrcPort: layers.UDPPort(rng.Uint32()), DstPort: layers.UDPPort(rng.Uint32())}
		if err := h.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		transport = h
	}

	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	payload := gopacket.Payload(randomBytes(rng, rng.IntN(60)*rng.IntN(30)))
	if err := gopacket.SerializeLayers(buf, opts, eth, ip, transport, payload); err != nil {
		t.Fatal(err)
	}
	p.frame = append([]byte(nil), buf.Bytes()...)
	if short := 60 - len(p.frame); short > 0 { // Ethernet padding, which drivers do not always zero
		p.frame = append(p.frame, randomBytes(rng, short)...)
	}
	return p
}

// randomHost is randomAddr, but for addresses that no host has.
func randomHost(rng *rand.Rand, v4 bool) netip.Addr {
	a := randomAddr(rng, v4)
	for v4 && (a.AsSlice()[0] == 0 || a.IsLoopback() || a.AsSlice()[0] >= 224) {
		a = randomAddr(rng, v4)
	}
	return a
}

// dress makes the packet less plain: a tag before it, extension headers, and perhaps only a fragment of it is left.
func (p *builtPacket) dress(rng *rand.Rand) {
	m := parse(p.frame)
	eth, ip := p.frame[:ethLen], p.frame[ethLen:m.L4]
	data, padding := p.frame[m.L4:m.End], p.frame[m.End:]
	var front, back []testHeader // before and behind the fragment header
	if p.src.Is6() {
		if rng.IntN(3) == 0 {
			front = append(front, options(nextHopByHop, rng))
		}
		for range rng.IntN(3) {
			front = append(front, options(nextOptions, rng))
		}
		if rng.IntN(3) == 0 {
			back = append(back, options(nextOptions, rng))
		}
	}
	// What is fragmented are the back headers and the data.
	next, fragmentable := chain(m.Proto, data, back...)
	word, cut := uint16(0), rng.IntN(4)
	header := udpLen
	if m.Proto == ProtoTCP {
		header = int(data[12]>>4) * 4
	}
	least := (len(fragmentable) - len(data) + header + 7) &^ 7 // holds the transport header
	switch {
	case len(fragmentable) <= least+16: // too little to be cut
		cut = 0
	case cut == 1: // the first
		word, fragmentable = 1, fragmentable[:least+rng.IntN((len(fragmentable)-least)/8)*8]
	case cut == 2: // a further one, the last or not
		from := 16 + rng.IntN((len(fragmentable)-16)/8)*8
		word, fragmentable = uint16(from), fragmentable[from:]
		if len(fragmentable) >= 16 && rng.IntN(2) == 0 {
			word, fragmentable = word|1, fragmentable[:8+rng.IntN((len(fragmentable)-8)/8)*8]
		}
	}
	switch {
	case p.src.Is4():
		if cut == 1 || cut == 2 {
			binary.BigEndian.PutUint16(ip[6:], word>>3|word&1<<13)
		}
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(fragmentable)))
		setChecksum(ip)
	case cut != 0: // all of it if cut is 3
		front = append(front, fragmentHeader(word, rng.Uint32()))
		fallthrough
	default:
		ip[6], fragmentable = chain(next, fragmentable, front...)
		binary.BigEndian.PutUint16(ip[4:], uint16(len(fragmentable)))
	}
	if rng.IntN(4) == 0 {
		tag := []byte{0x81, 0, byte(rng.Uint32()), byte(rng.Uint32())}
		eth = append(append(append([]byte(nil), eth[:12]...), tag...), eth[12:]...)
	}
	p.frame = append(append(append(append([]byte(nil), eth...), ip...), fragmentable...), padding...)
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// wantMeta is what Parse must find in the frame p, put together from gopacket's layers.
func wantMeta(t testing.TB, p *builtPacket) Meta {
	t.Helper()
	want := Meta{Dst: FromNetip(p.dst)}
	at := uint16(0)
	g := gopacket.NewPacket(p.frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	for _, layer := range g.Layers() {
		switch l := layer.(type) {
		case *layers.IPv4:
			want.L3, want.End = at, at+l.Length
			want.Class, want.Proto = l.TOS, uint8(l.Protocol)
			if l.FragOffset > 0 {
				want.Flags |= Later
			} else if l.Flags&layers.IPv4MoreFragments != 0 {
				want.Flags |= First
			}
		case *layers.IPv6:
			want.L3, want.End = at, at+ipv6Len+l.Length
			want.Class, want.Proto, want.Flags = l.TrafficClass, uint8(l.NextHeader), V6
		case *layers.IPv6HopByHop:
			want.Proto = uint8(l.NextHeader)
		case *layers.IPv6Destination:
			want.Proto = uint8(l.NextHeader)
		case *layers.IPv6Fragment:
			want.Proto = uint8(l.NextHeader)
			if l.FragmentOffset > 0 {
				want.Flags |= Later
			} else if l.MoreFragments {
				want.Flags |= First
			}
		case *layers.Ethernet, *layers.Dot1Q:
		default: // the transport header, or what gopacket leaves alone as a fragment
			want.transport(t, p, at)
			return want
		}
		at += uint16(len(layer.LayerContents()))
	}
	t.Fatalf("gopacket finds no transport layer: %v", g)
	return want
}

// transport adds what gopacket finds in the transport header at l4.
func (m *Meta) transport(t testing.TB, p *builtPacket, l4 uint16) {
	t.Helper()
	m.L4 = l4
	if m.Flags&Later != 0 {
		return
	}
	if m.Proto == nextOptions { // behind a fragment header, where gopacket stops
		m.Proto = p.frame[l4]
		m.L4 += 8 + uint16(p.frame[l4+1])*8
	}
	g := gopacket.NewPacket(p.frame[m.L4:m.End], layers.IPProtocol(m.Proto).LayerType(), gopacket.NoCopy)
	switch l := g.TransportLayer().(type) {
	case *layers.TCP:
		m.SrcPort, m.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
		if l.FIN {
			m.Flags |= FIN
		}
		if l.SYN && !l.ACK {
			m.Flags |= SYN
		}
		if l.RST {
			m.Flags |= RST
		}
	case *layers.UDP:
		m.SrcPort, m.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
	default:
		t.Fatalf("gopacket finds no transport header: %v", g)
	}
	m.Hash = sipReference(1, 3, testKey[0], testKey[1], tupleBytes(p.src, p.dst, m.SrcPort, m.DstPort, m.Proto))
}

// Parse agrees with gopacket in every field, over random valid packets: plain ones, and such with tags, extension headers,
// and cut into fragments.
func TestParseAgreesWithGopacket(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	var seen [1 << 8]int
	for i := range 20000 {
		p := randomPacket(t, rng)
		if i%2 == 1 {
			p.dress(rng)
		}
		want := wantMeta(t, &p)
		if got := parse(p.frame); got != want {
			t.Fatalf("%x\n got %+v\nwant %+v", p.frame, got, want)
		}
		if s := Source(p.frame, &want); s != FromNetip(p.src) {
			t.Fatalf("%x: source %v, want %v", p.frame, s, p.src)
		}
		if want.Flags&Later == 0 {
			if h := FlowHash(&testKey, FromNetip(p.src), FromNetip(p.dst), want.SrcPort, want.DstPort, want.Proto); h != want.Hash {
				t.Fatalf("FlowHash %#x, hash in Meta %#x", h, want.Hash)
			}
		}
		seen[want.Flags&(V6|First|Later)]++
	}
	for _, flags := range []uint16{0, First, Later, V6, V6 | First, V6 | Later} {
		if seen[flags] < 500 {
			t.Errorf("flags %#02x seen %d times only: the test has grown blunt", flags, seen[flags])
		}
	}
}

// What ReadFragment finds agrees with gopacket, and the key with the reference of SipHash over the fields that the RFCs name.
func TestReadFragmentAgreesWithGopacket(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	for n := 0; n < 4000; {
		p := randomPacket(t, rng)
		p.dress(rng)
		m := parse(p.frame)
		if m.Flags&(First|Later) == 0 {
			continue
		}
		n++
		var want FragmentInfo
		var length int
		msg := append(p.src.AsSlice(), p.dst.AsSlice()...)
		for _, layer := range gopacket.NewPacket(p.frame, layers.LayerTypeEthernet, gopacket.NoCopy).Layers() {
			switch l := layer.(type) {
			case *layers.IPv4:
				msg = append(binary.BigEndian.AppendUint16(msg, l.Id), uint8(l.Protocol))
				want.From, want.Last = l.FragOffset, l.Flags&layers.IPv4MoreFragments == 0
				length = int(l.Length) - int(l.IHL)*4
			case *layers.IPv6Fragment:
				msg = binary.BigEndian.AppendUint32(msg, l.Identification)
				want.From, want.Last = l.FragmentOffset, !l.MoreFragments
				length = int(m.End) - (len(p.frame) - len(l.Payload))
			}
		}
		want.To = want.From + uint16((length+7)/8)
		want.Key = sipReference(1, 3, testKey[0], testKey[1], msg)
		if got := ReadFragment(p.frame, &testKey, &m); got != want {
			t.Fatalf("%x\n got %+v\nwant %+v", p.frame, got, want)
		}
	}
}

// A tag changes nothing but the offsets.
func TestPushVLAN(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for range 3000 {
		p := randomPacket(t, rng)
		if rng.IntN(2) == 0 {
			p.dress(rng)
		}
		want := parse(p.frame)
		if want.L3 != ethLen {
			continue // has one already
		}
		const start = 5
		mem := append(randomBytes(rng, start), p.frame...)
		before := append([]byte(nil), mem...)
		vlan := uint16(1 + rng.IntN(4094))
		newStart, newLen := PushVLAN(mem, start, len(p.frame), vlan)
		if newStart != start-4 || newLen != len(p.frame)+4 {
			t.Fatalf("frame at %d, %d bytes; want %d, %d", newStart, newLen, start-4, len(p.frame)+4)
		}
		frame := mem[newStart : newStart+newLen]
		if mem[0] != before[0] || !bytes.Equal(frame[16:], before[start+12:]) {
			t.Fatalf("bytes other than addresses and tag have changed:\n got %x\nfrom %x", mem, before)
		}
		g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
		eth, tag := g.Layers()[0].(*layers.Ethernet), g.Layers()[1].(*layers.Dot1Q)
		if tag.VLANIdentifier != vlan || tag.Priority != 0 || tag.DropEligible ||
			!bytes.Equal(eth.DstMAC, p.frame[0:6]) || !bytes.Equal(eth.SrcMAC, p.frame[6:12]) {
			t.Fatalf("VLAN %d: %v", vlan, g)
		}
		want.L3, want.L4, want.End = want.L3+4, want.L4+4, want.End+4
		if got := parse(frame); got != want {
			t.Fatalf("%x\n got %+v\nwant %+v", frame, got, want)
		}
	}
}
