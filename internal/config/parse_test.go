package config

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// valid is the least that a file can hold, one line a field, for the rows of tests to change.
const valid = `interfaces:
  - name: eth0
services:
  - name: web
    vip: 192.0.2.10
    protocol: tcp
    ports: 80
    forward: ipip
    backends:
      - name: a
        address: 10.0.0.1
      - name: b
        address: 10.0.0.2
`

// second is another service, to be put after valid.
const second = `  - name: other
    vip: 192.0.2.10
    protocol: tcp
    ports: 81
    forward: ipip
    backends: [{name: a, address: 10.0.0.1}]
`

func TestDefaults(t *testing.T) {
	c, warnings, err := Parse("f", []byte("node: lb1\n"+valid))
	if err != nil || len(warnings) != 0 {
		t.Fatal(err, warnings)
	}
	want := &Config{
		Node:          "lb1",
		Group:         Group{Peers: 1},
		StateDir:      "/var/lib/sluice",
		Control:       Control{Socket: "/run/sluice/control.sock"},
		Interfaces:    []Interface{{Name: "eth0", Mode: ModeAuto, FastPath: FastPathAuto, Queues: AllQueues}},
		WithoutDaemon: WithoutDaemon{For: Duration(10 * time.Minute), Then: VerdictPass, Pins: "/sys/fs/bpf/sluice"},
		Flows:         4_000_000,
		Tunnel:        Tunnel{GUEPort: 6080, Oversize: OversizeFragment},
		Services: []Service{{
			Name: "web", VIP: netip.MustParseAddr("192.0.2.10"), Protocol: TCP, Ports: Ports{{80, 80}}, Forward: ForwardIPIP,
			OnNoBackend: NoBackendDrop, Scheduler: SchedulerMaglev, TableSize: 65537, OnDown: DownKeep, FlowTable: true,
			Lifetimes:  Lifetimes{New: 2 * time.Hour, Established: 2 * time.Hour, Closing: 30 * time.Second},
			SYNDefence: SYNOff, AgentPort: 9546,
			Passive: Passive{Mode: PassiveEject, Ejection: Duration(10 * time.Second), Longest: Duration(5 * time.Minute), MaxShare: 25},
			Quorum:  1,
			Backends: []Backend{
				{Name: "a", Address: netip.MustParseAddr("10.0.0.1"), Weight: 100},
				{Name: "b", Address: netip.MustParseAddr("10.0.0.2"), Weight: 100},
			},
		}},
		Limits:     Limits{PerSource: SourceLimits{IPv4Prefix: 32, IPv6Prefix: 64, Table: 1_000_000}},
		SYNDefence: SYNOff, AgentPort: 9546,
		Metrics:   Metrics{Listen: netip.MustParseAddrPort("127.0.0.1:9545")},
		DrainTime: 30 * time.Second,
		Log:       Log{Level: "info", Format: "text"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got\n%+v\nwant\n%+v", c, want)
	}
}

func TestHostNameIsTheDefaultNode(t *testing.T) {
	host, err := os.Hostname()
	if err != nil || !namePattern.MatchString(host) {
		t.Fatalf("this test needs a host name that is a plain name, found %q: %v", host, err)
	}
	c, _, err := Parse("f", []byte(valid))
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != host {
		t.Errorf("node is %q, want the host name %q", c.Node, host)
	}
}

func TestPorts(t *testing.T) {
	for _, row := range []struct {
		in   string
		want Ports
		text string
	}{
		{"80", Ports{{80, 80}}, "80"},
		{"any", Ports{{0, 65535}}, "any"},
		{"8000-8999", Ports{{8000, 8999}}, "8000-8999"},
		{"[443, 80]", Ports{{80, 80}, {443, 443}}, "80,443"},
		{"[81, 80, 82-90, 85-100]", Ports{{80, 100}}, "80-100"},
		{"[1-65535]", Ports{{1, 65535}}, "1-65535"},
		{"65535", Ports{{65535, 65535}}, "65535"},
	} {
		c, _, err := Parse("f", []byte(strings.Replace(valid, "ports: 80", "ports: "+row.in, 1)))
		if err != nil {
			t.Errorf("%s: %v", row.in, err)
			continue
		}
		if got := c.Services[0].Ports; !reflect.DeepEqual(got, row.want) || got.String() != row.text {
			t.Errorf("%s: got %v %q, want %v %q", row.in, []PortRange(got), got, []PortRange(row.want), row.text)
		}
	}
}

func TestPortsOverlap(t *testing.T) {
	a := Ports{{10, 20}, {30, 40}, {100, 100}}
	for _, row := range []struct {
		b    Ports
		port uint16
		ok   bool
	}{
		{Ports{{0, 9}, {21, 29}, {41, 99}, {101, 65535}}, 0, false},
		{Ports{{0, 9}, {35, 36}}, 35, true},
		{Ports{{0, 65535}}, 10, true},
		{Ports{{50, 100}}, 100, true},
		{nil, 0, false},
	} {
		if port, ok := a.Overlap(row.b); port != row.port || ok != row.ok {
			t.Errorf("%v and %v: got %d %v, want %d %v", a, row.b, port, ok, row.port, row.ok)
		}
		if port, ok := row.b.Overlap(a); port != row.port || ok != row.ok {
			t.Errorf("%v and %v: got %d %v, want %d %v", row.b, a, port, ok, row.port, row.ok)
		}
	}
}

func TestCPUs(t *testing.T) {
	for in, want := range map[string]CPUs{`"3"`: {3}, "1-3,5": {1, 2, 3, 5}, "5, 0-1, 1": {0, 1, 5}} {
		c, _, err := Parse("f", []byte(valid+"cpus: "+in+"\n"))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if !reflect.DeepEqual(c.CPUs, want) {
			t.Errorf("%s: got %v, want %v", in, []int(c.CPUs), []int(want))
		}
	}
	if got := (CPUs{0, 1, 2, 5, 7, 8}).String(); got != "0-2,5,7-8" {
		t.Errorf("got %s", got)
	}
}

func TestFlows(t *testing.T) {
	for in, want := range map[string]uint64{"1k": 1000, "4M": 4_000_000, "1000000": 1_000_000, "1000M": 1_000_000_000} {
		c, _, err := Parse("f", []byte(valid+"flows: "+in+"\n"))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if c.Flows != want {
			t.Errorf("%s: got %d, want %d", in, c.Flows, want)
		}
	}
}

// An alias of a whole value is ordinary YAML, and saves operators from writing a check ten times.
func TestAliases(t *testing.T) {
	data := strings.Replace(valid, "    ports: 80\n", "    ports: 80\n    check: &c {type: http}\n", 1) +
		second + "    check: *c\n"
	c, _, err := Parse("f", []byte(data))
	if err != nil {
		t.Fatal(err)
	}
	if got := *c.Services[1].Check; got.Type != CheckHTTP || got.Port != 81 {
		t.Errorf("got %+v", got)
	}
}

// Files whose aliases multiply are refused in bounded time and memory.
func TestAliasesThatMultiply(t *testing.T) {
	var b strings.Builder
	b.WriteString("interfaces: [{name: eth0}]\nservices:\n  - &s\n    name: a\n    backends:\n      - &b {name: x, address: 10.0.0.1}\n")
	b.WriteString(strings.Repeat("      - *b\n", 20_000))
	b.WriteString(strings.Repeat("  - *s\n", 20_000))
	_, _, err := Parse("f", []byte(b.String()))
	if err == nil || !strings.Contains(err.Error(), "aliases that multiply") {
		t.Errorf("got %.200v", err)
	}
}

func TestManyProblems(t *testing.T) {
	data := valid + strings.Repeat("  - 5\n", 16_000)
	_, _, err := Parse("f", []byte(data))
	var e *Error
	if !errors.As(err, &e) || len(e.Problems) != maxProblems+1 {
		t.Fatalf("got %.200v", err)
	}
	if got := e.Problems[maxProblems].Text; got != "found 15900 more problems from here on" {
		t.Errorf("got %q", got)
	}
}

func TestCanonicalRoundTrip(t *testing.T) {
	c, _, err := Load(withSeed(t, example(t)))
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := Parse("f", c.Canonical())
	if err != nil {
		t.Fatal(err)
	}
	again.Group.Seed = c.Group.Seed
	if !reflect.DeepEqual(c, again) {
		t.Errorf("got\n%+v\nwant\n%+v", again, c)
	}
	if c.Hash() != again.Hash() || len(c.Hash()) != 12 {
		t.Errorf("hashes %s and %s", c.Hash(), again.Hash())
	}
	again.Services[0].Backends[0].Name = "another"
	if c.Hash() == again.Hash() {
		t.Error("another backend did not change the hash")
	}
}

// example returns the content of the commented example.
func example(t testing.TB) []byte {
	data, err := os.ReadFile(filepath.Join("..", "..", "deploy", "sluice.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// withSeed writes data to a file, with a seed file of its own in place of the example's.
func withSeed(t testing.TB, data []byte) (path string) {
	dir := t.TempDir()
	seed := filepath.Join(dir, "group.key")
	if err := os.WriteFile(seed, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "sluice.yaml")
	if err := os.WriteFile(path, bytes.ReplaceAll(data, []byte("/etc/sluice/group.key"), []byte(seed)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExample(t *testing.T) {
	c, warnings, err := Load(withSeed(t, example(t)))
	if err != nil || len(warnings) != 0 {
		t.Fatal(err, warnings)
	}
	if len(c.Services) != 7 || c.Group.Seed.IsZero() || c.Group.Peers != 2 {
		t.Errorf("got %+v", c)
	}
	if got := fmt.Sprint(c.VIPs()); got != "[192.0.2.10 192.0.2.21 192.0.2.53 192.0.2.80 192.0.2.90 192.0.2.91 2001:db8::10]" {
		t.Errorf("VIPs %s", got)
	}
	// Complete: it shows every field, commented out where the default is better.
	for _, f := range schema {
		if !bytes.Contains(example(t), []byte(f.name()+":")) {
			t.Errorf("deploy/sluice.yaml does not show %s", f.path)
		}
	}
}

func TestLoadOfNoFile(t *testing.T) {
	_, _, err := Load(filepath.Join(t.TempDir(), "none.yaml"))
	var e *Error
	if err == nil || errors.As(err, &e) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, _, err = Load(t.TempDir()); err == nil || errors.As(err, &e) {
		t.Errorf("a directory: got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(example(f))
	f.Add([]byte(valid))
	f.Add([]byte(valid + second))
	f.Add([]byte("interfaces: &x [*x]\nservices: *x\n"))
	f.Add([]byte("cpus: \"0-8191\"\nflows: 1000M\nlog: {level: debug}\n" + valid))
	f.Add([]byte(strings.Replace(valid, "ports: 80", "ports: [any, 1-2, '3']", 1)))
	f.Add([]byte("tunnel: {oversize: drop, source_ipv4: 10.7.0.0/16}\n" + and(nat, "ipip", "nat", "10.0.0.1}", "10.0.0.1, port: 82}")))
	f.Add([]byte(strings.NewReplacer("forward: nat", "forward: nat\n    clamp_mss: off\n    on_no_backend: reject", "name: eth0", "name: eth0\n    vlan: 7").Replace(nat)))
	f.Add([]byte(weighing(with("scheduler: source\n    source_prefix: 24\n    table_size: 251\n    slow_start: 1m\n    on_down: reset"), 0, 65535)))
	f.Add([]byte(udp(with("flow_table: off\n    lifetimes: {new: 1m, established: 5s, closing: 2h}"))))
	f.Add([]byte("limits: {deny: [10.0.0.0/8, '::/0', 192.0.2.1], allow_files: [/b, /a], per_source: {packets: 50k/s, burst: 100ms}, node: {syns: 7/s, action: observe}}\n" +
		"syn_defence: auto\n" + with("syn_defence: challenge\n    limits: {allow: ['2001:db8::/32'], total: {flows: 1M/s}}")))
	f.Add([]byte(checking(`{type: https, via: tunnel, host: "a:443", expect: {status: [200, 300-302], headers: [A, "B: c"], body: 0x00, body_regexp: "a|b"}, tls: {verify: off}}`)))
	f.Add([]byte(checking("{type: exec, command: [/checks/a, -x], memory: 1M}\n    readiness: {type: dns, port: 53, query: {name: ., type: NS}}\n    passive: {mode: off}\n    quorum: 2")))
	f.Add([]byte(checking("{type: agent, port: 1, send: \"a\\r\\n\"}\n    readiness: {type: grpc, grpc_service: a.B, tls: {cert_file: /c, key_file: /k}}\n    panic_threshold: 50")))
	f.Add([]byte("a: [\x00"))
	f.Add([]byte("? {a: b}\n: !!binary x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, _, err := Parse("f", data)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || len(e.Problems) == 0 {
				t.Fatalf("no list of problems: %v", err)
			}
			for _, p := range e.Problems {
				if p.Line < 1 || p.Column < 1 || strings.Contains(p.String(), "\n") {
					t.Fatalf("a problem without a place, or of several lines: %q", p.String())
				}
			}
			return
		}
		again, _, err := Parse("f", c.Canonical())
		if err != nil {
			t.Fatalf("the canonical form is refused: %v\n%s", err, c.Canonical())
		}
		if !reflect.DeepEqual(c, again) {
			t.Fatalf("the canonical form differs:\n%+v\n%+v", c, again)
		}
	})
}
