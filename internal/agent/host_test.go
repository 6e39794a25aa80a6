//go:build linux

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/testenv"
)

const (
	allIgnore   = "net/ipv4/conf/all/arp_ignore"
	allAnnounce = "net/ipv4/conf/all/arp_announce"
	ethIgnore   = "net/ipv4/conf/eth0/arp_ignore"
	ethAnnounce = "net/ipv4/conf/eth0/arp_announce"
	ethRPFilter = "net/ipv4/conf/eth0/rp_filter"
	allRPFilter = "net/ipv4/conf/all/rp_filter"
)

func TestConfigRefused(t *testing.T) {
	a := netip.MustParseAddr
	good := Config{VIPs: []netip.Addr{vip4}, Interfaces: []string{"eth0"}}
	nat := func(mappings ...string) func(*Config) {
		return func(c *Config) {
			for _, text := range mappings {
				m, err := ParseNAT(text)
				if err != nil {
					t.Fatal(err)
				}
				c.NAT = append(c.NAT, m)
			}
		}
	}
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no VIP", func(c *Config) { c.VIPs = nil }, "no VIP given"},
		{"no interface", func(c *Config) { c.Interfaces = nil }, "no interface given"},
		{"interface twice", func(c *Config) { c.Interfaces = []string{"eth0", "eth1", "eth0"} }, "interface eth0: given twice"},
		{"VIP twice", func(c *Config) { c.VIPs = []netip.Addr{vip4, vip6, a("::ffff:192.0.2.10")} }, "VIP 192.0.2.10: given twice"},
		{"invalid VIP", func(c *Config) { c.VIPs = []netip.Addr{{}} }, "VIP invalid IP: not a unicast"},
		{"unspecified VIP", func(c *Config) { c.VIPs = []netip.Addr{a("0.0.0.0")} }, "VIP 0.0.0.0: not a unicast"},
		{"loopback VIP", func(c *Config) { c.VIPs = []netip.Addr{a("127.0.0.1")} }, "VIP 127.0.0.1: not a unicast"},
		{"loopback VIP, IPv6", func(c *Config) { c.VIPs = []netip.Addr{a("::1")} }, "VIP ::1: not a unicast"},
		{"multicast VIP", func(c *Config) { c.VIPs = []netip.Addr{a("ff02::1")} }, "VIP ff02::1: not a unicast"},
		{"broadcast VIP", func(c *Config) { c.VIPs = []netip.Addr{a("255.255.255.255")} }, "not a unicast"},
		{"link-local VIP", func(c *Config) { c.VIPs = []netip.Addr{a("fe80::1")} }, "VIP fe80::1: link-local"},
		{"zone", func(c *Config) { c.VIPs = []netip.Addr{a("fe80::1%eth0")} }, "not a unicast"},
		{"address is a VIP", func(c *Config) { c.Addresses = []netip.Addr{vip4} }, "address 192.0.2.10: is a VIP"},
		{"bad address", func(c *Config) { c.Addresses = []netip.Addr{a("224.0.0.1")} }, "address 224.0.0.1: not a unicast"},
		{"MSS too small", func(c *Config) { c.ClampMSS = 535 }, "MSS 535: give auto, off, or bytes from 536 to 65495"},
		{"MSS too large", func(c *Config) { c.ClampMSS = 65496 }, "MSS 65496: give"},
		{"bad source", func(c *Config) { c.Sources = []netip.Prefix{{}} }, "not a prefix"},
		{"NAT without cookies", nat("192.0.2.10:80=10.0.0.2:80"), "--nat: it is for SYN cookies alone"},
		{"NAT of two VIPs at one address", nat("192.0.2.10:80=10.0.0.2:80", "192.0.2.11:80=10.0.0.2:80"),
			"--nat 192.0.2.11:80=10.0.0.2:80: connections to 10.0.0.2:80 are to 192.0.2.10:80 already"},
		{"NAT of two ports at one port", nat("192.0.2.10:80=10.0.0.2:80", "192.0.2.10:81=[::ffff:10.0.0.2]:80"), "are to 192.0.2.10:80 already"},
		{"NAT twice", nat("192.0.2.10:80=10.0.0.2:80", "192.0.2.10:80=10.0.0.2:80"), "--nat 192.0.2.10:80=10.0.0.2:80: given twice"},
		{"NAT between families", nat("192.0.2.10:80=[fd00::2]:80"), "--nat 192.0.2.10:80=[fd00::2]:80: one is IPv4, the other IPv6"},
		{"NAT to a VIP", nat("192.0.2.11:80=192.0.2.10:80"), "192.0.2.10 is a VIP"},
		{"NAT to a VIP of NAT", nat("192.0.2.11:80=10.0.0.2:80", "192.0.2.12:80=192.0.2.11:80"), "192.0.2.11 is a VIP"},
		{"NAT to loopback", nat("192.0.2.11:80=127.0.0.1:80"), "127.0.0.1: not a unicast"},
		{"NAT of a link-local VIP", nat("[fe80::1]:80=[fd00::2]:80"), "fe80::1: link-local"},
		{"NAT of port 0", nat("192.0.2.11:0=10.0.0.2:80"), "no connection is to port 0"},
		{"NAT without end", func(c *Config) { c.NAT = make([]capability.Mapping, 4097) }, "4097 mappings: at most 4096"},
		{"listening at a VIP", func(c *Config) { c.Listen, c.CookieSeed = "192.0.2.10:9546", "seed" }, "--listen 192.0.2.10:9546: it is a VIP"},
		{"listening without cookies", func(c *Config) { c.Listen = ":9546" }, "--listen :9546: nodes ask about SYN cookies"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := good
			c.change(&cfg)
			if err := cfg.normalize(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}

	cfg := good
	cfg.Sources = []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.9/120"), netip.MustParsePrefix("10.0.0.7/24")}
	if err := cfg.normalize(); err != nil || !slices.Equal(cfg.Sources, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}) {
		t.Errorf("sources %v, error %v: want 10.0.0.0/24 once", cfg.Sources, err)
	}

	// Several VIPs, or ports, at addresses of their own; nothing that is about VIPs without one.
	cfg = Config{Interfaces: []string{"eth0"}, GUEPort: DefaultGUEPort, CookieSeed: "seed"}
	mappings := []string{"192.0.2.10:80=10.0.0.2:80", "192.0.2.11:80=10.0.0.2:81", "192.0.2.10:80=10.0.0.3:80", "[2001:db8::10]:80=[fd00::2]:80"}
	nat(mappings...)(&cfg)
	if err := cfg.normalize(); err != nil || len(cfg.NAT) != len(mappings) || cfg.GUEPort != 0 || cfg.ClampMSS != ClampOff {
		t.Errorf("NAT alone: %+v, error %v", cfg, err)
	}
	for i, m := range cfg.NAT {
		if m.String() != mappings[i] {
			t.Errorf("%s became %v", mappings[i], m)
		}
	}
}

// TestSetUpAndUndo: the host is as it should be while the agent runs, and as it was before when it has ended.
func TestSetUpAndUndo(t *testing.T) {
	for _, signal := range []syscall.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			r := newRig(t)
			r.setSysctl(allAnnounce, "1")
			r.setSysctl(ethRPFilter, "1")
			// Through an interface without addresses the host has to borrow one, and might take a VIP.
			r.cable("eth1")
			for _, dst := range []string{"192.0.2.128/25", "2001:db8::/64"} {
				r.ok(r.backend.AddRoute(testenv.Route{Dst: netip.MustParsePrefix(dst), Link: "eth1"}))
			}
			before := r.snapshot()
			p := r.start(both...)
			for key, want := range map[string]string{allIgnore: "1", ethIgnore: "1", allAnnounce: "2", ethAnnounce: "2", ethRPFilter: "2", allRPFilter: "0"} {
				if got := r.sysctl(key); got != want {
					t.Errorf("%s is %s, want %s", key, got, want)
				}
			}
			for _, vip := range []netip.Addr{vip4, vip6} {
				if !r.hasAddr("lo", vip) || r.hasAddr("eth0", vip) {
					t.Errorf("VIP %s is not on lo alone", vip)
				}
			}
			// The host's own connections do not come from a VIP.
			for _, to := range []netip.Addr{node4, node6, netip.MustParseAddr("192.0.2.177"), netip.MustParseAddr("2001:db8::77")} {
				c, err := r.backend.Dialer().DialContext(context.Background(), "udp", netip.AddrPortFrom(to, 9).String())
				r.ok(err)
				if from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); from != here4 && from != here6 {
					t.Errorf("a connection to %s comes from %s", to, from)
				}
				c.Close()
			}
			st := r.status()
			if !st.Running || st.PID != p.PID() || !slices.Equal(st.VIPs, []netip.Addr{vip4, vip6}) || !slices.Equal(st.Interfaces, []string{"eth0"}) {
				t.Errorf("status is %+v", st)
			}
			r.stop(p, signal)
			r.unchanged(before)
		})
	}
}

// TestIPv6Alone: nothing about ARP is touched for an IPv6 VIP.
func TestIPv6Alone(t *testing.T) {
	r := newRig(t)
	r.setSysctl(allRPFilter, "1")
	before := r.snapshot()
	p := r.start("--vip", vip6.String(), "--interface", "eth0")
	if ign, ann, rp := r.sysctl(allIgnore), r.sysctl(ethAnnounce), r.sysctl(ethRPFilter); ign != "0" || ann != "0" || rp != "0" {
		t.Errorf("arp_ignore %s, arp_announce %s, rp_filter %s", ign, ann, rp)
	}
	r.stop(p, unix.SIGTERM)
	r.unchanged(before)
}

// TestKeptAsFound: what is good already stays as it is, during and after.
func TestKeptAsFound(t *testing.T) {
	r := newRig(t)
	r.setSysctl(allIgnore, "2")
	r.setSysctl(ethAnnounce, "2")
	r.setSysctl(ethRPFilter, "2")
	r.setSysctl(allRPFilter, "1")
	r.ok(r.backend.AddAddr("lo", netip.PrefixFrom(vip4, 32)))
	before := r.snapshot()
	p := r.start(both...)
	if v := r.sysctl(allIgnore); v != "2" {
		t.Errorf("arp_ignore was 2 and is %s", v)
	}
	if st := r.status(); !slices.Equal(st.Added, []netip.Addr{vip6}) {
		t.Errorf("added VIPs are %v", st.Added)
	}
	r.stop(p, unix.SIGTERM)
	if !r.hasAddr("lo", vip4) {
		t.Error("a VIP that was there before was removed")
	}
	r.unchanged(before)
}

// TestChangedByOthers: what somebody else has set meanwhile is not overwritten at the end.
func TestChangedByOthers(t *testing.T) {
	r := newRig(t)
	p := r.start(both...)
	r.setSysctl(allIgnore, "8")
	r.stop(p, unix.SIGTERM)
	if v := r.sysctl(allIgnore); v != "8" {
		t.Errorf("arp_ignore was set to 8 by somebody else and is %s", v)
	}
	if v := r.sysctl(ethIgnore); v != "0" {
		t.Errorf("arp_ignore of eth0 is %s after the end", v)
	}
	if !strings.Contains(p.Output(), "changed by somebody else") {
		t.Errorf("nothing said:\n%s", p.Output())
	}

	// Nor is it by the successor of a killed agent, if it is good enough.
	p = r.start(both...)
	r.ok(p.Kill())
	<-p.Done()
	r.setSysctl(ethIgnore, "2")
	p = r.start(both...)
	if v := r.sysctl(ethIgnore); v != "2" {
		t.Errorf("arp_ignore of eth0 was set to 2 by somebody else and is %s", v)
	}
	r.stop(p, unix.SIGTERM)
	if v := r.sysctl(ethIgnore); v != "2" {
		t.Errorf("arp_ignore of eth0 was set to 2 by somebody else and is %s at the end", v)
	}
}

// TestKilled: a killed agent leaves a host that serves; the next takes over, and restores what was before the first.
func TestKilled(t *testing.T) {
	r := newRig(t)
	r.cable("eth1")
	r.wrap()
	r.setSysctl(allAnnounce, "1")
	r.setSysctl("net/ipv4/conf/eth1/rp_filter", "1")
	before := r.snapshot()

	p := r.start(append(both, "--interface", "eth1")...)
	r.serve(make([]byte, bulk))
	r.ok(p.Kill())
	<-p.Done()
	if st := r.status(); st.Running || !slices.Equal(st.Interfaces, []string{"eth0", "eth1"}) {
		t.Errorf("status after the kill: %+v", st)
	}
	if err := r.exchange(vip4, make([]byte, bulk)); err != nil {
		t.Errorf("the host does not serve after the kill: %v", err)
	}

	// The second has other VIPs and interfaces; it is killed too.
	p = r.start("--vip", vip4.String(), "--vip", "192.0.2.11", "--interface", "eth0")
	if !strings.Contains(p.Output(), "took the place") {
		t.Errorf("nothing said about the first agent:\n%s", p.Output())
	}
	eth0, err := r.backend.Link("eth0")
	r.ok(err)
	eth1, err := r.backend.Link("eth1")
	r.ok(err)
	for index, want := range map[int]int{eth0.Attrs().Index: 1, eth1.Attrs().Index: 0} {
		r.ok(r.backend.Do(func() error {
			for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				ids, err := attached(hostLink{"", index}, hook)
				if err != nil {
					return err
				}
				if len(ids) != want {
					t.Errorf("link %d has programs %v at %v, want %d", index, ids, hook, want)
				}
			}
			return nil
		}))
	}
	if r.hasAddr("lo", vip6) || !r.hasAddr("lo", vip4) {
		t.Error("VIPs on lo are not those of the second agent")
	}
	if v := r.sysctl("net/ipv4/conf/eth1/rp_filter"); v != "1" {
		t.Errorf("rp_filter of eth1 is %s; it is nobody's now and was 1", v)
	}
	if all, eth0, announce := r.sysctl(allIgnore), r.sysctl(ethIgnore), r.sysctl(allAnnounce); all != "1" || eth0 != "1" || announce != "2" {
		t.Errorf("with the second agent arp_ignore is %s and %s, arp_announce %s", all, eth0, announce)
	}
	if err := r.exchange(vip4, make([]byte, bulk)); err != nil {
		t.Errorf("the host does not serve with the second agent: %v", err)
	}
	r.ok(p.Kill())
	<-p.Done()

	p = r.start(both...)
	r.stop(p, unix.SIGTERM)
	r.unchanged(before)
}

// TestKilledAnywhere kills agents at any moment of their start and end.
func TestKilledAnywhere(t *testing.T) {
	r := newRig(t)
	r.setSysctl(allRPFilter, "1")
	before := r.snapshot()
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 12 {
		p := r.launch(both...)
		if i%3 == 2 {
			r.ok(p.WaitOutput(10*time.Second, "taking packets"))
			r.ok(p.Signal(unix.SIGTERM))
			time.Sleep(time.Duration(rnd.IntN(4000)) * time.Microsecond)
		} else {
			time.Sleep(time.Duration(rnd.IntN(40)) * time.Millisecond)
		}
		r.ok(p.Kill())
		<-p.Done()
	}
	r.stop(r.start(both...), unix.SIGTERM)
	r.unchanged(before)
}

// TestProgramOfOthersStays: other programs at the interface are neither replaced nor removed, and come after ours.
func TestProgramOfOthersStays(t *testing.T) {
	r := newRig(t)
	other := load(t)
	eth0, err := r.backend.Link("eth0")
	r.ok(err)
	l := hostLink{"eth0", eth0.Attrs().Index}
	theirs := []attachment{{Link: l.index, Program: uint32(other.decap)}, {Link: l.index, Egress: true, Program: uint32(other.clamp)}}
	for _, a := range theirs {
		r.ok(r.backend.Do(func() error { return other.attach(a, nil) }))
	}
	before := r.snapshot()
	p := r.start(both...)
	for _, a := range theirs {
		r.ok(r.backend.Do(func() error {
			ids, err := attached(l, a.hook())
			if len(ids) != 2 || uint32(ids[1]) != a.Program {
				t.Errorf("programs at %v are %v, want ours before %d", a.hook(), ids, a.Program)
			}
			return err
		}))
	}
	r.ok(p.Kill())
	<-p.Done()
	r.stop(r.start(both...), unix.SIGTERM)
	r.unchanged(before)
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	before := r.snapshot()
	r.fails([]string{"--vip", "192.0.2.300", "--source", "10.0.0.0/33", "--interface", "eth0"}, "192.0.2.300", "10.0.0.0/33")
	r.fails([]string{"--vip", "192.0.2.10"}, "interface")
	r.fails([]string{"--vip", "192.0.2.10", "--interface", "nosuch"}, "nosuch", "not found")
	r.fails([]string{"--vip", "192.0.2.10", "--interface", "lo"}, "lo", "loopback")
	r.unchanged(before)

	r.ok(r.backend.AddAddr("eth0", netip.PrefixFrom(vip4, 32)))
	before = r.snapshot()
	r.fails(both, "192.0.2.10", "ARP", "remove it")
	r.unchanged(before)
	r.ok(r.backend.DelAddr("eth0", netip.PrefixFrom(vip4, 32)))

	// What fails half-way is undone: lo takes no IPv6 address, after all else is set.
	r.setSysctl("net/ipv6/conf/lo/disable_ipv6", "1")
	before = r.snapshot()
	r.fails(both, "add VIP 2001:db8::10", "disable_ipv6")
	r.unchanged(before)
	r.setSysctl("net/ipv6/conf/lo/disable_ipv6", "0")

	before = r.snapshot()
	p := r.start(both...)
	r.fails([]string{"--vip", "192.0.2.11", "--interface", "eth0"}, "another sluice-agent", fmt.Sprintf("pid %d", p.PID()))
	r.stop(p, unix.SIGTERM)
	r.unchanged(before)

	r.ok(r.backend.LinkDown("lo"))
	r.fails(both, "lo", "down")
}

// TestCapabilities: the error names what is missing, and what is said to be enough is enough.
func TestCapabilities(t *testing.T) {
	r := newRig(t)
	path, err := agentBinary()
	r.ok(err)
	with := func(set string) *testenv.Process {
		args := append([]string{"--bounding-set", set, path, "run", "--state-dir", r.stateDir}, both...)
		p, err := r.backend.Start(testenv.Cmd{Path: "setpriv", Args: args})
		r.ok(err)
		return p
	}
	before := r.snapshot()
	for _, missing := range []string{"bpf", "net_admin"} {
		set := "-all,+bpf,+net_admin"
		p := with(strings.Replace(set, ",+"+missing, "", 1))
		if err := p.Wait(10 * time.Second); err == nil || !strings.Contains(p.Output(), "CAP_BPF and CAP_NET_ADMIN") {
			t.Errorf("without %s: %v\n%s", missing, err, p.Output())
		}
		r.unchanged(before)
	}
	p := with("-all,+bpf,+net_admin")
	if err := p.WaitOutput(10*time.Second, "taking packets"); err != nil {
		t.Fatal(err)
	}
	r.ok(p.Kill())
	<-p.Done()
	p = with("-all,+bpf,+net_admin")
	if err := p.Wait(10 * time.Second); err == nil || !strings.Contains(p.Output(), "CAP_SYS_ADMIN") {
		t.Errorf("took over a killed agent's program: %v\n%s", err, p.Output())
	}
	if st := r.status(); st.Running || !r.hasAddr("lo", vip4) {
		t.Errorf("an agent that could not take over has touched what was there: %+v", st)
	}
	r.stop(r.start(both...), unix.SIGTERM)
	r.unchanged(before)
}

// TestInterfaceAnew: after a kill the interface went and came; what was recorded of the old one is not put on the new.
func TestInterfaceAnew(t *testing.T) {
	r := newRig(t)
	r.setSysctl(ethIgnore, "8")
	r.setSysctl(ethAnnounce, "1")
	p := r.start(both...)
	r.ok(p.Kill())
	<-p.Done()
	r.ok(r.backend.DeleteLink("eth0"))
	r.cable("eth0", "10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", "fd00::2/64")
	p = r.start(both...)
	if v := r.sysctl(ethAnnounce); v != "2" {
		t.Errorf("arp_announce of the new interface is %s", v)
	}
	r.stop(p, unix.SIGTERM)
	for key, want := range map[string]string{ethAnnounce: "0", ethIgnore: "0", allIgnore: "0", allAnnounce: "0"} {
		if v := r.sysctl(key); v != want {
			t.Errorf("%s is %s, want %s", key, v, want)
		}
	}
}

// TestInterfaceGone: the agent ends with an error and undoes the rest.
func TestInterfaceGone(t *testing.T) {
	r := newRig(t)
	p := r.start(both...)
	r.ok(r.backend.DeleteLink("eth0"))
	if err := p.Wait(10 * time.Second); err == nil || !strings.Contains(p.Output(), "interface eth0 has gone") {
		t.Errorf("error %v:\n%s", err, p.Output())
	}
	if r.hasAddr("lo", vip4) || r.sysctl(allIgnore) != "0" {
		t.Error("the rest was not undone")
	}
	left, _ := filepath.Glob(filepath.Join(r.stateDir, "*.json"))
	if len(left) > 0 {
		t.Errorf("state left behind: %v", left)
	}
}

// TestVIPPutBack: network managers like to remove addresses that they do not know.
func TestVIPPutBack(t *testing.T) {
	r := newRig(t)
	r.ok(r.backend.AddAddr("lo", netip.PrefixFrom(vip4, 32))) // one that was there before, and is the agent's from then on
	p := r.start(both...)
	for _, vip := range []netip.Addr{vip4, vip6} {
		r.ok(r.backend.DelAddr("lo", netip.PrefixFrom(vip, vip.BitLen())))
	}
	r.eventually("the VIPs are back", func() bool { return r.hasAddr("lo", vip4) && r.hasAddr("lo", vip6) })
	r.stop(p, unix.SIGTERM)
	if r.hasAddr("lo", vip4) || r.hasAddr("lo", vip6) {
		t.Error("VIPs are left on lo")
	}
}

// TestRebooted: a state file that a reboot outlived says nothing about this kernel.
func TestRebooted(t *testing.T) {
	r := newRig(t)
	p := r.start(both...)
	r.ok(p.Kill())
	<-p.Done()
	files, err := filepath.Glob(filepath.Join(r.stateDir, "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("state files %v, %v", files, err)
	}
	data, err := os.ReadFile(files[0])
	r.ok(err)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	r.ok(err)
	other := strings.Replace(string(data), strings.TrimSpace(string(boot)), "another boot", 1)
	r.ok(os.WriteFile(files[0], []byte(other), 0o600))
	p = r.start(both...)
	if st := r.status(); len(st.Added) != 0 || len(st.Sysctls) != 0 {
		t.Errorf("the agent thinks that it changed %v %v", st.Added, st.Sysctls)
	}
	r.stop(p, unix.SIGTERM)

	r.ok(os.WriteFile(files[0], []byte("{garbage"), 0o600))
	r.fails(both, "read state", files[0], "by hand")
}

// TestSystemd: the agent says when it is ready and when it stops.
func TestSystemd(t *testing.T) {
	r := newRig(t)
	socket := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	r.ok(err)
	defer c.Close()
	path, err := agentBinary()
	r.ok(err)
	p, err := r.backend.Start(testenv.Cmd{
		Path: path, Args: append([]string{"run", "--state-dir", r.stateDir, "--log-format", "json"}, both...),
		Env: []string{"NOTIFY_SOCKET=" + socket},
	})
	r.ok(err)
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, 100)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != want {
			t.Fatalf("systemd hears %q, %v; want %s", buf[:n], err, want)
		}
	}
	expect("READY=1")
	if !r.hasAddr("lo", vip4) {
		t.Error("ready without the VIP")
	}
	r.ok(p.Signal(unix.SIGTERM))
	expect("STOPPING=1")
	r.ok(p.Wait(10 * time.Second))
	if !strings.Contains(p.Output(), `"decapsulated_ipv4":0`) {
		t.Errorf("no counters at the end:\n%s", p.Output())
	}
}

// TestNeighbours: nobody on the cable learns that the backend has the VIPs; neither by asking nor by being asked.
func TestNeighbours(t *testing.T) {
	r := newRig(t)
	for _, key := range []string{"net/ipv4/neigh/eth0/mcast_solicit", "net/ipv6/neigh/eth0/mcast_solicit"} {
		r.ok(r.node.SetSysctl(key, "1"))
	}
	r.start(both...)
	link, err := r.node.Link("eth0")
	r.ok(err)
	// resolves makes the node ask for the address and reports whether there is an answer.
	resolves := func(addr netip.Addr) (found bool) {
		t.Helper()
		r.ok(r.node.AddRoute(testenv.Route{Dst: netip.PrefixFrom(addr, addr.BitLen()), Link: "eth0"}))
		c, err := r.node.Dialer().DialContext(context.Background(), "udp", netip.AddrPortFrom(addr, 9).String())
		r.ok(err)
		defer c.Close()
		_, err = c.Write([]byte("who has it?"))
		r.ok(err)
		r.eventually("the question about "+addr.String()+" is settled", func() bool {
			list, err := r.node.Netlink().NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
			r.ok(err)
			i := slices.IndexFunc(list, func(n netlink.Neigh) bool { return n.IP.Equal(net.IP(addr.AsSlice())) })
			found = i >= 0 && list[i].State&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY|unix.NUD_PROBE) != 0
			return found || i >= 0 && list[i].State&unix.NUD_FAILED != 0
		})
		return found
	}
	for _, vip := range []netip.Addr{vip4, vip6} {
		if resolves(vip) {
			t.Errorf("the backend answered for %s", vip)
		}
	}
	for _, addr := range []netip.Addr{here4, here6} {
		if !resolves(addr) {
			t.Errorf("the backend did not answer for its own address %s", addr)
		}
	}

	// The backend asks for a neighbour on behalf of the VIP, and must not name it.
	var fd int
	r.ok(r.node.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(0x0608)) // ETH_P_ARP, network order
		return err
	}))
	defer unix.Close(fd)
	r.ok(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	asks := func(target string) (as netip.Addr) {
		t.Helper()
		d := &testenv.Dialer{Namespace: r.backend, Source: vip4}
		c, err := d.DialContext(context.Background(), "udp", target+":9")
		r.ok(err)
		defer c.Close()
		_, err = c.Write([]byte("hello"))
		r.ok(err)
		buf := make([]byte, 100)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil || n < 28 {
				t.Fatalf("no ARP request for %s: %v", target, err)
			}
			if netip.AddrFrom4([4]byte(buf[24:28])).String() == target {
				return netip.AddrFrom4([4]byte(buf[14:18]))
			}
		}
	}
	if as := asks("10.0.0.77"); as != here4 {
		t.Errorf("the backend asks for a neighbour as %s", as)
	}

	// Without the sysctls it is seen: this test can fail.
	for _, key := range []string{allIgnore, ethIgnore, allAnnounce, ethAnnounce} {
		r.setSysctl(key, "0")
	}
	if as := asks("10.0.0.78"); as != vip4 {
		t.Errorf("without arp_announce the backend asks as %s: this test shows nothing", as)
	}
	r.ok(r.node.DelNeighbour("eth0", vip4))
	if !resolves(vip4) {
		t.Error("without arp_ignore the backend does not answer: this test shows nothing")
	}
	// And an IPv6 VIP would be answered for on the interface itself.
	r.ok(r.backend.AddAddr("eth0", netip.PrefixFrom(vip6, 128)))
	// Not at once, though: the kernel joins the address's multicast group in its own time.
	r.eventually("an address of the interface is answered for", func() bool { return resolves(vip6) })
}

// TestStateIsWhole: what save wrote load reads, and counters come in one group in the log.
func TestStateIsWhole(t *testing.T) {
	s := &store{path: filepath.Join(t.TempDir(), "netns-1"), boot: "this"}
	if st, err := s.load(); err != nil || st.Boot != "" {
		t.Fatalf("no file: %+v, %v", st, err)
	}
	want := state{
		VIPs: []netip.Addr{vip4, vip6}, Added: []netip.Addr{vip6},
		Settings: []setting{{Name: allIgnore, Before: 0, Set: 1}, {Name: ethRPFilter, Link: 7, Before: 1, Set: 2}},
		Programs: []attachment{{Interface: "eth0", Link: 7, Program: 42}},
	}
	if err := s.save(want); err != nil {
		t.Fatal(err)
	}
	got, err := s.load()
	want.Boot, want.PID = "this", os.Getpid()
	if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("%+v became %+v, %v", want, got, err)
	}
	if err := s.remove(); err != nil {
		t.Fatal(err)
	}
	if err := s.remove(); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
	var text strings.Builder
	slog.New(slog.NewTextHandler(&text, nil)).Info("counted", "packets", Counters{ECN: 5})
	if !strings.Contains(text.String(), "packets.ecn=5") {
		t.Errorf("log line %s", text.String())
	}
}
