package config

import "strings"

var healthRefusals = []refusal{
	{"check without type", "    forward: ipip\n", "    forward: ipip\n    check: {port: 80}\n", []string{
		"f:9:12: services[0].check: found no type, expected tcp, http, https, http2, grpc, udp, dns, ping, exec or agent",
	}},
	{"check without port", "    ports: 80\n    forward: ipip\n", "    ports: [80, 443]\n    forward: ipip\n    check: {type: tcp}\n", []string{
		"f:9:12: services[0].check: found no port, expected a port from 1 to 65535 (only a service of the check's protocol whose backends receive on a single port lends it to its check)",
	}},
	{"check of a UDP service without port", "    protocol: tcp\n    ports: 80\n", "    protocol: udp\n    ports: 80\n    check: {type: tcp}\n", []string{
		"f:8:12: services[0].check: found no port, expected a port from 1 to 65535 (only a service of the check's protocol whose backends receive on a single port lends it to its check)",
	}},
	{"check port zero", "    forward: ipip\n", "    forward: ipip\n    check: {type: tcp, port: 0}\n", []string{
		"f:9:30: services[0].check.port: found 0, expected a number from 1 to 65535",
	}},
	{"check path relative", "    forward: ipip\n", "    forward: ipip\n    check: {type: http, path: healthz}\n", []string{
		"f:9:31: services[0].check.path: found \"healthz\", expected a path that begins with a slash",
	}},
	{"check path a URL", "    forward: ipip\n", "    forward: ipip\n    check: {type: http, path: 'http://a/'}\n", []string{
		"f:9:31: services[0].check.path: found \"http://a/\", expected a path that begins with a slash",
	}},
	{"check timeout too long", "    forward: ipip\n", "    forward: ipip\n    check: {type: tcp, interval: 1s}\n", []string{
		"f:9:12: services[0].check.timeout: found a timeout of 1s for an interval of 1s, expected a timeout shorter than the interval",
	}},
	{"check interval too short", "    forward: ipip\n", "    forward: ipip\n    check: {type: tcp, interval: 10ms}\n", []string{
		"f:9:34: services[0].check.interval: found \"10ms\", expected a duration from 100ms to 1h",
	}},
	{"check rise zero", "    forward: ipip\n", "    forward: ipip\n    check: {type: tcp, rise: 0, fall: 101}\n", []string{
		"f:9:30: services[0].check.rise: found 0, expected a number from 1 to 100",
		"f:9:39: services[0].check.fall: found 101, expected a number from 1 to 100",
	}},
	{"check a word", "    forward: ipip\n", "    forward: ipip\n    check: tcp\n", []string{
		"f:9:12: services[0].check: found \"tcp\", expected a mapping",
	}},
	{"check type misspelt", valid, checking(`{type: htpp}`), []string{
		`f:9:19: services[0].check.type: found "htpp", expected tcp, http, https, http2, grpc, udp, dns, ping, exec or agent (did you mean http?)`,
	}},
	{"tcp check with path", valid, checking(`{type: tcp, path: /}`), []string{
		`f:9:30: services[0].check.path: found "/" with type: tcp, expected none (path is for http, https and http2)`,
	}},
	{"grpc check with path and expect", valid, checking(`{type: grpc, path: /, expect: {body: a}}`), []string{
		`f:9:31: services[0].check.path: found "/" with type: grpc, expected none (path is for http, https and http2)`,
		`f:9:42: services[0].check.expect: found a mapping with type: grpc, expected none (expect is for tcp, http, https, http2, udp, dns and exec)`,
	}},
	{"http check with tls", valid, checking(`{type: http, tls: {}}`), []string{
		`f:9:30: services[0].check.tls: found a mapping with type: http, expected none (tls is for tcp, https, http2 and grpc)`,
	}},
	{"ping check with port", valid, checking(`{type: ping, port: 80}`), []string{
		`f:9:31: services[0].check.port: found 80 with type: ping, expected none (port is for tcp, http, https, http2, grpc, udp, dns, exec and agent)`,
	}},
	{"tcp check with a query", valid, checking(`{type: tcp, query: 5}`), []string{
		`f:9:31: services[0].check.query: found 5 with type: tcp, expected none (query is for dns)`,
	}},
	{"expect of HTTP for tcp", valid, checking(`{type: tcp, expect: {status: 200, headers: [a]}}`), []string{
		`f:9:41: services[0].check.expect.status: found 200 with type: tcp, expected none (status is for http, https and http2)`,
		`f:9:55: services[0].check.expect.headers: found a list with type: tcp, expected none (headers is for http, https and http2)`,
	}},
	{"limit of nothing", valid, checking(`{type: tcp, expect: {limit: 5}}`), []string{
		`f:9:40: services[0].check.expect.limit: found 5 without body and body_regexp, expected one of them (nothing is read otherwise)`,
	}},
	{"limit below the body", valid, checking(`{type: http, expect: {body: abc, limit: 2}}`), []string{
		`f:9:52: services[0].check.expect.limit: found 2 for a body of 3 bytes, expected no less than the body has (it would never be found)`,
	}},
	{"limit too high", valid, checking(`{type: http, expect: {limit: 2M}}`), []string{
		`f:9:41: services[0].check.expect.limit: found "2M", expected a number from 1 to 1048576`,
	}},
	{"via misspelt", valid, checking(`{type: tcp, via: tunel}`), []string{
		`f:9:29: services[0].check.via: found "tunel", expected direct or tunnel (did you mean tunnel?)`,
	}},
	{"ping through the tunnel", valid, checking(`{type: ping, via: tunnel}`), []string{
		`f:9:30: services[0].check.via: found tunnel with type: ping, expected direct (only TCP and UDP go the way of the data)`,
	}},
	{"agent check without port", valid, checking(`{type: agent}`), []string{
		`f:9:12: services[0].check: found no port, expected a port from 1 to 65535 (an agent has a port of its own)`,
	}},
	{"udp check of a TCP service without port", valid, checking(`{type: udp, send: a}`), []string{
		`f:9:12: services[0].check: found no port, expected a port from 1 to 65535 (only a service of the check's protocol whose backends receive on a single port lends it to its check)`,
	}},
	{"fast_interval too long", valid, checking(`{type: tcp, fast_interval: 3s}`), []string{
		`f:9:39: services[0].check.fast_interval: found 3s for an interval of 2s, expected no more than the interval`,
	}},
	{"pace out of bounds", valid, checking(`{type: tcp, fast_interval: 40ms, timeout: 9ms, jitter: 51}`), []string{
		`f:9:39: services[0].check.fast_interval: found "40ms", expected a duration from 50ms to 1h`,
		`f:9:54: services[0].check.timeout: found "9ms", expected a duration from 10ms to 1h`,
		`f:9:67: services[0].check.jitter: found 51, expected a number from 0 to 50`,
	}},
	{"statuses", valid, checking(`{type: http, expect: {status: [99, 600, 300-200, [200], ok]}}`), []string{
		`f:9:43: services[0].check.expect.status[0]: found 99, expected a status from 100 to 599, or a range such as 200-399`,
		`f:9:47: services[0].check.expect.status[1]: found 600, expected a status from 100 to 599, or a range such as 200-399`,
		`f:9:52: services[0].check.expect.status[2]: found "300-200", expected a status from 100 to 599, or a range such as 200-399 (the lower status comes first)`,
		`f:9:61: services[0].check.expect.status[3]: found a list, expected a status from 100 to 599, or a range such as 200-399`,
		`f:9:68: services[0].check.expect.status[4]: found "ok", expected a status from 100 to 599, or a range such as 200-399`,
	}},
	{"statuses with comma", valid, checking(`{type: http, expect: {status: "200,204"}}`), []string{
		`f:9:42: services[0].check.expect.status: found "200,204", expected a status from 100 to 599, a range such as 200-399, or a list of both (several are a list: [200, 301-302])`,
	}},
	{"no statuses", valid, checking(`{type: http, expect: {status: []}}`), []string{
		`f:9:42: services[0].check.expect.status: found an empty list, expected a status from 100 to 599, a range such as 200-399, or a list of both`,
	}},
	{"headers", valid, checking(`{type: http, expect: {headers: ["A b: c", "A:", 5, "A: b\n"]}}`), []string{
		`f:9:44: services[0].check.expect.headers[0]: found "A b: c", expected a header such as "Name: value", or its name`,
		`f:9:54: services[0].check.expect.headers[1]: found "A:", expected a header such as "Name: value", or its name (without the colon for any value)`,
		`f:9:60: services[0].check.expect.headers[2]: found 5, expected a header such as "Name: value", or its name (put it in quotes if it is meant as text)`,
		`f:9:63: services[0].check.expect.headers[3]: found "A: b\n", expected a header such as "Name: value", or its name`,
	}},
	{"headers not a list", valid, checking(`{type: http, expect: {headers: A}}`), []string{
		`f:9:43: services[0].check.expect.headers: found "A", expected a list of headers`,
	}},
	{"weight_header", valid, checking(`{type: http, weight_header: "X-Weight:"}`), []string{
		`f:9:40: services[0].check.weight_header: found "X-Weight:", expected the name of a header`,
	}},
	{"host: a URL", valid, checking(`{type: http, host: 'http://a'}`), []string{
		`f:9:31: services[0].check.host: found "http://a", expected a host name or address, perhaps with a port`,
	}},
	{"host: an address in no brackets", valid, checking(`{type: http, host: '2001:db8::1'}`), []string{
		`f:9:31: services[0].check.host: found "2001:db8::1", expected a host name or address, perhaps with a port (an IPv6 address in brackets: "[2001:db8::1]")`,
	}},
	{"host: a port too high", valid, checking(`{type: http, host: 'a:65536'}`), []string{
		`f:9:31: services[0].check.host: found "a:65536", expected a host name or address, perhaps with a port`,
	}},
	{"host: an empty label", valid, checking(`{type: http, host: 'a..b'}`), []string{
		`f:9:31: services[0].check.host: found "a..b", expected a host name or address, perhaps with a port`,
	}},
	{"host: empty", valid, checking(`{type: http, host: ''}`), []string{
		`f:9:31: services[0].check.host: found "", expected a host name or address, perhaps with a port`,
	}},
	{"host: a zone", valid, checking(`{type: http, host: '[fe80::1%eth0]'}`), []string{
		`f:9:31: services[0].check.host: found "[fe80::1%eth0]", expected a host name or address, perhaps with a port`,
	}},
	{"host: no address", valid, checking(`{type: http, host: '[a]'}`), []string{
		`f:9:31: services[0].check.host: found "[a]", expected a host name or address, perhaps with a port`,
	}},
	{"host a number", valid, checking(`{type: http, host: 10}`), []string{
		`f:9:31: services[0].check.host: found 10, expected a host name or address, perhaps with a port (put it in quotes if it is meant as text)`,
	}},
	{"body in odd digits", valid, checking(`{type: http, expect: {body: 0x123}}`), []string{
		`f:9:40: services[0].check.expect.body: found 0x123, expected text of at most 1024 bytes, or bytes such as 0x00ff (after 0x come pairs of hexadecimal digits)`,
	}},
	{"body a number", valid, checking(`{type: http, expect: {body: 123}}`), []string{
		`f:9:40: services[0].check.expect.body: found 123, expected text of at most 1024 bytes, or bytes such as 0x00ff (put it in quotes if it is meant as text)`,
	}},
	{"body_regexp", valid, checking(`{type: http, expect: {body_regexp: "a(b"}}`), []string{
		`f:9:47: services[0].check.expect.body_regexp: found "a(b", expected a regular expression (RE2) on one line (missing closing ): ` + "`a(b`" + `)`,
	}},
	{"body_regexp of lines", valid, checking(`{type: http, expect: {body_regexp: "a\nb"}}`), []string{
		`f:9:47: services[0].check.expect.body_regexp: found "a\nb", expected a regular expression (RE2) on one line`,
	}},
	{"a certificate without key", valid, checking(`{type: https, tls: {cert_file: /c}}`), []string{
		`f:9:43: services[0].check.tls.cert_file: found a certificate without key_file, expected both or none`,
	}},
	{"a key without certificate", valid, checking(`{type: https, tls: {key_file: /k}}`), []string{
		`f:9:42: services[0].check.tls.key_file: found a key without cert_file, expected both or none`,
	}},
	{"an authority for nothing", valid, checking(`{type: https, tls: {ca_file: /c, verify: off}}`), []string{
		`f:9:41: services[0].check.tls.ca_file: found "/c" with verify: off, expected none (nothing is verified)`,
	}},
	{"tls fields", valid, checking(`{type: https, tls: {verify: maybe, ca_file: ca.pem, server_name: "a:443"}}`), []string{
		`f:9:40: services[0].check.tls.verify: found "maybe", expected on or off`,
		`f:9:56: services[0].check.tls.ca_file: found "ca.pem", expected an absolute path`,
		`f:9:77: services[0].check.tls.server_name: found "a:443", expected a host name or address (without a port)`,
	}},
	{"dns without query", valid, checking(`{type: dns, port: 53}`), []string{
		`f:9:12: services[0].check: found no query, expected a mapping (such as query: {name: example.org, type: A})`,
	}},
	{"dns without name", valid, checking(`{type: dns, port: 53, query: {type: a}}`), []string{
		`f:9:41: services[0].check.query: found no name, expected a domain name`,
		`f:9:48: services[0].check.query.type: found "a", expected A, AAAA, NS, SOA, MX, TXT or CNAME (did you mean A?)`,
	}},
	{"dns name", valid, checking(`{type: dns, port: 53, query: {name: "a:53"}}`), []string{
		`f:9:48: services[0].check.query.name: found "a:53", expected a domain name`,
	}},
	{"exec without command", valid, checking(`{type: exec}`), []string{
		`f:9:12: services[0].check: found no command, expected a list of words (the program with its absolute path, and its arguments)`,
	}},
	{"exec with an empty command", valid, checking(`{type: exec, command: []}`), []string{
		`f:9:34: services[0].check.command: found 0 words, expected 1 to 32 (the program with its absolute path, and its arguments)`,
	}},
	{"exec with a line", valid, checking(`{type: exec, command: /checks/a -t}`), []string{
		`f:9:34: services[0].check.command: found "/checks/a -t", expected a list of words`,
	}},
	{"exec with a number", valid, checking(`{type: exec, command: [/checks/a, 5, "a\nb"]}`), []string{
		`f:9:46: services[0].check.command[1]: found 5, expected a word on one line (put it in quotes if it is meant as text)`,
		`f:9:49: services[0].check.command[2]: found "a\nb", expected a word on one line`,
	}},
	{"exec elsewhere", valid, checking(`{type: exec, command: [/usr/bin/env]}`), []string{
		`f:9:35: services[0].check.command[0]: found "/usr/bin/env", expected a program in /checks (health.exec_directory says so)`,
	}},
	{"exec below", valid, checking(`{type: exec, command: [/checks/b/a]}`), []string{
		`f:9:35: services[0].check.command[0]: found "/checks/b/a", expected a program in /checks (health.exec_directory says so)`,
	}},
	{"exec beside", valid, checking(`{type: exec, command: [/checks/../a]}`), []string{
		`f:9:35: services[0].check.command[0]: found "/checks/../a", expected a program in /checks (health.exec_directory says so)`,
	}},
	{"exec by name", valid, checking(`{type: exec, command: [a]}`), []string{
		`f:9:35: services[0].check.command[0]: found "a", expected a program in /checks (health.exec_directory says so)`,
	}},
	{"exec memory", valid, checking(`{type: exec, command: [/checks/a], memory: 4001M}`), []string{
		`f:9:55: services[0].check.memory: found "4001M", expected a number from 1M to 4000M`,
	}},
	{"exec without a directory", valid, with("check: {type: exec, command: [/checks/a]}"), []string{
		"f:9:12: services[0].check: found an exec check and no health.exec_directory, expected the directory in which its program is (programs of checks run on this node: without it there are none)",
	}},
	{"exec with a directory that is none", "", "health: {exec_directory: checks}\n", []string{
		"f:1:26: health.exec_directory: found \"checks\", expected an absolute path",
	}},
	{"exec with a refused directory", valid, with("check: {type: exec, command: [/a]}") + "health: {exec_directory: /}\n", []string{
		"f:15:26: health.exec_directory: found \"/\", expected a directory for nothing else (such as /etc/sluice/checks)",
	}},
	{"tunnel of NAT", valid, strings.Replace(nat, "forward: nat\n", "forward: nat\n    check: {type: tcp, via: tunnel}\n", 1), []string{
		"f:9:29: services[0].check.via: found tunnel with forward: nat, expected direct (nat sends to the backend's own address, as direct does)",
	}},
	{"readiness without a check", valid, with("readiness: {type: tcp}"), []string{
		"f:9:16: services[0].readiness: found readiness without a check, expected a check too (readiness says which of the backends that live get new flows; check: {type: tcp} says which live)",
	}},
	{"readiness with a field of another type", valid, with("check: {type: tcp}\n    readiness: {type: ping, send: a}"), []string{
		"f:10:35: services[0].readiness.send: found \"a\" with type: ping, expected none (send is for tcp, udp and agent)",
	}},
	{"passive", valid, with("passive: {mode: on, ejection: 500ms, longest: 2h, max_share: 0}"), []string{
		"f:9:21: services[0].passive.mode: found \"on\", expected off, observe or eject",
		"f:9:35: services[0].passive.ejection: found \"500ms\", expected a duration from 1s to 1h",
		"f:9:51: services[0].passive.longest: found \"2h\", expected a duration from 1s to 1h",
		"f:9:66: services[0].passive.max_share: found 0, expected a number from 1 to 100",
	}},
	{"passive shorter and shorter", valid, with("passive: {ejection: 2m, longest: 1m}"), []string{
		"f:9:38: services[0].passive.longest: found 1m for a first ejection of 2m, expected no less than ejection",
	}},
	{"panic_threshold and quorum", valid, with("panic_threshold: 101\n    quorum: 0"), []string{
		"f:9:22: services[0].panic_threshold: found 101, expected a number from 0 to 100",
		"f:10:13: services[0].quorum: found 0, expected a number from 1 to 65535",
	}},
	{"quorum that is never met", valid, with("quorum: 3"), []string{
		"f:9:13: services[0].quorum: found 3, expected at most 2 (there are no more backends, and it would never be met)",
	}},
}
