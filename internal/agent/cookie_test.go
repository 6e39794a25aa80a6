//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/testenv"
)

const (
	testSeed = "0123456789abcdef, a seed for tests"
	limitMSS = 1380 // what fits the cable with an outer header, over IPv4 and IPv6
)

// cookieNode is a node that answers all SYNs itself, by cookies, and forwards the rest.
type cookieNode struct {
	r       *rig
	cookies *guard.Cookies
	late    atomic.Int32                         // epochs that cookies are made too late
	flip    atomic.Uint32                        // bits of cookies that are made wrong
	lose    atomic.Int32                         // segments without data that are lost
	plain   atomic.Bool                          // forward as is, not wrapped
	nat     atomic.Pointer[[]capability.Mapping] // forward so what is to these, not wrapped
	socket  int                                  // for that
	syns    atomic.Uint64                        // that were answered
	wscale  atomic.Uint32                        // what the last SYN offered
}

func (r *rig) defend() *cookieNode {
	r.t.Helper()
	secret, _, err := readCookieSecret(r.seed())
	r.ok(err)
	n := &cookieNode{r: r, cookies: guard.NewCookies(secret)}
	backend, err := r.backend.Link("eth0")
	r.ok(err)
	here, err := r.node.Link("eth0")
	r.ok(err)
	r.ok(r.node.Do(func() error {
		n.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	header := append(append(append([]byte{}, backend.Attrs().HardwareAddr...), here.Attrs().HardwareAddr...), 8, 0)
	to := &unix.SockaddrLinklayer{Ifindex: here.Attrs().Index}
	look := func(p []byte) ([]byte, bool) { return n.look(header, to, p) }
	r.wrap()
	r.t.Cleanup(func() { unix.Close(n.socket) })
	r.defence.Store(&look)
	return n
}

// seed is the path of a seed file.
func (r *rig) seed() string {
	r.t.Helper()
	path := filepath.Join(r.stateDir, "seed")
	r.ok(os.WriteFile(path, []byte(testSeed+"\n"), 0o600))
	return path
}

// look does with a packet what a node does.
func (n *cookieNode) look(header []byte, to unix.Sockaddr, p []byte) (answer []byte, on bool) {
	mem := append(make([]byte, 0, 2048), header...)
	if p[0]>>4 == 6 {
		mem[12], mem[13] = 0x86, 0xdd
	}
	mem = append(mem, p...)
	var m packet.Meta
	packet.Parse(mem, &packet.Key{}, &m)
	if m.Reason != packet.None || m.Proto != packet.ProtoTCP {
		return nil, true
	}
	flags := mem[m.L4+13]
	if flags&0x12 == 0x02 {
		o := packet.ReadSYN(mem, &m)
		isn := uint32(mem[m.L4+4])<<24 | uint32(mem[m.L4+5])<<16 | uint32(mem[m.L4+6])<<8 | uint32(mem[m.L4+7])
		source := packet.Source(mem, &m)
		index := guard.MSSIndex(min(o.MSS, limitMSS))
		if m.Flags&packet.V6 != 0 {
			index = guard.MSSIndex6(min(o.MSS, limitMSS))
		}
		epoch := guard.CookieEpoch(time.Now().Unix()) - uint32(n.late.Load())
		number := n.cookies.Number([2]uint64{source.Hi, source.Lo}, [2]uint64{m.Dst.Hi, m.Dst.Lo}, m.SrcPort, m.DstPort,
			isn, epoch, index, o.Byte()) ^ n.flip.Load()
		start, length := packet.SYNCookie(mem, 0, &m, o, number, limitMSS, uint32(time.Now().UnixMilli()))
		n.syns.Add(1)
		n.wscale.Store(uint32(o.WScale))
		return mem[start+14 : start+length], false
	}
	if int(m.L4)+int(mem[m.L4+12]>>4)*4 == int(m.End) && flags&0x07 == 0 && n.lose.Load() > 0 {
		n.lose.Add(-1)
		return nil, false
	}
	if nat := n.nat.Load(); nat != nil {
		for _, t := range *nat {
			if packet.FromNetip(t.VIP.Addr()) == m.Dst && t.VIP.Port() == m.DstPort {
				e := packet.NewNAT(packet.MAC(header[:6]), packet.MAC(header[6:12]), t.Local.Addr(), t.Local.Port(), 0)
				start, length := e.Apply(mem, 0, &m)
				unix.Sendto(n.socket, mem[start:start+length], 0, to)
				return nil, false
			}
		}
	}
	if n.plain.Load() {
		unix.Sendto(n.socket, mem, 0, to)
		return nil, false
	}
	return nil, true
}

// echo serves on the backend: what a connection sends comes back, until the client ends it; "bye" ends it from here.
func (r *rig) echo(address string) {
	r.t.Helper()
	l, err := r.backend.Listen("tcp", address)
	r.ok(err)
	r.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if err != nil || string(buf[:n]) == "bye" {
						return
					}
					c.Write(buf[:n])
				}
			}()
		}
	}()
}

// says sends on a connection and waits for the echo.
func says(c net.Conn, text string) error {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(c, back); err != nil {
		return err
	}
	if string(back) != text {
		return fmt.Errorf("%q came back", back)
	}
	return nil
}

func (r *rig) dial(d *testenv.Dialer, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return d.DialContext(ctx, "tcp", to.String())
}

// greet makes a connection that is used once. The reset of one that is refused may come before the dial has returned.
func (r *rig) greet(to netip.AddrPort) error {
	conn, err := r.dial(r.node.Dialer(), to)
	if err != nil {
		return err
	}
	defer conn.Close()
	return says(conn, "hello")
}

func reset(err error) bool { return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) }

// tcpInfo is what the kernel of a namespace tells about its connection with these ports.
func (r *rig) tcpInfo(ns *testenv.Namespace, family uint8, from, to uint16) *netlink.TCPInfo {
	r.t.Helper()
	var found *netlink.TCPInfo
	r.ok(ns.Do(func() error {
		list, err := netlink.SocketDiagTCPInfo(family)
		for _, s := range list {
			if s.InetDiagMsg.ID.SourcePort == from && s.InetDiagMsg.ID.DestinationPort == to {
				found = s.TCPInfo
			}
		}
		return err
	}))
	if found == nil {
		r.t.Fatalf("no connection from port %d to %d in %s", from, to, ns)
	}
	return found
}

// TestCookies: kernel TCP of both sides, with a node between that answers the SYN by a cookie. What the two kernels believe about
// their connection is the same, megabytes go both ways, and none of it is seen by the backend before the last part of the
// handshake.
func TestCookies(t *testing.T) {
	payload := make([]byte, bulk/4)
	rand.NewChaCha8([32]byte{1}).Read(payload)
	const tcpOptions = 1 | 2 | 4 | 8 // TCPI_OPT_TIMESTAMPS, SACK, WSCALE, ECN
	for _, timestamps := range []bool{true, false} {
		t.Run(fmt.Sprintf("timestamps %t", timestamps), func(t *testing.T) {
			r := newRig(t)
			if !timestamps {
				r.ok(r.node.SetSysctl("net/ipv4/tcp_timestamps", "0"))
			}
			r.ok(r.node.SetSysctl("net/ipv4/tcp_ecn", "1"))
			n := r.defend()
			agent := r.start(append(both, "--cookie-seed", r.seed())...)
			r.serve(payload)
			r.echo(netip.AddrPortFrom(vip4, 7).String())
			r.echo("[::]:77")
			for _, c := range []struct {
				pair
				plain bool
			}{{pairs[0], false}, {pairs[1], false}, {pairs[2], false}, {pairs[3], false},
				{pair{gue: true}, false}, {pair{}, true}, {pair{inner6: true}, true}} {
				t.Run(fmt.Sprintf("%s plain %t", c.pair, c.plain), func(t *testing.T) {
					r.outer6.Store(c.outer6)
					r.gue.Store(c.gue)
					n.plain.Store(c.plain)
					vip, port, family := vip4, uint16(7), uint8(unix.AF_INET)
					if c.inner6 {
						vip, port, family = vip6, 77, unix.AF_INET6
					}
					before, syns := r.status().Packets, n.syns.Load()
					conn, err := r.dial(r.node.Dialer(), netip.AddrPortFrom(vip, port))
					r.ok(err)
					defer conn.Close()
					r.ok(says(conn, "hello"))

					own := uint16(conn.LocalAddr().(*net.TCPAddr).Port)
					here, there := r.tcpInfo(r.node, family, own, port), r.tcpInfo(r.backend, family, port, own)
					if timestamps {
						if there.Options&tcpOptions != tcpOptions || here.Options&tcpOptions != tcpOptions {
							t.Errorf("options %#x at the client, %#x at the backend", here.Options, there.Options)
						}
						// The library may take one for the other, on both sides.
						offered := uint8(n.wscale.Load())
						both := [2]uint8{here.Snd_wscale, here.Rcv_wscale}
						if here.Snd_wscale != there.Rcv_wscale || here.Rcv_wscale != there.Snd_wscale || offered == 7 ||
							both != [2]uint8{7, offered} && both != [2]uint8{offered, 7} {
							t.Errorf("window scales %d, %d at the client, %d, %d at the backend; the client offered %d", here.Snd_wscale,
								here.Rcv_wscale, there.Snd_wscale, there.Rcv_wscale, offered)
						}
					} else if (here.Options|there.Options)&tcpOptions != 0 {
						t.Errorf("options %#x at the client, %#x at the backend", here.Options, there.Options)
					}
					if there.Snd_mss > limitMSS || there.Snd_mss < 1220-12 {
						t.Errorf("the backend's segments have %d bytes", there.Snd_mss)
					}

					r.ok(r.exchange(vip, payload))
					counted := minus(r.status().Packets, before)
					if counted.CookieAccepted != n.syns.Load()-syns || counted.CookieAccepted < 2 || counted.CookieBad != 0 {
						t.Errorf("%d SYNs were answered; counted %+v", n.syns.Load()-syns, counted)
					}
				})
			}
			// A listener of both families.
			n.plain.Store(false)
			conn, err := r.dial(r.node.Dialer(), netip.AddrPortFrom(vip4, 77))
			r.ok(err)
			defer conn.Close()
			r.ok(says(conn, "hello"))
			if n := r.tooLong.Load(); n > 0 {
				t.Errorf("%d packets did not fit the network with their outer headers", n)
			}
			if st := r.status(); !st.Cookies {
				t.Errorf("status %+v", st)
			}
			r.stop(agent, unix.SIGTERM)
		})
	}
}

// TestCookiesRefused: which cookies make a connection, and which a reset.
func TestCookiesRefused(t *testing.T) {
	r := newRig(t)
	n := r.defend()
	r.start(append(both, "--cookie-seed", r.seed())...)
	to := map[netip.Addr]netip.AddrPort{vip4: netip.AddrPortFrom(vip4, 7), vip6: netip.AddrPortFrom(vip6, 7)}
	for _, at := range to {
		r.echo(at.String())
	}
	for _, c := range []struct {
		name string
		late int32
		flip uint32
		lose int32
		good bool
	}{
		{"right", 0, 0, 0, true},
		{"of the epoch before", 1, 0, 0, true},
		{"of the next epoch", -1, 0, 0, true},
		{"too old", 3, 0, 0, false}, // 2 may be 3 by the time that it comes
		{"too new", -3, 0, 0, false},
		{"old by four epochs, which have the same bits", 4, 0, 0, false},
		{"lowest bit", 0, 1, 0, false},
		{"highest bit of the hash", 0, 1 << 26, 0, false},
		{"other segment size", 0, 1 << 29, 0, false},
		{"acknowledged by data alone", 0, 0, 1, true},
		{"wrong, acknowledged by data alone", 0, 1 << 9, 1, false},
	} {
		for vip, at := range to {
			t.Run(fmt.Sprintf("%s/%s", c.name, vip), func(t *testing.T) {
				n.late.Store(c.late)
				n.flip.Store(c.flip)
				n.lose.Store(c.lose)
				before := r.status().Packets
				err := r.greet(at)
				counted := minus(r.status().Packets, before)
				if c.good && (err != nil || counted.CookieAccepted != 1 || counted.CookieBad != 0) {
					t.Errorf("error %v; counted %+v", err, counted)
				}
				if !c.good && (!reset(err) || counted.CookieAccepted != 0 || counted.CookieBad == 0) {
					t.Errorf("error %v; counted %+v", err, counted)
				}
			})
		}
	}
}

// TestCookieTimeWait: the client uses its port again while the backend remembers the connection before.
func TestCookieTimeWait(t *testing.T) {
	for _, timestamps := range []string{"1", "0"} {
		r := newRig(t)
		r.ok(r.node.SetSysctl("net/ipv4/tcp_timestamps", timestamps))
		n := r.defend()
		r.start(append(both, "--cookie-seed", r.seed())...)
		for i, vip := range []netip.Addr{vip4, vip6} {
			at := netip.AddrPortFrom(vip, 7)
			r.echo(at.String())
			d := &testenv.Dialer{Namespace: r.node, Source: []netip.Addr{node4, node6}[i], Port: 40000}
			for range 2 {
				conn, err := r.dial(d, at)
				r.ok(err)
				r.ok(says(conn, "hello"))
				io.WriteString(conn, "bye")
				if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
					t.Fatal(err)
				}
				conn.Close()
				r.eventually("the backend is in TIME_WAIT", func() bool {
					now, err := r.backend.Run(time.Second, testenv.Cmd{Path: "cat", Args: []string{"/proc/net/tcp", "/proc/net/tcp6"}})
					r.ok(err)
					return strings.Contains(now, " 06 ") // TCP_TIME_WAIT
				})
			}
			if c := r.status().Packets; c.CookieTimeWait != uint64(i+1) || c.CookieAccepted != uint64(2*i+2) {
				t.Errorf("counted %+v of %d SYNs", c, n.syns.Load())
			}
		}
	}
}

// TestCookiesOfRefusedOptions: where the host refuses an option, a connection that a node agreed to it for is reset, and others are
// made; ECN is no reason to refuse one.
func TestCookiesOfRefusedOptions(t *testing.T) {
	r := newRig(t)
	r.defend()
	r.setSysctl("net/ipv4/tcp_ecn", "0")
	r.ok(r.node.SetSysctl("net/ipv4/tcp_ecn", "1"))
	r.start(append(both, "--cookie-seed", r.seed())...)
	for _, vip := range []netip.Addr{vip4, vip6} {
		at := netip.AddrPortFrom(vip, 7)
		r.echo(at.String())
		if err := r.greet(at); err != nil {
			t.Errorf("%v, without ECN: %v", vip, err)
		}
		for _, name := range []string{"tcp_sack", "tcp_window_scaling", "tcp_timestamps"} {
			name = "net/ipv4/" + name
			r.setSysctl(name, "0")
			before := r.status().Packets
			if err := r.greet(at); !reset(err) {
				t.Errorf("%v, %s agreed to: %v", vip, name, err)
			}
			r.ok(r.node.SetSysctl(name, "0"))
			if err := r.greet(at); err != nil {
				t.Errorf("%v, %s not agreed to: %v", vip, name, err)
			}
			if c := minus(r.status().Packets, before); c.CookieRefused == 0 || c.CookieAccepted != 1 {
				t.Errorf("%v, %s: counted %+v", vip, name, c)
			}
			r.setSysctl(name, "1")
			r.ok(r.node.SetSysctl(name, "1"))
		}
	}
}

// TestCookiesOff: without a seed nothing is looked at, and the kernel resets what it has not begun.
func TestCookiesOff(t *testing.T) {
	r := newRig(t)
	r.defend()
	r.start(both...)
	at := netip.AddrPortFrom(vip4, 7)
	r.echo(at.String())
	if err := r.greet(at); !reset(err) {
		t.Errorf("error %v: was a connection made without a handshake?", err)
	}
	st := r.status()
	if c := st.Packets; st.Cookies || c.CookieBad+c.CookieAccepted != 0 {
		t.Errorf("status %+v", st)
	}
}

// TestCookiesOfMPTCPListener: the kernel does not make an MPTCP listener's connections of cookies; it is counted.
func TestCookiesOfMPTCPListener(t *testing.T) {
	r := newRig(t)
	if _, err := os.Stat("/proc/sys/net/mptcp/enabled"); err != nil {
		t.Skip("this kernel has no MPTCP")
	}
	r.defend()
	r.start(append(both, "--cookie-seed", r.seed())...)
	at := netip.AddrPortFrom(vip4, 7)
	var config net.ListenConfig
	config.SetMultipathTCP(true)
	r.ok(r.backend.Do(func() error {
		l, err := config.Listen(context.Background(), "tcp", at.String())
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	}))
	if err := r.greet(at); !reset(err) {
		t.Errorf("error %v: was a connection made?", err)
	}
	if c := r.status().Packets; c.CookieRefused == 0 || c.CookieAccepted != 0 {
		t.Errorf("counted %+v", c)
	}
}

// TestCookiesAfterKill: a killed agent's program goes on with the right time of day.
func TestCookiesAfterKill(t *testing.T) {
	r := newRig(t)
	r.defend()
	r.setSysctl(synCookies, "0")
	args := append(both, "--cookie-seed", r.seed())
	agent := r.start(args...)
	at := netip.AddrPortFrom(vip4, 7)
	r.echo(at.String())
	r.ok(agent.Kill())
	<-agent.Done()
	for i, name := range []string{"killed", "taken over"} {
		if err := r.greet(at); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if v := r.sysctl(synCookies); v != "1" {
			t.Errorf("%s: tcp_syncookies is %s", name, v)
		}
		if i == 0 {
			agent = r.start(args...)
		}
	}
	r.stop(agent, unix.SIGTERM)
	if v := r.sysctl(synCookies); v != "0" {
		t.Errorf("in the end tcp_syncookies is %s", v)
	}
}

// TestCookiesImpossible: what is missing is told, and nothing is changed.
func TestCookiesImpossible(t *testing.T) {
	r := newRig(t)
	before := r.snapshot()
	short := filepath.Join(r.stateDir, "short")
	r.ok(os.WriteFile(short, []byte("0123456789abcde\n"), 0o600))
	r.fails(append(both, "--cookie-seed", short), "cookie seed", short, "15 bytes", "16 to 4096 bytes", "group.seed_file")
	r.fails(append(both, "--cookie-seed", filepath.Join(r.stateDir, "none")), "cookie seed", "no such file")
	r.fails(append(both, "--cookie-seed", r.stateDir), "not a regular file")
	path, err := agentBinary()
	r.ok(err)
	with := func(set string) *testenv.Process {
		args := append([]string{"--bounding-set", set, path, "run", "--state-dir", r.stateDir, "--cookie-seed", r.seed(),
			"--nat", "192.0.2.11:80=10.0.0.2:80"}, both...)
		p, err := r.backend.Start(testenv.Cmd{Path: "setpriv", Args: args})
		r.ok(err)
		return p
	}
	p := with("-all,+bpf,+net_admin")
	if err := p.Wait(10 * time.Second); err == nil || !strings.Contains(p.Output(), "CAP_PERFMON") {
		t.Errorf("without perfmon: %v\n%s", err, p.Output())
	}
	r.unchanged(before)
	p = with("-all,+bpf,+net_admin,+perfmon")
	if err := p.WaitOutput(10*time.Second, "taking packets"); err != nil {
		t.Fatal(err)
	}
	r.stop(p, unix.SIGTERM)
	r.unchanged(before)
}
