// Package config turns Sluice's YAML file into a typed Config that has been checked as a whole.
//
// The schema is one table (schema.go): the name of every field, its type, its default and the sentence that documents
// it. The parser knows no field that the table lacks, the defaults in use are those of the table, and docs/config.md
// is generated from it; so the three cannot drift apart.
//
// A file is accepted whole or refused whole. Refusing collects every problem that can be found, each with its line and
// column, what was found and what was expected. A Config that was returned is an ordinary value: it refers to no file,
// nothing in this package keeps or changes it, and any number of goroutines may read it. Whoever holds one must not
// change it. Two of them describe the same configuration if and only if reflect.DeepEqual says so, since the parser
// brings ports, CPUs and addresses into one canonical form.
//
// All functions may be called from any goroutine.
package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Config is a whole configuration with every default filled in.
type Config struct {
	Node       string        `yaml:"node"`
	Group      Group         `yaml:"group"`
	StateDir   string        `yaml:"state_dir"`
	Control    Control       `yaml:"control"`
	Interfaces []Interface   `yaml:"interfaces"`
	Workers    int           `yaml:"workers"`        // 0: as many as cores and queues allow
	CPUs       CPUs          `yaml:"cpus,omitempty"` // ascending, each once; empty: any core of the process
	BusyPoll   bool          `yaml:"busy_poll"`
	Flows      uint64        `yaml:"flows"` // flows the table is meant for; takes effect at the next start
	Tunnel     Tunnel        `yaml:"tunnel"`
	Services   []Service     `yaml:"services"`
	Limits     Limits        `yaml:"limits"`
	SYNDefence SYNDefence    `yaml:"syn_defence"` // of services that say nothing else
	AgentPort  uint16        `yaml:"agent_port"`  // TCP port on which agents are asked what they can; 0: they are not
	Health     Health        `yaml:"health,omitempty"`
	Metrics    Metrics       `yaml:"metrics"`
	DrainTime  time.Duration `yaml:"drain_time"`
	// WithoutDaemon is what the fast path does while no daemon runs.
	WithoutDaemon WithoutDaemon `yaml:"without_daemon"`
	Log           Log           `yaml:"log"`
}

// Group is the set of nodes that share the VIPs' traffic.
type Group struct {
	SeedFile string `yaml:"seed_file,omitempty"` // empty: this node keeps a seed of its own in StateDir
	Peers    int    `yaml:"peers"`               // nodes in the group, this one included; at least 1
	// Seed is what SeedFile holds. It is zero without one, when EnsureSeed has the node's own, and after Parse.
	Seed Seed `yaml:"-"`
}

// Control is where the local API listens.
type Control struct {
	Socket string `yaml:"socket"`          // absolute path of the unix socket, mode 0660
	Group  string `yaml:"group,omitempty"` // name or number of the group that owns it; empty: the daemon's own
}

// Interface is a network interface whose VIP traffic Sluice takes.
type Interface struct {
	Name     string   `yaml:"name"`
	Mode     Mode     `yaml:"mode"`
	FastPath FastPath `yaml:"fast_path"`
	Queues   Queues   `yaml:"queues"`
	VLAN     uint16   `yaml:"vlan,omitempty"` // id of the 802.1Q tag of VIP traffic, 1 to 4094; 0: no tag
}

// Mode is how AF_XDP sockets are bound.
type Mode string

// The modes of an interface.
const (
	ModeAuto     Mode = "auto"     // zero-copy where the driver can, else copy
	ModeZeroCopy Mode = "zerocopy" // zero-copy or a refusal to start
	ModeCopy     Mode = "copy"
)

// FastPath is whether the XDP program of an interface forwards packets of known flows by itself.
type FastPath string

// The ways to use the fast path.
const (
	FastPathAuto FastPath = "auto" // in copy mode, where the driver can send for XDP programs
	FastPathOn   FastPath = "on"
	FastPathOff  FastPath = "off"
)

// WithoutDaemon is what the XDP programs of interfaces with a fast path do while no daemon runs.
type WithoutDaemon struct {
	For  Duration `yaml:"for"`  // how long they go on forwarding; 0: they end with the daemon
	Then Verdict  `yaml:"then"` // what becomes of packets to VIPs that they do not forward then, and of all of them afterwards
	Pins string   `yaml:"pins"` // absolute path of the directory, in a BPF file system, by which they outlive the daemon
}

// Verdict is what becomes of a packet that is not forwarded.
type Verdict string

// The verdicts.
const (
	VerdictPass Verdict = "pass" // the kernel's stack gets it, where a blackhole route waits for it
	VerdictDrop Verdict = "drop"
)

// Queues is how many receive queues of an interface are used, counted from queue 0.
type Queues int

// AllQueues stands for every queue that the interface has.
const AllQueues Queues = 0

// String returns the number, or "all".
func (q Queues) String() string {
	if q == AllQueues {
		return "all"
	}
	return strconv.Itoa(int(q))
}

// MarshalYAML writes what the parser reads.
func (q Queues) MarshalYAML() (any, error) {
	if q == AllQueues {
		return "all", nil
	}
	return int(q), nil
}

// Tunnel is what the outer headers of ipip and gue have in common.
type Tunnel struct {
	GUEPort     uint16   `yaml:"gue_port"`     // UDP destination port
	GUEChecksum bool     `yaml:"gue_checksum"` // UDP checksums are filled in
	Oversize    Oversize `yaml:"oversize"`
	// The outer source is an address of the prefix, another one for each flow; nil: the one that the node's routing gives.
	SourceIPv4 *netip.Prefix `yaml:"source_ipv4,omitempty"`
	SourceIPv6 *netip.Prefix `yaml:"source_ipv6,omitempty"`
}

// Oversize is what becomes of a packet that is too big with its outer headers and may be fragmented.
type Oversize string

// What becomes of such packets.
const (
	OversizeFragment Oversize = "fragment" // it is fragmented before it gets its outer headers
	OversizeDrop     Oversize = "drop"
)

// Service is one VIP with a protocol and ports, and the backends that share its flows.
type Service struct {
	Name        string      `yaml:"name"` // unique in the file
	VIP         netip.Addr  `yaml:"vip"`  // never IPv4-mapped, never with a zone
	Protocol    Protocol    `yaml:"protocol"`
	Ports       Ports       `yaml:"ports"`
	Forward     Forward     `yaml:"forward"`
	ClampMSS    Clamp       `yaml:"clamp_mss,omitempty"` // zero unless the service is TCP and forwarded by NAT
	OnNoBackend OnNoBackend `yaml:"on_no_backend"`
	Scheduler   Scheduler   `yaml:"scheduler"`
	// SourcePrefix is how many leading bits of the client's address decide, 1 to 32 or 128; 0 unless Scheduler is source.
	SourcePrefix int           `yaml:"source_prefix,omitempty"`
	TableSize    int           `yaml:"table_size"` // entries of the lookup table: a prime number, and no less than backends
	SlowStart    time.Duration `yaml:"slow_start"` // how long a backend that comes back gets a growing share; 0: all at once
	OnDown       OnDown        `yaml:"on_down"`
	FlowTable    bool          `yaml:"flow_table"`          // flows have words in the flow table
	Lifetimes    Lifetimes     `yaml:"lifetimes,omitempty"` // zero without FlowTable
	Limits       ServiceLimits `yaml:"limits,omitempty"`    // beside Config.Limits: a packet has to keep both
	SYNDefence   SYNDefence    `yaml:"syn_defence"`         // what is in force for the service; off for UDP
	AgentPort    uint16        `yaml:"-"`                   // Config.AgentPort
	Check        *Check        `yaml:"check,omitempty"`     // who lives; nil: the backends count as up
	Readiness    *Check        `yaml:"readiness,omitempty"` // who gets new flows of these; nil: all. Only beside Check
	Passive      Passive       `yaml:"passive"`
	// PanicThreshold is the percentage of backends that have to be alive for health to count; 0: one has to.
	PanicThreshold int `yaml:"panic_threshold"`
	// Quorum is how many backends have to be alive for the service to be worth announcing; at least 1.
	Quorum   int       `yaml:"quorum"`
	Backends []Backend `yaml:"backends"` // at least one, in the file's order
}

// Protocol is the transport protocol of a service.
type Protocol string

// The protocols of a service.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// Number returns the protocol's number in an IP header.
func (p Protocol) Number() uint8 {
	if p == UDP {
		return 17
	}
	return 6
}

// Forward is how a packet reaches its backend.
type Forward string

// The forwarding modes.
const (
	ForwardL2   Forward = "l2"   // the destination MAC is rewritten; the backend is on the same link as the node
	ForwardIPIP Forward = "ipip" // an outer IP header is put in front
	ForwardGUE  Forward = "gue"  // an outer IP and UDP header is put in front
	ForwardNAT  Forward = "nat"  // the destination is translated, and the source of replies back; of the VIP's family
)

// Tunnelled reports whether packets get outer headers.
func (f Forward) Tunnelled() bool { return f == ForwardIPIP || f == ForwardGUE }

// Clamp is the MSS in bytes that SYNs to the backends of a NAT service have at most, or one of the constants.
type Clamp int

// What a Clamp can be beside a number of bytes. Zero is that of services to which it does not apply.
const (
	ClampAuto Clamp = -1 // what the MTU of the way leaves
	ClampOff  Clamp = -2
)

// MarshalYAML writes what the parser reads.
func (c Clamp) MarshalYAML() (any, error) {
	switch c {
	case ClampAuto:
		return "auto", nil
	case ClampOff:
		return "off", nil
	}
	return int(c), nil
}

// OnNoBackend is what becomes of a packet for which there is no backend.
type OnNoBackend string

// What becomes of such packets.
const (
	NoBackendDrop   OnNoBackend = "drop"
	NoBackendReject OnNoBackend = "reject" // a TCP RST or an ICMP port unreachable answers it
)

// Scheduler is how a backend is chosen for a new flow.
type Scheduler string

// The schedulers. SchedulerMaglev and SchedulerSource choose alike on every node of the group, the others by what this node
// has seen.
const (
	SchedulerMaglev    Scheduler = "maglev"     // by the flow's hash
	SchedulerWRR       Scheduler = "wrr"        // in turn, by weight
	SchedulerLeastConn Scheduler = "least-conn" // the one with the fewest flows for its weight
	SchedulerP2C       Scheduler = "p2c"        // of two candidates of the flow's hash, the one with fewer flows for its weight
	SchedulerSource    Scheduler = "source"     // by the hash of the client's address, or of a prefix of it
)

// Local reports whether a node chooses by what it has seen itself, so that another node may choose otherwise.
func (s Scheduler) Local() bool {
	return s == SchedulerWRR || s == SchedulerLeastConn || s == SchedulerP2C
}

// OnDown is what becomes of the flows of a backend that health says is down.
type OnDown string

// What becomes of such flows.
const (
	DownKeep   OnDown = "keep"   // their packets go on to the backend
	DownRehash OnDown = "rehash" // their next packet chooses another backend
	DownReset  OnDown = "reset"  // their next packet is answered with a RST; TCP only
)

// Lifetimes is how long a flow's word in the flow table lives without a packet.
type Lifetimes struct {
	New         time.Duration `yaml:"new"`               // until a packet was seen in a second tick of the table's clock
	Established time.Duration `yaml:"established"`       // from then on
	Closing     time.Duration `yaml:"closing,omitempty"` // after a FIN or RST; zero for UDP
}

// Backend is a server behind a service.
type Backend struct {
	Name    string     `yaml:"name"`    // unique in its service
	Address netip.Addr `yaml:"address"` // unique in its service; never IPv4-mapped, never with a zone
	// Port is where the backend receives, with NAT and a single port; 0: on the port that the client used.
	Port uint16 `yaml:"port,omitempty"`
	// Weight is its share of new flows in proportion to the others' weights, 0 to 65535. 0: it takes no new flow, has no
	// share of the lookup table, and keeps the flows that it has.
	Weight int `yaml:"weight"`
}

// Metrics is where Prometheus finds the node.
type Metrics struct {
	Listen netip.AddrPort `yaml:"listen"`
}

// Log is what the daemon writes to its standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug | info | warn | error
	Format string `yaml:"format"` // text | json
}

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Ports is a set of ports: ranges in ascending order that neither overlap nor touch.
type Ports []PortRange

// anyPort is the whole range, as `ports: any` gives it.
var anyPort = PortRange{0, 65535}

// Any reports whether p holds every port.
func (p Ports) Any() bool { return len(p) == 1 && p[0] == anyPort }

// Single returns the port when p holds exactly one.
func (p Ports) Single() (port uint16, ok bool) {
	if len(p) == 1 && p[0].First == p[0].Last {
		return p[0].First, true
	}
	return 0, false
}

// Overlap returns the lowest port that both sets hold.
func (p Ports) Overlap(q Ports) (port uint16, ok bool) {
	for i, j := 0, 0; i < len(p) && j < len(q); {
		first, last := max(p[i].First, q[j].First), min(p[i].Last, q[j].Last)
		if first <= last {
			return first, true
		}
		if p[i].Last < q[j].Last {
			i++
		} else {
			j++
		}
	}
	return 0, false
}

// String returns the set as the file would have it: "80", "80,443,8000-8999" or "any".
func (p Ports) String() string {
	if p.Any() {
		return "any"
	}
	parts := make([]string, len(p))
	for i, r := range p {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}

// String returns "80" or "8000-8999".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// MarshalYAML writes what the parser reads.
func (p Ports) MarshalYAML() (any, error) {
	if p.Any() {
		return "any", nil
	}
	list := make([]any, len(p))
	for i, r := range p {
		if r.First == r.Last {
			list[i] = int(r.First)
		} else {
			list[i] = r.String()
		}
	}
	return list, nil
}

// canonicalPorts sorts ranges and joins those that overlap or touch.
func canonicalPorts(ranges []PortRange) Ports {
	slices.SortFunc(ranges, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	var out Ports
	for _, r := range ranges {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// CPUs is a set of core numbers in ascending order.
type CPUs []int

// String returns the set in the kernel's list form: "1-3,5".
func (c CPUs) String() string {
	var parts []string
	for i := 0; i < len(c); {
		j := i
		for j+1 < len(c) && c[j+1] == c[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, strconv.Itoa(c[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", c[i], c[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// MarshalYAML writes what the parser reads.
func (c CPUs) MarshalYAML() (any, error) { return c.String(), nil }

// VIPs returns every VIP of c once, in ascending order.
func (c *Config) VIPs() []netip.Addr {
	var vips []netip.Addr
	for i := range c.Services {
		vips = append(vips, c.Services[i].VIP)
	}
	slices.SortFunc(vips, netip.Addr.Compare)
	return slices.Compact(vips)
}

// Canonical returns c as YAML with every field written out and no comment. Parsing it gives c again, but for the seed
// and what was found in files of prefixes, which it does not hold.
func (c *Config) Canonical() []byte {
	out, err := yaml.Marshal(c)
	if err != nil {
		// Every type in Config marshals; a failure is a mistake in this package.
		panic(fmt.Sprintf("config: marshal: %v", err))
	}
	return out
}

// Hash names the configuration: twelve hexadecimal digits of the SHA-256 of its canonical form and of what Load found in the
// files of prefixes that it names. Comments, order of fields and defaults written out or left away do not change it. The
// seed is not part of it.
func (c *Config) Hash() string {
	data := c.Canonical()
	if a := &c.Limits.ACL; a.digest != (ACL{}).digest {
		data = append(data, a.digest[:]...)
	}
	for i := range c.Services {
		if a := &c.Services[i].Limits.ACL; a.digest != (ACL{}).digest {
			data = append(data, a.digest[:]...) // the canonical form says whose files these are
		}
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:6])
}
