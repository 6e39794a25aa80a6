package nic

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// python is the system's, which has Debian's modules; the first in PATH may be another.
const python = "/usr/bin/python3"

// run runs a program in this directory and returns what it wrote. What it needs is a Debian package; without it the test
// fails, or is left out by -short.
func run(t *testing.T, debian string, env []string, program string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if testing.Short() {
			t.Skipf("%s is missing", program)
		}
		t.Fatalf("%v: needs Debian package %s (.ci/install %[2]s)", err, debian)
	}
	c := exec.Command(program, args...)
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	return string(out), err
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	all, err := filepath.Glob(pattern)
	if err != nil || len(all) == 0 {
		t.Fatalf("%s: %v, %v", pattern, all, err)
	}
	return all
}

func TestShellSyntax(t *testing.T) {
	for _, shell := range []string{"bash", "dash"} {
		for _, f := range files(t, "pktgen/*.sh") {
			if out, err := run(t, shell, nil, shell, "-n", f); err != nil {
				t.Errorf("%s -n %s: %v\n%s", shell, f, err, out)
			}
		}
	}
	// From the top, as the scripts name the file that they read.
	args := []string{"-x", "-P", "../.."}
	if out, err := run(t, "shellcheck", nil, "shellcheck", append(args, files(t, "pktgen/*.sh")...)...); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}

// A script sends nothing unless it knows where to, and not to everybody.
func TestScriptRefuses(t *testing.T) {
	whole := func(changed ...string) []string {
		return append([]string{"-i", "lo", "-m", "02:00:00:00:00:01", "-d", "192.0.2.10"}, changed...)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "-i"},
		{[]string{"-i", "lo", "-d", "192.0.2.10"}, "-m"},
		{[]string{"-i", "lo", "-m", "02:00:00:00:00:01"}, "-d"},
		{whole("-m", "ff:ff:ff:ff:ff:ff"), "group address"},
		{whole("-m", "2:0:0:0:0:1"), "expected a MAC"},
		{whole("-d", "224.0.0.1"), "no unicast address"},
		{whole("-d", "255.255.255.255"), "no unicast address"},
		{whole("-d", "127.0.0.1"), "no unicast address"},
		{whole("-d", "192.0.2"), "expected an IPv4 address"},
		{whole("-d", "192.0.2.1000"), "expected an IPv4 address"},
		{whole("-t", "0"), "expected 1 to 3600"},
		{whole("-t", "1h"), "expected a number"},
		{whole("-p", "65536"), "expected 1 to 65535"},
		{whole("-f", "1000000", "-S", "1"), "raise -S"},
		{whole("-d", "2001:db8::1", "-f", "100000"), "lower -f"},
		{whole("-c", "3-1"), "-c"},
		{whole("more"), `"more"`},
		{whole("-x"), "usage"},
	} {
		for _, script := range []string{"flood.sh", "imix.sh"} {
			out, err := run(t, "dash", nil, "dash", append([]string{"pktgen/" + script}, c.args...)...)
			if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 2 || !strings.Contains(out, c.want) {
				t.Errorf("%s %v: %v, expected exit status 2 and %q; output:\n%s", script, c.args, err, c.want, out)
			}
		}
	}
}

func TestLuaSyntax(t *testing.T) {
	for _, f := range files(t, "dpdk-pktgen/*.lua") {
		if out, err := run(t, "lua5.4", nil, "luac5.4", "-p", f); err != nil {
			t.Errorf("luac -p %s: %v\n%s", f, err, out)
		}
	}
}

func lua(t *testing.T, script string, env ...string) (string, error) {
	t.Helper()
	env = append([]string{"VIP=192.0.2.10", "MAC=02:00:00:00:00:01"}, env...)
	return run(t, "lua5.4", env, "lua5.4", "testdata/pktgen.lua", "dpdk-pktgen/"+script)
}

func TestLua(t *testing.T) {
	for _, c := range []struct {
		script string
		env    []string
		want   []string
	}{
		{"flows.lua", []string{"FLOWS=1000000", "SOURCES=1000", "SECONDS=3", "RATE=30"}, []string{
			"1001000 flows: 1000 sources with 1001 ports", // no common divisor
			"pktgen.range.src_ip 0 min 198.18.0.1", "pktgen.range.src_ip 0 max 198.18.3.232", "pktgen.range.src_ip 0 inc 0.0.0.1",
			"pktgen.range.src_port 0 max 2024", "pktgen.range.dst_ip 0 max 192.0.2.10", "pktgen.range.dst_mac 0 start 02:00:00:00:00:01",
			"pktgen.range.pkt_size 0 max 64", "pktgen.delay 3000", "rate 30 %: sent 30000, received 30000",
		}},
		{"imix.lua", []string{"TX=2", "RX=3"}, []string{"pktgen.set 2 seq_cnt 12", "pktSize=1518", "pktgen.start 2", "sent 100000, received 40000"}},
		{"sweep.lua", []string{"SIZES=64 1518"}, []string{"64 bytes: no loss at 39.8438 %", "1518 bytes: no loss at 39.8438 %", "pktgen.delay 60000"}},
		{"sweep.lua", []string{"SIZES=64", "LOSS=60"}, []string{"64 bytes: no loss at 100 %"}},
	} {
		out, err := lua(t, c.script, c.env...)
		if err != nil {
			t.Fatalf("%s: %v\n%s", c.script, err, out)
		}
		for _, w := range c.want {
			if !strings.Contains(out, w) {
				t.Errorf("%s with %v: expected %q in:\n%s", c.script, c.env, w, out)
			}
		}
		if starts, stops := strings.Count(out, "pktgen.start"), strings.Count(out, "pktgen.stop"); starts == 0 || starts != stops {
			t.Errorf("%s: %d starts, %d stops", c.script, starts, stops)
		}
	}
	for _, env := range []string{"MAC=", "MAC=01:00:5e:00:00:01", "VIP=", "VIP=192.0.2.1000", "SECONDS=0", "FLOWS=10000000", "RATE=101"} {
		if out, err := lua(t, "flows.lua", env, "SOURCES=10"); err == nil || strings.Contains(out, "pktgen.start") {
			t.Errorf("%s was taken:\n%s", env, out)
		}
	}
}

func TestPythonSyntax(t *testing.T) {
	// py_compile would leave files behind.
	const check = `import ast, sys; [ast.parse(open(f).read(), f) for f in sys.argv[1:]]`
	if out, err := run(t, "python3", nil, python, append([]string{"-c", check}, files(t, "trex/*.py")...)...); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// profile has a stand-in for TRex read a profile.
func profile(t *testing.T, result any, name string, tunables ...string) error {
	t.Helper()
	out, err := run(t, "python3-scapy", []string{"PYTHONPATH=testdata", "PYTHONDONTWRITEBYTECODE=1"}, python,
		append([]string{"-W", "ignore", "testdata/profile.py", "trex/" + name}, tunables...)...)
	if err != nil {
		if strings.Contains(out, "No module named 'scapy'") {
			if testing.Short() {
				t.Skip("scapy is missing")
			}
			t.Fatal("needs Debian package python3-scapy (.ci/install python3-scapy)")
		}
		return err
	}
	// Before it are scapy's warnings.
	line := out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]
	if err := json.Unmarshal([]byte(line), result); err != nil {
		t.Fatalf("%s: %v in %s", name, err, out)
	}
	return nil
}

// stream is a stream of TRex's stateless mode: a packet, and how its fields change.
type stream struct {
	Name   string
	PPS    float64
	Packet struct {
		Frame, Length, Port, Options      int
		Source, Destination, Layer, Flags string
		Checksums                         bool
	}
	VM []map[string]any
}

// field returns a parameter of the instruction of this type and name.
func (s *stream) field(kind, name, parameter string) any {
	for _, i := range s.VM {
		if i["type"] == kind && (i["name"] == name || i["fv_name"] == name || name == "") {
			return i[parameter]
		}
	}
	return nil
}

func TestStatelessProfiles(t *testing.T) {
	type want struct {
		name         string
		pps          float64
		frame        int
		layer, flags string
	}
	for _, c := range []struct {
		profile  string
		tunables []string
		want     []want
		sources  [2]string
		lastPort any
	}{
		{"imix.py", []string{"--pps", "12", "--flows", "512"},
			[]want{{"imix-64", 7, 64, "UDP", ""}, {"imix-594", 4, 594, "UDP", ""}, {"imix-1518", 1, 1518, "UDP", ""}},
			[2]string{"198.18.0.1", "198.18.1.0"}, 1025.0},
		{"million_flows.py", nil, []want{{"flows", 1000, 64, "TCP", "A"}}, [2]string{"198.18.0.1", "198.18.3.232"}, 2023.0},
		{"syn_flood.py", []string{"--source", "10.0.0.0", "--sources", "256"}, []want{{"syn", 1000, 78, "TCP", "S"}},
			[2]string{"10.0.0.0", "10.0.0.255"}, 65535.0},
	} {
		var got []stream
		if err := profile(t, &got, c.profile, append([]string{"--vip", "192.0.2.10", "--port", "443"}, c.tunables...)...); err != nil {
			t.Fatalf("%s: %v", c.profile, err)
		}
		if len(got) != len(c.want) {
			t.Fatalf("%s: %d streams, expected %d", c.profile, len(got), len(c.want))
		}
		for i, w := range c.want {
			s := &got[i]
			p := s.Packet
			if s.Name != w.name || s.PPS != w.pps || p.Frame != w.frame || p.Layer != w.layer || p.Flags != w.flags ||
				p.Destination != "192.0.2.10" || p.Port != 443 || p.Length != w.frame-18 || !p.Checksums {
				t.Errorf("%s: got %+v, expected %+v", c.profile, s, w)
			}
			tuple := func(parameter string) any { return s.field("STLVmTupleGen", "from", parameter) }
			first, last, port := tuple("ip_min"), tuple("ip_max"), tuple("port_max")
			if c.profile == "syn_flood.py" {
				first, last = s.field("STLVmFlowVar", "ip", "min_value"), s.field("STLVmFlowVar", "ip", "max_value")
				port = s.field("STLVmFlowVar", "port", "max_value")
				if s.field("STLVmWrFlowVar", "isn", "pkt_offset") != "TCP.seq" {
					t.Errorf("%s: sequence numbers do not change", c.profile)
				}
			}
			if first != c.sources[0] || last != c.sources[1] || port != c.lastPort {
				t.Errorf("%s: sources %v to %v, ports to %v; expected %v, %v", c.profile, first, last, port, c.sources, c.lastPort)
			}
			if s.VM[len(s.VM)-1]["type"] != "STLVmFixChecksumHw" || s.VM[len(s.VM)-1]["l4_offset"] != w.layer {
				t.Errorf("%s: the checksums are not put right at the end: %v", c.profile, s.VM)
			}
		}
	}
}

func TestStatefulProfile(t *testing.T) {
	var got struct {
		Templates struct {
			Client struct {
				Port, CPS, Limit float64
				Program          struct{ Steps []string }
			} `json:"client_template"`
			Server struct {
				Program struct{ Steps []string }
				Assoc   struct{ Port float64 }
			} `json:"server_template"`
		}
	}
	err := profile(t, &got, "tcp.py", "--vip", "192.0.2.10", "--port", "443", "--cps", "5", "--flows", "9", "--request", "20", "--response", "30")
	if err != nil {
		t.Fatal(err)
	}
	client, server := got.Templates.Client, got.Templates.Server
	if client.Port != 443 || server.Assoc.Port != 443 || client.CPS != 5 || client.Limit != 9 ||
		strings.Join(client.Program.Steps, ",") != "connect,send 20,recv 30" ||
		strings.Join(server.Program.Steps, ",") != "recv 20,send 30,wait_for_peer_close" {
		t.Errorf("got %+v", got.Templates)
	}
}

func TestProfilesRefuse(t *testing.T) {
	for _, c := range [][]string{
		{"imix.py"}, {"imix.py", "--vip", "2001:db8::1"}, {"imix.py", "--vip", "192.0.2.10", "--flows", "100000000"},
		{"million_flows.py", "--vip", "192.0.2.10", "--port", "0"},
		{"syn_flood.py", "--vip", "192.0.2.10", "--source", "255.255.255.0", "--sources", "257"},
		{"tcp.py"}, {"tcp.py", "--vip", "192.0.2.10", "--cps", "0"},
	} {
		var got any
		if err := profile(t, &got, c[0], c[1:]...); err == nil {
			t.Errorf("%v was taken: %v", c, got)
		}
	}
}
