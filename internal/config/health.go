package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// What a service says about the health of its backends.

// Duration is a time.Duration that is written as "2s" in YAML and JSON.
type Duration time.Duration

// String is time.Duration's.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes d as time.Duration.String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// Check is how healthd probes the backends of a service, in the file and in the control API alike. Fields that the type of the
// check has no use for are zero.
type Check struct {
	Type CheckType `yaml:"type" json:"type"`
	Port uint16    `yaml:"port,omitempty" json:"port,omitempty"` // 0 for ping; exec: of SLUICE_PORT, 0 if there is no single one
	Via  Via       `yaml:"via" json:"via"`

	Interval     Duration `yaml:"interval" json:"interval"`           // from the start of a probe to that of the next
	FastInterval Duration `yaml:"fast_interval" json:"fast_interval"` // the same while a backend is going down or up; at most Interval
	Timeout      Duration `yaml:"timeout" json:"timeout"`             // shorter than Interval
	Jitter       int      `yaml:"jitter" json:"jitter"`               // percent of the interval by which it is longer or shorter, 0 to 50
	Rise         int      `yaml:"rise" json:"rise"`                   // good probes in a row that bring a backend up
	Fall         int      `yaml:"fall" json:"fall"`                   // bad probes in a row that take it down

	Path string `yaml:"path,omitempty" json:"path,omitempty"` // begins with a slash
	// Host is the Host header or :authority; empty: the VIP, or the backend's address with via: direct, and the port.
	Host   string `yaml:"host,omitempty" json:"host,omitempty"`
	Expect Expect `yaml:"expect,omitempty" json:"expect,omitzero"`
	// TLS is set for https, and where http2, grpc or tcp are to use TLS.
	TLS *CheckTLS `yaml:"tls,omitempty" json:"tls,omitempty"`
	// WeightHeader is the header whose value, 0 to 100, is the percentage of its share of new flows that the backend asks for.
	WeightHeader string   `yaml:"weight_header,omitempty" json:"weight_header,omitempty"`
	GRPCService  string   `yaml:"grpc_service,omitempty" json:"grpc_service,omitempty"` // empty: the server as a whole
	Send         string   `yaml:"send,omitempty" json:"send,omitempty"`                 // bytes to send; "0x…": in hexadecimal, which what cannot be printed always is
	Query        *Query   `yaml:"query,omitempty" json:"query,omitempty"`               // set for dns
	Command      []string `yaml:"command,omitempty" json:"command,omitempty"`           // exec: absolute path, arguments
	Memory       uint64   `yaml:"memory,omitempty" json:"memory,omitempty"`             // exec: bytes of address space that the program may have
	// ExecDirectory is Config.Health.ExecDirectory, for exec.
	ExecDirectory string `yaml:"-" json:"exec_directory,omitempty"`
}

// CheckType is the kind of a probe.
type CheckType string

// The kinds of probes.
const (
	CheckTCP   CheckType = "tcp"   // a connection is accepted, and with TLS or something expected, that too
	CheckHTTP  CheckType = "http"  // an HTTP/1.1 answer to GET is as expected
	CheckHTTPS CheckType = "https" // the same over TLS
	CheckHTTP2 CheckType = "http2" // the same over HTTP/2, with prior knowledge (h2c) unless TLS is set
	CheckGRPC  CheckType = "grpc"  // grpc.health.v1.Health/Check says SERVING
	CheckUDP   CheckType = "udp"   // a datagram is answered, as expected
	CheckDNS   CheckType = "dns"   // a query over UDP is answered
	CheckPing  CheckType = "ping"  // an echo request is answered
	CheckExec  CheckType = "exec"  // a program on the node ends with status 0
	CheckAgent CheckType = "agent" // a line of text says up, down or a percentage, as HAProxy's agent-check has it
)

// Via is the way of a probe.
type Via string

// The ways of a probe.
const (
	ViaDirect Via = "direct" // to the backend's own address
	ViaTunnel Via = "tunnel" // as data goes: to the VIP on the backend, in outer headers with the same sources
)

// Expect is what an answer has to hold. What is zero is not asked for.
type Expect struct {
	Status     Ranges   `yaml:"status,omitempty" json:"status,omitempty"`           // HTTP status codes
	Headers    []string `yaml:"headers,omitempty" json:"headers,omitempty"`         // "Name: value", or "Name" for any value
	Body       string   `yaml:"body,omitempty" json:"body,omitempty"`               // a part of it; "0x…": as in Check.Send
	BodyRegexp string   `yaml:"body_regexp,omitempty" json:"body_regexp,omitempty"` // RE2; matches somewhere in it
	Limit      int      `yaml:"limit,omitempty" json:"limit,omitempty"`             // bytes of the answer that are read at most; 0: none, for tcp that expects nothing
}

// Ranges is numbers and ranges of them, as the file has them: "200-399".
type Ranges []string

// Holds reports whether n is in one of the ranges.
func (r Ranges) Holds(n int) bool {
	return slices.ContainsFunc(r, func(s string) bool {
		first, last, ok := parseStatus(s)
		return ok && first <= n && n <= last
	})
}

// CheckTLS is how a probe uses TLS. healthd reads the files, anew when they change.
type CheckTLS struct {
	Verify     bool   `yaml:"verify" json:"verify"`                               // the certificate is to be valid, and for ServerName
	CAFile     string `yaml:"ca_file,omitempty" json:"ca_file,omitempty"`         // PEM; empty: the system's authorities
	ServerName string `yaml:"server_name,omitempty" json:"server_name,omitempty"` // of SNI and verification; empty: Check.Host, or the address
	CertFile   string `yaml:"cert_file,omitempty" json:"cert_file,omitempty"`     // the client's certificate, PEM; empty: none
	KeyFile    string `yaml:"key_file,omitempty" json:"key_file,omitempty"`
}

// Query is what a dns probe asks for.
type Query struct {
	Name string `yaml:"name" json:"name"` // fully qualified, with or without the final dot; ".": the root
	Type string `yaml:"type" json:"type"` // A, AAAA, NS, SOA, MX, TXT or CNAME
}

// Passive is what becomes of a backend whose traffic looks bad.
type Passive struct {
	Mode     PassiveMode `yaml:"mode" json:"mode"`
	Ejection Duration    `yaml:"ejection" json:"ejection"`   // how long the first ejection lasts; doubled each time
	Longest  Duration    `yaml:"longest" json:"longest"`     // but no longer than this
	MaxShare int         `yaml:"max_share" json:"max_share"` // percent of a service's backends that may be ejected at once; one may always
}

// PassiveMode is what becomes of such a backend.
type PassiveMode string

// What becomes of such a backend.
const (
	PassiveOff     PassiveMode = "off"
	PassiveObserve PassiveMode = "observe" // it is told, and nothing else
	PassiveEject   PassiveMode = "eject"   // it gets no new flows for a while
)

// Health is what concerns the checks of all services.
type Health struct {
	// ExecDirectory is the absolute path, in its shortest form, where programs of exec checks are; empty: there are no such checks.
	ExecDirectory string `yaml:"exec_directory,omitempty"`
}

const minEjection = time.Second

// programs is where exec checks may have theirs.
type programs struct {
	at        value  // health.exec_directory
	directory string // empty: none, or it has been refused
}

func (m mapping) programs() (p programs) {
	p.at = m.field("exec_directory")
	path, ok := p.at.absolutePath()
	switch {
	case !ok:
	case filepath.Clean(path) == "/":
		p.at.refuseAs(p.at.describe(), "a directory for nothing else", "such as /etc/sluice/checks")
	default:
		p.directory = filepath.Clean(path)
		if p.at.d.references {
			p.at.directoryOfPrograms(p.directory)
		}
	}
	return p
}

// health reads what a service says about health.
func (m mapping) health(s *Service, allowed programs) {
	for _, c := range []struct {
		name string
		to   **Check
	}{{"check", &s.Check}, {"readiness", &s.Readiness}} {
		if check, ok := m.field(c.name).mapping(); ok {
			*c.to = check.check(s, allowed)
		}
	}
	if v, given := m.present["readiness"]; given && m.field("check").missing() {
		v.refuseAs("readiness without a check", "a check too", "readiness says which of the backends that live get new flows; check: {type: tcp} says which live")
	}
	m.section("passive").passive(&s.Passive)
	s.PanicThreshold, _ = m.field("panic_threshold").integer(0, 100)
	quorum := m.field("quorum")
	s.Quorum, _ = quorum.integer(1, maxBackends)
	if n := len(s.Backends); n > 0 && s.Quorum > n {
		quorum.refuseAs(quorum.describe(), fmt.Sprintf("at most %d", n), "there are no more backends, and it would never be met")
	}
}

func (m mapping) passive(p *Passive) {
	p.Mode, _ = enum(m.field("mode"), PassiveOff, PassiveObserve, PassiveEject)
	longest := m.field("longest")
	p.Ejection = m.field("ejection").durationOf(minEjection, time.Hour)
	p.Longest = longest.durationOf(minEjection, time.Hour)
	if p.Longest != 0 && p.Longest < p.Ejection {
		if _, given := m.present["longest"]; given {
			longest.refuseAs(fmt.Sprintf("%s for a first ejection of %s", formatDuration(time.Duration(p.Longest)), formatDuration(time.Duration(p.Ejection))),
				"no less than ejection", "")
		}
		p.Longest = p.Ejection
	}
	p.MaxShare, _ = m.field("max_share").integer(1, 100)
}

func (v value) durationOf(shortest, longest time.Duration) Duration {
	d, _ := v.duration(shortest, longest)
	return Duration(d)
}
