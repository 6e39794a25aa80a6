package healthd

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// serve runs a TCP server on loopback; each connection gets a goroutine with f.
func serve(t *testing.T, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// answer reads a request, and answers with text.
func answer(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, text)
	}
}

func refusing(t *testing.T) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// full is a listener whose queue is full and which never accepts: a SYN to it gets no answer.
func full(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port))
	for range 4 {
		c, err := net.DialTimeout("tcp", addr.String(), 50*time.Millisecond)
		if err != nil {
			break
		}
		t.Cleanup(func() { c.Close() })
	}
	return addr
}

func TestProbe(t *testing.T) {
	const timeout = 300 * time.Millisecond
	silent := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	status := func(code int) func(net.Conn) {
		return answer(fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok", code))
	}
	redirects := 0
	elsewhere := serve(t, func(net.Conn) { redirects++ })
	for _, c := range []struct {
		name     string
		typ      string
		addr     netip.AddrPort
		good     bool
		evidence string
	}{
		{"accepted", "tcp", serve(t, silent), true, "connected"},
		{"refused", "tcp", refusing(t), false, "connection refused"},
		{"no answer to the SYN", "tcp", full(t), false, "no answer within 300ms"},
		{"HTTP 200", "http", serve(t, status(200)), true, "HTTP 200"},
		{"HTTP 204", "http", serve(t, answer("HTTP/1.1 204 No Content\r\n\r\n")), true, "HTTP 204"},
		{"HTTP 399", "http", serve(t, status(399)), true, "HTTP 399"},
		{"HTTP 400", "http", serve(t, status(400)), false, "HTTP 400"},
		{"HTTP 404", "http", serve(t, status(404)), false, "HTTP 404"},
		{"HTTP 503", "http", serve(t, status(503)), false, "HTTP 503"},
		{"redirect", "http", serve(t, answer("HTTP/1.1 302 Found\r\nLocation: http://"+elsewhere.String()+"/\r\nContent-Length: 0\r\n\r\n")), true, "HTTP 302"},
		{"HTTP/1.0 until close", "http", serve(t, answer("HTTP/1.0 200 OK\r\n\r\nhello")), true, "HTTP 200"},
		{"refused HTTP", "http", refusing(t), false, "connection refused"},
		{"accepts and says nothing", "http", serve(t, silent), false, "no answer within 300ms"},
		{"accepts and closes", "http", serve(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) }), false, "connection closed before the answer was complete"},
		{"resets", "http", serve(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 10))
			_ = c.(*net.TCPConn).SetLinger(0)
		}), false, "connection reset by the backend"},
		{"garbage", "http", serve(t, answer("SSH-2.0-OpenSSH_9.2\r\n\r\n")), false, "the answer is not HTTP"},
		{"half a header", "http", serve(t, answer("HTTP/1.1 200 OK\r\nContent-Le")), false, "the answer is not HTTP"},
		{"half a body", "http", serve(t, answer("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")), false, "connection closed before the answer was complete"},
		{"slow header", "http", serve(t, func(c net.Conn) {
			time.Sleep(2 * timeout)
			status(200)(c)
		}), false, "no answer within 300ms"},
		{"body that drips", "http", serve(t, func(c net.Conn) {
			answer("HTTP/1.1 200 OK\r\n\r\n")(c)
			for range 20 {
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
				time.Sleep(timeout / 5)
			}
		}), false, "no answer within 300ms"},
		{"endless body", "http", serve(t, func(c net.Conn) {
			answer("HTTP/1.1 200 OK\r\n\r\n")(c)
			for err := error(nil); err == nil; {
				_, err = c.Write(make([]byte, 4096))
			}
		}), true, "HTTP 200"},
		{"endless header", "http", serve(t, func(c net.Conn) {
			answer("HTTP/1.1 200 OK\r\n")(c)
			for err := error(nil); err == nil; {
				_, err = io.WriteString(c, "X-Filler: "+strings.Repeat("x", 1000)+"\r\n")
			}
		}), false, "exceeded"},
		{"endless 100 Continue", "http", serve(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			for err := error(nil); err == nil; {
				_, err = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			}
		}), false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newProber("test")
			start := time.Now()
			r := p.probe(t.Context(), c.addr, config.Check{Type: config.CheckType(c.typ), Path: "/healthz", Timeout: config.Duration(timeout)})
			if r.good != c.good || r.nothing || !strings.Contains(r.evidence, c.evidence) || r.evidence == "" {
				t.Errorf("%+v, want good=%v with %q", r, c.good, c.evidence)
			}
			if took := time.Since(start); took > 3*timeout {
				t.Errorf("took %v with a timeout of %v", took, timeout)
			}
		})
	}
	if redirects != 0 {
		t.Error("a redirect was followed")
	}
}

// What the server is asked is what the check says, on a connection of its own each time.
func TestProbeRequest(t *testing.T) {
	var got []*http.Request
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = append(got, r) }))
	defer s.Close()
	p := newProber("sluice-healthd/1.2")
	addr := netip.MustParseAddrPort(s.Listener.Addr().String())
	for range 2 {
		if r := p.probe(t.Context(), addr, config.Check{Type: "http", Path: "/a/b?c=d", Timeout: config.Duration(time.Second)}); !r.good {
			t.Fatalf("%+v", r)
		}
	}
	if len(got) != 2 || got[0].RemoteAddr == got[1].RemoteAddr {
		t.Fatalf("%d requests, want two on two connections", len(got))
	}
	r := got[0]
	if r.Method != "GET" || r.URL.String() != "/a/b?c=d" || r.Host != addr.String() || r.UserAgent() != "sluice-healthd/1.2" {
		t.Errorf("%s %s, host %s, agent %s", r.Method, r.URL, r.Host, r.UserAgent())
	}
}

// A lack of something on this node says nothing about a backend.
func TestFailureOfThisNode(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		r := failure(&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", errno)}, time.Second)
		if !r.nothing || r.good {
			t.Errorf("%v: %+v", errno, r)
		}
	}
	for errno, want := range map[syscall.Errno]string{syscall.EHOSTUNREACH: "no route to host", syscall.ENETUNREACH: "network unreachable"} {
		r := failure(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)}, time.Second)
		if r.nothing || r.good || r.evidence != want {
			t.Errorf("%v: %+v", errno, r)
		}
	}
	if r := failure(context.Canceled, time.Second); !r.nothing {
		t.Errorf("given up: %+v", r)
	}
}
