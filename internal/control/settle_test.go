package control

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// slowly returns s with a slow start of 100 s: a second is one percent.
func slowly(s config.Service) config.Service {
	s.SlowStart = 100 * time.Second
	return s
}

// shares shows what the backends of the service web take: "a100 b10 c-" (down) or "d~" (draining) or "e!" (cut).
func (l *ledger) shares(now time.Time) string {
	admits := l.services[0].at(now)
	var list []string
	for i, word := range strings.Fields(shown(admits)) {
		word = strings.NewReplacer("down", "-", "draining", "~", "cut", "!").Replace(word)
		list = append(list, l.services[0].backends[i].name+word)
	}
	return strings.Join(list, " ")
}

// What starts slowly, and what does not.
func TestSlowStart(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	var none *ledger
	one := func(s config.Service) []config.Service { return []config.Service{s} }
	web := one(slowly(service("web", true, "a", "b")))
	// running returns a ledger whose a and b have been up for long.
	running := func() *ledger {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp), says("b", StateUp)}, start)
		return l
	}
	hour := func(seconds int) time.Time { return start.Add(time.Hour + time.Duration(seconds)*time.Second) }
	check := func(t *testing.T, l *ledger, now time.Time, want string) {
		t.Helper()
		if got := l.shares(now); got != want {
			t.Errorf("%v after the start: got %s, want %s", now.Sub(start), got, want)
		}
	}

	t.Run("a backend that comes back", func(t *testing.T) {
		l := running()
		check(t, l, start, "a100 b100")
		l.report([]BackendHealth{says("b", StateDown)}, hour(0))
		check(t, l, hour(0), "a100 b-")
		l.report([]BackendHealth{says("b", StateUp)}, hour(1))
		l.report([]BackendHealth{says("b", StateUp)}, hour(5)) // says it again
		check(t, l, hour(1), "a100 b10")
		check(t, l, hour(11), "a100 b10")
		check(t, l, hour(51), "a100 b50")
		check(t, l, hour(100), "a100 b99")
		check(t, l, hour(101), "a100 b100")
		check(t, l, hour(-10), "a100 b10") // a clock that went back
	})
	t.Run("a backend that fails again begins again", func(t *testing.T) {
		l := running()
		for i, s := range []State{StateDown, StateUp, StateDown, StateUp} {
			l.report([]BackendHealth{says("b", s)}, hour(20*i))
		}
		check(t, l, hour(80), "a100 b20")
	})
	t.Run("all that come back one after the other", func(t *testing.T) {
		l := running()
		l.report([]BackendHealth{says("b", StateDown)}, hour(0))
		l.report([]BackendHealth{says("b", StateUp), says("a", StateDown)}, hour(10))
		check(t, l, hour(10), "a- b100") // nobody else is there
		l.report([]BackendHealth{says("a", StateUp)}, hour(30))
		check(t, l, hour(30), "a50 b100") // 10 and 20 percent
		check(t, l, hour(70), "a67 b100") // 40 and 60
		check(t, l, hour(120), "a90 b100")
	})
	t.Run("not at the start of the daemon", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp)}, start)
		check(t, l, start, "a100 b~")
		l.report([]BackendHealth{says("b", StateUp)}, hour(0)) // late, but nothing was known of it before
		check(t, l, hour(0), "a100 b100")
		l.report([]BackendHealth{says("b", StateDown)}, hour(1))
		l.report([]BackendHealth{says("b", StateUp)}, hour(2))
		check(t, l, hour(2), "a100 b10")
	})
	t.Run("one that was down at the start and comes up later", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp), says("b", StateDown)}, start)
		l.report([]BackendHealth{says("b", StateUp)}, hour(0))
		check(t, l, hour(0), "a100 b10")
	})
	t.Run("with last known health from disk", func(t *testing.T) {
		a, b := web[0].Backends[0], web[0].Backends[1]
		l := none.then(web, savedState{health: []saved{{"web", "a", a.Address, Health{State: StateUp}}, {"web", "b", b.Address, Health{State: StateDown}}}}, start)
		check(t, l, start, "a100 b-")
		l.report([]BackendHealth{says("b", StateUp)}, start)
		check(t, l, start, "a100 b10")
	})
	t.Run("not when a service appears", func(t *testing.T) {
		l := none.then(nil, savedState{}, start).then(web, savedState{}, hour(0))
		l.report([]BackendHealth{says("a", StateUp)}, hour(1))
		l.report([]BackendHealth{says("b", StateUp)}, hour(2))
		check(t, l, hour(2), "a100 b100")
	})
	t.Run("not when a service gets its check", func(t *testing.T) {
		l := none.then(one(slowly(service("web", false, "a", "b"))), savedState{}, start).then(web, savedState{}, hour(0))
		l.report([]BackendHealth{says("a", StateUp), says("b", StateUp)}, hour(1))
		check(t, l, hour(1), "a100 b100")
	})
	t.Run("not by fail open, nor by its end", func(t *testing.T) {
		l := running()
		l.report([]BackendHealth{says("a", StateDown), says("b", StateDown)}, hour(0))
		check(t, l, hour(0), "a100 b100")
		l.report([]BackendHealth{says("a", StateUp)}, hour(10))
		check(t, l, hour(10), "a100 b-")
		l.report([]BackendHealth{says("b", StateUp)}, hour(20)) // it took nothing for 10 s
		check(t, l, hour(20), "a100 b10")
	})
	t.Run("what fail open has given stays, also to one that was in its slow start", func(t *testing.T) {
		l := running()
		l.report([]BackendHealth{says("b", StateDown)}, hour(0))
		l.report([]BackendHealth{says("b", StateUp)}, hour(0))
		l.report([]BackendHealth{says("b", StateDown)}, hour(10))
		l.report([]BackendHealth{says("a", StateDown)}, hour(20))
		check(t, l, hour(20), "a100 b100")
		l.report([]BackendHealth{says("b", StateUp)}, hour(30))
		check(t, l, hour(30), "a- b100")
		l.report([]BackendHealth{says("a", StateUp)}, hour(40))
		check(t, l, hour(50), "a10 b100")
	})
	t.Run("after a start that nobody reported to", func(t *testing.T) {
		l := none.then(web, savedState{}, start)
		check(t, l, hour(0), "a100 b100") // fail open
		l.report([]BackendHealth{says("a", StateUp)}, hour(0))
		check(t, l, hour(0), "a100 b-")
		l.report([]BackendHealth{says("b", StateUp)}, hour(1))
		check(t, l, hour(1), "a100 b100") // nothing was known of it before
	})
	t.Run("a backend added to a running service with a check", func(t *testing.T) {
		l := running().then(one(slowly(service("web", true, "a", "b", "c"))), savedState{}, hour(0))
		check(t, l, hour(0), "a100 b100 c-")
		l.report([]BackendHealth{says("c", StateUp)}, hour(10))
		check(t, l, hour(60), "a100 b100 c50")
	})
	t.Run("a backend added to a running service without check", func(t *testing.T) {
		l := none.then(one(slowly(service("web", false, "a"))), savedState{}, start)
		check(t, l, start, "a100")
		l = l.then(one(slowly(service("web", false, "a", "b"))), savedState{}, hour(0))
		check(t, l, hour(50), "a100 b50")
	})
	t.Run("a backend with another address", func(t *testing.T) {
		l := none.then(one(slowly(service("web", false, "a", "b"))), savedState{}, start)
		moved := slowly(service("web", false, "a", "b"))
		moved.Backends[1].Address = moved.Backends[1].Address.Next()
		check(t, l.then(one(moved), savedState{}, hour(0)), hour(20), "a100 b20")
	})
	t.Run("weight 0, then more", func(t *testing.T) {
		zero := slowly(service("web", true, "a", "b"))
		zero.Backends[1].Weight = 0
		l := running().then(one(zero), savedState{}, hour(0))
		check(t, l, hour(0), "a100 b~")
		l = l.then(web, savedState{}, hour(10))
		check(t, l, hour(30), "a100 b20")
	})
	t.Run("a service that loses its check", func(t *testing.T) {
		l := running()
		l.report([]BackendHealth{says("b", StateDown)}, hour(0))
		l = l.then(one(slowly(service("web", false, "a", "b"))), savedState{}, hour(0))
		check(t, l, hour(30), "a100 b30")
	})
	t.Run("a reload keeps it going, with the new duration", func(t *testing.T) {
		l := running()
		l.report([]BackendHealth{says("b", StateDown)}, hour(0))
		l.report([]BackendHealth{says("b", StateUp)}, hour(0))
		l = l.then(web, savedState{}, hour(20))
		check(t, l, hour(20), "a100 b20")
		slower := slowly(service("web", true, "a", "b"))
		slower.SlowStart *= 2
		check(t, l.then(one(slower), savedState{}, hour(40)), hour(40), "a100 b20")
		check(t, l.then(one(service("web", true, "a", "b")), savedState{}, hour(40)), hour(40), "a100 b100")
		// What is over does not come back.
		check(t, l.then(one(slower), savedState{}, hour(100)), hour(100), "a100 b100")
	})
	t.Run("one that a reload sets does not begin at once", func(t *testing.T) {
		plain := one(service("web", true, "a", "b"))
		l := none.then(plain, savedState{}, start)
		l.report([]BackendHealth{says("a", StateUp), says("b", StateDown)}, start)
		l.report([]BackendHealth{says("b", StateUp)}, hour(0))
		check(t, l.then(web, savedState{}, hour(1)), hour(1), "a100 b100")
	})
}

// While a backend's share rises the Book says so at each turn, and once at the end.
func TestBookGivesNoticeOfSlowStarts(t *testing.T) {
	for _, slow := range []time.Duration{100 * time.Millisecond, 10 * time.Second} {
		t.Run(fmt.Sprint(slow), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, _ := newLog()
				b := NewBook("", log)
				web := service("web", true, "a", "b")
				web.SlowStart = slow
				commit(b, web)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go b.Run(ctx)
				time.Sleep(10*bookTurn + bookTurn/2) // between two turns
				report(t, b, 1, says("a", StateUp), says("b", StateDown))
				report(t, b, 2, says("a", StateUp), says("b", StateUp))
				if noticed(b.Admitted()); b.shares() == "a100 b100" {
					t.Error("no slow start")
				}
				notices := 0
				for range 2 * slow / bookTurn {
					time.Sleep(bookTurn)
					synctest.Wait()
					if noticed(b.Admitted()) {
						notices++
					}
				}
				time.Sleep(bookTurn)
				synctest.Wait()
				if noticed(b.Admitted()) {
					notices++
				}
				// In the first tenth its share stays the same.
				if most := int(slow/bookTurn) + 2; notices > most || notices < most*9/10-2 {
					t.Errorf("%d notices, want some %d", notices, most*9/10)
				}
				if b.shares() != "a100 b100" || notices == 0 {
					t.Errorf("it does not end: %v, %d notices", b.shares(), notices)
				}
				time.Sleep(5 * bookTurn)
				synctest.Wait()
				if noticed(b.Admitted()) {
					t.Error("a notice after the end")
				}
			})
		})
	}
}
