package healthd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/healthd/probe"
	"github.com/sluice-lb/sluice/healthd/tunnel"
	"github.com/sluice-lb/sluice/healthd/verdict"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
)

// apply makes what is watched that of targets. A backend that stays keeps its verdict, also when its check has changed: the
// new check has to speak against it often enough. One that has moved to another address is a new backend. It reports false when
// targets are those that there are already.
func (d *Daemon) apply(ctx context.Context, targets control.Targets) (news bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.boot == targets.Boot && d.generation == targets.Generation {
		return false
	}
	started := d.boot != targets.Boot
	d.boot, d.generation = targets.Boot, targets.Generation

	monitors := map[string]*monitor{}
	watchedNow := map[key]*watched{}
	d.order = d.order[:0]
	now := time.Now()
	for i := range targets.Services {
		s := &targets.Services[i]
		settings, check, ready := settingsOf(s), identity(s.Check), identity(s.Readiness)
		for _, b := range s.Backends {
			k := key{s.Name, b.Name}
			w := d.watched[k]
			switch {
			case w == nil || w.address != b.Address || w.checked != (s.Check != nil):
				w = &watched{key: k, address: b.Address, checked: s.Check != nil, judged: verdict.New(settings), settings: settings}
			case w.settings != settings || w.check.identity() != check || w.ready.identity() != ready:
				w.settings = settings
				d.step(w, verdict.Reconfigured{Settings: settings}, now)
			}
			w.passive, w.out = s.Passive, b.Out
			w.check = d.monitorOf(monitors, s, w, s.Check, check, false, &targets.Tunnel)
			w.ready = d.monitorOf(monitors, s, w, s.Readiness, ready, true, &targets.Tunnel)
			watchedNow[k] = w
			d.order = append(d.order, w)
		}
	}
	var added []*monitor
	for id, m := range monitors {
		if d.monitors[id] == nil {
			added = append(added, m)
		}
	}
	removed := 0
	for id, m := range d.monitors {
		if monitors[id] == nil {
			d.schedule.remove(m)
			removed++
		}
	}
	// In an order of their own: phases are the same whenever the same probes are added.
	slices.SortFunc(added, func(a, b *monitor) int { return strings.Compare(a.id, b.id) })
	var gone []*watched
	for k, w := range d.watched {
		if watchedNow[k] != w {
			gone = append(gone, w)
		}
	}
	d.monitors, d.watched = monitors, watchedNow
	d.schedule.add(added)
	d.applyAgents(ctx, targets.Agents)
	d.applyPassive(targets.Services, gone)
	d.log.Info("backends to watch", "backends", len(d.order), "probes", len(monitors), "added", len(added), "removed", removed,
		"agents", len(d.agents), "generation", targets.Generation, "forwarder_started", started)
	if started {
		signal(d.there)
	}
	signal(d.news)
	return true
}

// identity is a check without what it decides: how it probes. It is empty if there is none.
func identity(c *config.Check) string {
	if c == nil {
		return ""
	}
	how := *c
	how.Rise, how.Fall = 0, 0
	text, err := json.Marshal(&how)
	if err != nil {
		panic(fmt.Sprintf("healthd: marshal a check: %v", err)) // it has nothing but words and numbers
	}
	return string(text)
}

// identity is that of the monitor's check. m may be nil.
func (m *monitor) identity() string {
	if m == nil {
		return ""
	}
	return m.how
}

// monitorOf returns the monitor for a check of a backend, whose identity is how, from those that are in list already, or from those of before, or a new one,
// and has it serve the backend. d.mu is held.
func (d *Daemon) monitorOf(list map[string]*monitor, s *control.TargetService, w *watched, c *config.Check, how string, readiness bool, t *control.TargetTunnel) *monitor {
	if c == nil {
		return nil
	}
	id := w.address.String() + " " + how
	target := probe.Target{Service: w.service, Backend: w.backend, Address: w.address, VIP: s.VIP, Check: c}
	switch {
	case c.Type == config.CheckExec: // it is told whom it probes
		id += fmt.Sprint(" ", s.VIP, " ", w.key)
	case c.Via == config.ViaTunnel:
		path := pathOf(s, w.address, t)
		id += fmt.Sprint(" ", path)
		target.Dial = func(ctx context.Context, network string) (net.Conn, error) {
			return d.tunnel.DialContext(ctx, network, path, c.Port)
		}
	}
	m := list[id]
	if m == nil {
		if m = d.monitors[id]; m == nil {
			m = &monitor{id: id, how: how, target: target, check: c, place: nowhere}
		}
		m.users = nil
		list[id] = m
	}
	m.users = append(m.users, user{w, readiness})
	return m
}

// pathOf is how data goes to a backend.
func pathOf(s *control.TargetService, backend netip.Addr, t *control.TargetTunnel) tunnel.Path {
	p := tunnel.Path{Forward: s.Forward, VIP: s.VIP, Backend: backend, GUEPort: t.GUEPort, GUEChecksum: t.GUEChecksum}
	source := t.SourceIPv4
	if backend.Is6() {
		source = t.SourceIPv6
	}
	if source != nil {
		p.Source = *source
	}
	return p
}
