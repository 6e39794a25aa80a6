package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

// ErrBoot is the error of a report that answers the targets of an earlier start of the daemon. Its sender asks for the
// targets again, and then reports all it knows.
var ErrBoot = errors.New("the report is meant for an earlier start of the daemon; get the targets again")

const (
	// staleAfter is how old the last report may be, in a daemon to which a health daemon reports every two seconds.
	staleAfter = 10 * time.Second
	// bookTurn is how often Run looks whether there is something to do: write, warn, or open a service.
	bookTurn = 500 * time.Millisecond
	// healthFile and drainFile are the names of the files in the Book's directory.
	healthFile = "health.json"
	drainFile  = "operator.json"

	maxSource   = 128       // bytes of a report's source
	maxEvidence = 256       // bytes of evidence that are kept
	maxReported = 1<<18 + 1 // backends in a report
)

// Book is what the daemon knows about its backends: what the file wants, what an operator set by hand, and what health
// says. It hands out what a health daemon is to probe, takes its reports, says what each backend takes now, and keeps
// what is known on disk: health.json, and in operator.json what was drained by hand. Nothing in it waits for a health
// daemon: without one the last known health holds.
//
// All methods may be called from any goroutine.
type Book struct {
	dir  string // of the files on disk; empty: none
	log  *slog.Logger
	boot string
	// admitted has room for one notice that Admissions may have changed.
	admitted chan struct{}

	// hands is held while the file of drains is written, and by whatever may change which drains there are. It is taken
	// before mu.
	hands  sync.Mutex
	drains []savedDrain // what that file has

	mu         sync.Mutex
	ledger     *ledger    // never nil
	restored   savedState // what was on disk, until the first configuration
	configured bool
	services   []config.Service // of the configuration in force
	cookieKey  string
	agents     map[string]AgentReport // the last of each agent, by its address and port
	cookies    map[string]CookieState // as Cookies returned it last
	targets    []TargetService
	toAsk      []string // agents, sorted
	generation uint64
	retargeted chan struct{} // closed and replaced when the targets change
	started    time.Time
	source     string // of the last report
	sequence   uint64
	reported   time.Time // zero: never
	dirty      bool      // the file of health lacks something
	unsaved    string    // why it could not be written
}

// NewBook returns a Book that begins with what the files in dir hold, and keeps them up to date. An empty dir stands for
// no files. A file that is missing, or cannot be read, is like an empty one, said in the log.
func NewBook(dir string, log *slog.Logger) *Book {
	b := &Book{
		dir: dir, log: log, boot: rand.Text(), admitted: make(chan struct{}, 1), ledger: &ledger{}, agents: map[string]AgentReport{},
		retargeted: make(chan struct{}), started: time.Now(),
	}
	if dir == "" {
		return b
	}
	health, err := readState[saved]("health", filepath.Join(dir, healthFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("starting without last known health", "error", err)
	}
	b.restored.health = slices.DeleteFunc(health, func(s saved) bool { return s.State != StateUp && s.State != StateDown })
	if b.drains, err = readState[savedDrain]("drains", filepath.Join(dir, drainFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("starting without what was drained by hand: these backends take new flows again", "error", err)
	}
	sortDrains(b.drains)
	b.restored.drains = b.drains
	return b
}

// Pending is a configuration that is about to come into force.
type Pending struct {
	book     *Book
	services []config.Service
	admits   map[BackendKey]maglev.Admit
}

// Prepare says what the backends of services will take when they come into force, and changes nothing.
func (b *Book) Prepare(services []config.Service) *Pending {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	return &Pending{b, services, b.next(services, now).admits(now)}
}

// Admission returns what a backend will take.
func (p *Pending) Admission(service, backend string) maglev.Admit {
	return p.admits[BackendKey{service, backend}]
}

// Commit makes p the configuration in force. Whoever waits for new targets gets them. Drains of backends that p does not
// have are forgotten.
func (p *Pending) Commit() {
	b := p.book
	b.hands.Lock()
	defer b.hands.Unlock()
	p.commit()
	_ = b.forget()
}

func (p *Pending) commit() {
	b := p.book
	b.mu.Lock()
	defer b.mu.Unlock()
	drains := b.ledger.drains()
	if !b.configured {
		drains = b.restored.drains
	}
	b.ledger = b.next(p.services, time.Now())
	b.configured, b.restored = true, savedState{}
	b.forgotten(drains)
	b.dirty = true
	b.services = p.services
	list, agents := targets(p.services), AgentsOf(p.services)
	if !reflect.DeepEqual(list, b.targets) || !slices.Equal(agents, b.toAsk) || b.generation == 0 {
		b.targets, b.toAsk = list, agents
		b.forgetAgents()
		b.generation++
		close(b.retargeted)
		b.retargeted = make(chan struct{})
	}
	b.notice() // something may have come in since Prepare
}

func (b *Book) next(services []config.Service, now time.Time) *ledger {
	if !b.configured {
		return (*ledger)(nil).next(services, b.restored, now)
	}
	return b.ledger.next(services, savedState{}, now)
}

// notice says that Admissions may have changed. The lock is held.
func (b *Book) notice() {
	select {
	case b.admitted <- struct{}{}:
	default:
	}
}

// Admitted returns the channel on which a value arrives after Admissions may have changed. One goroutine receives.
func (b *Book) Admitted() <-chan struct{} { return b.admitted }

// Admissions returns what every backend of the configuration in force takes now.
func (b *Book) Admissions() map[BackendKey]maglev.Admit {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.admits(time.Now())
}

// Waiting returns the services that have no backend yet, since they appeared less than three intervals ago and nothing
// good is known about their backends. A node is not ready meanwhile. A service of which all are drained does not wait.
func (b *Book) Waiting() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.waiting(time.Now())
}

// Targets returns what is to be probed. If boot and generation name what the caller has already, it waits for
// something newer until ctx ends, and returns what there is then.
func (b *Book) Targets(ctx context.Context, boot string, generation uint64) Targets {
	for {
		b.mu.Lock()
		t := Targets{Boot: b.boot, Generation: b.generation, Services: slices.Clone(b.targets), Agents: slices.Clone(b.toAsk)}
		newer := b.retargeted
		b.mu.Unlock()
		if t.Generation > 0 && (t.Boot != boot || t.Generation != generation) {
			return t
		}
		select {
		case <-newer:
		case <-ctx.Done():
			return t
		}
	}
}

// Report takes what a health daemon knows. It fails with ErrBoot, or says what is wrong with the report; in both cases
// nothing of it is taken.
func (b *Book) Report(r HealthReport) (HealthAnswer, error) {
	if err := checkReport(&r); err != nil {
		return HealthAnswer{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	answer := HealthAnswer{Boot: b.boot, Generation: b.generation}
	if r.Boot != b.boot {
		return HealthAnswer{}, ErrBoot
	}
	if r.Source == b.source && r.Version <= b.sequence {
		return answer, nil // a late one: what came after it is known already
	}
	now := time.Now()
	switch {
	case b.source != r.Source:
		b.log.Info("health daemon reports", "source", r.Source)
	case now.Sub(b.reported) > staleAfter:
		b.log.Info("health daemon reports again", "source", r.Source, "silent", now.Sub(b.reported))
	}
	b.source, b.sequence, b.reported = r.Source, r.Version, now
	b.learn(r.Agents)
	for _, t := range b.ledger.report(r.Backends, now) {
		level := slog.LevelInfo
		if t.to.State == StateDown {
			level = slog.LevelWarn
		}
		b.log.Log(context.Background(), level, "backend health", "service", t.Service, "backend", t.Backend,
			"was", t.from, "is", t.to.State, "evidence", t.to.Evidence)
		b.dirty = true
		b.notice()
	}
	return answer, nil
}

// checkReport says what is wrong with r, and makes its evidence fit to be shown: short and on one line.
func checkReport(r *HealthReport) error {
	switch {
	case r.Source == "" || len(r.Source) > maxSource:
		return fmt.Errorf("health report: source has %d bytes, 1 to %d are expected", len(r.Source), maxSource)
	case len(r.Backends) > maxReported:
		return fmt.Errorf("health report: %d backends, at most %d are expected", len(r.Backends), maxReported)
	}
	if len(r.Agents) > maxAgents {
		return fmt.Errorf("health report: %d agents, at most %d are expected", len(r.Agents), maxAgents)
	}
	for i := range r.Agents {
		r.Agents[i].Error = printable(r.Agents[i].Error)
	}
	for i := range r.Backends {
		h := &r.Backends[i]
		if h.State != StateUp && h.State != StateDown {
			return fmt.Errorf("health report: %s/%s: state %q, %q or %q is expected; leave out what is not known", h.Service, h.Backend, h.State, StateUp, StateDown)
		}
		h.Evidence = printable(h.Evidence)
	}
	return nil
}

// printable makes words fit to be shown: a backend may have written them, and they end up on a terminal.
func printable(words string) string {
	if len(words) > maxEvidence {
		words = words[:maxEvidence] + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, words)
}

// Fill writes what is known about backends into s, whose traffic is there already.
func (b *Book) Fill(s *Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	s.Health = HealthStatus{Source: b.source, Reported: b.reported, AgeMS: b.age(now).Milliseconds(), Stale: b.stale(now), Unsaved: b.unsaved}
	services := make(map[string]*ledgerService, len(b.ledger.services))
	for i := range b.ledger.services {
		services[b.ledger.services[i].name] = &b.ledger.services[i]
	}
	for _, backend := range b.ledger.index {
		if backend.restored {
			s.Health.Restored++
		}
	}
	for i := range s.Traffic.Services {
		out := &s.Traffic.Services[i]
		in := services[out.Name]
		if in == nil {
			continue // removed since the traffic was read
		}
		out.Checked = in.check != nil
		if c, ok := b.cookies[out.Name]; ok {
			out.Cookies = cmp.Or(c.Problem, CookiesReady)
		}
		_, out.FailOpen = in.admit(now)
		for j := range out.Backends {
			// One that is leaving may have the name of one that has come in its place.
			known := b.ledger.index[BackendKey{out.Name, out.Backends[j].Name}]
			if known != nil && !out.Backends[j].Leaving {
				out.Backends[j].Health, out.Backends[j].Weight, out.Backends[j].Hand = known.health, known.weight, known.hand.status()
			}
		}
	}
}

// age is the time since the last report, or since the start.
func (b *Book) age(now time.Time) time.Duration {
	if b.reported.IsZero() {
		return now.Sub(b.started)
	}
	return now.Sub(b.reported)
}

func (b *Book) stale(now time.Time) bool {
	return len(b.targets) > 0 && b.age(now) > staleAfter
}

// Run keeps the files up to date, opens services that have waited long enough, ends drains whose time is over, and says in
// the log when reports stay away. While a backend starts slowly, it gives notice of Admissions at each turn. It returns when ctx has ended and what is known is on disk.
func (b *Book) Run(ctx context.Context) {
	tick := time.NewTicker(bookTurn)
	defer tick.Stop()
	var turn bookkeeping
	for {
		select {
		case <-tick.C:
			b.turn(&turn)
		case <-ctx.Done():
			b.save()
			return
		}
	}
}

// bookkeeping is what Run remembers from one turn to the next.
type bookkeeping struct {
	waiting []string  // services without backend
	stale   bool      // and said so
	retry   time.Time // not to write before then
}

func (b *Book) turn(k *bookkeeping) {
	b.mu.Lock()
	now := time.Now()
	waiting, stale, dirty := b.ledger.waiting(now), b.stale(now), b.dirty
	if slices.ContainsFunc(k.waiting, func(name string) bool { return !slices.Contains(waiting, name) }) {
		b.notice() // its time is over
	}
	for _, key := range b.ledger.cut(now) {
		b.log.Warn("the time of a drain by hand is over: flows that are left are ended", "service", key.Service, "backend", key.Backend)
		b.notice()
	}
	if b.ledger.settle(now) {
		b.notice() // also of the end
	}
	if stale && !k.stale {
		b.log.Warn("no health reports: the last known health stays in use; is sluice-healthd running?", "silent", b.age(now))
	}
	k.waiting, k.stale = waiting, stale
	b.mu.Unlock()
	if now.Before(k.retry) {
		return
	}
	var health, drains error
	if dirty {
		health = b.save()
	}
	if b.hands.TryLock() { // not to wait for a slow disk here
		drains = b.forget()
		b.hands.Unlock()
	}
	if health != nil || drains != nil {
		k.retry = now.Add(staleAfter)
	}
}

// save writes the file of health if it lacks something. Only Run calls it.
func (b *Book) save() error {
	b.mu.Lock()
	if b.dir == "" || !b.dirty {
		b.mu.Unlock()
		return nil
	}
	list := b.ledger.save()
	b.dirty = false
	b.mu.Unlock()

	err := writeState("health", filepath.Join(b.dir, healthFile), list)

	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.unsaved = ""
		return nil
	}
	if b.unsaved != err.Error() {
		b.log.Warn("health is not kept for the next start", "error", err)
	}
	b.unsaved = err.Error()
	b.dirty = true
	return err
}
