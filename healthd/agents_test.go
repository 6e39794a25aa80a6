package healthd

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/internal/control"
)

// Agents are asked, and what they say goes along with the reports; one that does not answer once is what it was, and after that it
// is not; one that is no longer to be asked is left out.
func TestAgentsAreAsked(t *testing.T) {
	var fails atomic.Bool
	handler := capability.Handler(func() capability.Answer {
		return capability.Answer{TimeMS: time.Now().Add(-5 * time.Second).UnixMilli(), Cookies: &capability.Cookies{Key: "k"}}
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fails.Load() {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	defer server.Close()
	agent := server.Listener.Addr().String()
	nobody := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 1).String()

	f := newFake()
	f.agents = []string{agent, nobody}
	d := New(f, Options{Name: "test", Version: "v", MostProbes: 10, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { _ = d.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()

	last := func() map[string]control.AgentReport {
		f.mu.Lock()
		defer f.mu.Unlock()
		return maps.Clone(f.answered)
	}
	within := func(what string, ok func(map[string]control.AgentReport) bool) {
		t.Helper()
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			now := last()
			if ok(now) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v", what, now)
			}
		}
	}
	within("both are known", func(now map[string]control.AgentReport) bool {
		a, b := now[agent], now[nobody]
		return a.Error == "" && a.Answer.Cookies != nil && a.Answer.Cookies.Key == "k" && a.SkewMS < -4000 && a.SkewMS > -6000 &&
			b.Error != "" && b.Answer.Cookies == nil
	})
	fails.Store(true)
	within("an agent that answers no more", func(now map[string]control.AgentReport) bool {
		return now[agent].Error != "" && now[agent].Answer.Cookies == nil
	})
	f.change(func() { f.agents, f.gen = []string{agent}, f.gen+1 })
	f.change(func() { f.boot++; f.forget() }) // to which everything is told
	within("one fewer", func(now map[string]control.AgentReport) bool { _, there := now[nobody]; return !there && len(now) == 1 })
}
