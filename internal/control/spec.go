package control

import (
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

// AdmitWord is the admit word of an admission. The reload that removes a backend makes it draining, not this.
func AdmitWord(a Admission) maglev.Admit {
	if a == AdmitUp {
		return maglev.MakeAdmit(maglev.Up, maglev.All)
	}
	return maglev.MakeAdmit(maglev.Down, 0)
}

// modes holds the engine's names for ways to a backend.
var modes = map[config.Forward]forwarder.Mode{
	config.ForwardL2: forwarder.L2, config.ForwardIPIP: forwarder.IPIP,
	config.ForwardGUE: forwarder.GUE, config.ForwardNAT: forwarder.NAT,
}

// Spec translates a configuration into what the engine takes. admission says what each backend takes at first.
func Spec(cfg *config.Config, admission func(service, backend string) Admission) (spec forwarder.Spec) {
	spec.Tunnel = forwarder.Tunnel{
		Port: cfg.Tunnel.GUEPort, Checksum: cfg.Tunnel.GUEChecksum, Fragment: cfg.Tunnel.Oversize == config.OversizeFragment,
	}
	if p := cfg.Tunnel.SourceIPv4; p != nil {
		spec.Tunnel.Source4 = *p
	}
	if p := cfg.Tunnel.SourceIPv6; p != nil {
		spec.Tunnel.Source6 = *p
	}
	for i := range cfg.Services {
		s := &cfg.Services[i]
		out := forwarder.ServiceSpec{
			Name: s.Name, VIP: s.VIP, Protocol: s.Protocol.Number(), Mode: modes[s.Forward],
			Reject: s.OnNoBackend == config.NoBackendReject, ClampMSS: clampMSS(s.ClampMSS),
		}
		for _, p := range s.Ports {
			out.Ports = append(out.Ports, forwarder.PortRange{First: p.First, Last: p.Last})
		}
		for _, b := range s.Backends {
			out.Backends = append(out.Backends, forwarder.BackendSpec{
				Name: b.Name, Address: b.Address, Port: b.Port, Admit: AdmitWord(admission(s.Name, b.Name)),
			})
		}
		spec.Services = append(spec.Services, out)
	}
	return spec
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
