//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/affinity"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
)

// daemon joins the node, the book of health and the configuration, and is what the control API serves. Its methods may be
// called from any goroutine.
type daemon struct {
	file     string
	log      *slog.Logger
	level    *slog.LevelVar
	started  time.Time
	atStart  *config.Config // what the parts that cannot change were made from
	node     *forwarder.Node
	book     *control.Book
	stopping atomic.Bool

	reloading sync.Mutex // one at a time; taken before mu
	admitting sync.Mutex // held while admissions are read and brought into force, so that an older reading never comes last

	mu         sync.Mutex
	config     *config.Config // in force
	generation uint64
	loaded     time.Time
	warnings   []config.Problem
	refused    []config.Problem
}

// apply brings a configuration into force. On an error the one before stays.
func (d *daemon) apply(cfg *config.Config, warnings []config.Problem) error {
	pending := d.book.Prepare(cfg)
	if err := d.node.Apply(control.Spec(cfg, pending.Admission)); err != nil {
		return fmt.Errorf("apply %s: %w", d.file, err)
	}
	pending.Commit()
	_ = d.level.UnmarshalText([]byte(cfg.Log.Level))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config, d.loaded, d.warnings, d.refused = cfg, time.Now(), warnings, nil
	d.generation++
	return nil
}

// Reload reads the file again; see control.Daemon.
func (d *daemon) Reload(context.Context) (control.ReloadResult, error) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	var result control.ReloadResult
	var err error
	affinity.Background(func() { result, err = d.reload() })
	if err == nil {
		d.log.Info("configuration reloaded", "generation", result.Generation, "hash", result.Hash, "changed", result.Changed)
		for _, t := range result.Tables {
			d.log.Info("lookup table changed", "service", t.Service, "size", t.Size, "moved", t.Moved, "least", t.Least, "hash", t.Hash)
		}
		for _, note := range result.Notes {
			d.log.Warn("configuration", "note", note)
		}
		what := "taken, nothing has changed"
		if result.Changed {
			what = "taken"
		}
		d.book.Happened(control.Event{
			Kind: control.KindConfig, To: result.Hash, Cause: control.CauseConfig, Evidence: fmt.Sprintf("generation %d: %s", result.Generation, what),
		})
		return result, nil
	}
	d.log.Error("configuration refused; the one before stays in force", "error", err)
	first, _, _ := strings.Cut(err.Error(), "\n")
	d.book.Happened(control.Event{
		Kind: control.KindConfig, To: "refused", Cause: control.CauseConfig, Evidence: "the configuration before stays in force: " + first,
	})
	var refused *config.Error
	if errors.As(err, &refused) {
		d.mu.Lock()
		d.refused = refused.Problems
		d.mu.Unlock()
	}
	return control.ReloadResult{}, err
}

func (d *daemon) reload() (control.ReloadResult, error) {
	cfg, warnings, err := loadHere(d.file)
	if err != nil {
		return control.ReloadResult{}, err
	}
	before := d.current().Hash()
	if err := d.apply(cfg, warnings); err != nil {
		return control.ReloadResult{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := control.ReloadResult{
		Generation: d.generation, Hash: cfg.Hash(), Changed: cfg.Hash() != before,
		Warnings: warnings, Notes: needRestart(d.atStart, cfg),
	}
	for _, c := range d.node.TableChanges() {
		r.Tables = append(r.Tables, control.TableChange(c))
	}
	return r, nil
}

// needRestart names the fields whose change has no effect before the next start.
func needRestart(start, now *config.Config) (notes []string) {
	for _, f := range []struct {
		name   string
		before any
		after  any
	}{
		{"group", start.Group, now.Group},
		{"state_dir", start.StateDir, now.StateDir},
		{"control", start.Control, now.Control},
		{"interfaces", start.Interfaces, now.Interfaces},
		{"workers", start.Workers, now.Workers},
		{"cpus", start.CPUs, now.CPUs},
		{"busy_poll", start.BusyPoll, now.BusyPoll},
		{"flows", start.Flows, now.Flows},
		{"limits.per_source.table", start.Limits.PerSource.Table, now.Limits.PerSource.Table},
		{"metrics", start.Metrics, now.Metrics},
		{"log.format", start.Log.Format, now.Log.Format},
	} {
		if !reflect.DeepEqual(f.before, f.after) {
			notes = append(notes, f.name+": the change takes effect at the next start")
		}
	}
	return notes
}

func (d *daemon) current() *config.Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.config
}

func (d *daemon) drainTime() time.Duration { return d.current().DrainTime }

// followHealth brings what health and agents say into the admit words and the offers of cookies, until ctx ends.
func (d *daemon) followHealth(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.book.Admitted():
			d.admit()
		}
	}
}

// admit brings what backends take now into the admit words, and what agents accept into what SYN cookies offer.
func (d *daemon) admit() {
	d.admitting.Lock()
	defer d.admitting.Unlock()
	changes := d.book.Changed()
	for _, a := range changes.Admissions {
		d.node.SetAdmit(a.Service, a.Backend, a.Admit)
	}
	for service, c := range changes.Cookies {
		d.node.SetCookies(service, c.Offer)
	}
}

// Ready says whether the node should get traffic, and why not.
func (d *daemon) Ready() (bool, string) {
	if d.stopping.Load() {
		return false, "the daemon is stopping"
	}
	if waiting := d.book.Waiting(); len(waiting) > 0 {
		return false, fmt.Sprintf("no backend of %s is known to be up yet", waiting[0])
	}
	return d.node.Ready()
}

// Status tells everything; see control.Daemon.
func (d *daemon) Status() control.Status {
	s := control.Status{
		Version: version, PID: os.Getpid(), Started: d.started, Traffic: control.NewTraffic(d.node.Stats()),
	}
	s.Ready, s.NotReady = d.Ready()
	d.book.Fill(&s)
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Node = d.config.Node
	s.Config = control.ConfigStatus{
		File: d.file, Hash: d.config.Hash(), Generation: d.generation, Loaded: d.loaded, Warnings: d.warnings, Refused: d.refused,
	}
	return s
}
