//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/testenv"
)

// Every type of check brings backends up whose server answers as it has to, and takes one down whose server does not.
func TestHealthCheckTypes(t *testing.T) {
	t.Parallel()
	s := newHealthSystem(t, 2)
	exec := s.path("checks")
	must(t, os.Mkdir(exec, 0o755))
	must(t, os.WriteFile(filepath.Join(exec, "is-here"), []byte("#!/bin/sh\n[ -e \"$1/$SLUICE_BACKEND\" ] && echo here || { echo gone; exit 3; }\n"), 0o755))
	here := s.path("here")
	must(t, os.Mkdir(here, 0o755))
	s.health = fmt.Sprintf("{exec_directory: %q}", exec)
	authority := newAuthority(t, s.path("ca.pem"))

	var ends []func() error // of what web-2 answers
	end := func(b *rigBackend, f func() error) {
		if b == s.backends[1] {
			ends = append(ends, f)
		}
		s.t.Cleanup(func() { _ = f() })
	}
	for _, b := range s.backends {
		end(b, s.nginxTLS(b, authority, 7443))
		end(b, s.serveHTTP2(b, 7002))
		end(b, s.serveDatagrams(b, 7053, answerDNS))
		end(b, s.serveDatagrams(b, 7007, func(q []byte) []byte { return append([]byte("got "), q...) }))
		end(b, s.serveLine(b, 7006, "up 75% # all well\n"))
		must(t, os.WriteFile(filepath.Join(here, b.name), nil, 0o644))
		end(b, func() error { return os.RemoveAll(filepath.Join(here, b.name)) })
	}
	checks := map[string]string{
		"tcp":   "{type: tcp, port: 7443",
		"http":  "{type: http, port: 7080, path: /name, expect: {status: 200, headers: ['Server'], body_regexp: '^web-[12]'}",
		"https": fmt.Sprintf("{type: https, port: 7443, path: /name, host: web.example.org, tls: {ca_file: %q}, expect: {body: web-}", s.path("ca.pem")),
		"http2": "{type: http2, port: 7002, path: /h2, weight_header: X-Weight",
		"grpc":  "{type: grpc, port: 7002, grpc_service: shop.Cart",
		"udp":   "{type: udp, port: 7007, send: '0x50494e47', expect: {body: 'got PING'}",
		"dns":   "{type: dns, port: 7053, query: {name: www.example.org, type: A}, expect: {body: 192.0.2.77}",
		"ping":  "{type: ping",
		"exec":  fmt.Sprintf("{type: exec, command: [%q, %q]", filepath.Join(exec, "is-here"), here),
		"agent": "{type: agent, port: 7006",
	}
	var services []rigService
	for i, name := range slices.Sorted(maps.Keys(checks)) {
		services = append(services, s.checked(name, 9001+i, checks[name]+", interval: 400ms, fast_interval: 100ms, timeout: 350ms, rise: 2, fall: 2}", "passive: {mode: 'off'}"))
	}
	s.up(services...)
	node := s.nodes[0]
	const up, down = control.StateUp, control.StateDown
	for name := range checks {
		s.waitFor(node, 15*time.Second, name+": all up", known(name, up, up))
	}
	for _, name := range []string{"agent", "http2"} { // they ask for three quarters
		s.waitFor(node, 5*time.Second, name+" asks for less", func(st *control.Status) error {
			if asks := findBackend(st, name, "web-1").Health.Asks; asks == nil || *asks != 75 {
				return fmt.Errorf("web-1 of %s asks for %v", name, asks)
			}
			return nil
		})
	}

	for _, f := range ends {
		must(t, f())
	}
	for name := range checks {
		if name != "ping" {
			s.waitFor(node, 15*time.Second, name+": web-2 down", known(name, up, down))
		}
	}
	st := s.status(node)
	must(t, known("ping", up, up)(&st))
	for name := range checks {
		e := findBackend(&st, name, "web-2").Health.Evidence
		t.Logf("%s: %s", name, e)
		if e == "" {
			t.Errorf("%s: nothing tells why it is as it is", name)
		}
	}
	must(t, s.net.Router.LinkDown(s.backends[1].Port()))
	s.waitFor(node, 15*time.Second, "ping: web-2 down", known("ping", up, down))
	s.down()
}

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// newAuthority makes one, and writes its certificate to a file.
func newAuthority(t *testing.T, path string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Sluice's tests"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	certificate, err := x509.ParseCertificate(der)
	must(t, err)
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	return &authority{certificate, key}
}

// sign writes a certificate for a name, and its key, to a file.
func (a *authority) sign(name, path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...), 0o600)
}

// nginxTLS starts nginx with TLS on a port, and without on 7080. The function that it returns ends it.
func (s *system) nginxTLS(b *rigBackend, a *authority, port int) (end func() error) {
	s.t.Helper()
	dir := s.path("tls-" + b.name)
	must(s.t, os.MkdirAll(filepath.Join(dir, "www"), 0o755))
	must(s.t, a.sign("web.example.org", filepath.Join(dir, "pair.pem")))
	must(s.t, os.WriteFile(filepath.Join(dir, "www/name"), []byte(b.name+"\n"), 0o644))
	must(s.t, os.WriteFile(filepath.Join(dir, "nginx.conf"), fmt.Appendf(nil, `daemon off; user root; worker_processes 1; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 256; }
http { access_log off;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server { listen 7080; listen %[2]d ssl; root %[1]s/www; ssl_certificate %[1]s/pair.pem; ssl_certificate_key %[1]s/pair.pem; } }`, dir, port), 0o644))
	p, err := b.Start(testenv.Cmd{Path: "nginx", Args: []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf")}})
	must(s.t, err)
	must(s.t, p.WaitTCP(10*time.Second, netip.AddrPortFrom(b.IPv4, 7080)))
	return p.Kill
}

// serveHTTP2 speaks HTTP/2 with prior knowledge, and answers gRPC's question for health.
func (s *system) serveHTTP2(b *rigBackend, port int) (end func() error) {
	s.t.Helper()
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/grpc.health.v1.Health/Check" {
			w.Header().Set("X-Weight", "75")
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		question, _ := io.ReadAll(r.Body)
		if !strings.HasSuffix(string(question), "shop.Cart") {
			w.Header().Set("Grpc-Status", "5") // NOT_FOUND
			return
		}
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, 8, 1}) // not compressed, 2 bytes: status (field 1) is SERVING
		w.Header().Set("Grpc-Status", "0")
	})}
	server.Protocols.SetUnencryptedHTTP2(true)
	l, err := b.Listen("tcp", fmt.Sprintf(":%d", port))
	must(s.t, err)
	go func() { _ = server.Serve(l) }()
	return server.Close
}

// serveDatagrams answers datagrams.
func (s *system) serveDatagrams(b *rigBackend, port int, answer func([]byte) []byte) (end func() error) {
	s.t.Helper()
	c, err := b.ListenPacket("udp", fmt.Sprintf(":%d", port))
	must(s.t, err)
	go func() {
		in := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(in)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteTo(answer(in[:n]), from)
			}
		}
	}()
	return closeOnce(c)
}

// answerDNS says that whatever is asked for has the address 192.0.2.77.
func answerDNS(q []byte) []byte {
	const header = 12
	end := header
	for end < len(q) && q[end] != 0 { // over the name's labels
		end += 1 + int(q[end])
	}
	if end += 5; end > len(q) {
		return nil
	}
	out := slices.Clone(q[:end]) // without the additional records
	out[2] |= 0x80               // an answer
	out[3] = 0                   // NOERROR
	binary.BigEndian.PutUint16(out[6:], 1)
	clear(out[8:header])
	return append(out, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77) // the name, A, IN, a minute, 4 bytes
}

// serveLine sends a line to everybody who connects.
func (s *system) serveLine(b *rigBackend, port int, line string) (end func() error) {
	s.t.Helper()
	l, err := b.Listen("tcp", fmt.Sprintf(":%d", port))
	must(s.t, err)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, line)
			c.Close()
		}
	}()
	return closeOnce(l)
}

// closeOnce closes c, and is content when it is closed.
func closeOnce(c io.Closer) func() error {
	return func() error {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}
