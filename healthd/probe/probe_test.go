package probe

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

func TestMain(m *testing.M) {
	Exec() // as main does
	os.Exit(m.Run())
}

// quick is the timeout of probes that are to run into it.
const quick = 300 * time.Millisecond

// ample is the timeout of probes that are not.
const ample = 10 * time.Second

// target is a backend at addr.
func target(addr netip.AddrPort, c config.Check) *Target {
	c.Port = addr.Port()
	if c.Timeout == 0 {
		c.Timeout = config.Duration(ample)
	}
	if c.Type.HTTP() && c.Path == "" {
		c.Path = "/"
	}
	if c.Type == config.CheckHTTPS && c.TLS == nil {
		c.TLS = &config.CheckTLS{}
	}
	return &Target{Service: "web", Backend: "web-1", Address: addr.Addr(), VIP: netip.MustParseAddr("192.0.2.10"), Check: &c}
}

// verdict is what a result comes to.
type verdict int

const (
	good verdict = iota
	failing
	nothing
)

func (v verdict) String() string { return [...]string{"good", "bad", "nothing"}[v] }

func (r Result) verdict() verdict {
	switch {
	case r.Good:
		return good
	case r.Nothing:
		return nothing
	}
	return failing
}

// expect makes a probe and looks at what it saw.
func expect(t *testing.T, p *Prober, to *Target, want verdict, evidence string) Result {
	t.Helper()
	r := p.Probe(t.Context(), to)
	if r.verdict() != want || !strings.Contains(r.Evidence, evidence) || r.Evidence == "" || r.Good && r.Nothing {
		t.Errorf("%v %q, want %v with %q", r.verdict(), r.Evidence, want, evidence)
	}
	if strings.ContainsAny(r.Evidence, "\r\n\x00") || len(r.Evidence) > maxEvidence+3 {
		t.Errorf("evidence is not a short line: %q", r.Evidence)
	}
	return r
}

// serve runs a TCP server on loopback; each connection gets a goroutine with f.
func serve(t testing.TB, f func(net.Conn)) netip.AddrPort {
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

// refusing is a port that nobody listens on.
func refusing(t testing.TB) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// full is a listener whose queue is full and which never accepts: a SYN to it gets no answer.
func full(t testing.TB) netip.AddrPort {
	t.Helper()
	addr, _ := fullListener(t)
	return addr
}

func fullListener(t testing.TB) (addr netip.AddrPort, fd int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
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
	addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port))
	for range 4 {
		c, err := net.DialTimeout("tcp", addr.String(), 50*time.Millisecond)
		if err != nil {
			break
		}
		t.Cleanup(func() { c.Close() })
	}
	return addr, fd
}

// What a server can do wrong.
func silent(c net.Conn)     { _, _ = io.Copy(io.Discard, c) }
func closesAtOnce(net.Conn) {}
func resets(c net.Conn)     { _ = c.(*net.TCPConn).SetLinger(0) }
func resetsLate(c net.Conn) { // after the request
	_, _ = c.Read(make([]byte, 1))
	_ = c.(*net.TCPConn).SetLinger(0)
}
func garbage(c net.Conn) {
	answer("\x00\x01\xfe\xff no protocol of this world\r\n\x80\r\n\r\n")(c)
	silent(c)
}
func endless(c net.Conn) {
	for err := error(nil); err == nil; {
		_, err = c.Write([]byte(strings.Repeat("z", 4096)))
	}
}
func dripping(c net.Conn) {
	for err := error(nil); err == nil; time.Sleep(quick / 20) {
		_, err = c.Write([]byte("H"))
	}
}

// streams are the kinds of checks that go by TCP, each such that it reads an answer.
var streams = map[string]config.Check{
	"tcp with expect":       {Type: config.CheckTCP, Expect: config.Expect{Body: "ready"}},
	"tcp with send, regexp": {Type: config.CheckTCP, Send: "0x00ff", Expect: config.Expect{BodyRegexp: "^ready$"}},
	"tcp with TLS":          {Type: config.CheckTCP, TLS: &config.CheckTLS{}},
	"http":                  {Type: config.CheckHTTP},
	"https":                 {Type: config.CheckHTTPS},
	"h2c":                   {Type: config.CheckHTTP2},
	"http2 with TLS":        {Type: config.CheckHTTP2, TLS: &config.CheckTLS{}},
	"grpc":                  {Type: config.CheckGRPC},
	"grpc with TLS":         {Type: config.CheckGRPC, TLS: &config.CheckTLS{}},
	"agent":                 {Type: config.CheckAgent, Send: "state\n"},
}

// Whatever a server does wrong, every kind of probe ends in time, says so, and blames nobody else.
func TestServersThatMisbehave(t *testing.T) {
	p := New(Options{})
	for _, server := range []struct {
		name     string
		addr     netip.AddrPort
		evidence string
	}{
		{"refuses", refusing(t), "connection refused"},
		{"does not answer the SYN", full(t), "no answer within 300ms"},
		{"says nothing", serve(t, silent), "no answer within 300ms"},
		{"closes at once", serve(t, closesAtOnce), ""}, // with a request unread, that is a reset
		{"resets at once", serve(t, resets), ""},
		{"resets after the request", serve(t, resetsLate), ""},
		{"sends garbage", serve(t, garbage), ""},
		{"sends without end", serve(t, endless), ""},
		{"drips", serve(t, dripping), ""},
	} {
		for name, check := range streams {
			t.Run(server.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				check.Timeout = config.Duration(quick)
				start := time.Now()
				r := expect(t, p, target(server.addr, check), failing, server.evidence)
				t.Log(r.Evidence)
				if took := time.Since(start); took > ample {
					t.Errorf("took %v", took)
				}
			})
		}
	}
}

func TestTCP(t *testing.T) {
	p := New(Options{})
	says := func(parts ...string) netip.AddrPort {
		return serve(t, func(c net.Conn) {
			for _, part := range parts {
				_, _ = io.WriteString(c, part)
				time.Sleep(20 * time.Millisecond)
			}
			silent(c)
		})
	}
	echo := serve(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	for _, c := range []struct {
		name     string
		addr     netip.AddrPort
		check    config.Check
		want     verdict
		evidence string
	}{
		{"accepted", serve(t, silent), config.Check{}, good, "connected"},
		{"refused", refusing(t), config.Check{}, failing, "connection refused"},
		{"no answer", full(t), config.Check{Timeout: config.Duration(quick)}, failing, "no answer within 300ms"},
		{"a banner, and the connection stays", says("220 mail ready\r\n"), config.Check{Expect: config.Expect{Body: "220 "}}, good, "connected"},
		{"a banner in pieces", says("2", "2", "0 mail ", "ready"), config.Check{Expect: config.Expect{BodyRegexp: "^220 .*ready$"}}, good, "connected"},
		{"another banner", says("554 go away\r\n"), config.Check{Timeout: config.Duration(quick), Expect: config.Expect{Body: "220 "}}, failing, `the answer lacks "220 ": it begins with "554 go away\r\n"`},
		{"another banner, closed", serve(t, answer("554\r\n")), config.Check{Send: "hello", Expect: config.Expect{Body: "220"}}, failing, "lacks"},
		{"both are asked for", says("220 mail\r\n"), config.Check{Timeout: config.Duration(quick), Expect: config.Expect{Body: "220", BodyRegexp: "ready"}}, failing, `lacks "220" and /ready/`},
		{"hexadecimal", echo, config.Check{Send: "0x0001fe", Expect: config.Expect{Body: "0x01fe"}}, good, ""},
		{"within the limit", echo, config.Check{Send: "12345678", Expect: config.Expect{Body: "34", Limit: 4}}, good, ""},
		{"beyond the limit", echo, config.Check{Send: "12345678", Expect: config.Expect{Body: "45", Limit: 4}}, failing, "lacks"},
		{"found in an endless answer", serve(t, func(c net.Conn) { answer("ready")(c); endless(c) }), config.Check{Send: "x", Expect: config.Expect{Body: "ready"}}, good, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.check.Type = config.CheckTCP
			if r := expect(t, p, target(c.addr, c.check), c.want, c.evidence); r.Asks != -1 {
				t.Errorf("asks for %d", r.Asks)
			}
		})
	}
}

// A byte at a time is looked at a number of times that grows with the logarithm of what came.
func TestDrippingAnswerIsNotLookedAtForEachByte(t *testing.T) {
	looks, look := 0, 1
	for ; look < defaultLimit; look = nextLook(look) {
		looks++
	}
	if looks > 100 {
		t.Errorf("%d looks at %d bytes", looks, defaultLimit)
	}
}

// Attempts begin a third of the timeout apart; the first that succeeds is used, and the others are closed.
func TestHedging(t *testing.T) {
	for _, c := range []struct {
		name  string
		lost  int32 // how many attempts are never answered
		after time.Duration
		good  bool
	}{
		{"none lost", 0, 0, true},
		{"one lost", 1, 333 * time.Millisecond, true},
		{"two lost", 2, 666 * time.Millisecond, true},
		{"all lost", 3, time.Second, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tried atomic.Int32
				dial := func(ctx context.Context, _ string) (net.Conn, error) {
					if tried.Add(1) <= c.lost {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					mine, _ := net.Pipe()
					return mine, nil
				}
				to := target(netip.MustParseAddrPort("192.0.2.1:80"), config.Check{Type: config.CheckTCP, Via: config.ViaTunnel, Timeout: config.Duration(time.Second)})
				to.Dial = dial
				r := New(Options{}).Probe(t.Context(), to)
				if r.Good != c.good || r.Nothing || r.Latency < c.after || r.Latency > c.after+10*time.Millisecond {
					t.Errorf("%+v, want good=%v after %v", r, c.good, c.after)
				}
				synctest.Wait() // a goroutine that is left fails the test
			})
		})
	}
}

// A SYN that the kernel would send again after a second only is no failure: here the first one meets a full queue.
func TestLostSYN(t *testing.T) {
	addr, fd := fullListener(t)
	room := time.AfterFunc(100*time.Millisecond, func() {
		for range 8 {
			if c, _, err := syscall.Accept(fd); err == nil {
				_ = syscall.Close(c)
			}
		}
	})
	defer room.Stop()
	to := target(addr, config.Check{Type: config.CheckTCP, Timeout: config.Duration(900 * time.Millisecond)})
	if r := expect(t, New(Options{}), to, good, "connected"); r.Latency < 300*time.Millisecond {
		t.Errorf("took %v: the first SYN was answered", r.Latency)
	}
}

// An attempt that succeeds after another did is closed.
func TestLateConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tried atomic.Int32
		late := make(chan net.Conn, 1)
		dial := func(ctx context.Context, _ string) (net.Conn, error) {
			mine, other := net.Pipe()
			if tried.Add(1) == 1 {
				late <- other
				time.Sleep(2 * time.Second) // does not look at ctx
			}
			return mine, nil
		}
		to := target(netip.MustParseAddrPort("192.0.2.1:80"), config.Check{Type: config.CheckTCP, Via: config.ViaTunnel, Timeout: config.Duration(time.Second)})
		to.Dial = dial
		if r := New(Options{}).Probe(t.Context(), to); !r.Good {
			t.Errorf("%+v", r)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if _, err := (<-late).Write([]byte("x")); err != io.ErrClosedPipe {
			t.Errorf("the late connection is open: %v", err)
		}
	})
}

// A lack of something on this node, and a probe that is given up, say nothing about a backend.
func TestNothing(t *testing.T) {
	p := New(Options{})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if r := p.Probe(gone, target(serve(t, silent), config.Check{Type: config.CheckHTTP})); !r.Nothing || r.Evidence != "the probe was given up" {
		t.Errorf("given up before: %+v", r)
	}
	for name, check := range streams {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if r := p.Probe(ctx, target(serve(t, silent), check)); !r.Nothing || r.Latency > ample/2 {
			t.Errorf("%s, given up: %+v", name, r)
		}
		cancel()
	}
	to := target(refusing(t), config.Check{Type: config.CheckTCP, Via: config.ViaTunnel})
	expect(t, p, to, nothing, "CAP_NET_RAW")
	expect(t, p, target(refusing(t), config.Check{Type: "smtp"}), nothing, `"smtp"`)
	expect(t, p, target(refusing(t), config.Check{Type: config.CheckTCP, Expect: config.Expect{BodyRegexp: "("}}), nothing, "body_regexp")
	for errno := range local {
		if is, words := failure(os.NewSyscallError("socket", errno), time.Second); !is || !strings.HasPrefix(words, "this node cannot probe: ") {
			t.Errorf("%v: %v %q", errno, is, words)
		}
	}
	for errno, want := range map[syscall.Errno]string{
		syscall.EHOSTUNREACH: "no route to host", syscall.ENETUNREACH: "network unreachable", syscall.ECONNREFUSED: "connection refused",
		syscall.ETIMEDOUT: "no answer within 1s", syscall.ECONNRESET: "connection reset by the backend",
	} {
		if is, words := failure(fmt.Errorf("dial: %w", os.NewSyscallError("connect", errno)), time.Second); is || words != want {
			t.Errorf("%v: %v %q, want %q", errno, is, words, want)
		}
	}
}

// No free descriptor is this node's lack.
func TestNoDescriptors(t *testing.T) {
	addr := serve(t, silent)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	r := New(Options{}).Probe(t.Context(), target(addr, config.Check{Type: config.CheckTCP}))
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if !r.Nothing || !strings.Contains(r.Evidence, "too many open files") || !strings.Contains(r.Evidence, "LimitNOFILE") {
		t.Errorf("%+v", r)
	}
}

// Probes leave no socket in TIME_WAIT, neither here nor at the backend.
func TestProbesLeaveNoTimeWait(t *testing.T) {
	addr := serve(t, func(c net.Conn) {
		answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(c)
		silent(c)
	})
	p := New(Options{})
	for range 20 {
		expect(t, p, target(addr, config.Check{Type: config.CheckTCP}), good, "connected")
		expect(t, p, target(addr, config.Check{Type: config.CheckHTTP}), good, "HTTP 200")
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	const timeWait = "06" // TCP_TIME_WAIT in net/tcp_states.h
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		port := fmt.Sprintf(":%04X", addr.Port())
		if f[3] == timeWait && (strings.HasSuffix(f[1], port) || strings.HasSuffix(f[2], port)) {
			t.Fatalf("left in TIME_WAIT: %s", line)
		}
	}
}

// Newlines, control characters and broken text of a backend do not reach a log.
func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"a\r\nb": "a  b", " \x1b[31mred ": "[31mred", "\xff": "?", "grün": "grün", strings.Repeat("x", 500): strings.Repeat("x", maxEvidence) + "…",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}
