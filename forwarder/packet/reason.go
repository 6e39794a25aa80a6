package packet

import "fmt"

// Reason says why a packet was not forwarded. It is the one list of reasons there is: counters, metrics, logs, the
// command line and the documentation all use its names. Names are stable; new reasons are added before NumReasons.
type Reason uint8

// The order is the order in which a packet meets the checks, but for those from NoSocket on, which the XDP program counts
// before any worker sees the packet. From SourceLimit on the packet had a service.
const (
	None            Reason = iota // no reason: the packet was forwarded or answered
	Truncated                     // truncated
	NotIP                         // not_ip
	BadIPHeader                   // bad_ip_header
	BadIHL                        // bad_ihl
	BadLength                     // bad_length
	BadChecksum                   // bad_checksum
	Land                          // land
	SourceLoopback                // source_loopback
	SourceMulticast               // source_multicast
	SourceInvalid                 // source_invalid
	ExtensionHeader               // extension_header
	RoutingHeader                 // routing_header
	BadFragment                   // bad_fragment
	TinyFragment                  // tiny_fragment
	Protocol                      // protocol
	BadTransport                  // bad_transport
	ICMP                          // icmp
	BadICMP                       // bad_icmp
	NotVIP                        // not_vip
	SourceVIP                     // source_vip
	NoService                     // no_service
	EchoLimit                     // echo_limit
	FragmentOverlap               // fragment_overlap
	FragmentUnknown               // fragment_unknown
	SourceLimit                   // source_limit
	ServiceLimit                  // service_limit
	NodeLimit                     // node_limit
	Challenged                    // challenged
	ChallengeAnswer               // challenge_answer
	Unproved                      // unproved
	NoBackend                     // no_backend
	BackendDown                   // backend_down
	NoRoute                       // no_route
	NoNeighbour                   // no_neighbour
	TTLExpired                    // ttl_expired
	TooBig                        // too_big
	TxFull                        // tx_full
	EgressDown                    // egress_down
	Internal                      // internal
	NoSocket                      // no_socket
	NoExit                        // no_exit
	NoDaemon                      // no_daemon
	Denied                        // denied
	Banned                        // banned
	Shed                          // shed
	Loop                          // loop
	NumReasons                    // how many there are, None included: the length of an array indexed by Reason
)

var reasons = [NumReasons]struct{ name, sentence string }{
	None:            {"none", "The packet was forwarded or answered."},
	Truncated:       {"truncated", "The frame ends before the packet that its headers announce."},
	NotIP:           {"not_ip", "The frame carries neither IPv4 nor IPv6, directly in Ethernet or behind one 802.1Q tag."},
	BadIPHeader:     {"bad_ip_header", "The version in the IP header is not that of the Ethernet type, or an IPv6 address is an IPv4-mapped one."},
	BadIHL:          {"bad_ihl", "The IPv4 header announces fewer than the 20 bytes that it must have."},
	BadLength:       {"bad_length", "The IPv4 packet announces a length shorter than its header."},
	BadChecksum:     {"bad_checksum", "The IPv4 header checksum is wrong."},
	BadTransport:    {"bad_transport", "The packet is too short for its TCP or UDP header, or a length in that header is impossible."},
	Land:            {"land", "Source and destination address are the same: a land attack."},
	SourceLoopback:  {"source_loopback", "The source is a loopback address, which no network carries."},
	SourceMulticast: {"source_multicast", "The source is a multicast address, which no host has."},
	SourceInvalid:   {"source_invalid", "The source is an unspecified, reserved or broadcast address, which no host has."},
	ExtensionHeader: {"extension_header", "The IPv6 extension headers are too many, too long, cut short or of a kind that no service takes."},
	RoutingHeader:   {"routing_header", "The packet has an IPv6 routing header of type 0 (RFC 5095) or with segments left: it wants to be sent on to elsewhere."},
	BadFragment:     {"bad_fragment", "The fragment has an impossible length or place in its datagram, or is one of an ICMP message."},
	TinyFragment:    {"tiny_fragment", "The fragment is so small, or begins so early, that it could hide a part of the transport header (RFC 1858, RFC 3128, RFC 7112)."},
	Protocol:        {"protocol", "The transport protocol is neither TCP nor UDP."},
	ICMP:            {"icmp", "The packet is an ICMP message that is neither an echo request nor an error about a packet."},
	BadICMP:         {"bad_icmp", "The ICMP message is cut short, or the packet that it is about is not one that the VIP sent."},
	NotVIP:          {"not_vip", "The destination address is not a virtual IP of the current configuration, and the packet is no reply of a NAT backend."},
	SourceVIP:       {"source_vip", "The source is a virtual IP, which opens no connections."},
	NoService:       {"no_service", "No service takes this protocol and port of the virtual IP."},
	EchoLimit:       {"echo_limit", "The worker has answered as many echo requests as it does in a second."},
	FragmentOverlap: {"fragment_overlap", "The fragment overlaps another one of its datagram (RFC 5722), or the datagram has too many."},
	FragmentUnknown: {"fragment_unknown", "The first fragment of the datagram, which has the ports, did not come in time."},
	SourceLimit:     {"source_limit", "Its source sends more than its limit allows."},
	ServiceLimit:    {"service_limit", "The service takes no more than its limit for now."},
	NodeLimit:       {"node_limit", "The node takes no more than its limit for now."},
	Challenged:      {"challenged", "A SYN of a source that has not proved its address was answered with a challenge, which a client that exists meets and then sends it again; or any SYN, with a cookie."},
	ChallengeAnswer: {"challenge_answer", "The reset that answers a challenge: it has proved its source, and goes no further."},
	Unproved:        {"unproved", "The service is defended, and takes no more packets for now of flows without a word whose client has not proved its address."},
	NoBackend:       {"no_backend", "No backend of the service takes traffic now."},
	BackendDown:     {"backend_down", "The flow's backend is down, or a drain of it is over, and its flows are ended; the client is told by a TCP reset."},
	NoRoute:         {"no_route", "The node has no usable route to the chosen backend, or for the reply of one."},
	NoNeighbour:     {"no_neighbour", "The next hop has not answered ARP or neighbour discovery."},
	TTLExpired:      {"ttl_expired", "The TTL or hop limit was used up; forwarding by NAT counts as a hop."},
	TooBig:          {"too_big", "The packet, with the outer headers that it would get, exceeds the MTU of its way."},
	TxFull:          {"tx_full", "The transmit ring of the outgoing queue was full."},
	EgressDown:      {"egress_down", "The outgoing interface is down or gone."},
	Internal:        {"internal", "A fault inside the worker dropped the packet's batch; the log has the details."},
	NoSocket:        {"no_socket", "The receive queue had no AF_XDP socket when the packet arrived."},
	NoDaemon:        {"no_daemon", "No daemon ran, or its workers stood still, and the packet was not one that the fast path forwards then."},
	NoExit:          {"no_exit", "The interface that the fast path was to send the packet by was gone."},
	Denied:          {"denied", "The source is on a deny list."},
	Banned:          {"banned", "The source was far over its limit, and is dropped in the XDP program for a while."},
	Shed:            {"shed", "The workers cannot take all that comes, and its source has proved nothing: it is dropped in the XDP program."},
	Loop:            {"loop", "An encapsulated packet to a virtual IP came to this node itself, or came back to it."},
}

// Reasons returns every reason for which a packet may not be forwarded, in order: all of the list but None.
func Reasons() []Reason {
	all := make([]Reason, 0, NumReasons-1)
	for r := None + 1; r < NumReasons; r++ {
		all = append(all, r)
	}
	return all
}

// String returns the name of r in snake_case, as counters and logs spell it.
func (r Reason) String() string {
	if r >= NumReasons {
		return fmt.Sprintf("reason(%d)", uint8(r))
	}
	return reasons[r].name
}

// Sentence explains r to an operator in one sentence.
func (r Reason) Sentence() string {
	if r >= NumReasons {
		return fmt.Sprintf("Unknown reason %d.", uint8(r))
	}
	return reasons[r].sentence
}

// MarshalText returns the name of r, so that JSON values and map keys carry names. It fails for a value outside the
// list.
func (r Reason) MarshalText() ([]byte, error) {
	if r >= NumReasons {
		return nil, fmt.Errorf("marshal reason %d: not in the list; use a constant of package packet", uint8(r))
	}
	return []byte(reasons[r].name), nil
}

// UnmarshalText sets r to the reason of the given name. An unknown name, as from a newer peer, is an error and leaves r
// unchanged.
func (r *Reason) UnmarshalText(name []byte) error {
	for i := range reasons {
		if reasons[i].name == string(name) {
			*r = Reason(i)
			return nil
		}
	}
	return fmt.Errorf("unmarshal reason %q: no such reason; see packet.Reasons", name)
}
