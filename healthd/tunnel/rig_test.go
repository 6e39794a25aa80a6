//go:build linux

package tunnel

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

var (
	vip4, vip6         = netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")
	node4, node6       = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	backend4, backend6 = netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
)

const (
	openPort   = 8080 // HTTP over TCP, echo over UDP
	closedPort = 8081
	resetPort  = 8082 // TCP: reset after the first bytes
	guePort    = 6080
)

// agentBinary is the built program; TestMain removes its folder.
var (
	buildDir    string
	agentBinary = sync.OnceValues(func() (_ string, err error) {
		buildDir, err = testenv.Build("github.com/sluice-lb/sluice/cmd/sluice-agent")
		return filepath.Join(buildDir, "sluice-agent"), err
	})
)

func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) != "" {
		fmt.Fprintln(os.Stderr, serveForever())
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// rig is a node and a backend on one cable. Nothing in the node forwards; it has the daemon's blackhole routes.
type rig struct {
	tb            testing.TB
	env           *testenv.Env
	node, backend *testenv.Namespace
	dialer        *Dialer
}

func newRig(tb testing.TB) *rig {
	tb.Helper()
	r := &rig{tb: tb, env: testenv.ForTest(tb)}
	var err error
	r.node, err = r.env.Namespace("node")
	r.ok(err)
	r.backend, err = r.env.Namespace("backend")
	r.ok(err)
	r.ok(r.env.Veth(testenv.End{Namespace: r.node, Name: "eth0"}, testenv.End{Namespace: r.backend, Name: "eth0"}, 1))
	for _, a := range []struct {
		ns   *testenv.Namespace
		addr netip.Addr
		bits int
	}{{r.node, node4, 24}, {r.node, node6, 64}, {r.backend, backend4, 24}, {r.backend, backend6, 64}} {
		r.ok(a.ns.AddAddr("eth0", netip.PrefixFrom(a.addr, a.bits)))
	}
	r.blackhole()
	r.open()
	return r
}

// blackhole does what the daemon does for its VIPs.
func (r *rig) blackhole() {
	r.tb.Helper()
	for _, vip := range []netip.Addr{vip4, vip6} {
		r.ok(r.node.AddRoute(testenv.Route{Dst: netip.PrefixFrom(vip, vip.BitLen()), Kind: testenv.Blackhole}))
	}
}

// open opens the Dialer in the node. It is closed before the namespaces are.
func (r *rig) open() {
	r.tb.Helper()
	r.ok(r.node.Do(func() (err error) {
		r.dialer, err = New()
		return err
	}))
	r.tb.Cleanup(func() { r.ok(r.dialer.Close()) })
}

func (r *rig) ok(err error) {
	r.tb.Helper()
	if err != nil {
		r.tb.Fatal(err)
	}
}

// agent starts an agent in the backend, and returns when it decapsulates.
func (r *rig) agent() *testenv.Process {
	r.tb.Helper()
	path, err := agentBinary()
	r.ok(err)
	p, err := r.backend.Start(testenv.Cmd{Path: path, Args: []string{
		"run", "--vip", vip4.String(), "--vip", vip6.String(), "--interface", "eth0", "--state-dir", r.tb.TempDir(),
	}})
	r.ok(err)
	r.ok(p.WaitOutput(10*time.Second, "taking packets"))
	return p
}

// vips gives the backend the VIPs without an agent.
func (r *rig) vips() {
	r.tb.Helper()
	for _, vip := range []netip.Addr{vip4, vip6} {
		r.ok(r.backend.AddAddr("lo", netip.PrefixFrom(vip, vip.BitLen())))
	}
}

// serve starts the backend's servers, on all of its addresses.
func (r *rig) serve() {
	r.tb.Helper()
	l, err := r.backend.Listen("tcp", fmt.Sprintf(":%d", openPort))
	r.ok(err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		local := req.Context().Value(http.LocalAddrContextKey).(net.Addr)
		fmt.Fprintf(w, "%s at %s", req.RemoteAddr, local)
		if req.URL.Path == "/long" {
			_, _ = io.WriteString(w, strings.Repeat("x", 64<<10))
		}
	})}
	go server.Serve(l)
	r.tb.Cleanup(func() { server.Close() })

	resets, err := r.backend.Listen("tcp", fmt.Sprintf(":%d", resetPort))
	r.ok(err)
	r.tb.Cleanup(func() { resets.Close() })
	go func() {
		for {
			c, err := resets.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1))
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()

	// One for each VIP, so that answers come from it.
	for _, vip := range []netip.Addr{vip4, vip6} {
		echo, err := r.backend.ListenPacket("udp", netip.AddrPortFrom(vip, openPort).String())
		r.ok(err)
		r.tb.Cleanup(func() { echo.Close() })
		go func() {
			b := make([]byte, 2048)
			for {
				n, from, err := echo.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = echo.WriteTo(b[:n], from)
			}
		}()
	}
}

// soon is a context with time enough for what works.
func (r *rig) soon() context.Context {
	ctx, cancel := context.WithTimeout(r.tb.Context(), 10*time.Second)
	r.tb.Cleanup(cancel)
	return ctx
}

// get makes one HTTP request through the tunnel, on a connection of its own.
func (r *rig) get(ctx context.Context, path Path, url string) (string, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return r.dialer.DialContext(ctx, network, path, openPort)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vip"+url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// dial connects by TCP, and closes.
func (r *rig) dial(ctx context.Context, path Path, port uint16) error {
	conn, err := r.dialer.DialContext(ctx, "tcp", path, port)
	if err != nil {
		return err
	}
	return conn.Close()
}

// direct connects from the node to the backend's own address.
func (r *rig) direct(backend netip.Addr) error {
	conn, err := r.node.Dialer().DialContext(r.soon(), "tcp", netip.AddrPortFrom(backend, openPort).String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// capture collects what arrives on the backend's interface, before an agent sees it, each packet from its IP header on. packets
// returns what has come so far.
func (r *rig) capture() (packets func() [][]byte) {
	r.tb.Helper()
	var s socket
	r.ok(r.backend.Do(func() (err error) {
		if s, err = openSocket("capture", unix.AF_PACKET, unix.SOCK_DGRAM, 0); err != nil {
			return err
		}
		closed := s.raw.Control(func(fd uintptr) {
			err = unix.Bind(int(fd), &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)})
		})
		if closed != nil {
			return closed
		}
		return err
	}))
	var mu sync.Mutex
	var all [][]byte
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			var n int
			var from unix.Sockaddr
			var err error
			if s.raw.Read(func(fd uintptr) bool {
				n, from, err = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
				return err != unix.EAGAIN
			}) != nil {
				return
			}
			if err == nil && from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_HOST {
				mu.Lock()
				all = append(all, slices.Clone(b[:n]))
				mu.Unlock()
			}
		}
	}()
	r.tb.Cleanup(func() {
		s.close()
		<-done
	})
	return func() [][]byte {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// eventually waits for something.
func (r *rig) eventually(what string, f func() bool) {
	r.tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.tb.Fatalf("never happened: %s", what)
		}
	}
}

// dropped makes a namespace drop what it would forward of an IP protocol.
func (r *rig) dropped(ns *testenv.Namespace, proto int) {
	r.tb.Helper()
	rule := netlink.NewRule()
	rule.Family, rule.IPProto, rule.Type, rule.Priority = netlink.FAMILY_V4, proto, unix.RTN_BLACKHOLE, 1
	r.ok(ns.Netlink().RuleAdd(rule))
}
