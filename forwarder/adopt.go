package forwarder

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/maglev"
)

// Directory says what the slots mean that words of a flow table name. With it, a successor goes on with the table of a
// process that has ended: it begins where that stood, and its first Apply is to it as a reload.
type Directory struct {
	// Generation grows with each one that an engine records, also over its successors.
	Generation uint64             `json:"generation"`
	Services   []DirectoryService `json:"services"`
	Slots      []DirectorySlot    `json:"slots"`
}

// DirectoryService is a service, under the number by which slots name it.
type DirectoryService struct {
	Number    uint32      `json:"number"`
	Name      string      `json:"name"`
	VIP       netip.Addr  `json:"vip"`
	Protocol  uint8       `json:"protocol"`
	Ports     []PortRange `json:"ports"`
	TableSize int         `json:"table_size"`
	Source    bool        `json:"source"` // the client's address chooses
	Life      [4]uint16   `json:"life"`   // of words, as conntrack.Life
}

// DirectorySlot is a slot that words may name.
type DirectorySlot struct {
	Slot    uint32     `json:"slot"`
	Service uint32     `json:"service"`
	Backend string     `json:"backend"`
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"`
	Weight  uint16     `json:"weight"`
	// Phase is active (configured), leaving (no longer, and its flows go on), or quarantined (its service is gone, or it was
	// done, and words may still name it).
	Phase string `json:"phase"`
}

// String returns the phase's name.
func (p slotPhase) String() string {
	return [...]string{slotFree: "free", slotActive: "active", slotLeaving: "leaving", slotQuarantined: "quarantined"}[p]
}

// recordDirectory tells who wants to know what words may mean from now on. e.mu is held.
func (e *Engine) recordDirectory() {
	if e.record == nil {
		return
	}
	e.recorded++
	d := &Directory{Generation: e.recorded}
	weights := make([]uint16, len(e.slots.states))
	for _, s := range e.services {
		d.Services = append(d.Services, DirectoryService{
			Number: s.number, Name: s.spec.Name, VIP: s.spec.VIP, Protocol: s.spec.Protocol, Ports: s.spec.Ports,
			TableSize: s.spec.tableSize(), Source: s.spec.Scheduler == maglev.Source, Life: s.spec.life(),
		})
		for _, b := range s.spec.Backends {
			weights[s.slots[b.Name]] = b.Weight
		}
	}
	slices.SortFunc(d.Services, func(a, b DirectoryService) int { return int(a.Number) - int(b.Number) })
	for i := range e.slots.states {
		st := &e.slots.states[i]
		if st.phase == slotFree {
			continue
		}
		d.Slots = append(d.Slots, DirectorySlot{
			Slot: uint32(i), Service: st.key.service, Backend: st.backend, Address: st.key.address, Port: st.key.port,
			Weight: weights[i], Phase: st.phase.String(),
		})
	}
	e.record(d)
}

// adopt puts the engine where a predecessor stood, whose words the table holds. Nothing is forwarded before the first Apply.
// A directory that contradicts itself is refused. Only NewEngine calls it.
func (e *Engine) adopt(d *Directory) error {
	e.recorded = d.Generation
	backends := map[uint32][]maglev.Backend{}
	slotsOf := map[uint32]map[string]uint32{}
	now := e.clock()
	services := map[uint32]bool{}
	for _, s := range d.Services {
		if s.Number >= MaxServices || services[s.Number] || !s.VIP.IsValid() {
			return fmt.Errorf("directory: service %q has the number %d, which is too high or taken, or no VIP", s.Name, s.Number)
		}
		services[s.Number] = true
	}
	for _, x := range d.Slots {
		key := slotKey{x.Service, x.Address, x.Port}
		for int(x.Slot) >= len(e.slots.states) && x.Slot < conntrack.MaxSlots {
			e.slots.states = append(e.slots.states, slotState{})
		}
		if x.Slot >= conntrack.MaxSlots || e.slots.states[x.Slot].phase != slotFree || !x.Address.IsValid() {
			return fmt.Errorf("directory: slot %d is out of bounds, there twice, or has no address", x.Slot)
		}
		st := slotState{phase: slotQuarantined, key: key, backend: x.Backend, since: now}
		if _, again := e.slots.byKey[key]; x.Phase != slotQuarantined.String() && services[x.Service] && !again {
			st.phase = slotLeaving
			e.slots.byKey[key] = x.Slot
			e.live.Admit[x.Slot].Store(uint32(maglev.MakeAdmit(maglev.Draining, 0)))
			if x.Phase == slotActive.String() {
				st.phase = slotActive
				e.live.Admit[x.Slot].Store(uint32(maglev.MakeAdmit(maglev.Up, maglev.All)))
				backends[x.Service] = append(backends[x.Service], maglev.Backend{Name: x.Backend, Weight: x.Weight})
				if slotsOf[x.Service] == nil {
					slotsOf[x.Service] = map[string]uint32{}
				}
				slotsOf[x.Service][x.Backend] = x.Slot
			}
		}
		e.slots.states[x.Slot] = st
	}
	for _, x := range d.Services {
		table, err := maglev.Build(backends[x.Number], x.TableSize)
		if err != nil {
			return fmt.Errorf("directory: service %q: %w", x.Name, err)
		}
		byIndex := make([]uint32, len(table.Names()))
		for i, name := range table.Names() {
			byIndex[i] = slotsOf[x.Number][name]
		}
		s := &serviceState{number: x.Number, adopted: true}
		s.spec = ServiceSpec{Name: x.Name, VIP: x.VIP, Protocol: x.Protocol, Ports: x.Ports, TableSize: x.TableSize, Life: x.Life}
		for _, b := range backends[x.Number] {
			key := e.slots.states[slotsOf[x.Number][b.Name]].key
			s.spec.Backends = append(s.spec.Backends, BackendSpec{Name: b.Name, Address: key.address, Port: key.port, Weight: b.Weight})
		}
		scheduler := maglev.Maglev
		if x.Source {
			scheduler = maglev.Source
		}
		s.live.Pool = maglev.NewPool(table, byIndex, scheduler, 1)
		s.live.tcp, s.slots = x.Protocol == protoTCP, slotsOf[x.Number]
		e.services[x.Name] = s
		for int(x.Number) >= len(e.numbers) {
			e.numbers = append(e.numbers, false)
		}
		e.numbers[x.Number] = true
	}
	for i := range e.slots.states {
		st := &e.slots.states[i]
		switch {
		case st.phase == slotFree:
			e.slots.free = append(e.slots.free, uint32(i))
		case int(st.key.service) >= len(e.numbers) || !e.numbers[st.key.service]:
			st.key.service = noService // of a service that is not in the directory: nobody may get its number
		}
	}
	e.recount()
	return nil
}

// recount counts the words of each slot that are in the table now.
func (e *Engine) recount() {
	census := conntrack.Census{Slots: make([]conntrack.SlotCensus, len(e.slots.states))}
	all := make([]conntrack.Life, conntrack.MaxSlots) // all words count, those past their time too: they are freed one by one
	for i := range all {
		all[i] = conntrack.Life{0, 1 << 12, 1 << 12, 1 << 12}
	}
	e.table.Walk(0, e.table.Lines(), conntrack.Tick(e.clock()), all, &census)
	for i := range census.Slots {
		e.live.Flows[i].Store(int32(census.Slots[i].Flows()))
	}
}
