package probe

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

func TestHTTP1(t *testing.T) {
	p := New(Options{})
	var redirects atomic.Int32
	elsewhere := serve(t, func(net.Conn) { redirects.Add(1) })
	status := func(code int) func(net.Conn) {
		return answer(fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok", code))
	}
	body := func(text string) func(net.Conn) {
		return answer("HTTP/1.0 200 OK\r\nX-A: 1\r\nX-A: two\r\n\r\n" + text)
	}
	weight := func(value string) func(net.Conn) {
		return answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Weight: " + value + "\r\n\r\n")
	}
	asks := config.Check{WeightHeader: "X-Weight"}
	without := func(e config.Expect) config.Check { return config.Check{Expect: e} }
	soon := config.Check{Timeout: config.Duration(quick)}
	for _, c := range []struct {
		name     string
		server   func(net.Conn)
		check    config.Check
		want     verdict
		evidence string
		asks     int
	}{
		{"200", status(200), config.Check{}, good, "HTTP 200", -1},
		{"204", answer("HTTP/1.1 204 No Content\r\n\r\n"), config.Check{}, good, "HTTP 204", -1},
		{"399", status(399), config.Check{}, good, "HTTP 399", -1},
		{"400", status(400), config.Check{}, failing, "HTTP 400, expected 200-399", -1},
		{"503", status(503), config.Check{}, failing, "HTTP 503, expected 200-399", -1},
		{"204 asked for", status(200), without(config.Expect{Status: config.Ranges{"204", "301-302"}}), failing, "HTTP 200, expected 204, 301-302", -1},
		{"404 asked for", status(404), without(config.Expect{Status: config.Ranges{"404"}}), good, "HTTP 404", -1},
		{"redirect", answer("HTTP/1.1 302 Found\r\nLocation: http://" + elsewhere.String() + "/\r\nContent-Length: 0\r\n\r\n"), config.Check{}, good, "HTTP 302", -1},
		{"until close", body("hello"), config.Check{}, good, "HTTP 200", -1},
		{"early hints", answer("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), config.Check{}, good, "HTTP 200", -1},
		{"chunked", answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n"), without(config.Expect{Body: "ready"}), good, "HTTP 200", -1},
		{"body", body("all is ready here"), without(config.Expect{Body: "ready"}), good, "HTTP 200", -1},
		{"body lacks it", body("all is broken"), without(config.Expect{Body: "ready"}), failing, `HTTP 200, but the answer lacks "ready": it begins with "all is broken"`, -1},
		{"empty body", body(""), without(config.Expect{Body: "ready"}), failing, "empty", -1},
		{"regexp", body("db: ok\ncache: ok\n"), without(config.Expect{BodyRegexp: `(?m)^cache: ok$`}), good, "HTTP 200", -1},
		{"regexp lacks", body("db: ok\ncache: down\n"), without(config.Expect{BodyRegexp: `(?m)^cache: ok$`}), failing, "lacks /", -1},
		{"beyond the limit", body("12345678"), without(config.Expect{Body: "45", Limit: 4}), failing, "lacks", -1},
		{"header", body(""), without(config.Expect{Headers: []string{"x-a", "X-A: two"}}), good, "HTTP 200", -1},
		{"no header", body(""), without(config.Expect{Headers: []string{"X-B"}}), failing, "HTTP 200, but there is no header X-B", -1},
		{"another header", body(""), without(config.Expect{Headers: []string{"X-A: 3"}}), failing, `the header X-A is "1, two", expected "3"`, -1},
		{"weight", weight("75"), asks, good, "HTTP 200, asks for 75%", 75},
		{"weight in percent", weight("5%"), asks, good, "asks for 5%", 5},
		{"no share", weight("0"), asks, good, "asks for 0%", 0},
		{"too much weight", weight("101"), asks, good, `X-Weight is "101", not 0 to 100, and ignored`, -1},
		{"no number", weight("plenty"), asks, good, `"plenty"`, -1},
		{"no weight header", status(200), asks, good, "HTTP 200", -1},
		{"closes after the request", func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) }, config.Check{}, failing, "connection closed before the answer was complete", -1},
		{"another protocol", answer("SSH-2.0-OpenSSH_9.2\r\n\r\n"), config.Check{}, failing, `the answer is not HTTP: it begins with "SSH-2"`, -1},
		{"almost HTTP", answer("HTTP/x.y 200\r\n\r\n"), config.Check{}, failing, "the answer is not HTTP", -1},
		{"half a header", answer("HTTP/1.1 200 OK\r\nContent-Le"), config.Check{}, failing, "the answer is not HTTP", -1},
		{"half a body", answer("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), config.Check{}, failing, "connection closed before the answer was complete", -1},
		{"slow header", func(c net.Conn) { _, _ = c.Read(make([]byte, 10)); time.Sleep(2 * quick); status(200)(c) }, soon, failing, "connected, but no answer within 300ms", -1},
		{"body that drips", func(c net.Conn) { answer("HTTP/1.1 200 OK\r\n\r\n")(c); dripping(c) }, soon, failing, "HTTP 200, but no answer within 300ms", -1},
		{"endless body", func(c net.Conn) { answer("HTTP/1.1 200 OK\r\n\r\n")(c); endless(c) }, without(config.Expect{Limit: 100_000}), good, "HTTP 200", -1},
		{"found in an endless body", func(c net.Conn) { answer("HTTP/1.1 200 OK\r\n\r\nready")(c); endless(c) }, without(config.Expect{Body: "ready"}), good, "HTTP 200", -1},
		{"endless line of the header", func(c net.Conn) { answer("HTTP/1.1 200 OK\r\nX-Filler: ")(c); endless(c) }, config.Check{}, failing, "longer than 32 KiB", -1},
		{"endless header", func(c net.Conn) {
			answer("HTTP/1.1 200 OK\r\n")(c)
			for err := error(nil); err == nil; {
				_, err = io.WriteString(c, "X-Filler: "+strings.Repeat("x", 1000)+"\r\n")
			}
		}, config.Check{}, failing, "longer than 32 KiB", -1},
		{"endless 100 Continue", func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			for err := error(nil); err == nil; {
				_, err = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			}
		}, config.Check{}, failing, "longer than 32 KiB", -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Type = config.CheckHTTP
			if r := expect(t, p, target(serve(t, c.server), c.check), c.want, c.evidence); r.Asks != c.asks {
				t.Errorf("asks for %d, want %d", r.Asks, c.asks)
			}
		})
	}
	t.Cleanup(func() {
		if redirects.Load() != 0 {
			t.Error("a redirect was followed")
		}
	})
}

// What the server is asked is what the check says, on a connection of its own each time, whatever proxy the environment names.
func TestHTTPRequest(t *testing.T) {
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	t.Setenv("https_proxy", "http://127.0.0.1:1")
	got := make(chan *http.Request, 10)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r }))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	p := New(Options{UserAgent: "sluice-healthd/1.2"})
	addr := netip.MustParseAddrPort(s.Listener.Addr().String())
	for _, c := range []struct {
		check config.Check
		proto string
		host  string
	}{
		{config.Check{Type: config.CheckHTTP, Path: "/a/b?c=d"}, "HTTP/1.1", addr.String()},
		{config.Check{Type: config.CheckHTTP, Path: "/a/b?c=d", Host: "www.example.org"}, "HTTP/1.1", "www.example.org"},
		{config.Check{Type: config.CheckHTTP2, Path: "/a/b?c=d"}, "HTTP/2.0", addr.String()},
		{config.Check{Type: config.CheckHTTP2, Path: "/a/b?c=d", Host: "www.example.org:81"}, "HTTP/2.0", "www.example.org:81"},
	} {
		from := ""
		for range 2 {
			expect(t, p, target(addr, c.check), good, "HTTP 200")
			r := <-got
			if r.Method != "GET" || r.URL.String() != "/a/b?c=d" || r.Host != c.host || r.Proto != c.proto || r.UserAgent() != "sluice-healthd/1.2" ||
				r.Header.Get("Accept-Encoding") != "" || r.RemoteAddr == from {
				t.Errorf("%s %s %s of %s from %s, header %v; want %s of %s", r.Proto, r.Method, r.URL, r.Host, r.RemoteAddr, r.Header, c.proto, c.host)
			}
			from = r.RemoteAddr
		}
	}
}

// HTTP/2 is held to the same as HTTP/1.1.
func TestHTTP2(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Weight", "30%")
		switch r.URL.Path {
		case "/503":
			w.WriteHeader(503)
		case "/silent":
			<-r.Context().Done()
		case "/drip":
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, "x")
				w.(http.Flusher).Flush()
				time.Sleep(quick / 20)
			}
		case "/endless":
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, strings.Repeat("z", 4096))
			}
		case "/header":
			w.Header().Set("X-Filler", strings.Repeat("x", 2*maxHeader))
		case "/reset":
			panic(http.ErrAbortHandler)
		default:
			_, _ = io.WriteString(w, "ready")
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	p := New(Options{})
	for _, c := range []struct {
		path     string
		expect   config.Expect
		want     verdict
		evidence string
	}{
		{"/", config.Expect{Body: "ready"}, good, "HTTP 200, asks for 30%"},
		{"/", config.Expect{Body: "steady"}, failing, `lacks "steady"`},
		{"/503", config.Expect{}, failing, "HTTP 503, expected 200-399"},
		{"/silent", config.Expect{}, failing, "connected, but no answer within 300ms"},
		{"/drip", config.Expect{}, failing, "HTTP 200, but no answer within 300ms"},
		{"/endless", config.Expect{}, good, "HTTP 200"},
		{"/header", config.Expect{}, failing, "HTTP/2"},
		{"/reset", config.Expect{}, failing, "HTTP/2"},
	} {
		check := config.Check{Type: config.CheckHTTP2, Path: c.path, Expect: c.expect, WeightHeader: "X-Weight", Timeout: config.Duration(quick)}
		r := expect(t, p, target(netip.MustParseAddrPort(s.Listener.Addr().String()), check), c.want, c.evidence)
		t.Log(c.path, r.Evidence)
	}
}
