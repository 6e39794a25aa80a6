package packet

import (
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
	p := builtPacket{src: randomAddr(rng, v4), dst: randomAddr(rng, v4)}
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

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// Parse agrees with gopacket in every field, over random valid packets.
func TestParseAgreesWithGopacket(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for range 10000 {
		p := randomPacket(t, rng)
		g := gopacket.NewPacket(p.frame, layers.LayerTypeEthernet, gopacket.NoCopy)
		want := Meta{L3: 14, Dst: FromNetip(p.dst)}
		switch ip := g.NetworkLayer().(type) {
		case *layers.IPv4:
			want.Proto, want.Class = uint8(ip.Protocol), ip.TOS
			want.L4 = want.L3 + uint16(len(ip.Contents))
			want.End = want.L3 + ip.Length
		case *layers.IPv6:
			want.Proto, want.Class = uint8(ip.NextHeader), ip.TrafficClass
			want.L4 = want.L3 + uint16(len(ip.Contents))
			want.End = want.L4 + ip.Length
			want.Flags = V6
		}
		switch l := g.TransportLayer().(type) {
		case *layers.TCP:
			want.SrcPort, want.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
			if l.FIN {
				want.Flags |= FIN
			}
			if l.SYN && !l.ACK {
				want.Flags |= SYN
			}
			if l.RST {
				want.Flags |= RST
			}
		case *layers.UDP:
			want.SrcPort, want.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
		}
		want.Hash = sipReference(1, 3, testKey[0], testKey[1], tupleBytes(p.src, p.dst, want.SrcPort, want.DstPort, want.Proto))
		if got := parse(p.frame); got != want {
			t.Fatalf("%v\n got %+v\nwant %+v", g, got, want)
		}
		if h := FlowHash(&testKey, FromNetip(p.src), FromNetip(p.dst), want.SrcPort, want.DstPort, want.Proto); h != want.Hash {
			t.Fatalf("FlowHash %#x, hash in Meta %#x", h, want.Hash)
		}
	}
}
