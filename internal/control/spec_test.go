package control

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

// What a file says reaches the engine, field by field, and the engine takes it.
func TestSpec(t *testing.T) {
	cfg, _, err := config.Parse("f", []byte(`interfaces: [{name: eth0}]
tunnel: {gue_port: 6081, gue_checksum: true, oversize: drop, source_ipv4: 10.7.0.0/16, source_ipv6: 'fd00:7::/64'}
services:
  - {name: l2, vip: 192.0.2.1, protocol: udp, ports: [53, 100-200], forward: l2, backends: [{name: a, address: 10.0.0.1}]}
  - {name: ipip, vip: 192.0.2.2, protocol: tcp, ports: any, forward: ipip, on_no_backend: reject, backends: [{name: a, address: 'fd01::1'}]}
  - {name: gue, vip: 'fd02::3', protocol: tcp, ports: 80, forward: gue, backends: [{name: a, address: 10.0.0.1}]}
  - {name: nat, vip: 192.0.2.4, protocol: tcp, ports: 80, forward: nat, backends: [{name: b, address: 10.0.0.2}, {name: a, address: 10.0.0.1, port: 8080}]}
  - {name: nat-off, vip: 192.0.2.5, protocol: tcp, ports: 81, forward: nat, clamp_mss: off, backends: [{name: a, address: 10.0.0.1}]}
  - {name: nat-1400, vip: 192.0.2.6, protocol: tcp, ports: 82, forward: nat, clamp_mss: 1400, backends: [{name: a, address: 10.0.0.1}]}
  - {name: nat-udp, vip: 192.0.2.7, protocol: udp, ports: 83, forward: nat, backends: [{name: a, address: 10.0.0.1}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	up, down := maglev.MakeAdmit(maglev.Up, maglev.All), maglev.MakeAdmit(maglev.Down, 0)
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	backend := forwarder.BackendSpec{Name: "a", Address: addr("10.0.0.1"), Admit: up}
	six, eight := backend, backend
	six.Address, eight.Port = addr("fd01::1"), 8080
	type ports = []forwarder.PortRange
	type backends = []forwarder.BackendSpec
	want := forwarder.Spec{
		Tunnel: forwarder.Tunnel{Port: 6081, Checksum: true, Source4: prefix("10.7.0.0/16"), Source6: prefix("fd00:7::/64")},
		Services: []forwarder.ServiceSpec{
			{Name: "l2", VIP: addr("192.0.2.1"), Protocol: 17, Ports: ports{{First: 53, Last: 53}, {First: 100, Last: 200}}, Mode: forwarder.L2, Backends: backends{backend}},
			{Name: "ipip", VIP: addr("192.0.2.2"), Protocol: 6, Ports: ports{{First: 0, Last: 65535}}, Mode: forwarder.IPIP, Reject: true, Backends: backends{six}},
			{Name: "gue", VIP: addr("fd02::3"), Protocol: 6, Ports: ports{{First: 80, Last: 80}}, Mode: forwarder.GUE, Backends: backends{backend}},
			{Name: "nat", VIP: addr("192.0.2.4"), Protocol: 6, Ports: ports{{First: 80, Last: 80}}, Mode: forwarder.NAT, ClampMSS: forwarder.ClampAuto,
				Backends: backends{{Name: "b", Address: addr("10.0.0.2"), Admit: down}, eight}},
			{Name: "nat-off", VIP: addr("192.0.2.5"), Protocol: 6, Ports: ports{{First: 81, Last: 81}}, Mode: forwarder.NAT, Backends: backends{backend}},
			{Name: "nat-1400", VIP: addr("192.0.2.6"), Protocol: 6, Ports: ports{{First: 82, Last: 82}}, Mode: forwarder.NAT, ClampMSS: 1400, Backends: backends{backend}},
			{Name: "nat-udp", VIP: addr("192.0.2.7"), Protocol: 17, Ports: ports{{First: 83, Last: 83}}, Mode: forwarder.NAT, Backends: backends{backend}},
		},
	}
	got := Spec(cfg, func(service, backend string) Admission {
		if service == "nat" && backend == "b" {
			return AdmitDown
		}
		return AdmitUp
	})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}

	cfg.Tunnel = config.Tunnel{GUEPort: 6080, Oversize: config.OversizeFragment}
	if tunnel := Spec(cfg, func(string, string) Admission { return AdmitUp }).Tunnel; tunnel != (forwarder.Tunnel{Port: 6080, Fragment: true}) {
		t.Errorf("the tunnel section's defaults give %+v", tunnel)
	}
}
