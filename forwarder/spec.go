package forwarder

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/maglev"
)

// IP protocol numbers of services.
const (
	protoTCP = 6
	protoUDP = 17
)

const (
	// MaxServices is how many services an engine takes.
	MaxServices = 1 << 14
	// MaxBackends is how many backends one service takes: the lookup table's entries are 16 bits wide.
	MaxBackends = 1 << 16
)

// Mode is how a packet is brought to its backend.
type Mode uint8

const (
	// L2 sets the destination MAC only; the backend is on a link of the node.
	L2 Mode = iota
	// IPIP puts an outer IPv4 or IPv6 header in front (RFC 2003, RFC 2473, RFC 4213).
	IPIP
	// GUE puts an outer IPv4 or IPv6 header and a UDP header in front (draft-ietf-intarea-gue, variant 1).
	GUE
	// NAT translates the destination address, and the port if the backend has another, and keeps the client's address. The
	// backend routes its replies through a node, which translates them back. The backend is of the VIP's family.
	NAT
)

func (m Mode) String() string {
	switch m {
	case IPIP:
		return "ipip"
	case GUE:
		return "gue"
	case NAT:
		return "nat"
	}
	return "l2"
}

// OnDown is what becomes of the flows of a backend that is down. A flow without a word is none of its.
type OnDown uint8

const (
	// OnDownKeep sends their packets to it all the same: nobody else could continue a TCP connection.
	OnDownKeep OnDown = iota
	// OnDownRehash gives the flow's next packet another backend.
	OnDownRehash
	// OnDownReset answers the flow's next packet with a TCP reset, so that the client connects again at once.
	OnDownReset
)

// ClampAuto in ServiceSpec.ClampMSS derives the MSS from the MTU.
const ClampAuto = -1

// PortRange is an inclusive range of ports, host order.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Spec is what an engine shall forward: all services, whole.
type Spec struct {
	Services []ServiceSpec
	Tunnel   Tunnel
	Limits   Limits
	// ACL is which sources are denied, over all services. The longest prefix that has a source decides; one that none has is
	// allowed.
	ACL []steer.Entry
}

// Tunnel is what the outer headers of IPIP and GUE have in common.
type Tunnel struct {
	Port     uint16 // of GUE
	Checksum bool   // of GUE
	// Fragment says that a packet which may be fragmented is, if it is too big with its outer headers; else it is dropped.
	Fragment bool
	// Source4 and Source6 are where outer sources are taken from, another one for each flow. The zero Prefix stands for the
	// address that the node's routing gives.
	Source4, Source6 netip.Prefix
}

// ServiceSpec is one service.
type ServiceSpec struct {
	Name     string
	VIP      netip.Addr
	Protocol uint8 // 6 or 17
	Ports    []PortRange
	Mode     Mode
	// Reject says that a packet for which there is no backend is answered, with a TCP RST or an ICMP port unreachable.
	Reject bool
	// ClampMSS lowers the MSS option of SYNs to NAT backends to so many bytes; ClampAuto: to what the MTU of the way leaves; 0:
	// not at all.
	ClampMSS int
	// Scheduler is how a new flow gets its backend.
	Scheduler maglev.Scheduler
	// SourcePrefix is how many leading bits of the client's address decide, with the scheduler Source; 0: all of them.
	SourcePrefix int
	TableSize    int  // entries of the lookup table, a prime number; 0: maglev.DefaultSize
	NoTable      bool // flows get no words; not with a scheduler that does not agree with itself on other nodes
	OnDown       OnDown
	Defence      Defence // against floods of SYNs; TCP only
	// PerSource and Total are limits of each source to this service, and of the service, beside Spec.Limits.
	PerSource, Total Rates
	ACL              []steer.Entry  // which sources the service denies, beside Spec.ACL
	Life             conntrack.Life // of its flows' words without traffic; zero: what suits the protocol
	Backends         []BackendSpec  // any order: it decides nothing
}

// BackendSpec is one backend of a service.
type BackendSpec struct {
	Name    string
	Address netip.Addr
	Port    uint16       // that the backend receives on, with NAT; 0: the one that the client used
	Weight  uint16       // its share of new flows, relative to the others'; 0: no new flows, and no share of the lookup table
	Admit   maglev.Admit // what it takes from the moment the spec is applied
}

// Keys are the keyed parts of forwarding. Nodes of a group derive them from the same seed, and so agree about every flow.
type Keys struct {
	Flow      packet.Key // of the flow hash: table line and fingerprint
	Mix       uint64     // of the second mix: the choice of a backend
	Guard     [2]uint64  // of the tables of limits and proofs
	Challenge [32]byte   // of the numbers in challenges
	Cookie    [32]byte   // of SYN cookies; the agents of backends derive the same
}

// DeriveKeys derives the keys of a group from its seed by HKDF-SHA-256 (RFC 5869). The seed must have at least 16 bytes.
func DeriveKeys(seed []byte) (Keys, error) {
	if len(seed) < 16 {
		return Keys{}, fmt.Errorf("seed has %d bytes, at least 16 are needed", len(seed))
	}
	b, err := hkdf.Key(sha256.New, seed, nil, "sluice flow keys v1", 24)
	if err != nil {
		return Keys{}, err
	}
	g, err := hkdf.Key(sha256.New, seed, nil, "sluice guard keys v1", 48)
	if err != nil {
		return Keys{}, err
	}
	cookie, err := guard.CookieSecret(seed)
	if err != nil {
		return Keys{}, err
	}
	return Keys{
		Cookie:    cookie,
		Flow:      packet.Key{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])},
		Mix:       binary.LittleEndian.Uint64(b[16:]),
		Guard:     [2]uint64{binary.LittleEndian.Uint64(g), binary.LittleEndian.Uint64(g[8:])},
		Challenge: [32]byte(g[16:]),
	}, nil
}

// Validate checks what an engine relies on. A config that passed its own validation always passes.
func (s *Spec) Validate() error {
	if len(s.Services) > MaxServices {
		return fmt.Errorf("%d services, at most %d are possible", len(s.Services), MaxServices)
	}
	var errs []error
	names := map[string]bool{}
	type key struct {
		vip   netip.Addr
		proto uint8
	}
	claimed := map[key][]PortRange{}
	backends := 0
	for i := range s.Services {
		v := &s.Services[i]
		if v.Mode == GUE && s.Tunnel.Port == 0 {
			errs = append(errs, fmt.Errorf("service %q: GUE has no UDP port", v.Name))
		}
		if names[v.Name] {
			errs = append(errs, fmt.Errorf("service %q: the name occurs twice", v.Name))
		}
		names[v.Name] = true
		if err := v.validate(); err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", v.Name, err))
			continue
		}
		k := key{v.VIP.Unmap(), v.Protocol}
		for _, p := range v.Ports {
			for _, q := range claimed[k] {
				if p.First <= q.Last && q.First <= p.Last {
					errs = append(errs, fmt.Errorf("service %q: ports %d-%d of %s belong to another service already", v.Name, p.First, p.Last, v.VIP))
				}
			}
			claimed[k] = append(claimed[k], p)
		}
		backends += len(v.Backends)
	}
	for _, r := range []*Rates{&s.Limits.PerSource, &s.Limits.Node} {
		if err := r.validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if backends > conntrack.MaxSlots {
		errs = append(errs, fmt.Errorf("%d backends in all services, at most %d are possible", backends, conntrack.MaxSlots))
	}
	return errors.Join(errs...)
}

func (v *ServiceSpec) validate() error {
	switch {
	case !v.VIP.IsValid():
		return errors.New("it has no VIP")
	case v.Protocol != protoTCP && v.Protocol != protoUDP:
		return fmt.Errorf("protocol %d is neither TCP (6) nor UDP (17)", v.Protocol)
	case len(v.Ports) == 0:
		return errors.New("it has no ports")
	case len(v.Backends) == 0:
		return errors.New("it has no backends")
	case len(v.Backends) >= MaxBackends:
		return fmt.Errorf("%d backends, at most %d are possible", len(v.Backends), MaxBackends-1)
	case v.SourcePrefix < 0 || v.SourcePrefix > v.VIP.Unmap().BitLen():
		return fmt.Errorf("a source prefix of %d bits, an address has %d", v.SourcePrefix, v.VIP.Unmap().BitLen())
	case v.NoTable && !v.Scheduler.Agrees():
		return fmt.Errorf("without words, the scheduler %v would give each packet of a flow another backend", v.Scheduler)
	case v.OnDown == OnDownReset && v.Protocol != protoTCP:
		return errors.New("only TCP flows can be reset")
	case v.Defence != DefenceOff && v.Protocol != protoTCP:
		return errors.New("only TCP has SYNs to defend against")
	}
	for _, r := range []*Rates{&v.PerSource, &v.Total} {
		if err := r.validate(); err != nil {
			return err
		}
	}
	for state, ticks := range v.Life {
		if ticks > conntrack.MaxLife {
			return fmt.Errorf("a life of %d ticks for %v words, at most %d are possible", ticks, conntrack.State(state), conntrack.MaxLife)
		}
	}
	for _, p := range v.Ports {
		if p.First > p.Last {
			return fmt.Errorf("port range %d-%d is empty", p.First, p.Last)
		}
	}
	names := map[string]bool{}
	for _, b := range v.Backends {
		if b.Name == "" || names[b.Name] {
			return fmt.Errorf("backend name %q is empty or occurs twice", b.Name)
		}
		names[b.Name] = true
		if !b.Address.IsValid() {
			return fmt.Errorf("backend %q has no address", b.Name)
		}
		if b.Port != 0 && (v.Mode != NAT || len(v.Ports) != 1 || v.Ports[0].First != v.Ports[0].Last) {
			return fmt.Errorf("backend %q: a port of its own takes NAT, and a service with a single port", b.Name)
		}
		if v.Mode == NAT && b.Address.Unmap().Is4() != v.VIP.Unmap().Is4() {
			return fmt.Errorf("backend %q: %s is of another family than the VIP, which NAT cannot translate to", b.Name, b.Address)
		}
		if v.Mode == L2 && b.Address.Unmap().Is4() != v.VIP.Unmap().Is4() {
			return fmt.Errorf("backend %q: %s is of another family than the VIP, which l2 cannot forward to", b.Name, b.Address)
		}
	}
	return nil
}

// tableSize is the size of the service's lookup table.
func (v *ServiceSpec) tableSize() int {
	if v.TableSize == 0 {
		return maglev.DefaultSize
	}
	return v.TableSize
}

// life is that of the service's words.
func (v *ServiceSpec) life() conntrack.Life {
	switch {
	case v.Life != conntrack.Life{}:
		return v.Life
	case v.Protocol == protoTCP:
		return tcpLife
	}
	return udpLife
}

// weighted returns the backends as a lookup table takes them.
func (v *ServiceSpec) weighted() []maglev.Backend {
	out := make([]maglev.Backend, len(v.Backends))
	for i, b := range v.Backends {
		out[i] = maglev.Backend{Name: b.Name, Weight: b.Weight}
	}
	return out
}

// sourceBits is how many leading bits of a client's address choose its backend; none unless the scheduler is Source.
func (v *ServiceSpec) sourceBits() int {
	switch {
	case v.Scheduler != maglev.Source:
		return 0
	case v.SourcePrefix == 0:
		return v.VIP.Unmap().BitLen()
	}
	return v.SourcePrefix
}

// sourceMask is the bits of a client's address that choose its backend; none unless the scheduler is Source. The address
// of an IPv4 client is that of packet.FromNetip.
func (v *ServiceSpec) sourceMask() (mask packet.Addr) {
	bits := v.sourceBits()
	if bits == 0 {
		return mask
	}
	return addrMask(bits + 128 - v.VIP.Unmap().BitLen())
}
