//go:build linux

package agent

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/testenv"
)

// behind is the MAC address that the backend sends packets for clients to: the node's, of which its kernel knows nothing.
var behind = [6]byte{2, 0, 0, 0, 0, 0x99}

// translate makes the node a NAT one, for clients with client4 and client6 as addresses. Which VIP a reply is from, mappings say too.
func (n *cookieNode) translate(mappings ...capability.Mapping) {
	r := n.r
	r.t.Helper()
	n.nat.Store(&mappings)
	r.ok(r.backend.SetFeatures("eth0", map[string]bool{testenv.TXChecksum: false}))
	for i, client := range []netip.Addr{client4, client6} {
		via := []netip.Addr{netip.MustParseAddr("10.0.0.99"), netip.MustParseAddr("fd00::99")}[i]
		r.ok(r.node.AddAddr("wrap", netip.PrefixFrom(client, client.BitLen())))
		r.ok(r.backend.AddNeighbour("eth0", via, behind[:]))
		r.ok(r.backend.AddRoute(testenv.Route{Dst: netip.PrefixFrom(client, client.BitLen()), Via: []netip.Addr{via}, Link: "eth0"}))
	}
	for _, vip := range []string{"192.0.2.11", "2001:db8::11"} { // beside those of wrap
		vip := netip.MustParseAddr(vip)
		r.ok(r.node.AddRoute(testenv.Route{Dst: netip.PrefixFrom(vip, vip.BitLen()), Link: "wrap"}))
	}
	here, err := r.node.Link("eth0")
	r.ok(err)
	var fd int
	r.ok(r.node.Do(func() error {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: here.Attrs().Index})
	}))
	r.ok(syscall.SetNonblock(fd, true))
	replies, done := os.NewFile(uintptr(fd), "replies"), make(chan struct{})
	go func() {
		defer close(done)
		frame := make([]byte, 2048)
		for {
			length, err := replies.Read(frame)
			if err != nil {
				return
			}
			var m packet.Meta
			if packet.Parse(frame[:length], &packet.Key{}, &m); m.Reason != packet.None || !bytes.Equal(frame[:6], behind[:]) {
				continue
			}
			for _, t := range *n.nat.Load() {
				if packet.FromNetip(t.Local.Addr()) == packet.Source(frame, &m) && t.Local.Port() == m.SrcPort {
					start, length := packet.Untranslate(frame, 0, &m, &[12]byte{}, packet.FromNetip(t.VIP.Addr()), t.VIP.Port(), 0)
					r.tun.Write(frame[start+14 : start+length])
					break
				}
			}
		}
	}()
	r.t.Cleanup(func() {
		replies.Close()
		<-done
	})
}

// visit makes a connection from a client, and has megabytes come back.
func (r *rig) visit(at netip.AddrPort) error {
	d := &testenv.Dialer{Namespace: r.node, Source: client4}
	if at.Addr().Is6() {
		d.Source = client6
	}
	conn, err := r.dial(d, at)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := says(conn, "hello"); err != nil {
		return err
	}
	sent, back := make([]byte, 2<<20), make([]byte, 2<<20)
	rand.NewChaCha8([32]byte{2}).Read(sent)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	go conn.Write(sent)
	if _, err := io.ReadFull(conn, back); err != nil {
		return err
	}
	if !bytes.Equal(sent, back) {
		return io.ErrUnexpectedEOF
	}
	if from := conn.RemoteAddr().(*net.TCPAddr).AddrPort(); from.Port() != at.Port() || from.Addr().Unmap() != at.Addr() {
		return io.ErrNoProgress
	}
	return nil
}

func mapping(t testing.TB, s string) capability.Mapping {
	t.Helper()
	m, err := ParseNAT(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestNAT: a backend that nodes translate to makes connections of cookies that were made with the VIP and its port, and of no
// others. On the host nothing is changed but the program at the ingress; a killed agent's goes on, and another's takes over.
func TestNAT(t *testing.T) {
	r := newRig(t)
	n := r.defend()
	right := []capability.Mapping{
		mapping(t, "192.0.2.10:80=10.0.0.2:8080"), mapping(t, "[2001:db8::10]:80=[fd00::2]:8080"),
		mapping(t, "192.0.2.11:80=10.0.0.2:8081"), mapping(t, "[2001:db8::11]:80=[fd00::2]:8081"),
		mapping(t, "192.0.2.10:443=10.0.0.2:8443"),
	}
	n.translate(right...)
	r.echo("[::]:8080")
	r.echo("[::]:8081")
	r.echo(here4.String() + ":8443")
	before := r.snapshot()
	args := []string{"--interface", "eth0", "--cookie-seed", r.seed()}
	for _, m := range right {
		args = append(args, "--nat", m.String())
	}
	r.setSysctl(synCookies, "0")
	agent := r.start(args...)

	after := slices.DeleteFunc(r.snapshot(), func(l string) bool { return strings.HasPrefix(l, "programs of eth0, TCXIngress") })
	if want := slices.DeleteFunc(slices.Clone(before), func(l string) bool { return strings.HasPrefix(l, "programs of eth0, TCXIngress") }); !slices.Equal(after, want) {
		t.Errorf("without a VIP more than the ingress was touched:\n%s\nwas\n%s", strings.Join(after, "\n"), strings.Join(want, "\n"))
	}
	st := r.status()
	if !st.Cookies || st.Listen != ":9546" || !slices.Equal(st.NAT, right) || len(st.VIPs)+len(st.Added) != 0 || st.ClampMSS != (MSS{}) {
		t.Errorf("status %+v", st)
	}
	for _, m := range right {
		packets := r.status().Packets
		if err := r.visit(m.VIP); err != nil {
			t.Errorf("%v: %v", m, err)
		}
		if c := minus(r.status().Packets, packets); c != (Counters{CookieAccepted: 1}) {
			t.Errorf("%v: counted %+v", m, c)
		}
	}

	// Cookies of another VIP, or of another of its ports, and wrong ones.
	wrong := []capability.Mapping{
		mapping(t, "192.0.2.11:80=10.0.0.2:8080"), mapping(t, "[2001:db8::11]:80=[fd00::2]:8080"), mapping(t, "192.0.2.10:443=10.0.0.2:8080"),
	}
	for i, m := range wrong {
		one := wrong[i : i+1]
		n.nat.Store(&one)
		packets := r.status().Packets
		if err := r.visit(m.VIP); !reset(err) {
			t.Errorf("%v: error %v", m, err)
		}
		if c := minus(r.status().Packets, packets); c.CookieAccepted != 0 || c.CookieBad == 0 {
			t.Errorf("%v: counted %+v", m, c)
		}
	}
	n.nat.Store(&right)
	n.flip.Store(1)
	if err := r.visit(right[0].VIP); !reset(err) {
		t.Errorf("a wrong cookie: error %v", err)
	}
	n.flip.Store(0)
	if err := r.greet(netip.AddrPortFrom(here4, 8080)); err != nil { // who comes without a node has made a handshake
		t.Errorf("straight to the host: %v", err)
	}

	r.ok(agent.Kill())
	<-agent.Done()
	if st := r.status(); st.Running || st.Listen != "" || !slices.Equal(st.NAT, right) {
		t.Errorf("status after the kill: %+v", st)
	}
	if err := r.visit(right[1].VIP); err != nil {
		t.Errorf("after the kill: %v", err)
	}
	// With VIPs now, and fewer mappings.
	agent = r.start(append(both, "--cookie-seed", r.seed(), "--nat", right[0].String(), "--listen", "10.0.0.2:1234")...)
	if st := r.status(); st.Listen != "10.0.0.2:1234" || !slices.Equal(st.NAT, right[:1]) || len(st.VIPs) != 2 {
		t.Errorf("status of the second agent: %+v", st)
	}
	if err := r.visit(right[0].VIP); err != nil {
		t.Errorf("with the second agent: %v", err)
	}
	if err := r.visit(right[1].VIP); !reset(err) {
		t.Errorf("what the first agent was told is not forgotten: %v", err)
	}
	tunnelled := netip.AddrPortFrom(vip4, 8081)
	if err := r.greet(tunnelled); err != nil {
		t.Errorf("in a tunnel, beside NAT: %v", err)
	}
	r.ok(agent.Kill())
	<-agent.Done()
	// Without VIPs again: those that the second put on lo go.
	agent = r.start(args...)
	if r.hasAddr("lo", vip4) || r.sysctl(allIgnore) != "0" {
		t.Error("what was changed for VIPs was not undone by an agent without")
	}
	if err := r.visit(right[1].VIP); err != nil {
		t.Errorf("with the third agent: %v", err)
	}
	r.stop(agent, unix.SIGTERM)
	r.unchanged(before)
	if v := r.sysctl(synCookies); v != "0" {
		t.Errorf("in the end tcp_syncookies is %s", v)
	}
}
