package control

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

// logged collects log lines.
type logged struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.String()
}

func newLog() (*slog.Logger, *logged) {
	l := &logged{}
	return slog.New(slog.NewTextHandler(l, nil)), l
}

var (
	admitUp   = maglev.MakeAdmit(maglev.Up, maglev.All)
	admitDown = maglev.MakeAdmit(maglev.Down, 0)
)

// commit puts services in force.
func commit(b *Book, services ...config.Service) {
	b.Prepare(&config.Config{Services: services}).Commit()
}

// report sends a report of everything to b under the next sequence number.
func report(t *testing.T, b *Book, sequence uint64, list ...BackendHealth) {
	t.Helper()
	if _, err := b.Report(HealthReport{Boot: b.boot, Source: "test", Version: sequence, Backends: list}); err != nil {
		t.Fatal(err)
	}
}

func (b *Book) takes() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.takes(time.Now())
}

// told is what Changed tells.
func told(b *Book) (list []string) {
	for _, a := range b.Changed().Admissions {
		list = append(list, a.Backend+" "+shown([]maglev.Admit{a.Admit}))
	}
	slices.Sort(list)
	return list
}

func noticed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestBookPreparesWithoutChanging(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	commit(b, service("web", true, "a", "b"))
	report(t, b, 1, says("a", StateUp), says("b", StateDown))
	noticed(b.Admitted())

	p := b.Prepare(&config.Config{Services: []config.Service{service("web", true, "a", "b", "c")}})
	if p.Admission("web", "a") != admitUp || p.Admission("web", "b") != admitDown || p.Admission("web", "c") != maglev.MakeAdmit(maglev.Draining, 0) {
		t.Errorf("prepared %v", p.ledger.services[0].admits)
	}
	if noticed(b.Admitted()) || len(b.ledger.index) != 2 {
		t.Error("Prepare changed something")
	}
	// A report that comes in between is not lost.
	report(t, b, 2, says("a", StateUp), says("b", StateUp))
	p.Commit()
	if !noticed(b.Admitted()) || b.takes() != "ab" {
		t.Errorf("committed %s", b.takes())
	}
}

func TestBookTellsOfChangesOnly(t *testing.T) {
	log, lines := newLog()
	b := NewBook("", log)
	commit(b, service("web", true, "a", "b"))
	noticed(b.Admitted())
	report(t, b, 1, says("a", StateUp))
	if !noticed(b.Admitted()) {
		t.Error("a change without a notice")
	}
	report(t, b, 2, says("a", StateUp))
	if noticed(b.Admitted()) {
		t.Error("a notice without a change")
	}
	if n := strings.Count(lines.String(), "backend health"); n != 1 {
		t.Errorf("%d log lines:\n%s", n, lines)
	}
}

func TestBookRefusesReports(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	commit(b, service("web", true, "a"))
	if _, err := b.Report(HealthReport{Boot: "old", Source: "s", Version: 1, Backends: []BackendHealth{says("a", StateUp)}}); !errors.Is(err, ErrBoot) {
		t.Errorf("another boot: %v", err)
	}
	for name, r := range map[string]HealthReport{
		"no source":     {Boot: b.boot, Version: 1},
		"long source":   {Boot: b.boot, Source: strings.Repeat("x", 129)},
		"unknown state": {Boot: b.boot, Source: "s", Backends: []BackendHealth{says("a", StateUp), says("a", StateUnknown)}},
		"other state":   {Boot: b.boot, Source: "s", Backends: []BackendHealth{says("a", "sick")}},
	} {
		if _, err := b.Report(r); err == nil || errors.Is(err, ErrBoot) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(b.ledger.save()) != 0 {
		t.Error("a refused report was taken")
	}
}

// A report that was overtaken on its way is not taken.
func TestBookIgnoresLateReports(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	commit(b, service("web", true, "a", "b"))
	report(t, b, 2, says("a", StateUp), says("b", StateUp))
	report(t, b, 1, says("a", StateDown), says("b", StateUp))
	if got := b.takes(); got != "ab" {
		t.Errorf("a late report was taken: %s", got)
	}
}

func TestBookMakesEvidenceFitToShow(t *testing.T) {
	log, _ := newLog()
	b := NewBook("", log)
	commit(b, service("web", true, "a", "b"))
	bad := says("a", StateDown)
	bad.Evidence = "HTTP 503 \x1b[31mred\nnext\xff" + strings.Repeat("x", 1000)
	report(t, b, 1, bad)
	got := b.ledger.backend(BackendKey{"web", "a"}).health.Evidence
	if !strings.HasPrefix(got, "HTTP 503  [31mred next") || len(got) > 300 {
		t.Errorf("got %q", got)
	}
}

func TestBookWaitsForNewTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog()
		b := NewBook("", log)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if got := b.Targets(ctx, "", 0); got.Generation != 0 || time.Since(begin) != time.Second {
			t.Errorf("before the first configuration: %+v after %v", got, time.Since(begin))
		}

		commit(b, service("web", true, "a"))
		first := b.Targets(t.Context(), "", 0)
		if first.Generation != 1 || first.Boot == "" || len(first.Services) != 1 {
			t.Errorf("first: %+v", first)
		}
		if got := b.Targets(t.Context(), "another boot", 1); got.Generation != 1 {
			t.Errorf("another boot waited: %+v", got)
		}

		go func() {
			time.Sleep(5 * time.Second)
			commit(b, service("web", true, "a")) // nothing new
			time.Sleep(5 * time.Second)
			commit(b, service("web", true, "a", "b"))
		}()
		begin = time.Now()
		if got := b.Targets(t.Context(), first.Boot, 1); got.Generation != 2 || len(got.Services[0].Backends) != 2 || time.Since(begin) != 10*time.Second {
			t.Errorf("got %+v after %v", got, time.Since(begin))
		}
	})
}

// With nobody to report, a daemon that knows nothing opens its services, and says that it is blind.
func TestBookOpensWithoutHealthDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		b := NewBook("", log)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		commit(b, service("web", true, "a", "b"))
		noticed(b.Admitted())
		go b.Run(ctx)
		time.Sleep(5900 * time.Millisecond)
		if got := b.takes(); got != "" || noticed(b.Admitted()) || len(b.Waiting()) != 1 {
			t.Errorf("before: %q, waiting %v", got, b.Waiting())
		}
		time.Sleep(700 * time.Millisecond)
		if got := b.takes(); got != "ab" || !noticed(b.Admitted()) || len(b.Waiting()) != 0 {
			t.Errorf("after: %q, waiting %v", got, b.Waiting())
		}
		s := Status{Traffic: Traffic{Services: []Service{{Backends: []Backend{{}, {}}}}}}
		s.Traffic.Services[0].Name = "web"
		b.Fill(&s)
		if !s.Traffic.Services[0].FailOpen || s.Health.Stale {
			t.Errorf("status %+v", s)
		}
		time.Sleep(10 * time.Second)
		if b.Fill(&s); !s.Health.Stale || s.Health.AgeMS != 16_600 {
			t.Errorf("status %+v", s.Health)
		}
		if n := strings.Count(lines.String(), "is sluice-healthd running?"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, lines)
		}
		report(t, b, 1, says("a", StateUp))
		if b.Fill(&s); s.Health.Stale || s.Health.Source != "test" || s.Traffic.Services[0].FailOpen || b.takes() != "a" {
			t.Errorf("after a report: %+v, %s", s.Health, b.takes())
		}
	})
}

func TestBookKeepsHealthOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		ctx, cancel := context.WithCancel(t.Context())
		b := NewBook(dir, log)
		commit(b, service("web", true, "a", "b", "c"))
		done := make(chan struct{})
		go func() { b.Run(ctx); close(done) }()
		report(t, b, 1, says("a", StateUp), says("b", StateDown))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, err := os.Stat(filepath.Join(dir, "health.json")); err != nil {
			t.Errorf("not written while running: %v", err)
		}
		report(t, b, 2, says("a", StateUp), says("b", StateDown), says("c", StateUp))
		cancel() // the end writes what is new
		<-done
		if lines.String() == "" {
			t.Error("nothing logged")
		}

		next := NewBook(dir, log)
		commit(next, service("web", true, "a", "b", "c"))
		if got := next.takes(); got != "ac" {
			t.Errorf("the next start takes %q", got)
		}
		if next.boot == b.boot {
			t.Error("two starts have the same name")
		}
		s := Status{}
		if next.Fill(&s); s.Health.Restored != 3 {
			t.Errorf("restored %d", s.Health.Restored)
		}
		report(t, next, 1, says("a", StateUp))
		if next.Fill(&s); s.Health.Restored != 2 {
			t.Errorf("restored %d after a report", s.Health.Restored)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("left behind: %v", entries)
		}
	})
}

// A file that only the death of the machine could have damaged does not keep the daemon from starting.
func TestBookStartsWithDamagedFile(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "cut": `{"version":1,"backends":[{"serv`, "other": `[]`, "newer": `{"version":2}`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "health.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		log, lines := newLog()
		b := NewBook(dir, log)
		if len(b.restored.health) != 0 || !strings.Contains(lines.String(), "starting without last known health") {
			t.Errorf("%s: %v, %s", name, b.restored, lines)
		}
	}
}

// A full or missing disk is told once, and tried again.
func TestBookWithoutDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where the directory should be
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		b := NewBook(dir, log)
		commit(b, service("web", true, "a"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go b.Run(ctx)
		report(t, b, 1, says("a", StateUp))
		time.Sleep(time.Minute)
		synctest.Wait()
		s := Status{}
		if b.Fill(&s); s.Health.Unsaved == "" {
			t.Error("the status does not tell")
		}
		if n := strings.Count(lines.String(), "not kept for the next start"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, lines)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if b.Fill(&s); s.Health.Unsaved != "" {
			t.Errorf("not tried again: %s", s.Health.Unsaved)
		}
	})
}
