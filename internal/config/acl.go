package config

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sluice-lb/sluice/internal/seed"
)

// ACL says which sources may send. The longest prefix of Entries that holds a source decides; if none does, it may.
type ACL struct {
	Deny       []netip.Prefix `yaml:"deny,omitempty"` // masked, never IPv4-mapped, ascending, each once; so is Allow
	Allow      []netip.Prefix `yaml:"allow,omitempty"`
	DenyFiles  []string       `yaml:"deny_files,omitempty"` // absolute paths, ascending, each once; so is AllowFiles
	AllowFiles []string       `yaml:"allow_files,omitempty"`
	// Entries is what the lists and files say together: ascending by family, address and length, each prefix once, at most
	// MaxListEntries. After Parse, which reads no files, it is what the lists say.
	Entries []ACLEntry `yaml:"-"`

	digest [sha256.Size]byte // of Entries if files are a part of them, for Config.Hash; else zero
}

// ACLEntry is one prefix of sources.
type ACLEntry struct {
	Prefix netip.Prefix // masked, never IPv4-mapped
	Deny   bool
}

const (
	// MaxListEntries is how many prefixes the lists and files of one ACL hold at most.
	MaxListEntries = 1000_000
	// MaxEntries is how many prefixes all ACLs of a Config hold at most.
	MaxEntries = 4000_000
)

const maxListFile = 64 << 20 // bytes: a million of the longest prefixes

// listFile is the content of a file of prefixes.
type listFile struct {
	prefixes []listed
	good     bool // it could be read, whatever its lines are like
}

// listed is a prefix and the line where it stands.
type listed struct {
	prefix netip.Prefix
	line   int32
}

// gathered is a prefix of an ACL that is being read.
type gathered struct {
	listed
	deny   bool
	origin int32 // index into gathering.origins
}

// gathering is the lists and files of one ACL.
type gathering struct {
	all     []gathered
	origins []origin
	full    bool // too many, which has been refused
}

// origin is where prefixes come from: the element of a list, or of a list of files.
type origin struct {
	at   value
	file string // empty for the element of a list
}

// acl reads lists and files.
func (m mapping) acl() (a ACL) {
	g := &gathering{}
	a.Deny = m.field("deny").prefixes(g, true)
	a.DenyFiles = m.field("deny_files").prefixFiles(g, true)
	a.Allow = m.field("allow").prefixes(g, false)
	a.AllowFiles = m.field("allow_files").prefixFiles(g, false)
	a.Entries = g.entries()
	if m.at.d != nil && m.at.d.references && len(a.DenyFiles)+len(a.AllowFiles) > 0 {
		a.digest = digest(a.Entries)
	}
	return a
}

// prefixes reads a list of prefixes and addresses.
func (v value) prefixes(g *gathering, deny bool) (out []netip.Prefix) {
	elements, _ := v.list()
	for _, e := range elements {
		if e.node.Kind == yaml.MappingNode {
			e.refuse("an IPv6 prefix that ends with a colon needs quotes")
			continue
		}
		s, ok := e.text()
		if !ok {
			continue
		}
		p, hint, ok := parseSource(s)
		if !ok {
			e.refuse(hint)
			continue
		}
		if !g.add(e, "", deny, listed{p, int32(e.node.Line)}) {
			break
		}
		out = append(out, p)
	}
	slices.SortFunc(out, comparePrefixes)
	return out
}

// prefixFiles reads a list of files of prefixes.
func (v value) prefixFiles(g *gathering, deny bool) (out []string) {
	elements, _ := v.list()
	seen := make(names)
	for _, e := range elements {
		path, ok := e.absolutePath()
		if !ok {
			continue
		}
		seen.once(e, path, "file")
		out = append(out, path)
		if !e.d.references {
			continue
		}
		if f := e.listFile(path); f.good && !g.add(e, path, deny, f.prefixes...) {
			break
		}
	}
	slices.Sort(out)
	return out
}

// add takes prefixes of one origin. It refuses those that are too many, and returns false then.
func (g *gathering) add(at value, file string, deny bool, prefixes ...listed) bool {
	if g.full {
		return false
	}
	n, most := len(g.all)+len(prefixes), MaxListEntries
	at.d.prefixes += len(prefixes)
	if at.d.prefixes > MaxEntries {
		n, most = at.d.prefixes, MaxEntries
	}
	if n > most {
		at.refuseAs(fmt.Sprintf("%d prefixes up to here", n), fmt.Sprintf("at most %s in the lists and files of one place, and %s in all",
			formatAmount(MaxListEntries), formatAmount(MaxEntries)), "")
		g.full = true
		return false
	}
	g.all = slices.Grow(g.all, len(prefixes))
	for _, p := range prefixes {
		g.all = append(g.all, gathered{p, deny, int32(len(g.origins))})
	}
	g.origins = append(g.origins, origin{at, file})
	return true
}

// entries sorts what was gathered. It refuses a prefix that is both allowed and denied, and one that stands twice in the
// configuration file; files may well repeat each other.
func (g *gathering) entries() (out []ACLEntry) {
	if len(g.all) == 0 {
		return nil
	}
	slices.SortFunc(g.all, func(a, b gathered) int {
		if c := comparePrefixes(a.prefix, b.prefix); c != 0 {
			return c
		}
		return cmp.Or(cmp.Compare(a.origin, b.origin), cmp.Compare(a.line, b.line))
	})
	out = make([]ACLEntry, 0, len(g.all))
	first := &g.all[0]
	for i := range g.all {
		e := &g.all[i]
		if i > 0 && e.prefix == first.prefix {
			g.again(first, e)
			continue
		}
		first = e
		out = append(out, ACLEntry{e.prefix, e.deny})
	}
	return slices.Clip(out)
}

// again judges two places that name the same prefix.
func (g *gathering) again(first, second *gathered) {
	a, b := g.origins[first.origin], g.origins[second.origin]
	switch {
	case first.deny != second.deny:
		place := fmt.Sprintf("line %d", first.line)
		if a.file != "" {
			place = fmt.Sprintf("line %d of %s", first.line, a.file)
		}
		b.refuse(second.line, 1, fmt.Sprintf("%s, which %s denies", second.prefix, place), "a prefix that is either allowed or denied",
			"of two prefixes, the longer one decides")
	case a.file == "" && b.file == "":
		b.at.refuseAs(fmt.Sprintf("%s again, after line %d", second.prefix, first.line), "each prefix once", "")
	}
}

// refuse is value.refuseAs for a place in o's file, if o is one.
func (o origin) refuse(line int32, column int, found, expected, hint string) {
	if o.file == "" {
		o.at.refuseAs(found, expected, hint)
		return
	}
	d := o.at.d
	d.refused++
	if d.refused > maxKept {
		return
	}
	p := o.at.problem("found "+found+", expected "+expected, hint)
	p.File, p.Line, p.Column = o.file, int(line), column
	d.problems = append(d.problems, p)
}

// listFile reads a file of prefixes, once for all places that name it, and refuses it at the first of them.
func (v value) listFile(path string) *listFile {
	if f := v.d.files[path]; f != nil {
		return f
	}
	f := &listFile{}
	if v.d.files == nil {
		v.d.files = make(map[string]*listFile)
	}
	v.d.files[path] = f
	data, _, err := seed.ReadRegular(path, maxListFile)
	if err != nil {
		v.refuseAs(fmt.Sprintf("%s: %v", path, err), fmt.Sprintf("a file of at most %d MiB that can be read", maxListFile>>20),
			"one prefix or address a line")
		return f
	}
	f.good = true
	f.read(string(data), origin{v, path})
	return f
}

const blank = " \t\r"

// read takes the lines of a file: a prefix or an address each, and perhaps a comment.
func (f *listFile) read(data string, o origin) {
	f.prefixes = make([]listed, 0, min(strings.Count(data, "\n")+1, MaxListEntries+1))
	line := int32(0)
	for text := range strings.SplitSeq(data, "\n") {
		line++
		if i := strings.IndexByte(text, '#'); i >= 0 {
			text = text[:i]
		}
		s := strings.Trim(text, blank)
		if s == "" {
			continue
		}
		p, hint, ok := parseSource(s)
		if !ok {
			o.refuse(line, 1+len(text)-len(strings.TrimLeft(text, blank)), quote(s), kinds["source"], hint)
			continue
		}
		f.prefixes = append(f.prefixes, listed{p, line})
		if len(f.prefixes) > MaxListEntries {
			return // which add refuses
		}
	}
}

// parseSource reads a prefix, or an address as the prefix that holds it alone.
func parseSource(s string) (p netip.Prefix, hint string, ok bool) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			if _, err := netip.ParseAddrPort(s); err == nil {
				hint = "without the port"
			}
			return netip.Prefix{}, hint, false
		case a.Zone() != "":
			return netip.Prefix{}, "without the zone", false
		case a.Is4In6():
			return netip.Prefix{}, "write " + a.Unmap().String(), false
		}
		return netip.PrefixFrom(a, a.BitLen()), "", true
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, "", false
	case p.Addr().Is4In6() && p.Bits() >= 96:
		return netip.Prefix{}, "write " + netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked().String(), false
	case p != p.Masked():
		return netip.Prefix{}, "write " + p.Masked().String(), false
	}
	return p, "", true
}

// comparePrefixes orders masked prefixes as netip.Prefix.Compare does, in half the time.
func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// digest names a list of entries.
func digest(entries []ACLEntry) (sum [sha256.Size]byte) {
	h := sha256.New()
	var buffer []byte
	for i, e := range entries {
		verdict := byte(e.Prefix.Bits())
		if e.Prefix.Addr().Is4() {
			verdict += 96
		}
		raw := e.Prefix.Addr().As16()
		buffer = append(append(buffer, raw[:]...), verdict)
		if e.Deny {
			buffer = append(buffer, 1)
		} else {
			buffer = append(buffer, 0)
		}
		if len(buffer) > 4096 || i == len(entries)-1 {
			h.Write(buffer)
			buffer = buffer[:0]
		}
	}
	h.Sum(sum[:0])
	return sum
}

// matcher finds the entry that decides about an address.
type matcher struct {
	entries []ACLEntry
	lengths [129]bool // that prefixes have
}

func newMatcher(entries []ACLEntry) *matcher {
	m := &matcher{entries: entries}
	for _, e := range entries {
		m.lengths[e.Prefix.Bits()] = true
	}
	return m
}

// denied returns the prefix that denies a, if one does.
func (m *matcher) denied(a netip.Addr) (p netip.Prefix, denied bool) {
	for n := a.BitLen(); n >= 0; n-- {
		if !m.lengths[n] {
			continue
		}
		p, _ := a.Prefix(n) // n is at most a's length
		i, found := slices.BinarySearchFunc(m.entries, p, func(e ACLEntry, p netip.Prefix) int { return comparePrefixes(e.Prefix, p) })
		if found {
			return p, m.entries[i].Deny
		}
	}
	return netip.Prefix{}, false
}

// warnOfDenied tells, once a service, if a list denies a backend that replies through the node.
func (p *places) warnOfDenied(c *Config) {
	global := newMatcher(c.Limits.Entries)
	for i := range p.services {
		s := &p.services[i]
		if s.Forward != ForwardNAT {
			continue
		}
		own := newMatcher(s.Limits.Entries)
		for j, b := range s.Backends {
			prefix, denied := global.denied(b.Address)
			if !denied {
				prefix, denied = own.denied(b.Address)
			}
			if denied && b.Address.IsValid() {
				s.addresses[j].warn(fmt.Sprintf("%s is denied by %s: its replies pass, what it sends as a client does not", b.Address, prefix))
				break
			}
		}
	}
}
