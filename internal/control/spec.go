package control

import (
	"fmt"
	"slices"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/steer"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

// modes holds the engine's names for ways to a backend.
var modes = map[config.Forward]forwarder.Mode{
	config.ForwardL2: forwarder.L2, config.ForwardIPIP: forwarder.IPIP,
	config.ForwardGUE: forwarder.GUE, config.ForwardNAT: forwarder.NAT,
}

// schedulers holds the names that package maglev has for ways to give out new flows.
var schedulers = map[config.Scheduler]maglev.Scheduler{
	config.SchedulerMaglev: maglev.Maglev, config.SchedulerWRR: maglev.WRR, config.SchedulerLeastConn: maglev.LeastConn,
	config.SchedulerP2C: maglev.P2C, config.SchedulerSource: maglev.Source,
}

// downs holds the engine's names for what becomes of flows whose backend is down.
var downs = map[config.OnDown]forwarder.OnDown{
	config.DownKeep: forwarder.OnDownKeep, config.DownRehash: forwarder.OnDownRehash, config.DownReset: forwarder.OnDownReset,
}

// Spec translates a configuration into what the engine takes. admission says what each backend takes at first.
func Spec(cfg *config.Config, admission func(service, backend string) maglev.Admit) (spec forwarder.Spec) {
	spec.Tunnel = forwarder.Tunnel{
		Port: cfg.Tunnel.GUEPort, Checksum: cfg.Tunnel.GUEChecksum, Fragment: cfg.Tunnel.Oversize == config.OversizeFragment,
	}
	if p := cfg.Tunnel.SourceIPv4; p != nil {
		spec.Tunnel.Source4 = *p
	}
	if p := cfg.Tunnel.SourceIPv6; p != nil {
		spec.Tunnel.Source6 = *p
	}
	spec.ACL = entries(&cfg.Limits.ACL)
	spec.Limits = forwarder.Limits{
		PerSource: rates(cfg.Limits.PerSource.Rates), Node: rates(cfg.Limits.Node),
		IPv4Prefix: cfg.Limits.PerSource.IPv4Prefix, IPv6Prefix: cfg.Limits.PerSource.IPv6Prefix,
	}
	for i := range cfg.Services {
		s := &cfg.Services[i]
		out := forwarder.ServiceSpec{
			Name: s.Name, VIP: s.VIP, Protocol: s.Protocol.Number(), Mode: modes[s.Forward],
			Reject: s.OnNoBackend == config.NoBackendReject, ClampMSS: clampMSS(s.ClampMSS),
			Scheduler: schedulers[s.Scheduler], SourcePrefix: s.SourcePrefix, TableSize: s.TableSize, NoTable: !s.FlowTable,
			OnDown: downs[s.OnDown], Life: life(s),
		}
		for _, p := range s.Ports {
			out.Ports = append(out.Ports, forwarder.PortRange{First: p.First, Last: p.Last})
		}
		out.Defence, out.ACL = defences[s.SYNDefence], entries(&s.Limits.ACL)
		out.PerSource, out.Total = rates(s.Limits.PerSource), rates(s.Limits.Total)
		for _, b := range s.Backends {
			out.Backends = append(out.Backends, forwarder.BackendSpec{
				Name: b.Name, Address: b.Address, Port: b.Port, Weight: uint16(b.Weight), Admit: admission(s.Name, b.Name),
			})
		}
		spec.Services = append(spec.Services, out)
	}
	return spec
}

// life is how long the words of a service's flows live. UDP has no end that a closing word could follow: should there be
// one all the same, it lives like a new one.
func life(s *config.Service) (l conntrack.Life) {
	l[conntrack.Probation], l[conntrack.Established] = conntrack.Ticks(s.Lifetimes.New), conntrack.Ticks(s.Lifetimes.Established)
	l[conntrack.Closing] = conntrack.Ticks(s.Lifetimes.Closing)
	if s.Protocol == config.UDP {
		l[conntrack.Closing] = l[conntrack.Probation]
	}
	return l
}

// defences holds the engine's names for SYN defences.
var defences = map[config.SYNDefence]forwarder.Defence{
	config.SYNOff: forwarder.DefenceOff, config.SYNAuto: forwarder.DefenceAuto, config.SYNChallenge: forwarder.DefenceChallenge,
	config.SYNCookie: forwarder.DefenceCookie,
}

// rates are limits as the engine takes them.
func rates(r config.Rates) forwarder.Rates {
	return forwarder.Rates{Packets: r.Packets, SYNs: r.SYNs, Flows: r.Flows, Burst: r.Burst, Observe: r.Action == config.ActionObserve}
}

// entries are lists and files of prefixes as the XDP program takes them.
func entries(a *config.ACL) (out []steer.Entry) {
	for _, e := range a.Entries {
		out = append(out, steer.Entry{Prefix: e.Prefix, Deny: e.Deny})
	}
	return out
}

// clampMSS is a configured clamp as the engine takes it.
func clampMSS(c config.Clamp) int {
	switch c {
	case config.ClampAuto:
		return forwarder.ClampAuto
	case config.ClampOff:
		return 0
	}
	return int(c)
}

// FastPathNotes says, in a sentence each, for which services of a configuration the fast path forwards nothing, where an interface
// may use it.
func FastPathNotes(cfg *config.Config) (notes []string) {
	if !slices.ContainsFunc(cfg.Interfaces, func(i config.Interface) bool { return i.FastPath != config.FastPathOff }) {
		return nil
	}
	spec := Spec(cfg, func(_, _ string) maglev.Admit { return 0 })
	for i := range spec.Services {
		s := &spec.Services[i]
		if why := forwarder.FastProblem(s, &spec.Limits, &spec.Tunnel); why != "" {
			notes = append(notes, fmt.Sprintf("service %s: no fast path: %s", s.Name, why))
		}
	}
	return notes
}
