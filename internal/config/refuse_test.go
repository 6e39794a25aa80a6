package config

import (
	"slices"
	"strings"
	"testing"
)

func TestRefusals(t *testing.T) {
	for _, row := range slices.Concat(refusals, forwardingRefusals, flowRefusals, limitRefusals, healthRefusals) {
		t.Run(row.name, func(t *testing.T) {
			data := strings.Replace(valid, row.old, row.new, 1) // an empty old puts new in front
			if data == valid && row.old != valid {
				t.Fatalf("%q is not in the valid file", row.old)
			}
			_, _, err := Parse("f", []byte(data))
			if err == nil {
				t.Fatal("accepted")
			}
			if got := strings.Split(err.Error(), "\n"); !slices.Equal(got, row.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(row.want, "\n"))
			}
		})
	}
}

// refusal is a change to the valid file, and what is said of it.
type refusal struct {
	name, old, new string
	want           []string
}

var refusals = []refusal{
	{"empty", valid, "", []string{
		"f:1:1: found an empty file, expected at least interfaces and services",
	}},
	{"only a comment", valid, "# nothing\n", []string{
		"f:1:1: found an empty file, expected at least interfaces and services",
	}},
	{"a list", valid, "- 1\n", []string{
		"f:1:1: found a list, expected a mapping",
	}},
	{"a scalar", valid, "sluice\n", []string{
		"f:1:1: found \"sluice\", expected a mapping",
	}},
	{"not YAML", valid, "interfaces: [\n", []string{
		"f:1:1: found something that is not YAML, expected YAML (did not find expected node content)",
	}},
	{"a tab", valid, "interfaces:\n\t- name: eth0\n", []string{
		"f:2:1: found something that is not YAML, expected YAML (found character that cannot start any token)",
	}},
	{"an unknown anchor", valid, "interfaces: *x\n", []string{
		"f:1:1: found something that is not YAML, expected YAML (unknown anchor 'x' referenced)",
	}},
	{"two documents", "        address: 10.0.0.2\n", "        address: 10.0.0.2\n---\nnode: x\n", []string{
		"f:14:1: found a second document, expected one",
	}},
	{"nothing required", valid, "node: lb1\n", []string{
		"f:1:1: found no interfaces, expected a list",
		"f:1:1: found no services, expected a list",
	}},
	{"no service", valid, "interfaces: [{name: eth0}]\nservices: []\n", []string{
		"f:2:11: services: found no service, expected at least one",
	}},
	{"no interface", "  - name: eth0\n", "  []\n", []string{
		"f:2:3: interfaces: found no interface, expected at least one",
	}},
	{"interfaces not a list", "  - name: eth0\n", "  name: eth0\n", []string{
		"f:2:3: interfaces: found a mapping, expected a list",
	}},
	{"an interface not a mapping", "  - name: eth0\n", "  - eth0\n", []string{
		"f:2:5: interfaces[0]: found \"eth0\", expected a mapping",
	}},
	{"unknown field at the top", "", "nodes: lb1\n", []string{
		"f:1:1: found unknown field \"nodes\", expected one of node, group, state_dir, control, interfaces, workers, cpus, busy_poll, flows, tunnel, services, limits, syn_defence, agent_port, health, metrics, without_daemon, drain_time, log (did you mean node?)",
	}},
	{"unknown field, nothing near", "", "zebra: 1\n", []string{
		"f:1:1: found unknown field \"zebra\", expected one of node, group, state_dir, control, interfaces, workers, cpus, busy_poll, flows, tunnel, services, limits, syn_defence, agent_port, health, metrics, without_daemon, drain_time, log",
	}},
	{"unknown field in a backend", "        address: 10.0.0.2\n", "        adress: 10.0.0.2\n", []string{
		"f:12:9: services[0].backends[1]: found no address, expected an IPv4 or IPv6 address",
		"f:13:9: services[0].backends[1]: found unknown field \"adress\", expected one of name, address, port, weight (did you mean address?)",
	}},
	{"a field twice", "    ports: 80\n", "    ports: 80\n    ports: 81\n", []string{
		"f:8:5: services[0].ports: found the field again, after line 7, expected it once",
	}},
	{"a section without content", "", "log:\n", []string{
		"f:1:5: log: found nothing, expected a mapping (leave the field out to get its default)",
	}},
	{"a section that is a number", "", "group: 5\n", []string{
		"f:1:8: group: found 5, expected a mapping",
	}},
	{"a merge key", "", "<<: {node: a}\n", []string{
		"f:1:1: found a value tagged !!merge, expected the name of a field (merging is not supported; an alias of a whole mapping is)",
	}},
	{"a key that is a number", "", "5: 6\n", []string{
		"f:1:1: found 5, expected the name of a field",
	}},
	{"a key that is a list", "", "? [a]\n: 6\n", []string{
		"f:1:3: found a list, expected the name of a field",
	}},
	{"a value of an own tag", "", "node: !x lb1\n", []string{
		"f:1:7: node: found a value tagged !x, expected a name of 1 to 63 letters, digits, dots, dashes and underscores (put it in quotes if it is meant as text)",
	}},
	{"GUE port 0", "", "tunnel: {gue_port: 0}\n", []string{
		"f:1:20: tunnel.gue_port: found 0, expected a number from 1 to 65535",
	}},
	{"outer source with host bits", "", "tunnel: {source_ipv4: 10.7.0.1/16}\n", []string{
		"f:1:23: tunnel.source_ipv4: found \"10.7.0.1/16\", expected an IPv4 prefix such as 10.7.0.0/16 (write 10.7.0.0/16)",
	}},
	{"outer source of the other family", "", "tunnel: {source_ipv4: 'fd00::/64', source_ipv6: 10.0.0.0/8}\n", []string{
		"f:1:23: tunnel.source_ipv4: found \"fd00::/64\", expected an IPv4 prefix such as 10.7.0.0/16",
		"f:1:49: tunnel.source_ipv6: found \"10.0.0.0/8\", expected an IPv6 prefix such as fd00:7::/64",
	}},
	{"outer source of everybody", "", "tunnel: {source_ipv4: 0.0.0.0/0}\n", []string{
		"f:1:23: tunnel.source_ipv4: found 0.0.0.0/0, expected a prefix of addresses that hosts have (a /16 of IPv4 or a /64 of IPv6 is plenty)",
	}},
	{"outer source of a group", "", "tunnel: {source_ipv6: 'ff00::/16'}\n", []string{
		"f:1:23: tunnel.source_ipv6: found ff00::/16, expected a prefix of addresses that hosts have (a /16 of IPv4 or a /64 of IPv6 is plenty)",
	}},
	{"forward", "forward: ipip", "forward: dnat", []string{
		"f:8:14: services[0].forward: found \"dnat\", expected l2, ipip, gue or nat (did you mean nat?)",
	}},
	{"a name that is a number", "name: web", "name: 80", []string{
		"f:4:11: services[0].name: found 80, expected a name of 1 to 63 letters, digits, dots, dashes and underscores (put it in quotes if it is meant as text)",
	}},
	{"a name that is true", "name: web", "name: true", []string{
		"f:4:11: services[0].name: found true, expected a name of 1 to 63 letters, digits, dots, dashes and underscores (put it in quotes if it is meant as text)",
	}},
	{"a name with a space", "name: web", "name: web one", []string{
		"f:4:11: services[0].name: found \"web one\", expected a name of 1 to 63 letters, digits, dots, dashes and underscores",
	}},
	{"an empty name", "name: web", "name: ''", []string{
		"f:4:11: services[0].name: found \"\", expected a name of 1 to 63 letters, digits, dots, dashes and underscores",
	}},
	{"a name that is nothing", "name: web", "name:", []string{
		"f:4:10: services[0].name: found nothing, expected a name of 1 to 63 letters, digits, dots, dashes and underscores",
	}},
	{"a name that is a list", "name: web", "name: [web]", []string{
		"f:4:11: services[0].name: found a list, expected a name of 1 to 63 letters, digits, dots, dashes and underscores",
	}},
	{"a node name with a slash", "", "node: a/b\n", []string{
		"f:1:7: node: found \"a/b\", expected a name of 1 to 63 letters, digits, dots, dashes and underscores",
	}},
	{"interface name too long", "name: eth0", "name: enp0s31f6-uplink", []string{
		"f:2:11: interfaces[0].name: found \"enp0s31f6-uplink\", expected an interface name of 1 to 15 characters",
	}},
	{"interface name with a slash", "name: eth0", "name: eth0/1", []string{
		"f:2:11: interfaces[0].name: found \"eth0/1\", expected an interface name of 1 to 15 characters",
	}},
	{"an interface twice", "  - name: eth0\n", "  - name: eth0\n  - name: eth0\n", []string{
		"f:3:11: interfaces[1].name: found \"eth0\" again, after line 2, expected another interface",
	}},
	{"mode misspelt", "  - name: eth0\n", "  - name: eth0\n    mode: zero-copy\n", []string{
		"f:3:11: interfaces[0].mode: found \"zero-copy\", expected auto, zerocopy or copy (did you mean zerocopy?)",
	}},
	{"queues zero", "  - name: eth0\n", "  - name: eth0\n    queues: 0\n", []string{
		"f:3:13: interfaces[0].queues: found 0, expected all, or a number from 1 to 4096",
	}},
	{"queues a word", "  - name: eth0\n", "  - name: eth0\n    queues: every\n", []string{
		"f:3:13: interfaces[0].queues: found \"every\", expected all, or a number from 1 to 4096",
	}},
	{"queues quoted", "  - name: eth0\n", "  - name: eth0\n    queues: '4'\n", []string{
		"f:3:13: interfaces[0].queues: found \"4\", expected all, or a number from 1 to 4096 (without quotes)",
	}},
	{"workers negative", "", "workers: -1\n", []string{
		"f:1:10: workers: found -1, expected a number from 0 to 1024",
	}},
	{"workers a word", "", "workers: auto\n", []string{
		"f:1:10: workers: found \"auto\", expected a number from 0 to 1024",
	}},
	{"workers octal", "", "workers: 010\n", []string{
		"f:1:10: workers: found 010, expected a number from 0 to 1024",
	}},
	{"more workers than cores", "", "workers: 4\ncpus: 1-3\n", []string{
		"f:1:10: workers: found 4 workers for 3 cores, expected at most as many as cpus has cores (each worker has a core of its own)",
	}},
	{"cpus a number", "", "cpus: 3\n", []string{
		"f:1:7: cpus: found 3, expected cores such as 1-3,5 (\"3\" in quotes for core 3; how many there are is said by workers)",
	}},
	{"cpus reversed", "", "cpus: 3-1\n", []string{
		"f:1:7: cpus: found \"3-1\", expected cores such as 1-3,5",
	}},
	{"cpus too high", "", "cpus: 0-9999\n", []string{
		"f:1:7: cpus: found \"0-9999\", expected cores such as 1-3,5",
	}},
	{"busy_poll a word", "", "busy_poll: 'yes'\n", []string{
		"f:1:12: busy_poll: found \"yes\", expected true or false",
	}},
	{"flows too few", "", "flows: 10\n", []string{
		"f:1:8: flows: found 10, expected a number from 1k to 1000M",
	}},
	{"flows too many", "", "flows: 1001M\n", []string{
		"f:1:8: flows: found \"1001M\", expected a number from 1k to 1000M",
	}},
	{"flows with a small m", "", "flows: 4m\n", []string{
		"f:1:8: flows: found \"4m\", expected a number such as 500k or 4M (k is a thousand, M a million)",
	}},
	{"flows a fraction", "", "flows: 4.5M\n", []string{
		"f:1:8: flows: found \"4.5M\", expected a number such as 500k or 4M",
	}},
	{"flows a list", "", "flows: [4M]\n", []string{
		"f:1:8: flows: found a list, expected a number such as 500k or 4M",
	}},
	{"drain_time without unit", "", "drain_time: 30\n", []string{
		"f:1:13: drain_time: found 30, expected a duration such as 500ms, 2s or 1m (with a unit: 30s)",
	}},
	{"drain_time too long", "", "drain_time: 2h\n", []string{
		"f:1:13: drain_time: found \"2h\", expected a duration from 0s to 1h",
	}},
	{"drain_time negative", "", "drain_time: -1s\n", []string{
		"f:1:13: drain_time: found \"-1s\", expected a duration from 0s to 1h",
	}},
	{"drain_time a word", "", "drain_time: soon\n", []string{
		"f:1:13: drain_time: found \"soon\", expected a duration such as 500ms, 2s or 1m",
	}},
	{"log level", "", "log: {level: warning, format: jsn}\n", []string{
		"f:1:14: log.level: found \"warning\", expected debug, info, warn or error",
		"f:1:31: log.format: found \"jsn\", expected text or json (did you mean json?)",
	}},
	{"metrics without address", "", "metrics: {listen: ':9545'}\n", []string{
		"f:1:19: metrics.listen: found \":9545\", expected an IP address and port such as 127.0.0.1:9545 (0.0.0.0:9545 for every address)",
	}},
	{"metrics without port", "", "metrics: {listen: 127.0.0.1}\n", []string{
		"f:1:19: metrics.listen: found \"127.0.0.1\", expected an IP address and port such as 127.0.0.1:9545",
	}},
	{"metrics by name", "", "metrics: {listen: 'localhost:9545'}\n", []string{
		"f:1:19: metrics.listen: found \"localhost:9545\", expected an IP address and port such as 127.0.0.1:9545",
	}},
	{"metrics port zero", "", "metrics: {listen: '127.0.0.1:0'}\n", []string{
		"f:1:19: metrics.listen: found \"127.0.0.1:0\", expected an IP address and port such as 127.0.0.1:9545",
	}},
	{"relative state_dir", "", "state_dir: lib/sluice\n", []string{
		"f:1:12: state_dir: found \"lib/sluice\", expected an absolute path",
	}},
	{"relative socket", "", "control: {socket: control.sock}\n", []string{
		"f:1:19: control.socket: found \"control.sock\", expected an absolute path",
	}},
	{"socket path too long", "", "control: {socket: /" + strings.Repeat("x", 120) + "}\n", []string{
		"f:1:19: control.socket: found 121 bytes, expected a path of at most 107 bytes (the kernel takes no longer ones)",
	}},
	{"group with a space", "", "control: {group: web admins}\n", []string{
		"f:1:18: control.group: found \"web admins\", expected the name or number of a group",
	}},
	{"peers zero", "", "group: {peers: 0}\n", []string{
		"f:1:16: group.peers: found 0, expected a number from 1 to 1024",
	}},
	{"peers without a seed", "", "group: {peers: 2}\n", []string{
		"f:1:8: group: found 2 peers and no seed_file, expected the same seed_file on every node of the group (head -c 32 /dev/urandom > FILE makes one)",
	}},
	{"relative seed_file", "", "group: {peers: 2, seed_file: group.key}\n", []string{
		"f:1:30: group.seed_file: found \"group.key\", expected an absolute path",
	}},
	{"VIP with prefix length", "vip: 192.0.2.10", "vip: 192.0.2.10/32", []string{
		"f:5:10: services[0].vip: found \"192.0.2.10/32\", expected an IPv4 or IPv6 address (without the prefix length)",
	}},
	{"VIP with port", "vip: 192.0.2.10", "vip: 192.0.2.10:80", []string{
		"f:5:10: services[0].vip: found \"192.0.2.10:80\", expected an IPv4 or IPv6 address (without the port)",
	}},
	{"VIP a host name", "vip: 192.0.2.10", "vip: www.example.com", []string{
		"f:5:10: services[0].vip: found \"www.example.com\", expected an IPv4 or IPv6 address (host names are not resolved)",
	}},
	{"VIP a number", "vip: 192.0.2.10", "vip: 10", []string{
		"f:5:10: services[0].vip: found 10, expected an IPv4 or IPv6 address",
	}},
	{"VIP unspecified", "vip: 192.0.2.10", "vip: 0.0.0.0", []string{
		"f:5:10: services[0].vip: found 0.0.0.0, an address that stands for no host, expected the address of one host, valid beyond its link",
	}},
	{"VIP loopback", "vip: 192.0.2.10", "vip: 127.0.0.5", []string{
		"f:5:10: services[0].vip: found 127.0.0.5, an address of the loopback, expected the address of one host, valid beyond its link",
	}},
	{"VIP multicast", "vip: 192.0.2.10", "vip: ff02::1", []string{
		"f:5:10: services[0].vip: found ff02::1, an address of a multicast group, expected the address of one host, valid beyond its link",
	}},
	{"VIP broadcast", "vip: 192.0.2.10", "vip: 255.255.255.255", []string{
		"f:5:10: services[0].vip: found 255.255.255.255, an address of a broadcast, expected the address of one host, valid beyond its link",
	}},
	{"VIP link-local", "vip: 192.0.2.10", "vip: fe80::1", []string{
		"f:5:10: services[0].vip: found fe80::1, an address that is link-local, expected the address of one host, valid beyond its link",
	}},
	{"VIP with zone", "vip: 192.0.2.10", "vip: fe80::1%eth0", []string{
		"f:5:10: services[0].vip: found fe80::1%eth0, an address with a zone, expected the address of one host, valid beyond its link",
	}},
	{"VIP IPv4-mapped", "vip: 192.0.2.10", "vip: '::ffff:192.0.2.10'", []string{
		"f:5:10: services[0].vip: found \"::ffff:192.0.2.10\", expected an IPv4 or IPv6 address (write 192.0.2.10)",
	}},
	{"protocol", "protocol: tcp", "protocol: sctp", []string{
		"f:6:15: services[0].protocol: found \"sctp\", expected tcp or udp",
	}},
	{"protocol in capitals", "protocol: tcp", "protocol: TCP", []string{
		"f:6:15: services[0].protocol: found \"TCP\", expected tcp or udp (did you mean tcp?)",
	}},
	{"port zero", "ports: 80", "ports: 0", []string{
		"f:7:12: services[0].ports: found 0, expected a port from 1 to 65535, a range such as 8000-8999, a list of both, or any",
	}},
	{"port too high", "ports: 80", "ports: 65536", []string{
		"f:7:12: services[0].ports: found 65536, expected a port from 1 to 65535, a range such as 8000-8999, a list of both, or any",
	}},
	{"ports quoted", "ports: 80", "ports: '80'", []string{
		"f:7:12: services[0].ports: found \"80\", expected a port from 1 to 65535, a range such as 8000-8999, a list of both, or any (without quotes)",
	}},
	{"ports with comma", "ports: 80", "ports: 80,443", []string{
		"f:7:12: services[0].ports: found \"80,443\", expected a port from 1 to 65535, a range such as 8000-8999, a list of both, or any (several ports are a list: [80, 443])",
	}},
	{"ports reversed", "ports: 80", "ports: 90-80", []string{
		"f:7:12: services[0].ports: found \"90-80\", expected a port from 1 to 65535, a range such as 8000-8999, a list of both, or any (the lower port comes first)",
	}},
	{"ports range too high", "ports: 80", "ports: 80-70000", []string{
		"f:7:12: services[0].ports: found \"80-70000\", expected a port from 1 to 65535, a range such as 8000-8999, a list of both, or any",
	}},
	{"ports an empty list", "ports: 80", "ports: []", []string{
		"f:7:12: services[0].ports: found an empty list, expected a port from 1 to 65535, a range such as 8000-8999, a list of both, or any",
	}},
	{"ports a mapping", "ports: 80", "ports: {from: 80}", []string{
		"f:7:12: services[0].ports: found a mapping, expected a port from 1 to 65535, a range such as 8000-8999, a list of both, or any",
	}},
	{"port twice", "ports: 80", "ports: [80, 80]", []string{
		"f:7:17: services[0].ports[1]: found 80 again, expected each port once",
	}},
	{"any in a list", "ports: 80", "ports: [80, any]", []string{
		"f:7:17: services[0].ports[1]: found \"any\", expected a port from 1 to 65535, or a range such as 8000-8999 (any stands alone: ports: any)",
	}},
	{"a port in a list", "ports: 80", "ports: [80, http]", []string{
		"f:7:17: services[0].ports[1]: found \"http\", expected a port from 1 to 65535, or a range such as 8000-8999",
	}},
	{"scheduler", "    forward: ipip\n", "    forward: ipip\n    scheduler: maglv\n", []string{
		"f:9:16: services[0].scheduler: found \"maglv\", expected maglev, wrr, least-conn, p2c or source (did you mean maglev?)",
	}},
	{"several at once", "    protocol: tcp\n    ports: 80\n", "    protocol: tpc\n    ports: 800000\n    color: red\n", []string{
		"f:6:15: services[0].protocol: found \"tpc\", expected tcp or udp (did you mean tcp?)",
		"f:7:12: services[0].ports: found 800000, expected a port from 1 to 65535, a range such as 8000-8999, a list of both, or any",
		"f:8:5: services[0]: found unknown field \"color\", expected one of name, vip, protocol, ports, forward, clamp_mss, on_no_backend, scheduler, source_prefix, table_size, slow_start, on_down, flow_table, lifetimes, limits, syn_defence, check, readiness, passive, panic_threshold, quorum, backends",
	}},
	{"no backends", "    backends:\n      - name: a\n        address: 10.0.0.1\n      - name: b\n        address: 10.0.0.2\n", "", []string{
		"f:4:5: services[0]: found no backends, expected a list",
	}},
	{"backends an empty list", "    backends:\n      - name: a\n        address: 10.0.0.1\n      - name: b\n        address: 10.0.0.2\n", "    backends: []\n", []string{
		"f:9:15: services[0].backends: found no backend, expected at least one (a service without any would drop all of its packets)",
	}},
	{"backends nothing", "    backends:\n      - name: a\n        address: 10.0.0.1\n      - name: b\n        address: 10.0.0.2\n", "    backends:\n", []string{
		"f:9:14: services[0].backends: found nothing, expected a list",
	}},
	{"backend without address", "      - name: b\n        address: 10.0.0.2\n", "      - name: b\n", []string{
		"f:12:9: services[0].backends[1]: found no address, expected an IPv4 or IPv6 address",
	}},
	{"backend name twice", "name: b", "name: a", []string{
		"f:12:15: services[0].backends[1].name: found \"a\" again, after line 10, expected another name",
	}},
	{"backend address twice", "address: 10.0.0.2", "address: 10.0.0.1", []string{
		"f:13:18: services[0].backends[1].address: found \"10.0.0.1\" again, after line 11, expected another address",
	}},
	{"backend is the VIP", "address: 10.0.0.2", "address: 192.0.2.10", []string{
		"f:13:18: services[0].backends[1].address: found 192.0.2.10, the VIP of line 5, expected the backend's own address (packets to a VIP would come back to the balancer)",
	}},
	{"backend loopback", "address: 10.0.0.2", "address: '::1'", []string{
		"f:13:18: services[0].backends[1].address: found ::1, an address of the loopback, expected the address of one host, valid beyond its link",
	}},
	{"l2 across families", "forward: ipip\n    backends:\n      - name: a\n        address: 10.0.0.1\n", "forward: l2\n    backends:\n      - name: a\n        address: 2001:db8::1\n", []string{
		"f:11:18: services[0].backends[0].address: found 2001:db8::1 behind the VIP 192.0.2.10, expected an address of the VIP's family (forward: l2 sends the packet as it is; ipip and gue cross families)",
	}},
	{"service name twice", "        address: 10.0.0.2\n", "        address: 10.0.0.2\n" + strings.NewReplacer("other", "web").Replace(second), []string{
		"f:14:11: services[1].name: found \"web\" again, after line 4, expected another name",
	}},
	{"service overlaps", "        address: 10.0.0.2\n", "        address: 10.0.0.2\n" + strings.NewReplacer("ports: 81", "ports: [443, 70-90]").Replace(second), []string{
		"f:17:12: services[1].ports: found port 80 of 192.0.2.10 tcp, which the service on line 7 takes, expected ports that no other service of the VIP and protocol takes",
	}},
	{"service overlaps any", valid, strings.Replace(valid, "ports: 80", "ports: any", 1) + second, []string{
		"f:17:12: services[1].ports: found port 81 of 192.0.2.10 tcp, which the service on line 7 takes, expected ports that no other service of the VIP and protocol takes",
	}},
	{"backend is another's VIP", "        address: 10.0.0.2\n", "        address: 10.0.0.2\n" + strings.NewReplacer("192.0.2.10", "192.0.2.11", "10.0.0.1}", "192.0.2.10}").Replace(second), []string{
		"f:19:35: services[1].backends[0].address: found 192.0.2.10, the VIP of line 5, expected the backend's own address (packets to a VIP would come back to the balancer)",
	}},
}
