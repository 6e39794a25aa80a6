package control

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

const testKey = "0123"

// agentOf is the report of an agent of the backend with this last byte, that can everything for the service web.
func agentOf(last byte) AgentReport {
	a := netip.AddrFrom4([4]byte{10, 0, 0, last})
	return AgentReport{Agent: netip.AddrPortFrom(a, 9546).String(), Answer: capability.Answer{
		VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10")},
		Cookies: &capability.Cookies{
			Version: 1, Key: testKey, IPv4: true, WindowScale: true, SACK: true, Timestamps: true, ECN: true,
			NAT: []capability.Mapping{{VIP: netip.MustParseAddrPort("192.0.2.10:80"), Local: netip.AddrPortFrom(a, 8080)}},
		},
	}}
}

func cookieService(defence config.SYNDefence, backends ...string) config.Service {
	s := service("web", false, backends...)
	s.SYNDefence, s.AgentPort, s.Forward = defence, 9546, config.ForwardIPIP
	return s
}

// Whatever keeps a backend from making connections of cookies is told with its name.
func TestCookieProblem(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*config.Service, *AgentReport)
		want   string // part of the error; empty: none
	}{
		{"all is well", func(*config.Service, *AgentReport) {}, ""},
		{"no answer", func(_ *config.Service, r *AgentReport) { *r = AgentReport{Error: "nothing listens"} }, "nothing listens"},
		{"no cookies", func(_ *config.Service, r *AgentReport) { r.Answer.Cookies = nil }, "--cookie-seed"},
		{"another version", func(_ *config.Service, r *AgentReport) { r.Answer.Cookies.Version = 9 }, "version 9"},
		{"another seed", func(_ *config.Service, r *AgentReport) { r.Answer.Cookies.Key = "ffff" }, "another seed (key ffff, here 0123)"},
		{"only IPv6", func(_ *config.Service, r *AgentReport) { r.Answer.Cookies.IPv4 = false }, "IP version of 192.0.2.10"},
		{"another VIP", func(_ *config.Service, r *AgentReport) { r.Answer.VIPs = nil }, "--vip"},
		{"a clock a little behind", func(_ *config.Service, r *AgentReport) { r.SkewMS = -19_000 }, ""},
		{"a clock far behind", func(_ *config.Service, r *AgentReport) { r.SkewMS = -25_000 }, "NTP"},
		{"NAT, as mapped", func(s *config.Service, _ *AgentReport) { s.Forward, s.Backends[0].Port = config.ForwardNAT, 8080 }, ""},
		{"NAT, another port", func(s *config.Service, _ *AgentReport) { s.Forward, s.Backends[0].Port = config.ForwardNAT, 8081 },
			"--nat 192.0.2.10:80=10.0.0.1:8081"},
		{"NAT, no port", func(s *config.Service, _ *AgentReport) { s.Forward = config.ForwardNAT }, "--nat 192.0.2.10:80=10.0.0.1:80 "},
	} {
		s, r := cookieService(config.SYNAuto, "a"), agentOf(1)
		c.change(&s, &r)
		err := CookieProblem(&s, &s.Backends[0], testKey, &r)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error()+" ", c.want)) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

// A service offers what all of its agents agree to, and is ready while all backends that take new flows are.
func TestCookieState(t *testing.T) {
	up, drained := maglev.MakeAdmit(maglev.Up, maglev.All), maglev.MakeAdmit(maglev.Draining, 0)
	s := cookieService(config.SYNAuto, "a", "b")
	limited := agentOf(2)
	limited.Answer.Cookies.SACK, limited.Answer.Cookies.ECN = false, false
	dead := AgentReport{Agent: agentOf(2).Agent, Error: "nothing listens"}
	for _, c := range []struct {
		name    string
		known   []AgentReport
		a, b    maglev.Admit
		offer   forwarder.CookieOffer
		problem string
	}{
		{"both", []AgentReport{agentOf(1), agentOf(2)}, up, up, forwarder.CookieOffer{Ready: true}, ""},
		{"one agrees to less", []AgentReport{agentOf(1), limited}, up, up, forwarder.CookieOffer{Ready: true, NoSACK: true, NoECN: true}, ""},
		{"one is unknown", []AgentReport{agentOf(1)}, up, up, forwarder.CookieOffer{}, "backend b: its agent was not asked yet"},
		{"one is dead", []AgentReport{agentOf(1), dead}, up, up, forwarder.CookieOffer{}, "backend b: nothing listens"},
		{"the dead one drains", []AgentReport{agentOf(1), dead}, up, drained, forwarder.CookieOffer{Ready: true}, ""},
		{"all drain", []AgentReport{agentOf(1), agentOf(2)}, drained, drained, forwarder.CookieOffer{}, "no backend takes new flows"},
	} {
		known := map[string]AgentReport{}
		for _, r := range c.known {
			known[r.Agent] = r
		}
		got := cookieState(&s, viewsOf(&s, testKey, known), []maglev.Admit{c.a, c.b})
		if got.Offer != c.offer || !strings.HasPrefix(got.Problem, c.problem) || c.problem == "" && got.Problem != "" {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	s.AgentPort = 0
	if got := cookieState(&s, nil, nil); got.Offer.Ready || !strings.Contains(got.Problem, "agent_port") {
		t.Errorf("without a port: %+v", got)
	}
}

// cookiesOf is what the services of b offer, after all changes.
func cookiesOf(b *Book) map[string]CookieState {
	b.Changed()
	return b.cookies
}

// The book lists whom to ask, gives notice when an answer changes what can be offered, and only then, and says it in the log once.
func TestBookLearnsOfAgents(t *testing.T) {
	log, lines := newLog()
	b := NewBook("", log)
	b.UseCookieKey(testKey)
	other := service("other", false, "x")
	other.AgentPort = 9546
	commit(b, cookieService(config.SYNCookie, "a", "b"), other)
	if got := b.Targets(t.Context(), "", 0); !slices.Equal(got.Agents, []string{"10.0.0.1:9546", "10.0.0.2:9546"}) {
		t.Fatalf("agents to ask: %v", got.Agents)
	}
	noticed(b.Admitted())
	if c := cookiesOf(b); len(c) != 1 || c["web"].Offer.Ready || c["web"].Problem == "" {
		t.Errorf("before any report: %+v", c)
	}
	tell := func(sequence uint64, agents ...AgentReport) bool {
		t.Helper()
		if _, err := b.Report(HealthReport{Boot: b.boot, Source: "test", Version: sequence, Agents: agents}); err != nil {
			t.Fatal(err)
		}
		return noticed(b.Admitted())
	}
	if !tell(1, agentOf(1), agentOf(2)) || !cookiesOf(b)["web"].Offer.Ready {
		t.Errorf("with both agents: %+v", cookiesOf(b))
	}
	later := agentOf(2)
	later.Answer.TimeMS, later.SkewMS = time.Now().UnixMilli(), 30
	if tell(2, agentOf(1), later) {
		t.Error("a notice, and nothing has changed but the time")
	}
	later.SkewMS = 60_000
	if !tell(3, agentOf(1), later) || cookiesOf(b)["web"].Offer.Ready {
		t.Errorf("with a clock that is wrong: %+v", cookiesOf(b))
	}
	cookiesOf(b)
	if got := lines.String(); strings.Count(got, "SYN cookies can be used") != 1 || strings.Count(got, "connections to a backend without them are reset") != 2 ||
		!strings.Contains(got, "backend b: its clock is 1m0s ahead") {
		t.Errorf("log:\n%s", got)
	}
	// A health daemon that has just started has not asked anybody yet.
	if before := cookiesOf(b)["web"]; tell(4) || cookiesOf(b)["web"] != before {
		t.Errorf("after a report without agents: %+v", cookiesOf(b))
	}
	if tell(5, AgentReport{Agent: "10.0.0.77:9546", Error: "nothing listens"}) {
		t.Error("a notice about an agent that nobody asked for")
	}
	commit(b, cookieService(config.SYNCookie, "a"), other) // and b's is forgotten
	commit(b, cookieService(config.SYNCookie, "a", "b"), other)
	if got := cookiesOf(b)["web"].Problem; !strings.HasPrefix(got, "backend b: its agent was not asked yet") {
		t.Errorf("a backend that has come back: %q", got)
	}
	tell(6, agentOf(1), later)
	cookiesOf(b)
	st := Status{Traffic: Traffic{Services: []Service{{ServiceStats: forwarder.ServiceStats{Name: "web"}}, {ServiceStats: forwarder.ServiceStats{Name: "other"}}}}}
	b.Fill(&st)
	if st.Traffic.Services[1].Cookies != "" || !strings.Contains(st.Traffic.Services[0].Cookies, "its clock is") {
		t.Errorf("status: %q and %q", st.Traffic.Services[0].Cookies, st.Traffic.Services[1].Cookies)
	}
}

// Who checks a configuration is told which backends cannot take the cookies of its services, each by its name.
func TestAskAgents(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // and nobody listens on 127.0.0.2
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: capability.Handler(func() capability.Answer {
		a := agentOf(1).Answer
		a.TimeMS = time.Now().UnixMilli()
		return a
	})}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	s, quiet := cookieService(config.SYNCookie, "a", "b"), cookieService(config.SYNAuto, "c")
	quiet.Name = "quiet"
	s.AgentPort = netip.MustParseAddrPort(l.Addr().String()).Port()
	s.Backends[0].Address, s.Backends[1].Address = netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	cfg := &config.Config{Services: []config.Service{s, quiet}}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if got := AskAgents(ctx, cfg); len(got) != 1 || !strings.Contains(got[0], "service web, syn_defence: cookie, backend b: nothing listens") {
		t.Errorf("without a seed: %q", got)
	}
	cfg.Group.Seed = config.Seed{1}
	if got := AskAgents(ctx, cfg); len(got) != 2 || !strings.Contains(got[0], "backend a: its agent has another seed") {
		t.Errorf("with another seed: %q", got)
	}
	s.AgentPort = 0
	cfg.Services = []config.Service{s}
	if got := AskAgents(ctx, cfg); len(got) != 0 {
		t.Errorf("without a port to ask: %q", got)
	}
}
