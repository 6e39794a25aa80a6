package control

import (
	"context"
	"path/filepath"
	"time"
)

// What time brings.

// Run keeps the files up to date, opens services that have waited long enough, ends drains and ejections whose time is
// over, moves slow starts on, and says when reports stay away. It returns when ctx has ended and what is known is on disk.
func (b *Book) Run(ctx context.Context) {
	tick := time.NewTicker(bookTurn)
	defer tick.Stop()
	var turn bookkeeping
	for {
		select {
		case <-tick.C:
			b.turn(&turn)
		case <-ctx.Done():
			_ = b.save()
			return
		}
	}
}

// bookkeeping is what Run remembers from one turn to the next.
type bookkeeping struct {
	stale bool      // and said so
	write time.Time // not to write before then
}

func (b *Book) turn(k *bookkeeping) {
	b.mu.Lock()
	now := time.Now()
	b.pass(now)
	stale, dirty := b.stale(now), b.dirty
	if stale && !k.stale {
		b.log.Warn("no health reports: the last known health stays in use; is sluice-healthd running?", "silent", b.age(now))
		b.happened(Event{Kind: KindHealthd, From: "reports", To: "silent", Evidence: "no health reports; the last known health stays in use"}, now)
	}
	k.stale = stale
	b.mu.Unlock()
	if now.Before(k.write) {
		return
	}
	var health, marks error
	if dirty {
		health = b.save()
		k.write = now.Add(writeEvery)
	}
	if b.hands.TryLock() { // not to wait for a slow disk here
		marks = b.forget()
		b.hands.Unlock()
	}
	if health != nil || marks != nil {
		k.write = now.Add(staleAfter)
	}
}

// pass settles the services of which something has changed since time has passed. The lock is held.
func (b *Book) pass(now time.Time) {
	for _, s := range b.ledger.services {
		if !s.timed() {
			continue
		}
		for _, i := range s.cut(now) {
			known := &s.backends[i]
			e := Event{
				Kind: KindHand, Service: s.name, Backend: known.name, From: string(PhaseDraining), To: string(PhaseDraining), Cause: CauseTime,
				Evidence: "the time of its drain is over: flows that are left are ended",
			}
			if known.hand.maintenance.IsZero() {
				b.log.Warn("the time of a drain by hand is over: flows that are left are ended", "service", s.name, "backend", known.name)
			} else {
				e.From, e.To = string(PhaseMaintenance), string(PhaseMaintenance)
				b.log.Info("the time of a drain by hand is over: flows that are left are ended", "service", s.name, "backend", known.name)
			}
			b.happened(e, now)
		}
		b.tell(b.ledger.pass(s, now), now)
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
