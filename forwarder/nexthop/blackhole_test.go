//go:build linux

package nexthop

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestBlackholes(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	vips := parse("192.0.2.10", "2001:db8:77::10", "192.0.2.11")
	inside := func(f func() error) error { return l.node.Do(f) }
	for range 2 {
		l.ok(inside(func() error { return EnsureBlackhole(vips) }))
	}
	list := func() (out []string) {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := l.node.Netlink().RouteList(nil, family)
			l.ok(err)
			for _, r := range routes {
				if r.Type == unix.RTN_BLACKHOLE {
					out = append(out, r.Dst.String())
				}
			}
		}
		return out
	}
	if got := fmt.Sprint(list()); got != "[192.0.2.10/32 192.0.2.11/32 2001:db8:77::10/128]" {
		t.Errorf("blackholes: %s", got)
	}
	w := l.watch("192.0.2.10", "2001:db8:77::10")
	for a, h := range w.Hops() {
		if h.State != NoRoute || !strings.Contains(h.Problem, "blackhole") {
			t.Errorf("%s: %+v, want a blackhole", a, h)
		}
	}

	// Somebody else's route in the same place is an error, and stays. The others are added all the same.
	_, theirs, _ := net.ParseCIDR("192.0.2.20/32")
	l.ok(l.node.Netlink().RouteAdd(&netlink.Route{Dst: theirs, Gw: net.ParseIP("10.0.0.11"), Priority: blackholeMetric}))
	err := inside(func() error { return EnsureBlackhole(parse("192.0.2.20", "192.0.2.21")) })
	if err == nil || !strings.Contains(err.Error(), "192.0.2.20") || strings.Contains(err.Error(), "192.0.2.21") {
		t.Errorf("a stranger's route in the place: error %v", err)
	}
	if got := fmt.Sprint(list()); !strings.Contains(got, "192.0.2.21/32") || strings.Contains(got, "192.0.2.20") {
		t.Errorf("blackholes beside a stranger's route: %s", got)
	}

	// A stranger's blackhole survives the clean-up.
	_, strange, _ := net.ParseCIDR("192.0.2.99/32")
	l.ok(l.node.Netlink().RouteAdd(&netlink.Route{Dst: strange, Type: unix.RTN_BLACKHOLE}))
	l.ok(inside(func() error { return RemoveBlackholesExcept(parse("192.0.2.11")) }))
	if got := fmt.Sprint(list()); got != "[192.0.2.99/32 192.0.2.11/32]" && got != "[192.0.2.11/32 192.0.2.99/32]" {
		t.Errorf("after the clean-up: %s", got)
	}
}
