package conformance

import (
	"bytes"
	"encoding/hex"
	"maps"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/forwarder/packet"
)

const smallFile = `
config:
  services:
    - name: web
      vip: 192.0.2.10
      protocol: tcp
      ports: 80
      forward: ipip
      backends: [{name: web-1, address: 10.0.0.11}]

== a case
in:  ip4 198.51.100.1 > 192.0.2.10 | tcp 40000 > 80 S
out: eth dst=web-1 | ip4 10.0.0.1 > 10.0.0.11 df | $in
`

func newSmallFile(t *testing.T) *file {
	t.Helper()
	f, err := parseFile("small", smallFile)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *file) mustBuild(t *testing.T, line string) []byte {
	t.Helper()
	ls, err := parseLayers(line)
	if err != nil {
		t.Fatal(err)
	}
	frame, err := build(addressed(ls, "in"), f.names, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// Frames as others have made them.
func TestNotationAgainstBytes(t *testing.T) {
	f := newSmallFile(t)
	const eth = "020000000001 0200000000fe"
	for line, want := range map[string]string{
		"ip4 198.51.100.1 > 192.0.2.10 df id=0x1234 | icmp4 8/0 id=1 seq=2 | hex 00010203": eth + "0800" +
			"4500 0020 1234 4000 4001 3c6a c6336401 c000020a" + "0800 f5f8 0001 0002 00010203",
		"vlan 100 prio=5 | ip4 10.0.0.1 > 10.0.0.2 | udp 1 > 2 csum=0": eth + "8100 a064 0800" +
			"4500 001c 0000 0000 4011 66cf 0a000001 0a000002" + "0001 0002 0008 0000",
		"ip6 2001:db8::1 > 2001:db8::2 hop=1 tc=255 flow=0xfffff | frag id=7 off=1 mf next=17 | hex 0102030405060708": eth +
			"86dd" +
			"6fffffff 0010 2c 01" + "20010db8000000000000000000000001 20010db8000000000000000000000002" +
			"11 00 0009 00000007 0102030405060708",
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := f.mustBuild(t, line); !bytes.Equal(got, b) {
			t.Errorf("%s\n got %x\nwant %x", line, got, b)
		}
	}
}

// What is written in the notation reads in it, too; what the formatter adds are checksums, which are right.
func TestFormat(t *testing.T) {
	f := newSmallFile(t)
	for _, line := range []string{
		"eth dst=node src=web-1 | ip4 198.51.100.1 > 192.0.2.10 ttl=60 id=7 df | " +
			"tcp 40000 > 80 S seq=5 win=77 opts=020405b4 csum=* | data 20",
		"eth dst=node src=peer | vlan 100 prio=5 | ip4 198.51.100.1 > 192.0.2.10 ttl=64 tos=3 | " +
			"udp 5000 > 53 csum=* | data 5 | pad 20",
		"eth dst=node src=peer | ip4 10.0.0.1 > 10.0.0.11 ttl=64 df | udp 50000 > 6080 csum=0x0000 | " +
			"ip6 2001:db8::1 > 2001:db8::2 hop=9 tc=1 flow=5 | udp 1 > 2 csum=*",
		"eth dst=node src=peer | ip6 2001:db8::1 > 2001:db8::2 hop=64 | icmp6 2/0 mtu=1400 csum=* | " +
			"ip6 2001:db8::2 > 2001:db8::3 hop=64 | tcp 80 > 40000 A csum=*",
		"eth dst=node src=peer | ip4 10.0.0.1 > 10.0.0.2 ttl=64 mf off=1 | data 8",
		"eth dst=02:00:00:00:12:34 src=node.eth1 | ip4 10.0.0.1 > 10.0.0.2 ttl=64 | icmp4 0/0 id=1 seq=2 csum=* | hex 00ff",
	} {
		frame := f.mustBuild(t, strings.ReplaceAll(line, " csum=*", ""))
		seen, err := parseLayers(f.format(frame, "eth0"))
		if err != nil {
			t.Fatalf("%s: %v", f.format(frame, "eth0"), err)
		}
		want, err := parseLayers(line)
		if err != nil {
			t.Fatal(err)
		}
		want = settle(want, seen)
		for i := range max(len(want), len(seen)) {
			if i >= len(want) || i >= len(seen) || want[i].String() != seen[i].String() {
				t.Errorf("written %s\n   read %s", line, f.format(frame, "eth0"))
				break
			}
		}
		if err := verify(frame, f.guePort(), nil); err != nil && !strings.Contains(line, "pad") {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// Fragments of a datagram are its bytes.
func TestPieces(t *testing.T) {
	f := newSmallFile(t)
	whole := f.mustBuild(t, "ip4 198.51.100.1 > 192.0.2.10 | udp 5000 > 53 | data 1000")
	var joined []byte
	for _, p := range []string{"0-400", "400-800", "800-end"} {
		joined = append(joined, f.mustBuild(t, "ip4 198.51.100.1 > 192.0.2.10 | udp 5000 > 53 | data 1000 | piece "+p)[34:]...)
	}
	if !bytes.Equal(joined, whole[34:]) {
		t.Error("the pieces are not the whole")
	}
}

// Checking from scratch finds each wrong byte of headers that a checksum covers, and wrong lengths.
func TestVerifyFindsDamage(t *testing.T) {
	f := newSmallFile(t)
	for _, line := range []string{
		"ip4 10.0.0.1 > 10.0.0.11 df | ip4 198.51.100.1 > 192.0.2.10 | tcp 40000 > 80 S | data 21",
		"ip6 2001:db8:1::1 > 2001:db8:1::11 | ip6 2001:db8::1 > 2001:db8::10 | udp 5000 > 53 | data 20",
		"ip4 10.0.0.1 > 10.0.0.11 | udp 50000 > 6080 csum=0 | ip4 198.51.100.1 > 192.0.2.10 | udp 5000 > 53 | data 20",
		"ip4 192.0.2.10 > 198.51.100.1 | icmp4 3/4 mtu=1400 | ip4 198.51.100.1 > 192.0.2.10 | tcp 40000 > 80 S | data 21",
	} {
		frame := f.mustBuild(t, line)
		inner := bytes.LastIndex(frame, []byte{0x13, 0x88}) // the ports of UDP
		if inner < 0 {
			inner = bytes.LastIndex(frame, []byte{0x9c, 0x40})
		}
		for at := inner; at < len(frame); at++ {
			if strings.Contains(line, "udp 5000") && (at == inner+6 || at == inner+7) {
				continue // zero there would say that there is none
			}
			frame[at] ^= 0x40
			if verify(frame, f.guePort(), nil) == nil {
				t.Errorf("%s: byte %d is wrong, which was not found", line, at)
			}
			frame[at] ^= 0x40
		}
		if verify(append(frame, 0), f.guePort(), nil) == nil && verify(frame[:len(frame)-1], f.guePort(), nil) == nil {
			t.Errorf("%s: a wrong length was not found", line)
		}
	}
}

// A case fails if anything that it expects is not so.
func TestCompareFindsDifferences(t *testing.T) {
	f := newSmallFile(t)
	e := f.cases[0].out[0]
	if problem := f.compare(e, e.raw); problem != "" {
		t.Errorf("the very frame: %s", problem)
	}
	for at := range e.raw {
		other := bytes.Clone(e.raw)
		other[at] ^= 1
		if f.compare(e, other) == "" {
			t.Errorf("byte %d differs, which was not found", at)
		}
	}
	var err error
	if e.ls, err = parseLayers("eth dst=web-* src=node | ip4 10.0.0.0/29 > 10.0.0.11 df | " +
		"ip4 198.51.100.1 > 192.0.2.10 | tcp * > 80 S"); err != nil {
		t.Fatal(err)
	}
	wild := e
	wild.raw = nil
	for line, good := range map[string]bool{
		"eth dst=web-1 src=node | ip4 10.0.0.7 > 10.0.0.11 df | ip4 198.51.100.1 > 192.0.2.10 | tcp 7 > 80 S": true,
		"eth dst=web-1 src=node | ip4 10.0.0.8 > 10.0.0.11 df | ip4 198.51.100.1 > 192.0.2.10 | tcp 7 > 80 S": false,
		"eth dst=peer src=node | ip4 10.0.0.7 > 10.0.0.11 df | ip4 198.51.100.1 > 192.0.2.10 | tcp 7 > 80 S":  false,
		"eth dst=web-1 src=node | ip4 10.0.0.7 > 10.0.0.11 df | ip4 198.51.100.1 > 192.0.2.10 | tcp 7 > 81 S": false,
		"eth dst=web-1 src=node | ip4 10.0.0.7 > 10.0.0.11 df | udp 7 > 80":                                   false,
	} {
		if problem := f.compare(wild, f.mustBuild(t, line)); (problem == "") != good {
			t.Errorf("%s: %s", line, problem)
		}
	}
}

// Mistakes in files are told, with their line.
func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"== a case":        "before the config",
		smallFile + "oops": "is no line of a case",
		smallFile + "\n== a case\nin: ip4 1.2.3.4 > 1.2.3.5\nkernel:": "a second case",
		smallFile + "\n== b\nin: ip4 1.2.3.4 > 1.2.3.5":               "nothing is expected",
		smallFile + "\n== b\nkernel:":                                 "nothing comes in",
		smallFile + "\nin: ip4 1.2.3.4 > 1.2.3.5 | tpc 1 > 2":         "\"tpc\" is no layer",
		smallFile + "\nin: ip4 1.2.3.4 > 1.2.3.5 ttk=3":               "ip4 has no ttk=",
		smallFile + "\nin: ip4 1.2.3.4 > ::1":                         "other family",
		smallFile + "\nin: ip4 1.2.3.4":                               "source > destination is missing",
		smallFile + "\nin: ip4 1.2.3.4 > 1.2.3.5 df=1":                "ip4 has no df=",
		smallFile + "\nin: ip4 1.2.3.4 > 1.2.3.5 fd":                  "unknown word",
		smallFile + "\nout: eth dst=web-2 | $in":                      "neither a MAC nor a name",
		smallFile + "\nout: $nobody":                                  "nothing is called $nobody",
		smallFile + "\nreason: bad_weather":                           "no such reason",
		strings.Replace(smallFile, "ipip", "ipop", 1):                 "ipop",
	} {
		if _, err := parseFile("small", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q\n got %v\nwant %s", text[max(0, len(text)-60):], err, want)
		}
	}
}

// Books that do not balance are found.
func TestBooks(t *testing.T) {
	b := books{received: 10, forwarded: 4, answered: 1, held: 2, reasons: map[packet.Reason]uint64{packet.Land: 3}}
	if !b.balanced() {
		t.Errorf("%+v balances", b)
	}
	before := books{received: 4, forwarded: 2, reasons: map[packet.Reason]uint64{packet.Land: 2, packet.ICMP: 1}}
	now := books{received: 7, forwarded: 3, reasons: map[packet.Reason]uint64{packet.Land: 4, packet.ICMP: 1}}
	d := now.minus(before)
	if !d.balanced() || !maps.Equal(d.reasons, map[packet.Reason]uint64{packet.Land: 2}) {
		t.Errorf("difference %+v", d)
	}
	if d.received++; d.balanced() {
		t.Errorf("%+v does not balance", d)
	}
}
