//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/control"
)

// flowsTime is how long a walk over the flow table may take.
const flowsTime = time.Minute

// Drain is Book.Drain, in force when it returns; see control.Daemon.
func (d *daemon) Drain(service, backend string, timeout time.Duration) (control.Backend, error) {
	if err := d.book.Drain(service, backend, timeout); err != nil {
		return control.Backend{}, err
	}
	return d.backend(service, backend)
}

// Undrain is Book.Undrain, in force when it returns; see control.Daemon.
func (d *daemon) Undrain(service, backend string) (control.Backend, error) {
	if err := d.book.Undrain(service, backend); err != nil {
		return control.Backend{}, err
	}
	return d.backend(service, backend)
}

// Maintenance is Book.Maintenance, in force when it returns; see control.Daemon.
func (d *daemon) Maintenance(service, backend string, on bool) (control.Backend, error) {
	if err := d.book.Maintenance(service, backend, on); err != nil {
		return control.Backend{}, err
	}
	return d.backend(service, backend)
}

// backend brings what was just set into force, and tells how a backend stands.
func (d *daemon) backend(service, backend string) (control.Backend, error) {
	d.admit()
	s := d.Status()
	if b := findBackend(&s, service, backend); b != nil {
		return *b, nil
	}
	return control.Backend{}, &control.APIError{Code: http.StatusNotFound, Message: fmt.Sprintf("%s/%s was removed meanwhile", service, backend)}
}

// findBackend returns a configured backend in a status, or nil.
func findBackend(s *control.Status, service, backend string) *control.Backend {
	for i := range s.Traffic.Services {
		for j := range s.Traffic.Services[i].Backends {
			b := &s.Traffic.Services[i].Backends[j]
			if s.Traffic.Services[i].Name == service && b.Name == backend && !b.Leaving {
				return b
			}
		}
	}
	return nil
}

// Flows walks over the flow table; see control.Daemon.
func (d *daemon) Flows(f control.FlowFilter) (control.FlowsReport, error) {
	if err := d.checkFilter(f); err != nil {
		return control.FlowsReport{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), flowsTime)
	defer cancel()
	census, err := d.node.Flows(ctx)
	if err != nil {
		return control.FlowsReport{}, err
	}
	return newFlowsReport(&census, f), nil
}

// checkFilter refuses a service or backend that nobody has, which a typing mistake is. One that is leaving is there.
func (d *daemon) checkFilter(f control.FlowFilter) error {
	services, backends := false, f.Backend == ""
	for _, s := range d.node.Stats().Services {
		if f.Service != "" && s.Name != f.Service {
			continue
		}
		services = true
		for _, b := range s.Backends {
			backends = backends || b.Name == f.Backend
		}
	}
	switch {
	case !services:
		return &control.APIError{Code: http.StatusNotFound, Message: fmt.Sprintf("there is no service %q", f.Service)}
	case !backends:
		return &control.APIError{Code: http.StatusNotFound, Message: fmt.Sprintf("there is no backend %q", f.Backend)}
	}
	return nil
}

// newFlowsReport gives a census its form on the wire.
func newFlowsReport(c *forwarder.FlowCensus, f control.FlowFilter) control.FlowsReport {
	r := control.FlowsReport{TookMS: float64(c.Took) / 1e6, Ages: make([]control.AgeBucket, conntrack.NumAges), Services: []control.FlowsOfService{}}
	for _, n := range c.States {
		r.WalkedWords += n
	}
	for k := range r.Ages {
		r.Ages[k].UpToSeconds = forwarder.AgeBound(k).Seconds()
	}
	for i := range c.Backends {
		b := &c.Backends[i]
		if f.Service != "" && b.Service != f.Service || f.Backend != "" && b.Backend != f.Backend {
			continue
		}
		out := control.FlowsOfBackend{
			Backend: b.Backend, Address: b.Address.String(), Takes: b.Admit.State().String(), Leaving: b.Leaving,
			LongestIdleSeconds: b.LongestIdle().Seconds(), Ages: make([]uint64, conntrack.NumAges),
		}
		for _, s := range []struct {
			state conntrack.State
			to    *uint64
			sum   *uint64
		}{
			{conntrack.Probation, &out.Probation, &r.States.Probation},
			{conntrack.Established, &out.Established, &r.States.Established},
			{conntrack.Closing, &out.Closing, &r.States.Closing},
		} {
			if f.State == "" || f.State == s.state.String() {
				*s.to = uint64(b.States[s.state])
				*s.sum += *s.to
				out.Flows += *s.to
			}
		}
		if f.State == "" { // a census does not tell ages by state
			for k, n := range b.Ages {
				out.Ages[k] = uint64(n)
				r.Ages[k].Flows += uint64(n)
			}
		}
		if n := len(r.Services); n == 0 || r.Services[n-1].Service != b.Service {
			r.Services = append(r.Services, control.FlowsOfService{Service: b.Service})
		}
		s := &r.Services[len(r.Services)-1]
		s.Flows += out.Flows
		s.Backends = append(s.Backends, out)
	}
	return r
}

// Flow tells of one flow; see control.Daemon.
func (d *daemon) Flow(q control.FlowQuery) (control.FlowReport, error) {
	protocol := uint8(packet.ProtoTCP)
	if q.Protocol == "udp" {
		protocol = packet.ProtoUDP
	}
	f, err := d.node.Flow(q.Source, q.Destination, protocol)
	if err != nil {
		return control.FlowReport{}, &control.APIError{Code: http.StatusNotFound, Message: err.Error()}
	}
	target := func(b forwarder.FlowBackend) *control.FlowTarget {
		if b.Name == "" {
			return nil
		}
		return &control.FlowTarget{Backend: b.Name, Address: b.Address.String()}
	}
	r := control.FlowReport{
		Found: f.Found, Service: f.Service, Line: d.node.FlowLine(f.Hash),
		Opens: target(f.Opens), Continues: target(f.Continues),
	}
	if f.Found {
		r.Backend, r.Address, r.Slot = f.Backend.Name, f.Backend.Address.String(), f.Backend.Slot
		r.State, r.IdleSeconds, r.ExpiresInSeconds = f.Word.State().String(), f.Idle.Seconds(), f.Expires.Seconds()
	}
	return r, nil
}

// TopSources tells who opens most flows; see control.Daemon.
func (d *daemon) TopSources(by string, n int) control.TopReport {
	what := map[string]forwarder.Top{"syns": forwarder.TopSYNs, "packets": forwarder.TopPackets, "prefixes": forwarder.TopPrefixes}[by] // else flows
	top, total := d.node.TopSources(what)
	r := control.TopReport{WindowSeconds: forwarder.TopWindow.Seconds(), Sources: []control.TopSource{}}
	for _, c := range top[:min(n, len(top))] {
		s := control.TopSource{Source: what.Name(c), Inserts: c.N, Error: c.Error}
		if total > 0 {
			s.Share = min(float64(c.N)/float64(total), 1)
		}
		r.Sources = append(r.Sources, s)
	}
	return r
}
