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

// Words of a plain IPv4 frame as loaded little-endian.
const (
	plain4      = 0x45<<16 | 0x0008 // Ethernet type, and the first byte of a header without options
	plain4Mask  = 0xffffff
	fragment4   = 0xff3f // more-fragments flag and offset
	headers4TCP = ethLen + ipv4Len + tcpLen
)

// scratchSize is how many frames ParseBatch takes at most.
const scratchSize = 64

// Scratch is what ParseBatch works with. Its contents mean nothing between calls.
type Scratch struct {
	// The two words of the message that is hashed, see hash4, of each plain packet; of others anything.
	addrs, last [scratchSize]uint64
	others      [scratchSize]uint8 // indices of those
}

// ParseBatch is Parse for the frames of a batch, at most 64: it fills as many metas, and in hashes the Hash of each. It reports
// whether there are fragments among the packets that may go on. metas is as long as descs or longer, and hashes as long as 64 frames
// ask for.
//
// What most packets are is written out in its loop: IPv4 without options, whole, with TCP or UDP. Their hashes are computed together
// afterwards. All else, and all that is wrong, is Parse's.
func ParseBatch[D Desc](memory []byte, descs []D, key *Key, metas []Meta, hashes *[scratchSize]uint64, s *Scratch) (fragments bool) {
	descs = descs[:min(len(descs), scratchSize)]
	metas = metas[:len(descs)]
	others := 0
	for i := range descs {
		d, m := desc(descs[i]), &metas[i]
		if d.Len-headers4TCP > math.MaxUint16-headers4TCP {
			goto other
		}
		{
			f := (*[headers4TCP]byte)(memory[d.Addr:])
			w0 := binary.LittleEndian.Uint64(f[14:])
			w1, w2 := binary.LittleEndian.Uint64(f[22:]), binary.LittleEndian.Uint32(f[30:])
			end := ethLen + uint32(bits.ReverseBytes16(uint16(w0>>16)))
			if binary.LittleEndian.Uint32(f[12:])&plain4Mask != plain4 || w0>>48&fragment4 != 0 || end > d.Len ||
				!sumIsZero(sum20(w0, w1, w2)) {
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
	s.hashPlain(key, hashes, len(descs))
	if others > 0 {
		for _, i := range s.others[:others] {
			hashes[i%scratchSize] = metas[i].Hash
		}
	}
	for i := range metas {
		metas[i].Hash = hashes[i%scratchSize]
	}
	return fragments
}

// hashEach is hashPlain one by one.
func (s *Scratch) hashEach(key *Key, hashes *[scratchSize]uint64, n int) {
	for i := range n {
		hashes[i] = hash4(key, s.addrs[i], s.last[i]&math.MaxUint32, uint8(s.last[i]>>32))
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
// The outer header of IPv4 alone, and that of L2, are written out in its loop.
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
