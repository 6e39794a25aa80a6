package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

// Agents on backends make connections of the SYN cookies that nodes gave to clients. Which of them can, and what options they
// agree to, the health daemon asks them; here that becomes what a service may offer.

const (
	// maxSkew is how much the clocks of a node and of a backend may differ for the backend to be trusted with cookies: less than the 32
	// seconds of an epoch, by the time in which a client answers.
	maxSkew = 20 * time.Second
	// maxAgents is how many agents a report may tell of.
	maxAgents = 1 << 18
)

// CookiesReady is Service.Cookies when there is no problem.
const CookiesReady = "ready"

// CookieState is what is known of the agents of a service's backends.
type CookieState struct {
	Offer   forwarder.CookieOffer
	Problem string // why SYN cookies cannot be used, with the backend's name; empty: they can
}

// CookieProblem says why the agent of a backend cannot make connections of the cookies of a service; nil: it can. key is
// guard.CookieKeyID of the node's secret, or empty where it is not known.
func CookieProblem(s *config.Service, b *config.Backend, key string, r *AgentReport) error {
	c := r.Answer.Cookies
	switch {
	case r.Error != "":
		return errors.New(r.Error)
	case c == nil:
		return errors.New("its agent accepts no SYN cookies: it runs without --cookie-seed, or the host refuses them")
	case c.Version != guard.CookieVersion:
		return fmt.Errorf("its agent takes cookies of version %d, this node makes version %d: one of the two is to be upgraded", c.Version, guard.CookieVersion)
	case c.Key != key && key != "":
		return fmt.Errorf("its agent has another seed (key %s, here %s): give it a copy of group.seed_file", c.Key, key)
	case s.VIP.Is4() && !c.IPv4, s.VIP.Is6() && !c.IPv6:
		return fmt.Errorf("its agent takes no cookies of the IP version of %v", s.VIP)
	}
	if skew := time.Duration(r.SkewMS) * time.Millisecond; skew.Abs() > maxSkew {
		return fmt.Errorf("its clock is %v ahead of this node's: cookies need clocks that agree, see NTP", skew.Round(time.Second))
	}
	if s.Forward != config.ForwardNAT {
		if !slices.Contains(r.Answer.VIPs, s.VIP) {
			return fmt.Errorf("its agent does not take packets to %v: --vip is missing there", s.VIP)
		}
		return nil
	}
	for _, p := range s.Ports {
		for port := int(p.First); port <= int(p.Last); port++ {
			want := capability.Mapping{VIP: netip.AddrPortFrom(s.VIP, uint16(port)), Local: netip.AddrPortFrom(b.Address, uint16(port))}
			if b.Port != 0 {
				want.Local = netip.AddrPortFrom(b.Address, b.Port)
			}
			if !slices.Contains(c.NAT, want) {
				return fmt.Errorf("its agent does not know %v behind NAT: --nat %v=%v is missing there", want.VIP, want.VIP, want.Local)
			}
		}
	}
	return nil
}

// mayUseCookies says whether a service's SYNs may be answered with cookies.
func mayUseCookies(s *config.Service) bool {
	return s.SYNDefence == config.SYNAuto || s.SYNDefence == config.SYNCookie
}

// agentAddress is where the agent of a backend is asked.
func agentAddress(s *config.Service, b *config.Backend) string {
	return netip.AddrPortFrom(b.Address, s.AgentPort).String()
}

// AgentsOf lists the agents to ask: those of the backends of services that may answer with cookies.
func AgentsOf(services []config.Service) []string {
	agents := map[string]bool{}
	for i := range services {
		s := &services[i]
		if !mayUseCookies(s) || s.AgentPort == 0 {
			continue
		}
		for j := range s.Backends {
			agents[agentAddress(s, &s.Backends[j])] = true
		}
	}
	return slices.Sorted(maps.Keys(agents))
}

// AskAgent asks one agent. Its clock is compared with this host's at the middle of the time that it took.
func AskAgent(ctx context.Context, to netip.AddrPort) AgentReport {
	began := time.Now()
	answer, err := capability.Ask(ctx, to)
	if err != nil {
		return AgentReport{Agent: to.String(), Error: err.Error()}
	}
	return AgentReport{Agent: to.String(), Answer: answer, SkewMS: answer.Skew(began.Add(time.Since(began) / 2)).Milliseconds()}
}

// AskAgents asks the agents of all services with syn_defence: cookie, and returns what keeps them from making connections, a sentence
// for each backend. It is for who checks a configuration; a running node learns it from the health daemon.
func AskAgents(ctx context.Context, cfg *config.Config) (problems []string) {
	key := ""
	if !cfg.Group.Seed.IsZero() {
		if secret, err := guard.CookieSecret(cfg.Group.Seed[:]); err == nil {
			key = guard.CookieKeyID(secret)
		}
	}
	var cookie []config.Service
	for _, s := range cfg.Services {
		if s.SYNDefence == config.SYNCookie {
			cookie = append(cookie, s)
		}
	}
	var mu sync.Mutex
	known := map[string]AgentReport{}
	var asking sync.WaitGroup
	few := make(chan struct{}, 64) // at a time: each takes a descriptor
	for _, agent := range AgentsOf(cookie) {
		few <- struct{}{}
		asking.Go(func() {
			defer func() { <-few }()
			r := AskAgent(ctx, netip.MustParseAddrPort(agent))
			mu.Lock()
			defer mu.Unlock()
			known[agent] = r
		})
	}
	asking.Wait()
	for i := range cookie {
		for j := range cookie[i].Backends {
			s, b := &cookie[i], &cookie[i].Backends[j]
			r, asked := known[agentAddress(s, b)]
			if !asked {
				continue // agent_port is 0
			}
			if err := CookieProblem(s, b, key, &r); err != nil {
				problems = append(problems, fmt.Sprintf("service %s, syn_defence: cookie, backend %s: %v", s.Name, b.Name, printable(err.Error())))
			}
		}
	}
	return problems
}

// agentView is what the agent of a backend means to its service.
type agentView struct {
	problem string              // why it cannot make connections of cookies; empty: it can
	cookies *capability.Cookies // nil if it cannot
}

// viewsOf returns what the agents that are known mean to the backends of a service, in their order.
func viewsOf(s *config.Service, key string, known map[string]AgentReport) []agentView {
	views := make([]agentView, len(s.Backends))
	for i := range s.Backends {
		b := &s.Backends[i]
		r, asked := known[agentAddress(s, b)]
		err := errors.New("its agent was not asked yet: does sluice-healthd run?")
		if asked {
			err = CookieProblem(s, b, key, &r)
		}
		if err != nil {
			views[i].problem = printable(err.Error())
		} else {
			views[i].cookies = r.Answer.Cookies
		}
	}
	return views
}

// cookieState is what the agents make of a service. admits is what its backends take, in their order, like views.
func cookieState(s *config.Service, views []agentView, admits []maglev.Admit) (state CookieState) {
	if s.AgentPort == 0 {
		state.Problem = "agents are not asked: agent_port is 0"
		return state
	}
	open := false
	for i := range views {
		v := &views[i]
		if c := v.cookies; c != nil {
			state.Offer.NoWindowScale = state.Offer.NoWindowScale || !c.WindowScale
			state.Offer.NoSACK = state.Offer.NoSACK || !c.SACK
			state.Offer.NoTimestamps = state.Offer.NoTimestamps || !c.Timestamps
			state.Offer.NoECN = state.Offer.NoECN || !c.ECN
		}
		if admits[i].State() == maglev.Up && admits[i].Fraction() > 0 {
			open = true
			if v.problem != "" && state.Problem == "" {
				state.Problem = fmt.Sprintf("backend %s: %s", s.Backends[i].Name, v.problem)
			}
		}
	}
	if !open && state.Problem == "" {
		state.Problem = "no backend takes new flows"
	}
	state.Offer.Ready = state.Problem == ""
	return state
}

// UseCookieKey says what names the secret of the node's SYN cookies (guard.CookieKeyID). Before anything else is asked of b.
func (b *Book) UseCookieKey(key string) { b.cookieKey = key }

// offer returns what the SYN cookies of a service may offer, if that is not what it was. A change is logged. The lock is held.
func (b *Book) offer(known *ledgerService) (state CookieState, changed bool) {
	views, may := b.views[known.name]
	if !may || !known.offers {
		return state, false
	}
	s := &b.services[slices.IndexFunc(b.services, func(s config.Service) bool { return s.Name == known.name })]
	state = cookieState(s, views, known.admits)
	before, old := b.cookies[s.Name]
	b.cookies[s.Name] = state
	switch {
	case old && before == state:
	case state.Problem == "":
		b.log.Info("SYN cookies can be used", "service", s.Name, "window_scale", !state.Offer.NoWindowScale, "sack", !state.Offer.NoSACK,
			"timestamps", !state.Offer.NoTimestamps, "ecn", !state.Offer.NoECN)
	case before.Problem == state.Problem:
	case s.SYNDefence == config.SYNCookie:
		b.log.Warn("SYN cookies are used, and connections to a backend without them are reset", "service", s.Name, "problem", state.Problem)
	default:
		b.log.Info("without SYN cookies, SYNs of a flood would be challenged", "service", s.Name, "why_not_cookies", state.Problem)
	}
	return state, true
}

// viewAgents finds out anew what agents mean to all services, and has Changed tell what comes of it. The lock is held.
func (b *Book) viewAgents() {
	b.views = map[string][]agentView{}
	for i := range b.services {
		s := &b.services[i]
		if mayUseCookies(s) {
			b.views[s.Name] = viewsOf(s, b.cookieKey, b.agents)
			b.ledger.tellOfOffer(b.ledger.byName[s.Name])
		}
	}
	maps.DeleteFunc(b.cookies, func(service string, _ CookieState) bool { return b.views[service] == nil })
}

// learn takes what agents said. Of those that are left out, as by a health daemon that has just started, what they said last holds.
// The lock is held.
func (b *Book) learn(reports []AgentReport) {
	news := false
	for _, r := range reports {
		if !b.asks(r.Agent) {
			continue
		}
		before, known := b.agents[r.Agent]
		news = news || !known || !before.Same(r)
		b.agents[r.Agent] = r
	}
	if news {
		b.viewAgents()
	}
}

// forgetAgents keeps what is known of those agents alone that are to be asked. The lock is held.
func (b *Book) forgetAgents() {
	maps.DeleteFunc(b.agents, func(agent string, _ AgentReport) bool { return !b.asks(agent) })
}

// asks says whether an agent is one of those to ask. The lock is held.
func (b *Book) asks(agent string) bool {
	_, found := slices.BinarySearch(b.toAsk, agent)
	return found
}

// Same says whether two reports lead to the same offers.
func (r AgentReport) Same(o AgentReport) bool {
	far := func(r *AgentReport) bool { return (time.Duration(r.SkewMS) * time.Millisecond).Abs() > maxSkew }
	a, b := r.Answer.Cookies, o.Answer.Cookies
	if r.Error != o.Error || (a == nil) != (b == nil) || far(&r) != far(&o) || !slices.Equal(r.Answer.VIPs, o.Answer.VIPs) {
		return false
	}
	if a == nil {
		return true
	}
	return reflect.DeepEqual(a, b)
}
