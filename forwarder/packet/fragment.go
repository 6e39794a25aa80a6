package packet

import (
	"encoding/binary"
	"math"
)

// Fields of the IPv4 fragment word (RFC 791) and of the IPv6 fragment header (RFC 8200, 4.5), which is eight bytes: next
// header, a reserved byte, offset and M flag, identification.
const (
	moreFragments4  = 0x2000
	offsetMask4     = 0x1fff // in units of eight bytes
	moreFragments6  = 1
	offsetMask6     = 0xfff8 // in bytes
	fragmentLen6    = 8
	fragmentUnit    = 8 // bytes in which places within a datagram are told
	maxFragmentable = math.MaxUint16
)

// parseFragment4 finishes Parse for an IPv4 fragment. Everything but Hash, ports, Flags and Reason is set.
func (m *Meta) parseFragment4(frame []byte, key *Key) {
	word := binary.BigEndian.Uint16(frame[m.L3+6:])
	offset := int(word&offsetMask4) * fragmentUnit
	switch {
	case m.Proto == ProtoICMP || !fits(offset, int(m.End-m.L4), word&moreFragments4 != 0):
		m.stop(BadFragment, 0)
	case m.Proto != ProtoTCP && m.Proto != ProtoUDP:
		m.stop(Protocol, 0)
	case offset == 0:
		m.flow(frame, key, First)
	case m.Proto == ProtoTCP && offset == fragmentUnit:
		m.stop(TinyFragment, 0) // it could overwrite the flags of the first one (RFC 3128)
	default:
		m.stop(None, Later)
	}
}

// later6 finishes Parse for an IPv6 fragment of which the data does not begin with the transport header. Whether that is
// TCP, UDP or something else is told by the fragment header only if no destination options stand between them.
func (m *Meta) later6() {
	switch m.Proto {
	case ProtoTCP, ProtoUDP, nextOptions:
		m.stop(None, V6|Later)
	case ProtoICMPv6:
		m.stop(BadFragment, V6)
	default:
		m.stop(Protocol, V6)
	}
}

// fits says whether a fragment of length bytes can be at offset, and be followed by more. No datagram needs more of them,
// nor has more bytes, than lengths of 16 bits can tell.
func fits(offset, length int, more bool) bool {
	return length > 0 && offset+length <= maxFragmentable && (!more || length%fragmentUnit == 0)
}

// tiny says whether a first fragment, whose data t begins with a TCP or UDP header, does not hold the whole of that header
// (RFC 1858, RFC 7112).
func tiny(t []byte, proto uint8) bool {
	if proto == ProtoUDP {
		return len(t) < udpLen
	}
	return len(t) < tcpLen || len(t) < int(t[12]>>4)*4
}

// FragmentInfo says to which datagram a fragment belongs, and which part of it it is.
type FragmentInfo struct {
	// Key is common to the fragments of a datagram, and to them alone but for chance: a keyed SipHash of source,
	// destination and identification, and for IPv4 of the protocol too (RFC 791; RFC 8200, 4.5). All its bits are mixed
	// equally well. It is unrelated to the hash of the flow.
	Key uint64
	// From and To are the first unit of eight bytes and one past the last, within what was cut into fragments. A last
	// unit that is not full counts.
	From, To uint16
	Last     bool // no more fragments follow: To is the end of the datagram
}

// ReadFragment reads what makes a packet a fragment. frame was parsed into m, with the Reason None and First or Later
// among the Flags.
func ReadFragment(frame []byte, key *Key, m *Meta) FragmentInfo {
	ip := frame[m.L3:m.End]
	if m.Flags&V6 == 0 {
		word := binary.BigEndian.Uint16(ip[6:])
		// Source, destination, identification and protocol as a message of 11 bytes.
		id := uint64(binary.LittleEndian.Uint16(ip[4:])) | uint64(ip[9])<<16 | 11<<56
		return FragmentInfo{
			Key:  sipWords(key, []uint64{binary.LittleEndian.Uint64(ip[12:]), id}),
			From: word & offsetMask4,
			To:   word&offsetMask4 + units(m.End-m.L4),
			Last: word&moreFragments4 == 0,
		}
	}
	c := walk6(ip)
	h := ip[c.fragment : c.fragment+fragmentLen6]
	word := binary.BigEndian.Uint16(h[2:])
	// Source, destination and identification as a message of 36 bytes.
	id := uint64(binary.LittleEndian.Uint32(h[4:])) | 36<<56
	return FragmentInfo{
		Key: sipWords(key, []uint64{binary.LittleEndian.Uint64(ip[8:]), binary.LittleEndian.Uint64(ip[16:]),
			binary.LittleEndian.Uint64(ip[24:]), binary.LittleEndian.Uint64(ip[32:]), id}),
		From: word / fragmentUnit,
		To:   word/fragmentUnit + units(uint16(len(ip)-c.fragment-fragmentLen6)),
		Last: word&moreFragments6 == 0,
	}
}

// units is how many units of eight bytes so many bytes take up.
func units(length uint16) uint16 { return uint16((int(length) + fragmentUnit - 1) / fragmentUnit) }

// SetPorts makes m, that of a further fragment, one of its flow, which the datagram's first fragment has told: ports, in
// host order, protocol and Hash become those of the flow's whole packets. Later stays set. frame is the frame that m was
// parsed from.
func (m *Meta) SetPorts(frame []byte, key *Key, srcPort, dstPort uint16, proto uint8) {
	m.SrcPort, m.DstPort, m.Proto = srcPort, dstPort, proto
	m.Hash = FlowHash(key, Source(frame, m), m.Dst, srcPort, dstPort, proto)
}

// sipWords is SipHash-1-3 of a message given as its little-endian words, the length in the top byte of the last one.
func sipWords(key *Key, words []uint64) uint64 {
	v0, v1, v2, v3 := sipInit(key)
	for _, w := range words {
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3^w)
		v0 ^= w
	}
	v2 ^= 0xff
	for range 3 {
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	}
	return v0 ^ v1 ^ v2 ^ v3
}
