package report

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Environment is what a report was measured in. Reports whose Machine, kernel or modes differ are never compared.
type Environment struct {
	// Machine tells machines apart without naming them: a keyed hash of the machine's ID, or where there is none of this boot's.
	Machine string `json:"machine"`
	Cores   int    `json:"cores"` // that the process may use
	CPU     string `json:"cpu"`   // the model, as the kernel calls it
	Caches  string `json:"caches"`
	Kernel  string `json:"kernel"`
	// HugePages is how many there are of each size, and what the kernel does with memory that asks for some.
	HugePages string `json:"huge_pages"`
	NICs      []NIC  `json:"nics,omitempty"`

	Go      string `json:"go"`
	GOAMD64 string `json:"goamd64,omitempty"`
	PGO     bool   `json:"pgo"` // built with a profile
	Sluice  string `json:"sluice"`

	Start time.Time `json:"start"`
	// Load is the load average of the minute before. What is much above zero has taken time from the benchmarks.
	Load float64 `json:"load_average"`
}

// NIC is an interface that a benchmark used, and how.
type NIC struct {
	Driver string `json:"driver"`
	Mode   string `json:"mode"` // zerocopy, copy, memory
}

// ReadEnvironment returns this machine's, now. version is Sluice's.
func ReadEnvironment(version string) Environment {
	e := readEnvironment(os.DirFS("/"))
	e.Sluice = version
	e.Start = time.Now().Round(time.Second)
	e.Cores = runtime.NumCPU()
	e.Go = runtime.Version()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "GOAMD64":
				e.GOAMD64 = s.Value
			case "-pgo":
				e.PGO = s.Value != ""
			}
		}
	}
	return e
}

// readEnvironment returns what the files of /proc, /sys and /etc tell. What they do not tell stays empty or "unknown".
func readEnvironment(root fs.FS) Environment {
	text := func(name string) string {
		b, _ := fs.ReadFile(root, name)
		return strings.TrimSpace(string(b))
	}
	e := Environment{
		Machine: machine(cmp.Or(text("etc/machine-id"), text("proc/sys/kernel/random/boot_id"))),
		CPU:     cpuModel(text("proc/cpuinfo")),
		Caches:  cacheSizes(root),
		Kernel:  cmp.Or(text("proc/sys/kernel/osrelease"), "unknown"),
	}
	if first, _, ok := strings.Cut(text("proc/loadavg"), " "); ok {
		e.Load, _ = strconv.ParseFloat(first, 64)
	}
	var pages []string
	sizes, _ := fs.Glob(root, "sys/kernel/mm/hugepages/hugepages-*")
	for _, dir := range sizes {
		if n := text(dir + "/nr_hugepages"); n != "" && n != "0" {
			pages = append(pages, fmt.Sprintf("%s of %s", n, strings.TrimPrefix(path.Base(dir), "hugepages-")))
		}
	}
	if len(pages) == 0 {
		pages = append(pages, "none reserved")
	}
	if _, mode, ok := strings.Cut(text("sys/kernel/mm/transparent_hugepage/enabled"), "["); ok { // always [madvise] never
		mode, _, _ = strings.Cut(mode, "]")
		pages = append(pages, "transparent: "+mode)
	}
	e.HugePages = strings.Join(pages, ", ")
	return e
}

// machine hashes an ID, which is not to be told to others (machine-id(5)).
func machine(id string) string {
	if id == "" {
		return "unknown"
	}
	h := hmac.New(sha256.New, []byte(id))
	h.Write([]byte("sluice benchmark report"))
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func cpuModel(cpuinfo string) string {
	lines := bufio.NewScanner(bytes.NewReader([]byte(cpuinfo)))
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown " + runtime.GOARCH // arm64 has numbers only
}

// cacheSizes tells the sizes of the first core's caches: "L1d 32K, L1i 32K, L2 1024K, L3 32768K".
func cacheSizes(root fs.FS) string {
	dirs, _ := fs.Glob(root, "sys/devices/system/cpu/cpu0/cache/index*")
	var sizes []string
	for _, dir := range dirs {
		var values [3]string
		for i, name := range []string{"level", "type", "size"} {
			b, _ := fs.ReadFile(root, dir+"/"+name)
			values[i] = strings.TrimSpace(string(b))
		}
		kind := map[string]string{"Data": "d", "Instruction": "i"}[values[1]]
		sizes = append(sizes, fmt.Sprintf("L%s%s %s", values[0], kind, values[2]))
	}
	slices.Sort(sizes)
	return cmp.Or(strings.Join(sizes, ", "), "unknown")
}

// Different names what keeps results of the two from being compared, each with both values; nil if nothing does.
func (e *Environment) Different(other *Environment) []string {
	var out []string
	for _, f := range []struct{ name, a, b string }{
		{"machine", e.Machine, other.Machine},
		{"CPU", e.CPU, other.CPU},
		{"cores", strconv.Itoa(e.Cores), strconv.Itoa(other.Cores)},
		{"caches", e.Caches, other.Caches},
		{"kernel", e.Kernel, other.Kernel},
		{"huge pages", e.HugePages, other.HugePages},
		{"NICs", nics(e.NICs), nics(other.NICs)},
	} {
		if f.a != f.b {
			out = append(out, fmt.Sprintf("%s: %s and %s", f.name, f.a, f.b))
		}
	}
	return out
}

func nics(list []NIC) string {
	var out []string
	for _, n := range list {
		out = append(out, n.Driver+" ("+n.Mode+")")
	}
	slices.Sort(out)
	return cmp.Or(strings.Join(slices.Compact(out), ", "), "none")
}

// fields are the environment for printing: name and value.
func (e *Environment) fields() [][]string {
	build := e.Go
	if e.GOAMD64 != "" {
		build += ", GOAMD64=" + e.GOAMD64
	}
	if e.PGO {
		build += ", with a profile"
	}
	return [][]string{
		{"machine", e.Machine},
		{"CPU", fmt.Sprintf("%s, %d cores allowed", e.CPU, e.Cores)},
		{"caches", e.Caches},
		{"kernel", e.Kernel},
		{"huge pages", e.HugePages},
		{"NICs", nics(e.NICs)},
		{"Sluice", e.Sluice},
		{"built by", build},
		{"started", e.Start.Format(time.RFC3339)},
		{"load average before", fmt.Sprintf("%.2f", e.Load)},
	}
}
