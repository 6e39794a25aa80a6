package config

import (
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Each method here reads one type of the schema. It refuses what is of another type or out of bounds, with what kinds
// says about the type, and returns ok = false then, and for a missing value.

// text reads a string. Numbers, truth values and dates are none without quotes.
func (v value) text() (s string, ok bool) {
	if v.missing() {
		return "", false
	}
	if v.node.Kind != yaml.ScalarNode || v.node.ShortTag() != "!!str" {
		hint := ""
		if textKinds[v.kind()] && v.node.Kind == yaml.ScalarNode && v.node.Value != "" {
			hint = "put it in quotes if it is meant as text"
		}
		v.refuse(hint)
		return "", false
	}
	return v.node.Value, true
}

// textKinds are the types in which a number can be meant as text.
var textKinds = map[string]bool{"name": true, "interface": true, "hostport": true, "bytes": true, "regexp": true, "line": true, "expheader": true, "word": true}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,63}$`)

func (v value) name() (string, bool) {
	s, ok := v.text()
	if ok && !namePattern.MatchString(s) {
		v.refuse("")
		return "", false
	}
	return s, ok
}

func (v value) absolutePath() (string, bool) {
	s, ok := v.text()
	if ok && (!filepath.IsAbs(s) || strings.ContainsFunc(s, control)) {
		v.refuse("")
		return "", false
	}
	return s, ok
}

// control reports whether r has no place in a path.
func control(r rune) bool { return r < ' ' || r == 0x7f }

func (v value) interfaceName() (string, bool) {
	s, ok := v.text()
	// The rules are the kernel's: dev_valid_name in net/core/dev.c.
	if ok && (s == "" || s == "." || s == ".." || len(s) > 15 || strings.ContainsFunc(s, func(r rune) bool {
		return control(r) || r == ' ' || r == '/' || r == ':' || r > 0x7e
	})) {
		v.refuse("")
		return "", false
	}
	return s, ok
}

func (v value) groupName() (string, bool) {
	if v.missing() {
		return "", false
	}
	if n, ok := v.plainInteger(); ok && n >= 0 && n < 1<<32-1 {
		return strconv.FormatInt(n, 10), true
	}
	if v.node.ShortTag() == "!!str" && namePattern.MatchString(v.node.Value) {
		return v.node.Value, true
	}
	v.refuse("")
	return "", false
}

// enum reads one of a few words.
func enum[T ~string](v value, words ...T) (T, bool) {
	s, ok := v.text()
	if !ok {
		return "", false
	}
	list := make([]string, len(words))
	for i, w := range words {
		if s == string(w) {
			return w, true
		}
		list[i] = string(w)
	}
	hint := ""
	if near := nearest(s, list); near != "" {
		hint = "did you mean " + near + "?"
	}
	v.refuse(hint)
	return "", false
}

var decimal = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,17})$`)

// plainInteger reads a number in plain decimal digits, and refuses nothing. YAML's other forms (0x1f, 017, 1_000) are
// left out, since 017 is 15 to some and 17 to others.
func (v value) plainInteger() (int64, bool) {
	if v.node.Kind != yaml.ScalarNode || v.node.ShortTag() != "!!int" || !decimal.MatchString(v.node.Value) {
		return 0, false
	}
	n, err := strconv.ParseInt(v.node.Value, 10, 64)
	return n, err == nil
}

func (v value) integer(lowest, highest int64) (int, bool) {
	if v.missing() {
		return 0, false
	}
	n, ok := v.plainInteger()
	if !ok || n < lowest || n > highest {
		bounds := "a number from " + strconv.FormatInt(lowest, 10) + " to " + strconv.FormatInt(highest, 10)
		v.refuseAs(v.describe(), bounds, v.unquote())
		return 0, false
	}
	return int(n), true
}

// unquote is a hint for a number that is text because of its quotes.
func (v value) unquote() string {
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!str" && decimal.MatchString(v.node.Value) {
		return "without quotes"
	}
	return ""
}

func (v value) boolean() (bool, bool) {
	if v.missing() {
		return false, false
	}
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!bool" {
		return strings.EqualFold(v.node.Value, "true"), true
	}
	v.refuse("")
	return false, false
}

// onOff reads "on" or "off". YAML 1.1 takes these words for truth values, so that its tools may write true or false in their
// place; these mean the same, and are what the canonical form holds.
func (v value) onOff() (bool, bool) {
	if !v.missing() && v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!str" {
		switch v.node.Value {
		case "on":
			return true, true
		case "off":
			return false, true
		}
	}
	return v.boolean()
}

var amountPattern = regexp.MustCompile(`^([0-9]{1,12})([kM]?)$`)

// amount reads a count such as 500k.
func (v value) amount(lowest, highest uint64) (uint64, bool) {
	if v.missing() {
		return 0, false
	}
	tag := v.node.ShortTag()
	m := amountPattern.FindStringSubmatch(v.node.Value)
	if v.node.Kind != yaml.ScalarNode || (tag != "!!int" && tag != "!!str") || m == nil || (len(m[1]) > 1 && m[1][0] == '0') {
		hint := ""
		if s := v.node.Value; strings.HasSuffix(s, "K") || strings.HasSuffix(s, "m") {
			hint = "k is a thousand, M a million"
		}
		v.refuse(hint)
		return 0, false
	}
	n, _ := strconv.ParseUint(m[1], 10, 64) // at most twelve digits
	n *= map[string]uint64{"": 1, "k": 1000, "M": 1000_000}[m[2]]
	if n < lowest || n > highest {
		v.refuseAs(v.describe(), "a number from "+formatAmount(lowest)+" to "+formatAmount(highest), "")
		return 0, false
	}
	return n, true
}

func formatAmount(n uint64) string {
	switch {
	case n != 0 && n%1000_000 == 0:
		return strconv.FormatUint(n/1000_000, 10) + "M"
	case n != 0 && n%1000 == 0:
		return strconv.FormatUint(n/1000, 10) + "k"
	}
	return strconv.FormatUint(n, 10)
}

func (v value) duration(shortest, longest time.Duration) (time.Duration, bool) {
	if v.missing() {
		return 0, false
	}
	if n, ok := v.plainInteger(); ok {
		v.refuse("with a unit: " + strconv.FormatInt(n, 10) + "s")
		return 0, false
	}
	s, ok := v.text()
	if !ok {
		return 0, false
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		v.refuse("")
		return 0, false
	}
	if d < shortest || d > longest {
		v.refuseAs(v.describe(), "a duration from "+formatDuration(shortest)+" to "+formatDuration(longest), "")
		return 0, false
	}
	return d, true
}

// formatDuration is time.Duration.String without zero minutes and seconds at the end.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// address reads an address that can be somebody's on a network: no name, prefix, zone, loopback, multicast …
func (v value) address() (netip.Addr, bool) {
	s, ok := v.text()
	if !ok {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		hint := ""
		if _, err := netip.ParsePrefix(s); err == nil {
			hint = "without the prefix length"
		} else if _, err := netip.ParseAddrPort(s); err == nil {
			hint = "without the port"
		} else if strings.ContainsAny(s, "ghijklmnopqrstuvwxyz") {
			hint = "host names are not resolved"
		}
		v.refuse(hint)
		return netip.Addr{}, false
	}
	kind := ""
	switch {
	case a.Zone() != "":
		kind = "with a zone"
	case a.Is4In6():
		v.refuse("write " + a.Unmap().String())
		return netip.Addr{}, false
	case a.IsUnspecified() || (a.Is4() && a.As4()[0] == 0):
		kind = "that stands for no host"
	case a.IsLoopback():
		kind = "of the loopback"
	case a.IsMulticast():
		kind = "of a multicast group"
	case a.IsLinkLocalUnicast():
		kind = "that is link-local"
	case !a.IsGlobalUnicast():
		kind = "of a broadcast"
	default:
		return a, true
	}
	v.refuseAs(a.String()+", an address "+kind, "the address of one host, valid beyond its link", "")
	return netip.Addr{}, false
}

// prefix reads a prefix of one family that holds nothing but addresses of hosts; nil if there is none.
func (v value) prefix(ipv4 bool) *netip.Prefix {
	s, ok := v.text()
	if !ok {
		return nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4() != ipv4:
		v.refuse("")
	case p != p.Masked():
		v.refuse("write " + p.Masked().String())
	case ipv4 && p.Bits() < 8 || !ipv4 && p.Bits() < 16 || !p.Addr().IsGlobalUnicast():
		v.refuseAs(p.String(), "a prefix of addresses that hosts have", "a /16 of IPv4 or a /64 of IPv6 is plenty")
	default:
		return &p
	}
	return nil
}

func (v value) addrPort() (netip.AddrPort, bool) {
	s, ok := v.text()
	if !ok {
		return netip.AddrPort{}, false
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || a.Addr().Is4In6() {
		hint := ""
		if strings.HasPrefix(s, ":") {
			hint = "0.0.0.0" + shorten(s) + " for every address"
		}
		v.refuse(hint)
		return netip.AddrPort{}, false
	}
	return a, true
}

var rangePattern = regexp.MustCompile(`^([1-9][0-9]{0,5})-([1-9][0-9]{0,5})$`)

// ports reads a port, a range, a list of both, or any.
func (v value) ports() (Ports, bool) {
	if v.missing() {
		return nil, false
	}
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!str" && v.node.Value == "any" {
		return Ports{anyPort}, true
	}
	if v.node.Kind != yaml.SequenceNode {
		r, ok := v.portRange(kinds["ports"])
		return Ports{r}, ok
	}
	elements, ok := v.list()
	if !ok {
		return nil, false
	}
	if len(elements) == 0 {
		v.refuseAs("an empty list", kinds["ports"], "")
		return nil, false
	}
	var ranges []PortRange
	seen := make(map[PortRange]bool)
	for _, e := range elements {
		r, good := e.portRange("a port from 1 to 65535, or a range such as 8000-8999")
		if good && seen[r] {
			e.refuseAs(r.String()+" again", "each port once", "")
		}
		ok = ok && good
		seen[r] = true
		ranges = append(ranges, r)
	}
	return canonicalPorts(ranges), ok
}

// portRange reads a port or a range.
func (v value) portRange(expected string) (PortRange, bool) {
	if n, ok := v.plainInteger(); ok && n >= 1 && n <= 65535 {
		return PortRange{uint16(n), uint16(n)}, true
	}
	hint := v.unquote()
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!str" {
		if m := rangePattern.FindStringSubmatch(v.node.Value); m != nil {
			first, _ := strconv.Atoi(m[1]) // at most six digits
			last, _ := strconv.Atoi(m[2])
			switch {
			case first > last:
				hint = "the lower port comes first"
			case last <= 65535:
				return PortRange{uint16(first), uint16(last)}, true
			}
		} else if strings.Contains(v.node.Value, ",") {
			hint = "several ports are a list: [80, 443]"
		} else if v.node.Value == "any" {
			hint = "any stands alone: ports: any"
		}
	}
	v.refuseAs(v.describe(), expected, hint)
	return PortRange{}, false
}

// cpus reads a list of cores in the kernel's form.
func (v value) cpus() (CPUs, bool) {
	if v.missing() {
		return nil, false
	}
	if n, ok := v.plainInteger(); ok && n >= 0 && n <= maxCPU {
		s := strconv.FormatInt(n, 10)
		v.refuse(`"` + s + `" in quotes for core ` + s + `; how many there are is said by workers`)
		return nil, false
	}
	s, ok := v.text()
	if !ok {
		return nil, false
	}
	var set [maxCPU + 1]bool
	for part := range strings.SplitSeq(s, ",") {
		a, b, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			b = a
		}
		first, err1 := strconv.ParseUint(a, 10, 16)
		last, err2 := strconv.ParseUint(b, 10, 16)
		if err1 != nil || err2 != nil || first > last || last > maxCPU {
			v.refuse("")
			return nil, false
		}
		for i := first; i <= last; i++ {
			set[i] = true
		}
	}
	var out CPUs
	for i, in := range set {
		if in {
			out = append(out, i)
		}
	}
	return out, true
}

// queues reads "all" or a number.
func (v value) queues() (Queues, bool) {
	if v.missing() {
		return 0, false
	}
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!str" && v.node.Value == "all" {
		return AllQueues, true
	}
	if n, ok := v.plainInteger(); ok && n >= 1 && n <= maxQueues {
		return Queues(n), true
	}
	v.refuse(v.unquote())
	return 0, false
}

// clamp reads "off", "auto" or a number of bytes.
func (v value) clamp() (Clamp, bool) {
	if v.missing() {
		return 0, false
	}
	if v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!str" {
		switch v.node.Value {
		case "auto":
			return ClampAuto, true
		case "off":
			return ClampOff, true
		}
	}
	if n, ok := v.plainInteger(); ok && n >= minMSS && n <= maxMSS {
		return Clamp(n), true
	}
	v.refuse(v.unquote())
	return 0, false
}

// urlPath reads what an HTTP probe asks for: a path and perhaps a query.
func (v value) urlPath() (string, bool) {
	s, ok := v.text()
	if !ok {
		return "", false
	}
	u, err := url.ParseRequestURI(s)
	if err != nil || !strings.HasPrefix(s, "/") || u.Host != "" || len(s) > 1024 ||
		strings.ContainsFunc(s, func(r rune) bool { return control(r) || r == ' ' || r == '#' || r > 0x7e }) {
		v.refuse("")
		return "", false
	}
	return s, true
}
