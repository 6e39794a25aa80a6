package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"
)

// The functions here walk the file in the order of the schema and fill a Config; what has been refused stays zero, and
// rules that span fields are applied to what has not.

func (v value) config() *Config {
	c := &Config{}
	top, ok := v.mapping()
	if !ok {
		return nil
	}
	c.Node = top.node()
	c.StateDir, _ = top.field("state_dir").absolutePath()

	group := top.section("group")
	c.Group.Peers, _ = group.field("peers").integer(1, maxPeers)
	c.Group.SeedFile, c.Group.Seed = group.seed(c.Group.Peers)

	control := top.section("control")
	c.Control = control.control()

	c.Interfaces = top.field("interfaces").interfaces()
	c.Workers, _ = top.field("workers").integer(0, maxWorkers)
	c.CPUs, _ = top.field("cpus").cpus()
	if c.Workers > len(c.CPUs) && len(c.CPUs) > 0 {
		top.field("workers").refuseAs(fmt.Sprintf("%d workers for %d cores", c.Workers, len(c.CPUs)),
			"at most as many as cpus has cores", "each worker has a core of its own")
	}
	c.BusyPoll, _ = top.field("busy_poll").boolean()
	c.Flows, _ = top.field("flows").amount(minFlows, maxFlows)
	c.Tunnel = top.section("tunnel").tunnel()
	c.Services = top.field("services").services()
	metrics := top.section("metrics")
	c.Metrics.Listen, _ = metrics.field("listen").addrPort()
	c.DrainTime, _ = top.field("drain_time").duration(0, time.Hour)

	log := top.section("log")
	c.Log.Level, _ = enum(log.field("level"), "debug", "info", "warn", "error")
	c.Log.Format, _ = enum(log.field("format"), "text", "json")
	return c
}

// node returns the node's name, or the host name.
func (m mapping) node() string {
	if v := m.field("node"); !v.missing() {
		s, _ := v.name()
		return s
	}
	host, err := os.Hostname()
	if err != nil || !namePattern.MatchString(host) {
		v := m.at
		v.path, v.schema = "node", "node"
		v.refuseAs("no node, and the host name "+quote(host), v.expected(), "set node")
	}
	return host
}

func (m mapping) seed(peers int) (file string, seed Seed) {
	v := m.field("seed_file")
	if v.missing() {
		if peers > 1 {
			m.at.refuseAs(fmt.Sprintf("%d peers and no seed_file", peers), "the same seed_file on every node of the group",
				"head -c 32 /dev/urandom > FILE makes one")
		}
		return "", Seed{}
	}
	file, ok := v.absolutePath()
	if !ok || !v.d.references {
		return file, Seed{}
	}
	seed, mode, err := readSeed(file)
	if err != nil {
		var pathError *fs.PathError
		if errors.As(err, &pathError) {
			err = pathError.Err
		}
		v.refuseAs(fmt.Sprintf("%s: %v", quote(file), err), fmt.Sprintf("a file of %d to %d bytes that can be read", minSeed, maxSeed),
			"head -c 32 /dev/urandom > FILE makes one; every node of the group needs the same")
		return file, Seed{}
	}
	if mode.Perm()&0o007 != 0 {
		v.warn(fmt.Sprintf("%s has mode %04o: anyone on this machine can use the group's secret; chmod 600 it", quote(file), mode.Perm()))
	}
	return file, seed
}

func (m mapping) control() (c Control) {
	v := m.field("socket")
	c.Socket, _ = v.absolutePath()
	if len(c.Socket) > maxSocketPath {
		v.refuseAs(fmt.Sprintf("%d bytes", len(c.Socket)), fmt.Sprintf("a path of at most %d bytes", maxSocketPath), "the kernel takes no longer ones")
	}
	v = m.field("group")
	c.Group, _ = v.groupName()
	if c.Group != "" && v.d.references {
		if err := lookupGroup(c.Group); err != nil {
			v.refuseAs(quote(c.Group), "a group of this machine", err.Error())
		}
	}
	return c
}

func (m mapping) tunnel() (t Tunnel) {
	port, _ := m.field("gue_port").integer(1, 65535)
	t.GUEPort = uint16(port)
	t.GUEChecksum, _ = m.field("gue_checksum").boolean()
	t.SourceIPv4 = m.field("source_ipv4").prefix(true)
	t.SourceIPv6 = m.field("source_ipv6").prefix(false)
	return t
}

func (v value) interfaces() (out []Interface) {
	elements, ok := v.list()
	if ok && len(elements) == 0 {
		v.refuseAs("no interface", "at least one", "")
	}
	seen := make(names)
	for _, e := range elements {
		m, ok := e.mapping()
		if !ok {
			continue
		}
		var i Interface
		name := m.field("name")
		i.Name, _ = name.interfaceName()
		seen.once(name, i.Name, "interface")
		i.Mode, _ = enum(m.field("mode"), ModeAuto, ModeZeroCopy, ModeCopy)
		i.Queues, _ = m.field("queues").queues()
		out = append(out, i)
	}
	return out
}

// names remembers where a word was first used.
type names map[string]value

// once refuses a word that was used before. Words that were refused are empty and pass.
func (n names) once(at value, word, what string) {
	if word == "" {
		return
	}
	if first, again := n[word]; again {
		at.refuseAs(fmt.Sprintf("%s again, after line %d", quote(word), first.node.Line), "another "+what, "")
		return
	}
	n[word] = at
}

// placed is a service and where its parts stand.
type placed struct {
	Service
	vip, ports value
	addresses  []value // of Backends, alike in order
}

func (v value) services() (out []Service) {
	elements, ok := v.list()
	switch {
	case ok && len(elements) == 0:
		v.refuseAs("no service", "at least one", "")
	case len(elements) > maxServices:
		v.refuseAs(fmt.Sprintf("%d services", len(elements)), fmt.Sprintf("at most %d", maxServices), "")
	}
	seen := make(names)
	var all []placed
	slots := 0
	for _, e := range elements {
		m, ok := e.mapping()
		if !ok {
			continue
		}
		s := m.service(seen)
		slots += len(s.Backends)
		all = append(all, s)
		out = append(out, s.Service)
	}
	if slots > maxSlots {
		v.refuseAs(fmt.Sprintf("%d backends in all", slots), fmt.Sprintf("at most %d", maxSlots), "")
	}
	refuseOverlaps(all)
	refuseLoops(all)
	return out
}

func (m mapping) service(seen names) (s placed) {
	name := m.field("name")
	s.Name, _ = name.name()
	seen.once(name, s.Name, "name")
	s.vip = m.field("vip")
	s.VIP, _ = s.vip.address()
	s.Protocol, _ = enum(m.field("protocol"), TCP, UDP)
	s.ports = m.field("ports")
	s.Ports, _ = s.ports.ports()
	s.Forward, _ = enum(m.field("forward"), ForwardL2, ForwardIPIP, ForwardGUE)
	s.Scheduler, _ = enum(m.field("scheduler"), SchedulerMaglev)
	if v := m.field("check"); !v.missing() {
		if check, ok := v.mapping(); ok {
			s.Check = check.check(&s.Service)
		}
	}
	m.backends(&s)
	return s
}

func (m mapping) check(s *Service) *Check {
	c := &Check{}
	c.Type, _ = enum(m.field("type"), CheckTCP, CheckHTTP)
	if v := m.field("port"); !v.missing() {
		n, _ := v.integer(1, 65535)
		c.Port = uint16(n)
	} else if port, single := s.Ports.Single(); single && s.Protocol == TCP {
		c.Port = port
	} else if len(s.Ports) > 0 && s.Protocol != "" {
		m.at.refuseAs("no port", kinds["port"], "only a TCP service with a single port lends it to its check")
	}
	if v, given := m.present["path"]; given && c.Type == CheckTCP {
		v.refuseAs("a path", "none", "a tcp check asks for nothing; type: http does")
	} else if c.Type == CheckHTTP {
		c.Path, _ = m.field("path").urlPath()
	}
	interval, timeout := m.field("interval"), m.field("timeout")
	c.Interval, _ = interval.duration(100*time.Millisecond, time.Hour)
	c.Timeout, _ = timeout.duration(10*time.Millisecond, time.Hour)
	if c.Interval != 0 && c.Timeout >= c.Interval {
		timeout.refuseAs(fmt.Sprintf("a timeout of %v for an interval of %v", c.Timeout, c.Interval), "a timeout shorter than the interval", "")
	}
	c.Rise, _ = m.field("rise").integer(1, maxRiseAndFall)
	c.Fall, _ = m.field("fall").integer(1, maxRiseAndFall)
	return c
}

func (m mapping) backends(s *placed) {
	v := m.field("backends")
	elements, ok := v.list()
	switch {
	case ok && len(elements) == 0:
		v.refuseAs("no backend", "at least one", "a service without any would drop all of its packets")
	case len(elements) > maxBackends:
		v.refuseAs(fmt.Sprintf("%d backends", len(elements)), fmt.Sprintf("at most %d", maxBackends), "")
	case len(elements) > evenBackends:
		v.warn(fmt.Sprintf("%d backends share a lookup table of 65537 entries, so that their shares differ by more than a hundredth", len(elements)))
	}
	seen, addresses := make(names), make(names)
	for _, e := range elements {
		b, ok := e.mapping()
		if !ok {
			continue
		}
		var out Backend
		name, address := b.field("name"), b.field("address")
		out.Name, _ = name.name()
		seen.once(name, out.Name, "name")
		if out.Address, ok = address.address(); ok {
			addresses.once(address, out.Address.String(), "address")
			if s.Forward == ForwardL2 && s.VIP.IsValid() && s.VIP.Is4() != out.Address.Is4() {
				address.refuseAs(out.Address.String()+" behind the VIP "+s.VIP.String(), "an address of the VIP's family",
					"forward: l2 sends the packet as it is; ipip and gue cross families")
			}
		}
		s.Backends = append(s.Backends, out)
		s.addresses = append(s.addresses, address)
	}
}

// refuseOverlaps finds services that want the same packets.
func refuseOverlaps(all []placed) {
	type claim struct {
		PortRange
		by *placed
	}
	type endpoint struct {
		vip      netip.Addr
		protocol Protocol
	}
	claims := make(map[endpoint][]claim)
	for i := range all {
		s := &all[i]
		if !s.VIP.IsValid() || s.Protocol == "" {
			continue
		}
		e := endpoint{s.VIP, s.Protocol}
		for _, r := range s.Ports {
			claims[e] = append(claims[e], claim{r, s})
		}
	}
	refused := make(map[*placed]bool)
	for e, list := range claims {
		slices.SortStableFunc(list, func(a, b claim) int { return cmp.Compare(a.First, b.First) })
		// The claim that reaches furthest so far is enough to find every service that overlaps an earlier one.
		furthest := list[0]
		for _, c := range list[1:] {
			if c.First <= furthest.Last && c.by != furthest.by {
				first, second := furthest.by, c.by
				if !first.ports.before(second.ports) {
					first, second = second, first
				}
				if !refused[second] {
					refused[second] = true
					second.ports.refuseAs(fmt.Sprintf("port %d of %s %s, which the service on line %d takes", max(c.First, 1), e.vip, e.protocol, first.ports.node.Line),
						"ports that no other service of the VIP and protocol takes", "")
				}
			}
			if c.Last > furthest.Last {
				furthest = c
			}
		}
	}
}

// before reports whether v stands before w in the file.
func (v value) before(w value) bool {
	return cmp.Or(cmp.Compare(v.node.Line, w.node.Line), cmp.Compare(v.node.Column, w.node.Column)) <= 0
}

// refuseLoops finds backends whose address is a VIP: their packets would come back to a balancer.
func refuseLoops(all []placed) {
	vips := make(map[netip.Addr]int)
	for i := range all {
		if s := &all[i]; s.VIP.IsValid() {
			if _, known := vips[s.VIP]; !known {
				vips[s.VIP] = s.vip.node.Line
			}
		}
	}
	for i := range all {
		for j, b := range all[i].Backends {
			if line, isVIP := vips[b.Address]; isVIP && b.Address.IsValid() {
				all[i].addresses[j].refuseAs(fmt.Sprintf("%s, the VIP of line %d", b.Address, line), "the backend's own address",
					"packets to a VIP would come back to the balancer")
			}
		}
	}
}
