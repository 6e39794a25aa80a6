package forwarder

import (
	"errors"
	"fmt"
	"slices"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/maglev"
)

// TableChange says what an Apply did to the lookup table of a service.
type TableChange struct {
	Service string
	Size    int    // entries
	Moved   int    // entries that have another backend now
	Least   int    // entries that had to, for the shares to be what they are
	Hash    string // of the table in force; see maglev.Table.Hash
}

// Apply makes spec what is forwarded from now on, whole: workers see either the old or the new. A service whose backends did
// not change keeps its lookup table; one whose backends changed keeps the old table beside the new one for a minute. Flows of
// removed backends go on, and so do those of services and backends that only got another name. On an error nothing has
// changed.
func (e *Engine) Apply(spec Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	e.applying.Lock()
	defer e.applying.Unlock()
	// Lookup tables take a while: build them before anybody has to wait for the lock.
	e.mu.Lock()
	before := e.predecessors(spec)
	e.mu.Unlock()
	tables := make([]*maglev.Table, len(spec.Services))
	for i := range spec.Services {
		s := &spec.Services[i]
		if before[i] != nil && sameTable(&before[i].spec, s) {
			tables[i] = before[i].live.Pool.Table()
			continue
		}
		var err error
		if tables[i], err = maglev.Build(s.weighted(), s.tableSize()); err != nil {
			return fmt.Errorf("service %q: lookup table: %w", s.Name, err)
		}
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	if e.slotsNeeded(spec, before) > conntrack.MaxSlots {
		return errors.New("too many backends: slots of removed ones are not free yet; try again after the next sweep of the flow table")
	}
	e.tunnel, e.limits, e.acl = spec.Tunnel, spec.Limits, spec.ACL
	e.changes = nil
	now := e.clock()
	for _, s := range e.services {
		if !slices.Contains(before, s) {
			e.removeService(s, now)
		}
	}
	e.services = make(map[string]*serviceState, len(spec.Services))
	for i := range spec.Services {
		e.services[spec.Services[i].Name] = e.applyService(before[i], spec.Services[i], tables[i], now)
	}
	e.leave(now)
	e.recordDirectory()
	e.rebuild()
	select {
	case e.applied <- struct{}{}:
	default:
	}
	return nil
}

// TableChanges returns what the last Apply did to the lookup tables of services that were there before.
func (e *Engine) TableChanges() []TableChange {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changes
}

// predecessors finds, for each service of spec, what it goes on from: the service that has had its packets, whatever its
// name, else the one of its name; nil if there is neither. e.mu is held.
func (e *Engine) predecessors(spec Spec) []*serviceState {
	out := make([]*serviceState, len(spec.Services))
	taken := map[*serviceState]bool{}
	for _, same := range []func(old, s *ServiceSpec) bool{
		func(old, s *ServiceSpec) bool {
			return old.Name == s.Name && samePackets(old, s)
		},
		samePackets,
		func(old, s *ServiceSpec) bool { return old.Name == s.Name },
	} {
		for i := range spec.Services {
			if out[i] != nil {
				continue
			}
			// Of its name first: with thousands of services, that saves the search of all of them.
			s := &spec.Services[i]
			if old := e.services[s.Name]; old != nil && !taken[old] && same(&old.spec, s) {
				out[i], taken[old] = old, true
			}
		}
		for i := range spec.Services {
			if out[i] != nil {
				continue
			}
			for _, old := range e.services {
				if !taken[old] && same(&old.spec, &spec.Services[i]) {
					out[i], taken[old] = old, true
					break
				}
			}
		}
	}
	return out
}

// samePackets says whether two services are for the same packets.
func samePackets(a, b *ServiceSpec) bool {
	return a.VIP.Unmap() == b.VIP.Unmap() && a.Protocol == b.Protocol && slices.Equal(a.Ports, b.Ports)
}

// sameTable says whether two services have the same lookup table: it depends on the names and weights of backends alone.
func sameTable(a, b *ServiceSpec) bool {
	return a.tableSize() == b.tableSize() && slices.Equal(sorted(a.weighted()), sorted(b.weighted()))
}

// sorted sorts backends by name, leaving out those that a lookup table leaves out.
func sorted(b []maglev.Backend) []maglev.Backend {
	b = slices.DeleteFunc(b, func(b maglev.Backend) bool { return b.Weight == 0 })
	slices.SortFunc(b, func(x, y maglev.Backend) int {
		if x.Name < y.Name {
			return -1
		}
		return 1
	})
	return b
}

// slotsNeeded counts the slots in use once spec is applied.
func (e *Engine) slotsNeeded(spec Spec, before []*serviceState) int {
	n := 0
	for i := range e.slots.states {
		if e.slots.states[i].phase != slotFree {
			n++
		}
	}
	for i := range spec.Services {
		for _, b := range spec.Services[i].Backends {
			if before[i] != nil {
				if _, ok := e.slots.byKey[slotKey{before[i].number, b.Address, b.Port}]; ok {
					continue
				}
			}
			n++
		}
	}
	return n
}

func (e *Engine) removeService(s *serviceState, now int64) {
	for i := range e.slots.states {
		st := &e.slots.states[i]
		if (st.phase == slotActive || st.phase == slotLeaving) && st.key.service == s.number {
			e.slots.quarantine(uint32(i), now, e.generation+1)
		}
	}
	e.numbers[s.number] = false
	e.flooded[s.number].Store(false)
	e.offers[s.number].Store(0)
}

// applyService makes one service what its spec says. s is what it goes on from, or nil.
func (e *Engine) applyService(s *serviceState, spec ServiceSpec, table *maglev.Table, now int64) *serviceState {
	if s == nil {
		s = &serviceState{number: e.takeNumber()}
		s.base, s.unknown = e.sumService(s.number), e.sumUnknown(s.number)
	}
	s.slots = e.applyBackends(s, &spec, now)
	byIndex := make([]uint32, len(table.Names()))
	for i, name := range table.Names() {
		byIndex[i] = s.slots[name]
	}
	old := s.live.Pool
	moved := old != nil && (old.Table() != table || !slices.Equal(old.Slots(), byIndex)) // or a backend has another address now
	if old != nil && old.Table() != table {
		c := TableChange{Service: spec.Name, Size: table.Size(), Hash: table.Hash()}
		c.Moved, c.Least = maglev.Moved(old.Table(), table)
		e.changes = append(e.changes, c)
	}
	if old == nil || moved || s.adopted || old.Scheduler() != spec.Scheduler {
		pool := maglev.NewPool(table, byIndex, spec.Scheduler, max(len(e.workers), 1))
		if moved { // flows may have been opened under the old one
			s.live.Service = s.live.Next(pool, now, now+previousTableNanos)
		}
		s.live.Pool, s.adopted = pool, false
	}
	s.live.tcp, s.live.reject, s.live.noTable = spec.Protocol == protoTCP, spec.Reject, spec.NoTable
	s.live.agrees, s.live.onDown, s.live.source = spec.Scheduler.Agrees(), spec.OnDown, spec.sourceMask()
	s.live.defence, s.live.limits = spec.Defence, e.serviceLimits(s, &spec)
	if s.live.unproved == nil {
		s.live.unproved = guard.NewCeiling(len(e.workers))
	}
	s.spec = spec
	return s
}

// applyBackends gives the backends of a service their slots, and returns these by name.
func (e *Engine) applyBackends(s *serviceState, spec *ServiceSpec, now int64) map[string]uint32 {
	slots := make(map[string]uint32, len(spec.Backends))
	for _, b := range spec.Backends {
		key := slotKey{s.number, b.Address, b.Port}
		slot, fresh, ok := e.slots.take(key)
		if !ok {
			panic("forwarder: no slot left although slotsNeeded counted them")
		}
		st := &e.slots.states[slot]
		if fresh {
			for _, w := range e.workers {
				w.count.shared.signals[slot].sources.Store(0) // of whom it had before
			}
			*st = slotState{key: key, since: now, base: e.sumSlot(slot), signalsBase: e.sumSignals(slot)}
		}
		st.phase, st.backend = slotActive, b.Name
		e.live.Admit[slot].Store(uint32(b.Admit))
		slots[b.Name] = slot
	}
	return slots
}

// leave makes the slots of backends that are no longer configured leave: their flows go on.
func (e *Engine) leave(now int64) {
	configured := make([]bool, len(e.slots.states))
	for _, s := range e.services {
		for _, slot := range s.slots {
			configured[slot] = true
		}
	}
	for i := range e.slots.states {
		st := &e.slots.states[i]
		if st.phase != slotActive || configured[i] {
			continue
		}
		st.phase, st.since = slotLeaving, now
		if maglev.Admit(e.live.Admit[i].Load()).State() == maglev.Up { // what is down or cut off stays so
			e.live.Admit[i].Store(uint32(maglev.MakeAdmit(maglev.Draining, 0)))
		}
	}
}

func (e *Engine) takeNumber() uint32 {
	for i, used := range e.numbers {
		if !used {
			e.numbers[i] = true
			return uint32(i)
		}
	}
	e.numbers = append(e.numbers, true)
	return uint32(len(e.numbers) - 1)
}
