package conformance

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// layer is one part of a line of the notation, as `tcp 40000 > 80 S seq=7`: what comes first says what it is.
type layer struct {
	kind  string
	words []string          // what is neither key=value nor ">"
	keys  map[string]string // key=value
}

func (l layer) String() string {
	s := l.kind
	for i, w := range l.words {
		if i == 1 && l.pair() {
			s += " >"
		}
		s += " " + w
	}
	for _, k := range sortedKeys(l.keys) {
		s += " " + k + "=" + l.keys[k]
	}
	return s
}

// pair says whether the first two words are a source and a destination.
func (l layer) pair() bool { return slices.Contains([]string{"ip4", "ip6", "tcp", "udp"}, l.kind) }

func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// known says which keys a layer may have, and which words beyond source and destination; words named * may be anything.
var known = map[string]struct {
	keys  string
	words string
}{
	"eth":     {"dst src type", ""},
	"vlan":    {"prio type", "*"},
	"qinq":    {"prio type", "*"},
	"ip4":     {"ttl tos id off proto version ihl len csum opts", "df mf rf"},
	"ip6":     {"hop tc flow next version len", ""},
	"hbh":     {"len next", "*"},
	"dstopts": {"len next", "*"},
	"routing": {"type left len next", "*"},
	"frag":    {"id off next", "mf"},
	"ext":     {"len next", "*"},
	"proto":   {"", "*"},
	"tcp":     {"seq ack win mss opts doff csum", "*"},
	"udp":     {"len csum", ""},
	"icmp4":   {"id seq mtu rest csum", "*"},
	"icmp6":   {"id seq mtu rest csum", "*"},
	"data":    {"", "*"},
	"hex":     {"", "*"},
	"piece":   {"id", "*"},
	"cut":     {"", "*"},
	"pad":     {"", "*"},
	"trunc":   {"", "*"},
}

// parseLayers reads a line of the notation.
func parseLayers(line string) (ls []layer, err error) {
	for part := range strings.SplitSeq(line, "|") {
		words := strings.Fields(part)
		if len(words) == 0 {
			return nil, fmt.Errorf("an empty layer in %q", line)
		}
		l := layer{kind: words[0], keys: map[string]string{}}
		spec, ok := known[l.kind]
		if !ok {
			return nil, fmt.Errorf("%q is no layer; there are %s", l.kind, strings.Join(layerNames(), ", "))
		}
		for _, w := range words[1:] {
			key, value, isKey := strings.Cut(w, "=")
			switch {
			case isKey && !slices.Contains(strings.Fields(spec.keys), key):
				return nil, fmt.Errorf("%s has no %s=; it has %q", l.kind, key, spec.keys)
			case isKey:
				l.keys[key] = value
			case w == ">":
			default:
				l.words = append(l.words, w)
			}
		}
		free := l.words
		if l.pair() {
			if len(free) < 2 {
				return nil, fmt.Errorf("%s: source > destination is missing", l.kind)
			}
			free = free[2:]
		}
		for _, w := range free {
			if spec.words != "*" && !slices.Contains(strings.Fields(spec.words), w) {
				return nil, fmt.Errorf("%s: unknown word %q", l.kind, w)
			}
		}
		ls = append(ls, l)
	}
	return ls, nil
}

func layerNames() (names []string) {
	for n := range known {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (l layer) has(word string) bool { return slices.Contains(l.words, word) }

// number reads a key's number, decimal or with 0x; what is missing is fallback.
func (l layer) number(key string, fallback uint64) (uint64, error) {
	s, ok := l.keys[key]
	if !ok {
		return fallback, nil
	}
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %s=%s is no number", l.kind, key, s)
	}
	return n, nil
}

// first reads the first word as a number.
func (l layer) first() (uint64, error) {
	if len(l.words) == 0 {
		return 0, fmt.Errorf("%s: a number is missing", l.kind)
	}
	n, err := strconv.ParseUint(l.words[0], 0, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is no number", l.kind, l.words[0])
	}
	return n, nil
}

// bytes reads all words as hex digits.
func (l layer) bytes() ([]byte, error) {
	b, err := hex.DecodeString(strings.Join(l.words, ""))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.kind, err)
	}
	return b, nil
}

// addresses reads source and destination of an IP layer.
func (l layer) addresses() (src, dst netip.Addr, err error) {
	for i, to := range []*netip.Addr{&src, &dst} {
		a, err := netip.ParseAddr(l.words[i])
		if err != nil {
			return src, dst, fmt.Errorf("%s: %w", l.kind, err)
		}
		if (l.kind == "ip4") != a.Is4() {
			return src, dst, fmt.Errorf("%s: %s is of the other family", l.kind, a)
		}
		*to = a
	}
	return src, dst, nil
}

// ports reads source and destination of a transport layer.
func (l layer) ports() (src, dst uint16, err error) {
	for i, to := range []*uint16{&src, &dst} {
		n, err := strconv.ParseUint(l.words[i], 10, 16)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %q is no port", l.kind, l.words[i])
		}
		*to = uint16(n)
	}
	return src, dst, nil
}

func isFraming(kind string) bool { return kind == "eth" || kind == "vlan" || kind == "qinq" }

// packetOf returns a line without what belongs to Ethernet, to be put into another one.
func packetOf(line string) string {
	var parts []string
	for part := range strings.SplitSeq(line, "|") {
		kind, _, _ := strings.Cut(strings.TrimSpace(part), " ")
		if !isFraming(kind) && kind != "pad" {
			parts = append(parts, strings.TrimSpace(part))
		}
	}
	return strings.Join(parts, " | ")
}

// settle puts what a frame has in the place of the wildcards of the line that it is compared with: * for a port, an
// identification or an address, a prefix for an address, name-* for a MAC. The result has none left, unless the frame is of
// other layers, or does not match: then the wildcard stays, and the caller sees a difference.
func settle(want, got []layer) []layer {
	out := slices.Clone(want)
	for i := range out {
		if i >= len(got) || got[i].kind != out[i].kind {
			break
		}
		w, g := out[i], got[i]
		w.words = slices.Clone(w.words)
		for j := range w.words {
			if j < len(g.words) && wildcard(w.words[j], g.words[j]) {
				w.words[j] = g.words[j]
			}
		}
		keys := map[string]string{}
		for k, v := range w.keys {
			if wildcard(v, g.keys[k]) {
				v = g.keys[k]
			}
			keys[k] = v
		}
		w.keys = keys
		out[i] = w
	}
	return out
}

// wildcard says whether pattern is one and word matches it.
func wildcard(pattern, word string) bool {
	if word == "" {
		return false
	}
	if start, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(word, start)
	}
	if p, err := netip.ParsePrefix(pattern); err == nil {
		a, err := netip.ParseAddr(word)
		return err == nil && p.Contains(a)
	}
	return false
}

// same, as a MAC, is where the first frame of the case went.
const same = "same"

// hasWildcard says whether something that stands for several frames is left in a line.
func hasWildcard(ls []layer) bool {
	for _, l := range ls {
		words := slices.Clone(l.words)
		for _, v := range l.keys {
			words = append(words, v)
		}
		for _, w := range words {
			if _, err := netip.ParsePrefix(w); err == nil || strings.HasSuffix(w, "*") || w == same {
				return true
			}
		}
	}
	return false
}
