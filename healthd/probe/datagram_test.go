package probe

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sluice-lb/sluice/internal/config"
)

// refusingUDP is a port that nobody receives on.
func refusingUDP(t testing.TB) netip.AddrPort {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// deaf answers only to the nth datagram and later ones.
func deaf(n int32, answer func([]byte) [][]byte) func([]byte) [][]byte {
	var heard atomic.Int32
	return func(request []byte) [][]byte {
		if heard.Add(1) < n {
			return nil
		}
		return answer(request)
	}
}

func echo(request []byte) [][]byte { return [][]byte{bytes.Clone(request)} }
func mute([]byte) [][]byte         { return nil }

func TestUDP(t *testing.T) {
	p := New(Options{})
	const soon = config.Duration(quick)
	for _, c := range []struct {
		name     string
		addr     netip.AddrPort
		check    config.Check
		want     verdict
		evidence string
	}{
		{"answers", serveUDP(t, echo), config.Check{Send: "ping"}, good, "answered"},
		{"an empty datagram for an empty datagram", serveUDP(t, echo), config.Check{}, good, "answered"},
		{"as expected", serveUDP(t, echo), config.Check{Send: "0x00ff41", Expect: config.Expect{Body: "0xff41"}}, good, "answered"},
		{"not as expected", serveUDP(t, echo), config.Check{Send: "ping", Expect: config.Expect{BodyRegexp: "^pong$"}}, failing, `the answer lacks /^pong$/: it begins with "ping"`},
		{"beyond the limit", serveUDP(t, echo), config.Check{Send: "12345678", Expect: config.Expect{Body: "45", Limit: 4}}, failing, "lacks"},
		{"refused", refusingUDP(t), config.Check{Send: "ping"}, failing, "connection refused"},
		{"no answer", serveUDP(t, mute), config.Check{Timeout: soon}, failing, "no answer within 300ms"},
		{"one datagram lost", serveUDP(t, deaf(2, echo)), config.Check{Timeout: soon}, good, "answered"},
		{"two datagrams lost", serveUDP(t, deaf(3, echo)), config.Check{Timeout: soon}, good, "answered"},
		{"a large answer", serveUDP(t, func([]byte) [][]byte { return [][]byte{bytes.Repeat([]byte("z"), 60000)} }), config.Check{Expect: config.Expect{Body: "zz"}}, good, "answered"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Type = config.CheckUDP
			expect(t, p, target(c.addr, c.check), c.want, c.evidence)
		})
	}
}

func TestDNS(t *testing.T) {
	p := New(Options{})
	const soon = config.Duration(quick)
	fine := zone(t, nil)
	other := func(edit func(*dnsmessage.Message)) netip.AddrPort { return zone(t, edit) }
	var queries atomic.Int32
	for _, c := range []struct {
		name, host, kind string
		addr             netip.AddrPort
		check            config.Check
		want             verdict
		evidence         string
	}{
		{"A", "www.example.org", "A", fine, config.Check{}, good, "DNS A 192.0.2.1, 192.0.2.2"},
		{"a final dot, and capitals", "WWW.example.org.", "A", zone(t, func(m *dnsmessage.Message) {
			m.RCode = 0
			m.Questions[0].Name = dnsmessage.MustNewName("www.Example.org.")
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{}}}
		}), config.Check{}, good, "DNS A 0.0.0.0"},
		{"AAAA", "www.example.org", "AAAA", fine, config.Check{Expect: config.Expect{Body: "2001:db8::1"}}, good, "DNS AAAA 2001:db8::1"},
		{"MX", "www.example.org", "MX", fine, config.Check{Expect: config.Expect{Body: "10 mail.example.org."}}, good, "DNS MX 10 mail.example.org."},
		{"NS", "www.example.org", "NS", fine, config.Check{Expect: config.Expect{BodyRegexp: `^ns\.example`}}, good, "DNS NS"},
		{"SOA", "www.example.org", "SOA", fine, config.Check{Expect: config.Expect{Body: " 2026 "}}, good, "DNS SOA"},
		{"CNAME", "alias.example.org", "CNAME", fine, config.Check{}, good, "DNS CNAME www.example.org."},
		{"through a CNAME", "alias.example.org", "A", fine, config.Check{Expect: config.Expect{Body: "192.0.2.1"}}, good, "DNS A 192.0.2.1"},
		{"a CNAME to nothing", "dangling.example.org", "A", fine, config.Check{}, failing, "NOERROR, but no record"},
		{"no record of the type", "www.example.org", "TXT", fine, config.Check{}, failing, "NOERROR, but no record"},
		{"another address", "www.example.org", "A", fine, config.Check{Expect: config.Expect{Body: "192.0.2.9"}}, failing, `lacks "192.0.2.9"`},
		{"no such name", "no.example.org", "A", fine, config.Check{}, failing, "DNS NXDOMAIN"},
		{"refused", "refused.example.org", "A", fine, config.Check{}, failing, "DNS REFUSED"},
		{"broken", "broken.example.org", "A", fine, config.Check{}, failing, "DNS SERVFAIL"},
		{"cut off", "www.example.org", "A", other(func(m *dnsmessage.Message) { m.Truncated, m.Answers = true, nil }), config.Check{}, failing, "cut off"},
		{"another id", "www.example.org", "A", other(func(m *dnsmessage.Message) { m.ID++ }), config.Check{Timeout: soon}, failing, "no answer to the query"},
		{"another question", "www.example.org", "A", other(func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeMX }), config.Check{Timeout: soon}, failing, "no answer to the query"},
		{"a query", "www.example.org", "A", serveUDP(t, echo), config.Check{Timeout: soon}, failing, "no answer to the query"},
		{"garbage", "www.example.org", "A", serveUDP(t, func([]byte) [][]byte { return [][]byte{[]byte("\x00no"), {}} }), config.Check{Timeout: soon}, failing, "no answer to the query"},
		{"a flood of garbage", "www.example.org", "A", serveUDP(t, func([]byte) [][]byte { return make([][]byte, 2*maxAnswers) }), config.Check{Timeout: soon}, failing, "no answer"},
		{"no answer", "www.example.org", "A", serveUDP(t, mute), config.Check{Timeout: soon}, failing, "no answer within 300ms"},
		{"port closed", "www.example.org", "A", refusingUDP(t), config.Check{}, failing, "connection refused"},
		{"an answer to an earlier query comes first", "www.example.org", "A", other(func(m *dnsmessage.Message) {
			if queries.Add(1) == 1 {
				m.ID++
			}
		}), config.Check{Timeout: 3 * soon}, good, "192.0.2.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Type, c.check.Query = config.CheckDNS, &config.Query{Name: c.host, Type: c.kind}
			expect(t, p, target(c.addr, c.check), c.want, c.evidence)
		})
	}
	to := target(fine, config.Check{Type: config.CheckDNS, Query: &config.Query{Name: strings.Repeat("x", 300), Type: "A"}})
	expect(t, p, to, nothing, "query")
	to.Check.Query = nil
	expect(t, p, to, nothing, "no query")
}
