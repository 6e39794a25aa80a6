package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/maglev"
)

const (
	// bookTurn is how often Run looks whether there is something to do: write, warn, or what time has brought.
	bookTurn = 500 * time.Millisecond
	// writeEvery is how often the file of health is written at most.
	writeEvery = time.Second
	// healthFile and handFile are the names of the files in the Book's directory.
	healthFile = "health.json"
	handFile   = "operator.json"
)

// Book is what the daemon knows about its backends: what the file wants, what an operator set by hand, and what health
// says. It hands out what a health daemon is to probe, takes its reports, says what each backend takes now, remembers what
// has happened, and keeps what is known on disk: health.json, and in operator.json what was set by hand. Nothing in it
// waits for a health daemon: without one the last known health holds.
//
// All methods may be called from any goroutine.
type Book struct {
	dir  string // of the files on disk; empty: none
	log  *slog.Logger
	boot string
	// admitted has room for one notice that Changed has something.
	admitted chan struct{}

	// hands is held while the file of what was set by hand is written, and by whatever may change that. It is taken before mu.
	hands sync.Mutex
	marks []savedMark // what that file has

	mu         sync.Mutex
	ledger     *ledger    // never nil
	restored   savedState // what was on disk, until the first configuration
	configured bool
	services   []config.Service // of the configuration in force
	tunnel     TargetTunnel
	cookieKey  string
	agents     map[string]AgentReport // the last of each agent, by its address and port
	views      map[string][]agentView // of the agents of a service's backends, in their order
	cookies    map[string]CookieState // by service
	targets    []TargetService
	toAsk      []string // agents, sorted
	generation uint64
	retargeted chan struct{} // closed and replaced when the targets change
	started    time.Time
	writer     writer
	events     events
	dirty      bool   // the file of health lacks something
	unsaved    string // why it could not be written
}

// NewBook returns a Book that begins with what the files in dir hold, and keeps them up to date. An empty dir stands for
// no files. A file that is missing, or cannot be read, is like an empty one, said in the log.
func NewBook(dir string, log *slog.Logger) *Book {
	b := &Book{
		dir: dir, log: log, boot: rand.Text(), admitted: make(chan struct{}, 1), ledger: &ledger{}, agents: map[string]AgentReport{},
		cookies: map[string]CookieState{}, retargeted: make(chan struct{}), started: time.Now(), events: newEvents(),
	}
	if dir == "" {
		return b
	}
	health, err := readState[saved]("health", filepath.Join(dir, healthFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("starting without last known health", "error", err)
	}
	b.restored.health = slices.DeleteFunc(health, func(s saved) bool { return s.State != StateUp && s.State != StateDown })
	if b.marks, err = readState[savedMark]("drains", filepath.Join(dir, handFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("starting without what was drained by hand: these backends take new flows again", "error", err)
	}
	sortMarks(b.marks)
	b.restored.marks = b.marks
	return b
}

// Pending is a configuration that is about to come into force.
type Pending struct {
	book     *Book
	services []config.Service
	tunnel   TargetTunnel
	ledger   *ledger
}

// Prepare says what the backends of a configuration will take when it comes into force, and changes nothing.
func (b *Book) Prepare(cfg *config.Config) *Pending {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &Pending{book: b, services: cfg.Services, tunnel: TargetTunnel{
		GUEPort: cfg.Tunnel.GUEPort, GUEChecksum: cfg.Tunnel.GUEChecksum, SourceIPv4: cfg.Tunnel.SourceIPv4, SourceIPv6: cfg.Tunnel.SourceIPv6,
	}}
	p.ledger, _ = b.next(cfg.Services, time.Now())
	return p
}

// Admission returns what a backend will take.
func (p *Pending) Admission(service, backend string) maglev.Admit {
	i, ok := p.ledger.index[BackendKey{service, backend}]
	if !ok {
		return maglev.MakeAdmit(maglev.Down, 0)
	}
	return p.ledger.byName[service].admits[i]
}

// Commit makes p the configuration in force. Whoever waits for new targets gets them. What was set by hand for backends
// that p does not have is forgotten.
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
	marks := b.ledger.marks()
	if !b.configured {
		marks = b.restored.marks
	}
	now := time.Now()
	next, changes := b.next(p.services, now) // anew: something may have come in since Prepare
	b.ledger = next
	b.configured, b.restored = true, savedState{}
	b.forgotten(marks)
	b.dirty = true
	b.services, b.tunnel = p.services, p.tunnel
	b.retarget()
	b.viewAgents()
	b.tell(changes, now)
}

func (b *Book) next(services []config.Service, now time.Time) (*ledger, []change) {
	if !b.configured {
		return (*ledger)(nil).next(services, b.restored, now)
	}
	return b.ledger.next(services, savedState{}, now)
}

// retarget finds out what a health daemon is to look at, and wakes those that wait for something new. The lock is held.
func (b *Book) retarget() {
	list, agents := b.ledger.targets(b.services), AgentsOf(b.services)
	if b.generation > 0 && reflect.DeepEqual(list, b.targets) && slices.Equal(agents, b.toAsk) {
		return
	}
	b.targets, b.toAsk = list, agents
	b.forgetAgents()
	b.generation++
	close(b.retargeted)
	b.retargeted = make(chan struct{})
}

// notice says that Changed has something. The lock is held.
func (b *Book) notice() {
	select {
	case b.admitted <- struct{}{}:
	default:
	}
}

// Admitted returns the channel on which a value arrives when Changed has something. One goroutine receives.
func (b *Book) Admitted() <-chan struct{} { return b.admitted }

// Admission is what a backend takes.
type Admission struct {
	BackendKey
	Admit maglev.Admit
}

// Changes is what has to be brought into force.
type Changes struct {
	Admissions []Admission
	Cookies    map[string]CookieState // by service
}

// Changed returns what the backends take, and the SYN cookies of services offer, of which that has changed since it was
// called last; after Commit, all. Whoever calls it brings it into force before somebody else calls it.
func (b *Book) Changed() (c Changes) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.ledger.changed {
		for _, i := range s.tell {
			c.Admissions = append(c.Admissions, Admission{BackendKey{s.name, s.backends[i].name}, s.admits[i]})
			s.telling[i] = false
		}
		if state, ok := b.offer(s); ok {
			if c.Cookies == nil {
				c.Cookies = map[string]CookieState{}
			}
			c.Cookies[s.name] = state
		}
		s.tell, s.offers, s.listed = s.tell[:0], false, false
	}
	b.ledger.changed = b.ledger.changed[:0]
	return c
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
		t := Targets{Boot: b.boot, Generation: b.generation, Tunnel: b.tunnel, Services: slices.Clone(b.targets), Agents: slices.Clone(b.toAsk)}
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

// Fill writes what is known about backends into s, whose traffic is there already.
func (b *Book) Fill(s *Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	s.Health = b.status(now)
	s.Events = make(map[string]uint64, len(Kinds))
	for _, k := range Kinds {
		s.Events[string(k)] = b.events.counts[k]
	}
	for i := range s.Traffic.Services {
		out := &s.Traffic.Services[i]
		in := b.ledger.byName[out.Name]
		if in == nil {
			continue // removed since the traffic was read
		}
		out.Checked = in.check != nil
		out.Wanted, out.Ejected = in.verdict.Wanted, in.ejections()
		out.FailOpen, out.ReadinessIgnored, out.EjectionsIgnored = in.verdict.FailOpen, in.verdict.ReadinessIgnored, in.verdict.EjectionsIgnored
		out.Quorum = Quorum{Need: in.quorum, Have: in.verdict.Alive, Met: in.met()}
		if c, ok := b.cookies[out.Name]; ok {
			out.Cookies = cmp.Or(c.Problem, CookiesReady)
		}
		for j := range out.Backends {
			// One that is leaving may have the name of one that has come in its place.
			place, ok := b.ledger.index[BackendKey{out.Name, out.Backends[j].Name}]
			if ok && !out.Backends[j].Leaving {
				in.backends[place].fill(&out.Backends[j], &in.facts[place], now)
			}
		}
	}
}

// status tells where what is known comes from. The lock is held.
func (b *Book) status(now time.Time) HealthStatus {
	w := &b.writer
	h := HealthStatus{
		Source: w.source, Version: w.version, Reported: w.reported, AgeMS: b.age(now).Milliseconds(), Stale: b.stale(now), Unsaved: b.unsaved,
	}
	for _, s := range b.ledger.services {
		for i := range s.backends {
			h.Restored += one(s.backends[i].restored)
		}
	}
	return h
}

// fill writes what is known about b into out. f is what is known of it for Admit.
func (b *ledgerBackend) fill(out *Backend, f *Facts, now time.Time) {
	out.Health, out.Weight, out.Hand = b.shown(now), b.weight, b.hand.status()
	out.Phase, out.Switches, out.Probes = f.Phase(), b.switches, slices.Clone(b.probes)
}

// shown is the health of b as the API shows it.
func (b *ledgerBackend) shown(now time.Time) Health {
	h := b.health
	h.EjectedMS = max(0, b.ejected.Sub(now).Milliseconds())
	if b.ejected.IsZero() {
		h.EjectedMS = 0
	}
	return h
}

// age is the time since the last report, or since the start.
func (b *Book) age(now time.Time) time.Duration {
	if b.writer.reported.IsZero() {
		return now.Sub(b.started)
	}
	return now.Sub(b.writer.reported)
}

// stale says whether reports stay away though there is a check.
func (b *Book) stale(now time.Time) bool {
	return b.age(now) > staleAfter && slices.ContainsFunc(b.services, func(s config.Service) bool { return s.Check != nil })
}
