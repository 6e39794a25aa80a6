//go:build linux

package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/internal/agent"
	"github.com/sluice-lb/sluice/internal/agent/capability"
)

func TestPrintStatus(t *testing.T) {
	st := agent.Status{
		Running: true, PID: 42, VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")},
		NAT: []capability.Mapping{{VIP: netip.MustParseAddrPort("[2001:db8::10]:80"), Local: netip.MustParseAddrPort("[fd00::11]:8080")}}, Listen: ":9546",
		Interfaces: []string{"eth0", "eth1"}, Sysctls: []string{"net/ipv4/conf/all/arp_ignore=1 (was 0)"},
		Cookies: true, GUEPort: 6080, ClampMSS: agent.MSS{IPv4: 1412, IPv6: 1392},
		Packets: agent.Counters{DecapsulatedIPv4: 1, DecapsulatedIPv6: 2, NotVIP: 3, Fragment: 4, Malformed: 5, Source: 6, ECN: 7, Failed: 8, Merged: 9, Clamped: 10,
			CookieAccepted: 11, CookieBad: 12, CookieTimeWait: 13, CookieRefused: 14, CookieNoMemory: 15, CookieFailed: 16},
	}
	want := `agent                          running (pid 42)
interfaces                     eth0, eth1
VIP                            192.0.2.10
VIP                            2001:db8::10
NAT                            [2001:db8::10]:80=[fd00::11]:8080
GUE                            UDP port 6080
largest MSS                    1412 (IPv4), 1392 (IPv6)
SYN cookies                    accepted
asked at                       :9546
sysctl                         net/ipv4/conf/all/arp_ignore=1 (was 0)
decapsulated IPv4              1
decapsulated IPv6              2
left alone: not to a VIP       3
left alone: outer fragment     4
left alone: malformed          5
left alone: merged by the interface 9
dropped: source not allowed    6
dropped: ECN (RFC 6040)        7
dropped: refused by the kernel 8
SYN-ACKs with a lowered MSS    10
SYN cookies: accepted          11
SYN cookies: invalid, or none  12
SYN cookies: ended TIME_WAIT first 13
SYN cookies: refused (MPTCP listener?) 14
SYN cookies: no memory         15
SYN cookies: other error       16
`
	var out bytes.Buffer
	if err := printStatus(&out, st); err != nil {
		t.Fatal(err)
	}
	var lines []string // the table's padding is not what this is about
	for l := range strings.Lines(out.String()) {
		lines = append(lines, strings.Join(strings.Fields(l), " "))
	}
	for i, l := range strings.Split(strings.TrimSpace(want), "\n") {
		if i >= len(lines) || lines[i] != strings.Join(strings.Fields(l), " ") {
			t.Fatalf("printed:\n%s\nwant:\n%s", out.String(), want)
		}
	}

	st.Running, st.GUEPort, st.ClampMSS, st.Cookies, st.Listen = false, 0, agent.MSS{}, false, ""
	out.Reset()
	if err := printStatus(&out, st); err != nil || !strings.Contains(out.String(), "killed (pid 42)") ||
		strings.Count(out.String(), " off\n") != 4 || strings.Contains(out.String(), "SYN cookies:") {
		t.Errorf("of a killed agent: %v\n%s", err, out.String())
	}
}

// TestArguments: what is wrong on the command line is told, all of it, before anything is touched.
func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args string
		want []string
	}{
		{"run", []string{"interface"}},
		{"run --interface eth0", []string{"--vip", "--nat"}},
		{"run --interface eth0 --nat 192.0.2.1:80=10.0.0.1 --nat x --nat 2001:db8::1:80=[fd00::1]:80 --vip y",
			[]string{`--nat "192.0.2.1:80=10.0.0.1"`, `--nat "x": give VIP:PORT=ADDRESS:PORT`, `--nat "2001:db8::1:80=[fd00::1]:80"`, "in brackets", `--vip "y"`}},
		{"run --interface eth0 --nat 192.0.2.1:80=10.0.0.1:80", []string{"--nat: ", "--cookie-seed"}},
		{"run --interface eth0 --vip 192.0.2.1 --listen :9546", []string{"--listen :9546", "--cookie-seed"}},
		{"run --interface eth0 --vip 192.0.2.1 --cookie-seed x --listen host:1", []string{"--listen host:1", `"host" is not an address`}},
		{"run --interface eth0 --vip 192.0.2.1 --cookie-seed x --listen 9546", []string{"--listen 9546", "ADDRESS:PORT"}},
		{"run --interface eth0 --vip 192.0.2.1 --cookie-seed x --listen :0", []string{"--listen :0", "from 1 to 65535"}},
		{"run --interface eth0 --vip 1.2.3 --vip x --source 10.0.0.0/40 --address y", []string{`--vip "1.2.3"`, `--vip "x"`, `--source "10.0.0.0/40"`, `--address "y"`}},
		{"run --interface eth0 --vip 192.0.2.1 --log-format xml", []string{`--log-format "xml"`, "text or json"}},
		{"run --interface eth0 --vip 192.0.2.1 --log-level loud", []string{`--log-level "loud"`, "debug, info, warn or error"}},
		{"run --interface eth0 --vip 192.0.2.1 --clamp-mss 535", []string{`--clamp-mss "535"`, "auto, off, or bytes from 536 to 65495"}},
		{"run --interface eth0 --vip 192.0.2.1 --clamp-mss 65496", []string{`--clamp-mss "65496"`}},
		{"run --interface eth0 --vip 192.0.2.1 --clamp-mss on", []string{`--clamp-mss "on"`}},
		{"run --interface eth0 --vip 192.0.2.1 --gue-port 65536", []string{"gue-port", "65536"}},
		{"run --interface eth0 --vip 192.0.2.1 more", []string{"more"}},
		{"dance", []string{"dance"}},
	} {
		cmd := command()
		cmd.SetArgs(strings.Fields(c.args))
		cmd.SetOut(new(bytes.Buffer))
		cmd.SetErr(new(bytes.Buffer))
		err := cmd.Execute()
		if err == nil {
			t.Errorf("sluice-agent %s: no error", c.args)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("sluice-agent %s: error %q without %q", c.args, err, w)
			}
		}
	}

	var out bytes.Buffer
	cmd := command()
	cmd.SetArgs([]string{"version"})
	cmd.SetOut(&out)
	if err := cmd.Execute(); err != nil || !strings.HasPrefix(out.String(), "sluice-agent "+version+" (go") {
		t.Errorf("version: %q, %v", out.String(), err)
	}
}

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.1": "10.0.0.1/32", "10.0.0.0/8": "10.0.0.0/8", "fd00::1": "fd00::1/128", "fd00::/64": "fd00::/64"} {
		if p, err := parsePrefix(in); err != nil || p.String() != want {
			t.Errorf("%s became %v, %v", in, p, err)
		}
	}
}
