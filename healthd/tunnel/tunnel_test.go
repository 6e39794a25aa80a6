//go:build linux

package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/testenv"
)

// ways are all ways to the backend of a rig.
func ways() []Path {
	return []Path{
		{Forward: L2, VIP: vip4, Backend: backend4},
		{Forward: L2, VIP: vip6, Backend: backend6},
		{Forward: IPIP, VIP: vip4, Backend: backend4},
		{Forward: IPIP, VIP: vip6, Backend: backend6},
		{Forward: IPIP, VIP: vip4, Backend: backend6},
		{Forward: IPIP, VIP: vip6, Backend: backend4},
		{Forward: GUE, VIP: vip4, Backend: backend4, GUEPort: guePort},
		{Forward: GUE, VIP: vip6, Backend: backend6, GUEPort: guePort},
		{Forward: GUE, VIP: vip4, Backend: backend6, GUEPort: guePort, GUEChecksum: true},
		{Forward: GUE, VIP: vip6, Backend: backend4, GUEPort: guePort, GUEChecksum: true},
	}
}

func (p Path) name() string {
	return fmt.Sprintf("%s IPv%d by IPv%d", p.Forward, map[bool]int{true: 4, false: 6}[p.VIP.Is4()], map[bool]int{true: 4, false: 6}[p.Backend.Is4()])
}

// isTimeout says whether an error is a timeout for those who ask in any of the usual ways.
func isTimeout(err error) bool {
	var neterr net.Error
	return errors.Is(err, context.DeadlineExceeded) && errors.As(err, &neterr) && neterr.Timeout()
}

// Over every way a probe gets a page, an echo and a refusal, from the VIP.
func TestWays(t *testing.T) {
	r := newRig(t)
	r.agent()
	r.serve()
	for _, path := range ways() {
		t.Run(path.name(), func(t *testing.T) {
			node := node6
			if path.VIP.Is4() {
				node = node4
			}
			body, err := r.get(r.soon(), path, "/")
			if err != nil {
				t.Fatal(err)
			}
			from, at, _ := strings.Cut(body, " at ")
			if ap, err := netip.ParseAddrPort(from); err != nil || ap.Addr() != node || ap.Port() < firstPort {
				t.Errorf("the backend saw a connection from %q, want %v and a port from %d on", from, node, firstPort)
			}
			if ap, err := netip.ParseAddrPort(at); err != nil || ap.Addr().Unmap() != path.VIP {
				t.Errorf("the backend was asked at %q, want %v", at, path.VIP)
			}
			if body, err := r.get(r.soon(), path, "/long"); err != nil || len(body) < 64<<10 {
				t.Errorf("a long page: %d bytes, %v", len(body), err)
			}
			r.echo(t, path)
			if err := r.dial(r.soon(), path, closedPort); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("dial of a closed port: %v, want ECONNREFUSED", err)
			} else if !strings.Contains(err.Error(), fmt.Sprintf("%v by %s to %v", netip.AddrPortFrom(path.VIP, closedPort), path.Forward, path.Backend)) {
				t.Errorf("the error does not name the way: %v", err)
			}
		})
	}
}

// echo sends a datagram and gets it back; and one to a closed port is refused.
func (r *rig) echo(t *testing.T, path Path) {
	t.Helper()
	conn, err := r.dialer.DialContext(r.soon(), "udp", path, openPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	sent, got := bytes.Repeat([]byte("echo"), 300), make([]byte, 2048)
	if _, err := conn.Write(sent); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(got); err != nil || !bytes.Equal(got[:n], sent) {
		t.Errorf("echo of %d bytes: %d bytes, %v", len(sent), n, err)
	}
	if _, err := conn.Write(make([]byte, 1253)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("write of too long a datagram: %v, want EMSGSIZE", err)
	}
	_ = conn.SetDeadline(time.Now())
	var neterr net.Error
	if _, err := conn.Read(got); !errors.As(err, &neterr) || !neterr.Timeout() {
		t.Errorf("read after the deadline: %v, want a timeout", err)
	}

	closed, err := r.dialer.DialContext(r.soon(), "udp", path, closedPort)
	if err != nil {
		t.Fatal(err)
	}
	defer closed.Close()
	// The kernel of the backend limits its ICMP errors: ask until it tells.
	for range 20 {
		_ = closed.SetDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err = closed.Write(sent); err == nil {
			_, err = closed.Read(got)
		}
		if !errors.As(err, &neterr) || !neterr.Timeout() {
			break
		}
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a datagram to a closed port: %v, want ECONNREFUSED", err)
	}
}

// What a client's data meets, the probe meets: no answer.
func TestNoAnswer(t *testing.T) {
	r := newRig(t)
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	// Nobody has the VIPs. A host that is no router may tell so.
	for _, path := range ways() {
		if err := r.dial(short(), path, openPort); !isTimeout(err) && (path.Forward != L2 || !errors.Is(err, syscall.ENETUNREACH)) {
			t.Errorf("%s, VIP missing: %v, want a timeout", path.name(), err)
		}
	}
	a := r.agent()
	r.serve()
	for _, path := range ways() {
		if err := r.dial(r.soon(), path, openPort); err != nil {
			t.Errorf("%s, with an agent: %v", path.name(), err)
		}
	}
	r.ok(a.Stop(10 * time.Second))
	// With the VIPs, but nobody who decapsulates; L2 needs nobody to.
	r.vips()
	for _, path := range ways() {
		err := r.dial(short(), path, openPort)
		if path.Forward == L2 {
			err = r.dial(r.soon(), path, openPort)
		}
		if (path.Forward == L2) != (err == nil) || err != nil && !isTimeout(err) {
			t.Errorf("%s, agent stopped: %v", path.name(), err)
		}
		if err := r.direct(path.Backend); err != nil {
			t.Errorf("direct to %v: %v", path.Backend, err)
		}
	}
}

// A firewall between node and backend drops IP in IP, and nothing else.
func TestFirewall(t *testing.T) {
	r := &rig{tb: t, env: testenv.ForTest(t)}
	var err error
	r.node, err = r.env.Namespace("node")
	r.ok(err)
	wall, err := r.env.Namespace("firewall")
	r.ok(err)
	r.backend, err = r.env.Namespace("backend")
	r.ok(err)
	r.ok(r.env.Veth(testenv.End{Namespace: r.node, Name: "eth0"}, testenv.End{Namespace: wall, Name: "node"}, 1))
	r.ok(r.env.Veth(testenv.End{Namespace: wall, Name: "backend"}, testenv.End{Namespace: r.backend, Name: "eth0"}, 1))
	r.ok(r.node.AddAddr("eth0", netip.MustParsePrefix("10.1.0.1/24")))
	r.ok(wall.AddAddr("node", netip.MustParsePrefix("10.1.0.254/24")))
	r.ok(wall.AddAddr("backend", netip.MustParsePrefix("10.0.0.254/24")))
	r.ok(r.backend.AddAddr("eth0", netip.MustParsePrefix("10.0.0.2/24")))
	r.ok(wall.SetSysctl("net.ipv4.ip_forward", "1"))
	anywhere := netip.MustParsePrefix("0.0.0.0/0")
	r.ok(r.node.AddRoute(testenv.Route{Dst: anywhere, Via: []netip.Addr{netip.MustParseAddr("10.1.0.254")}}))
	r.ok(r.backend.AddRoute(testenv.Route{Dst: anywhere, Via: []netip.Addr{netip.MustParseAddr("10.0.0.254")}}))
	r.blackhole()
	r.open()
	r.agent()
	r.serve()

	path := Path{Forward: IPIP, VIP: vip4, Backend: backend4}
	r.ok(r.dial(r.soon(), path, openPort))
	r.dropped(wall, syscall.IPPROTO_IPIP)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := r.dial(ctx, path, openPort); !isTimeout(err) {
		t.Errorf("through the firewall: %v, want a timeout", err)
	}
	r.ok(r.direct(backend4))
	gue := Path{Forward: GUE, VIP: vip4, Backend: backend4, GUEPort: guePort}
	r.ok(r.dial(r.soon(), gue, openPort))
	l2 := Path{Forward: L2, VIP: vip4, Backend: backend4}
	if err := r.dial(r.soon(), l2, openPort); !errors.Is(err, syscall.EHOSTUNREACH) || !strings.Contains(err.Error(), "behind a gateway") {
		t.Errorf("l2 behind a gateway: %v", err)
	}
}
