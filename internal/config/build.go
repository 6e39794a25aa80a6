package config

import (
	"cmp"
	"fmt"
	"os"
	"time"

	"github.com/sluice-lb/sluice/internal/seed"
	"github.com/sluice-lb/sluice/maglev"
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

	p := &places{}
	c.Interfaces = top.field("interfaces").interfaces(p)
	c.Workers, _ = top.field("workers").integer(0, maxWorkers)
	c.CPUs, _ = top.field("cpus").cpus()
	if c.Workers > len(c.CPUs) && len(c.CPUs) > 0 {
		top.field("workers").refuseAs(fmt.Sprintf("%d workers for %d cores", c.Workers, len(c.CPUs)),
			"at most as many as cpus has cores", "each worker has a core of its own")
	}
	c.BusyPoll, _ = top.field("busy_poll").boolean()
	c.Flows, _ = top.field("flows").amount(minFlows, maxFlows)
	p.tunnel = top.section("tunnel")
	c.Tunnel = p.tunnel.tunnel()
	p.synDefence, _ = top.field("syn_defence").synDefence()
	c.SYNDefence = p.synDefence
	agentPort, _ := top.field("agent_port").integer(0, 65535)
	c.AgentPort, p.agentPort = uint16(agentPort), uint16(agentPort)
	p.programs = top.section("health").programs()
	c.Health.ExecDirectory = p.programs.directory
	limits := top.section("limits")
	c.Limits = limits.limits(p)
	c.Services = top.field("services").services(p)
	metrics := top.section("metrics")
	c.Metrics.Listen, _ = metrics.field("listen").addrPort()
	c.DrainTime, _ = top.field("drain_time").duration(0, time.Hour)
	without := top.section("without_daemon")
	goOn, _ := without.field("for").duration(0, maxWithoutDaemon)
	c.WithoutDaemon.For = Duration(goOn)
	c.WithoutDaemon.Then, _ = enum(without.field("then"), VerdictPass, VerdictDrop)
	c.WithoutDaemon.Pins, _ = without.field("pins").absolutePath()

	log := top.section("log")
	c.Log.Level, _ = enum(log.field("level"), "debug", "info", "warn", "error")
	c.Log.Format, _ = enum(log.field("format"), "text", "json")

	p.warnOfLocalChoice(c.Group.Peers)
	refuseOverlaps(p.services)
	refuseAmbiguous(p.services)
	vips := vipLines(p.services)
	refuseLoops(p.services, vips)
	p.refuseSources(c, vips)
	p.warnOfLimits()
	p.warnOfDenied(c)
	if v.d.machine != nil {
		p.checkMachine(c, v.d.machine)
	}
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

func (m mapping) seed(peers int) (file string, found Seed) {
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
	found, mode, err := seed.Read(file)
	if err != nil {
		v.refuseAs(fmt.Sprintf("%s: %v", quote(file), err), fmt.Sprintf("a file of %d to %d bytes that can be read", seed.Min, seed.Max),
			"head -c 32 /dev/urandom > FILE makes one; every node of the group needs the same")
		return file, Seed{}
	}
	if mode.Perm()&0o007 != 0 {
		v.warn(fmt.Sprintf("%s has mode %04o: anyone on this machine can use the group's secret; chmod 600 it", quote(file), mode.Perm()))
	}
	return file, found
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
	t.Oversize, _ = enum(m.field("oversize"), OversizeFragment, OversizeDrop)
	t.SourceIPv4 = m.field("source_ipv4").prefix(true)
	t.SourceIPv6 = m.field("source_ipv6").prefix(false)
	return t
}

func (v value) interfaces(p *places) (out []Interface) {
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
		i.FastPath, _ = enum(m.field("fast_path"), FastPathAuto, FastPathOn, FastPathOff)
		i.Queues, _ = m.field("queues").queues()
		vlan, _ := m.field("vlan").integer(1, maxVLAN)
		i.VLAN = uint16(vlan)
		out = append(out, i)
		p.interfaces = append(p.interfaces, name)
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

// places is where things stand that rules are about which span fields.
type places struct {
	interfaces []value // names, in the order of Config.Interfaces
	tunnel     mapping
	services   []placed
	synDefence SYNDefence // of services that say nothing else
	agentPort  uint16
	programs   programs // of exec checks
	perSource  limited  // of Config.Limits
	node       limited
}

// placed is a service and where its parts stand.
type placed struct {
	Service
	vip, ports, forward, scheduler value
	addresses, weights             []value // of Backends, alike in order
	perSource, total               limited // of Limits
}

func (v value) services(p *places) (out []Service) {
	elements, ok := v.list()
	switch {
	case ok && len(elements) == 0:
		v.refuseAs("no service", "at least one", "")
	case len(elements) > maxServices:
		v.refuseAs(fmt.Sprintf("%d services", len(elements)), fmt.Sprintf("at most %d", maxServices), "")
	}
	seen := make(names)
	slots := 0
	for _, e := range elements {
		m, ok := e.mapping()
		if !ok {
			continue
		}
		s := m.service(seen, p.programs)
		m.guard(&s, p.synDefence, p.agentPort)
		slots += len(s.Backends)
		p.services = append(p.services, s)
		out = append(out, s.Service)
	}
	if slots > maxSlots {
		v.refuseAs(fmt.Sprintf("%d backends in all", slots), fmt.Sprintf("at most %d", maxSlots), "")
	}
	return out
}

func (m mapping) service(seen names, allowed programs) (s placed) {
	name := m.field("name")
	s.Name, _ = name.name()
	seen.once(name, s.Name, "name")
	s.vip = m.field("vip")
	s.VIP, _ = s.vip.address()
	s.Protocol, _ = enum(m.field("protocol"), TCP, UDP)
	s.ports = m.field("ports")
	s.Ports, _ = s.ports.ports()
	s.forward = m.field("forward")
	s.Forward, _ = enum(s.forward, ForwardL2, ForwardIPIP, ForwardGUE, ForwardNAT)
	s.ClampMSS = m.clamp(&s.Service)
	s.OnNoBackend, _ = enum(m.field("on_no_backend"), NoBackendDrop, NoBackendReject)
	m.flows(&s)
	m.backends(&s)
	m.health(&s.Service, allowed)
	return s
}

func (m mapping) clamp(s *Service) Clamp {
	if s.Forward == ForwardNAT && s.Protocol == TCP {
		c, _ := m.field("clamp_mss").clamp()
		return c
	}
	if v, given := m.present["clamp_mss"]; given && s.Forward != "" && s.Protocol != "" {
		v.refuseAs(v.describe()+" for "+string(s.Protocol)+" and forward: "+string(s.Forward), "none",
			"SYNs are changed for tcp and forward: nat only; with ipip and gue, sluice-agent --clamp-mss changes SYN-ACKs")
	}
	return 0
}

// receives returns the port that all backends receive on, if there is one.
func (s *Service) receives() (port uint16, single bool) {
	service, single := s.Ports.Single()
	port = service
	for i, b := range s.Backends {
		if p := cmp.Or(b.Port, service); i == 0 {
			port = p
		} else if p != port {
			single = false
		}
	}
	return port, single
}

func (m mapping) backends(s *placed) {
	v := m.field("backends")
	elements, ok := v.list()
	switch {
	case ok && len(elements) == 0:
		v.refuseAs("no backend", "at least one", "a service without any would drop all of its packets")
	case len(elements) > maxBackends:
		v.refuseAs(fmt.Sprintf("%d backends", len(elements)), fmt.Sprintf("at most %d", maxBackends), "")
	case s.TableSize != 0 && len(elements) > s.TableSize:
		m.field("table_size").refuseAs(fmt.Sprintf("%d entries for %d backends", s.TableSize, len(elements)), "at least as many as backends",
			fmt.Sprintf("%d gives each of them %d", maglev.NextPrime(len(elements)*evenEntries), evenEntries))
	}
	seen, addresses := make(names), make(names)
	weighed := true
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
			if s.VIP.IsValid() && s.VIP.Is4() != out.Address.Is4() && (s.Forward == ForwardL2 || s.Forward == ForwardNAT) {
				why := "forward: l2 sends the packet as it is; ipip and gue cross families"
				if s.Forward == ForwardNAT {
					why = "forward: nat keeps the client's address; ipip and gue cross families"
				}
				address.refuseAs(out.Address.String()+" behind the VIP "+s.VIP.String(), "an address of the VIP's family", why)
			}
		}
		out.Port = b.backendPort(&s.Service)
		weight := b.field("weight")
		if out.Weight, ok = weight.integer(0, maxWeight); !ok {
			weighed = false
		}
		s.Backends = append(s.Backends, out)
		s.addresses = append(s.addresses, address)
		s.weights = append(s.weights, weight)
	}
	if weighed && len(s.Backends) > 0 && s.TableSize > 0 {
		s.warnOfShares(v)
	}
}

// backendPort reads where a backend receives.
func (m mapping) backendPort(s *Service) uint16 {
	v := m.field("port")
	n, ok := v.integer(1, 65535)
	if !ok {
		return 0
	}
	if s.Forward != "" && s.Forward != ForwardNAT {
		v.refuseAs("a port with forward: "+string(s.Forward), "none",
			"a backend receives on the port that the client used; forward: nat translates it")
		return 0
	}
	if _, single := s.Ports.Single(); len(s.Ports) > 0 && !single {
		v.refuseAs("a port for a service with the ports "+shorten(s.Ports.String()), "none, or a service with a single port",
			fmt.Sprintf("a reply from port %d could belong to any of them", n))
		return 0
	}
	return uint16(n)
}
