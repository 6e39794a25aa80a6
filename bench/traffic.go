package bench

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Protocols of [Traffic], as in the IP header.
const (
	TCP = 6
	UDP = 17
)

// TCP flags of [Traffic], as in the TCP header (RFC 9293, 3.1). They can be or-ed.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Traffic describes what a [Generator] sends: packets to one address and port, from flows taken in turn.
type Traffic struct {
	SrcMAC, DstMAC net.HardwareAddr

	// Source is where the flows come from: the source address of flow i is the one numbered i modulo the size of the
	// prefix (of which at most the last 2³² addresses of an IPv6 prefix are used), so /32 or /128 is one fixed address
	// and anything larger is spoofed. See [Traffic.Flow] for the ports.
	Source netip.Prefix
	Target netip.AddrPort // of the same family

	Protocol uint8  // TCP or UDP
	Flags    uint8  // of every TCP packet, such as SYN or ACK
	Flows    uint64 // distinct flows; at most 64,512 for each source address; 0 is 1

	// FragmentOffset makes IPv4 packets later fragments of datagrams whose first never comes: where in its datagram each
	// begins, in bytes, a multiple of 8 below 64 KiB. 0 is whole packets.
	FragmentOffset int

	// Size is the length of the frames in bytes, from the Ethernet header on without the checksum. The payload is zeroes.
	// 0 is the least: 60 bytes for IPv4, 80 for IPv6.
	Size int
	// Mix are lengths as in Size, which the packets have in turn, at most 16 of them, in place of Size; see [IMIX].
	Mix []int
	// Stamp makes the payload begin with the time at which the packet was made, for a [Stopwatch]. For UDP over IPv4.
	Stamp bool

	Rate uint64 // packets a second; 0 is as fast as the kernel can
	// Smooth paces each packet by itself, in the kernel, instead of bursts: packets come at most some microseconds late, and no
	// more than 64 at once. It keeps the core busy, whatever the rate.
	Smooth bool
	// CPUs are the cores that the generator may run on, and with it the receiving side of a veth pair up to the XDP program
	// of the peer. Empty: any.
	CPUs []int

	Count    uint64        // packets in all; 0: until Duration is over
	Duration time.Duration // 0: until Count is reached. One of the two is needed.
}

// IMIX is the simple Internet mix: seven small frames, four of middle size, one large one.
var IMIX = []int{64, 594, 64, 64, 594, 64, 1514, 64, 594, 64, 64, 594}

const (
	firstPort     = 1024
	portsOfSource = 1<<16 - firstPort

	etherLen = 14
	ip4Len   = 20
	ip6Len   = 40
	leastIP4 = 60
	leastIP6 = 80
	stampLen = 16 // the time and its complement

	mostSmooth = 100_000_000 // packets a second

	// At full rate one call of the kernel's test run sends many.
	mostPerCall = 4 << 20
	// Smoothly paced, the kernel runs the program for each packet and for each moment at which none is due: so often in a call,
	// some tenths of a second.
	mostLooks = 2 << 20
	mostSizes = 16 // MOST_SIZES in livegen.c
	// A paced generator wakes up at least this far apart, and sends what has become due in one burst.
	paceStep = 2 * time.Millisecond
	// What is due for longer is not sent any more.
	mostLate = 5 * time.Millisecond
	// For so long a generator tries again when the kernel has run out of page pools.
	mostStuck = 5 * time.Second
)

// Flow returns the source address and port of the flow with this number, 0 to Flows - 1.
func (t *Traffic) Flow(i uint64) netip.AddrPort {
	bits := t.hostBits()
	a := t.Source.Masked().Addr().As16()
	binary.BigEndian.PutUint32(a[12:], binary.BigEndian.Uint32(a[12:])+uint32(i&(1<<bits-1)))
	addr := netip.AddrFrom16(a)
	if t.Source.Addr().Is4() {
		addr = addr.Unmap()
	}
	return netip.AddrPortFrom(addr, uint16(firstPort+i>>bits))
}

// hostBits is the binary logarithm of the number of source addresses.
func (t *Traffic) hostBits() int {
	return min(t.Source.Addr().BitLen()-t.Source.Bits(), 32)
}

// complete fills in the defaults and refuses what cannot be sent.
func (t *Traffic) complete() error {
	switch {
	case len(t.SrcMAC) != 6 || len(t.DstMAC) != 6:
		return fmt.Errorf("MACs %q and %q: both must have 6 bytes", t.SrcMAC, t.DstMAC)
	case !t.Source.IsValid() || !t.Target.Addr().IsValid() || t.Source.Addr().Is4In6() || t.Target.Addr().Is4In6():
		return fmt.Errorf("source %s, target %s: both are needed, as plain IPv4 or IPv6", t.Source, t.Target)
	case t.Source.Addr().Is4() != t.Target.Addr().Is4():
		return fmt.Errorf("source %s, target %s: they must be of one family", t.Source, t.Target)
	case t.Protocol != TCP && t.Protocol != UDP:
		return fmt.Errorf("protocol %d: must be TCP (6) or UDP (17)", t.Protocol)
	case t.Protocol == UDP && t.Flags != 0:
		return fmt.Errorf("TCP flags %#x: UDP has none", t.Flags)
	case t.FragmentOffset != 0 && (t.Source.Addr().Is6() || t.FragmentOffset%8 != 0 || t.FragmentOffset < 0 || t.FragmentOffset >= 1<<16):
		return fmt.Errorf("fragments at byte %d, of %s: must be a multiple of 8 below 65536, and IPv4", t.FragmentOffset, t.Source)
	case t.Count == 0 && t.Duration <= 0:
		return fmt.Errorf("neither a count nor a duration: traffic must have an end")
	}
	if t.Flows == 0 {
		t.Flows = 1
	}
	if most := uint64(portsOfSource) << t.hostBits(); t.Flows > most {
		return fmt.Errorf("%d flows: %s has addresses and ports for %d", t.Flows, t.Source, most)
	}
	least := leastIP6
	if t.Source.Addr().Is4() {
		least = leastIP4
	}
	if t.Stamp {
		if t.Protocol != UDP || !t.Source.Addr().Is4() || t.FragmentOffset != 0 {
			return fmt.Errorf("stamps in protocol %d of %s: are for whole packets of UDP over IPv4", t.Protocol, t.Source)
		}
		least = max(least, etherLen+ip4Len+8+stampLen)
	}
	if t.Smooth && (t.Rate == 0 || t.Rate > mostSmooth) {
		return fmt.Errorf("%d packets a second, smoothly: must be 1 to %d", t.Rate, mostSmooth)
	}
	if t.Size == 0 {
		t.Size = least
	}
	if len(t.Mix) > mostSizes {
		return fmt.Errorf("a mix of %d sizes: must be at most %d", len(t.Mix), mostSizes)
	}
	for _, size := range t.sizes() {
		if size < least || size > 1<<16-1 {
			return fmt.Errorf("frames of %d bytes: must be %d to 65535", size, least)
		}
	}
	return nil
}

// sizes are the lengths that packets have in turn.
func (t *Traffic) sizes() []int {
	if len(t.Mix) > 0 {
		return t.Mix
	}
	return []int{t.Size}
}

// due returns how many frames to send in the next call, or how long to wait before asking again. Neither means the end.
func (t *Traffic) due(sent uint64, elapsed time.Duration) (n uint64, wait time.Duration) {
	n = mostPerCall
	if t.Count > 0 {
		n = min(n, t.Count-sent)
	}
	if t.Rate == 0 || t.Smooth || n == 0 {
		return n, 0
	}
	rate := float64(t.Rate)
	if due := uint64(elapsed.Seconds() * rate); due > sent {
		return min(n, due-sent), 0
	}
	next := time.Duration(float64(sent+1) / rate * float64(time.Second))
	return 0, max(next-elapsed, paceStep)
}

// late is the time by which n frames that are due have to be put off, so that the first has been due for mostLate and no longer.
// A single one never is.
func (t *Traffic) late(n uint64) time.Duration {
	if t.Rate == 0 || t.Smooth || n == 0 {
		return 0
	}
	return max(time.Duration(float64(n-1)/float64(t.Rate)*float64(time.Second))-mostLate, 0)
}

// template makes a frame of a size whose changing parts are zero: the last four bytes of the source address, the source port, and
// the checksums. It returns the sums that these are completed from: of the IPv4 header, and of pseudo header, transport
// header and payload.
func (t *Traffic) template(size int) (frame []byte, ipSum, transportSum uint32) {
	frame = make([]byte, size)
	copy(frame, t.DstMAC)
	copy(frame[6:], t.SrcMAC)
	src, dst := t.Source.Masked().Addr().AsSlice(), t.Target.Addr().AsSlice()
	clear(src[len(src)-4:])

	ip, transport := frame[etherLen:], frame[etherLen+ip4Len:]
	if t.Source.Addr().Is4() {
		frame[12], frame[13] = 0x08, 0x00
		ip[0] = 0x45
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		ip[6] = 0x40 // do not fragment
		if t.FragmentOffset > 0 {
			binary.BigEndian.PutUint16(ip[6:], 0x2000|uint16(t.FragmentOffset/8)) // more follow
		}
		ip[8] = 64
		ip[9] = t.Protocol
		copy(ip[12:], src)
		copy(ip[16:], dst)
		ipSum = sum(0, ip[:ip4Len])
	} else {
		transport = frame[etherLen+ip6Len:]
		frame[12], frame[13] = 0x86, 0xdd
		ip[0] = 0x60
		binary.BigEndian.PutUint16(ip[4:], uint16(len(transport)))
		ip[6] = t.Protocol
		ip[7] = 64
		copy(ip[8:], src)
		copy(ip[24:], dst)
	}

	binary.BigEndian.PutUint16(transport[2:], t.Target.Port())
	if t.Protocol == UDP {
		binary.BigEndian.PutUint16(transport[4:], uint16(len(transport)))
	} else {
		binary.BigEndian.PutUint32(transport[4:], 1) // sequence number
		if t.Flags&ACK != 0 {
			binary.BigEndian.PutUint32(transport[8:], 1)
		}
		transport[12] = 5 << 4 // length of the header in words
		transport[13] = t.Flags
		binary.BigEndian.PutUint16(transport[14:], 0xffff)
	}
	transportSum = sum(0, src)
	transportSum = sum(transportSum, dst)
	transportSum = sum(transportSum, []byte{0, t.Protocol, byte(len(transport) >> 8), byte(len(transport))})
	transportSum = sum(transportSum, transport)
	return frame, ipSum, transportSum
}

// sum adds 16-bit words, taken little-endian, to a ones' complement sum (RFC 1071: the byte order does not matter as
// long as it is kept). The result has at most 17 bits, so that a few more can be added.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0]) | uint32(b[1])<<8
		s = s&0xffff + s>>16
	}
	if len(b) == 1 {
		s += uint32(b[0])
	}
	return s
}
