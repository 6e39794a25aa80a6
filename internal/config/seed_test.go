package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// seedFile writes a seed file and returns its path.
func seedFile(t *testing.T, content string, mode os.FileMode) string {
	path := filepath.Join(t.TempDir(), "group.key")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// load writes a file whose first line is line, and loads it.
func load(t *testing.T, line string) (*Config, []Warning, error) {
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	if err := os.WriteFile(path, []byte(line+"\n"+valid), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

func TestSeedFile(t *testing.T) {
	for _, row := range []struct {
		name, content string
		mode          os.FileMode
		refused       string // part of the problem
		warned        string // part of the warning
	}{
		{"private", strings.Repeat("x", 32), 0o600, "", ""},
		{"readable by its group", strings.Repeat("x", 16), 0o640, "", ""},
		{"readable by anyone", strings.Repeat("x", 32), 0o644, "", `mode 0644: anyone on this machine can use the group's secret; chmod 600 it`},
		{"too short", strings.Repeat("x", 15), 0o600, "15 bytes, expected a file of 16 to 4096 bytes that can be read", ""},
		{"too short but for line ends", strings.Repeat("x", 15) + "\n\n", 0o600, "15 bytes", ""},
		{"too long", strings.Repeat("x", 4097), 0o600, "more than 4096 bytes", ""},
		{"empty", "", 0o600, "0 bytes", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := seedFile(t, row.content, row.mode)
			c, warnings, err := load(t, "group: {seed_file: "+path+"}")
			if row.refused != "" {
				if err == nil || !strings.Contains(err.Error(), "sluice.yaml:1:20: group.seed_file: found \""+shorten(path)+"\": ") || !strings.Contains(err.Error(), row.refused) {
					t.Errorf("got %v, want %q", err, row.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.Group.Seed.IsZero() {
				t.Error("no seed was read")
			}
			switch {
			case row.warned == "" && len(warnings) != 0:
				t.Errorf("warned %v", warnings)
			case row.warned != "" && (len(warnings) != 1 || !strings.Contains(warnings[0].String(), row.warned) || warnings[0].Line != 1):
				t.Errorf("warned %v, want %q", warnings, row.warned)
			}
		})
	}
}

func TestSeedFileThatCannotBeRead(t *testing.T) {
	for path, want := range map[string]string{
		filepath.Join(t.TempDir(), "none"): "no such file or directory",
		t.TempDir():                        "not a regular file",
		"/dev/zero":                        "not a regular file",
	} {
		if _, _, err := load(t, "group: {seed_file: "+path+"}"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

// Nodes of a group must agree, whichever editor wrote the line end.
func TestSeedIgnoresLineEnds(t *testing.T) {
	var seeds []Seed
	for _, end := range []string{"", "\n", "\r\n"} {
		c, _, err := load(t, "group: {seed_file: "+seedFile(t, "0123456789abcdef"+end, 0o600)+"}")
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, c.Group.Seed)
	}
	if seeds[0] != seeds[1] || seeds[0] != seeds[2] {
		t.Error("the seed depends on the line end")
	}
	other, _, err := load(t, "group: {seed_file: "+seedFile(t, "0123456789abcdeF", 0o600)+"}")
	if err != nil || other.Group.Seed == seeds[0] {
		t.Errorf("another file gave the same seed, or %v", err)
	}
}

func TestSeedIsNotPrinted(t *testing.T) {
	c := Config{Group: Group{Seed: Seed{0xab, 0xcd}}}
	asJSON, err := json.Marshal(&c)
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %#v %x %s %d", c, c, c, c.Group.Seed, c.Group.Seed, c.Group.Seed) + string(asJSON) + string(c.Canonical())
	for _, leak := range []string{"abcd", "171", "0xab"} {
		if strings.Contains(all, leak) {
			t.Errorf("%q is in %s", leak, all)
		}
	}
}

func TestEnsureSeed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := EnsureSeed(dir)
	if err != nil || first.IsZero() {
		t.Fatal(first.IsZero(), err)
	}
	again, err := EnsureSeed(dir)
	if err != nil || again != first {
		t.Errorf("the seed changed, or %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, "seed"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	other, err := EnsureSeed(t.TempDir())
	if err != nil || other == first {
		t.Errorf("two nodes have the same seed, or %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "seed"), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureSeed(dir); err == nil || !strings.Contains(err.Error(), "5 bytes; delete the file") {
		t.Errorf("a damaged seed: got %v", err)
	}
	if _, err := EnsureSeed("/dev/null/x"); err == nil || !strings.Contains(err.Error(), "set another state_dir") {
		t.Errorf("no directory: got %v", err)
	}
}

func TestControlGroup(t *testing.T) {
	for _, good := range []string{"root", "0", "12345"} {
		if c, _, err := load(t, "control: {group: "+good+"}"); err != nil || c.Control.Group != good {
			t.Errorf("%s: %+v %v", good, c, err)
		}
	}
	_, _, err := load(t, "control: {group: no-such-group}")
	if err == nil || !strings.Contains(err.Error(), `sluice.yaml:1:18: control.group: found "no-such-group", expected a group of this machine`) {
		t.Errorf("got %v", err)
	}
}

func TestManyBackendsAreUneven(t *testing.T) {
	var b strings.Builder
	b.WriteString(valid)
	for i := range 700 {
		fmt.Fprintf(&b, "      - {name: n%d, address: 10.1.%d.%d}\n", i, i/250, i%250+1)
	}
	c, warnings, err := Parse("f", []byte(b.String()))
	if err != nil || len(c.Services[0].Backends) != 702 {
		t.Fatal(err)
	}
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0].String(), "f:10:7: services[0].backends: 702 backends") {
		t.Errorf("got %v", warnings)
	}
}
