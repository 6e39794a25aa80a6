package healthd

import (
	"context"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
)

const (
	askInterval = 5 * time.Second // an agent is asked so often what it can
	askAgain    = time.Second     // and so soon after it has not answered
	askTimeout  = time.Second
	// askFailures is how many times in a row an agent has not to answer for what it said before to count no longer.
	askFailures = 2
)

// asked is one agent that is asked what it can.
type asked struct {
	stop context.CancelFunc
	// Guarded by Daemon.mu.
	report control.AgentReport // Agent is empty before the first answer
	fresh  bool                // the report differs from what was told
}

// applyAgents starts and stops asking so that those are asked that are in the list. Those that stay keep their answer. d.mu is
// held.
func (d *Daemon) applyAgents(ctx context.Context, list []string) {
	wanted := make(map[string]bool, len(list))
	for _, name := range list {
		wanted[name] = true
	}
	for name, a := range d.agents {
		if !wanted[name] {
			a.stop()
			delete(d.agents, name)
		}
	}
	for _, name := range list {
		if d.agents[name] != nil {
			continue
		}
		to, err := netip.ParseAddrPort(name)
		if err != nil {
			d.log.Error("an agent cannot be asked", "agent", name, "error", err)
			continue
		}
		a := &asked{}
		var watch context.Context
		watch, a.stop = context.WithCancel(ctx)
		d.agents[name] = a
		d.asked.Go(func() { d.askAgent(watch, a, to) })
	}
}

// askAgent asks one agent until ctx is done.
func (d *Daemon) askAgent(ctx context.Context, a *asked, to netip.AddrPort) {
	failures := 0
	for wait := mathrand.N(firstProbe); sleep(ctx, wait); {
		limited, cancel := context.WithTimeout(ctx, askTimeout)
		r := control.AskAgent(limited, to)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if r.Error == "" {
			failures, wait = 0, askInterval-askInterval/10+mathrand.N(askInterval/5)
		} else {
			failures, wait = failures+1, askAgain
		}
		d.mu.Lock()
		// One that does not answer once is what it was: connections are made of cookies without it.
		if r.Error == "" || failures >= askFailures || a.report.Agent == "" {
			if a.report.Agent == "" || !r.Same(a.report) {
				a.fresh = true
				signal(d.news)
			}
			a.report = r
		}
		d.mu.Unlock()
	}
}

// knownAgents is what agents have answered, of all or of those that have not been told, in a stable order. It counts as told.
// d.mu is held.
func (d *Daemon) knownAgents(all bool) (list []control.AgentReport) {
	for _, a := range d.agents {
		if a.report.Agent != "" && (all || a.fresh) {
			a.fresh = false
			list = append(list, a.report)
		}
	}
	slices.SortFunc(list, func(a, b control.AgentReport) int { return strings.Compare(a.Agent, b.Agent) })
	return list
}
