package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sluice-lb/sluice/testenv"
)

// checking is the valid file with a check, on line 9, of which exec ones may have their programs in /checks.
func checking(check string) string {
	return with("check: "+check) + "health: {exec_directory: /checks}\n"
}

// defaultCheck is what a check of a type has without fields of its own, for the valid file.
func defaultCheck(of CheckType, change func(*Check)) Check {
	c := Check{Type: of, Via: ViaDirect, Port: 80, Interval: Duration(2 * time.Second), FastInterval: Duration(500 * time.Millisecond),
		Timeout: Duration(time.Second), Jitter: 10, Rise: 2, Fall: 3}
	if of.HTTP() {
		c.Path = "/"
		c.Expect = Expect{Status: Ranges{"200-399"}, Limit: 64000}
	}
	change(&c)
	return c
}

// Every field of every type, with its default and without.
func TestChecks(t *testing.T) {
	for _, row := range []struct {
		check string
		of    CheckType
		want  func(*Check)
	}{
		{"{type: tcp}", CheckTCP, func(c *Check) {}},
		{"{type: tcp, port: 1, via: tunnel, interval: 1h, fast_interval: 50ms, timeout: 10ms, jitter: 0, rise: 1, fall: 100}", CheckTCP, func(c *Check) {
			c.Port, c.Via, c.Interval, c.FastInterval, c.Timeout = 1, ViaTunnel, Duration(time.Hour), Duration(50*time.Millisecond), Duration(10*time.Millisecond)
			c.Jitter, c.Rise, c.Fall = 0, 1, 100
		}},
		{"{type: tcp, interval: 300ms, timeout: 200ms}", CheckTCP, func(c *Check) {
			c.Interval, c.FastInterval, c.Timeout = Duration(300*time.Millisecond), Duration(300*time.Millisecond), Duration(200*time.Millisecond)
		}},
		{`{type: tcp, send: "PING\r\n", expect: {body: +PONG}, tls: {}}`, CheckTCP, func(c *Check) {
			c.Send, c.Expect, c.TLS = "0x50494e470d0a", Expect{Body: "+PONG", Limit: 64000}, &CheckTLS{Verify: true}
		}},
		{"{type: tcp, expect: {}}", CheckTCP, func(c *Check) {}},
		{"{type: http}", CheckHTTP, func(c *Check) {}},
		{"{type: http, port: 8080, path: '/x?y=1', host: 'www.example.com:8080', weight_header: X-Weight}", CheckHTTP, func(c *Check) {
			c.Port, c.Path, c.Host, c.WeightHeader = 8080, "/x?y=1", "www.example.com:8080", "X-Weight"
		}},
		{"{type: http, expect: {status: 204, headers: [Server, 'X-A: b: c'], body: 0x00FF, body_regexp: '^a(b|c)+$', limit: 1k}}", CheckHTTP, func(c *Check) {
			c.Expect = Expect{Ranges{"204"}, []string{"Server", "X-A: b: c"}, "0x00FF", "^a(b|c)+$", 1000}
		}},
		{"{type: http, expect: {status: [200, '204', 301-302]}}", CheckHTTP, func(c *Check) { c.Expect.Status = Ranges{"200", "204", "301-302"} }},
		{"{type: https, host: '[2001:db8::1]:443'}", CheckHTTPS, func(c *Check) { c.Host, c.TLS = "[2001:db8::1]:443", &CheckTLS{Verify: true} }},
		{"{type: https, host: 192.0.2.1, tls: {ca_file: /ca, server_name: '2001:db8::1', cert_file: /c, key_file: /k}}", CheckHTTPS, func(c *Check) {
			c.Host, c.TLS = "192.0.2.1", &CheckTLS{true, "/ca", "2001:db8::1", "/c", "/k"}
		}},
		{"{type: https, tls: {verify: off, server_name: _a.example}}", CheckHTTPS, func(c *Check) { c.TLS = &CheckTLS{ServerName: "_a.example"} }},
		{"{type: http2}", CheckHTTP2, func(c *Check) {}},
		{"{type: http2, tls: {verify: true}}", CheckHTTP2, func(c *Check) { c.TLS = &CheckTLS{Verify: true} }},
		{"{type: grpc}", CheckGRPC, func(c *Check) {}},
		{"{type: grpc, grpc_service: shop.Orders, host: orders, tls: {verify: off}}", CheckGRPC, func(c *Check) {
			c.GRPCService, c.Host, c.TLS = "shop.Orders", "orders", &CheckTLS{}
		}},
		{"{type: udp, port: 53, send: 0x00, expect: {body_regexp: x, limit: 5}}", CheckUDP, func(c *Check) {
			c.Port, c.Send, c.Expect = 53, "0x00", Expect{BodyRegexp: "x", Limit: 5}
		}},
		{"{type: dns, port: 53, query: {name: example.org}}", CheckDNS, func(c *Check) {
			c.Port, c.Query, c.Expect = 53, &Query{"example.org", "A"}, Expect{Limit: 64000}
		}},
		{"{type: dns, port: 53, via: tunnel, query: {name: ., type: NS}, expect: {body: root}}", CheckDNS, func(c *Check) {
			c.Port, c.Via, c.Query, c.Expect = 53, ViaTunnel, &Query{".", "NS"}, Expect{Body: "root", Limit: 64000}
		}},
		{"{type: ping}", CheckPing, func(c *Check) { c.Port = 0 }},
		{"{type: exec, command: [/checks/a]}", CheckExec, func(c *Check) {
			c.Command, c.Memory, c.ExecDirectory, c.Expect = []string{"/checks/a"}, 256_000_000, "/checks", Expect{Limit: 64000}
		}},
		{"{type: exec, port: 7, command: [/checks/a, '-t', '5', ''], memory: 4000M, expect: {body: ok}}", CheckExec, func(c *Check) {
			c.Port, c.Command, c.Memory, c.ExecDirectory, c.Expect = 7, []string{"/checks/a", "-t", "5", ""}, 4_000_000_000, "/checks", Expect{Body: "ok", Limit: 64000}
		}},
		{"{type: agent, port: 9777}", CheckAgent, func(c *Check) { c.Port = 9777 }},
		{`{type: agent, port: 9777, via: tunnel, send: "web\n"}`, CheckAgent, func(c *Check) { c.Port, c.Via, c.Send = 9777, ViaTunnel, "0x7765620a" }},
	} {
		want := defaultCheck(row.of, row.want)
		for name, field := range map[string]string{"check": "", "readiness": "check: {type: ping}\n    readiness: "} {
			file := checking(row.check)
			if field != "" {
				file = strings.Replace(file, "check: ", field, 1)
			}
			c, _, err := Parse("f", []byte(file))
			if err != nil {
				t.Errorf("%s %s: %v", name, row.check, err)
				continue
			}
			got := c.Services[0].Check
			if field != "" {
				got = c.Services[0].Readiness
			}
			if !reflect.DeepEqual(*got, want) {
				t.Errorf("%s %s: got\n%+v, want\n%+v", name, row.check, *got, want)
			}
			again, _, err := Parse("f", c.Canonical())
			if err != nil || !reflect.DeepEqual(again, c) {
				t.Errorf("%s %s: the canonical form: %v\n%s", name, row.check, err, c.Canonical())
			}
			// The control API hands it on.
			data, err := json.Marshal(got)
			var received Check
			if err == nil {
				err = json.Unmarshal(data, &received)
			}
			if err != nil || !reflect.DeepEqual(received, *got) {
				t.Errorf("%s %s: JSON %s: %v, got\n%+v, want\n%+v", name, row.check, data, err, received, *got)
			}
		}
	}
}

// Each field is tested with each type, so that none is read and forgotten, or refused where it has a use.
func TestFieldsOfCheckTypes(t *testing.T) {
	content := map[string]string{"port": "80", "path": "/", "host": "a", "weight_header": "A", "expect": "{body: a}", "tls": "{}", "grpc_service": "a",
		"send": "a", "query": "{name: a}", "command": "[/checks/a]", "memory": "1M"}
	for _, of := range checkTypes {
		needed := map[CheckType]string{CheckDNS: "query", CheckExec: "command"}[of]
		for name, types := range checkFieldsOf {
			check := fmt.Sprintf("{type: %s, %s: %s", of, name, content[name])
			if needed != "" && needed != name {
				check += fmt.Sprintf(", %s: %s", needed, content[needed])
			}
			if name != "port" && slices.Contains(checkFieldsOf["port"], of) {
				check += ", port: 80"
			}
			_, _, err := Parse("f", []byte(checking(check+"}")))
			if slices.Contains(types, of) {
				if err != nil {
					t.Errorf("%s: %v", check, err)
				}
			} else if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), " with type: "+string(of)+", expected none ("+name+" is for ") {
				t.Errorf("%s: %v", check, err)
			}
		}
	}
	for name := range checkFieldsOf {
		if content[name] == "" || fields["services[].check."+name] == nil {
			t.Errorf("%s is no field, or not tested", name)
		}
	}
}

// The port that a check gets without one.
func TestCheckPorts(t *testing.T) {
	for _, row := range []struct {
		file, check string
		want        uint16
	}{
		{valid, "{type: grpc}", 80},
		{udp(valid), "{type: udp, send: a}", 80},
		{udp(valid), "{type: dns, query: {name: a}}", 80},
		{udp(valid), "{type: exec, command: [/checks/a]}", 80},
		{strings.Replace(valid, "ports: 80", "ports: [80, 81]", 1), "{type: exec, command: [/checks/a]}", 0},
	} {
		c, _, err := Parse("f", []byte(strings.Replace(row.file, "forward: ipip\n", "forward: ipip\n    check: "+row.check+"\n", 1)+"health: {exec_directory: /checks/}\n"))
		if err != nil {
			t.Errorf("%s: %v", row.check, err)
		} else if got := c.Services[0].Check.Port; got != row.want {
			t.Errorf("%s: got %d, want %d", row.check, got, row.want)
		}
	}
}

func TestHealthFields(t *testing.T) {
	c, _, err := Parse("f", []byte(with("panic_threshold: 50\n    quorum: 2\n    passive: {mode: observe, ejection: 1s, longest: 1h, max_share: 100}")))
	if err != nil {
		t.Fatal(err)
	}
	s := c.Services[0]
	if want := (Passive{PassiveObserve, Duration(time.Second), Duration(time.Hour), 100}); s.PanicThreshold != 50 || s.Quorum != 2 || s.Passive != want {
		t.Errorf("got %+v", s)
	}
	if c, _, err = Parse("f", []byte(with("passive: {mode: off, ejection: 10m}"))); err != nil {
		t.Fatal(err)
	}
	if p := c.Services[0].Passive; p.Mode != PassiveOff || p.Longest != Duration(10*time.Minute) {
		t.Errorf("without longest: got %+v", p)
	}
	for in, want := range map[string]string{"/checks": "/checks", "/etc//checks/": "/etc/checks", "/": "refused"} {
		c, _, err := Parse("f", []byte("health: {exec_directory: "+in+"}\n"+valid))
		got := "refused"
		if err == nil {
			got = c.Health.ExecDirectory
		}
		if got != want {
			t.Errorf("exec_directory %s: got %s, want %s", in, got, want)
		}
	}
}

func TestHealthWarnings(t *testing.T) {
	const noName = "neither host nor tls.server_name: the certificate has to be for the address that is probed, which few are"
	for check, want := range map[string]string{
		"{type: udp, port: 9}":                                 "f:9:12: services[0].check: udp without send: the probe is an empty datagram, which few servers answer",
		"{type: udp, port: 9, send: ''}":                       "",
		"{type: https}":                                        "f:9:12: services[0].check.tls: " + noName,
		"{type: tcp, tls: {}}":                                 "f:9:29: services[0].check.tls: " + noName,
		"{type: https, host: a}":                               "",
		"{type: grpc, tls: {server_name: a}}":                  "",
		"{type: http2, tls: {verify: off}}":                    "",
		"{type: http}":                                         "",
		"{type: dns, port: 53, query: {name: a}, via: tunnel}": "",
	} {
		_, warnings, err := Parse("f", []byte(checking(check)))
		if err != nil {
			t.Errorf("%s: %v", check, err)
			continue
		}
		var got []string
		for _, w := range warnings {
			got = append(got, w.String())
		}
		if strings.Join(got, "\n") != want {
			t.Errorf("%s: got %q, want %q", check, got, want)
		}
	}
}

func TestRanges(t *testing.T) {
	r := Ranges{"200", "300-302"}
	for n, want := range map[int]bool{200: true, 201: false, 299: false, 300: true, 301: true, 302: true, 303: false, 0: false} {
		if got := r.Holds(n); got != want {
			t.Errorf("%d: got %v", n, got)
		}
	}
	if (Ranges)(nil).Holds(200) {
		t.Error("no range holds 200")
	}
}

func TestBytes(t *testing.T) {
	for in, want := range map[string]string{"": "", "a": "a", "0x61ff": "a\xff", "0X61": "0X61", "x": "x"} {
		if got, err := Bytes(in); err != nil || string(got) != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"0x", "0x6", "0xgg"} {
		if got, err := Bytes(in); err == nil {
			t.Errorf("%q: got %q", in, got)
		}
	}
}

// What cannot be printed survives the canonical form, whatever YAML makes of line ends and spaces.
func FuzzCheckText(f *testing.F) {
	for _, s := range []string{"PING\r\n", "\n  a\n", " a ", "0x00ff", "a: b #c", "\u0085\u2028\ufeff", "'\"", "- a", "~", "0x"} {
		f.Add(s, s, s)
	}
	f.Add("", "", "0") // expects nothing, so the canonical form has no limit
	f.Fuzz(func(t *testing.T, send, pattern, word string) {
		if !utf8.ValidString(send) { // nor is YAML that has it
			return
		}
		check := fmt.Sprintf("{type: tcp, send: %s, expect: {body: %[1]s, body_regexp: %s}}", strconv.QuoteToASCII(send), strconv.QuoteToASCII(pattern))
		exec := fmt.Sprintf("{type: exec, command: [/checks/a, %s]}", strconv.QuoteToASCII(word))
		c, _, err := Parse("f", []byte(checking(check+"\n    readiness: "+exec)))
		if err != nil {
			return
		}
		if again, _, err := Parse("f", c.Canonical()); err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("the canonical form: %v\n%s", err, c.Canonical())
		}
		if got, err := Bytes(c.Services[0].Check.Send); err != nil || !strings.HasPrefix(send, "0x") && string(got) != send {
			t.Fatalf("%q became %q: %v", send, got, err)
		}
	})
}

// certificate makes a certificate of its own authority, and its key, both in PEM form.
func certificate(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// written is a directory of its own with files in it.
func written(t *testing.T, files map[string][]byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// loaded loads a file from a directory for which DIR stands in it, and returns what was said of it.
func loaded(t *testing.T, dir, file string) string {
	t.Helper()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(file, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(path); err != nil {
		return strings.ReplaceAll(err.Error(), dir, "DIR")
	}
	return ""
}

func TestFilesOfTLS(t *testing.T) {
	cert, key := certificate(t)
	_, other := certificate(t)
	dir := written(t, map[string][]byte{"cert": cert, "key": key, "other": other, "text": []byte("hello\n"), "both": slices.Concat(key, cert)})
	for _, row := range []struct{ tls, want string }{
		{"{ca_file: DIR/cert}", ""},
		{"{cert_file: DIR/cert, key_file: DIR/key}", ""},
		{"{cert_file: DIR/both, key_file: DIR/both}", ""},
		{"{ca_file: DIR/none}", `DIR/f:9:41: services[0].check.tls.ca_file: found "DIR/none": no such file or directory, expected a file that can be read (sluice-healthd reads it, as its own user)`},
		{"{ca_file: DIR}", `DIR/f:9:41: services[0].check.tls.ca_file: found "DIR": not a regular file, expected a file that can be read (sluice-healthd reads it, as its own user)`},
		{"{ca_file: DIR/key}", `DIR/f:9:41: services[0].check.tls.ca_file: found "DIR/key", which holds no certificate, expected a file of certificates in PEM form`},
		{"{ca_file: DIR/text}", `DIR/f:9:41: services[0].check.tls.ca_file: found "DIR/text", which holds no certificate, expected a file of certificates in PEM form`},
		{"{cert_file: DIR/cert, key_file: DIR/other}", `DIR/f:9:43: services[0].check.tls.cert_file: found "DIR/cert" and "DIR/other": tls: private key does not match public key, expected a certificate and its key in PEM form`},
		{"{cert_file: DIR/cert, key_file: DIR/text}", `DIR/f:9:43: services[0].check.tls.cert_file: found "DIR/cert" and "DIR/text": tls: failed to find any PEM data in key input, expected a certificate and its key in PEM form`},
	} {
		if got := loaded(t, dir, with("check: {type: https, tls: "+row.tls+"}")); got != row.want {
			t.Errorf("%s: got\n%s, want\n%s", row.tls, got, row.want)
		}
	}
}

// Programs of checks are root's, in directories that are root's.
func TestProgramsOfChecks(t *testing.T) {
	testenv.RequireRoot(t)
	for _, row := range []struct {
		name, directory, program string
		prepare                  map[string]os.FileMode
		want                     string
	}{
		{"fine", "DIR/d", "DIR/d/a", nil, ""},
		{"the system's", "/usr/bin", "/usr/bin/env", nil, ""},
		{"no directory", "DIR/e", "DIR/e/a", nil, `DIR/f:9:35: services[0].check.command[0]: found "DIR/e/a": no such file or directory, expected a program
DIR/f:15:26: health.exec_directory: found "DIR/e": no such file or directory, expected a directory`},
		{"a file", "DIR/d/a", "DIR/d/a/b", nil, `DIR/f:9:35: services[0].check.command[0]: found "DIR/d/a/b": not a directory, expected a program
DIR/f:15:26: health.exec_directory: found "DIR/d/a", which is none, expected a directory`},
		{"no program", "DIR/d", "DIR/d/b", nil, `DIR/f:9:35: services[0].check.command[0]: found "DIR/d/b": no such file or directory, expected a program`},
		{"not executable", "DIR/d", "DIR/d/a", map[string]os.FileMode{"d/a": 0o644}, `DIR/f:9:35: services[0].check.command[0]: found "DIR/d/a", which cannot be executed, expected a program`},
		{"writable", "DIR/d", "DIR/d/a", map[string]os.FileMode{"d/a": 0o775}, `DIR/f:9:35: services[0].check.command[0]: found "DIR/d/a" with mode 0775, expected what only root may change (chmod go-w DIR/d/a)`},
		{"writable directory", "DIR/d", "DIR/d/a", map[string]os.FileMode{"d": 0o777}, `DIR/f:15:26: health.exec_directory: found "DIR/d" with mode 0777, expected what only root may change (chmod go-w DIR/d)`},
		{"a link away", "DIR/d", "DIR/d/link", map[string]os.FileMode{"w": 0o757}, `DIR/f:9:35: services[0].check.command[0]: found "DIR/w" with mode 0757, expected what only root may change (chmod go-w DIR/w)`},
		{"a link", "DIR/d", "DIR/d/link", nil, ""},
		{"another's", "DIR/o", "DIR/o/a", nil, `DIR/f:9:35: services[0].check.command[0]: found "DIR/o/a" of the user 7, expected what only root may change (chown root DIR/o/a)`},
		{"elsewhere", "DIR/d", "DIR/w/a", nil, `DIR/f:9:35: services[0].check.command[0]: found "DIR/w/a", expected a program in DIR/d (health.exec_directory says so)`},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := written(t, map[string][]byte{"d/a": nil, "w/a": nil, "o/a": nil})
			if err := os.Symlink("../w/a", filepath.Join(dir, "d", "link")); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(filepath.Join(dir, "o", "a"), 7, -1); err != nil {
				t.Fatal(err)
			}
			for name, mode := range row.prepare {
				if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
					t.Fatal(err)
				}
			}
			got := loaded(t, dir, with("check: {type: exec, command: ["+row.program+"]}")+"health: {exec_directory: "+row.directory+"}\n")
			if got != row.want {
				t.Errorf("got\n%s, want\n%s", got, row.want)
			}
		})
	}
}
