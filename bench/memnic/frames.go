//go:build linux

package memnic

import (
	"encoding/binary"
	"net/netip"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

// The service and its backends, by family.
var (
	vips     = map[string]netip.Addr{V4: netip.MustParseAddr("192.0.2.10"), V6: netip.MustParseAddr("2001:db8::10")}
	backends = map[string]netip.Addr{V4: netip.MustParseAddr("10.0.1.0"), V6: netip.MustParseAddr("2001:db8:0:1::")} // the last byte counts
)

const (
	servicePort  = 80
	backendCount = 100
	portsASource = 16 // flows of each client
	firstPort    = 1024
)

// Kinds of frames that are generated.
const (
	ackFrame   = iota // of the client, no payload to speak of
	synFrame          // of the client, with the options of a Linux client
	replyFrame        // of the backend: an ACK
	frameKinds
)

// TCP flags.
const (
	flagSYN = 0x02
	flagACK = 0x10
)

const etherLen = 14

// clientOptions are those of a Linux client's SYN: maximum segment size, SACK permitted, timestamps, window scale.
var clientOptions = []byte{2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}

// mold is what the frames of one kind and family have in common, and how to write a flow into a copy.
type mold struct {
	frame []byte
	v6    bool
	reply bool
	sum   uint32 // of the IPv4 header without the address of the client
}

// newMold makes the mold. Lengths are the least on an Ethernet, or what the options take.
func newMold(family string, kind int) mold {
	m := mold{v6: family == V6, reply: kind == replyFrame}
	tcp := make([]byte, 20, 64)
	binary.BigEndian.PutUint32(tcp[4:], 0x01020304) // sequence number
	tcp[13] = flagACK
	if kind == synFrame {
		tcp[13] = flagSYN
		tcp = append(tcp, clientOptions...)
	}
	tcp[12] = byte(len(tcp)/4) << 4
	binary.BigEndian.PutUint16(tcp[14:], 64240) // window
	if m.reply {
		binary.BigEndian.PutUint16(tcp[0:], servicePort)
	} else {
		binary.BigEndian.PutUint16(tcp[2:], servicePort)
	}
	if kind != synFrame {
		tcp = append(tcp, make([]byte, 10)...) // payload
	}
	m.frame = []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00}
	if m.v6 {
		m.frame[12], m.frame[13] = 0x86, 0xdd
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, packet.ProtoTCP, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
		if vip, b := vips[family].As16(), backends[family].As16(); m.reply {
			copy(ip[8:], b[:])
		} else {
			copy(ip[24:], vip[:])
		}
		m.frame = append(append(m.frame, ip...), tcp...)
		return m
	}
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, packet.ProtoTCP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(tcp)))
	if vip, b := vips[family].As4(), backends[family].As4(); m.reply {
		copy(ip[12:], b[:])
	} else {
		copy(ip[16:], vip[:])
	}
	for k := 0; k < len(ip); k += 2 {
		m.sum += uint32(binary.BigEndian.Uint16(ip[k:]))
	}
	m.frame = append(append(m.frame, ip...), tcp...)
	return m
}

// write makes frame, a copy of the mold's, one of a flow's. Unknown flows and those in the table have different addresses. The TCP
// checksum stays wrong: nobody on the way looks at it, and NAT only updates it.
func (m *mold) write(frame []byte, flow uint32, unknown bool) {
	client, port := flow/portsASource, firstPort+uint16(flow%portsASource)
	if m.v6 {
		addr, ports := frame[etherLen+8:], frame[etherLen+40:]
		if m.reply {
			addr[15] = byte(flow % backendCount)
			addr, ports = addr[16:], ports[2:]
		}
		binary.BigEndian.PutUint32(addr, 0x20010db8)
		binary.BigEndian.PutUint32(addr[4:], client)
		addr[15] = 1
		if unknown {
			addr[15] = 2
		}
		binary.BigEndian.PutUint16(ports, port)
		return
	}
	client += 11 << 24
	if unknown {
		client += 33 << 24
	}
	ip, ports := frame[etherLen:], frame[etherLen+20:]
	sum := m.sum + client>>16 + client&0xffff
	if m.reply {
		ip[15] = byte(flow % backendCount)
		sum += uint32(ip[15])
		binary.BigEndian.PutUint32(ip[16:], client)
		binary.BigEndian.PutUint16(ports[2:], port)
	} else {
		binary.BigEndian.PutUint32(ip[12:], client)
		binary.BigEndian.PutUint16(ports, port)
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum))
}
