package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fake is a machine with some interfaces. Ways are by the address; all other addresses have none.
func fake(mtus map[string]int, ways map[string]Way) *Machine {
	return &Machine{
		MTU: func(name string) (int, bool) { mtu, ok := mtus[name]; return mtu, ok },
		Way: func(a netip.Addr) Way { return ways[a.String()] },
		// One driver cannot.
		MultiBuffer: func(name string) bool { return name != "old0" },
	}
}

// loadFor loads a file for a machine and returns what is said of it.
func loadFor(t *testing.T, data string, m *Machine) (warnings, problems []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	_, list, err := LoadFor(path, m)
	for _, w := range list {
		warnings = append(warnings, strings.TrimPrefix(w.String(), path))
	}
	if err != nil {
		problems = strings.Split(strings.ReplaceAll(err.Error(), path, ""), "\n")
	}
	return warnings, problems
}

type (
	interfaces = map[string]int
	ways       = map[string]Way
)

// both are ways to both backends of the valid file.
func both(w Way) ways { return ways{"10.0.0.1": w, "10.0.0.2": w} }

func TestMachineWarnings(t *testing.T) {
	over6 := strings.NewReplacer("address: 10.0.0.1", "address: fd01::1", "address: 10.0.0.2", "address: fd01::2")
	narrow := both(Way{Interface: "eth0", MTU: 1500})
	for _, row := range []struct {
		name string
		file string
		mtus interfaces
		ways ways
		want []string
	}{
		{"another machine", valid, interfaces{"lo": 65536}, nil, []string{
			":2:11: interfaces[0].name: not checked: no interface eth0 here",
		}},
		{"one interface is missing", strings.Replace(valid, "  - name: eth0\n", "  - name: eth0\n  - name: eth1\n", 1), interfaces{"eth0": 1500},
			both(Way{Interface: "eth0", MTU: 1600}), []string{
				":3:11: interfaces[1].name: not checked: no interface eth1 here",
			}},
		{"no routes", valid, interfaces{"eth0": 1500}, nil, []string{
			":11:18: services[0].backends[0].address: not checked: no route to 10.0.0.1 here",
		}},
		{"no route, and one too narrow", valid, interfaces{"eth0": 1500}, ways{"10.0.0.1": {Interface: "eth0", MTU: 1500}}, []string{
			":8:14: services[0].forward: 20 bytes of outer headers leave 1480 of the 1500 that a packet to 10.0.0.1 may have, but up to 1500 arrive on eth0; raise the MTU towards the backends to 1520, or have sluice-agent clamp the MSS",
			":13:18: services[0].backends[1].address: not checked: no route to 10.0.0.2 here",
		}},
		{"l2 needs no room", strings.Replace(valid, "ipip", "l2", 1), interfaces{"eth0": 1500}, narrow, nil},
		{"nat needs no room", nat, interfaces{"eth0": 1500}, narrow, nil},
		{"ipip over IPv6", over6.Replace(valid), interfaces{"eth0": 1500}, ways{"fd01::1": {Interface: "eth0", MTU: 1500}, "fd01::2": {Interface: "eth0", MTU: 1500}}, []string{
			":8:14: services[0].forward: 40 bytes of outer headers leave 1460 of the 1500 that a packet to fd01::1 may have, but up to 1500 arrive on eth0; raise the MTU towards the backends to 1540, or have sluice-agent clamp the MSS",
		}},
		{"gue to both families, the narrowest of each", strings.NewReplacer("ipip", "gue", "name: b\n", "name: b\n        address: 10.0.0.3\n      - name: c\n",
			"address: 10.0.0.2", "address: fd01::1").Replace(valid), interfaces{"eth0": 1500},
			ways{"10.0.0.1": {Interface: "eth0", MTU: 1500}, "10.0.0.3": {Interface: "eth0", MTU: 1400}, "fd01::1": {Interface: "eth0", MTU: 1547}}, []string{
				":8:14: services[0].forward: 28 bytes of outer headers leave 1372 of the 1400 that a packet to 10.0.0.3 may have, but up to 1500 arrive on eth0; raise the MTU towards the backends to 1528, or have sluice-agent clamp the MSS",
				":8:14: services[0].forward: 48 bytes of outer headers leave 1499 of the 1547 that a packet to fd01::1 may have, but up to 1500 arrive on eth0; raise the MTU towards the backends to 1548, or have sluice-agent clamp the MSS",
			}},
		{"just room enough", valid, interfaces{"eth0": 1500}, both(Way{Interface: "eth0", MTU: 1520}), nil},
		{"a byte is missing", valid, interfaces{"eth0": 1500}, both(Way{Interface: "eth0", MTU: 1519}), []string{
			":8:14: services[0].forward: 20 bytes of outer headers leave 1499 of the 1519 that a packet to 10.0.0.1 may have, but up to 1500 arrive on eth0; raise the MTU towards the backends to 1520, or have sluice-agent clamp the MSS",
		}},
		{"one interface, its MTU raised for the outer headers", valid, interfaces{"eth0": 1600}, both(Way{Interface: "eth0", MTU: 1600}), nil},
		{"two interfaces, the backends' raised", strings.Replace(valid, "  - name: eth0\n", "  - name: eth0\n  - name: eth1\n", 1),
			interfaces{"eth0": 1500, "eth1": 1600}, both(Way{Interface: "eth1", MTU: 1600}), nil},
		{"jumbo clients before a narrow LAN", strings.Replace(valid, "  - name: eth0\n", "  - name: eth0\n  - name: eth1\n", 1),
			interfaces{"eth0": 9000, "eth1": 1600}, both(Way{Interface: "eth1", MTU: 1600}), []string{
				":9:14: services[0].forward: 20 bytes of outer headers leave 1580 of the 1600 that a packet to 10.0.0.1 may have, but up to 9000 arrive on eth0; raise the MTU towards the backends to 9020, or have sluice-agent clamp the MSS",
			}},
		{"UDP", strings.Replace(valid, "tcp", "udp", 1), interfaces{"eth0": 1500}, narrow, []string{
			":8:14: services[0].forward: 20 bytes of outer headers leave 1480 of the 1500 that a packet to 10.0.0.1 may have, but up to 1500 arrive on eth0; raise the MTU towards the backends to 1520; else tunnel.oversize says what becomes of larger ones",
		}},
		{"UDP over IPv6", strings.NewReplacer("tcp", "udp", "192.0.2.10", "2001:db8::10").Replace(valid), interfaces{"eth0": 1500}, narrow, []string{
			":8:14: services[0].forward: 20 bytes of outer headers leave 1480 of the 1500 that a packet to 10.0.0.1 may have, but up to 1500 arrive on eth0; raise the MTU towards the backends to 1520; else the senders of larger ones are told by ICMP",
		}},
		{"less than IPv6 needs", strings.Replace(valid, "192.0.2.10", "2001:db8::10", 1), interfaces{"eth0": 1500}, both(Way{Interface: "eth0", MTU: 1299}), []string{
			":8:14: services[0].forward: 20 bytes of outer headers leave 1279 of the 1299 that a packet to 10.0.0.1 may have, but up to 1500 arrive on eth0; IPv6 needs 1280: raise the MTU towards the backends to 1520",
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, problems := loadFor(t, row.file, fake(row.mtus, row.ways))
			if len(problems) != 0 {
				t.Errorf("refused: %s", strings.Join(problems, "\n"))
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(row.want, "\n"))
			}
		})
	}
}

func TestMachineRefusals(t *testing.T) {
	wide := both(Way{Interface: "eth0", MTU: 9000})
	own := both(Way{Interface: "eth0", MTU: 1600})
	own["10.0.0.2"] = Way{Local: true}
	summed := "tunnel: {gue_checksum: true}\n"
	for _, row := range []struct {
		name string
		file string
		mtus interfaces
		ways ways
		want []string
	}{
		{"a backend is the machine", valid, interfaces{"eth0": 1500}, own, []string{
			":13:18: services[0].backends[1].address: found 10.0.0.2, an address of this machine, expected the address of another machine (a node cannot be its own backend: what it sends does not come back to it)",
		}},
		{"so with l2", strings.Replace(valid, "ipip", "l2", 1), interfaces{"eth0": 1500}, own, []string{
			":13:18: services[0].backends[1].address: found 10.0.0.2, an address of this machine, expected the address of another machine (a node cannot be its own backend: what it sends does not come back to it)",
		}},
		{"another machine's business", valid, nil, own, nil},
		{"checksums over several buffers", summed + valid, interfaces{"eth0": 9000}, wide, []string{
			":1:24: tunnel.gue_checksum: found true with an MTU of 9000 on eth0, expected false, or an MTU of at most 3500 (larger packets come in several buffers, and are not summed up)",
		}},
		{"checksums over one buffer", summed + valid, interfaces{"eth0": 3500}, wide, nil},
		{"several buffers without checksums", valid, interfaces{"eth0": 9000}, wide, nil},
		{"several buffers, and a driver that has one", strings.Replace(valid, "name: eth0", "name: old0", 1), interfaces{"old0": 9000}, both(Way{Interface: "old0", MTU: 9000}), []string{
			":2:11: interfaces[0].name: found old0 with an MTU of 9000, expected an MTU of at most 3500 (this driver cannot give larger packets, which come in several buffers, to an XDP program)",
		}},
		{"with what the file alone shows", strings.Replace(valid, "ports: 80", "ports: 0", 1), interfaces{"eth0": 1500}, own, []string{
			":7:12: services[0].ports: found 0, expected a port from 1 to 65535, a range such as 8000-8999, a list of both, or any",
			":13:18: services[0].backends[1].address: found 10.0.0.2, an address of this machine, expected the address of another machine (a node cannot be its own backend: what it sends does not come back to it)",
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, got := loadFor(t, row.file, fake(row.mtus, row.ways)); !slices.Equal(got, row.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(row.want, "\n"))
			}
		})
	}
}

// A backend that is the node itself is refused with the reason, however its packets would get there and whatever its weight.
func TestBackendIsTheNodeItself(t *testing.T) {
	own := both(Way{Interface: "eth0", MTU: 1600})
	own["10.0.0.2"] = Way{Local: true}
	for _, forward := range []Forward{ForwardL2, ForwardIPIP, ForwardGUE, ForwardNAT} {
		for _, weight := range []int{0, 100} {
			file := weighing(strings.Replace(valid, "ipip", string(forward), 1), 100, weight)
			_, got := loadFor(t, file, fake(interfaces{"eth0": 1500}, own))
			want := ":15:18: services[0].backends[1].address: found 10.0.0.2, an address of this machine, expected the address of another machine (a node cannot be its own backend: what it sends does not come back to it)"
			if !slices.Equal(got, []string{want}) {
				t.Errorf("%s, weight %d: got\n%s\nwant\n%s", forward, weight, strings.Join(got, "\n"), want)
			}
		}
	}
}
