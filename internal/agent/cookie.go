//go:build linux

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/internal/seed"
)

// The kernel's function that makes a connection of a segment (net/core/filter.c, since Linux 6.9).
const cookieFunction = "bpf_sk_assign_tcp_reqsk"

const synCookies = "net/ipv4/tcp_syncookies" // for IPv6 too

// clockTolerance is how wrong the programs' idea of the time of day may be: little beside the 32 seconds of an epoch.
const clockTolerance = 100 * time.Millisecond

// readCookieSecret reads the seed file of the nodes' group. open says that not only its owner can read it.
func readCookieSecret(path string) (secret [32]byte, open bool, err error) {
	group, mode, err := seed.Read(path)
	if err != nil {
		return secret, false, fmt.Errorf("read cookie seed %s: %w; give a copy of the file that group.seed_file of the nodes names, of %d to "+
			"%d bytes", path, err, seed.Min, seed.Max)
	}
	secret, err = guard.CookieSecret(group[:])
	return secret, mode&0o077 != 0, err
}

// cookiesPossible says what is missing for accepting SYN cookies, in the kernel, of capabilities, or of sysctls that the
// agent does not set.
func cookiesPossible() error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("accept SYN cookies: read the kernel's types: %w; a kernel with CONFIG_DEBUG_INFO_BTF is needed", err)
	}
	var f *btf.Func
	if err := kernel.TypeByName(cookieFunction, &f); err != nil {
		return fmt.Errorf("accept SYN cookies: this kernel has no %s; Linux 6.9 or newer with CONFIG_SYN_COOKIES is needed, or leave "+
			"--cookie-seed out and let nodes defend with challenge", cookieFunction)
	}
	if !capable(unix.CAP_PERFMON, unix.CAP_SYS_ADMIN) {
		return errors.New("accept SYN cookies: CAP_PERFMON is missing; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
	}
	return nil
}

// capable reports whether the calling thread has one of the capabilities.
func capable(any ...int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return true // let the kernel say what is missing
	}
	for _, c := range any {
		if data[c/32].Effective&(1<<(c%32)) != 0 {
			return true
		}
	}
	return false
}

// readCookies is how the host accepts cookies now, with the options that its sysctls allow to be agreed to in its name; the others are
// in refused. It is an error while it cannot accept any, whoever changed it.
func (h *host) readCookies() (c *capability.Cookies, refused []string, err error) {
	now, err := readSysctl(synCookies)
	if err == nil && now == 0 {
		err = fmt.Errorf("accept SYN cookies: sysctl %s was set to 0: connections that nodes made by SYN cookies are reset; set it to 1", synCookies)
	}
	if err != nil {
		return nil, nil, err
	}
	c = &capability.Cookies{Version: guard.CookieVersion, Key: guard.CookieKeyID(*h.secret), NAT: h.nat}
	for _, m := range h.nat {
		c.IPv4, c.IPv6 = c.IPv4 || m.VIP.Addr().Is4(), c.IPv6 || m.VIP.Addr().Is6()
	}
	for _, vip := range h.vips {
		c.IPv4, c.IPv6 = c.IPv4 || vip.Is4(), c.IPv6 || vip.Is6()
	}
	for _, option := range []struct {
		sysctl  string
		allowed *bool
	}{{"tcp_window_scaling", &c.WindowScale}, {"tcp_sack", &c.SACK}, {"tcp_timestamps", &c.Timestamps}, {"tcp_ecn", &c.ECN}} {
		name := "net/ipv4/" + option.sysctl // for IPv6 too
		now, err := readSysctl(name)
		if err != nil {
			return nil, nil, err
		}
		if *option.allowed = now != 0; now == 0 {
			refused = append(refused, name)
		}
	}
	return c, refused, nil
}

// setCookies gives the programs, loaded with cookies, the secret and the difference between the time of day and the clock that
// they can read, if it has changed by more than clockTolerance since. changed reports whether it had.
func (p *programs) setCookies(secret *[32]byte) (changed bool, err error) {
	difference, err := clockDifference()
	if err != nil {
		return false, err
	}
	if p.clock != 0 && (difference-p.clock).Abs() < clockTolerance {
		return false, nil
	}
	now := agentCookieSettings{Clock: int64(difference)}
	for i := range 2 {
		now.Secret.Ipv4[i] = binary.LittleEndian.Uint64(secret[8*i:])
		now.Secret.Ipv6[i] = binary.LittleEndian.Uint64(secret[16+8*i:])
	}
	if err := p.objs.Cookies.Put(uint32(0), now); err != nil {
		return false, fmt.Errorf("write BPF map: %w", err)
	}
	p.clock = difference
	return true, nil
}

// clockDifference is CLOCK_REALTIME less CLOCK_BOOTTIME: the time of day at which the machine was started, but for leap seconds.
func clockDifference() (time.Duration, error) {
	var real, boot unix.Timespec
	if err := errors.Join(unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot), unix.ClockGettime(unix.CLOCK_REALTIME, &real)); err != nil {
		return 0, fmt.Errorf("read clocks: %w", err)
	}
	return time.Duration(real.Nano() - boot.Nano()), nil
}

// readAccepts reports whether programs with this map of cookies accept any.
func readAccepts(m *ebpf.Map) (bool, error) {
	var now agentCookieSettings
	if err := m.Lookup(uint32(0), &now); err != nil {
		return false, fmt.Errorf("read settings of cookies: %w", err)
	}
	return now.Clock != 0, nil
}

// readCookieSeed reads the secret of SYN cookies, if there is to be one, and finds out whether the host can accept any.
func (h *host) readCookieSeed(path string) error {
	if path == "" {
		return nil
	}
	secret, open, err := readCookieSecret(path)
	if err != nil {
		return err
	}
	if err := cookiesPossible(); err != nil {
		return err
	}
	if open {
		h.log.Warn("others can read the seed of SYN cookies, and forge them: make it readable by its owner only (chmod 600)", "file", path)
	}
	h.secret = &secret
	return nil
}

// followCookies makes the programs follow a change of the time of day, and what is told to those who ask follow the host's sysctls.
// It is an error while the host cannot accept cookies; of no effect without a secret.
func (h *host) followCookies(p *programs) error {
	if h.secret == nil {
		return nil
	}
	changed, err := p.setCookies(h.secret)
	if changed {
		h.log.Info("the time of day was changed: SYN cookies follow it")
	}
	var now *capability.Cookies
	var refused []string
	if err == nil {
		now, refused, err = h.readCookies()
	}
	h.tell.cookies.Store(now)
	// The kernel makes no connection of a cookie with an option that the host refuses; without ECN, one that is deaf to marks.
	if len(refused) > 0 && !slices.Equal(refused, h.refused) {
		h.log.Warn("the host refuses TCP options: of nodes that do not ask what it takes (syn_defence: cookie without a health daemon), "+
			"connections with these are reset, or with ECN take no notice of congestion; allow the options, or run sluice-healthd",
			"sysctls", refused)
	}
	h.refused = refused
	return err
}
