package packet

// Sizes in bytes, and the Ethernet types that are parsed (IEEE 802 numbers).
const (
	ethLen  = 14 // destination, source, type; without an 802.1Q tag
	ipv4Len = 20 // without options
	ipv6Len = 40
	tcpLen  = 20 // without options
	udpLen  = 8

	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
)

// Protocol numbers (IANA "Protocol Numbers"), as in Meta.Proto.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// Bits of Meta.Flags. FIN, SYN and RST have the places they have in the TCP header.
const (
	FIN uint16 = 1 << 0 // the TCP FIN flag is set
	SYN uint16 = 1 << 1 // the TCP SYN flag is set and ACK is not: the first packet of a connection
	RST uint16 = 1 << 2 // the TCP RST flag is set
	// ICMPError marks an ICMP error about a flow: Hash, ports and Proto are those of the flow's packets to the VIP, while
	// Dst, the offsets and Class are those of the ICMP packet itself.
	ICMPError uint16 = 1 << 3
	Echo      uint16 = 1 << 4 // an ICMP or ICMPv6 echo request; it has neither ports nor hash
	First     uint16 = 1 << 5 // the first of several fragments of a datagram: it has ports and hash as a whole packet has
	// Later marks a further fragment: it has neither ports nor hash until SetPorts gives it some, and Proto is what its
	// headers tell.
	Later uint16 = 1 << 6
	V6    uint16 = 1 << 7 // the packet is IPv6; the bits above are the caller's, and zero after Parse
)

// Meta is what the stages of the worker need to know of a packet. It is filled by Parse and holds no pointers; a batch
// of them is an array that the worker owns.
//
// Reason decides which fields mean something. With Truncated, NotIP, BadIPHeader, BadIHL, BadLength and BadChecksum no
// other field does. With the other reasons that Parse gives Dst, the offsets, Proto and Class do, and of Flags V6. With None
// all do, but for Hash and the ports if Flags have Echo or Later. Fields that mean nothing are zero.
type Meta struct {
	Hash    uint64 // FlowHash of the packet
	Dst     Addr   // destination address
	SrcPort uint16 // host order
	DstPort uint16 // host order
	L3      uint16 // offset of the IP header in the frame: 14, with an 802.1Q tag 18
	// L4 is the offset of what follows the IP header and the extension headers: the transport header, or the data of a Later
	// fragment; L3 < L4 ≤ End. Under ExtensionHeader, RoutingHeader and the fragment reasons, where reading came to an end.
	L4     uint16
	End    uint16   // offset one past the IP packet, at most the frame's length; what follows is Ethernet padding
	Flags  uint16   // FIN, SYN, RST, ICMPError, Echo, First, Later, V6
	Proto  uint8    // IPv4 protocol, or IPv6 next header: what is at L4; of an ICMPError what the flow is
	Class  uint8    // DSCP and ECN: the TOS byte of IPv4, the traffic class of IPv6
	Reason Reason   // None if the packet may go on
	_      [24]byte // to 64 bytes: the compiler reads a field of an element by one instruction then, else by three
}

// stop sets the fields that are not yet set when a packet with a good IP header cannot go on.
func (m *Meta) stop(r Reason, flags uint16) {
	m.Hash, m.SrcPort, m.DstPort, m.Flags, m.Reason = 0, 0, 0, flags, r
}
