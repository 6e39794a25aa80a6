package packet

import (
	"encoding/binary"
	"net/netip"
)

// Addr is a 128-bit address as two big-endian halves: Hi holds the first eight bytes of the address, Lo the last eight.
// An IPv4 address is held as the IPv4-mapped IPv6 address ::ffff:a.b.c.d (RFC 4291, section 2.5.5.2), so that one
// comparable type serves both families; Parse refuses IPv6 packets that carry such an address on the wire.
type Addr struct{ Hi, Lo uint64 }

// mapped4 is the fixed part of the low half of an IPv4-mapped address.
const mapped4 = 0xffff << 32

// FromNetip returns a as an Addr. A zone is dropped, and the zero netip.Addr gives the zero Addr.
func FromNetip(a netip.Addr) Addr {
	b := a.As16()
	return Addr{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// Netip returns a as a netip.Addr: an IPv4 address if a is IPv4-mapped, else an IPv6 address without a zone.
func (a Addr) Netip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.Hi)
	binary.BigEndian.PutUint64(b[8:], a.Lo)
	return netip.AddrFrom16(b).Unmap()
}

// String returns the usual text of the address, IPv4 in dotted form.
func (a Addr) String() string { return a.Netip().String() }

// is4 says whether a is an IPv4 address.
func (a Addr) is4() bool { return a.Hi == 0 && a.Lo>>32 == 0xffff }
