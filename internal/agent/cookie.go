//go:build linux

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/forwarder/guard"
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
	return checkTCPOptions()
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

// checkTCPOptions is an error while the host refuses options that nodes agree to with clients for it: the kernel then makes no
// connection of a cookie, or without ECN one that takes no notice of marks.
func checkTCPOptions() error {
	var problems []error
	for _, s := range []setting{{Name: "tcp_timestamps", Set: 1}, {Name: "tcp_sack", Set: 1}, {Name: "tcp_window_scaling", Set: 1},
		{Name: "tcp_ecn", Set: 2}} {
		now, err := readSysctl("net/ipv4/" + s.Name)
		if err == nil && now == 0 {
			err = fmt.Errorf("accept SYN cookies: sysctl net/ipv4/%s is 0, and nodes agree to it in the host's name; set it to %d, "+
				"the default", s.Name, s.Set)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// checkCookies is an error while the host cannot accept cookies, whoever changed it.
func checkCookies() error {
	now, err := readSysctl(synCookies)
	if err == nil && now == 0 {
		err = fmt.Errorf("accept SYN cookies: sysctl %s was set to 0: connections that nodes made by SYN cookies are reset; set it to 1", synCookies)
	}
	return errors.Join(err, checkTCPOptions())
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

// followCookies makes the programs follow a change of the time of day, and is an error while the host cannot accept cookies; of no
// effect without a secret.
func (h *host) followCookies(p *programs) error {
	if h.secret == nil {
		return nil
	}
	changed, err := p.setCookies(h.secret)
	if err != nil {
		return err
	}
	if changed {
		h.log.Info("the time of day was changed: SYN cookies follow it")
	}
	return checkCookies()
}
