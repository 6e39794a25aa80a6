package config

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/config.md anew")

// docs/config.md is made from the schema and says what the schema says.
func TestReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "config.md")
	want := reference()
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/config.md does not say what the schema says; go test ./internal/config -run TestReference -update writes it anew")
	}
}

// Every field is documented, has a type that kinds describes, and a default that the parser takes.
func TestSchema(t *testing.T) {
	seen := make(map[string]bool)
	for _, f := range schema {
		if seen[f.path] {
			t.Errorf("%s: twice in the schema", f.path)
		}
		seen[f.path] = true
		if kinds[f.kind] == "" {
			t.Errorf("%s: type %q has no description", f.path, f.kind)
		}
		if len(f.doc) < 10 || !strings.HasSuffix(f.doc, ".") {
			t.Errorf("%s: no documentation", f.path)
		}
		if f.required && f.def != "" {
			t.Errorf("%s: required, and has a default", f.path)
		}
		if parent, _ := cutLast(f.path); parent != "" && !seen[strings.TrimSuffix(parent, "[]")] {
			t.Errorf("%s: its parent is not in the schema before it", f.path)
		}
	}
	for path := range absent {
		if seen[path] {
			t.Errorf("%s: both in the schema and absent", path)
		}
	}
	for path := range special {
		if f := fields[path]; f == nil || f.def == "" {
			t.Errorf("%s: has a special default and no ordinary one", path)
		}
	}
}

// The schema and the Config type have the same fields.
func TestSchemaIsTheType(t *testing.T) {
	inType := make(map[string]bool)
	var walk func(typ reflect.Type, path string)
	walk = func(typ reflect.Type, path string) {
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		switch {
		case typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Struct && typ != reflect.TypeFor[Ports]():
			walk(typ.Elem(), path+"[]")
		case typ.Kind() == reflect.Struct && typ.PkgPath() == reflect.TypeFor[Config]().PkgPath():
			for i := range typ.NumField() {
				name, _, _ := strings.Cut(typ.Field(i).Tag.Get("yaml"), ",")
				if name == "-" || !typ.Field(i).IsExported() {
					continue
				}
				if typ.Field(i).Anonymous {
					walk(typ.Field(i).Type, path)
					continue
				}
				inType[join(path, name)] = true
				walk(typ.Field(i).Type, join(path, name))
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
	for _, f := range schema {
		if !inType[f.path] {
			t.Errorf("%s is in the schema and not in Config", f.path)
		}
		delete(inType, f.path)
	}
	for path := range inType {
		t.Errorf("%s is in Config and not in the schema", path)
	}
}

// reference returns docs/config.md.
func reference() []byte {
	var b bytes.Buffer
	b.WriteString(`# Configuration

Made from the schema in internal/config by ` + "`go test ./internal/config -run TestReference -update`" + `; a test compares them.

One YAML file, usually ` + "`/etc/sluice/sluice.yaml`; [deploy/sluice.yaml](../deploy/sluice.yaml)" + ` is a complete example.
` + "`sluice check FILE`" + ` tells whether a file is good. A file is taken whole or refused whole, and then the configuration in force
stays. Every problem is told at once, with its place:

` + "```" + `
sluice.yaml:12:10: services[0].vip: found "192.0.2.10/32", expected an IPv4 or IPv6 address (without the prefix length)
` + "```" + `

- A field that this page does not list is a mistake, and so is a field given twice.
- Names are text: a name of digits only needs quotes. Numbers are plain decimal digits, durations have a unit.
- Anchors and aliases work for whole values; merge keys (` + "`<<`" + `) do not.
- Fields without default are required, or mean what their description says when they are left out.
- Changes of ` + "`interfaces`, `workers`, `cpus`, `busy_poll`, `flows`, `limits.per_source.table`, `group`, `state_dir`, `control`," + `
  ` + "`metrics` and `log.format`" + ` take effect at the next start; all else at a reload, without touching a connection.

| field | default | value | what it does |
|---|---|---|---|
`)
	for _, f := range schema {
		def := ""
		switch {
		case f.required:
			def = "required"
		case f.def != "":
			def = "`" + f.def + "`"
		}
		if other, ok := special[f.path]; ok {
			def += ", " + other.of + " `" + other.def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.path, def, kinds[f.kind], f.doc)
	}
	b.WriteString(`
## What ` + "`sluice check`" + ` looks at

The file as a whole, as the daemon does; and the machine that it runs on, if that has one of the file's interfaces. It refuses

- a backend whose address is the machine's own: a node cannot be its own backend;
- ` + "`tunnel.gue_checksum`" + ` with an interface whose MTU is above 3,500 bytes: larger packets come in several buffers.

And it warns

- of interfaces that the machine does not have, and of backends that it has no route to: what concerns them is not checked;
- of packets that may arrive and do not fit the MTU of the way to a backend with their outer headers (` + "`ipip`" + `: 20 bytes over
  IPv4, 40 over IPv6; ` + "`gue`" + `: 28 and 48). What arrives has the interface's MTU; 1,500 bytes at most if backends are behind the
  same interface, since its MTU may have been raised for the outer headers. What is left must be 1,280 bytes for IPv6.

## Health

Three things say which backends of a service take traffic, beside the file and drains by hand. None of them moves a flow of
a backend that is fine.

- **` + "`check`" + `** says which live. A backend that is down takes no new flow, and ` + "`on_down`" + ` says what becomes of those that it has. It is up
  again after ` + "`rise`" + ` good probes in a row. Without ` + "`check`" + `, all live.
- **` + "`readiness`" + `** says which of those that live want new flows. One that does not keeps the flows that it has. If none that lives
  wants any, readiness is ignored for the service.
- **` + "`passive`" + `** looks at the packets of clients. A backend at which new connections fail, unlike at others, is ejected: it gets no new
  flow for a while, and keeps those that it has. An ejection ends by itself, and the last backend that would take new flows is
  never ejected.

Backends can ask for less than their share of new flows: by the ` + "`weight_header`" + ` of their answers, or ` + "`75%`" + ` from an agent.

**What is not known yet.** What sluice-healthd reported holds until it reports something else, however long that takes, over reloads
and, by ` + "`health.json` in `state_dir`" + `, over restarts of the daemon. A backend of which nothing is known takes nothing: one that a
reload has added, or whose address has changed, waits for its first good probe. When a running service gets a check, its backends
count as up until a probe says otherwise. A service that has appeared, at the first start or by a reload, is given three intervals
of its check for that, in which the node is not ready; then health is ignored for it, if that leaves it no backend.

**If too many look dead,** the fault is likely to be that of the check, or of the network in front of it. If fewer than
` + "`panic_threshold`" + ` percent of the backends that file and operator want would be left alive, or none at all, health is ignored for the
service and all of them take traffic, which ` + "`sluice status` and the metric `sluice_service_fail_open`" + ` tell. With four backends and
` + "`panic_threshold: 50`" + `, two may go down; when the third does, all four get traffic.

**` + "`quorum`" + `** changes nothing in forwarding. It is how many backends have to be alive for the node to be worth getting the service's
traffic; whether they are is told in status, metrics and events.

What a check asks for must be possible: a field that its type has no use for is refused. Files of ` + "`tls`" + ` are looked at when the
file is loaded: certificates and keys in PEM form that fit together. So are the programs of ` + "`exec`" + `: they, and the directories they are in,
belong to root, and nobody else may write to them. sluice-healthd looks again at each probe, as its own user.

## Weights, draining and lifetimes

A flow that has a word in the flow table stays on its backend, whatever changes for new flows. So

- **weights** are for new flows: 100, 100 and 50 give two fifths, two fifths and one. Another weight, and a backend more or
  less, change the service's lookup table. For 60 s after that, packets without a word that may belong to an older flow (of UDP
  all, of TCP all but SYNs) still go by the table of before, after several changes by the one that was in force a minute ago, if
  the backend that it names takes traffic.
- **Draining** is to take no new flow and finish those that are there. There are three ways: ` + "`weight: 0`" + `; removal from the file;
  and ` + "`sluice drain SERVICE/BACKEND`" + `, which needs no change of the file, and with a timeout ends the flows that are left then
  (TCP flows get a RST, UDP flows another backend). ` + "`sluice status`" + ` shows how many are left; a removed backend is shown as leaving
  until its last flow is gone. It is no longer probed.
- **Another address** makes another backend, even under the same name: the flows of the old one finish at the old address.
- **` + "`on_down`" + `** is for backends that health finds down, drained ones too. It says what becomes of their flows; new ones go elsewhere
  in any case. It does not apply while health is ignored for the service, nor to backends that were removed while they were up.
- **Lifetimes** count from the last packet of the client that this node has seen; replies do not count. A flow whose word has
  expired goes on by its hash with its next packet: to the same backend, unless the backends have changed, or the flow had gone
  elsewhere than its hash says, as is usual with ` + "`wrr`, `least-conn` and `p2c`" + `.
- **Without a flow table** there is nothing to finish: a backend's datagrams go elsewhere as soon as it takes no new flows, and TCP
  packets other than SYNs go to it as long as the lookup table names it and it is not down.

## Access lists, limits and floods

A packet to a VIP has to pass, in this order, the access list at the top and that of its service, the limits, and, if it is a
SYN, the SYN defence. What is left out costs nothing.

**Access lists** (` + "`deny`, `allow`, `deny_files`, `allow_files`" + `) say which sources may send:

- The longest prefix that holds a source decides, whichever list or file it is from; a source that no prefix holds is allowed. So
  ` + "`deny: [0.0.0.0/0, \"::/0\"]`" + ` with ` + "`allow`" + ` admits only who is named.
- A packet has to pass the list at the top and that of its service: a service cannot allow what the top denies.
  Fragments after the first and ICMP errors, which name no port, pass the list at the top only.
- A prefix that is both allowed and denied in one place is refused, with both lines. In the configuration file each prefix stands
  once; files may repeat each other. Prefixes without their host bits only, and IPv4 never as ` + "`::ffff:…`" + `.
- A file that is missing, or has a line that is neither prefix, address nor comment, makes the configuration refused, and then
  the lists in force stay. A changed file takes effect at a reload, which changes what has changed in it, all at once.
- Replies of backends with ` + "`forward: nat`" + `, health probes and all traffic that is not to a VIP pass no list.

A denied packet is dropped in the XDP program, before it costs a worker anything.

**Limits** are rates of packets, of SYNs and of flows that get a word in the flow table. A source is an IPv4 address or an IPv6
/64, unless ` + "`ipv4_prefix` and `ipv6_prefix`" + ` say otherwise. There are four of each rate, and all that are set must let a packet
pass:

| | of each source | of all sources |
|---|---|---|
| to all services | ` + "`limits.per_source` | `limits.node`" + ` |
| to one service | ` + "`services[].limits.per_source` | `services[].limits.total`" + ` |

- Who stays below a rate is never held up. Of others, as much passes at once as the rate has in the time ` + "`burst`" + `, and then so
  many a second; what is beyond is dropped or, with ` + "`action: observe`" + `, counted only.
- A source that sends more than twice its ` + "`limits.per_source.packets`" + ` is dropped in the XDP program for ten seconds at a time
  (` + "`banned`" + `), so that it costs the workers nothing; with ` + "`observe`" + ` it is not.
- What sources have sent is kept in ` + "`limits.per_source.table`" + ` words, whatever the number of sources: with more of them at a
  time, some are forgotten and may send a burst again.
- Per-source limits cannot see a flood with forged sources, a new one for each packet. Ceilings can, but they do not tell users
  from attackers; against SYNs there is the SYN defence.
- Limits that cannot work are refused: of SYNs for UDP, of flows with ` + "`flow_table: off`" + `, a burst of less than one event. Limits that
  never apply since another one is lower are warned of.

**The SYN defence** ` + "`challenge`" + ` answers the first SYN of a source with a SYN-ACK whose acknowledgement number is wrong and keyed. A
real client answers with a RST that carries this number, which proves that its address is not forged, and sends its SYN again,
which then passes, as do its next ones for a while. Nothing is kept about a source before that. Linux clients send the SYN again
after some 10 ms, others after about 1 s. Connections that exist never notice. ` + "`auto`" + ` does this for a service only while its SYNs
flood, by their rate against the handshakes that are completed; both turns are logged. ` + "`cookie`" + ` answers every SYN with the
SYN-ACK that the backend would send, but for its sequence number, a keyed cookie: nothing is sent twice, and the backends see no SYN,
only connections whose client is real. For that the agents of all backends need the group's seed (` + "`sluice-agent run --cookie-seed`" + `,
Linux 6.9), else they reset the connections.

[floods.md](floods.md) tells what to set, and what to look at. [flows.md](flows.md) tells more about flows: what schedulers promise, what happens when the flow table is full, what can still
break a flow.
`)
	return b.Bytes()
}
