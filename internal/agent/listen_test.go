//go:build linux

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/testenv"
)

// ask asks the agent at an address from inside a namespace.
func ask(d *testenv.Dialer, at netip.AddrPort) (a capability.Answer, err error) {
	transport := d.Transport()
	transport.DisableKeepAlives = true
	response, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get("http://" + at.String() + capability.Path)
	if err != nil {
		return a, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return a, errors.New(response.Status)
	}
	return a, json.NewDecoder(response.Body).Decode(&a)
}

// TestAsked: what an agent tells is what the host accepts, a moment after its sysctls have changed; and it goes on without options
// that the host refuses, which it used to be stopped by.
func TestAsked(t *testing.T) {
	r := newRig(t)
	secret, _, err := readCookieSecret(r.seed())
	r.ok(err)
	r.setSysctl("net/ipv4/tcp_sack", "0")
	nat := mapping(t, "192.0.2.11:80=10.0.0.2:8080")
	agent := r.start(append(both, "--cookie-seed", r.seed(), "--nat", nat.String())...)
	want := capability.Cookies{Version: guard.CookieVersion, Key: guard.CookieKeyID(secret), IPv4: true, IPv6: true,
		WindowScale: true, Timestamps: true, ECN: true, NAT: []capability.Mapping{nat}}
	for _, at := range []netip.Addr{here4, here6} {
		a, err := ask(r.node.Dialer(), netip.AddrPortFrom(at, capability.DefaultPort))
		r.ok(err)
		if a.Version != "development" || !slices.Equal(a.VIPs, []netip.Addr{vip4, vip6}) || a.Skew(time.Now()).Abs() > 2*time.Second ||
			a.Cookies == nil || fmt.Sprint(*a.Cookies) != fmt.Sprint(want) {
			t.Errorf("%v tells %+v, %+v", at, a, a.Cookies)
		}
	}
	if text := agent.Output(); strings.Count(text, "refuses TCP options") != 1 || !strings.Contains(text, "net/ipv4/tcp_sack") {
		t.Errorf("nothing said, or too much, about tcp_sack:\n%s", text)
	}
	if st := r.status(); st.Listen != ":9546" {
		t.Errorf("status %+v", st)
	}

	// No two sysctls are alike in all steps, with the one above.
	for _, off := range [][]string{{"tcp_timestamps", "tcp_window_scaling"}, {"tcp_window_scaling", "tcp_ecn"}} {
		for name, allowed := range map[string]*bool{"tcp_sack": &want.SACK, "tcp_timestamps": &want.Timestamps,
			"tcp_window_scaling": &want.WindowScale, "tcp_ecn": &want.ECN} {
			*allowed = !slices.Contains(off, name)
			r.setSysctl("net/ipv4/"+name, map[bool]string{false: "0", true: "1"}[*allowed])
		}
		r.eventually(fmt.Sprintf("%v are told", off), func() bool {
			a, err := ask(r.node.Dialer(), netip.AddrPortFrom(here4, capability.DefaultPort))
			r.ok(err)
			return a.Cookies != nil && fmt.Sprint(*a.Cookies) == fmt.Sprint(want)
		})
		for _, name := range off {
			r.eventually(name+" is in the log", func() bool { return strings.Contains(agent.Output(), "net/ipv4/"+name) })
		}
	}
	for _, value := range []string{"0", "1"} {
		r.setSysctl(synCookies, value)
		r.eventually("tcp_syncookies is told", func() bool {
			a, err := ask(r.node.Dialer(), netip.AddrPortFrom(here6, capability.DefaultPort))
			r.ok(err)
			return (a.Cookies != nil) == (value == "1")
		})
	}
	r.stop(agent, unix.SIGTERM)
	if _, err := ask(r.node.Dialer(), netip.AddrPortFrom(here4, capability.DefaultPort)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after its end: %v", err)
	}
}

// TestAskedByWhom: with --source others than these, and the host itself, get nothing; nor does anybody at a VIP, where clients come.
func TestAskedByWhom(t *testing.T) {
	r := newRig(t)
	other := netip.MustParseAddr("10.0.0.9")
	r.ok(r.node.AddAddr("eth0", netip.PrefixFrom(other, 24)))
	r.wrap()
	r.start(append(both, "--cookie-seed", r.seed(), "--source", node4.String())...)
	for _, c := range []struct {
		from    *testenv.Dialer
		at      netip.Addr
		allowed bool
	}{
		{&testenv.Dialer{Namespace: r.node, Source: node4}, here4, true},
		{&testenv.Dialer{Namespace: r.node, Source: other}, here4, false},
		{&testenv.Dialer{Namespace: r.node, Source: node6}, here6, false},
		{&testenv.Dialer{Namespace: r.node, Source: node4}, vip4, false},
		{r.backend.Dialer(), netip.MustParseAddr("127.0.0.1"), true},
		{r.backend.Dialer(), netip.MustParseAddr("::1"), true},
	} {
		_, err := ask(c.from, netip.AddrPortFrom(c.at, capability.DefaultPort))
		closed := err != nil && !os.IsTimeout(err) && !errors.Is(err, unix.ECONNREFUSED) // in one of several ways for the client
		if c.allowed != (err == nil) || c.allowed == closed {
			t.Errorf("from %v to %v: %v", c.from.Source, c.at, err)
		}
	}
}

// TestListenRefused: a port that is taken is told before anything is changed; off, and no seed, are no listener.
func TestListenRefused(t *testing.T) {
	r := newRig(t)
	before := r.snapshot()
	taken, err := r.backend.Listen("tcp", ":9546")
	r.ok(err)
	r.fails(append(both, "--cookie-seed", r.seed()), ":9546", "address already in use", "another program has the port", "--listen")
	r.fails(append(both, "--cookie-seed", r.seed(), "--listen", "10.0.0.77:9546"), "10.0.0.77:9546", "--listen")
	r.unchanged(before)
	for _, args := range [][]string{{"--cookie-seed", r.seed(), "--listen", "off"}, {"--cookie-seed", r.seed(), "--listen", "[fd00::2]:80"}, nil} {
		p := r.start(append(both, args...)...)
		taken.Close()
		if _, err := ask(r.node.Dialer(), netip.AddrPortFrom(here4, capability.DefaultPort)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%v: %v", args, err)
		}
		_, err := ask(r.node.Dialer(), netip.AddrPortFrom(here6, 80))
		if there := len(args) > 3 && args[3] == "[fd00::2]:80"; there != (err == nil) {
			t.Errorf("%v: asked at port 80: %v", args, err)
		}
		r.stop(p, unix.SIGTERM)
	}
	r.unchanged(before)
}

// lockedBuffer takes a log from several goroutines.
type lockedBuffer struct {
	sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.Lock()
	defer b.Unlock()
	return b.Buffer.Write(p)
}

// TestAskersAreBounded: silent connections fill the slots and no more, and leave them soon; a listener that fails is logged.
func TestAskersAreBounded(t *testing.T) {
	l, err := listen("127.0.0.1:0", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	stop := l.serve((&teller{version: "v1"}).answer, slog.New(slog.NewTextHandler(&log, nil)))
	defer stop()
	at := netip.MustParseAddrPort(l.Addr().String())
	var silent []net.Conn
	for range askers + 1 {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	last := silent[askers]
	last.SetReadDeadline(time.Now().Add(askTime / 2))
	if _, err := last.Read(make([]byte, 1)); err != io.EOF && !reset(err) {
		t.Errorf("one more than there are slots: %v", err)
	}
	for _, c := range silent[:askers] {
		c.SetReadDeadline(time.Now().Add(5 * askTime))
		if _, err := c.Read(make([]byte, 1)); err != io.EOF && !reset(err) {
			t.Fatalf("a silent connection: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		a, err := capability.Ask(ctx, at)
		if err == nil && a.Version == "v1" && a.Cookies == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after silent connections: %+v, %v", a, err)
		}
	}

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+capability.Path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Long", strings.Repeat("x", 4*askHeader))
	if response, err := http.DefaultClient.Do(request); err == nil {
		response.Body.Close()
		if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("a long header: %s", response.Status)
		}
	}

	l.Listener.Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		log.Lock()
		text := log.String()
		log.Unlock()
		if strings.Contains(text, "get no answer any more") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a failing listener is not logged: %s", text)
		}
	}
}
