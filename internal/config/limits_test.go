package config

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// top is the valid file with further lines at the top, the first of which is line 1.
func top(lines string) string { return lines + "\n" + valid }

var limitRefusals = []refusal{
	{"limits a number", "", "limits: 5\n", []string{
		"f:1:9: limits: found 5, expected a mapping",
	}},
	{"an unknown limit", "", "limits: {per_source: {pakets: 5/s}}\n", []string{
		"f:1:23: limits.per_source: found unknown field \"pakets\", expected one of ipv4_prefix, ipv6_prefix, packets, syns, flows, burst, action, table (did you mean packets?)",
	}},
	{"the node's table", "", "limits: {node: {table: 5k}}\n", []string{
		"f:1:17: limits.node: found unknown field \"table\", expected one of packets, syns, flows, burst, action",
	}},
	{"a total of everything", "", "limits: {total: {packets: 5/s}}\n", []string{
		"f:1:10: limits: found unknown field \"total\", expected one of deny, allow, deny_files, allow_files, per_source, node (services have it; limits has node)",
	}},
	{"a service's table", valid, with("limits: {per_source: {table: 5k}}"), []string{
		"f:9:27: services[0].limits.per_source: found unknown field \"table\", expected one of packets, syns, flows, burst, action (limits.per_source has it, for all services)",
	}},
	{"prefix lengths", "", "limits: {per_source: {ipv4_prefix: 7, ipv6_prefix: 129}}\n", []string{
		"f:1:36: limits.per_source.ipv4_prefix: found 7, expected a number from 8 to 32",
		"f:1:52: limits.per_source.ipv6_prefix: found 129, expected a number from 16 to 128",
	}},
	{"table too small", "", "limits: {per_source: {table: 999}}\n", []string{
		"f:1:30: limits.per_source.table: found 999, expected a number from 1k to 1000M",
	}},
	{"rates that are none", "", "limits: {node: {packets: 50k, syns: 50, flows: 50K/s}}\n", []string{
		"f:1:26: limits.node.packets: found \"50k\", expected a rate such as 200/s, 50k/s or 1M/s (with its time: 50k/s)",
		"f:1:37: limits.node.syns: found 50, expected a rate such as 200/s, 50k/s or 1M/s (with its time: 50/s)",
		"f:1:48: limits.node.flows: found \"50K/s\", expected a rate such as 200/s, 50k/s or 1M/s (k is a thousand, M a million)",
	}},
	{"rates of another time", "", "limits: {node: {packets: 50/m, syns: 1.5k/s, flows: [5/s]}}\n", []string{
		"f:1:26: limits.node.packets: found \"50/m\", expected a rate such as 200/s, 50k/s or 1M/s",
		"f:1:38: limits.node.syns: found \"1.5k/s\", expected a rate such as 200/s, 50k/s or 1M/s",
		"f:1:53: limits.node.flows: found a list, expected a rate such as 200/s, 50k/s or 1M/s",
	}},
	{"rates out of bounds", "", "limits: {node: {packets: 0/s, syns: 1001M/s, flows: 999999999999M/s}}\n", []string{
		"f:1:26: limits.node.packets: found \"0/s\", expected a rate from 1/s to 1000M/s (leave the field out to limit nothing; limits.deny is for sources that may send nothing)",
		"f:1:37: limits.node.syns: found \"1001M/s\", expected a rate from 1/s to 1000M/s",
		"f:1:53: limits.node.flows: found \"999999999999M/s\", expected a rate from 1/s to 1000M/s",
	}},
	{"a rate with a leading zero", "", "limits: {node: {packets: 050/s}}\n", []string{
		"f:1:26: limits.node.packets: found \"050/s\", expected a rate such as 200/s, 50k/s or 1M/s",
	}},
	{"bursts out of bounds", "", "limits: {per_source: {packets: 5/s, burst: 99ms}, node: {burst: 11s}}\n", []string{
		"f:1:44: limits.per_source.burst: found \"99ms\", expected a duration from 100ms to 10s",
		"f:1:65: limits.node.burst: found \"11s\", expected a duration from 100ms to 10s",
	}},
	{"a burst of less than one event", "", "limits: {per_source: {packets: 10/s, syns: 9/s, flows: 1/s, burst: 100ms}}\n", []string{
		"f:1:44: limits.per_source.syns: found 9/s with a burst of 100ms, expected at least one SYN in a burst (burst: 111.111112ms is enough)",
		"f:1:56: limits.per_source.flows: found 1/s with a burst of 100ms, expected at least one flow in a burst (burst: 1s is enough)",
	}},
	{"action", "", "limits: {per_source: {packets: 5/s, action: observed}}\n", []string{
		"f:1:45: limits.per_source.action: found \"observed\", expected drop or observe (did you mean observe?)",
	}},
	{"SYNs of UDP", valid, udp(with("limits: {per_source: {syns: 5/s}, total: {syns: 6/s}}")), []string{
		"f:9:33: services[0].limits.per_source.syns: found \"5/s\" with udp, expected none (only TCP has SYNs)",
		"f:9:53: services[0].limits.total.syns: found \"6/s\" with udp, expected none (only TCP has SYNs)",
	}},
	{"flows without a flow table", valid, udp(with("flow_table: off\n    limits: {total: {flows: 5/s}}")), []string{
		"f:10:29: services[0].limits.total.flows: found \"5/s\" with flow_table: off, expected none (flows get no words there that could be counted)",
	}},
	{"SYN defence misspelt", "", "syn_defence: chalenge\n", []string{
		"f:1:14: syn_defence: found \"chalenge\", expected off, auto, challenge or cookie (did you mean challenge?)",
	}},
	{"SYN cookies of NAT, all ports", valid, byNAT(with("syn_defence: cookie"), "any"), []string{
		"f:9:18: services[0].syn_defence: found cookie with forward: nat, expected off, auto or challenge (agents behind NAT are told each port, and these are 65536; at most 1024 can be)",
	}},
	{"SYN cookies for all services, one of NAT", valid, "syn_defence: cookie\n" + byNAT(valid, "any"), []string{
		"f:9:14: services[0].forward: found nat with the syn_defence at the top, cookie, expected l2, ipip or gue (or give the service a syn_defence of its own: agents behind NAT are told each port, and these are 65536; at most 1024 can be)",
	}},
	{"SYN defence of UDP", valid, udp(with("syn_defence: auto")), []string{
		"f:9:18: services[0].syn_defence: found auto with udp, expected off (only TCP has SYNs)",
	}},
	{"deny not a list", "", "limits: {deny: 198.51.100.0/24}\n", []string{
		"f:1:16: limits.deny: found \"198.51.100.0/24\", expected a list of prefixes and addresses",
	}},
	{"prefixes that are none", "", "limits:\n  deny:\n    - 198.51.100.1/24\n    - 2001:db8::1/32\n    - 198.51.100.0/33\n    - example.com\n    - 10\n    - 192.0.2.1:80\n    - fe80::1%eth0\n    - fe80::%eth0/64\n    - ''\n", []string{
		"f:3:7: limits.deny[0]: found \"198.51.100.1/24\", expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address (write 198.51.100.0/24)",
		"f:4:7: limits.deny[1]: found \"2001:db8::1/32\", expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address (write 2001:db8::/32)",
		"f:5:7: limits.deny[2]: found \"198.51.100.0/33\", expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address",
		"f:6:7: limits.deny[3]: found \"example.com\", expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address",
		"f:7:7: limits.deny[4]: found 10, expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address",
		"f:8:7: limits.deny[5]: found \"192.0.2.1:80\", expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address (without the port)",
		"f:9:7: limits.deny[6]: found \"fe80::1%eth0\", expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address (without the zone)",
		"f:10:7: limits.deny[7]: found \"fe80::%eth0/64\", expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address",
		"f:11:7: limits.deny[8]: found \"\", expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address",
	}},
	{"IPv4-mapped", valid, with("limits: {allow: ['::ffff:192.0.2.1', '::ffff:192.0.2.0/120']}"), []string{
		"f:9:22: services[0].limits.allow[0]: found \"::ffff:192.0.2.1\", expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address (write 192.0.2.1)",
		"f:9:42: services[0].limits.allow[1]: found \"::ffff:192.0.2.0/120\", expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address (write 192.0.2.0/24)",
	}},
	{"a colon at the end", "", "limits:\n  deny:\n    - 2001:db8::\n", []string{
		"f:3:7: limits.deny[0]: found a mapping, expected a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address (an IPv6 prefix that ends with a colon needs quotes)",
	}},
	{"a prefix twice", "", "limits:\n  deny: [192.0.2.1, 192.0.2.0/24,\n    192.0.2.1/32, 192.0.2.1]\n", []string{
		"f:3:5: limits.deny[2]: found 192.0.2.1/32 again, after line 2, expected each prefix once",
		"f:3:19: limits.deny[3]: found 192.0.2.1/32 again, after line 2, expected each prefix once",
	}},
	{"allowed and denied", "", "limits:\n  allow: [10.0.0.0/9, 10.0.0.0/8]\n  deny: [10.0.0.0/8]\n", []string{
		"f:2:23: limits.allow[1]: found 10.0.0.0/8, which line 3 denies, expected a prefix that is either allowed or denied (of two prefixes, the longer one decides)",
	}},
	{"relative file", "", "limits: {deny_files: [/etc/deny.txt, deny.txt, 5, /etc/deny.txt]}\n", []string{
		"f:1:38: limits.deny_files[1]: found \"deny.txt\", expected an absolute path",
		"f:1:48: limits.deny_files[2]: found 5, expected an absolute path",
		"f:1:51: limits.deny_files[3]: found \"/etc/deny.txt\" again, after line 1, expected another file",
	}},
}

func TestLimitWarnings(t *testing.T) {
	for _, row := range []struct {
		name string
		file string
		want []string
	}{
		{"fine", top("limits: {per_source: {packets: 5k/s, syns: 5k/s, flows: 1/s}, node: {packets: 1M/s, syns: 5k/s}}"), nil},
		{"prefix lengths alone", top("limits: {per_source: {ipv4_prefix: 24, table: 5k}, node: {}}"), nil},
		{"no rate", top("limits: {per_source: {ipv4_prefix: 24, burst: 2s}, node: {action: observe}}"), []string{
			"f:1:22: limits.per_source: none of packets, syns and flows: nothing is limited",
			"f:1:58: limits.node: none of packets, syns and flows: nothing is limited",
		}},
		{"fewer packets than SYNs and flows", top("limits: {per_source: {packets: 100/s, syns: 101/s, flows: 2k/s}}"), []string{
			"f:1:45: limits.per_source.syns: 101/s is never reached: packets: 100/s lets less pass, and each SYN takes a packet",
			"f:1:59: limits.per_source.flows: 2k/s is never reached: packets: 100/s lets less pass, and each flow takes a packet",
		}},
		{"observed only", top("limits: {per_source: {packets: 100/s, syns: 200/s, action: observe}, node: {packets: 50/s, action: observe}}"), nil},
		{"a source above the node", top("limits: {per_source: {packets: 100/s}, node: {packets: 50/s}}"), []string{
			"f:1:32: limits.per_source.packets: 100/s is never reached: limits.node.packets lets only 50/s pass",
		}},
		// Of the larger burst, what is beyond the service's does not pass.
		{"a source above the node, with a smaller burst", top("limits: {per_source: {packets: 100/s, burst: 500ms}, node: {packets: 51/s}}"), nil},
		{"a service above the top", "limits: {per_source: {syns: 10/s}, node: {packets: 1k/s}}\n" +
			with("limits: {per_source: {syns: 20/s, packets: 2k/s}, total: {packets: 3k/s, syns: 15/s}}"), []string{
			"f:10:33: services[0].limits.per_source.syns: 20/s is never reached: limits.per_source.syns lets only 10/s pass",
			"f:10:48: services[0].limits.per_source.packets: 2k/s is never reached: limits.node.packets lets only 1k/s pass",
			"f:10:72: services[0].limits.total.packets: 3k/s is never reached: limits.node.packets lets only 1k/s pass",
		}},
		{"a source above the service", with("limits: {per_source: {flows: 20/s}, total: {flows: 10/s}}"), []string{
			"f:9:34: services[0].limits.per_source.flows: 20/s is never reached: services[0].limits.total.flows lets only 10/s pass",
		}},
		{"denied backends", "limits: {deny: [10.0.0.0/8]}\n" + strings.Replace(valid, "ipip", "nat", 1), []string{
			"f:12:18: services[0].backends[0].address: 10.0.0.1 is denied by 10.0.0.0/8: its replies pass, what it sends as a client does not",
		}},
		{"a denied backend of the service's list", strings.Replace(with("limits: {deny: [10.0.0.2]}"), "ipip", "nat", 1), []string{
			"f:14:18: services[0].backends[1].address: 10.0.0.2 is denied by 10.0.0.2/32: its replies pass, what it sends as a client does not",
		}},
		{"denied and allowed backends", "limits: {deny: [10.0.0.0/8, '::/0'], allow: [10.0.0.0/30]}\n" + strings.Replace(valid, "ipip", "nat", 1), nil},
		{"denied backends that answer directly", top("limits: {deny: [10.0.0.0/8]}"), nil},
	} {
		t.Run(row.name, func(t *testing.T) { checkWarnings(t, row.file, row.want) })
	}
}

// What a file says about limits, with all that it leaves out, is also what the canonical form says; and each has a hash of
// its own.
func TestLimits(t *testing.T) {
	source := func(l SourceLimits) Limits {
		if l.IPv4Prefix == 0 {
			l.IPv4Prefix, l.IPv6Prefix = 32, 64
		}
		if l.Table == 0 {
			l.Table = 1000_000
		}
		return Limits{PerSource: l}
	}
	node := func(r Rates) Limits {
		l := source(SourceLimits{})
		l.Node = r
		return l
	}
	hashes := make(map[string]string)
	for _, row := range []struct {
		file    string
		top     Limits
		service ServiceLimits
	}{
		{valid, source(SourceLimits{}), ServiceLimits{}},
		{top("limits: {per_source: {ipv4_prefix: 8, ipv6_prefix: 16, table: 1k}}"), source(SourceLimits{IPv4Prefix: 8, IPv6Prefix: 16, Table: 1000}), ServiceLimits{}},
		{top("limits: {per_source: {table: 1000M}}"), source(SourceLimits{Table: 1000_000_000}), ServiceLimits{}},
		{top("limits: {per_source: {packets: 50k/s}}"), source(SourceLimits{Rates: Rates{Packets: 50_000, Burst: time.Second, Action: ActionDrop}}), ServiceLimits{}},
		{top("limits: {per_source: {packets: 50k/s, syns: 1/s, flows: 1234/s, burst: 10s, action: observe, table: 7k}}"),
			source(SourceLimits{Table: 7000, Rates: Rates{Packets: 50_000, SYNs: 1, Flows: 1234, Burst: 10 * time.Second, Action: ActionObserve}}), ServiceLimits{}},
		{top("limits: {node: {packets: 1000M/s, syns: 999999999/s, burst: 100ms}}"),
			node(Rates{Packets: 1000_000_000, SYNs: 999_999_999, Burst: 100 * time.Millisecond, Action: ActionDrop}), ServiceLimits{}},
		{with("limits: {per_source: {syns: 1M/s}}"), source(SourceLimits{}), ServiceLimits{PerSource: Rates{SYNs: 1000_000, Burst: time.Second, Action: ActionDrop}}},
		{with("limits: {total: {flows: 5/s, burst: 200ms}}"), source(SourceLimits{}), ServiceLimits{Total: Rates{Flows: 5, Burst: 200 * time.Millisecond, Action: ActionDrop}}},
	} {
		c, _, err := Parse("f", []byte(row.file))
		if err != nil {
			t.Errorf("%s\n%v", row.file, err)
			continue
		}
		if !reflect.DeepEqual(c.Limits, row.top) || !reflect.DeepEqual(c.Services[0].Limits, row.service) {
			t.Errorf("%s\ngot  %+v, %+v\nwant %+v, %+v", row.file, c.Limits, c.Services[0].Limits, row.top, row.service)
		}
		if again, _, err := Parse("f", c.Canonical()); err != nil || !reflect.DeepEqual(c, again) {
			t.Errorf("the canonical form: %v\n%s", err, c.Canonical())
		}
		if other, ok := hashes[c.Hash()]; ok {
			t.Errorf("one hash for\n%s\n%s", row.file, other)
		}
		hashes[c.Hash()] = row.file
	}
}

// A section that limits nothing is like none.
func TestLimitsOfNothing(t *testing.T) {
	c, _, err := Parse("f", []byte("limits: {node: {burst: 2s, action: observe}}\n"+with("limits: {per_source: {}, total: {action: drop}, deny: []}")))
	if err != nil {
		t.Fatal(err)
	}
	plain, _, err := Parse("f", []byte(valid))
	if err != nil || !reflect.DeepEqual(c, plain) || c.Hash() != plain.Hash() {
		t.Errorf("%v: got\n%+v\nwant\n%+v", err, c, plain)
	}
}

// byNAT is a file whose service is forwarded by NAT, with these ports.
func byNAT(file, ports string) string {
	return strings.NewReplacer("forward: ipip", "forward: nat", "ports: 80", "ports: "+ports).Replace(file)
}

func TestSYNDefence(t *testing.T) {
	for _, row := range []struct {
		file         string
		top, service SYNDefence
	}{
		{valid, SYNOff, SYNOff},
		{top("syn_defence: auto"), SYNAuto, SYNAuto},
		{top("syn_defence: challenge"), SYNChallenge, SYNChallenge},
		{with("syn_defence: auto"), SYNOff, SYNAuto},
		{"syn_defence: auto\n" + with("syn_defence: cookie"), SYNAuto, SYNCookie},
		{"syn_defence: cookie\n" + udp(valid), SYNCookie, SYNOff},
		{byNAT(with("syn_defence: cookie"), "[80, 443]"), SYNOff, SYNCookie},
		{"syn_defence: auto\n" + with("syn_defence: off"), SYNAuto, SYNOff},
		{"syn_defence: auto\n" + with("syn_defence: 'challenge'"), SYNAuto, SYNChallenge},
		{"syn_defence: challenge\n" + udp(valid), SYNChallenge, SYNOff},
		{udp(with("syn_defence: off")), SYNOff, SYNOff},
	} {
		c, list, err := Parse("f", []byte(row.file))
		if err != nil || len(list) != 0 {
			t.Errorf("%s\n%v %v", row.file, err, list)
			continue
		}
		if c.SYNDefence != row.top || c.Services[0].SYNDefence != row.service {
			t.Errorf("%s\ngot %s and %s, want %s and %s", row.file, c.SYNDefence, c.Services[0].SYNDefence, row.top, row.service)
		}
		if again, _, err := Parse("f", c.Canonical()); err != nil || !reflect.DeepEqual(c, again) {
			t.Errorf("the canonical form: %v\n%s", err, c.Canonical())
		}
	}
}
