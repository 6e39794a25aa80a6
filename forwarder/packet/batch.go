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
	// Of the plain packets, in their order: the two words of the message that is hashed, see hash4, the hash, and the index in the batch.
	addrs, last, hashes [scratchSize]uint64
	which               [scratchSize]uint8
}

// ParseBatch is Parse for the frames of a batch, at most 64: it fills as many metas, and in hashes the Hash of each. It reports
// whether there are fragments among the packets that may go on. metas and hashes are as long as descs or longer.
//
// What most packets are is written out in its loop: IPv4 without options, whole, with TCP or UDP. Their hashes are computed together
// afterwards. All else, and all that is wrong, is Parse's.
func ParseBatch[D Desc](memory []byte, descs []D, key *Key, metas []Meta, hashes []uint64, s *Scratch) (fragments bool) {
	metas, hashes = metas[:len(descs)], hashes[:len(descs)]
	plain := 0
	for i := range descs {
		d, m := desc(descs[i]), &metas[i]
		if d.Len-headers4TCP > math.MaxUint16-headers4TCP {
			goto other
		}
		{
			f := (*[headers4TCP]byte)(memory[d.Addr:])
			first, w0 := binary.LittleEndian.Uint64(f[12:]), binary.LittleEndian.Uint64(f[14:])
			w1, w2 := binary.LittleEndian.Uint64(f[22:]), binary.LittleEndian.Uint32(f[30:])
			end := ethLen + uint32(bits.ReverseBytes16(uint16(w0>>16)))
			if first&plain4Mask != plain4 || w0>>48&fragment4 != 0 || end > d.Len || !sumIsZero(sum20(w0, w1, w2)) {
				goto other
			}
			net, proto := uint8(w1>>32), uint8(w1>>8)
			if net-1 >= multicast4-1 || net == loopback4 || uint32(w1>>32) == w2 { // see Parse
				goto other
			}
			ports := binary.LittleEndian.Uint64(f[34:]) // and the four bytes behind them
			var flags uint16
			if proto == ProtoTCP {
				offset := uint32(f[46]>>4) * 4
				if offset < tcpLen || ethLen+ipv4Len+offset > end {
					goto other
				}
				all := uint16(f[47])
				flags = all & (FIN | SYN | RST) &^ (all >> 3 & SYN)
			} else {
				length := uint32(bits.ReverseBytes16(uint16(ports >> 32)))
				if proto != ProtoUDP || length < udpLen || ethLen+ipv4Len+length > end {
					goto other
				}
			}
			k := plain % scratchSize
			s.addrs[k], s.last[k], s.which[k] = w1>>32|uint64(w2)<<32, ports&math.MaxUint32|uint64(proto)<<32|13<<56, uint8(i)
			plain++
			m.Dst.Hi, m.Dst.Lo = 0, mapped4|uint64(bits.ReverseBytes32(w2))
			m.SrcPort, m.DstPort = bits.ReverseBytes16(uint16(ports)), bits.ReverseBytes16(uint16(ports>>16))
			m.L3, m.L4, m.End, m.Flags = ethLen, ethLen+ipv4Len, uint16(end), flags
			m.Proto, m.Class, m.Reason = proto, uint8(w0>>8), None
			continue
		}
	other:
		Parse(memory[d.Addr:d.Addr+uint64(d.Len)], key, m)
		hashes[i] = m.Hash
		fragments = fragments || m.Flags&(First|Later) != 0 && m.Reason == None
	}
	s.hashPlain(key, plain)
	for k, i := range s.which[:plain] {
		hash := s.hashes[k]
		metas[i].Hash, hashes[i] = hash, hash
	}
	return fragments
}

// hashEach is hashPlain one by one.
func (s *Scratch) hashEach(key *Key, n int) {
	for k := range n {
		s.hashes[k] = hash4(key, s.addrs[k], s.last[k]&math.MaxUint32, uint8(s.last[k]>>32))
	}
}

// ApplyBatch is [Encap.Apply] for the packets of a batch that which names: packet which[k], received as descs[which[k]] and parsed into
// metas[which[k]], gets the header encaps[k], and out[k] becomes the new frame. Where encaps[k] is nil, nothing is done. encaps and
// out are as long as which.
//
// The outer header of IPv4 alone, and that of L2, are written out in its loop.
func ApplyBatch[D Desc](memory []byte, descs []D, metas []Meta, which []uint8, encaps []*Encap, out []D) {
	encaps, out = encaps[:len(which)], out[:len(which)]
	for k, i := range which {
		e := encaps[k]
		if e == nil {
			continue
		}
		m := &metas[i]
		start, inner := int(desc(descs[i]).Addr)+int(m.L3), uint32(m.End)-uint32(m.L3)
		switch {
		case e.overhead == ipv4Len && e.options == 0:
			f := (*[ethLen + ipv4Len]byte)(memory[start-(ethLen+ipv4Len):])
			length := ipv4Len + inner
			sum := uint32(e.sum) + uint32(m.Class) + length + uint32(innerProto(m.Flags))
			copy(f[:12], e.macs[:])
			binary.BigEndian.PutUint16(f[12:], typeIPv4)
			binary.BigEndian.PutUint64(f[ethLen:], (ipv4First|uint64(m.Class)<<16|uint64(length))<<32|ipv4DontFragment)
			binary.BigEndian.PutUint32(f[ethLen+8:], hopLimit<<24|uint32(innerProto(m.Flags))<<16|uint32(checksum(sum)))
			copy(f[ethLen+12:], e.addrs[:8])
			out[k] = D(desc{Addr: uint64(start - (ethLen + ipv4Len)), Len: ethLen + length})
		case e.overhead == 0 && e.options == 0:
			copy(memory[start-ethLen:][:12], e.macs[:])
			out[k] = D(desc{Addr: uint64(start - ethLen), Len: ethLen + inner})
		default:
			at, length := e.Apply(memory, start-int(m.L3), m)
			out[k] = D(desc{Addr: uint64(at), Len: uint32(length)})
		}
	}
}
