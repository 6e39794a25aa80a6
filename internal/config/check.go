package config

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// How healthd is to probe a backend: the fields of a check, and how they are read.

const (
	minInterval     = 100 * time.Millisecond
	minFastInterval = 50 * time.Millisecond
	minTimeout      = 10 * time.Millisecond
	maxJitter       = 50            // percent
	maxAnswer       = 1 << 20       // bytes
	minMemory       = 1_000_000     // bytes
	maxMemory       = 4_000_000_000 // bytes
	maxHeaders      = 16
	maxCommand      = 32 // words
)

// checkFields are the fields of a check and of its parts, for the schema.
func checkFields(path string) []field {
	list := []field{
		{"type", "check", "", true, "`tcp`: a connection is accepted, and with `tls`, `send` or `expect`, that too; without them the SYN-ACK is enough, and a reset follows, so that the server sees no connection. `http`, `https`, `http2`: GET is answered as `expect` says; redirects are not followed; `http2` is with prior knowledge (h2c), or over TLS with `tls`. `grpc`: `grpc.health.v1.Health/Check` says SERVING. `udp`: `send` is answered. `dns`: `query` is answered over UDP. `ping`: an echo request is answered. `exec`: `command` ends with status 0. `agent`: after connecting, the backend sends a line such as `up`, `75%`, `drain` or `down`, as HAProxy's agent-check has it."},
		{"port", "port", "", false, "The port to probe. Required unless the service is of the check's protocol and its backends receive on a single port, which is then taken; always with `agent`. With `exec`, what SLUICE_PORT says. With `tunnel`, the port need not be one of the service. Not for `ping`."},
		{"via", "via", "direct", false, "`direct`: to the backend's own address. `tunnel`: the way the data goes, to the VIP on the backend, in outer headers with the same sources (`l2`: to its MAC), so that a broken tunnel, a missing VIP or a firewall shows; sluice-healthd needs CAP_NET_RAW for it."},
		{"interval", "duration", "2s", false, "The time from one probe to the next (100ms to 1h)."},
		{"fast_interval", "duration", "500ms", false, "The same while a backend is on its way down or up (50ms and more; at most `interval`, which is taken if it is shorter than the default)."},
		{"timeout", "duration", "1s", false, "How long a probe may take (10ms and more). Shorter than `interval`."},
		{"jitter", "count", "10", false, "By how much the interval is longer or shorter each time, in percent (0 to 50)."},
		{"rise", "count", "2", false, "How many good probes in a row bring a backend up that was down (1 to 100)."},
		{"fall", "count", "3", false, "How many bad probes in a row take a backend down that was up (1 to 100)."},
		{"path", "urlpath", "/", false, "What to GET. For `http`, `https` and `http2`."},
		{"host", "hostport", "", false, "The Host header or `:authority`, perhaps with a port, and with TLS the name in SNI. Without it the address and port that are probed. For `http`, `https`, `http2` and `grpc`."},
		{"weight_header", "header", "", false, "A header of the answer that says how many percent of its share of new flows the backend wants: 0 to 100, with or without `%`. The last answer counts, never two together. For `http`, `https` and `http2`."},
		{"expect", "mapping", "", false, "What the answer has to hold, beside what its type asks for. Not for `grpc`, `ping` and `agent`."},
		{"expect.status", "statuses", "200-399", false, "Status codes that are good, and ranges of them. For `http`, `https` and `http2`."},
		{"expect.headers", "headers", "", false, "Headers that have to be there: `Name: value`, or `Name` for any value. For `http`, `https` and `http2`."},
		{"expect.body", "bytes", "", false, "Text that the answer has to hold somewhere: the body, with `tcp` and `udp` what comes, with `dns` the records as text, with `exec` the output. After `0x`, bytes in hexadecimal."},
		{"expect.body_regexp", "regexp", "", false, "A regular expression that has to match somewhere in the same."},
		{"expect.limit", "amount", "64k", false, "How many bytes of an answer are read at most, 1 to 1048576; what is looked for has to be in them. With `tcp`, only beside `body` or `body_regexp`."},
		{"tls", "mapping", "", false, "How to use TLS: always with `https`, and with `tcp`, `http2` and `grpc` where this is given (`tls: {}` for the defaults)."},
		{"tls.verify", "switch", "on", false, "Whether the certificate has to be valid, and for the name asked for."},
		{"tls.ca_file", "path", "", false, "The authorities in PEM form that may have signed it. Without it, those of the system."},
		{"tls.server_name", "hostname", "", false, "The name in SNI, and in the certificate. Without it `host`, or the address that is probed."},
		{"tls.cert_file", "path", "", false, "A certificate to show to the backend, in PEM form. sluice-healthd reads these files, as its own user, anew when they change."},
		{"tls.key_file", "path", "", false, "The certificate's key, in PEM form."},
		{"grpc_service", "line", "", false, "The service to ask for. Without it the server as a whole. For `grpc`."},
		{"send", "bytes", "", false, "What to send, or after `0x` bytes in hexadecimal. YAML has `\\r\\n` in double quotes only. For `tcp`, `udp` and `agent`."},
		{"query", "mapping", "", false, "What to ask for, with `dns`, which requires it. The answer has to be NOERROR and hold a record."},
		{"query.name", "domain", "", true, "The name; `.` is the root."},
		{"query.type", "dnstype", "A", false, "The type of its records."},
		{"command", "words", "", false, "The absolute path of the program, in `health.exec_directory`, and its arguments. It finds what is probed in SLUICE_SERVICE, SLUICE_BACKEND, SLUICE_ADDRESS, SLUICE_VIP and SLUICE_PORT. The first line of its output is the evidence. For `exec`."},
		{"memory", "amount", "256M", false, "How many bytes of memory (address space) the program may use, 1M to 4000M. For `exec`."},
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

// checkTypes is every kind of probe.
var checkTypes = []CheckType{CheckTCP, CheckHTTP, CheckHTTPS, CheckHTTP2, CheckGRPC, CheckUDP, CheckDNS, CheckPing, CheckExec, CheckAgent}

// checkFieldsOf is the types that a field of a check is for. What is not listed is for all.
var checkFieldsOf = map[string][]CheckType{
	"port":          {CheckTCP, CheckHTTP, CheckHTTPS, CheckHTTP2, CheckGRPC, CheckUDP, CheckDNS, CheckExec, CheckAgent},
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

// HTTP reports whether t asks for something over HTTP.
func (t CheckType) HTTP() bool { return t == CheckHTTP || t == CheckHTTPS || t == CheckHTTP2 }

// uses reports whether a check of type t has a field.
func (t CheckType) uses(name string) bool {
	of, limited := checkFieldsOf[name]
	return !limited || slices.Contains(of, t)
}

func (m mapping) check(s *Service, allowed programs) *Check {
	c := &Check{}
	c.Type, _ = enum(m.field("type"), checkTypes...)
	for _, f := range children[m.at.schema] {
		if v, given := m.present[f.name()]; given && c.Type != "" && !c.Type.uses(f.name()) {
			v.refuseAs(v.describe()+" with type: "+string(c.Type), "none", f.name()+" is for "+alternatives(checkFieldsOf[f.name()]))
		}
	}
	m.way(c, s)
	m.pace(c)
	if c.Type.uses("path") {
		c.Path, _ = m.field("path").urlPath()
		c.WeightHeader = m.field("weight_header").headerName()
	}
	if c.Type.uses("host") {
		c.Host = m.field("host").hostPort()
	}
	if c.Type.uses("expect") {
		c.Expect = m.section("expect").expect(c.Type)
	}
	if _, given := m.present["tls"]; c.Type == CheckHTTPS || given && c.Type.uses("tls") {
		tls := m.section("tls")
		c.TLS = tls.checkTLS()
		if c.TLS.Verify && tls.field("server_name").missing() && m.field("host").missing() {
			tls.at.warn("neither host nor tls.server_name: the certificate has to be for the address that is probed, which few are")
		}
	}
	switch c.Type {
	case CheckGRPC:
		c.GRPCService, _ = m.field("grpc_service").line()
	case CheckTCP, CheckUDP, CheckAgent:
		c.Send = m.field("send").bytes()
		if _, given := m.present["send"]; c.Type == CheckUDP && !given {
			m.at.warn("udp without send: the probe is an empty datagram, which few servers answer")
		}
	case CheckDNS:
		c.Query = m.query()
	case CheckExec:
		m.exec(c, allowed)
	}
	return c
}

// alternatives joins types for a hint.
func alternatives(types []CheckType) string {
	words := make([]string, len(types))
	for i, t := range types {
		words[i] = string(t)
	}
	if n := len(words) - 1; n > 0 {
		return strings.Join(words[:n], ", ") + " and " + words[n]
	}
	return words[0]
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
			via.refuseAs("tunnel with type: "+string(c.Type), "direct", "only TCP and UDP go the way of the data")
		}
	}
	if !c.Type.uses("port") {
		return
	}
	if v := m.field("port"); !v.missing() {
		n, _ := v.integer(1, 65535)
		c.Port = uint16(n)
		return
	}
	port, single := s.receives()
	lent := (s.Protocol == UDP) == (c.Type == CheckUDP || c.Type == CheckDNS)
	switch {
	case c.Type == CheckExec:
		if single {
			c.Port = port
		}
	case c.Type == CheckAgent:
		m.at.refuseAs("no port", kinds["port"], "an agent has a port of its own")
	case single && lent:
		c.Port = port
	case len(s.Ports) > 0 && s.Protocol != "":
		m.at.refuseAs("no port", kinds["port"],
			"only a service of the check's protocol whose backends receive on a single port lends it to its check")
	}
}

// pace reads when there are probes, and how many decide.
func (m mapping) pace(c *Check) {
	timeout, fast := m.field("timeout"), m.field("fast_interval")
	c.Interval = m.field("interval").durationOf(minInterval, time.Hour)
	c.Timeout = timeout.durationOf(minTimeout, time.Hour)
	if c.Interval != 0 && c.Timeout >= c.Interval {
		timeout.refuseAs(fmt.Sprintf("a timeout of %v for an interval of %v", c.Timeout, c.Interval), "a timeout shorter than the interval", "")
	}
	c.FastInterval = fast.durationOf(minFastInterval, time.Hour)
	if c.Interval != 0 && c.FastInterval > c.Interval {
		if _, given := m.present["fast_interval"]; given {
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
			v.refuseAs(v.describe()+" with type: "+string(t), "none", name+" is for "+alternatives(checkFieldsOf["path"]))
		}
	}
	if t.HTTP() {
		e.Status = m.field("status").statuses()
		e.Headers = m.field("headers").headers()
	}
	body, pattern, limit := m.field("body"), m.field("body_regexp"), m.field("limit")
	e.Body = body.bytes()
	e.BodyRegexp = pattern.regexp()
	if t == CheckTCP && e.Body == "" && e.BodyRegexp == "" { // given or not: an empty text is in any answer
		if v, given := m.present["limit"]; given {
			v.refuseAs(v.describe()+" without body and body_regexp", "one of them", "nothing is read otherwise")
		}
		return e
	}
	n, ok := limit.amount(1, maxAnswer)
	e.Limit = int(n)
	if sought, err := Bytes(e.Body); ok && err == nil && len(sought) > e.Limit {
		limit.refuseAs(fmt.Sprintf("%d for a body of %d bytes", e.Limit, len(sought)), "no less than the body has", "it would never be found")
	}
	return e
}

func (m mapping) checkTLS() *CheckTLS {
	t := &CheckTLS{}
	verify, ok := m.field("verify").onOff()
	t.Verify = verify
	t.CAFile, _ = m.field("ca_file").absolutePath()
	t.CertFile, _ = m.field("cert_file").absolutePath()
	t.KeyFile, _ = m.field("key_file").absolutePath()
	if v, given := m.present["ca_file"]; given && ok && !verify {
		v.refuseAs(v.describe()+" with verify: off", "none", "nothing is verified")
	}
	cert, key := m.field("cert_file"), m.field("key_file")
	switch {
	case cert.missing() && !key.missing():
		key.refuseAs("a key without cert_file", "both or none", "")
	case key.missing() && !cert.missing():
		cert.refuseAs("a certificate without key_file", "both or none", "")
	}
	t.ServerName = m.field("server_name").serverName()
	if m.at.d.references {
		m.tlsFiles(t)
	}
	return t
}

func (m mapping) query() *Query {
	if _, given := m.present["query"]; !given {
		m.at.refuseAs("no query", kinds["mapping"], "such as query: {name: example.org, type: A}")
		return nil
	}
	of := m.section("query")
	q := &Query{Name: of.field("name").domain()}
	q.Type, _ = enum(of.field("type"), "A", "AAAA", "NS", "SOA", "MX", "TXT", "CNAME")
	return q
}

func (m mapping) exec(c *Check, allowed programs) {
	c.ExecDirectory = allowed.directory
	c.Memory, _ = m.field("memory").amount(minMemory, maxMemory)
	if allowed.at.missing() {
		m.at.refuseAs("an exec check and no health.exec_directory", "the directory in which its program is", "programs of checks run on this node: without it there are none")
	}
	v, given := m.present["command"]
	if !given {
		m.at.refuseAs("no command", kinds["words"], "the program with its absolute path, and its arguments")
		return
	}
	words, ok := v.list()
	if ok && (len(words) == 0 || len(words) > maxCommand) {
		v.refuseAs(fmt.Sprintf("%d words", len(words)), fmt.Sprintf("1 to %d", maxCommand), "the program with its absolute path, and its arguments")
		return
	}
	for _, w := range words {
		s, good := w.line()
		ok = ok && good
		c.Command = append(c.Command, s)
	}
	if !ok || allowed.directory == "" {
		return
	}
	program := c.Command[0]
	if filepath.Clean(program) != program || filepath.Dir(program) != allowed.directory {
		words[0].refuseAs(quote(program), "a program in "+allowed.directory, "health.exec_directory says so")
	} else if v.d.references {
		words[0].program(program, allowed.directory)
	}
}

func (v value) regexp() string {
	s, ok := v.line()
	if !ok {
		return ""
	}
	if _, err := regexp.Compile(s); err != nil {
		v.refuse(strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		return ""
	}
	return s
}
