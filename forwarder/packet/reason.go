package packet

import "fmt"

// Reason says why a packet was not forwarded. It is the one list of reasons there is: counters, metrics, logs, the
// command line and the documentation all use its names. Names are stable; new reasons are added before NumReasons.
type Reason uint8

// The order is the order in which a packet meets the checks, but for NoSocket, which the XDP program counts before
// any worker sees the packet.
const (
	None            Reason = iota // no reason: the packet was forwarded or answered
	Truncated                     // truncated
	NotIP                         // not_ip
	BadIPHeader                   // bad_ip_header
	BadChecksum                   // bad_checksum
	BadTransport                  // bad_transport
	Fragment                      // fragment
	ExtensionHeader               // extension_header
	Protocol                      // protocol
	ICMP                          // icmp
	BadICMP                       // bad_icmp
	NotVIP                        // not_vip
	NoService                     // no_service
	EchoLimit                     // echo_limit
	NoBackend                     // no_backend
	NoRoute                       // no_route
	NoNeighbour                   // no_neighbour
	TooBig                        // too_big
	TxFull                        // tx_full
	EgressDown                    // egress_down
	Internal                      // internal
	NoSocket                      // no_socket
	NumReasons                    // how many there are, None included: the length of an array indexed by Reason
)

var reasons = [NumReasons]struct{ name, sentence string }{
	None:            {"none", "The packet was forwarded or answered."},
	Truncated:       {"truncated", "The frame ends before the packet that its headers announce."},
	NotIP:           {"not_ip", "The frame carries neither IPv4 nor IPv6 directly in Ethernet."},
	BadIPHeader:     {"bad_ip_header", "The IP version, a length or an address in the IP header is impossible."},
	BadChecksum:     {"bad_checksum", "The IPv4 header checksum is wrong."},
	BadTransport:    {"bad_transport", "The packet is too short for its TCP or UDP header, or a length in that header is impossible."},
	Fragment:        {"fragment", "The packet is a fragment of a datagram, which carries no ports or only a part of the data."},
	ExtensionHeader: {"extension_header", "An IPv6 extension header precedes the transport header."},
	Protocol:        {"protocol", "The transport protocol is neither TCP nor UDP."},
	ICMP:            {"icmp", "The packet is an ICMP message that is neither an echo request nor an error about a packet."},
	BadICMP:         {"bad_icmp", "The ICMP message is cut short, or the packet that it is about is not one that the VIP sent."},
	NotVIP:          {"not_vip", "The destination address is not a virtual IP of the current configuration."},
	NoService:       {"no_service", "No service takes this protocol and port of the virtual IP."},
	EchoLimit:       {"echo_limit", "The worker has answered as many echo requests as it does in a second."},
	NoBackend:       {"no_backend", "No backend of the service takes traffic now."},
	NoRoute:         {"no_route", "The node has no usable route to the chosen backend."},
	NoNeighbour:     {"no_neighbour", "The next hop to the chosen backend has not answered ARP or neighbour discovery."},
	TooBig:          {"too_big", "The packet with its outer header exceeds the MTU towards the backend."},
	TxFull:          {"tx_full", "The transmit ring of the outgoing queue was full."},
	EgressDown:      {"egress_down", "The outgoing interface is down or gone."},
	Internal:        {"internal", "A fault inside the worker dropped the packet's batch; the log has the details."},
	NoSocket:        {"no_socket", "The receive queue had no AF_XDP socket when the packet arrived."},
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
