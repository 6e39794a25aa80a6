package config

import (
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
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
	Port uint16    `yaml:"port,omitempty" json:"port,omitempty"` // 0 for ping and exec
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
	Send         string   `yaml:"send,omitempty" json:"send,omitempty"`                 // bytes to send; "0x…": in hexadecimal
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
	Body       string   `yaml:"body,omitempty" json:"body,omitempty"`               // a part of it; "0x…": in hexadecimal
	BodyRegexp string   `yaml:"body_regexp,omitempty" json:"body_regexp,omitempty"` // RE2; matches somewhere in it
	Limit      int      `yaml:"limit,omitempty" json:"limit,omitempty"`             // bytes of the answer that are read at most
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
	Name string `yaml:"name" json:"name"` // fully qualified, with or without the final dot
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
	ExecDirectory string `yaml:"exec_directory,omitempty"` // where programs of exec checks are; empty: there are no exec checks
}

const (
	minInterval     = 100 * time.Millisecond
	minFastInterval = 50 * time.Millisecond
	maxJitter       = 50 // percent
	maxBodyLimit    = 1 << 20
	minExecMemory   = 1 << 20
	maxExecMemory   = 4 << 30
	maxHeaders      = 16
	maxCommand      = 32
	minEjection     = time.Second
)

// checkFields are the fields of a check and of its parts, for the schema.
func checkFields(path string) []field {
	list := []field{
		{"type", "check", "", true, "`tcp`: a connection is accepted (with `tls` and `expect`, that too). `http`, `https`, `http2`: GET is answered as `expect` says; redirects are not followed; `http2` is with prior knowledge (h2c), or over TLS with `tls`. `grpc`: `grpc.health.v1.Health/Check` says SERVING. `udp`: `send` is answered. `dns`: `query` is answered over UDP. `ping`: an echo request is answered. `exec`: `command` ends with status 0. `agent`: after connecting, the backend sends a line such as `up`, `75%`, `drain` or `down`, as HAProxy's agent-check has it."},
		{"port", "port", "", false, "The port to probe. Required unless the service is of the check's protocol and its backends receive on a single port, which is then taken."},
		{"via", "via", "direct", false, "`direct`: to the backend's own address. `tunnel`: the way the data goes, to the VIP on the backend, in outer headers with the same sources (`l2`: to its MAC), so that a broken tunnel, a missing VIP or a firewall shows; sluice-healthd needs CAP_NET_RAW for it."},
		{"interval", "duration", "2s", false, "The time from one probe to the next (100ms to 1h)."},
		{"fast_interval", "duration", "500ms", false, "The same while a backend is on its way down or up (50ms and more; at most `interval`, which is taken if it is shorter than the default)."},
		{"timeout", "duration", "1s", false, "How long a probe may take (10ms and more). Shorter than `interval`."},
		{"jitter", "count", "10", false, "By how much the interval is longer or shorter each time, in percent (0 to 50)."},
		{"rise", "count", "2", false, "How many good probes in a row bring a backend up that was down (1 to 100)."},
		{"fall", "count", "3", false, "How many bad probes in a row take a backend down that was up (1 to 100)."},
		{"path", "urlpath", "/", false, "What to GET. For `http`, `https` and `http2`."},
		{"host", "hostname", "", false, "The Host header or `:authority`, and with TLS the name in SNI. Without it the address and port that are probed."},
		{"weight_header", "header", "", false, "A header of the answer that says how many percent of its share of new flows the backend wants: 0 to 100, with or without `%`. The last answer counts, never two together. For `http`, `https` and `http2`."},
		{"expect", "mapping", "", false, "What the answer has to hold."},
		{"expect.status", "statuses", "200-399", false, "Status codes that are good, and ranges of them. For `http`, `https` and `http2`."},
		{"expect.headers", "headers", "", false, "Headers that have to be there: `Name: value`, or `Name` for any value. For `http`, `https` and `http2`."},
		{"expect.body", "bytes", "", false, "Text that the answer has to hold somewhere. After `0x`, bytes in hexadecimal."},
		{"expect.body_regexp", "regexp", "", false, "A regular expression that has to match somewhere in the answer."},
		{"expect.limit", "amount", "64k", false, "How many bytes of an answer are read at most, 1 to 1048576; what is looked for has to be in them."},
		{"tls", "mapping", "", false, "How to use TLS: always with `https`, and with `tcp`, `http2` and `grpc` where this is given."},
		{"tls.verify", "switch", "on", false, "Whether the certificate has to be valid, and for the name asked for."},
		{"tls.ca_file", "path", "", false, "The authorities in PEM form that may have signed it. Without it, those of the system."},
		{"tls.server_name", "hostname", "", false, "The name in SNI, and in the certificate. Without it `host`, or the address."},
		{"tls.cert_file", "path", "", false, "A certificate to show to the backend, in PEM form. sluice-healthd reads these files, as its own user, anew when they change."},
		{"tls.key_file", "path", "", false, "Its key."},
		{"grpc_service", "line", "", false, "The service to ask for. Without it the server as a whole. For `grpc`."},
		{"send", "bytes", "", false, "What to send, or after `0x` bytes in hexadecimal. For `tcp`, `udp` and `agent`."},
		{"query", "mapping", "", false, "What to ask for, with `dns`, which requires it. The answer has to be NOERROR and hold a record."},
		{"query.name", "hostname", "", true, "The name."},
		{"query.type", "dnstype", "A", false, "The type of its records."},
		{"command", "words", "", false, "The program, in `health.exec_directory`, and its arguments. It finds what is probed in SLUICE_SERVICE, SLUICE_BACKEND, SLUICE_ADDRESS, SLUICE_VIP and SLUICE_PORT. The first line of its output is the evidence. For `exec`."},
		{"memory", "amount", "256M", false, "How many bytes of memory (address space) the program may use, 1M to 4294M. For `exec`."},
	}
	for i := range list {
		f := &list[i]
		if path == "services[].readiness" { // said once
			f.doc = "As in `services[].check." + f.path + "`."
		}
		f.path = path + "." + f.path
	}
	return list
}

// The types that a field of a check is for; what is not listed is for all.
var checkFieldsOf = map[string][]CheckType{
	"port":          {CheckTCP, CheckHTTP, CheckHTTPS, CheckHTTP2, CheckGRPC, CheckUDP, CheckDNS, CheckAgent},
	"path":          {CheckHTTP, CheckHTTPS, CheckHTTP2},
	"host":          {CheckHTTP, CheckHTTPS, CheckHTTP2, CheckGRPC},
	"weight_header": {CheckHTTP, CheckHTTPS, CheckHTTP2},
	"expect":        {CheckTCP, CheckHTTP, CheckHTTPS, CheckHTTP2, CheckUDP, CheckDNS, CheckExec},
	"tls":           {CheckTCP, CheckHTTPS, CheckHTTP2, CheckGRPC},
	"grpc_service":  {CheckGRPC},
	"send":          {CheckTCP, CheckUDP, CheckAgent},
	"query":         {CheckDNS},
	"command":       {CheckExec},
	"memory":        {CheckExec},
}

// checkTypes is every kind of probe.
var checkTypes = []CheckType{CheckTCP, CheckHTTP, CheckHTTPS, CheckHTTP2, CheckGRPC, CheckUDP, CheckDNS, CheckPing, CheckExec, CheckAgent}

// HTTP reports whether t asks for something over HTTP.
func (t CheckType) HTTP() bool { return t == CheckHTTP || t == CheckHTTPS || t == CheckHTTP2 }

// datagrams reports whether t is over UDP.
func (t CheckType) datagrams() bool { return t == CheckUDP || t == CheckDNS }

// health reads what a service says about health.
func (m mapping) health(s *Service, execDirectory string) {
	for _, c := range []struct {
		name string
		to   **Check
	}{{"check", &s.Check}, {"readiness", &s.Readiness}} {
		if v := m.field(c.name); !v.missing() {
			if check, ok := v.mapping(); ok {
				*c.to = check.check(s, execDirectory)
			}
		}
	}
	if v, given := m.present["readiness"]; given && m.field("check").missing() {
		v.refuseAs("readiness without a check", "a check too", "readiness says who gets new flows among backends that live; check: {type: tcp} says who does")
	}
	passive := m.section("passive")
	s.Passive.Mode, _ = enum(passive.field("mode"), PassiveOff, PassiveObserve, PassiveEject)
	ejection, longest := passive.field("ejection"), passive.field("longest")
	s.Passive.Ejection = ejection.wireDuration(minEjection, time.Hour)
	s.Passive.Longest = longest.wireDuration(minEjection, time.Hour)
	if s.Passive.Longest != 0 && s.Passive.Ejection > s.Passive.Longest {
		longest.refuseAs(fmt.Sprintf("%v, less than the first ejection's %v", s.Passive.Longest, s.Passive.Ejection), "no less", "")
	}
	s.Passive.MaxShare, _ = passive.field("max_share").integer(1, 100)
	s.PanicThreshold, _ = m.field("panic_threshold").integer(0, 100)
	quorum := m.field("quorum")
	s.Quorum, _ = quorum.integer(1, maxBackends)
	if n := len(s.Backends); n > 0 && s.Quorum > n {
		quorum.refuseAs(fmt.Sprintf("%d for %d backends", s.Quorum, n), "at most as many as the service has", "")
	}
}

func (v value) wireDuration(shortest, longest time.Duration) Duration {
	d, _ := v.duration(shortest, longest)
	return Duration(d)
}

func (m mapping) check(s *Service, execDirectory string) *Check {
	c := &Check{}
	c.Type, _ = enum(m.field("type"), checkTypes...)
	for _, f := range children[m.at.schema] {
		if v, given := m.present[f.name()]; given && c.Type != "" && !m.uses(c.Type, f.name()) {
			v.refuseAs(f.name()+" of a check of type "+string(c.Type), "none", "it is for "+someTypes(checkFieldsOf[f.name()]))
		}
	}
	m.way(c, s)
	m.pace(c)
	if m.uses(c.Type, "path") {
		c.Path, _ = m.field("path").urlPath()
		c.WeightHeader = m.field("weight_header").headerName()
	}
	if m.uses(c.Type, "host") {
		c.Host = m.field("host").hostName()
	}
	if m.uses(c.Type, "expect") {
		c.Expect = m.section("expect").expect(c.Type)
	}
	if _, given := m.present["tls"]; c.Type == CheckHTTPS || given && m.uses(c.Type, "tls") {
		c.TLS = m.section("tls").checkTLS()
	}
	switch c.Type {
	case CheckGRPC:
		c.GRPCService = m.field("grpc_service").line()
	case CheckTCP, CheckUDP, CheckAgent:
		c.Send = m.field("send").bytes()
	case CheckDNS:
		q := m.section("query")
		c.Query = &Query{Name: q.field("name").hostName()}
		c.Query.Type, _ = enum(q.field("type"), "A", "AAAA", "NS", "SOA", "MX", "TXT", "CNAME")
		if _, given := m.present["query"]; !given {
			m.at.refuseAs("no query", kinds["mapping"], "such as query: {name: example.org, type: A}")
		}
	case CheckExec:
		m.exec(c, execDirectory)
	}
	return c
}

// uses reports whether a check of type t has a field.
func (m mapping) uses(t CheckType, name string) bool {
	of, limited := checkFieldsOf[name]
	return !limited || slices.Contains(of, t)
}

// someTypes joins types for a hint.
func someTypes(types []CheckType) string {
	words := make([]string, len(types))
	for i, t := range types {
		words[i] = string(t)
	}
	return strings.Join(words, ", ")
}

// way reads where a probe goes.
func (m mapping) way(c *Check, s *Service) {
	via := m.field("via")
	c.Via, _ = enum(via, ViaDirect, ViaTunnel)
	if c.Via == ViaTunnel {
		switch {
		case s.Forward == ForwardNAT:
			via.refuseAs("tunnel with forward: nat", "direct", "nat sends to the backend's own address, as direct does")
		case c.Type == CheckPing || c.Type == CheckExec:
			via.refuseAs("tunnel with type: "+string(c.Type), "direct", "only TCP and UDP go through the tunnel")
		}
	}
	if c.Type != "" && !m.uses(c.Type, "port") {
		return
	}
	if v := m.field("port"); !v.missing() {
		n, _ := v.integer(1, 65535)
		c.Port = uint16(n)
		return
	}
	port, single := s.receives()
	if single && (s.Protocol == UDP) == c.Type.datagrams() && c.Type != CheckAgent {
		c.Port = port
	} else if len(s.Ports) > 0 && s.Protocol != "" && c.Type != "" {
		m.at.refuseAs("no port", kinds["port"],
			"only a service of the check's protocol whose backends receive on a single port lends it to its check")
	}
}

// pace reads when there are probes, and how many decide.
func (m mapping) pace(c *Check) {
	timeout := m.field("timeout")
	c.Interval = m.field("interval").wireDuration(minInterval, time.Hour)
	c.Timeout = timeout.wireDuration(10*time.Millisecond, time.Hour)
	if c.Interval != 0 && c.Timeout >= c.Interval {
		timeout.refuseAs(fmt.Sprintf("a timeout of %v for an interval of %v", c.Timeout, c.Interval), "a timeout shorter than the interval", "")
	}
	fast := m.field("fast_interval")
	c.FastInterval = fast.wireDuration(minFastInterval, time.Hour)
	if _, given := m.present["fast_interval"]; c.Interval != 0 && c.FastInterval > c.Interval {
		if given {
			fast.refuseAs(fmt.Sprintf("%v for an interval of %v", c.FastInterval, c.Interval), "no more than the interval", "")
		}
		c.FastInterval = c.Interval
	}
	c.Jitter, _ = m.field("jitter").integer(0, maxJitter)
	c.Rise, _ = m.field("rise").integer(1, maxRiseAndFall)
	c.Fall, _ = m.field("fall").integer(1, maxRiseAndFall)
}

func (m mapping) expect(t CheckType) (e Expect) {
	for _, name := range []string{"status", "headers"} {
		if v, given := m.present[name]; given && !t.HTTP() {
			v.refuseAs(name+" of a check of type "+string(t), "none", "only HTTP has it")
		}
	}
	if t.HTTP() {
		e.Status = m.field("status").statuses()
		e.Headers = m.field("headers").headers()
	}
	e.Body = m.field("body").bytes()
	v := m.field("body_regexp")
	if e.BodyRegexp = v.line(); e.BodyRegexp != "" {
		if _, err := regexp.Compile(e.BodyRegexp); err != nil {
			v.refuse(strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		}
	}
	limit, _ := m.field("limit").amount(1, maxBodyLimit)
	e.Limit = int(limit)
	return e
}

func (m mapping) checkTLS() *CheckTLS {
	t := &CheckTLS{}
	t.Verify, _ = m.field("verify").onOff()
	for _, f := range []struct {
		name string
		to   *string
	}{{"ca_file", &t.CAFile}, {"cert_file", &t.CertFile}, {"key_file", &t.KeyFile}} {
		v := m.field(f.name)
		*f.to, _ = v.absolutePath()
		if *f.to != "" && v.d.references {
			if err := readablePEM(*f.to); err != nil {
				v.refuseAs(err.Error(), "a file in PEM form", "sluice-healthd reads it, as its own user")
			}
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		m.at.refuseAs("one of cert_file and key_file", "both or none", "")
	}
	if v, given := m.present["ca_file"]; given && !t.Verify {
		v.refuseAs("ca_file with verify: off", "none", "nothing is verified")
	}
	t.ServerName = m.field("server_name").hostName()
	return t
}

func (m mapping) exec(c *Check, directory string) {
	c.ExecDirectory = directory
	memory, _ := m.field("memory").amount(minExecMemory, maxExecMemory)
	c.Memory = memory
	v := m.field("command")
	words, _ := v.list()
	for _, w := range words {
		s, ok := w.text()
		if ok && strings.ContainsRune(s, 0) {
			w.refuse("")
		}
		c.Command = append(c.Command, s)
	}
	switch {
	case directory == "":
		m.at.refuseAs("an exec check", "health.exec_directory to allow it", "programs of exec checks run on this node; they have to be in that directory")
	case len(c.Command) == 0 || len(c.Command) > maxCommand:
		m.at.refuseAs(fmt.Sprintf("a command of %d words", len(c.Command)), fmt.Sprintf("1 to %d", maxCommand), "such as command: ["+directory+"/check-db, --fast]")
	case filepath.Clean(c.Command[0]) != c.Command[0] || filepath.Dir(c.Command[0]) != directory:
		words[0].refuseAs(quote(c.Command[0]), "a program in "+directory, "health.exec_directory names it")
	}
}

// statuses reads a list of status codes and ranges of them.
func (v value) statuses() (out Ranges) {
	if v.missing() {
		return nil
	}
	elements := []value{v}
	if _, _, single := parseStatus(v.node.Value); !single { // the default is a single one, too
		var ok bool
		if elements, ok = v.list(); !ok {
			return nil
		}
		if len(elements) == 0 {
			v.refuseAs("an empty list", kinds["statuses"], "")
		}
	}
	for _, e := range elements {
		if _, _, ok := parseStatus(e.node.Value); !ok {
			e.refuseAs(e.describe(), "a status from 100 to 599, or a range such as 200-399", "")
			continue
		}
		out = append(out, e.node.Value)
	}
	return out
}

var statusPattern = regexp.MustCompile(`^([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?$`)

func parseStatus(s string) (first, last int, ok bool) {
	m := statusPattern.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, false
	}
	number := func(s string) int { return int(s[0]-'0')*100 + int(s[1]-'0')*10 + int(s[2]-'0') }
	first, last = number(m[1]), number(m[1])
	if m[2] != "" {
		last = number(m[2])
	}
	return first, last, first <= last
}

// headers reads a list of headers to expect.
func (v value) headers() (out []string) {
	if v.missing() {
		return nil
	}
	elements, _ := v.list()
	if len(elements) > maxHeaders {
		v.refuseAs(fmt.Sprintf("%d headers", len(elements)), fmt.Sprintf("at most %d", maxHeaders), "")
		return nil
	}
	for _, e := range elements {
		s, ok := e.text()
		name, value, _ := strings.Cut(s, ":")
		if ok && (!headerPattern.MatchString(name) || strings.ContainsFunc(value, control)) {
			e.refuse("")
			continue
		}
		out = append(out, s)
	}
	return out
}

// headerPattern is a token (RFC 9110, 5.6.2).
var headerPattern = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$")

func (v value) headerName() string {
	s, ok := v.text()
	if ok && !headerPattern.MatchString(s) {
		v.refuse("")
	}
	return s
}

var hostPattern = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})(:[0-9]{1,5})?$|^\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?$`)

func (v value) hostName() string {
	s, ok := v.text()
	if ok && !hostPattern.MatchString(s) {
		v.refuse("")
	}
	return s
}

// line reads text of one line.
func (v value) line() string {
	s, ok := v.text()
	if ok && (len(s) > 1024 || strings.ContainsFunc(s, control)) {
		v.refuse("")
	}
	return s
}

// bytes reads text that may be bytes in hexadecimal.
func (v value) bytes() string {
	s, ok := v.text()
	if ok {
		if _, err := Bytes(s); err != nil || len(s) > 2048 {
			v.refuse("")
		}
	}
	return s
}

// Bytes returns what text of a check stands for: itself, or after 0x the bytes that it has in hexadecimal.
func Bytes(text string) ([]byte, error) {
	if digits, ok := strings.CutPrefix(text, "0x"); ok {
		return hex.DecodeString(digits)
	}
	return []byte(text), nil
}

// readablePEM says what is wrong with a file that is to hold certificates or a key.
func readablePEM(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return err
	}
	if block, _ := pem.Decode(data); block == nil {
		return fmt.Errorf("%s, which holds nothing in PEM form", quote(path))
	}
	return nil
}
