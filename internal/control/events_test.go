package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// happened is what f leaves in of what has happened, in short.
func happened(b *Book, f EventFilter) (list []string) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, e := range b.Events(ctx, "", 0, f).Events {
		list = append(list, fmt.Sprintf("%s %s/%s %s>%s %s: %s", e.Kind, e.Service, e.Backend, e.From, e.To, e.Cause, e.Evidence))
	}
	return list
}

// Everything that happens to a backend and its service is told, with what brought it about.
func TestWhatHappensIsTold(t *testing.T) {
	log, lines := newLog()
	b := NewBook("", log)
	web := service("web", true, "a", "b")
	web.Quorum = 2
	commit(b, web)
	version := uint64(0)
	say := func(list ...BackendHealth) {
		version++
		report(t, b, version, list...)
	}
	with := func(backend string, s State, cause Cause, evidence string) BackendHealth {
		return has(backend, func(h *Health) { h.State, h.Cause, h.Evidence = s, cause, evidence })
	}
	nothing := 0
	say(with("a", StateUp, CauseProbe, "HTTP 200"), with("b", StateUp, CauseProbe, "HTTP 200"))
	say(with("a", StateGoingDown, CauseProbe, "HTTP 500"))
	say(with("a", StateDown, CauseProbe, "HTTP 500"))
	say(with("b", StateDown, CauseProbe, "no answer within 1s"))
	say(with("a", StateGoingUp, CauseProbe, "HTTP 200"))
	say(with("a", StateUp, CauseProbe, "HTTP 200"), with("b", StateUp, CauseProbe, "HTTP 200"))
	say(has("a", func(h *Health) { h.Unready = "HTTP 503" }))
	say(has("b", func(h *Health) { h.Asks = &nothing }))
	say(says("b", StateUp))
	say(says("a", StateUp))
	say(has("a", func(h *Health) { h.EjectedMS, h.Ejected = 5000, "9 of 9 fail" }))
	say(has("b", func(h *Health) { h.EjectedMS, h.Ejected = 5000, "8 of 9 fail" }))
	say(says("a", StateUp), says("b", StateUp))
	commit(b, service("web", false, "a", "b"))
	want := []string{
		"healthd / >reports : test reports",
		"health web/a unknown>up probe: HTTP 200",
		"health web/b unknown>up probe: HTTP 200",
		"service web/ quorum_lost>quorum_met health: 2 of 2 wanted backends are alive",
		"health web/a up>going_down probe: HTTP 500",
		"health web/a going_down>down probe: HTTP 500",
		"service web/ quorum_met>quorum_lost health: 1 of 2 wanted backends are alive, 2 have to be",
		"health web/b up>down probe: no answer within 1s",
		"health web/a down>going_up probe: HTTP 200",
		"health web/a going_up>up probe: HTTP 200",
		"health web/b down>up probe: HTTP 200",
		"service web/ quorum_lost>quorum_met health: 2 of 2 wanted backends are alive",
		"health web/a up>unready readiness: HTTP 503",
		"health web/b up>unready weight: it asks for 0 % of its share",
		"service web/ readiness_counts>readiness_ignored health: none of the backends that are alive is ready",
		"health web/b unready>up readiness: it is ready",
		"service web/ readiness_ignored>readiness_counts health: 2 of 2 wanted backends are alive",
		"health web/a unready>up readiness: it is ready",
		"health web/a up>ejected passive: 9 of 9 fail",
		"health web/b up>ejected passive: 8 of 9 fail",
		"service web/ ejections_count>ejections_ignored health: all backends that are alive are ejected",
		"health web/a ejected>up passive: it is no longer ejected",
		"health web/b ejected>up passive: it is no longer ejected",
		"service web/ ejections_ignored>ejections_count health: 2 of 2 wanted backends are alive",
	}
	if got := happened(b, EventFilter{}); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for line := range strings.Lines(lines.String()) {
		_, is, _ := strings.Cut(line, " is=")
		is, _, _ = strings.Cut(is, " ")
		warn := slices.Contains([]string{"down", "unready", "ejected", ReadinessIgnored, EjectionsIgnored, QuorumLost}, is)
		if warn != strings.Contains(line, "level=WARN") {
			t.Errorf("the level of %s", line)
		}
	}
	if d, _ := b.Detail(EventFilter{"web", "a"}); len(d.Backends[0].History) != maxHistory || d.Backends[0].History[maxHistory-1].To != "up" || d.Backends[0].Switches != 7 {
		t.Errorf("history %+v, %d switches", d.Backends[0].History, d.Backends[0].Switches)
	}
}

// A service without backend ceases to be without once three intervals are over.
func TestFailOpenIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog()
		b := NewBook("", log)
		web := service("web", true, "a", "b", "c")
		web.PanicThreshold = 50
		commit(b, web)
		go b.Run(t.Context())
		report(t, b, 1, says("a", StateUp), says("b", StateUp), says("c", StateUp))
		report(t, b, 2, says("a", StateDown), says("b", StateDown))
		time.Sleep(7 * time.Second)
		report(t, b, 3, says("a", StateUp))
		var got []string
		for _, e := range happened(b, EventFilter{Service: "web"}) {
			if strings.HasPrefix(e, "service") && !strings.Contains(e, "quorum") {
				got = append(got, e)
			}
		}
		want := []string{
			"service web/ health_counts>fail_open health: 1 of 3 wanted backends are alive, less than the panic threshold of 50 %",
			"service web/ fail_open>health_counts health: 2 of 3 wanted backends are alive",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
	})
}

// The ring keeps the last events, and says what is missing; who waits is woken by what it waits for.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog()
		b := NewBook("", log)
		commit(b, service("web", true, "a", "b"))
		over, cancel := context.WithCancel(t.Context())
		cancel()
		if e := b.Events(over, "", 0, EventFilter{}); e.Boot == "" || e.Last != 0 || e.Events == nil || len(e.Events) != 0 {
			t.Errorf("nothing has happened: %+v", e)
		}
		for i := range maxEvents + 100 {
			b.Happened(Event{Kind: KindConfig, Evidence: fmt.Sprint(i)})
		}
		e := b.Events(t.Context(), "", 0, EventFilter{})
		if len(e.Events) != maxEvents || e.Events[0].Seq != 101 || e.Events[0].Evidence != "100" || e.Last != maxEvents+100 || e.Missed != 100 {
			t.Errorf("%d events from %+v, last %d, %d missed", len(e.Events), e.Events[0], e.Last, e.Missed)
		}
		if e := b.Events(t.Context(), e.Boot, 4190, EventFilter{}); len(e.Events) != 6 || e.Missed != 0 {
			t.Errorf("after 4190: %+v", e)
		}
		if e := b.Events(t.Context(), "another boot", 4190, EventFilter{}); len(e.Events) != maxEvents {
			t.Errorf("of another boot: %d events", len(e.Events))
		}
		if len(b.events.ring) != maxEvents {
			t.Errorf("the ring has %d", len(b.events.ring))
		}

		go func() {
			time.Sleep(5 * time.Second)
			report(t, b, 1, says("a", StateUp))
			time.Sleep(5 * time.Second)
			report(t, b, 2, says("b", StateUp))
		}()
		begin := time.Now()
		got := b.Events(t.Context(), e.Boot, e.Last, EventFilter{"web", "b"})
		if len(got.Events) != 1 || got.Events[0].Backend != "b" || time.Since(begin) != 10*time.Second || got.Last <= got.Events[0].Seq-1 {
			t.Errorf("got %+v after %v", got, time.Since(begin))
		}
		limited, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := b.Events(limited, e.Boot, got.Last, EventFilter{}); len(got.Events) != 0 || got.Missed != 0 {
			t.Errorf("nothing more: %+v", got)
		}
	})
}

// What a backend went through stays over a reload, but not over a change of its address.
func TestHistoryOverReloads(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	commit(b, service("web", true, "a", "b"))
	report(t, b, 1, says("a", StateUp), says("b", StateUp))
	commit(b, service("web", true, "a", "b"))
	moved := service("web", true, "a", "b")
	moved.Backends[1].Address = moved.Backends[1].Address.Next()
	commit(b, moved)
	p := b.Prepare(&config.Config{Services: []config.Service{moved}}) // and what is only prepared shares nothing with it
	report(t, b, 2, says("a", StateDown))
	d, err := b.Detail(EventFilter{})
	if err != nil || len(d.Backends[0].History) != 2 || len(d.Backends[1].History) != 0 || len(p.ledger.services[0].backends[0].history) != 1 {
		t.Errorf("%v, %+v", err, d.Backends)
	}
}
