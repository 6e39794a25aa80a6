package config

import (
	"strings"
	"testing"
)

// nat is the valid file with NAT.
var nat = strings.Replace(valid, "forward: ipip", "forward: nat", 1)

// and returns a file with the second service, changed by pairs of old and new.
func and(file string, changes ...string) string {
	return file + strings.NewReplacer(changes...).Replace(second)
}

var forwardingRefusals = []refusal{
	{"VLAN zero", "  - name: eth0\n", "  - name: eth0\n    vlan: 0\n", []string{
		"f:3:11: interfaces[0].vlan: found 0, expected a number from 1 to 4094",
	}},
	{"VLAN too high", "  - name: eth0\n", "  - name: eth0\n    vlan: 4095\n", []string{
		"f:3:11: interfaces[0].vlan: found 4095, expected a number from 1 to 4094",
	}},
	{"oversize", "", "tunnel: {oversize: fragments}\n", []string{
		"f:1:20: tunnel.oversize: found \"fragments\", expected fragment or drop (did you mean fragment?)",
	}},
	{"on_no_backend", "    forward: ipip\n", "    forward: ipip\n    on_no_backend: rejet\n", []string{
		"f:9:20: services[0].on_no_backend: found \"rejet\", expected drop or reject (did you mean reject?)",
	}},
	{"clamp of a tunnel", "    forward: ipip\n", "    forward: ipip\n    clamp_mss: 1400\n", []string{
		"f:9:16: services[0].clamp_mss: found 1400 for tcp and forward: ipip, expected none (SYNs are changed for tcp and forward: nat only; with ipip and gue, sluice-agent --clamp-mss changes SYN-ACKs)",
	}},
	{"clamp of UDP", valid, strings.NewReplacer("protocol: tcp", "protocol: udp", "forward: ipip\n", "forward: nat\n    clamp_mss: off\n").Replace(valid), []string{
		"f:9:16: services[0].clamp_mss: found \"off\" for udp and forward: nat, expected none (SYNs are changed for tcp and forward: nat only; with ipip and gue, sluice-agent --clamp-mss changes SYN-ACKs)",
	}},
	{"clamp too low", "    forward: ipip\n", "    forward: nat\n    clamp_mss: 535\n", []string{
		"f:9:16: services[0].clamp_mss: found 535, expected off, auto, or a number from 536 to 65495",
	}},
	{"clamp too high", "    forward: ipip\n", "    forward: nat\n    clamp_mss: 65496\n", []string{
		"f:9:16: services[0].clamp_mss: found 65496, expected off, auto, or a number from 536 to 65495",
	}},
	{"clamp quoted", "    forward: ipip\n", "    forward: nat\n    clamp_mss: '1400'\n", []string{
		"f:9:16: services[0].clamp_mss: found \"1400\", expected off, auto, or a number from 536 to 65495 (without quotes)",
	}},
	{"clamp a list", "    forward: ipip\n", "    forward: nat\n    clamp_mss: [auto]\n", []string{
		"f:9:16: services[0].clamp_mss: found a list, expected off, auto, or a number from 536 to 65495",
	}},
	{"nat across families", valid, strings.Replace(nat, "10.0.0.1", "2001:db8::1", 1), []string{
		"f:11:18: services[0].backends[0].address: found 2001:db8::1 behind the VIP 192.0.2.10, expected an address of the VIP's family (forward: nat keeps the client's address; ipip and gue cross families)",
	}},
	{"backend port without nat", "      - name: b\n", "      - name: b\n        port: 8080\n", []string{
		"f:13:15: services[0].backends[1].port: found a port with forward: ipip, expected none (a backend receives on the port that the client used; forward: nat translates it)",
	}},
	{"backend port zero", valid, strings.Replace(nat, "- name: b\n", "- name: b\n        port: 0\n", 1), []string{
		"f:13:15: services[0].backends[1].port: found 0, expected a number from 1 to 65535",
	}},
	{"backend port for two ports", valid, strings.NewReplacer("ports: 80", "ports: [80, 443]", "- name: b\n", "- name: b\n        port: 8080\n").Replace(nat), []string{
		"f:13:15: services[0].backends[1].port: found a port for a service with the ports 80,443, expected none, or a service with a single port (a reply from port 8080 could belong to any of them)",
	}},
	{"backend port for any port", valid, strings.NewReplacer("ports: 80", "ports: any", "- name: b\n", "- name: b\n        port: 8080\n").Replace(nat), []string{
		"f:13:15: services[0].backends[1].port: found a port for a service with the ports any, expected none, or a service with a single port (a reply from port 8080 could belong to any of them)",
	}},
	{"backends on several ports without a check port", valid, strings.NewReplacer("- name: b\n", "- name: b\n        port: 8080\n", "forward: nat\n", "forward: nat\n    check: {type: tcp}\n").Replace(nat), []string{
		"f:9:12: services[0].check: found no port, expected a port from 1 to 65535 (only a service of the check's protocol whose backends receive on a single port lends it to its check)",
	}},
	{"ambiguous: two VIPs", valid, and(nat, "192.0.2.10", "192.0.2.11", "ports: 81", "ports: 80", "ipip", "nat"), []string{
		"f:19:35: services[1].backends[0].address: found 10.0.0.1 tcp port 80, where the backend on line 11 receives too, expected another address or port (with forward: nat, a reply from 10.0.0.1 port 80 could belong to either)",
	}},
	{"ambiguous: two ports of a VIP", valid, and(nat, "10.0.0.1}", "10.0.0.1, port: 80}", "ipip", "nat"), []string{
		"f:19:35: services[1].backends[0].address: found 10.0.0.1 tcp port 80, where the backend on line 11 receives too, expected another address or port (with forward: nat, a reply from 10.0.0.1 port 80 could belong to either)",
	}},
	{"ambiguous: translated to the same port", valid, and(strings.Replace(nat, "address: 10.0.0.2\n", "address: 10.0.0.2\n        port: 8080\n", 1),
		"10.0.0.1}", "10.0.0.2, port: 8080}", "ipip", "nat"), []string{
		"f:20:35: services[1].backends[0].address: found 10.0.0.2 tcp port 8080, where the backend on line 13 receives too, expected another address or port (with forward: nat, a reply from 10.0.0.2 port 8080 could belong to either)",
	}},
	{"ambiguous: a range and a port in it", valid, and(strings.Replace(nat, "ports: 80", "ports: [80, 8000-8999]", 1),
		"192.0.2.10", "192.0.2.11", "10.0.0.1}", "10.0.0.2, port: 8080}", "ipip", "nat"), []string{
		"f:19:35: services[1].backends[0].address: found 10.0.0.2 tcp port 8080, where the backend on line 13 receives too, expected another address or port (with forward: nat, a reply from 10.0.0.2 port 8080 could belong to either)",
	}},
	{"ambiguous: two ranges", valid, and(strings.Replace(nat, "ports: 80", "ports: 100-200", 1),
		"192.0.2.10", "192.0.2.11", "ports: 81", "ports: 50-150", "ipip", "nat"), []string{
		"f:19:35: services[1].backends[0].address: found 10.0.0.1 tcp port 100, where the backend on line 11 receives too, expected another address or port (with forward: nat, a reply from 10.0.0.1 port 100 could belong to either)",
	}},
	{"ambiguous: any", valid, and(strings.Replace(nat, "ports: 80", "ports: any", 1), "192.0.2.10", "192.0.2.11", "ipip", "nat"), []string{
		"f:19:35: services[1].backends[0].address: found 10.0.0.1 tcp port 81, where the backend on line 11 receives too, expected another address or port (with forward: nat, a reply from 10.0.0.1 port 81 could belong to either)",
	}},
	{"overlapping services are not also ambiguous", valid, and(nat, "ports: 81", "ports: 80", "ipip", "nat"), []string{
		"f:17:12: services[1].ports: found port 80 of 192.0.2.10 tcp, which the service on line 7 takes, expected ports that no other service of the VIP and protocol takes",
	}},
	{"outer source with a VIP", "", "tunnel: {source_ipv4: 192.0.2.0/24}\n", []string{
		"f:1:23: tunnel.source_ipv4: found 192.0.2.0/24, which holds the VIP 192.0.2.10 of line 6, expected a prefix of its own (nothing else may have an address that outer sources are taken from)",
	}},
	{"outer source with a backend", "", "tunnel: {source_ipv4: 10.0.0.2/31}\n", []string{
		"f:1:23: tunnel.source_ipv4: found 10.0.0.2/31, which holds the backend 10.0.0.2 of line 14, expected a prefix of its own (nothing else may have an address that outer sources are taken from)",
	}},
	{"outer source with an IPv6 backend", valid, "tunnel: {source_ipv6: 'fd00:7::/64'}\n" + strings.Replace(valid, "10.0.0.2", "fd00:7::2", 1), []string{
		"f:1:23: tunnel.source_ipv6: found fd00:7::/64, which holds the backend fd00:7::2 of line 14, expected a prefix of its own (nothing else may have an address that outer sources are taken from)",
	}},
}

// What a reply's source tells apart is taken.
func TestUnambiguousNAT(t *testing.T) {
	for name, file := range map[string]string{
		"two ports of a VIP":                  and(nat, "ipip", "nat"),
		"two VIPs, two ports":                 and(nat, "192.0.2.10", "192.0.2.11", "ipip", "nat"),
		"two VIPs, translated":                and(nat, "192.0.2.10", "192.0.2.11", "ports: 81", "ports: 80", "10.0.0.1}", "10.0.0.1, port: 8080}", "ipip", "nat"),
		"two protocols":                       and(nat, "192.0.2.10", "192.0.2.11", "ports: 81", "ports: 80", "protocol: tcp", "protocol: udp", "ipip", "nat"),
		"another backend":                     and(nat, "192.0.2.10", "192.0.2.11", "ports: 81", "ports: 80", "10.0.0.1", "10.0.0.3", "ipip", "nat"),
		"a tunnel to the same backend":        and(nat, "192.0.2.10", "192.0.2.11", "ports: 81", "ports: 80"),
		"ranges that touch":                   and(strings.Replace(nat, "ports: 80", "ports: 80-89", 1), "192.0.2.10", "192.0.2.11", "ports: 81", "ports: 90-99", "ipip", "nat"),
		"a VIP's ports swapped by two others": and(strings.ReplaceAll(nat, "        address: 10.0.0.1\n", "        address: 10.0.0.1\n        port: 81\n"), "10.0.0.1}", "10.0.0.1, port: 80}", "ipip", "nat"),
	} {
		if _, _, err := Parse("f", []byte(file)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestForwardingFields(t *testing.T) {
	file := strings.NewReplacer("- name: eth0\n", "- name: eth0\n    vlan: 4094\n", "- name: b\n", "- name: b\n        port: 65535\n",
		"forward: nat\n", "forward: nat\n    on_no_backend: reject\n").Replace(nat) + "tunnel: {oversize: drop}\n"
	c, _, err := Parse("f", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	s := c.Services[0]
	if c.Interfaces[0].VLAN != 4094 || s.Forward != ForwardNAT || s.OnNoBackend != NoBackendReject || c.Tunnel.Oversize != OversizeDrop ||
		s.Backends[0].Port != 0 || s.Backends[1].Port != 65535 {
		t.Errorf("got %+v", c)
	}
	for in, want := range map[string]Clamp{"": ClampAuto, "clamp_mss: auto": ClampAuto, "clamp_mss: off": ClampOff, "clamp_mss: 'off'": ClampOff,
		"clamp_mss: 536": 536, "clamp_mss: 65495": 65495} {
		c, _, err := Parse("f", []byte(strings.Replace(nat, "forward: nat\n", "forward: nat\n    "+in+"\n", 1)))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := c.Services[0].ClampMSS; got != want {
			t.Errorf("%s: got %d, want %d", in, got, want)
		}
		again, _, err := Parse("f", c.Canonical())
		if err != nil || again.Services[0].ClampMSS != want {
			t.Errorf("%s: the canonical form: %v\n%s", in, err, c.Canonical())
		}
	}
}

// The port that a check gets without one is where the backends receive.
func TestCheckPortOfNAT(t *testing.T) {
	for _, row := range []struct {
		a, b string // further fields of the backends
		want uint16
	}{
		{"", "", 80},
		{"port: 8080", "port: 8080", 8080},
		{"port: 80", "", 80},
		{"", "port: 80", 80},
	} {
		file := strings.NewReplacer("forward: nat\n", "forward: nat\n    check: {type: tcp}\n",
			"name: a\n", "name: a\n        "+row.a+"\n", "name: b\n", "name: b\n        "+row.b+"\n").Replace(nat)
		c, _, err := Parse("f", []byte(file))
		if err != nil {
			t.Errorf("%q %q: %v", row.a, row.b, err)
		} else if got := c.Services[0].Check.Port; got != row.want {
			t.Errorf("%q %q: got %d, want %d", row.a, row.b, got, row.want)
		}
	}
}
