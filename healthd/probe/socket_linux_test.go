package probe

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// A port of this node that nobody listens on is refused, even if the kernel gives it to the probe itself.
func TestConnectionToItself(t *testing.T) {
	ns, err := testenv.ForTest(t).Namespace("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.SetSysctl("net.ipv4.ip_local_port_range", "40000 40000"); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"127.0.0.1:40000", "[::1]:40000"} {
		err := ns.Do(func() error {
			c, err := connect(t.Context(), unix.SOCK_STREAM, 0, netip.MustParseAddrPort(addr), false)
			if err == nil {
				c.Close()
			}
			return err
		})
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
