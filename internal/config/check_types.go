package config

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// The types of the schema that checks alone have, as in types.go.

const (
	maxLine  = 1024 // bytes
	maxBytes = 1024
)

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

// statuses reads a status code, a range, or a list of both.
func (v value) statuses() (out Ranges) {
	if v.missing() {
		return nil
	}
	if v.node.Kind != yaml.SequenceNode {
		if s, ok := v.status(kinds["statuses"]); ok {
			out = Ranges{s}
		}
		return out
	}
	elements, _ := v.list()
	if len(elements) == 0 {
		v.refuseAs("an empty list", kinds["statuses"], "")
	}
	for _, e := range elements {
		if s, ok := e.status("a status from 100 to 599, or a range such as 200-399"); ok {
			out = append(out, s)
		}
	}
	return out
}

// status reads a status code or a range.
func (v value) status(expected string) (string, bool) {
	if tag := v.node.ShortTag(); v.node.Kind == yaml.ScalarNode && (tag == "!!int" || tag == "!!str") {
		if _, _, ok := parseStatus(v.node.Value); ok {
			return v.node.Value, true
		}
	}
	hint := ""
	switch s := v.node.Value; {
	case statusPattern.MatchString(s):
		hint = "the lower status comes first"
	case strings.Contains(s, ","):
		hint = "several are a list: [200, 301-302]"
	}
	v.refuseAs(v.describe(), expected, hint)
	return "", false
}

// headerPattern is a token (RFC 9110, 5.6.2).
var headerPattern = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$")

func (v value) headerName() string {
	s, ok := v.text()
	if ok && !headerPattern.MatchString(s) {
		v.refuse("")
		return ""
	}
	return s
}

// headers reads a list of headers to expect.
func (v value) headers() (out []string) {
	elements, _ := v.list()
	if len(elements) > maxHeaders {
		v.refuseAs(fmt.Sprintf("%d headers", len(elements)), fmt.Sprintf("at most %d", maxHeaders), "")
		return nil
	}
	for _, e := range elements {
		s, ok := e.line()
		name, content, colon := strings.Cut(s, ":")
		switch {
		case !ok:
		case !headerPattern.MatchString(name):
			e.refuse("")
		case colon && strings.TrimSpace(content) == "":
			e.refuse("without the colon for any value")
		default:
			out = append(out, s)
		}
	}
	return out
}

// labelPattern is a label of a domain name, underscores included: names of services have them.
var labelPattern = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)

// isDomain reports whether s is a domain name without a final dot.
func isDomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !labelPattern.MatchString(label) {
			return false
		}
	}
	return len(s) <= 253
}

// domain reads a domain name, perhaps with its final dot.
func (v value) domain() string {
	s, ok := v.text()
	if ok && s != "." && !isDomain(strings.TrimSuffix(s, ".")) {
		v.refuse("")
		return ""
	}
	return s
}

// serverName reads a name or an address of a certificate.
func (v value) serverName() string {
	s, ok := v.text()
	if !ok {
		return ""
	}
	if a, err := netip.ParseAddr(s); (err != nil || a.Zone() != "") && !isDomain(s) {
		hint := ""
		if strings.Contains(s, ":") {
			hint = "without a port"
		}
		v.refuse(hint)
		return ""
	}
	return s
}

var portPattern = regexp.MustCompile(`^(.*):([1-9][0-9]{0,4})$`)

// hostPort reads a Host header: a name or an address, that of IPv6 in brackets, perhaps with a port.
func (v value) hostPort() string {
	s, ok := v.text()
	if !ok {
		return ""
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
		v.refuse("an IPv6 address in brackets: \"[" + shorten(s) + "]\"")
		return ""
	}
	host := s
	if m := portPattern.FindStringSubmatch(s); m != nil && (len(m[2]) < 5 || m[2] <= "65535") {
		host = m[1]
	}
	good := isDomain(host)
	if inner, found := strings.CutPrefix(host, "["); found {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		good = strings.HasSuffix(inner, "]") && err == nil && a.Is6() && a.Zone() == ""
	}
	if !good {
		v.refuse("")
		return ""
	}
	return s
}

// printable reports whether s is one line that YAML, logs and terminals show as it is.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// line reads text of one line.
func (v value) line() (string, bool) {
	s, ok := v.text()
	if ok && (len(s) > maxLine || !printable(s)) {
		v.refuse("")
		return "", false
	}
	return s, ok
}

// bytes reads text that may be bytes in hexadecimal. What cannot be printed becomes that, so that all forms of a
// configuration hold it.
func (v value) bytes() string {
	if v.missing() {
		return ""
	}
	s := v.node.Value
	if v.node.Kind != yaml.ScalarNode || v.node.ShortTag() != "!!int" || !strings.HasPrefix(s, "0x") { // YAML takes 0x00ff for a number
		var ok bool
		if s, ok = v.text(); !ok {
			return ""
		}
	}
	b, err := Bytes(s)
	switch {
	case err != nil:
		v.refuse("after 0x come pairs of hexadecimal digits")
		return ""
	case len(b) > maxBytes:
		v.refuseAs(fmt.Sprintf("%d bytes", len(b)), fmt.Sprintf("at most %d", maxBytes), "")
		return ""
	case !printable(s):
		return "0x" + hex.EncodeToString(b)
	}
	return s
}

// Bytes returns what text of a check stands for: itself, or after 0x the bytes that it has in hexadecimal. It fails if these are
// none.
func Bytes(text string) ([]byte, error) {
	digits, ok := strings.CutPrefix(text, "0x")
	if !ok {
		return []byte(text), nil
	}
	b, err := hex.DecodeString(digits)
	if err == nil && len(b) == 0 {
		err = fmt.Errorf("0x without digits")
	}
	return b, err
}
