package conformance

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/config"
)

// The ways in which cases are replayed.
const (
	byEngine = "engine"
	byMemory = "memory"
	byVeth   = "veth"
	// byFast is byVeth with the fast path, which no case knows of: what becomes of packets is the same.
	byFast = "fastpath"
)

// file is one file of cases: one config, and what happens to frames under it.
type file struct {
	name   string
	yaml   string
	config *config.Config
	names  *names
	mtus   map[string]int // by interface
	silent map[netip.Addr]bool
	down   map[string]bool // "service/backend"
	ways   []string
	lets   map[string]string
	cases  []*testCase
}

// testCase is one case.
type testCase struct {
	name   string
	line   int
	in     []event
	out    []event
	reason map[packet.Reason]uint64
	kernel bool // the XDP program leaves the frames to the kernel
	// vethKernel says the same of the replay over veth only: the XDP program takes nothing that has no destination, or one
	// that it does not know, while a worker gives it a reason.
	vethKernel bool
	ways       []string
}

// event is a line of a case: a frame that comes in, or one that is to go out, so many times; or a pause.
type event struct {
	iface string
	text  string
	times int
	ls    []layer
	raw   []byte // the frame itself, if the line is raw: or has no wildcard
	pause time.Duration
}

var (
	directive = regexp.MustCompile(`^(config|mtu|silent|down|by|let)\b([^:]*):\s*(.*)$`)
	eventLine = regexp.MustCompile(`^(in|out|answer|raw)( eth[01])?( x[0-9]+)?:\s*(.*)$`)
	reference = regexp.MustCompile(`\$[A-Za-z0-9_-]+`)
)

// readFile reads a file of cases.
func readFile(t *testing.T, path string) *file {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := parseFile(strings.TrimSuffix(filepath.Base(path), ".txt"), string(data))
	if err != nil {
		t.Fatalf("%s:%v", path, err)
	}
	return f
}

func parseFile(name, text string) (*file, error) {
	f := &file{
		name: name, mtus: map[string]int{"eth0": 1500, "eth1": 1500}, ways: []string{byEngine, byMemory, byVeth},
		silent: map[netip.Addr]bool{}, down: map[string]bool{}, lets: map[string]string{},
	}
	var c *testCase
	inConfig := false
	for i, line := range strings.Split(text, "\n") {
		at := func(err error) error { return fmt.Errorf("%d: %w", i+1, err) }
		trimmed := strings.TrimSpace(line)
		switch {
		case inConfig && strings.HasPrefix(line, "  "):
			f.yaml += strings.TrimPrefix(line, "  ") + "\n"
			continue
		case trimmed == "" || strings.HasPrefix(trimmed, "#"):
			continue
		}
		if inConfig {
			inConfig = false
			if err := f.configure(); err != nil {
				return nil, at(err)
			}
		}
		if title, ok := strings.CutPrefix(line, "== "); ok {
			if f.config == nil {
				return nil, at(fmt.Errorf("a case before the config"))
			}
			c = &testCase{name: strings.TrimSpace(title), line: i + 1, reason: map[packet.Reason]uint64{}, ways: f.ways}
			f.cases = append(f.cases, c)
			continue
		}
		if m := directive.FindStringSubmatch(line); m != nil && (c == nil || m[1] == "let") {
			inConfig = m[1] == "config"
			if err := f.directive(m[1], strings.TrimSpace(m[2]), m[3]); err != nil {
				return nil, at(err)
			}
			continue
		}
		if c == nil {
			return nil, at(fmt.Errorf("%q is no directive: config, mtu, silent, down, by or let, and belongs to no case", line))
		}
		if err := f.caseLine(c, line); err != nil {
			return nil, at(fmt.Errorf("%s: %w", c.name, err))
		}
	}
	names := map[string]bool{}
	for _, c := range f.cases {
		switch {
		case names[c.name]:
			return nil, fmt.Errorf("%d: a second case of the name %q", c.line, c.name)
		case len(c.in) == 0:
			return nil, fmt.Errorf("%d: %s: nothing comes in", c.line, c.name)
		case len(c.out) == 0 && len(c.reason) == 0 && !c.kernel:
			return nil, fmt.Errorf("%d: %s: nothing is expected: give out, answer, reason or kernel", c.line, c.name)
		}
		names[c.name] = true
	}
	return f, nil
}

func (f *file) configure() (err error) {
	if f.config, _, err = config.Parse(f.name, []byte(wholeConfig(f.yaml, "/nowhere"))); err != nil {
		return err
	}
	f.names, err = newNames(f.config)
	return err
}

func (f *file) directive(word, of, value string) error {
	switch word {
	case "mtu": // mtu: 1400, or mtu eth1: 1400
		n, err := strconv.Atoi(value)
		if err != nil {
			return err
		}
		for name := range f.mtus {
			if of == "" || of == name {
				f.mtus[name] = n
			}
		}
	case "silent": // addresses that do not answer ARP or neighbour discovery
		for w := range strings.FieldsSeq(value) {
			a, err := netip.ParseAddr(w)
			if err != nil {
				return err
			}
			f.silent[a] = true
		}
	case "down": // service/backend that health has found down
		for w := range strings.FieldsSeq(value) {
			f.down[w] = true
		}
	case "by": // the ways to replay all cases of the file
		f.ways = strings.Fields(value)
	case "let":
		f.lets["$"+of] = f.expand(value)
	}
	return nil
}

// expand puts what was defined in the place of $names.
func (f *file) expand(line string) string {
	return reference.ReplaceAllStringFunc(line, func(name string) string {
		if s, ok := f.lets[name]; ok {
			return s
		}
		return name
	})
}

func (f *file) caseLine(c *testCase, line string) error {
	m := eventLine.FindStringSubmatch(line)
	if m == nil {
		word, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); word {
		case "kernel":
			c.kernel = true
		case "veth": // what else than the reason: kernel
			if value != "kernel" {
				return fmt.Errorf("veth: %q; expected kernel", value)
			}
			c.vethKernel = true
		case "by": // by: engine memory
			c.ways = strings.Fields(value)
		case "pause":
			d, err := time.ParseDuration(value)
			if err != nil {
				return err
			}
			c.in = append(c.in, event{pause: d})
		case "reason": // reason: bad_checksum, reason: no_service x2
			name, times, _ := strings.Cut(value, " x")
			var r packet.Reason
			if err := r.UnmarshalText([]byte(name)); err != nil {
				return err
			}
			n := 1
			if times != "" {
				var err error
				if n, err = strconv.Atoi(times); err != nil {
					return err
				}
			}
			c.reason[r] += uint64(n)
		default:
			return fmt.Errorf("%q is no line of a case: in, out, answer, raw, reason, kernel, veth, by or pause", line)
		}
		return nil
	}
	e := event{iface: strings.TrimSpace(m[2]), times: 1, text: f.expand(m[4])}
	if e.iface == "" {
		e.iface = "eth0"
	}
	if m[3] != "" {
		e.times, _ = strconv.Atoi(strings.TrimPrefix(m[3], " x"))
	}
	if m[1] == "raw" {
		var err error
		if e.raw, err = hex.DecodeString(strings.Join(strings.Fields(e.text), "")); err == nil {
			c.in = append(c.in, e)
		}
		return err
	}
	for i := range c.in { // $in is the packet that came last, $in1 the first one …
		p := packetOf(c.in[i].text)
		e.text = strings.ReplaceAll(e.text, fmt.Sprintf("$in%d", i+1), p)
		if i == len(c.in)-1 {
			e.text = regexp.MustCompile(`\$in\b`).ReplaceAllLiteralString(e.text, p)
		}
	}
	if left := reference.FindString(e.text); left != "" {
		return fmt.Errorf("nothing is called %s", left)
	}
	var err error
	if e.ls, err = parseLayers(e.text); err != nil {
		return err
	}
	e.ls = addressed(e.ls, m[1])
	if m[1] == "in" || !hasWildcard(e.ls) {
		if e.raw, err = build(e.ls, f.names, e.iface); err != nil {
			return err
		}
	}
	if m[1] == "in" {
		c.in = append(c.in, e)
	} else {
		c.out = append(c.out, e)
	}
	return nil
}

// addressed fills in the Ethernet addresses that a line leaves out: what comes in is from the peer to the node, what goes
// out is from the node, and an answer goes back to the peer.
func addressed(ls []layer, word string) []layer {
	if ls[0].kind != "eth" {
		ls = slices.Insert(ls, 0, layer{kind: "eth", keys: map[string]string{}})
	}
	dst, src := "node", "peer"
	switch word {
	case "answer":
		dst, src = "peer", "node"
	case "out":
		dst, src = "", "node"
	}
	for key, usual := range map[string]string{"dst": dst, "src": src} {
		if ls[0].keys[key] == "" {
			ls[0].keys[key] = usual
		}
	}
	return ls
}
