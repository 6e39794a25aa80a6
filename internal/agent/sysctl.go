//go:build linux

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

const sysctlRoot = "/proc/sys/"

// The kernel takes the larger of `all` and the interface's value for these three (IN_DEV_MAXCONF in
// include/linux/inetdevice.h), so a larger value is never in the way of a smaller one.
const (
	arpIgnore   = "arp_ignore"   // 1: answer ARP only for addresses of the interface that was asked
	arpAnnounce = "arp_announce" // 2: name an address of the interface as one's own when asking
	rpFilter    = "rp_filter"    // 1: strict, 2: loose
)

func confName(link, key string) string { return "net/ipv4/conf/" + link + "/" + key }

// planSettings returns what has to be set for IPv4 VIPs on these interfaces, and for SYN cookies, and which of the settings of killed agents
// no longer belong to it. For a setting that is in prior, the value from before the first agent is kept.
func planSettings(links []hostLink, ipv4, cookies bool, prior []setting) (next, stale []setting, err error) {
	used := map[string]bool{}
	want := func(name string, link int, value int, needed func(now int) bool) error {
		now, err := readSysctl(name)
		if err != nil {
			return err
		}
		for _, p := range prior {
			// An interface that came anew under an old name has its own values.
			if p.Name == name && p.Link == link {
				used[name] = true
				if needed(now) {
					p.Set = value
				} else if now != p.Set {
					return nil // somebody else has set it since, to something as good
				}
				next = append(next, p)
				return nil
			}
		}
		if needed(now) {
			next = append(next, setting{Name: name, Link: link, Before: now, Set: value})
		}
		return nil
	}
	if ipv4 {
		// What is on `all` alone is enough for the kernel; setting the interfaces too outlasts a `sysctl --system`.
		for _, l := range append([]hostLink{{name: "all"}}, links...) {
			if err := want(confName(l.name, arpIgnore), l.index, 1, func(now int) bool { return now == 0 }); err != nil {
				return nil, nil, err
			}
			if err := want(confName(l.name, arpAnnounce), l.index, 2, func(now int) bool { return now < 2 }); err != nil {
				return nil, nil, err
			}
		}
		all, err := readSysctl(confName("all", rpFilter))
		if err != nil {
			return nil, nil, err
		}
		for _, l := range links {
			if err := want(confName(l.name, rpFilter), l.index, 2, func(now int) bool { return max(now, all) == 1 }); err != nil {
				return nil, nil, err
			}
		}
	}
	if cookies {
		if err := want(synCookies, 0, 1, func(now int) bool { return now == 0 }); err != nil {
			return nil, nil, err
		}
	}
	for _, p := range prior {
		if !used[p.Name] {
			stale = append(stale, p)
		}
	}
	return next, stale, nil
}

// apply gives the sysctl its value, unless it has it.
func (s setting) apply() error {
	now, err := readSysctl(s.Name)
	if err != nil || now == s.Set {
		return err
	}
	return writeSysctl(s.Name, s.Set)
}

// undo gives the sysctl the value that it had before, unless somebody else has changed it since or it has gone with its
// interface.
func (s setting) undo(log *slog.Logger) error {
	if s.Link != 0 {
		_, err := netlink.LinkByIndex(s.Link)
		if gone := (netlink.LinkNotFoundError{}); errors.As(err, &gone) {
			return nil // another interface may have the name now
		}
	}
	now, err := readSysctl(s.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	switch now {
	case s.Before:
		return nil
	case s.Set:
		return writeSysctl(s.Name, s.Before)
	}
	log.Warn("a sysctl was changed by somebody else: left as it is", "sysctl", s.Name, "now", now, "set", s.Set, "before", s.Before)
	return nil
}

func readSysctl(name string) (int, error) {
	data, err := os.ReadFile(sysctlRoot + name)
	if err != nil {
		return 0, fmt.Errorf("read sysctl: %w", err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return v, nil
}

func writeSysctl(name string, value int) error {
	if err := os.WriteFile(sysctlRoot+name, []byte(strconv.Itoa(value)), 0); err != nil {
		return fmt.Errorf("write sysctl: %w; run as root, where /proc/sys can be written", err)
	}
	return nil
}
