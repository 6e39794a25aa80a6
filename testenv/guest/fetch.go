//go:build linux

package guest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// sourcesFiles tell where this system gets its packages: images of Debian 12 have the first, its installer writes the second.
var sourcesFiles = []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"}

// archiveKey is the key of Debian's archives, for sources that name none.
const archiveKey = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Package is a Debian package of which one version is wanted.
type Package struct {
	Suite string // such as trixie-backports
	// Name is a regular expression for the whole name. Of several packages that match the one with the highest numbers in
	// its name is taken.
	Name string
}

// fetching lets one test at a time use apt.
var fetching sync.Mutex

// Fetch returns a directory that holds the files of the packages. What an earlier call has fetched is used again, for
// as long as it lies in the cache: delete the directory to get newer versions.
func Fetch(packages ...Package) (dir string, err error) {
	fetching.Lock()
	defer fetching.Unlock()
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache of packages for guests: %w", err)
	}
	cache = filepath.Join(cache, "sluice-guest")
	dir = filepath.Join(cache, directoryFor(packages))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(cache, "fetching-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	for i, p := range packages {
		if err := fetch(p, filepath.Join(work, strconv.Itoa(i)), tree); err != nil {
			return "", fmt.Errorf("fetch %s from %s: %w", p.Name, p.Suite, err)
		}
	}
	if err := os.Rename(tree, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, nil
}

var unfit = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func directoryFor(packages []Package) string {
	var names []string
	for _, p := range packages {
		names = append(names, p.Suite+"-"+unfit.ReplaceAllString(p.Name, ""))
	}
	return strings.Join(names, "+")
}

// fetch unpacks the newest package of the name into tree.
func fetch(p Package, work, tree string) error {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(work, d), 0o755); err != nil {
			return err
		}
	}
	var sources []byte
	for _, file := range sourcesFiles {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		sources = append(append(sources, text...), '\n')
	}
	uri, key, err := source(sources)
	if err != nil {
		return err
	}
	list := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", key, uri, p.Suite)
	if err := os.WriteFile(filepath.Join(work, "list"), []byte(list), 0o644); err != nil {
		return err
	}
	apt := func(program string, args ...string) (string, error) {
		return output(work, program, append([]string{
			"-o", "Dir::Etc::sourcelist=" + filepath.Join(work, "list"), "-o", "Dir::Etc::sourceparts=/dev/null",
			"-o", "Dir::State=" + filepath.Join(work, "state"), "-o", "Dir::State::status=/var/lib/dpkg/status",
			"-o", "Dir::Cache=" + filepath.Join(work, "cache"), "-o", "APT::Sandbox::User=root",
		}, args...)...)
	}
	if _, err := apt("apt-get", "-qq", "update"); err != nil {
		return err
	}
	names, err := apt("apt-cache", "pkgnames", "linux-image-")
	if err != nil {
		return err
	}
	if !strings.HasPrefix(p.Name, "linux-image-") {
		names = p.Name
	}
	name, err := newest(strings.Fields(names), p.Name)
	if err != nil {
		return err
	}
	// The suite is the only source, but an installed version counts as one more.
	if _, err := apt("apt-get", "-qq", "download", name+"/"+p.Suite); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("apt-get download %s left %d files, expected one", name, len(files))
	}
	_, err = output(work, "dpkg-deb", "-x", files[0], tree)
	return err
}

// source reads the first source, in deb822 format or in that of one line.
func source(sources []byte) (uri, key string, err error) {
	for line := range strings.Lines(string(sources)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "deb" {
			if u, k := oneLine(fields[1:]); uri == "" && !strings.HasPrefix(u, "cdrom:") {
				uri, key = u, k
			}
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		switch fields := strings.Fields(value); {
		case len(fields) == 0:
		case name == "URIs" && uri == "":
			uri = fields[0]
		case name == "Signed-By" && key == "":
			key = fields[0]
		}
	}
	if uri == "" {
		return "", "", fmt.Errorf("%s: found no source of packages", strings.Join(sourcesFiles, ", "))
	}
	return uri, cmp.Or(key, archiveKey), nil
}

// oneLine reads a source in the format of sources.list, without its type: options in brackets, address, suite …
func oneLine(fields []string) (uri, key string) {
	if strings.HasPrefix(fields[0], "[") {
		for len(fields) > 1 {
			option := strings.Trim(fields[0], "[]")
			if k, ok := strings.CutPrefix(option, "signed-by="); ok {
				key = k
			}
			last := strings.HasSuffix(fields[0], "]")
			fields = fields[1:]
			if last {
				break
			}
		}
	}
	return fields[0], key
}

var number = regexp.MustCompile(`\d+`)

// newest returns the name with the highest numbers of those that match.
func newest(names []string, pattern string) (string, error) {
	whole, err := regexp.Compile("^(" + pattern + ")$")
	if err != nil {
		return "", err
	}
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !whole.MatchString(n) })
	if len(names) == 0 {
		return "", errors.New("the suite has no such package; take another in testenv/guest/zerocopy")
	}
	numbers := func(name string) (out []int) {
		for _, s := range number.FindAllString(name, -1) {
			n, _ := strconv.Atoi(s) // digits only; a version does not overflow
			out = append(out, n)
		}
		return out
	}
	return slices.MaxFunc(names, func(a, b string) int {
		return cmp.Or(slices.Compare(numbers(a), numbers(b)), strings.Compare(a, b))
	}), nil
}

// output runs a program and returns its standard output.
func output(dir, program string, args ...string) (string, error) {
	var stderr bytes.Buffer
	c := exec.Command(program, args...)
	c.Dir, c.Stderr = dir, &stderr
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, args[len(args)-1], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}
