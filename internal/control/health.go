package control

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/sluice-lb/sluice/internal/config"
)

// ErrBoot is the error of a report that answers the targets of an earlier start of the daemon. Its sender asks for the
// targets again, and then reports all it knows.
var ErrBoot = errors.New("the report is meant for an earlier start of the daemon; get the targets again")

const (
	// staleAfter is how old the last report may be, in a daemon to which a health daemon reports every two seconds.
	staleAfter = 10 * time.Second
	// bookTurn is how often Run looks whether there is something to do: write, warn, or open a service.
	bookTurn = 500 * time.Millisecond
	// savedVersion is the format of the file.
	savedVersion = 1

	maxSource   = 128       // bytes of a report's source
	maxEvidence = 256       // bytes of evidence that are kept
	maxReported = 1<<18 + 1 // backends in a report
)

// Book is what the daemon knows about the health of its backends. It hands out what a health daemon is to probe, takes
// its reports, says what each backend takes now, and keeps what is known on disk. Nothing in it waits for a health
// daemon: without one the last known health holds.
//
// All methods may be called from any goroutine.
type Book struct {
	path string // of the file on disk; empty: none
	log  *slog.Logger
	boot string
	// admitted has room for one notice that Admissions may have changed.
	admitted chan struct{}

	mu         sync.Mutex
	ledger     *ledger // never nil
	restored   []saved // what was on disk, until the first configuration
	configured bool
	targets    []Target
	generation uint64
	retargeted chan struct{} // closed and replaced when the targets change
	started    time.Time
	source     string // of the last report
	sequence   uint64
	reported   time.Time // zero: never
	dirty      bool      // the file lacks something
	unsaved    string    // why it could not be written
}

// NewBook returns a Book that begins with what the file at path holds, and keeps it up to date while Run runs. A file
// that is missing, or cannot be read, is like an empty one, said in the log.
func NewBook(path string, log *slog.Logger) *Book {
	b := &Book{
		path: path, log: log, boot: rand.Text(), admitted: make(chan struct{}, 1), ledger: &ledger{},
		retargeted: make(chan struct{}), started: time.Now(),
	}
	if path != "" {
		var err error
		if b.restored, err = readSaved(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Warn("starting without last known health", "error", err)
		}
	}
	return b
}

// Pending is a configuration that is about to come into force.
type Pending struct {
	book       *Book
	services   []config.Service
	admissions map[BackendKey]Admission
}

// Prepare says what the backends of services will take when they come into force, and changes nothing.
func (b *Book) Prepare(services []config.Service) *Pending {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	return &Pending{b, services, b.next(services, now).admissions(now)}
}

// Admission returns what a backend will take.
func (p *Pending) Admission(service, backend string) Admission {
	return p.admissions[BackendKey{service, backend}]
}

// Commit makes p the configuration in force. Whoever waits for new targets gets them.
func (p *Pending) Commit() {
	b := p.book
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ledger = b.next(p.services, time.Now())
	b.configured, b.restored = true, nil
	b.dirty = true
	if list := targets(p.services); !slices.Equal(list, b.targets) || b.generation == 0 {
		b.targets = list
		b.generation++
		close(b.retargeted)
		b.retargeted = make(chan struct{})
	}
	b.notice() // a report may have come in since Prepare
}

func (b *Book) next(services []config.Service, now time.Time) *ledger {
	if !b.configured {
		return (*ledger)(nil).next(services, b.restored, now)
	}
	return b.ledger.next(services, nil, now)
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
func (b *Book) Admissions() map[BackendKey]Admission {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.admissions(time.Now())
}

// Waiting returns the services that have no backend yet, since they appeared less than three intervals ago and nothing
// good is known about their backends. A node is not ready meanwhile.
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
		t := Targets{Boot: b.boot, Generation: b.generation, Targets: slices.Clone(b.targets)}
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
	if r.Source == b.source && r.Sequence <= b.sequence {
		return answer, nil // a late one: what came after it is known already
	}
	now := time.Now()
	switch {
	case b.source != r.Source:
		b.log.Info("health daemon reports", "source", r.Source)
	case now.Sub(b.reported) > staleAfter:
		b.log.Info("health daemon reports again", "source", r.Source, "silent", now.Sub(b.reported))
	}
	b.source, b.sequence, b.reported = r.Source, r.Sequence, now
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
	for i := range r.Backends {
		h := &r.Backends[i]
		if h.State != StateUp && h.State != StateDown {
			return fmt.Errorf("health report: %s/%s: state %q, %q or %q is expected; leave out what is not known", h.Service, h.Backend, h.State, StateUp, StateDown)
		}
		if len(h.Evidence) > maxEvidence {
			h.Evidence = h.Evidence[:maxEvidence] + "..."
		}
		// Words of a backend may be in it, and end up on a terminal.
		h.Evidence = strings.Map(func(r rune) rune {
			if unicode.IsPrint(r) {
				return r
			}
			return ' '
		}, h.Evidence)
	}
	return nil
}

// Fill writes what is known about health into s, whose traffic is there already.
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
		_, out.FailOpen = in.admit(now)
		for j := range out.Backends {
			// One that is leaving may have the name of one that has come in its place.
			known := b.ledger.index[BackendKey{out.Name, out.Backends[j].Name}]
			if known != nil && !out.Backends[j].Leaving {
				out.Backends[j].Health = known.health
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

// Run keeps the file up to date, opens services that have waited long enough, and says in the log when reports stay
// away. It returns when ctx has ended and what is known is on disk.
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
	if stale && !k.stale {
		b.log.Warn("no health reports: the last known health stays in use; is sluice-healthd running?", "silent", b.age(now))
	}
	k.waiting, k.stale = waiting, stale
	b.mu.Unlock()
	if dirty && !now.Before(k.retry) {
		if err := b.save(); err != nil {
			k.retry = now.Add(staleAfter)
		}
	}
}

// save writes the file if it lacks something. Only Run calls it.
func (b *Book) save() error {
	b.mu.Lock()
	if b.path == "" || !b.dirty {
		b.mu.Unlock()
		return nil
	}
	list := b.ledger.save()
	b.dirty = false
	b.mu.Unlock()

	err := writeSaved(b.path, list)

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

// savedFile is the file's content.
type savedFile struct {
	Version  int     `json:"version"`
	Backends []saved `json:"backends"`
}

// maxSaved bounds what is read: far above what 2^18 backends need.
const maxSaved = 256 << 20

func readSaved(path string) ([]saved, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read health: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxSaved {
		return nil, fmt.Errorf("read health %s: not a regular file of a sane size; delete it", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read health: %w", err)
	}
	var f savedFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("read health %s: %w; delete the file if this stays", path, err)
	}
	if f.Version != savedVersion {
		return nil, fmt.Errorf("read health %s: version %d, this program writes %d", path, f.Version, savedVersion)
	}
	return slices.DeleteFunc(f.Backends, func(s saved) bool { return s.State != StateUp && s.State != StateDown }), nil
}

// writeSaved puts a whole new file in the place of the old one, so that a crash leaves one or the other.
func writeSaved(path string, list []saved) (err error) {
	data, err := json.MarshalIndent(savedFile{savedVersion, list}, "", " ")
	if err != nil {
		return fmt.Errorf("write health %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("write health: %w; set state_dir to a directory that can be written", err)
	}
	// One name, not one of many: what a crash leaves behind is overwritten.
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write health: %w; set state_dir to a directory that can be written", err)
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("write health: %w", err)
	}
	return nil
}
