//go:build linux

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// agentBinary is the built program; TestMain removes its folder.
var (
	buildDir    string
	agentBinary = sync.OnceValues(func() (string, error) {
		out := filepath.Join(buildDir, "sluice-agent")
		if text, err := exec.Command("go", "build", "-o", out, "github.com/sluice-lb/sluice/cmd/sluice-agent").CombinedOutput(); err != nil {
			return "", fmt.Errorf("build sluice-agent: %w\n%s", err, text)
		}
		return out, nil
	})
)

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "sluice-agent-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// rig is a node, which is the client too, and a backend on one cable:
//
//	node: tun "wrap" ◄── routes to the VIPs          backend: the agent, servers
//	        │ wrapped by the test                      │
//	      eth0 10.0.0.1, fd00::1 ───────────────── eth0 10.0.0.2, fd00::2
//
// The backend's answers to the clients' addresses, which are the node's, come straight back over the cable.
type rig struct {
	t             *testing.T
	env           *testenv.Env
	node, backend *testenv.Namespace
	stateDir      string
	outer6        atomic.Bool   // wrap in IPv6
	gue           atomic.Bool   // wrap in GUE
	checksums     atomic.Bool   // with UDP checksums in GUE
	wrapped       atomic.Uint64 // packets that were wrapped and sent
	tooLong       atomic.Uint64 // packets that were too long for the cable once they were wrapped
	tun           *os.File      // "wrap", once wrap was called; what is written to it the node receives

	// What looks at packets to the VIPs first, if set: it may answer them in the VIP's name, and says if they go on.
	defence atomic.Pointer[func(packet []byte) (answer []byte, on bool)]
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, env: testenv.ForTest(t), stateDir: t.TempDir()}
	var err error
	r.node, err = r.env.Namespace("node")
	r.ok(err)
	r.backend, err = r.env.Namespace("backend")
	r.ok(err)
	r.cable("eth0", "10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", "fd00::2/64")
	return r
}

// cable joins node and backend; the first address of two is the node's.
func (r *rig) cable(name string, addrs ...string) {
	r.t.Helper()
	r.ok(r.env.Veth(testenv.End{Namespace: r.node, Name: name}, testenv.End{Namespace: r.backend, Name: name}, 1))
	for i, a := range addrs {
		r.ok([]*testenv.Namespace{r.node, r.backend}[i%2].AddAddr(name, netip.MustParsePrefix(a)))
	}
	r.settled(name)
}

// settled waits until all IPv6 addresses of the backend's interface are in use; the kernel adds the link-local one, and
// ends the tentative state, in its own time.
func (r *rig) settled(name string) {
	r.t.Helper()
	l, err := r.backend.Link(name)
	r.ok(err)
	r.eventually("the backend uses its IPv6 addresses", func() bool {
		list, err := r.backend.Netlink().AddrList(l, netlink.FAMILY_V6)
		r.ok(err)
		return slices.ContainsFunc(list, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() }) &&
			!slices.ContainsFunc(list, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
	})
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// wrap makes the node send packets to the VIPs through the test, which wraps them. It stops with the test.
func (r *rig) wrap() {
	r.t.Helper()
	tun := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: "wrap"}, Mode: netlink.TUNTAP_MODE_TUN,
		Flags: unix.IFF_NO_PI, Queues: 1, NonPersist: true,
	}
	w := wrapper{}
	r.ok(r.node.Do(func() error {
		if err := w.open(); err != nil {
			return err
		}
		return netlink.LinkAdd(tun)
	}))
	r.ok(r.node.SetMTU("wrap", 1500))
	r.ok(r.node.LinkUp("wrap"))
	for _, route := range []struct{ vip, source netip.Addr }{{vip4, node4}, {vip6, node6}} {
		r.ok(r.node.AddRoute(testenv.Route{Dst: netip.PrefixFrom(route.vip, route.vip.BitLen()), Link: "wrap", Source: route.source}))
	}

	// A duplicate that does not block, so that closing it ends the read.
	fd, err := unix.FcntlInt(tun.Fds[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	r.ok(err)
	r.ok(tun.Fds[0].Close())
	r.ok(syscall.SetNonblock(fd, true))
	in := os.NewFile(uintptr(fd), "wrap")
	r.tun = in
	done := make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 2048)
		for {
			n, err := in.Read(packet)
			if err != nil {
				return
			}
			if defence := r.defence.Load(); defence != nil {
				answer, on := (*defence)(packet[:n])
				if answer != nil {
					in.Write(answer)
				}
				if !on {
					continue
				}
			}
			if inner := packet[0] >> 4; inner == 4 || packet[6] != 58 { // no router solicitations and the like
				p := pair{r.outer6.Load(), inner == 6, r.gue.Load()}
				switch err := w.send(p, r.checksums.Load(), packet[:n]); {
				case err == nil:
					r.wrapped.Add(1)
				case errors.Is(err, unix.EMSGSIZE):
					r.tooLong.Add(1)
				}
			}
		}
	}()
	r.t.Cleanup(func() {
		in.Close()
		<-done
		w.close()
	})
}

// wrapper wraps packets as a node does, and sends them: sockets by outer and inner family and by the way of wrapping.
// Like a node it neither fragments nor lets fragment.
type wrapper map[wrapping]int

type wrapping struct {
	pair
	checksum bool // a UDP checksum
}

func (w wrapper) open() error {
	for _, p := range tunnels(pairs) {
		for _, checksum := range []bool{false, true}[:map[bool]int{false: 1, true: 2}[p.gue]] {
			family, kind, proto := unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_IPIP
			if p.inner6 {
				proto = unix.IPPROTO_IPV6
			}
			if p.gue {
				kind, proto = unix.SOCK_DGRAM, unix.IPPROTO_UDP
			}
			options := [][3]int{{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO}}
			if p.outer6 {
				family = unix.AF_INET6
				options = [][3]int{{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO}, {unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1}}
			}
			if p.gue && !checksum {
				options = append(options, [3]int{unix.SOL_SOCKET, unix.SO_NO_CHECK, 1})
				if p.outer6 {
					options = append(options, [3]int{unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, 1})
				}
			}
			fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
			if err != nil {
				return err
			}
			w[wrapping{p, checksum}] = fd
			for _, o := range options {
				if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (w wrapper) send(p pair, checksum bool, packet []byte) error {
	port := 0
	if p.gue {
		port = DefaultGUEPort
	}
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: here4.As4(), Port: port}
	if p.outer6 {
		to = &unix.SockaddrInet6{Addr: here6.As16(), Port: port}
	}
	return unix.Sendto(w[wrapping{p, checksum && p.gue}], packet, 0, to)
}

func (w wrapper) close() {
	for _, fd := range w {
		unix.Close(fd)
	}
}

// start starts an agent in the backend and waits until it takes packets.
func (r *rig) start(args ...string) *testenv.Process {
	r.t.Helper()
	p := r.launch(args...)
	if err := p.WaitOutput(10*time.Second, "taking packets"); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// launch starts an agent and does not wait.
func (r *rig) launch(args ...string) *testenv.Process {
	r.t.Helper()
	path, err := agentBinary()
	r.ok(err)
	p, err := r.backend.Start(testenv.Cmd{Path: path, Args: append([]string{"run", "--state-dir", r.stateDir}, args...)})
	r.ok(err)
	return p
}

// both are the flags for both VIPs on eth0.
var both = []string{"--vip", vip4.String(), "--vip", vip6.String(), "--interface", "eth0"}

// stop ends an agent as an operator does.
func (r *rig) stop(p *testenv.Process, s os.Signal) {
	r.t.Helper()
	r.ok(p.Signal(s))
	if err := p.Wait(10 * time.Second); err != nil {
		r.t.Fatalf("agent ended by %v: %v\n%s", s, err, p.Output())
	}
}

// fails launches an agent that has to end with an error that says all of this.
func (r *rig) fails(args []string, words ...string) {
	r.t.Helper()
	p := r.launch(args...)
	if err := p.Wait(10 * time.Second); err == nil {
		r.t.Fatalf("sluice-agent run %v did not fail", args)
	}
	for _, w := range words {
		if !strings.Contains(p.Output(), w) {
			r.t.Errorf("sluice-agent run %v does not say %q:\n%s", args, w, p.Output())
		}
	}
}

func (r *rig) status() Status {
	r.t.Helper()
	path, err := agentBinary()
	r.ok(err)
	out, err := r.backend.Run(10*time.Second, testenv.Cmd{Path: path, Args: []string{"status", "--json", "--state-dir", r.stateDir}})
	r.ok(err)
	var st Status
	r.ok(json.Unmarshal([]byte(out), &st))
	return st
}

// snapshot is all that an agent could have changed in the backend: addresses, routes, sysctls, programs. It is a list of
// lines.
func (r *rig) snapshot() []string {
	r.t.Helper()
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	r.ok(r.backend.Do(func() error {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			add("address %v link %d scope %d flags %x lifetimes %d %d", a.IPNet, a.LinkIndex, a.Scope, a.Flags, a.PreferedLft, a.ValidLft)
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, route := range routes {
			add("route %+v", route)
		}
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				ids, err := attached(hostLink{l.Attrs().Name, l.Attrs().Index}, hook)
				if err != nil {
					return err
				}
				add("programs of %s, %v: %v", l.Attrs().Name, hook, ids)
			}
		}
		for _, family := range []string{"ipv4", "ipv6"} {
			err := filepath.WalkDir("/proc/sys/net/"+family+"/conf", func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				value, err := os.ReadFile(path)
				if errors.Is(err, unix.EIO) || errors.Is(err, fs.ErrPermission) { // stable_secret, write-only ones
					return nil
				}
				add("%s = %s", path, strings.TrimSpace(string(value)))
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	}))
	slices.Sort(lines)
	return lines
}

// unchanged compares the backend with a snapshot.
func (r *rig) unchanged(before []string) {
	r.t.Helper()
	after := r.snapshot()
	for _, l := range before {
		if !slices.Contains(after, l) {
			r.t.Errorf("before, not after: %s", l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			r.t.Errorf("after, not before: %s", l)
		}
	}
	left, err := filepath.Glob(filepath.Join(r.stateDir, "*.json"))
	r.ok(err)
	if len(left) > 0 {
		r.t.Errorf("state left behind: %v", left)
	}
}

// hasAddr reports whether an interface of the backend has the address.
func (r *rig) hasAddr(link string, addr netip.Addr) bool {
	r.t.Helper()
	l, err := r.backend.Link(link)
	r.ok(err)
	list, err := r.backend.Netlink().AddrList(l, netlink.FAMILY_ALL)
	r.ok(err)
	return slices.ContainsFunc(list, func(a netlink.Addr) bool { return a.IP.Equal(net.IP(addr.AsSlice())) })
}

func (r *rig) sysctl(key string) string {
	r.t.Helper()
	v, err := r.backend.Sysctl(key)
	r.ok(err)
	return v
}

func (r *rig) setSysctl(key, value string) {
	r.t.Helper()
	r.ok(r.backend.SetSysctl(key, value))
}

// eventually waits until f is true.
func (r *rig) eventually(what string, f func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("not within 10 s: %s", what)
		}
	}
}
