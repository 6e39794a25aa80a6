//go:build linux

package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/testenv"
)

// sluice check, on a node between clients' and backends' networks of some MTU, sees what the kernel there would do.
func TestCheck(t *testing.T) {
	t.Parallel()
	env := testenv.ForTest(t)
	node, err := env.Namespace("node")
	if err != nil {
		t.Fatal(err)
	}
	lan, err := env.Namespace("lan")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"eth0", "eth1"} {
		if err := env.Veth(testenv.End{Namespace: node, Name: link}, testenv.End{Namespace: lan, Name: link}, 1); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"10.0.0.2/24", "fd01::2/64"} {
		if err := node.AddAddr("eth1", netip.MustParsePrefix(p)); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	check := func(interfaces, vip, backend string) (out, told string, err error) {
		t.Helper()
		file := "interfaces: " + interfaces + "\nservices:\n  - {name: web, vip: '" + vip + "', protocol: tcp, ports: 80, forward: ipip, backends: [{name: a, address: '" + backend + "'}]}\n"
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		c := checkCommand()
		c.SetArgs([]string{path})
		c.SetOut(&stdout)
		c.SetErr(&stderr)
		c.SilenceErrors, c.SilenceUsage = true, true
		err = node.Do(func() error { return c.Execute() })
		return stdout.String(), strings.ReplaceAll(stderr.String(), path, ""), err
	}
	const two = "[{name: eth0}, {name: eth1}]"
	good := func(interfaces, vip, backend, warnings string) {
		t.Helper()
		out, told, err := check(interfaces, vip, backend)
		if err != nil || !strings.Contains(out, "good, 1 services, 1 backends") || told != warnings {
			t.Errorf("%s to %s: %v\n%s%s", interfaces, backend, err, out, told)
		}
	}

	good(two, "192.0.2.10", "10.0.0.11", "warning: :3:71: services[0].forward: 20 bytes of outer headers leave 1480 of the 1500 that a packet to 10.0.0.11 may have, "+
		"but up to 1500 arrive on eth0; raise the MTU towards the backends to 1520, or have sluice-agent clamp the MSS\n")
	good(two, "192.0.2.10", "fd01::11", "warning: :3:71: services[0].forward: 40 bytes of outer headers leave 1460 of the 1500 that a packet to fd01::11 may have, "+
		"but up to 1500 arrive on eth0; raise the MTU towards the backends to 1540, or have sluice-agent clamp the MSS\n")
	good("[{name: eth7}]", "192.0.2.10", "10.0.0.11", "warning: :1:21: interfaces[0].name: not checked: no interface eth7 here\n")
	good("[{name: eth1}]", "192.0.2.10", "10.7.0.1", "warning: :3:107: services[0].backends[0].address: not checked: no route to 10.7.0.1 here\n")

	for _, ns := range []*testenv.Namespace{node, lan} {
		if err := ns.SetMTU("eth1", 1600); err != nil {
			t.Fatal(err)
		}
	}
	good(two, "192.0.2.10", "10.0.0.11", "")
	good("[{name: eth1}]", "192.0.2.10", "fd01::11", "")

	// A route's MTU counts, not only the link's.
	err = node.AddRoute(testenv.Route{Dst: netip.MustParsePrefix("10.0.0.12/32"), Link: "eth1", MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	good(two, "192.0.2.10", "10.0.0.12", "warning: :3:71: services[0].forward: 20 bytes of outer headers leave 1380 of the 1400 that a packet to 10.0.0.12 may have, "+
		"but up to 1500 arrive on eth0; raise the MTU towards the backends to 1520, or have sluice-agent clamp the MSS\n")

	// Large frames come in several buffers, if the driver can do that: veth can, a bridge cannot.
	if err := node.SetMTU("eth1", 9000); err != nil {
		t.Fatal(err)
	}
	good("[{name: eth1}]", "192.0.2.10", "10.0.0.11", "")
	if err := node.Bridge("br9", nil, 9000); err != nil {
		t.Fatal(err)
	}
	if _, _, err := check("[{name: br9}]", "192.0.2.10", "10.0.0.11"); err == nil || !strings.Contains(err.Error(), "found br9 with an MTU of 9000, expected an MTU of at most 3500") {
		t.Errorf("a driver without multi-buffer XDP: %v", err)
	}

	for _, own := range []string{"10.0.0.2", "fd01::2"} {
		_, _, err := check(two, "192.0.2.10", own)
		want := path + ":3:107: services[0].backends[0].address: found " + own + ", an address of this machine, expected the address of another machine " +
			"(a node cannot be its own backend: what it sends does not come back to it)"
		if err == nil || err.Error() != want {
			t.Errorf("own address %s: got %v, want %s", own, err, want)
		}
	}
}
