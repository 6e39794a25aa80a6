package packet

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// Desc says where a frame lies in packet memory: the offset of its first byte, and its length in bytes. It has the form of the
// descriptors of AF_XDP's rings, so that those go as they are.
type Desc interface {
	~struct {
		Addr    uint64
		Len     uint32
		Options uint32
	}
}

// desc is any Desc.
type desc struct {
	Addr    uint64
	Len     uint32
	Options uint32
}

// Words of plain frames as loaded little-endian.
const (
	plain4      = 0x45<<16 | 0x0008 // Ethernet type, and the first byte of a header without options
	plain4Mask  = 0xffffff
	fragment4   = 0xff3f            // more-fragments flag and offset
	plain6      = 0x60<<16 | 0xdd86 // Ethernet type and version
	plain6Mask  = 0xf0ffff
	headers4TCP = ethLen + ipv4Len + tcpLen
	headers6TCP = ethLen + ipv6Len + tcpLen
)

// scratchSize is how many frames ParseBatch takes at most.
const scratchSize = 64

// Scratch is what ParseBatch works with. Its contents mean nothing between calls.
type Scratch struct {
	// The two words of the message that is hashed, see hash4, of each plain IPv4 packet; of others anything.
	addrs, last [scratchSize]uint64
	// The five words of each plain IPv6 packet, see hash6, one after the other; their hashes; and their indices.
	words6   [5][scratchSize]uint64
	hashes6  [scratchSize]uint64
	indices6 [scratchSize]uint8
	others   [scratchSize]uint8 // indices of packets that are neither
}

// ParseBatch is Parse for the frames of a batch, at most 64: it fills as many metas, and in hashes the Hash of each. It reports
// whether there are fragments among the packets that may go on. metas is as long as descs or longer, and hashes as long as 64 frames
// ask for.
//
// What most packets are is written out in its loop: IPv4 without options and IPv6 without extension headers, whole, with TCP or UDP.
// Their hashes are computed together afterwards. All else, and all that is wrong, is Parse's.
func ParseBatch[D Desc](memory []byte, descs []D, key *Key, metas []Meta, hashes *[scratchSize]uint64, s *Scratch) (fragments bool) {
	descs = descs[:min(len(descs), scratchSize)]
	metas = metas[:len(descs)]
	others, six := 0, 0
	for i := range descs {
		d, m := desc(descs[i]), &metas[i]
		if d.Len-headers4TCP > math.MaxUint16-headers4TCP {
			goto other
		}
		{
			f := (*[headers4TCP]byte)(memory[d.Addr:])
			first := binary.LittleEndian.Uint32(f[12:])
			if first&plain4Mask != plain4 {
				if first&plain6Mask != plain6 || d.Len < headers6TCP {
					goto other
				}
				if !s.parsePlain6((*[headers6TCP]byte)(memory[d.Addr:]), d.Len, m, six%scratchSize) {
					goto other
				}
				s.indices6[six%scratchSize] = uint8(i)
				six++
				continue
			}
			w0 := binary.LittleEndian.Uint64(f[14:])
			w1, w2 := binary.LittleEndian.Uint64(f[22:]), binary.LittleEndian.Uint32(f[30:])
			end := ethLen + uint32(bits.ReverseBytes16(uint16(w0>>16)))
			if w0>>48&fragment4 != 0 || end > d.Len || !sumIsZero(sum20(w0, w1, w2)) {
				goto other
			}
			// What is special about addresses is Parse's: one comparison finds both ends of the source addresses.
			if net := uint8(w1 >> 32); net-1 >= multicast4-1 || net == loopback4 || uint32(w1>>32) == w2 {
				goto other
			}
			m.Dst.Hi, m.Dst.Lo = 0, mapped4|uint64(bits.ReverseBytes32(w2))
			s.addrs[i] = w1>>32 | uint64(w2)<<32
			proto := uint8(w1 >> 8)
			m.L3, m.L4, m.End = ethLen, ethLen+ipv4Len, uint16(end)
			m.Proto, m.Class, m.Reason = proto, uint8(w0>>8), None
			ports := binary.LittleEndian.Uint64(f[34:]) // and the four bytes behind them
			m.SrcPort, m.DstPort = bits.ReverseBytes16(uint16(ports)), bits.ReverseBytes16(uint16(ports>>16))
			s.last[i] = ports&math.MaxUint32 | uint64(proto)<<32 | 13<<56
			if proto == ProtoTCP {
				all := uint16(f[47])
				m.Flags = all & (FIN | SYN | RST) &^ (all >> 3 & SYN)
				if offset := uint32(f[46]>>4) * 4; offset >= tcpLen && ethLen+ipv4Len+offset <= end {
					continue
				}
			} else if proto == ProtoUDP {
				m.Flags = 0
				if length := uint32(bits.ReverseBytes16(uint16(ports >> 32))); length >= udpLen && ethLen+ipv4Len+length <= end {
					continue
				}
			}
		}
	other:
		Parse(memory[d.Addr:d.Addr+uint64(d.Len)], key, m)
		s.others[others%scratchSize] = uint8(i)
		others++
		fragments = fragments || m.Flags&(First|Later) != 0 && m.Reason == None
	}
	if six+others < len(descs) {
		s.hashPlain4(key, hashes, len(descs))
	}
	if six > 0 {
		s.hashPlain6(key, six)
		for k, i := range s.indices6[:six] {
			hashes[i%scratchSize] = s.hashes6[k]
		}
	}
	for _, i := range s.others[:others] {
		hashes[i%scratchSize] = metas[i].Hash
	}
	for i := range metas {
		metas[i].Hash = hashes[i%scratchSize]
	}
	return fragments
}

// parsePlain6 is the part of ParseBatch for IPv6: it fills m, and the words that are hashed under index k. It reports false, having
// filled nothing that stays, if the packet is not a plain one.
func (s *Scratch) parsePlain6(f *[headers6TCP]byte, frameLen uint32, m *Meta, k int) bool {
	s0, s1 := binary.LittleEndian.Uint64(f[22:]), binary.LittleEndian.Uint64(f[30:])
	d0, d1 := binary.LittleEndian.Uint64(f[38:]), binary.LittleEndian.Uint64(f[46:])
	const l4 = ethLen + ipv6Len
	end := l4 + uint32(binary.BigEndian.Uint16(f[18:]))
	high := bits.ReverseBytes64(s0)
	// What is special about addresses is Parse's, as in parseIPv6.
	if end > frameLen || high-1 >= multicast6-1 || d0 == 0 || s0 == d0 && s1 == d1 {
		return false
	}
	ports, proto := binary.LittleEndian.Uint64(f[l4:]), f[20]
	switch proto {
	case ProtoTCP:
		all := uint16(f[l4+13])
		m.Flags = V6 | all&(FIN|SYN|RST)&^(all>>3&SYN)
		if offset := uint32(f[l4+12]>>4) * 4; offset < tcpLen || l4+offset > end {
			return false
		}
	case ProtoUDP:
		m.Flags = V6
		if length := uint32(bits.ReverseBytes16(uint16(ports >> 32))); length < udpLen || l4+length > end {
			return false
		}
	default:
		return false
	}
	m.Dst.Hi, m.Dst.Lo = bits.ReverseBytes64(d0), bits.ReverseBytes64(d1)
	m.L3, m.L4, m.End = ethLen, l4, uint16(end)
	m.Proto, m.Class, m.Reason = proto, f[14]<<4|f[15]>>4, None
	m.SrcPort, m.DstPort = bits.ReverseBytes16(uint16(ports)), bits.ReverseBytes16(uint16(ports>>16))
	s.words6[0][k], s.words6[1][k], s.words6[2][k], s.words6[3][k] = s0, s1, d0, d1
	s.words6[4][k] = ports&math.MaxUint32 | uint64(proto)<<32 | 37<<56
	return true
}

// hashEach4 is hashPlain4 one by one.
func (s *Scratch) hashEach4(key *Key, hashes *[scratchSize]uint64, n int) {
	for i := range n {
		hashes[i] = hash4(key, s.addrs[i], s.last[i]&math.MaxUint32, uint8(s.last[i]>>32))
	}
}

// hashEach6 is hashPlain6 one by one.
func (s *Scratch) hashEach6(key *Key, n int) {
	for k := range n {
		w := &s.words6
		s.hashes6[k] = hash6(key, w[0][k], w[1][k], w[2][k], w[3][k], w[4][k]&math.MaxUint32, uint8(w[4][k]>>32))
	}
}

// Departure is a packet that is to be given a header: its IP packet begins at Start in packet memory, Length, Flags and Class are what
// its Meta, that with the number Index in the batch, says. Without an Encap there is nothing to be done.
type Departure struct {
	Encap  *Encap
	Start  uint64
	Length uint16 // Meta.End - Meta.L3
	Flags  uint16
	Class  uint8
	Index  uint8
	_      [10]byte // to 32 bytes, as Meta
}

// ApplyBatch is [Encap.Apply] for the packets of a batch: out[k], of as many as there are departures, becomes the new frame of the k-th.
//
// Outer headers that are IP alone, and that of L2, are written out in its loop.
func ApplyBatch[D Desc](memory []byte, metas []Meta, departures []Departure, out []D) {
	out = out[:len(departures)]
	for k := range departures {
		p := &departures[k]
		e := p.Encap
		if e == nil {
			continue
		}
		switch {
		case e.overhead == ipv4Len && e.options == 0:
			start, length, proto := p.Start-(ethLen+ipv4Len), ipv4Len+uint32(p.Length), innerProto(p.Flags)
			f := (*[ethLen + ipv4Len]byte)(memory[start:])
			sum := checksum(uint32(e.sum) + uint32(p.Class) + length + uint32(proto))
			// In little-endian words, since of big-endian ones with constants in them the compiler makes single bytes.
			macs, addrs := binary.LittleEndian.Uint64(e.macs[:]), binary.LittleEndian.Uint64(e.addrs[:])
			binary.LittleEndian.PutUint64(f[0:], macs)
			binary.LittleEndian.PutUint32(f[8:], binary.LittleEndian.Uint32(e.macs[8:]))
			binary.LittleEndian.PutUint64(f[12:], plain4|uint64(p.Class)<<24|uint64(bits.ReverseBytes16(uint16(length)))<<32)
			binary.LittleEndian.PutUint64(f[18:], // the identification once more
				ipv4DontFragment>>8<<16|hopLimit<<32|uint64(proto)<<40|uint64(bits.ReverseBytes16(sum))<<48)
			binary.LittleEndian.PutUint64(f[26:], addrs)
			out[k] = D(desc{Addr: start, Len: ethLen + length})
		case e.overhead == ipv6Len && e.options == 0:
			start, class := p.Start-(ethLen+ipv6Len), uint64(p.Class)
			f := (*[ethLen + ipv6Len]byte)(memory[start:])
			binary.LittleEndian.PutUint64(f[0:], binary.LittleEndian.Uint64(e.macs[:]))
			binary.LittleEndian.PutUint32(f[8:], binary.LittleEndian.Uint32(e.macs[8:]))
			binary.LittleEndian.PutUint64(f[12:], plain6|class>>4<<16|class&0xf<<28|uint64(bits.ReverseBytes16(p.Length))<<48)
			binary.LittleEndian.PutUint16(f[20:], uint16(innerProto(p.Flags))|hopLimit<<8)
			copy(f[22:], e.addrs[:])
			out[k] = D(desc{Addr: start, Len: ethLen + ipv6Len + uint32(p.Length)})
		case e.overhead == 0 && e.options == 0:
			start := p.Start - ethLen
			copy((*[12]byte)(memory[start:])[:], e.macs[:])
			out[k] = D(desc{Addr: start, Len: ethLen + uint32(p.Length)})
		default:
			m := &metas[p.Index]
			start, length := e.Apply(memory, int(p.Start)-int(m.L3), m)
			out[k] = D(desc{Addr: uint64(start), Len: uint32(length)})
		}
	}
}
