package probe

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	tls12 = tls.VersionTLS12
	tls13 = tls.VersionTLS13
)

// serveTLS runs a server that asks every client for a certificate, in one version of TLS.
func serveTLS(t *testing.T, dir, name string, version uint16) netip.AddrPort {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert, MinVersion: version, MaxVersion: version}
	return serve(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, tls.Server(conn, c)); silent(conn) })
}

// serveUDP runs a UDP server on loopback; f returns the datagrams to answer with.
func serveUDP(t testing.TB, f func(request []byte) [][]byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, a := range f(buf[:n]) {
				_, _ = c.WriteTo(a, from)
			}
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// zone answers queries for names of example.org; edit may change an answer.
func zone(t testing.TB, edit func(*dnsmessage.Message)) netip.AddrPort {
	name := dnsmessage.MustNewName
	return serveUDP(t, func(request []byte) [][]byte {
		var m dnsmessage.Message
		if m.Unpack(request) != nil || len(m.Questions) != 1 {
			return nil
		}
		q := m.Questions[0]
		m.Response = true
		add := func(kind dnsmessage.Type, owner string, body dnsmessage.ResourceBody) {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name(owner), Type: kind, Class: dnsmessage.ClassINET, TTL: 60}, Body: body})
		}
		switch host := q.Name.String(); {
		case host == "refused.example.org.":
			m.RCode, m.Questions = dnsmessage.RCodeRefused, nil
		case host == "broken.example.org.":
			m.RCode = dnsmessage.RCodeServerFailure
		case host == "alias.example.org.":
			add(dnsmessage.TypeCNAME, host, &dnsmessage.CNAMEResource{CNAME: name("www.example.org.")})
			if q.Type == dnsmessage.TypeA {
				add(dnsmessage.TypeA, "www.example.org.", &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}})
			}
		case host == "dangling.example.org.":
			add(dnsmessage.TypeCNAME, host, &dnsmessage.CNAMEResource{CNAME: name("gone.example.org.")})
		case host != "www.example.org.":
			m.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA:
			add(q.Type, host, &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}})
			add(q.Type, host, &dnsmessage.AResource{A: [4]byte{192, 0, 2, 2}})
		case q.Type == dnsmessage.TypeAAAA:
			add(q.Type, host, &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2001:db8::1").As16()})
		case q.Type == dnsmessage.TypeMX:
			add(q.Type, host, &dnsmessage.MXResource{Pref: 10, MX: name("mail.example.org.")})
		case q.Type == dnsmessage.TypeNS:
			add(q.Type, host, &dnsmessage.NSResource{NS: name("ns.example.org.")})
		case q.Type == dnsmessage.TypeSOA:
			add(q.Type, host, &dnsmessage.SOAResource{NS: name("ns.example.org."), MBox: name("root.example.org."), Serial: 2026, Refresh: 1, Retry: 2, Expire: 3, MinTTL: 4})
		}
		if edit != nil {
			edit(&m)
		}
		out, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return [][]byte{out}
	})
}
