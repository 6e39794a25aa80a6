package config

import (
	"slices"
	"strings"
	"time"
)

// field is one line of the schema.
type field struct {
	path     string // from the top, [] for the elements of a list
	kind     string // the type, in the words of kinds
	def      string // the default, as the file would have it; empty: see required
	required bool   // refused when it is missing; otherwise a missing field without a default has the meaning that doc gives
	doc      string // what it does, for docs/config.md
}

// schema is every field that a file may have, in the order of the reference. The parser looks names, defaults and
// requirements up here and has none of its own.
var schema = slices.Concat(schemaToCheck, checkFields("services[].check"), []field{
	{"services[].readiness", "mapping", "", false, "A second, deeper check beside `check`: backends that fail it get no new flows, but keep those that they have. If all that live fail it, it is ignored. It has the fields of `check`."},
}, checkFields("services[].readiness"), schemaFromPassive)

// schemaToCheck is the schema up to services[].check.
var schemaToCheck = []field{
	{"node", "name", "", false, "The name of this node in status, metrics and logs. Without it the host name is taken."},

	{"group", "mapping", "", false, "The nodes that share the VIPs' traffic."},
	{"group.seed_file", "path", "", false, "An absolute path to a file of 16 to 4096 random bytes, the same on every node of the group, readable only by the daemon's user. It keys the flow hash, so all nodes choose the same backend for a flow and no outsider can foresee which. Line ends at its end do not count. Without it the node makes a seed of its own and keeps it in `state_dir`; with more than one peer it is required."},
	{"group.peers", "count", "1", false, "How many nodes the group has, this one included (1 to 1024)."},

	{"state_dir", "path", "/var/lib/sluice", false, "The directory for what has to outlive a restart: last known health, and the seed of a node without `seed_file`."},

	{"control", "mapping", "", false, "The local API, which `sluice status`, `sluice reload` and healthd use."},
	{"control.socket", "path", "/run/sluice/control.sock", false, "An absolute path of at most 107 bytes for the unix socket, made with mode 0660."},
	{"control.group", "group", "", false, "The name or number of the group that owns the socket, and so may use the API. Without it the group of the daemon."},

	{"interfaces", "list", "", true, "The network interfaces on which VIP traffic arrives. At least one; each name once."},
	{"interfaces[].name", "interface", "", true, "The name as `ip link` shows it."},
	{"interfaces[].mode", "mode", "auto", false, "`zerocopy` refuses to start where the driver cannot, `copy` never tries, `auto` tries zero-copy first. `sluice status` shows what was obtained."},
	{"interfaces[].queues", "queues", "all", false, "How many receive queues to take, from queue 0: a number, or `all`. Packets to a VIP on a queue that is not taken are dropped under the reason `no_socket`."},

	{"interfaces[].fast_path", "fast_path", "auto", false, "Whether the XDP program forwards packets of known flows by itself, from the workers' own flow table: `on`, `off`, or `auto`, which is on in copy mode where the driver can send for XDP programs. The workers keep everything else, and services that it cannot forward for: `sluice status` names them. See the guide to the fast path."},
	{"interfaces[].vlan", "vlan", "", false, "VIP traffic arrives, and leaves, with this 802.1Q tag; a route through a VLAN device gives what leaves that device's tag. Without it, VIP traffic has none, or a mere priority tag. What comes otherwise is the kernel's."},

	{"workers", "workers", "0", false, "How many workers forward packets, each on a core of its own. 0 takes as many as the allowed cores and the smallest queue count permit."},
	{"cpus", "cpus", "", false, "The cores that workers are pinned to, as in `1-3,5`. Without it, any core that the process may use. Everything else of the daemon keeps off the workers' cores, if it may use others."},
	{"busy_poll", "bool", "false", false, "Let the workers poll the driver instead of waiting for interrupts: lower latency for a core that is always busy."},
	{"flows", "amount", "4M", false, "How many flows the flow table is meant for, at 16 bytes each (1k to 1000M; k and M mean thousand and million). A change takes effect at the next start."},

	{"tunnel", "mapping", "", false, "The outer headers of `forward: ipip` and `forward: gue`."},
	{"tunnel.gue_port", "port", "6080", false, "The UDP port that backends take GUE packets on."},
	{"tunnel.gue_checksum", "bool", "false", false, "Fill in the UDP checksum of GUE packets. Without it, it is zero, over IPv6 too (RFC 6935): the inner packet has its own, and summing up each packet costs time."},
	{"tunnel.oversize", "oversize", "fragment", false, "What becomes of an IPv4 packet without don't-fragment that is too big with its outer headers. `fragment` cuts it before it gets them, so that any backend can take it; `drop` drops it under the reason `too_big`. Packets that may not be fragmented are answered with ICMP in either case, at most 1,000 a second and worker."},
	{"tunnel.source_ipv4", "prefix4", "", false, "A prefix from which the outer IPv4 source is taken, another address for each flow, so that routers and NICs spread a node's IPIP traffic. Nothing is ever sent to these addresses, so it must hold no VIP and no backend, but firewalls and the agents' `--source` must allow them. Without it, the address that the node's routing gives."},
	{"tunnel.source_ipv6", "prefix6", "", false, "The same for IPv6; the last 32 bits vary at most."},

	{"services", "list", "", true, "What is balanced. At least one; each name once. Services of one VIP and protocol must not share a port."},
	{"services[].name", "name", "", true, "The name of the service in status, metrics and logs."},
	{"services[].vip", "vip", "", true, "The virtual IPv4 or IPv6 address that clients connect to. Every packet to it is taken from the node's own stack."},
	{"services[].protocol", "protocol", "", true, "The transport protocol."},
	{"services[].ports", "ports", "", true, "A port, a range such as `8000-8999`, a list of both, or `any`. Backends receive on the same port, unless `forward: nat` gives them another."},
	{"services[].forward", "forward", "", true, "`l2` rewrites the destination MAC: backends are on the node's own link and of the VIP's family. `ipip` puts an IP header in front: backends may be anywhere and of either family. `gue` puts an IP and a UDP header in front, whose source port is another one for each flow. In these three, the VIP is on the backend's loopback and replies go straight to the client. `nat` puts the backend's address in place of the VIP and keeps the client's: backends are of the VIP's family, need no VIP, and route their replies through a node, any node, which puts the VIP back. Two services must not share a backend's address, protocol and port with `nat`: its replies could belong to either."},
	{"services[].clamp_mss", "clamp", "auto", false, "The MSS that SYNs to the backends, and SYN-ACKs from them, have at most: `auto` for what the MTU of their way leaves, `off`, or a number of bytes. For TCP with `forward: nat` only; with `ipip` and `gue` it is sluice-agent that clamps."},
	{"services[].on_no_backend", "onnobackend", "drop", false, "What becomes of a packet for which there is no backend. `drop` drops it; `reject` also tells the client, with a TCP RST or an ICMP port unreachable, each at most 1,000 times a second and worker. Datagrams of less than 28 bytes of payload (IPv6: 48) are not answered, since the answer would be longer."},
	{"services[].scheduler", "scheduler", "maglev", false, "How a new flow gets its backend. `maglev` goes by the flow's hash and `source` by the client's address: both choose alike on every node of the group. `wrr` takes backends in turn by weight, `least-conn` the one with the fewest flows for its weight, `p2c` the one with fewer flows for its weight of two that the flow's hash names: these three go by what this node alone has seen, and another node to which a router moves the flow may choose otherwise."},
	{"services[].source_prefix", "prefixlen", "32", false, "How many leading bits of the client's address decide with `scheduler: source` (1 to 32, for an IPv6 VIP 1 to 128): all clients of a prefix get the same backend. For that scheduler only."},
	{"services[].table_size", "prime", "65537", false, "How many entries the service's lookup table has, at 2 bytes each: a prime number from 251 to 16777213, and at least as many as backends. A backend gets the share that its weight says to within one entry, so with 100 entries it is within a hundredth; 655373 is for large services. Another size gives most entries to other backends, which flows with a word in the flow table do not notice."},
	{"services[].slow_start", "duration", "0s", false, "How long a backend that comes back (up again, no longer drained, its weight no longer 0, or added to a running service) gets a growing share of new flows, from a tenth of its share to all of it (0s to 1h). 0s: all of it at once."},
	{"services[].on_down", "ondown", "keep", false, "What becomes of the flows of a backend that its health check finds down. `keep` goes on sending them to it, for the case that only the check fails; `rehash` gives each of them another backend with its next packet; `reset`, for TCP only, answers its next packet with a RST, so that the client opens a new connection at once. Without a flow table, flows are always rehashed."},
	{"services[].flow_table", "switch", "on", false, "Whether flows have words in the flow table, which keep them on their backends when backends come and go. `off` is for services of one-packet flows, such as DNS: nothing is written for a packet, each goes by its hash alone. Not with `wrr`, `least-conn` and `p2c`, whose choice cannot be found again without a word."},
	{"services[].lifetimes", "mapping", "", false, "How long a flow's word lives without a packet of the flow: 5s to 2h each. Not with `flow_table: off`."},
	{"services[].lifetimes.new", "duration", "2h", false, "Of a flow that is new: until a packet comes in a later tick of the table's clock, which ticks every 2.15 s, than the one that gave it its word; never longer by default than `established`. When the table is full, such words give way first, however long they may live."},
	{"services[].lifetimes.established", "duration", "2h", false, "Of a flow from then on. A flow that is idle needs keep-alives more often than that."},
	{"services[].lifetimes.closing", "duration", "30s", false, "Of a flow whose client has sent a FIN or RST. A further packet gives it the full time again. For TCP only."},
	{"services[].limits", "mapping", "", false, "Who may send to this service, and how much. A packet has to pass these limits and those at the top."},
	{"services[].limits.deny", "sources", "", false, "Sources that are denied, as in `limits.deny`."},
	{"services[].limits.allow", "sources", "", false, "Sources that are allowed, as in `limits.allow`."},
	{"services[].limits.deny_files", "paths", "", false, "Files of sources that are denied, as in `limits.deny_files`."},
	{"services[].limits.allow_files", "paths", "", false, "Files of sources that are allowed, as in `limits.allow_files`."},
	{"services[].limits.per_source", "mapping", "", false, "How much each source may send to this service. What is a source is said by `limits.per_source`."},
	{"services[].limits.per_source.packets", "rate", "", false, "Packets of one source."},
	{"services[].limits.per_source.syns", "rate", "", false, "TCP SYNs of one source. Not for UDP."},
	{"services[].limits.per_source.flows", "rate", "", false, "New words of one source in the flow table. Not with `flow_table: off`."},
	{"services[].limits.per_source.burst", "duration", "1s", false, "How much of each rate may come at once, as in `limits.per_source.burst`."},
	{"services[].limits.per_source.action", "action", "drop", false, "What becomes of packets beyond these rates, as in `limits.per_source.action`."},
	{"services[].limits.total", "mapping", "", false, "How much all sources together may send to this service: its ceilings."},
	{"services[].limits.total.packets", "rate", "", false, "Packets of all sources."},
	{"services[].limits.total.syns", "rate", "", false, "TCP SYNs of all sources. Not for UDP."},
	{"services[].limits.total.flows", "rate", "", false, "New words of all sources in the flow table. Not with `flow_table: off`."},
	{"services[].limits.total.burst", "duration", "1s", false, "How much of each rate may come at once, as in `limits.per_source.burst`."},
	{"services[].limits.total.action", "action", "drop", false, "What becomes of packets beyond these rates, as in `limits.per_source.action`."},
	{"services[].syn_defence", "syndefence", "", false, "The service's own `syn_defence`. Without it, the one at the top; for UDP it is off."},

	{"services[].check", "mapping", "", false, "How healthd finds out which backends live. Without it, all of them count as up."},
}

// schemaFromPassive is the schema after the fields of checks.
var schemaFromPassive = []field{
	{"services[].passive", "mapping", "", false, "What becomes of backends at which new connections fail, as the packets of clients show: [how that is seen](health.md#passive-health)."},
	{"services[].passive.mode", "passive", "eject", false, "`eject`: such a backend gets no new flows for a while, and keeps those that it has. `observe`: it is only told. `off`: nobody looks."},
	{"services[].passive.ejection", "duration", "10s", false, "How long the first ejection lasts (1s to 1h). Each further one lasts twice as long as the one before, until the backend has been fine for a while."},
	{"services[].passive.longest", "duration", "5m", false, "How long an ejection lasts at most (1s to 1h; no less than `ejection`, which is taken if it is longer than the default)."},
	{"services[].passive.max_share", "count", "25", false, "How many percent of the service's backends may be ejected or down before no more are ejected (1 to 100). One may be always, but never the last."},
	{"services[].panic_threshold", "count", "0", false, "If fewer than this percentage of the backends (weight above 0, not drained by hand) would be left by health, it is ignored, and all of them take flows (0 to 100). 0: only when none would be left."},
	{"services[].quorum", "count", "1", false, "How many backends have to be alive for the service to be worth announcing; no more than it has. `sluice health` and `sluice_service_quorum_met` tell whether they are: forwarding goes on in either case."},

	{"services[].backends", "list", "", true, "The servers, 1 to 65535. Each name and each address once; their order does not matter."},
	{"services[].backends[].name", "name", "", true, "The name of the backend. It decides which flows the backend gets: keep it when the address changes, and those of other backends stay in place."},
	{"services[].backends[].address", "backend", "", true, "The backend's own address, to which packets are sent. Never a VIP, never the node's own. The same address may stand in several services; each counts its flows there for itself."},
	{"services[].backends[].port", "port", "", false, "The port that the backend receives on, with `forward: nat` and for a service with a single port. Without it, the one that the client used."},
	{"services[].backends[].weight", "weight", "100", false, "The backend's share of new flows, in proportion to the weights of the others (0 to 65535). 0: it takes no new flow, and the flows that it has finish."},

	{"limits", "mapping", "", false, "Who may send, and how much, to all services together."},
	{"limits.deny", "sources", "", false, "Prefixes and addresses of sources whose packets to VIPs are dropped. Of all lists and files of one place the longest prefix that holds a source decides; a source that none holds is allowed."},
	{"limits.allow", "sources", "", false, "Prefixes and addresses of sources that are allowed, to except them from a shorter prefix that is denied."},
	{"limits.deny_files", "paths", "", false, "Absolute paths of files of sources that are denied: a prefix or an address a line; `#` begins a comment, and blank lines do not count. They are read at the start and at every reload. The lists and files of one place hold up to a million prefixes, all of a configuration four million."},
	{"limits.allow_files", "paths", "", false, "The same of sources that are allowed."},
	{"limits.per_source", "mapping", "", false, "How much each source may send to all services together."},
	{"limits.per_source.ipv4_prefix", "count", "32", false, "How many leading bits of an IPv4 address are one source (8 to 32), for the limits of services too."},
	{"limits.per_source.ipv6_prefix", "count", "64", false, "The same for IPv6 (16 to 128)."},
	{"limits.per_source.packets", "rate", "", false, "Packets of one source. Rates are from 1/s to 1000M/s, and one that is left out limits nothing."},
	{"limits.per_source.syns", "rate", "", false, "TCP SYNs of one source."},
	{"limits.per_source.flows", "rate", "", false, "Flows of one source that get a word in the flow table."},
	{"limits.per_source.burst", "duration", "1s", false, "How much of each rate may come at once: so long a time's worth of it, which must be one event at least (100ms to 10s)."},
	{"limits.per_source.action", "action", "drop", false, "What becomes of packets beyond these rates. `drop` drops them; `observe` counts them and lets them go on, to find out what a limit would do."},
	{"limits.per_source.table", "amount", "1M", false, "For how many limits of sources there is room at a time, at 16 bytes each (1k to 1000M): a source takes one place for each limit that applies to it, the limits of services included. As much again, but no more than 2 GB, is taken for sources that have proved their address. A change takes effect at the next start."},
	{"limits.node", "mapping", "", false, "How much all sources together may send to all services: the ceilings of the node."},
	{"limits.node.packets", "rate", "", false, "Packets of all sources."},
	{"limits.node.syns", "rate", "", false, "TCP SYNs of all sources."},
	{"limits.node.flows", "rate", "", false, "New words of all sources in the flow table."},
	{"limits.node.burst", "duration", "1s", false, "How much of each rate may come at once, as in `limits.per_source.burst`."},
	{"limits.node.action", "action", "drop", false, "What becomes of packets beyond these rates, as in `limits.per_source.action`."},

	{"syn_defence", "syndefence", "off", false, "Who answers SYNs. `off`: the backends. `challenge`: the node, until the source has proved that its address is not forged, which costs the first connection of each source a SYN that is sent again. `auto`: while SYNs flood the service the node, with cookies if the agents of all backends that take new flows say that they accept them, else with challenges; else the backends. `cookie`: the node, with a SYN cookie, which the agents of all backends have to take (`--cookie-seed`, and `--nat` with `forward: nat`)."},
	{"agent_port", "port0", "9546", false, "The TCP port on which sluice-healthd asks the agents of services with `syn_defence` auto or cookie what they accept (`--listen` there). 0: they are not asked, and `auto` answers with challenges."},

	{"health", "mapping", "", false, "What concerns the checks of all services."},
	{"health.exec_directory", "path", "", false, "The directory of the programs that checks of type `exec` may run. Programs and directory belong to root, and nobody else may write to them. Without it there are no such checks."},

	{"metrics", "mapping", "", false, "Prometheus metrics and readiness."},
	{"metrics.listen", "addrport", "127.0.0.1:9545", false, "The address and port that serve `/metrics` and `/readyz`."},

	{"without_daemon", "mapping", "", false, "What the XDP programs of interfaces with a fast path do while no daemon runs, or its workers stand still: after a crash, during a restart or an upgrade. The next daemon adopts flow table and programs; `sluice detach` removes them."},
	{"without_daemon.for", "duration", "10m", false, "How long they go on forwarding, flows that are known and new ones, by health as it was (0s to 20m). 0s: they end with the daemon."},
	{"without_daemon.then", "verdict", "pass", false, "What becomes of packets to VIPs that they cannot forward meanwhile, and of all of them afterwards: `pass` gives them to the kernel, where a blackhole route waits for them, `drop` drops them. They are counted under the reason `no_daemon`."},
	{"without_daemon.pins", "path", "/sys/fs/bpf/sluice", false, "The directory in a BPF file system by which programs and flow table outlive the daemon. Where there is no BPF file system they do not, which the log says."},
	{"drain_time", "duration", "30s", false, "How long the daemon goes on forwarding after SIGTERM, being no longer ready, so that routers can turn away (0s to 1h)."},

	{"log", "mapping", "", false, "The daemon's log, on its standard error."},
	{"log.level", "level", "info", false, "The least severe message that is written."},
	{"log.format", "format", "text", false, "`text` for people and journals, `json` for machines."},
}

// kinds tells what a value of each type looks like, in error messages and in the reference.
var kinds = map[string]string{
	"mapping":     "a mapping",
	"list":        "a list",
	"name":        "a name of 1 to 63 letters, digits, dots, dashes and underscores",
	"path":        "an absolute path",
	"group":       "the name or number of a group",
	"interface":   "an interface name of 1 to 15 characters",
	"mode":        "auto, zerocopy or copy",
	"fast_path":   "auto, on or off",
	"verdict":     "pass or drop",
	"queues":      "all, or a number from 1 to 4096",
	"vlan":        "a number from 1 to 4094",
	"workers":     "a number from 0 to 1024",
	"cpus":        "cores such as 1-3,5",
	"bool":        "true or false",
	"amount":      "a number such as 500k or 4M",
	"count":       "a number",
	"vip":         "an IPv4 or IPv6 address",
	"backend":     "an IPv4 or IPv6 address",
	"protocol":    "tcp or udp",
	"ports":       "a port from 1 to 65535, a range such as 8000-8999, a list of both, or any",
	"port":        "a port from 1 to 65535",
	"port0":       "a port from 1 to 65535, or 0",
	"forward":     "l2, ipip, gue or nat",
	"clamp":       "off, auto, or a number from 536 to 65495",
	"onnobackend": "drop or reject",
	"oversize":    "fragment or drop",
	"prefix4":     "an IPv4 prefix such as 10.7.0.0/16",
	"prefix6":     "an IPv6 prefix such as fd00:7::/64",
	"scheduler":   "maglev, wrr, least-conn, p2c or source",
	"prefixlen":   "a number from 1 to 128",
	"prime":       "a prime number from 251 to 16777213",
	"ondown":      "keep, rehash or reset",
	"switch":      "on or off",
	"weight":      "a number from 0 to 65535",
	"check":       "tcp, http, https, http2, grpc, udp, dns, ping, exec or agent",
	"via":         "direct or tunnel",
	"passive":     "off, observe or eject",
	"hostport":    "a host name or address, perhaps with a port",
	"hostname":    "a host name or address",
	"domain":      "a domain name",
	"header":      "the name of a header",
	"headers":     "a list of headers",
	"expheader":   "a header such as \"Name: value\", or its name",
	"statuses":    "a status from 100 to 599, a range such as 200-399, or a list of both",
	"bytes":       "text of at most 1024 bytes, or bytes such as 0x00ff",
	"regexp":      "a regular expression (RE2) on one line",
	"line":        "a line of at most 1024 bytes",
	"dnstype":     "A, AAAA, NS, SOA, MX, TXT or CNAME",
	"words":       "a list of words",
	"word":        "a word on one line",
	"urlpath":     "a path that begins with a slash",
	"duration":    "a duration such as 500ms, 2s or 1m",
	"addrport":    "an IP address and port such as 127.0.0.1:9545",
	"level":       "debug, info, warn or error",
	"format":      "text or json",
	"sources":     "a list of prefixes and addresses",
	"source":      "a prefix such as 198.51.100.0/24 or 2001:db8::/48, or an address",
	"paths":       "a list of absolute paths",
	"rate":        "a rate such as 200/s, 50k/s or 1M/s",
	"action":      "drop or observe",
	"syndefence":  "off, auto, challenge or cookie",
}

// elements maps the types of lists to those of their elements.
var elements = map[string]string{"sources": "source", "paths": "path", "headers": "expheader", "words": "word"}

// special holds defaults that some services have in place of the schema's: which services, and what the default is there.
var special = map[string]struct{ of, def string }{
	"services[].source_prefix":         {"IPv6", "64"},
	"services[].on_down":               {"UDP", "rehash"},
	"services[].lifetimes.new":         {"UDP", "30s"},
	"services[].lifetimes.established": {"UDP", "2m"},
}

// absent holds fields that stand elsewhere, or that other versions have, and what to say to somebody who writes them.
var absent = map[string]string{
	"services[].limits.per_source.ipv4_prefix": "limits.per_source has it, for all services",
	"services[].limits.per_source.ipv6_prefix": "limits.per_source has it, for all services",
	"services[].limits.per_source.table":       "limits.per_source has it, for all services",
	"services[].limits.node":                   "limits has it; a service has total",
	"limits.total":                             "services have it; limits has node",
}

// limits that a whole file has to keep.
const (
	maxFileSize   = 16 << 20 // bytes
	maxServices   = 1 << 14  // as many as an engine takes
	maxBackends   = 65535    // of one service: lookup tables hold 16-bit indices
	maxSlots      = 1 << 18  // backends of all services together: slots have 18 bits in the flow table
	evenEntries   = 100      // of a lookup table for each backend; with fewer, shares are more than a hundredth apart
	exactEntries  = 10       // of a lookup table; a backend that its weight gives fewer may get a tenth more or less
	minTableSize  = 251      // prime
	maxTableSize  = 16777213 // the largest prime number below 2^24
	maxWeight     = 65535
	maxProblems   = 100 // how many problems of one file are told
	maxSocketPath = 107 // bytes: sun_path less its final zero
	maxPeers      = 1024
	maxQueues     = 4096
	maxVLAN       = 4094
	// Beyond it a flow table that nobody sweeps cannot be adopted any more (package conntrack).
	maxWithoutDaemon = 20 * time.Minute
	minMSS           = 536   // bytes: what every IPv4 host takes (RFC 879)
	maxMSS           = 65495 // bytes: of the largest IPv4 packet
	maxWorkers       = 1024
	maxCPU           = 8191
	minFlows         = 1000
	maxFlows         = 1000_000_000
	maxRiseAndFall   = 100
)

// fields maps each path of the schema to its line.
var fields = func() map[string]*field {
	m := make(map[string]*field, len(schema))
	for i := range schema {
		m[schema[i].path] = &schema[i]
	}
	return m
}()

// children maps each path of the schema that has fields below it to their lines; "" is the top.
var children = func() map[string][]*field {
	m := make(map[string][]*field)
	for i := range schema {
		parent, _ := cutLast(schema[i].path)
		m[parent] = append(m[parent], &schema[i])
	}
	return m
}()

// name is the last part of f's path.
func (f *field) name() string {
	_, name := cutLast(f.path)
	return name
}

func cutLast(path string) (parent, name string) {
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}
