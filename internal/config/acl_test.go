package config

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// listFiles writes files into a directory of their own and returns it.
func listFiles(t testing.TB, contents map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, content := range contents {
		writeFile(t, filepath.Join(dir, name), content)
	}
	return dir
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// loadIn loads a configuration in which DIR stands for a directory, and which is the file sluice.yaml there.
func loadIn(t testing.TB, dir, content string) (*Config, []Warning, error) {
	t.Helper()
	path := filepath.Join(dir, "sluice.yaml")
	writeFile(t, path, strings.ReplaceAll(content, "DIR", dir))
	return Load(path)
}

// told returns what is wrong, without the directory.
func told(dir string, err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(strings.ReplaceAll(err.Error(), dir+"/", ""), "\n")
}

func entries(words ...string) (out []ACLEntry) {
	for _, w := range words {
		prefix, deny := strings.CutPrefix(w, "-")
		out = append(out, ACLEntry{netip.MustParsePrefix(strings.TrimPrefix(prefix, "+")), deny})
	}
	return out
}

func TestACLEntries(t *testing.T) {
	c, _, err := Parse("f", []byte("limits: {deny: [10.0.0.0/8, '::/0', 10.0.0.0/16, 0.0.0.0/0, 9.9.9.9], allow: [10.0.0.0/9, '2001:db8::1']}\n"+
		with("limits: {allow: [192.0.2.1], deny_files: [/b, /a]}")))
	if err != nil {
		t.Fatal(err)
	}
	want := entries("-0.0.0.0/0", "-9.9.9.9/32", "-10.0.0.0/8", "+10.0.0.0/9", "-10.0.0.0/16", "-::/0", "+2001:db8::1/128")
	if !slices.Equal(c.Limits.Entries, want) {
		t.Errorf("got %v, want %v", c.Limits.Entries, want)
	}
	a := c.Services[0].Limits.ACL
	if !slices.Equal(a.Entries, entries("+192.0.2.1/32")) || !slices.Equal(a.DenyFiles, []string{"/a", "/b"}) {
		t.Errorf("got %+v", a)
	}
	again, _, err := Parse("f", c.Canonical())
	if err != nil || !reflect.DeepEqual(c, again) || c.Hash() != again.Hash() {
		t.Errorf("the canonical form: %v\n%s", err, c.Canonical())
	}
	// Their order says nothing.
	other, _, err := Parse("f", []byte("limits: {deny: [9.9.9.9/32, 0.0.0.0/0, '0::/0', 10.0.0.0/16, 10.0.0.0/8], allow: ['2001:db8:0::1', 10.0.0.0/9]}\n"+
		with("limits: {allow: [192.0.2.1], deny_files: [/a, /b]}")))
	if err != nil || !reflect.DeepEqual(c, other) {
		t.Errorf("%v: got\n%+v\nwant\n%+v", err, other, c)
	}
}

func TestACLFiles(t *testing.T) {
	dir := listFiles(t, map[string]string{
		"deny":  "# who is not wanted\n\n198.51.100.0/24 # a network\r\n\t2001:db8::1\n  \n198.51.100.0/24\n#\n203.0.113.7",
		"more":  "198.51.100.0/24\n203.0.113.8\n",
		"allow": "198.51.100.128/25\n",
		"empty": "",
	})
	c, _, err := loadIn(t, dir, "limits: {deny: [203.0.113.7], deny_files: [DIR/deny, DIR/more, DIR/empty], allow_files: [DIR/allow]}\n"+
		with("limits: {deny_files: [DIR/more]}"))
	if err != nil {
		t.Fatal(err)
	}
	want := entries("-198.51.100.0/24", "+198.51.100.128/25", "-203.0.113.7/32", "-203.0.113.8/32", "-2001:db8::1/128")
	if !slices.Equal(c.Limits.Entries, want) {
		t.Errorf("got %v, want %v", c.Limits.Entries, want)
	}
	if got, want := c.Services[0].Limits.Entries, entries("-198.51.100.0/24", "-203.0.113.8/32"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	parsed, _, err := Parse("f", c.Canonical())
	if err != nil || !reflect.DeepEqual(parsed.Limits.DenyFiles, c.Limits.DenyFiles) || len(parsed.Limits.Entries) != 1 {
		t.Errorf("the canonical form: %v\n%s", err, c.Canonical())
	}
}

// The hash names what files hold, too, and not how they say it.
func TestACLFilesChangeTheHash(t *testing.T) {
	hashes := make(map[string]string)
	hash := func(a, b string) string {
		dir := listFiles(t, map[string]string{"a": a, "b": b})
		c, _, err := loadIn(t, dir, "limits: {deny_files: [DIR/a]}\n"+with("limits: {deny_files: [DIR/b]}"))
		if err != nil {
			t.Fatal(err)
		}
		// The directory is another one each time.
		c.Limits.DenyFiles[0], c.Services[0].Limits.DenyFiles[0] = "/a", "/b"
		return c.Hash()
	}
	for _, row := range [][2]string{{"", ""}, {"192.0.2.1", ""}, {"", "192.0.2.1"}, {"192.0.2.1", "192.0.2.1"}, {"192.0.2.0/31", ""},
		{"::/1", ""}, {"0.0.0.0/1", ""}, {"192.0.2.1\n192.0.2.2", ""}, {"::c000:201", ""}} {
		h := hash(row[0], row[1])
		if other, ok := hashes[h]; ok {
			t.Errorf("one hash for %q and %q", row, other)
		}
		hashes[h] = fmt.Sprintf("%q", row)
	}
	if a, b := hash("192.0.2.1\n192.0.2.2\n", ""), hash("# two\n192.0.2.2/32\n\n192.0.2.1\n192.0.2.1", "#"); a != b {
		t.Errorf("hashes %s and %s of the same prefixes", a, b)
	}
}

func TestACLFileRefusals(t *testing.T) {
	const source = "a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address"
	for _, row := range []struct {
		name  string
		files map[string]string
		yaml  string
		want  []string
	}{
		{"no file", nil, "limits: {deny_files: [DIR/none]}\n" + with("limits: {allow_files: [DIR/none]}"), []string{
			"sluice.yaml:1:23: limits.deny_files[0]: found none: no such file or directory, expected a file of at most 64 MiB that can be read (one prefix or address a line)",
		}},
		{"a directory", nil, "limits: {deny_files: [DIR/.]}\n" + valid, []string{
			"sluice.yaml:1:23: limits.deny_files[0]: found .: not a regular file, expected a file of at most 64 MiB that can be read (one prefix or address a line)",
		}},
		// Problems of the configuration file come first, and those of one that several places name once.
		{"bad lines", map[string]string{"a": "\n 192.0.2.1/24 # net\n192.0.2.1\nnobody.example\n", "b": "\xff\x00\n::ffff:1.2.3.4\n"},
			"nodes: x\nlimits: {allow_files: [DIR/b], deny_files: [DIR/a]}\n" + with("limits: {deny_files: [DIR/a]}"), []string{
				"sluice.yaml:1:1: found unknown field \"nodes\", expected one of node, group, state_dir, control, interfaces, workers, cpus, busy_poll, flows, tunnel, services, limits, syn_defence, agent_port, health, metrics, without_daemon, drain_time, log (did you mean node?)",
				"a:2:2: limits.deny_files[0]: found \"192.0.2.1/24\", expected " + source + " (write 192.0.2.0/24)",
				"a:4:1: limits.deny_files[0]: found \"nobody.example\", expected " + source,
				"b:1:1: limits.allow_files[0]: found \"\\xff\\x00\", expected " + source,
				"b:2:1: limits.allow_files[0]: found \"::ffff:1.2.3.4\", expected " + source + " (write 1.2.3.4)",
			}},
		{"allowed in a file and denied in the list", map[string]string{"a": "\n10.0.0.0/8\n"}, "limits:\n  allow_files: [DIR/a]\n  deny: [10.0.0.0/8]\n" + valid, []string{
			"a:2:1: limits.allow_files[0]: found 10.0.0.0/8, which line 3 denies, expected a prefix that is either allowed or denied (of two prefixes, the longer one decides)",
		}},
		{"allowed in the list and denied in a file", map[string]string{"a": "#\n\n10.0.0.0/8\n"}, with("limits: {allow: [10.0.0.0/8], deny_files: [DIR/a]}"), []string{
			"sluice.yaml:9:22: services[0].limits.allow[0]: found 10.0.0.0/8, which line 3 of a denies, expected a prefix that is either allowed or denied (of two prefixes, the longer one decides)",
		}},
		{"allowed and denied in files", map[string]string{"a": "10.0.0.1\n", "b": "#\n10.0.0.1/32\n10.0.0.2\n"}, "limits: {allow_files: [DIR/b], deny_files: [DIR/a]}\n" + valid, []string{
			"b:2:1: limits.allow_files[0]: found 10.0.0.1/32, which line 1 of a denies, expected a prefix that is either allowed or denied (of two prefixes, the longer one decides)",
		}},
		{"denied at the top, allowed by a service", nil, "limits: {deny: [10.0.0.1]}\n" + with("limits: {allow: [10.0.0.1]}"), nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := listFiles(t, row.files)
			_, _, err := loadIn(t, dir, row.yaml)
			if got := told(dir, err); !slices.Equal(got, row.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(row.want, "\n"))
			}
		})
	}
}

// A file that is no list at all is refused in bounded time, and says how much is wrong with it.
func TestACLFileOfNonsense(t *testing.T) {
	dir := listFiles(t, map[string]string{"a": strings.Repeat("zzz\n", 200_000)})
	_, _, err := loadIn(t, dir, "limits: {deny_files: [DIR/a]}\n"+valid)
	var e *Error
	if !errors.As(err, &e) || len(e.Problems) != maxProblems+1 {
		t.Fatalf("got %.300v", err)
	}
	if got := e.Problems[maxProblems].String(); got != filepath.Join(dir, "a")+":101:1: found 199900 more problems from here on" {
		t.Errorf("got %s", got)
	}
}

// Lists have at most a million prefixes, and all of them together four million.
func TestACLBounds(t *testing.T) {
	million := strings.Repeat("10.0.0.1\n", MaxListEntries) // lines count, whether or not they repeat each other
	dir := listFiles(t, map[string]string{"million": million, "more": million + "9.9.9.9\n", "one": "9.9.9.9\n"})
	c, _, err := loadIn(t, dir, "limits: {deny_files: [DIR/million]}\n"+valid)
	if err != nil || len(c.Limits.Entries) != 1 {
		t.Fatalf("a million: %.300v", err)
	}
	const expected = ", expected at most 1M in the lists and files of one place, and 4M in all"
	services := "limits: {deny_files: [DIR/million]}\n" + with("limits: {deny_files: [DIR/million]}")
	for i := range 3 {
		services += strings.NewReplacer("other", fmt.Sprint("s", i), "ports: 81", fmt.Sprint("ports: ", 81+i),
			"forward: ipip\n", "forward: ipip\n    limits: {deny_files: [DIR/million]}\n").Replace(second)
	}
	for _, row := range []struct{ yaml, want string }{
		{"limits: {deny_files: [DIR/more]}\n" + valid, "sluice.yaml:1:23: limits.deny_files[0]: found 1000001 prefixes up to here" + expected},
		{"limits: {deny_files: [DIR/million], allow_files: [DIR/one]}\n" + valid, ": limits.allow_files[0]: found 1000001 prefixes up to here" + expected},
		{services, ": services[3].limits.deny_files[0]: found 5000000 prefixes up to here" + expected},
	} {
		_, _, err := loadIn(t, dir, row.yaml)
		if got := told(dir, err); len(got) != 1 || !strings.HasSuffix(got[0], row.want) {
			t.Errorf("got %v, want %s", got, row.want)
		}
	}
}

// The prefix that decides is the longest one of those that hold an address, as a search through all of them finds it.
func TestLongestPrefixDecides(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var list []ACLEntry
		for range r.IntN(40) {
			a := netip.AddrFrom4([4]byte{byte(r.IntN(2)), byte(r.IntN(2) * 255), 0, byte(r.IntN(4))})
			if r.IntN(3) == 0 {
				a = netip.AddrFrom16([16]byte{0x20, byte(r.IntN(2)), 15: byte(r.IntN(4))})
			}
			p, _ := a.Prefix(r.IntN(a.BitLen() + 1))
			list = append(list, ACLEntry{p, r.IntN(2) == 0})
		}
		slices.SortFunc(list, func(a, b ACLEntry) int { return comparePrefixes(a.Prefix, b.Prefix) })
		if !slices.IsSortedFunc(list, func(a, b ACLEntry) int { return a.Prefix.Compare(b.Prefix) }) {
			t.Fatalf("not in the order of netip: %v", list)
		}
		list = slices.CompactFunc(list, func(a, b ACLEntry) bool { return a.Prefix == b.Prefix })
		m := newMatcher(list)
		for range 100 {
			a := netip.AddrFrom4([4]byte{byte(r.IntN(3)), byte(r.IntN(2) * 255), 0, byte(r.IntN(5))})
			if r.IntN(3) == 0 {
				a = netip.AddrFrom16([16]byte{0x20, byte(r.IntN(3)), 15: byte(r.IntN(5))})
			}
			best := ACLEntry{}
			for _, e := range list {
				if e.Prefix.Contains(a) && (!best.Prefix.IsValid() || e.Prefix.Bits() > best.Prefix.Bits()) {
					best = e
				}
			}
			if p, denied := m.denied(a); p != best.Prefix || denied != best.Deny {
				t.Fatalf("%s in %v: got %v %v, want %v", a, list, p, denied, best)
			}
		}
	}
}

func FuzzParseSource(f *testing.F) {
	for _, s := range []string{"192.0.2.0/24", "192.0.2.1", "2001:db8::/32", "::", "::ffff:1.2.3.4/96", "fe80::1%a/64", "1.2.3.4/033", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, hint, ok := parseSource(s)
		if !ok {
			// What a hint tells to write is good.
			if w, is := strings.CutPrefix(hint, "write "); is {
				if _, _, ok := parseSource(w); !ok {
					t.Fatalf("%q: the hint %q is not good itself", s, hint)
				}
			}
			return
		}
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			t.Fatalf("%q: %v", s, p)
		}
		if again, _, ok := parseSource(p.String()); !ok || again != p {
			t.Fatalf("%q: %v and then %v", s, p, again)
		}
	})
}

func BenchmarkLoad300k(b *testing.B) {
	r := rand.New(rand.NewPCG(3, 4))
	var list bytes.Buffer
	for range 300_000 {
		if n := r.Uint64(); n%4 == 0 {
			fmt.Fprintf(&list, "2001:db8:%x:%x::/64\n", n>>8&0xffff, n>>24&0xffff)
		} else {
			fmt.Fprintf(&list, "%d.%d.%d.%d # seen\n", 1+n>>8&127, n>>16&255, n>>24&255, n>>32&255)
		}
	}
	dir := listFiles(b, map[string]string{"list": list.String()})
	for b.Loop() {
		c, _, err := loadIn(b, dir, "limits: {deny_files: [DIR/list]}\n"+valid)
		if err != nil || len(c.Limits.Entries) < 250_000 {
			b.Fatal(err)
		}
	}
}
