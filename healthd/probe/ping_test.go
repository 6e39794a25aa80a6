package probe

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/testenv"
)

// The kernel's own replies, by both kinds of sockets and in both families, with a host that does not reply.
func TestPing(t *testing.T) {
	e := testenv.ForTest(t)
	a, err := e.Namespace("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.Namespace("b")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Veth(testenv.End{Namespace: a, Name: "eth0"}, testenv.End{Namespace: b, Name: "eth0"}, 1); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		ns     *testenv.Namespace
		prefix string
	}{{a, "10.9.0.1/24"}, {a, "fd09::1/64"}, {b, "10.9.0.2/24"}, {b, "fd09::2/64"}} {
		if err := x.ns.AddAddr("eth0", netip.MustParsePrefix(x.prefix)); err != nil {
			t.Fatal(err)
		}
	}
	p := New(Options{})
	for _, c := range []struct{ kind, groups string }{{"datagram", "0 0"}, {"raw", "1 0"}} {
		if err := a.SetSysctl("net.ipv4.ping_group_range", c.groups); err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			address  string
			want     verdict
			evidence string
		}{
			{"10.9.0.2", good, "echo reply"},
			{"fd09::2", good, "echo reply"},
			{"127.0.0.1", good, "echo reply"},
			{"::1", good, "echo reply"},
			{"10.9.0.77", failing, "no answer within 300ms"},
			{"fd09::77", failing, "no answer within 300ms"},
			{"203.0.113.1", failing, "network unreachable"},
		} {
			t.Run(c.kind+"/"+x.address, func(t *testing.T) {
				check := config.Check{Type: config.CheckPing}
				if x.want == failing {
					check.Timeout = config.Duration(quick)
				}
				to := target(netip.AddrPortFrom(netip.MustParseAddr(x.address), 0), check)
				if err := a.Do(func() error { expect(t, p, to, x.want, x.evidence); return nil }); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
	// Here the groups are those of the second round: none.
	without := func(f func()) error {
		return a.Do(func() error { // on a thread of its own, which capset is about
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			if err := unix.Capget(&header, &data[0]); err != nil {
				return err
			}
			less := data
			less[0].Effective &^= 1 << unix.CAP_NET_RAW
			if err := unix.Capset(&header, &less[0]); err != nil {
				return err
			}
			f()
			return unix.Capset(&header, &data[0])
		})
	}
	for _, address := range []string{"10.9.0.2", "fd09::2"} {
		to := target(netip.AddrPortFrom(netip.MustParseAddr(address), 0), config.Check{Type: config.CheckPing})
		if err := without(func() { expect(t, p, to, nothing, "net.ipv4.ping_group_range, or CAP_NET_RAW") }); err != nil {
			t.Fatal(err)
		}
	}
}
