package control

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

// What a file says reaches the engine, field by field, and the engine takes it.
func TestSpec(t *testing.T) {
	cfg, _, err := config.Parse("f", []byte(`interfaces: [{name: eth0}]
tunnel: {gue_port: 6081, gue_checksum: true, oversize: drop, source_ipv4: 10.7.0.0/16, source_ipv6: 'fd00:7::/64'}
limits: {deny: [198.51.100.0/24], allow: [198.51.100.7], per_source: {ipv4_prefix: 24, packets: 5k/s, syns: 200/s, flows: 100/s, burst: 2s, action: observe}, node: {packets: 1M/s}}
syn_defence: auto
services:
  - {name: l2, vip: 192.0.2.1, protocol: udp, ports: [53, 100-200], forward: l2, limits: {deny: [203.0.113.0/24], per_source: {packets: 50/s}, total: {flows: 300/s}}, backends: [{name: a, address: 10.0.0.1}]}
  - {name: ipip, vip: 192.0.2.2, protocol: tcp, ports: any, forward: ipip, on_no_backend: reject, backends: [{name: a, address: 'fd01::1'}]}
  - {name: gue, vip: 'fd02::3', protocol: tcp, ports: 80, forward: gue, backends: [{name: a, address: 10.0.0.1}]}
  - {name: nat, vip: 192.0.2.4, protocol: tcp, ports: 80, forward: nat, backends: [{name: b, address: 10.0.0.2}, {name: a, address: 10.0.0.1, port: 8080}]}
  - {name: nat-off, vip: 192.0.2.5, protocol: tcp, ports: 81, forward: nat, clamp_mss: off, backends: [{name: a, address: 10.0.0.1}]}
  - {name: nat-1400, vip: 192.0.2.6, protocol: tcp, ports: 82, forward: nat, clamp_mss: 1400, backends: [{name: a, address: 10.0.0.1}]}
  - {name: nat-udp, vip: 192.0.2.7, protocol: udp, ports: 83, forward: nat, backends: [{name: a, address: 10.0.0.1}]}
  - {name: wrr, vip: 192.0.2.8, protocol: tcp, ports: 80, forward: l2, scheduler: wrr, table_size: 655373, on_down: reset,
     lifetimes: {new: 10s, established: 1h, closing: 5s}, backends: [{name: a, address: 10.0.0.1, weight: 65535}, {name: b, address: 10.0.0.2, weight: 0}]}
  - {name: least-conn, vip: 192.0.2.8, protocol: tcp, ports: 81, forward: l2, scheduler: least-conn, on_down: rehash, backends: [{name: a, address: 10.0.0.1}]}
  - {name: p2c, vip: 192.0.2.8, protocol: udp, ports: 82, forward: l2, scheduler: p2c, on_down: keep, lifetimes: {new: 10s, established: 1m}, backends: [{name: a, address: 10.0.0.1}]}
  - {name: source, vip: 192.0.2.8, protocol: udp, ports: 83, forward: l2, scheduler: source, source_prefix: 24, flow_table: off, backends: [{name: a, address: 10.0.0.1}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	up, down := admitUp, admitDown
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	backend := forwarder.BackendSpec{Name: "a", Address: addr("10.0.0.1"), Weight: 100, Admit: up}
	six, eight := backend, backend
	six.Address, eight.Port = addr("fd01::1"), 8080
	heavy, none := backend, backend
	heavy.Weight, none.Name, none.Address, none.Weight = 65535, "b", addr("10.0.0.2"), 0
	type ports = []forwarder.PortRange
	type backends = []forwarder.BackendSpec
	want := forwarder.Spec{
		Tunnel: forwarder.Tunnel{Port: 6081, Checksum: true, Source4: prefix("10.7.0.0/16"), Source6: prefix("fd00:7::/64")},
		ACL:    []steer.Entry{{Prefix: prefix("198.51.100.0/24"), Deny: true}, {Prefix: prefix("198.51.100.7/32")}},
		Limits: forwarder.Limits{
			PerSource:  forwarder.Rates{Packets: 5000, SYNs: 200, Flows: 100, Burst: 2 * time.Second, Observe: true},
			IPv4Prefix: 24, IPv6Prefix: 64, Node: forwarder.Rates{Packets: 1000_000, Burst: time.Second},
		},
		Services: []forwarder.ServiceSpec{
			{Name: "l2", VIP: addr("192.0.2.1"), Protocol: 17, Ports: ports{{First: 53, Last: 53}, {First: 100, Last: 200}}, Mode: forwarder.L2, Backends: backends{backend},
				ACL:       []steer.Entry{{Prefix: prefix("203.0.113.0/24"), Deny: true}},
				PerSource: forwarder.Rates{Packets: 50, Burst: time.Second}, Total: forwarder.Rates{Flows: 300, Burst: time.Second}},
			{Name: "ipip", VIP: addr("192.0.2.2"), Protocol: 6, Ports: ports{{First: 0, Last: 65535}}, Mode: forwarder.IPIP, Reject: true, Backends: backends{six}},
			{Name: "gue", VIP: addr("fd02::3"), Protocol: 6, Ports: ports{{First: 80, Last: 80}}, Mode: forwarder.GUE, Backends: backends{backend}},
			{Name: "nat", VIP: addr("192.0.2.4"), Protocol: 6, Ports: ports{{First: 80, Last: 80}}, Mode: forwarder.NAT, ClampMSS: forwarder.ClampAuto,
				Backends: backends{{Name: "b", Address: addr("10.0.0.2"), Weight: 100, Admit: down}, eight}},
			{Name: "nat-off", VIP: addr("192.0.2.5"), Protocol: 6, Ports: ports{{First: 81, Last: 81}}, Mode: forwarder.NAT, Backends: backends{backend}},
			{Name: "nat-1400", VIP: addr("192.0.2.6"), Protocol: 6, Ports: ports{{First: 82, Last: 82}}, Mode: forwarder.NAT, ClampMSS: 1400, Backends: backends{backend}},
			{Name: "nat-udp", VIP: addr("192.0.2.7"), Protocol: 17, Ports: ports{{First: 83, Last: 83}}, Mode: forwarder.NAT, Backends: backends{backend}},
		},
	}
	// What the file leaves out has package config's defaults.
	ticks := conntrack.Ticks
	for i := range want.Services {
		s, l := &want.Services[i], cfg.Services[i].Lifetimes
		s.TableSize, s.Life = 65537, conntrack.Life{0, ticks(l.New), ticks(l.Established), ticks(l.Closing)}
		s.Defence = forwarder.DefenceAuto
		if s.Protocol == 17 {
			s.Defence = forwarder.DefenceOff
			s.OnDown, s.Life[conntrack.Closing] = forwarder.OnDownRehash, ticks(l.New)
		}
	}
	tcp := want.Services[1].Life
	l2 := func(s forwarder.ServiceSpec) {
		s.VIP = addr("192.0.2.8")
		if s.Protocol == 6 {
			s.Defence = forwarder.DefenceAuto
		}
		want.Services = append(want.Services, s)
	}
	l2(forwarder.ServiceSpec{Name: "wrr", Protocol: 6, Ports: ports{{First: 80, Last: 80}}, Scheduler: maglev.WRR, TableSize: 655373, OnDown: forwarder.OnDownReset,
		Life: conntrack.Life{0, ticks(10 * time.Second), ticks(time.Hour), ticks(5 * time.Second)}, Backends: backends{heavy, none}})
	l2(forwarder.ServiceSpec{Name: "least-conn", Protocol: 6, Ports: ports{{First: 81, Last: 81}}, Scheduler: maglev.LeastConn, TableSize: 65537,
		OnDown: forwarder.OnDownRehash, Life: tcp, Backends: backends{backend}})
	l2(forwarder.ServiceSpec{Name: "p2c", Protocol: 17, Ports: ports{{First: 82, Last: 82}}, Scheduler: maglev.P2C, TableSize: 65537,
		OnDown: forwarder.OnDownKeep, Life: conntrack.Life{0, 5, ticks(time.Minute), 5}, Backends: backends{backend}})
	l2(forwarder.ServiceSpec{Name: "source", Protocol: 17, Ports: ports{{First: 83, Last: 83}}, Scheduler: maglev.Source, SourcePrefix: 24, TableSize: 65537,
		OnDown: forwarder.OnDownRehash, NoTable: true, Backends: backends{backend}})
	got := Spec(cfg, func(service, backend string) maglev.Admit {
		if service == "nat" && backend == "b" {
			return down
		}
		return up
	})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if len(schedulers) != 5 || len(downs) != 3 {
		t.Errorf("%d schedulers and %d ways of on_down have names in the engine", len(schedulers), len(downs))
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}

	cfg.Tunnel = config.Tunnel{GUEPort: 6080, Oversize: config.OversizeFragment}
	if tunnel := Spec(cfg, func(string, string) maglev.Admit { return up }).Tunnel; tunnel != (forwarder.Tunnel{Port: 6080, Fragment: true}) {
		t.Errorf("the tunnel section's defaults give %+v", tunnel)
	}
}
