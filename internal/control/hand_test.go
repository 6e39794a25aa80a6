package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

func (b *Book) shares() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.shares(time.Now())
}

// handOf returns how the API shows the hand on a backend of the service web.
func handOf(b *Book, backend string) *HandStatus {
	s := Status{Traffic: Traffic{Services: []Service{{Backends: []Backend{{}}}}}}
	s.Traffic.Services[0].Name, s.Traffic.Services[0].Backends[0].Name = "web", backend
	b.Fill(&s)
	return s.Traffic.Services[0].Backends[0].Hand
}

func drain(t *testing.T, b *Book, backend string, timeout time.Duration) {
	t.Helper()
	if err := b.Drain("web", backend, timeout); err != nil {
		t.Fatal(err)
	}
}

func undrain(t *testing.T, b *Book, backend string) {
	t.Helper()
	if err := b.Undrain("web", backend); err != nil {
		t.Fatal(err)
	}
}

func TestDrainAndUndrain(t *testing.T) {
	log, lines := newLog()
	b := NewBook(t.TempDir(), log)
	commit(b, service("web", false, "a", "b"))
	noticed(b.Admitted())
	drain(t, b, "b", 0)
	if got := b.shares(); got != "a100 b~" || !noticed(b.Admitted()) {
		t.Errorf("drained: %s", got)
	}
	first := handOf(b, "b")
	if first == nil || first.Since.IsZero() || !first.Until.IsZero() || first.Cut || handOf(b, "a") != nil {
		t.Errorf("status %+v", first)
	}
	drain(t, b, "b", 0)
	if noticed(b.Admitted()) {
		t.Error("the same again changed something")
	}
	drain(t, b, "b", time.Hour) // another timeout
	if h := handOf(b, "b"); !h.Since.Equal(first.Since) || time.Until(h.Until) < 59*time.Minute {
		t.Errorf("status %+v", h)
	}
	drain(t, b, "b", 0)
	if h := handOf(b, "b"); *h != *first {
		t.Errorf("status %+v, want %+v", h, first)
	}
	noticed(b.Admitted())
	undrain(t, b, "b")
	if got := b.shares(); got != "a100 b100" || !noticed(b.Admitted()) || handOf(b, "b") != nil {
		t.Errorf("undrained: %s", got)
	}
	undrain(t, b, "b")
	if noticed(b.Admitted()) {
		t.Error("undrain of one that is not drained changed something")
	}
	drain(t, b, "a", 0)
	drain(t, b, "b", 0)
	if got := b.shares(); got != "a~ b~" || len(b.Waiting()) != 0 {
		t.Errorf("all drained: %s, waiting %v", got, b.Waiting())
	}
	for text, want := range map[string]int{"backend drained by hand": 5, "backend undrained by hand": 1} {
		if n := strings.Count(lines.String(), text); n != want {
			t.Errorf("%d lines with %q, want %d:\n%s", n, text, want, lines)
		}
	}
}

// A node whose service is drained as a whole is ready all the same, also in the time in which others wait for health.
func TestDrainedServiceDoesNotWait(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	commit(b, service("web", true, "a"))
	if len(b.Waiting()) != 1 {
		t.Error("it should wait at first")
	}
	drain(t, b, "a", 0)
	if w := b.Waiting(); len(w) != 0 {
		t.Errorf("waiting %v", w)
	}
}

func TestDrainOfWhatIsNotThere(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	big := service("big", false)
	for i := range 30 {
		big.Backends = append(big.Backends, config.Backend{Name: "x" + string(rune('a'+i)), Weight: 1})
	}
	commit(b, service("web", false, "a", "b"), big)
	for _, row := range []struct{ service, backend, text string }{
		{"wbe", "a", `there is no service "wbe"; there is web, big`},
		{"web", "c", `service web has no backend "c"; it has a, b`},
		{"web", "", `service web has no backend ""; it has a, b`},
		{"big", "y", "and 10 more"},
	} {
		for _, err := range []error{b.Drain(row.service, row.backend, 0), b.Undrain(row.service, row.backend)} {
			var api *APIError
			if !errors.As(err, &api) || api.Code != 404 || !strings.Contains(err.Error(), row.text) {
				t.Errorf("%s/%s: got %v", row.service, row.backend, err)
			}
		}
	}
	var api *APIError
	if err := b.Drain("web", "a", -time.Second); !errors.As(err, &api) || api.Code != 400 {
		t.Errorf("a negative timeout: %v", err)
	}
	commit(b)
	if err := b.Drain("web", "a", 0); err == nil || !strings.Contains(err.Error(), "there is none") {
		t.Errorf("without services: %v", err)
	}
}

func TestDrainTimeoutEndsInCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		b := NewBook("", log)
		commit(b, service("web", true, "a", "b"))
		report(t, b, 1, says("a", StateUp), says("b", StateUp))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go b.Run(ctx)
		drain(t, b, "b", 5*time.Minute)
		noticed(b.Admitted())
		time.Sleep(5*time.Minute - time.Millisecond)
		synctest.Wait()
		if got := b.shares(); got != "a100 b~" || noticed(b.Admitted()) {
			t.Errorf("before: %s", got)
		}
		time.Sleep(bookTurn + time.Millisecond)
		synctest.Wait()
		if got := b.shares(); got != "a100 b!" || !noticed(b.Admitted()) || !handOf(b, "b").Cut {
			t.Errorf("after: %s", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := strings.Count(lines.String(), "the time of a drain by hand is over"); n != 1 || noticed(b.Admitted()) {
			t.Errorf("%d log lines:\n%s", n, lines)
		}
		commit(b, service("web", true, "a", "b"))
		if got := b.shares(); got != "a100 b!" {
			t.Errorf("after a reload: %s", got)
		}
		report(t, b, 2, says("a", StateUp), says("b", StateDown))
		if got := b.shares(); got != "a100 b!" {
			t.Errorf("down: %s", got)
		}
		report(t, b, 3, says("a", StateUp), says("b", StateUp))
		drain(t, b, "b", 0) // what is drained anew is no longer cut
		if got := b.shares(); got != "a100 b~" {
			t.Errorf("drained again: %s", got)
		}
		undrain(t, b, "b")
		if got := b.shares(); got != "a100 b100" {
			t.Errorf("undrained: %s", got)
		}
	})
}

// A drained backend that comes back starts slowly.
func TestUndrainStartsSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog()
		b := NewBook("", log)
		commit(b, slowly(service("web", false, "a", "b")))
		drain(t, b, "b", 0)
		time.Sleep(time.Hour)
		undrain(t, b, "b")
		if got := b.shares(); got != "a100 b10" {
			t.Errorf("at once: %s", got)
		}
		time.Sleep(50 * time.Second)
		if got := b.shares(); got != "a100 b50" {
			t.Errorf("later: %s", got)
		}
		drain(t, b, "a", 0) // the one that is left refuses nobody
		if got := b.shares(); got != "a~ b100" {
			t.Errorf("alone: %s", got)
		}
	})
}

// What an operator drained stays so over a restart: also over one whose configuration does not load.
func TestDrainOutlivesRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog()
		web := service("web", false, "a", "b", "c", "d")
		b := NewBook(dir, log)
		commit(b, web)
		drain(t, b, "a", 0)
		drain(t, b, "b", time.Minute)
		drain(t, b, "c", time.Hour)
		drain(t, b, "d", 0)
		undrain(t, b, "d")
		until := handOf(b, "c").Until

		failed, _ := newLog()
		crashed := NewBook(dir, failed) // its configuration is refused
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { crashed.Run(ctx); close(done) }()
		time.Sleep(2 * time.Minute)
		cancel()
		<-done

		next := NewBook(dir, log)
		commit(next, web)
		if got := next.shares(); got != "a~ b! c~ d100" {
			t.Errorf("after a restart: %s", got)
		}
		if h := handOf(next, "c"); !h.Until.Equal(until) {
			t.Errorf("the deadline was %v and is %v", until, h.Until)
		}
		// The file is as it was: nothing is forgotten.
		third := NewBook(dir, log)
		commit(third, web)
		if got := third.shares(); got != "a~ b! c~ d100" {
			t.Errorf("after another: %s", got)
		}
	})
	info, err := os.Stat(filepath.Join(dir, "operator.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// A drain means the backend at its address, as long as the configuration has it.
func TestDrainOfBackendThatChanges(t *testing.T) {
	dir := t.TempDir()
	log, lines := newLog()
	web := service("web", false, "a", "b", "c")
	b := NewBook(dir, log)
	commit(b, web)
	drain(t, b, "b", 0)
	drain(t, b, "c", 0)
	moved := service("web", false, "a", "b", "c")
	moved.Backends[1].Address = moved.Backends[1].Address.Next().Next()
	commit(b, moved)
	if got := b.shares(); got != "a100 b100 c~" {
		t.Errorf("with another address: %s", got)
	}
	commit(b, service("web", false, "a", "b"))
	commit(b, web)
	if got := b.shares(); got != "a100 b100 c100" {
		t.Errorf("removed and added again: %s", got)
	}
	if n := strings.Count(lines.String(), "drain by hand forgotten"); n != 2 {
		t.Errorf("%d log lines:\n%s", n, lines)
	}
	next := NewBook(dir, log)
	commit(next, web)
	if got := next.shares(); got != "a100 b100 c100" {
		t.Errorf("after a restart: %s", got)
	}

	// The same, while the daemon is down.
	drain(t, next, "b", 0)
	last := NewBook(dir, log)
	commit(last, moved)
	if got := last.shares(); got != "a100 b100 c100" {
		t.Errorf("with another address after a restart: %s", got)
	}
	if n := strings.Count(lines.String(), "drain by hand forgotten"); n != 3 {
		t.Errorf("%d log lines:\n%s", n, lines)
	}
}

// A drain that cannot be kept is refused; one that cannot be forgotten is tried again.
func TestDrainWithoutDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	inTheWay := func() {
		if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where the directory should be
			t.Fatal(err)
		}
	}
	inTheWay()
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		b := NewBook(dir, log)
		commit(b, service("web", false, "a", "b"))
		noticed(b.Admitted())
		err := b.Drain("web", "b", 0)
		if err == nil || !strings.Contains(err.Error(), "web/b stays as it was: write drains") || !strings.Contains(err.Error(), "state_dir") {
			t.Errorf("got %v", err)
		}
		if got := b.shares(); got != "a100 b100" || noticed(b.Admitted()) {
			t.Errorf("a drain that failed changed something: %s", got)
		}

		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		drain(t, b, "b", 0)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		inTheWay()
		if err := b.Undrain("web", "b"); err == nil || b.shares() != "a100 b~" {
			t.Errorf("undrain: %v, %s", err, b.shares())
		}
		commit(b, service("web", false, "a"))
		if n := strings.Count(lines.String(), "a forgotten drain is still on disk"); n != 1 {
			t.Errorf("%d log lines:\n%s", n, lines)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go b.Run(ctx)
		time.Sleep(2 * bookTurn)
		synctest.Wait()
		if data, err := os.ReadFile(filepath.Join(dir, "operator.json")); err != nil || strings.Contains(string(data), "web") {
			t.Errorf("not tried again: %s, %v", data, err)
		}
	})
}

// A damaged file does not keep the daemon from starting, and is left for whoever wants to look.
func TestDrainsInDamagedFile(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "cut": `{"version":1,"backends":[{"serv`, "newer": `{"version":2}`} {
		dir := t.TempDir()
		path := filepath.Join(dir, "operator.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		log, lines := newLog()
		b := NewBook(dir, log)
		commit(b, service("web", false, "a"))
		if data, _ := os.ReadFile(path); b.shares() != "a100" || string(data) != content || !strings.Contains(lines.String(), "starting without what was drained") {
			t.Errorf("%s: %s, file %s, log %s", name, b.shares(), data, lines)
		}
	}
}

// Operators, health, reloads and readers at once. What is on disk in the end is what is in force.
func TestBookInManyHands(t *testing.T) {
	dir := t.TempDir()
	log, _ := newLog()
	b := NewBook(dir, log)
	web := slowly(service("web", true, "a", "b", "c"))
	commit(b, web)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { b.Run(ctx); close(done) }()
	var all sync.WaitGroup
	for worker, name := range []string{"a", "b", "c"} {
		all.Go(func() {
			for i := range 50 {
				if err := b.Drain("web", name, time.Duration(i%3)*time.Millisecond); err != nil {
					t.Error(err)
				}
				if i%2 == worker%2 {
					if err := b.Undrain("web", name); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Go(func() {
		for i := range 100 {
			report(t, b, uint64(i+1), says("a", []State{StateUp, StateDown}[i%2]), says("b", StateUp))
			b.Changed()
			b.Fill(&Status{})
		}
	})
	all.Go(func() {
		for range 30 {
			b.Prepare(&config.Config{Services: []config.Service{web}}).Commit()
			b.mu.Lock()
			b.pass(time.Now())
			b.mu.Unlock()
		}
	})
	all.Wait()
	cancel()
	<-done
	next := NewBook(dir, log)
	commit(next, web)
	b.mu.Lock()
	defer b.mu.Unlock()
	was, is := b.ledger.marks(), next.ledger.marks()
	if len(was) != len(is) {
		t.Fatalf("in force %v, on disk %v", was, is)
	}
	for i := range was {
		if was[i].Backend != is[i].Backend || !was[i].Until.Equal(is[i].Until) {
			t.Errorf("in force %v, on disk %v", was[i], is[i])
		}
	}
}
