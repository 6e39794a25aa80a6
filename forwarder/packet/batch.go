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
	// The two words of the message that is hashed, see hash4, of each plain IPv4 packet, without its length; of others anything.
	addrs, last [scratchSize]uint64
	// The five words of each plain IPv6 packet, see hash6, likewise, one after the other; their hashes; and their indices.
	words6   [5][scratchSize]uint64
	hashes6  [scratchSize]uint64
	indices6 [scratchSize]uint8
	others   [scratchSize]uint8 // indices of packets that are neither
}

// ParseBatch is Parse for the frames of a batch, at most 64: it fills as many metas, and in hashes the Hash of each. It reports
// whether there are fragments among the packets that may go on. metas is as long as descs or longer, and hashes as long as 64 frames
// ask for.
//
// What most packets are is parsed in loops that call nothing: IPv4 without options and IPv6 without extension headers, whole, with TCP
// or UDP. Their hashes are computed together afterwards. All else, and all that is wrong, is Parse's.
func ParseBatch[D Desc](memory []byte, descs []D, key *Key, metas []Meta, hashes *[scratchSize]uint64, s *Scratch) (fragments bool) {
	descs = descs[:min(len(descs), scratchSize)]
	metas = metas[:len(descs)]
	others := parsePlain4(memory, descs, metas, s)
	if others < uint(len(descs)) {
		s.hashPlain4(key, hashes, len(descs))
	}
	if others > 0 {
		fragments = parseOthers(memory, descs, key, metas, hashes, s, others)
	}
	for i := range metas {
		metas[i].Hash = hashes[i]
	}
	return fragments
}

// parsePlain4 parses the plain IPv4 packets of a batch, but for their hashes, whose words it leaves in s, and puts the indices of all
// others on the list of s; it returns how many those are.
func parsePlain4[D Desc](memory []byte, descs []D, metas []Meta, s *Scratch) (others uint) {
	descs = descs[:min(len(descs), scratchSize)]
	metas = metas[:len(descs)]
	memory = memory[:len(memory):len(memory)]
	for i := range descs {
		d, m := desc(descs[i]), &metas[i]
		if d.Len-headers4TCP > math.MaxUint16-headers4TCP {
			goto other
		}
		{
			f := (*[headers4TCP]byte)(memory[d.Addr : d.Addr+headers4TCP : d.Addr+headers4TCP])
			if binary.LittleEndian.Uint32(f[12:])&plain4Mask != plain4 {
				goto other
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
			s.addrs[i] = binary.LittleEndian.Uint64(f[26:])
			proto := uint8(w1 >> 8)
			m.L3, m.L4, m.End = ethLen, ethLen+ipv4Len, uint16(end)
			m.Proto, m.Class, m.Reason = proto, uint8(w0>>8), None
			ports := binary.LittleEndian.Uint64(f[34:]) // and the four bytes behind them
			m.setPorts(uint32(ports))
			s.last[i] = uint64(uint32(ports)) | uint64(proto)<<32
			if proto == ProtoTCP {
				all := uint16(f[47])
				m.Flags = all & (FIN | SYN | RST) &^ (all >> 3 & SYN)
				if offset := uint32(f[46]) >> 2 &^ 3; offset >= tcpLen && ethLen+ipv4Len+offset <= end {
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
		s.others[others%scratchSize] = uint8(i)
		others++
	}
	return others
}

// parsePlain6 is parsePlain4 for the packets on the list of s, of so many, that are plain IPv6 packets; their words and indices are
// six of s. The list keeps the rest.
func parsePlain6[D Desc](memory []byte, descs []D, metas []Meta, s *Scratch, others uint) (six, rest uint) {
	metas = metas[:len(descs)]
	memory = memory[:len(memory):len(memory)]
	for _, i := range s.others[:others] {
		d, m := desc(descs[i]), &metas[i]
		if d.Len-headers6TCP > math.MaxUint16-headers6TCP {
			goto other
		}
		{
			f := (*[headers6TCP]byte)(memory[d.Addr : d.Addr+headers6TCP : d.Addr+headers6TCP])
			first := binary.LittleEndian.Uint32(f[12:])
			s0, s1 := binary.LittleEndian.Uint64(f[22:]), binary.LittleEndian.Uint64(f[30:])
			d0, d1 := binary.LittleEndian.Uint64(f[38:]), binary.LittleEndian.Uint64(f[46:])
			const l4 = ethLen + ipv6Len
			end := l4 + uint32(binary.BigEndian.Uint16(f[18:]))
			// What is special about addresses is Parse's, as in parseIPv6.
			if first&plain6Mask != plain6 || end > d.Len || bits.ReverseBytes64(s0)-1 >= multicast6-1 || d0 == 0 || s0 == d0 && s1 == d1 {
				goto other
			}
			ports, proto := binary.LittleEndian.Uint64(f[l4:]), f[20]
			if proto == ProtoTCP {
				all := uint16(f[l4+13])
				m.Flags = V6 | all&(FIN|SYN|RST)&^(all>>3&SYN)
				if offset := uint32(f[l4+12]) >> 2 &^ 3; offset < tcpLen || l4+offset > end {
					goto other
				}
			} else if proto == ProtoUDP {
				m.Flags = V6
				if length := uint32(bits.ReverseBytes16(uint16(ports >> 32))); length < udpLen || l4+length > end {
					goto other
				}
			} else {
				goto other
			}
			m.Dst.Hi, m.Dst.Lo = bits.ReverseBytes64(d0), bits.ReverseBytes64(d1)
			m.L3, m.L4, m.End = ethLen, l4, uint16(end)
			m.Proto, m.Class, m.Reason = proto, f[14]<<4|f[15]>>4, None
			m.setPorts(uint32(ports))
			k := six % scratchSize
			s.words6[0][k], s.words6[1][k], s.words6[2][k], s.words6[3][k] = s0, s1, d0, d1
			s.words6[4][k] = uint64(uint32(ports)) | uint64(proto)<<32
			s.indices6[k] = i
			six++
			continue
		}
	other:
		s.others[rest%scratchSize] = i
		rest++
	}
	return six, rest
}

// parseOthers is ParseBatch for the packets on the list of s, of so many.
func parseOthers[D Desc](memory []byte, descs []D, key *Key, metas []Meta, hashes *[scratchSize]uint64, s *Scratch, others uint) (fragments bool) {
	six, rest := parsePlain6(memory, descs, metas, s, others)
	if six > 0 {
		s.hashPlain6(key, int(six))
		for k, i := range s.indices6[:six] {
			hashes[i%scratchSize] = s.hashes6[k]
		}
	}
	for _, i := range s.others[:rest] {
		d, m := desc(descs[i]), &metas[i]
		Parse(memory[d.Addr:d.Addr+uint64(d.Len)], key, m)
		hashes[i%scratchSize] = m.Hash
		fragments = fragments || m.Flags&(First|Later) != 0 && m.Reason == None
	}
	return fragments
}

// setPorts sets the ports, given as they stand in the packet and were loaded little-endian: in one store.
func (m *Meta) setPorts(ports uint32) {
	ports = bits.RotateLeft32(bits.ReverseBytes32(ports), 16)
	m.SrcPort, m.DstPort = uint16(ports), uint16(ports>>16)
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
