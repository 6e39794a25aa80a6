package probe

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// authority signs certificates into files of dir.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: dir}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.key = key
	a.write(name+".pem", "CERTIFICATE", der)
	return a
}

func (a *authority) write(name, kind string, der []byte) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// issue writes NAME.pem and NAME.key for a host or an address.
func (a *authority) issue(name, host string, from, until time.Time) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.n++
	template := &x509.Certificate{SerialNumber: big.NewInt(a.n + 1), Subject: pkix.Name{CommonName: host}, NotBefore: from, NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".pem", "CERTIFICATE", der)
	a.write(name+".key", "PRIVATE KEY", secret)
}

// nginx runs nginx with the servers of a configuration, in which %[1]s is dir and %[2]d the first of ten free ports.
func nginx(t *testing.T, dir, servers string) (base netip.AddrPort) {
	t.Helper()
	for _, path := range []string{"www"} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Ten ports that follow each other, beside those that the system hands out.
	addr, port := netip.MustParseAddr("127.0.0.1"), uint16(20000+os.Getpid()%1000*10)
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	conf := fmt.Sprintf(`daemon off; %[4]s worker_processes 1; pid %[1]s/pid; error_log %[1]s/error.log; events { worker_connections 256; }
http { access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  root %[1]s/www; %[3]s }`, dir, port, fmt.Sprintf(servers, dir, port), user)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "www", "index.html"), []byte("ready\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nginx", "-p", dir, "-c", path)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("start nginx (apt-get install nginx-light): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(ample); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
			return netip.AddrPortFrom(addr, port)
		}
		if time.Now().After(deadline) {
			t.Fatalf("nginx does not listen: %v: %s", err, &out)
		}
	}
}

// nginx with certificates of all sorts: what is wrong is said in words that an operator can do something with.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := newAuthority(t, dir, "ours"), newAuthority(t, dir, "theirs")
	now := time.Now()
	hour, day := now.Add(time.Hour), 24*time.Hour
	ours.issue("www", "www.example.org", now.Add(-day), hour)
	ours.issue("address", "127.0.0.1", now.Add(-day), hour)
	ours.issue("other", "other.example", now.Add(-day), hour)
	ours.issue("expired", "www.example.org", now.Add(-3*day), now.Add(-2*day))
	ours.issue("future", "www.example.org", now.Add(2*day), now.Add(3*day))
	ours.issue("client", "client.example", now.Add(-day), hour)
	theirs.issue("foreign", "www.example.org", now.Add(-day), hour)
	server := func(offset int, cert, more string) string {
		return fmt.Sprintf("server { listen 127.0.0.1:PORT%d ssl http2; server_name www.example.org; ssl_certificate %s/%s.pem; ssl_certificate_key %s/%s.key; %s }\n",
			offset, dir, cert, dir, cert, more)
	}
	servers := server(0, "www", "") + server(1, "address", "") + server(2, "other", "") + server(3, "expired", "") + server(4, "future", "") +
		server(5, "foreign", "") + server(6, "www", "ssl_protocols TLSv1.2; ssl_client_certificate "+dir+"/ours.pem; ssl_verify_client on;") +
		server(7, "www", "ssl_client_certificate "+dir+"/ours.pem; ssl_verify_client on;") +
		"server { listen 127.0.0.1:PORT8; }\n" + "server { listen 127.0.0.1:PORT9 http2; }\n"
	first := uint16(20000 + os.Getpid()%1000*10)
	for i := range uint16(10) {
		servers = strings.ReplaceAll(servers, fmt.Sprintf("PORT%d", i), fmt.Sprint(first+i))
	}
	base := nginx(t, dir, strings.ReplaceAll(servers, "%", "%%")+"# %[1]s %[2]d\n")
	ca := filepath.Join(dir, "ours.pem")
	verify := config.CheckTLS{Verify: true, CAFile: ca}
	client := config.CheckTLS{Verify: true, CAFile: ca, CertFile: filepath.Join(dir, "client.pem"), KeyFile: filepath.Join(dir, "client.key")}
	p := New(Options{})
	for _, c := range []struct {
		name     string
		port     uint16
		tls      config.CheckTLS
		host     string
		server   string
		want     verdict
		evidence string
	}{
		{"fine", 0, verify, "www.example.org", "", good, ""},
		{"by server_name", 0, verify, "else.example", "www.example.org", good, ""},
		{"the port is not part of the name", 0, verify, "www.example.org:8443", "", good, ""},
		{"for the address", 1, verify, "", "", good, ""},
		{"not for the address", 0, verify, "", "", failing, "certificate is for www.example.org, not 127.0.0.1"},
		{"another name", 2, verify, "www.example.org", "", failing, "certificate is for other.example, not www.example.org"},
		{"expired", 3, verify, "www.example.org", "", failing, "certificate expired " + now.Add(-2*day).UTC().Format("2006-01-02")},
		{"not yet", 4, verify, "www.example.org", "", failing, "certificate is not valid before " + now.Add(2*day).UTC().Format("2006-01-02")},
		{"another authority", 5, verify, "www.example.org", "", failing, "signed by an authority that is not known (tls.ca_file): CN=theirs"},
		{"not verified", 3, config.CheckTLS{}, "www.example.org", "", good, ""},
		{"the system's authorities", 0, config.CheckTLS{Verify: true}, "www.example.org", "", failing, "signed by an authority that is not known"},
		{"plain", 8, verify, "www.example.org", "", failing, "the answer is not TLS"},
		{"the client's certificate", 7, client, "www.example.org", "", good, ""},
		{"no file", 0, config.CheckTLS{Verify: true, CAFile: dir + "/missing.pem"}, "", "", nothing, "missing.pem: no such file"},
		{"no certificate in the file", 0, config.CheckTLS{Verify: true, CAFile: dir + "/www.key"}, "", "", nothing, "there is no certificate in " + dir + "/www.key"},
		{"no such key", 7, config.CheckTLS{CertFile: client.CertFile, KeyFile: dir + "/www.key"}, "", "", nothing, "private key does not match"},
	} {
		for _, kind := range []config.CheckType{config.CheckHTTPS, config.CheckHTTP2, config.CheckTCP} {
			check := config.Check{Type: kind, Host: c.host, TLS: &c.tls}
			check.TLS.ServerName = c.server
			if kind != config.CheckTCP {
				check.Expect.Body = "ready"
			}
			t.Run(c.name+"/"+string(kind), func(t *testing.T) {
				expect(t, p, target(netip.AddrPortFrom(base.Addr(), base.Port()+c.port), check), c.want, c.evidence)
			})
		}
	}
	at := func(offset uint16) netip.AddrPort { return netip.AddrPortFrom(base.Addr(), base.Port()+offset) }
	// nginx asks for the client's certificate, and answers in HTTP that there is none.
	expect(t, p, target(at(7), config.Check{Type: config.CheckHTTPS, Host: "www.example.org", TLS: &verify}), failing, "HTTP 400, expected 200-399")
	expect(t, p, target(at(6), config.Check{Type: config.CheckHTTP2, Host: "www.example.org", TLS: &client}), good, "HTTP 200")
	// HTTP/2 without TLS, and to whom it is foreign.
	expect(t, p, target(at(9), config.Check{Type: config.CheckHTTP2, Expect: config.Expect{Body: "ready"}}), good, "HTTP 200")
	expect(t, p, target(at(8), config.Check{Type: config.CheckHTTP2}), failing, "the answer is not HTTP/2")
	expect(t, p, target(at(8), config.Check{Type: config.CheckHTTP, Path: "/no"}), failing, "HTTP 404, expected 200-399")
	expect(t, p, target(at(8), config.Check{Type: config.CheckHTTP, Expect: config.Expect{Headers: []string{"Server"}, Body: "ready"}}), good, "HTTP 200")
}

// A server that insists on a client's certificate refuses the handshake, in TLS 1.3 after it.
func TestClientCertificateRequired(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, dir, "ours")
	a.issue("www", "www.example.org", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	for _, version := range []uint16{tls12, tls13} {
		addr := serveTLS(t, dir, "www", version)
		check := config.Check{Type: config.CheckHTTPS, Host: "www.example.org", TLS: &config.CheckTLS{Verify: true, CAFile: dir + "/ours.pem"}}
		expect(t, New(Options{}), target(addr, check), failing, "the backend refuses TLS: ")
	}
}

// Files are read again when they change, and only then.
func TestTLSFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, dir, "ours")
	a.issue("client", "one.example", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	of := config.CheckTLS{Verify: true, CAFile: dir + "/ours.pem", CertFile: dir + "/client.pem", KeyFile: dir + "/client.key"}
	var cache tlsCache
	read := func() *x509.Certificate {
		t.Helper()
		c, err := cache.common(of)
		if err != nil {
			t.Fatal(err)
		}
		return c.Certificates[0].Leaf
	}
	first := read()
	if read() != first {
		t.Error("read again, though nothing changed")
	}
	a.issue("client", "three.example", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if again := read(); again.DNSNames[0] != "three.example" {
		t.Errorf("the certificate is still for %s", again.DNSNames[0])
	}
}
