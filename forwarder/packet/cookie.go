package packet

import "encoding/binary"

// TCP options that a SYN cookie has to do with, beside those of mss.go (IANA "TCP Option Kind Numbers").
const (
	optionWScale = 3 // RFC 7323
	optionSACK   = 4 // SACK permitted (RFC 2018)
	optionTimes  = 8 // RFC 7323

	tcpECE = 1 << 6 // beside tcpACK in the TCP header
	tcpCWR = 1 << 7

	maxWScale = 14 // what is above counts as that (RFC 7323, 2.3)

	cookieWScale = 7 // the window scale of SYN-ACKs: the backend's, which has no say in it
	cookieWindow = 65535
)

// NoWScale is the window scale of a client that offers none.
const NoWScale = 15

// Parts of the options byte of a SYN cookie, beside the window scale in its lowest four bits.
const (
	byteWScale = 0x0f
	byteSACK   = 1 << 4
	byteECN    = 1 << 5
	byteAll    = byteWScale | byteSACK | byteECN
)

// SYNOptions is what a SYN offers, as far as a node that answers it can agree. Whoever knows that the backends cannot do
// something takes it away before the answer: with NoWScale, or false.
type SYNOptions struct {
	TSVal  uint32 // the client's timestamp; only with Timestamps
	MSS    uint16 // the largest segment that the client takes, in bytes; 0: not offered
	WScale uint8  // the shift of the client's windows, at most 14, or NoWScale
	SYNFlags
}

// SYNFlags are those of SYNOptions that are offered or not. They are a struct of their own since the compiler keeps one of more
// than four fields in memory, and a copy of it has to wait until the fields just written are there.
type SYNFlags struct {
	SACK       bool // selective acknowledgements
	ECN        bool // explicit congestion notification, as in RFC 3168
	Timestamps bool
}

// Byte returns the options byte of a SYN cookie: what the SYN-ACK agrees to, but for the MSS. The lowest four bits are the window
// scale, the fifth is for SACK and the sixth for ECN. The client returns the byte in its timestamps, so without these nothing
// can be agreed to.
func (o SYNOptions) Byte() uint8 {
	if !o.Timestamps {
		return NoWScale
	}
	b := o.WScale & byteWScale
	if o.SACK {
		b |= byteSACK
	}
	if o.ECN {
		b |= byteECN
	}
	return b
}

// CookieOptions returns the options byte that came back with what ReadACK returned, as [SYNOptions.Byte] made it.
func CookieOptions(tsecr uint32, hasTS bool) uint8 {
	if !hasTS {
		return NoWScale
	}
	return uint8(tsecr) & byteAll
}

// ReadSYN returns what a SYN offers. frame was parsed into m, which has SYN among its Flags and is no ICMPError. Of an option that
// occurs twice the last counts; options of a wrong length are left out, and so is all that follows a malformed one.
func ReadSYN(frame []byte, m *Meta) SYNOptions {
	t := frame[m.L4:m.End]
	// ECN is not asked for by a packet that uses it already (RFC 3168, 6.1.1).
	ecn := t[13]&(tcpECE|tcpCWR) == tcpECE|tcpCWR && m.Class&3 == 0
	tsval, mss, scale, sack, times := uint32(0), uint16(0), uint8(NoWScale), false, false // in registers, unlike a struct
	t = t[tcpLen : int(t[12]>>4)*4]
	for len(t) >= 2 {
		kind, length := t[0], int(t[1])
		if kind == optionNone {
			t = t[1:]
			continue
		}
		if kind == optionEnd || length < 2 || length > len(t) {
			break
		}
		switch uint(kind)<<8 | uint(length) {
		case optionMSS<<8 | 4:
			mss = binary.BigEndian.Uint16(t[2:])
		case optionWScale<<8 | 3:
			scale = min(t[2], maxWScale)
		case optionSACK<<8 | 2:
			sack = true
		case optionTimes<<8 | 10:
			times, tsval = true, binary.BigEndian.Uint32(t[2:])
		}
		t = t[length:]
	}
	return SYNOptions{TSVal: tsval, MSS: mss, WScale: scale, SYNFlags: SYNFlags{SACK: sack, ECN: ecn, Timestamps: times}}
}

// SYNCookie makes of a SYN the SYN-ACK of the VIP, as the backend would agree that the cookie leads to. isn is the cookie, the
// sequence number of the SYN-ACK; o is what ReadSYN told of the same SYN, or less. mss is what the client is told, if it offers
// one itself: the largest segment that reaches the backend, in bytes. tsval is the time in milliseconds, of which the six lowest
// bits make room for the options byte.
//
// Window scale, SACK and ECN are agreed to only together with timestamps, see [SYNOptions.Byte]. The window is 65,535, the window
// scale 7. Data that came with the SYN is not acknowledged.
//
// mem[start:] begins with the frame that m was parsed from; Answerable has allowed the answer. The new frame begins at newStart,
// without headroom, and is newLen bytes long, never longer than the SYN without its padding: it has no option that the SYN has not.
func SYNCookie(mem []byte, start int, m *Meta, o SYNOptions, isn uint32, mss uint16, tsval uint32) (newStart, newLen int) {
	l3 := start + int(m.L3)
	ack := binary.BigEndian.Uint32(mem[start+int(m.L4)+4:]) + 1
	client := Source(mem[start:], m)
	swap(mem[start:start+6], mem[start+6:start+12])

	headers := ipv4Len
	if m.Flags&V6 != 0 {
		headers = ipv6Len
	}
	// The sum of the segment is taken from the numbers before they are written: reading them again takes longer.
	t, flags, length := mem[l3+headers:], uint8(SYN)|tcpACK, tcpLen
	sum := pseudoSum(client, m.Dst) + ProtoTCP + uint64(m.DstPort) + uint64(m.SrcPort) + uint64(isn) + uint64(ack) + cookieWindow
	if o.MSS != 0 {
		word := uint32(optionMSS<<24|4<<16) | uint32(mss)
		binary.BigEndian.PutUint32(t[length:], word)
		sum += uint64(word)
		length += 4
	}
	if o.Timestamps {
		first := uint32(optionNone<<24 | optionNone<<16 | optionTimes<<8 | 10)
		if o.SACK {
			first = optionSACK<<24 | 2<<16 | optionTimes<<8 | 10
		}
		tsval = tsval&^byteAll | uint32(o.Byte())
		times := (*[12]byte)(t[length:])
		binary.BigEndian.PutUint32(times[0:], first)
		binary.BigEndian.PutUint32(times[4:], tsval)
		binary.BigEndian.PutUint32(times[8:], o.TSVal)
		sum += uint64(first) + uint64(tsval) + uint64(o.TSVal)
		length += 12
		if o.WScale <= maxWScale {
			const word = optionNone<<24 | optionWScale<<16 | 3<<8 | cookieWScale
			binary.BigEndian.PutUint32(t[length:], word)
			sum += word
			length += 4
		}
		if o.ECN {
			flags |= tcpECE // and not CWR (RFC 3168, 6.1.1)
		}
	}
	control := uint64(length/4)<<12 | uint64(flags)
	sum += uint64(length) + control

	putHeader(mem[l3:l3+headers+length], m, 0, ProtoTCP, client)
	tcp := (*[tcpLen]byte)(t)
	binary.BigEndian.PutUint32(tcp[0:], uint32(m.DstPort)<<16|uint32(m.SrcPort))
	binary.BigEndian.PutUint32(tcp[4:], isn)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	binary.BigEndian.PutUint64(tcp[12:], control<<48|cookieWindow<<32|uint64(^fold(sum))<<16)
	return start, int(m.L3) + headers + length
}

// CarriesACK says whether a TCP segment may bring back a cookie: it acknowledges something, and is neither SYN nor reset. frame
// was parsed into m, Proto is TCP, and neither Later nor ICMPError is among the Flags.
func CarriesACK(frame []byte, m *Meta) bool {
	return frame[m.L4+13]&(uint8(SYN|RST)|tcpACK) == tcpACK
}

// ReadACK returns the numbers of a TCP segment that acknowledges something, see CarriesACK: its sequence number, what it
// acknowledges, and the timestamp that it returns, if hasTS. Of two timestamp options the first counts; options of a wrong length
// are passed over, and a malformed one ends the reading.
func ReadACK(frame []byte, m *Meta) (seq, ack, tsecr uint32, hasTS bool) {
	t := frame[m.L4:m.End]
	seq, ack = binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:])
	t = t[tcpLen : int(t[12]>>4)*4]
	// What nearly all segments look like (RFC 7323, appendix A).
	if len(t) == 12 && binary.BigEndian.Uint32(t) == optionNone<<24|optionNone<<16|optionTimes<<8|10 {
		return seq, ack, binary.BigEndian.Uint32(t[8:]), true
	}
	for len(t) >= 2 {
		kind, length := t[0], int(t[1])
		if kind == optionNone {
			t = t[1:]
			continue
		}
		if kind == optionEnd || length < 2 || length > len(t) {
			break
		}
		if kind == optionTimes && length == 10 {
			return seq, ack, binary.BigEndian.Uint32(t[6:]), true
		}
		t = t[length:]
	}
	return seq, ack, 0, false
}
