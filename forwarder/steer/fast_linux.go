package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/shm"
)

// FastTable is what the fast path has in common with the workers: the memory of their flow table and admit words, and how flows are
// hashed. The maps are as shm.NewArrayMap makes them, and stay the caller's.
type FastTable struct {
	Flows  *ebpf.Map // the words of the flow table, which are the first Lines lines
	Lines  int
	Admits *ebpf.Map // admit words, 32 bits each, by slot
	Key    [2]uint64 // packet.Key
	Mix    uint64    // the key of maglev.Mix
	// Slots and Services are how many of each the fast path has room for; those with higher numbers are the workers' alone.
	Slots, Services int
}

// Orphans says what the fast path does while no daemon runs.
type Orphans struct {
	For  time.Duration // for how long it goes on forwarding
	Drop bool          // packets to VIPs that it does not forward then, and all of them afterwards, are dropped; else the kernel gets them
}

// NoExit is the Exit of a target to which the fast path sends nothing.
const NoExit = 0xff

// Target is what a packet of a slot is given: see packet.Encap. Numbers are in host order.
type Target struct {
	MACs       [12]byte  // destination and source
	GUEPort    uint16    // UDP destination port of GUE; 0: no GUE
	Overhead   uint8     // bytes of the outer headers after Ethernet: 0, 20, 28, 40 or 48
	SourceBits uint8     // how many low bits of the outer source are the flow's
	Addrs      [32]byte  // source and destination of the outer IP header, 8 bytes or 32
	Sum        uint16    // of an outer IPv4 header, see packet.Encap
	Tag        uint16    // 802.1Q tag of frames there; 0: none
	Life       [3]uint16 // in ticks, of words on probation, established and closing
	Service    uint16
	MaxLen     uint16 // bytes: the longest IP packet, as received, that fits the egress MTU
	Exit       uint8  // number of the interface that it leaves by, see SetExit; NoExit: the workers send it
}

// MaxFastRanges is how many ranges of ports a service can have that the fast path forwards for.
const MaxFastRanges = 10

// FastService is a service that the fast path forwards for. Without ports it is none.
type FastService struct {
	VIP     netip.Addr
	Proto   uint8 // 6, TCP, or 17, UDP
	Ports   []PortRange
	Keeps   bool // a backend that is down keeps its flows
	Settles bool // the workers look at every packet of a flow whose word is not established
	// SourceBits is how many leading bits of the client's address choose the backend of a new flow; 0: the flow's hash does.
	SourceBits uint8
}

// Flags of services; as in bpf/target.h.
const (
	serviceTCP     = 1
	serviceKeeps   = 2
	serviceSettles = 4
)

// countSlots is how many slots' counts are on a line.
const countSlots = 4

// fast is the fast path's side of Go.
type fast struct {
	mu              sync.Mutex
	slots, services int
	memory          []*shm.Memory
	state           []uint64 // the map fastpath
	counts          []uint64 // packets and bytes by CPU and slot
	targets         *ebpf.Memory
	kept            *ebpf.Memory // of services
	ports           mirror[trieKey, uint32]
	halves          [2]fastHalf
	programs        *programs
	samples         *ringbuf.Reader
}

// Words of the map fastpath.
const (
	fastGeneration = 0
	fastUnsettled  = 1
	fastDisturbed  = 2
	fastAlive      = 3
	fastOrphanTime = 4
	fastOrphanThen = 5
)

// fastHalf is what one half of the maps holds.
type fastHalf struct {
	targets  []steerTarget
	services []steerService
}

// ShareFlows gives the programs what the fast path needs. Before any Attach; without it there is no fast path. It forwards nothing
// before PublishFast.
func (s *Steer) ShareFlows(t FastTable) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("share the flow table with the XDP program: %w", err)
		}
	}()
	f := &s.fast
	f.slots, f.services, f.programs = t.Slots, t.Services, &s.programs
	if err := s.makeFast(steerMapFastpath, &f.state, shm.LineBytes/8); err != nil {
		return err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	f.slots = (f.slots + countSlots - 1) / countSlots * countSlots
	if err := s.makeFast(steerMapSlotCounts, &f.counts, 2*f.slots*cpus); err != nil {
		return err
	}
	if err := errors.Join(s.replace(steerMapFlows, t.Flows), s.replace(steerMapAdmits, t.Admits)); err != nil {
		return err
	}
	s.spec.Maps[steerMapTargets].MaxEntries = uint32(2 * f.slots)
	s.spec.Maps[steerMapServices].MaxEntries = uint32(2 * f.services)
	s.spec.Maps[steerMapTables].MaxEntries = uint32(f.services)
	for _, name := range []string{steerMapTargets, steerMapServices, steerMapTables} {
		m, err := ebpf.NewMap(s.spec.Maps[name])
		if err != nil {
			return fmt.Errorf("make the map %s of %d elements: %w%s", name, s.spec.Maps[name].MaxEntries, err, privilegeHint(err))
		}
		err = s.replace(name, m)
		if err = errors.Join(err, m.Close()); err != nil {
			return err
		}
	}
	if f.samples, err = ringbuf.NewReader(s.maps[steerMapSamples]); err != nil {
		return err
	}
	if f.targets, err = s.maps[steerMapTargets].Memory(); err != nil {
		return err
	}
	f.ports = newMirror[trieKey, uint32](s.maps[steerMapServed], "destination of a service", func(k trieKey) any { return k })
	if f.kept, err = s.maps[steerMapServices].Memory(); err != nil {
		return err
	}
	for i := range f.halves {
		f.halves[i] = fastHalf{make([]steerTarget, f.slots), make([]steerService, f.services)}
		for k := range f.halves[i].targets { // those in the map are 0: of service 0, which has no ports
			f.halves[i].targets[k].Exit = NoExit
		}
	}
	v := s.spec.Variables
	return errors.Join(
		v[steerVarMixKey].Set(t.Mix),
		v[steerVarFlowMask].Set(uint32(t.Lines-1)),
		v[steerVarFlowKey].Set(steerFlowKey{K0: t.Key[0], K1: t.Key[1]}),
		v[steerVarFastSlots].Set(uint32(f.slots)),
		v[steerVarFastServices].Set(uint32(f.services)),
	)
}

// makeFast makes a shared map of so many words, in memory of our own too.
func (s *Steer) makeFast(name string, words *[]uint64, n int) error {
	memory, m, err := shm.NewArrayMap("sluice_"+name, n)
	if err != nil {
		return err
	}
	defer m.Close() // the program and the memory keep what they need
	s.fast.memory = append(s.fast.memory, memory)
	*words = memory.Words()
	return s.replace(name, m)
}

// replace puts a map that somebody else made in the place of a shared one.
func (s *Steer) replace(name string, m *ebpf.Map) error {
	shared, err := m.Clone()
	if err != nil {
		return err
	}
	s.spec.Maps[name].MaxEntries = shared.MaxEntries()
	err = s.maps[name].Close()
	s.maps[name] = shared
	return err
}

// PublishFast makes these what the fast path knows from now on, targets by slot and services by number: each packet goes by all of it or
// by all of what was there before. What is beyond the room that ShareFlows made is left out. nil twice ends the fast path. It takes as
// long as writing the difference, and twice until all CPUs have finished the packets at hand (some 10 ms each).
//
// After ShareFlows. Any goroutine may call it. On an error what was there before stays in force.
func (s *Steer) PublishFast(targets []Target, services []FastService) error {
	f := &s.fast
	f.mu.Lock()
	defer f.mu.Unlock()
	generation := f.state[fastGeneration]
	if targets == nil && services == nil {
		atomic.StoreUint64(&f.state[fastGeneration], 0)
		return f.programs.wait()
	}
	if generation == 0 && len(services) == 0 || generation != 0 && f.says(int(generation&1), targets, services) {
		return nil // as before
	}
	// The half that is not in force, since the packets that went by it are through. The number of a half is the lowest bit.
	next := max(generation+1, 2)
	half := int(next & 1)
	if err := f.write(half, targets, services); err != nil {
		return fmt.Errorf("publish targets to the fast path: %w", err)
	}
	if err := f.serve(services); err != nil {
		return fmt.Errorf("publish services to the fast path: %w", err)
	}
	if err := f.programs.wait(); err != nil { // all CPUs see the half from now on
		return fmt.Errorf("publish targets to the fast path: %w", err)
	}
	atomic.StoreUint64(&f.state[fastGeneration], next)
	if err := f.programs.wait(); err != nil { // nobody reads the other half any more
		return fmt.Errorf("end the fast path's last generation: %w", err)
	}
	return nil
}

// targetAt and serviceAt are what a half is to say of a slot and of a service.
func targetAt(targets []Target, i int) steerTarget {
	if i < len(targets) && targets[i].Exit != NoExit {
		return targets[i].encode()
	}
	return steerTarget{Exit: NoExit}
}

func serviceAt(services []FastService, i int) steerService {
	if i < len(services) {
		return services[i].encode()
	}
	return steerService{}
}

// says reports whether this is what a half says already.
func (f *fast) says(half int, targets []Target, services []FastService) bool {
	h := &f.halves[half]
	for i := range h.targets {
		if h.targets[i] != targetAt(targets, i) {
			return false
		}
	}
	for i := range h.services {
		if h.services[i] != serviceAt(services, i) {
			return false
		}
	}
	return true
}

// write brings one half of the maps up to date.
func (f *fast) write(half int, targets []Target, services []FastService) error {
	h := &f.halves[half]
	var buffer []byte
	for i := range h.targets {
		next := targetAt(targets, i)
		if next == h.targets[i] {
			continue
		}
		var err error
		if buffer, err = put(f.targets, buffer[:0], half*f.slots+i, &next); err != nil {
			return err
		}
		h.targets[i] = next
	}
	for i := range h.services {
		next := serviceAt(services, i)
		if next == h.services[i] {
			continue
		}
		var err error
		if buffer, err = put(f.kept, buffer[:0], half*f.services+i, &next); err != nil {
			return err
		}
		h.services[i] = next
	}
	return nil
}

// serve brings the destinations up to date, which only packets without a word are looked up by, while no daemon runs.
func (f *fast) serve(services []FastService) error {
	want := map[trieKey]uint32{}
	for number := range services[:min(len(services), f.services)] {
		s := &services[number]
		if len(s.Ports) == 0 || len(s.Ports) > MaxFastRanges {
			continue
		}
		for _, k := range destinationKeys(s.VIP, s.Proto, s.Ports) {
			want[k] = uint32(number)
		}
	}
	return f.ports.set(want)
}

// put writes element i of a map that is mapped.
func put(m *ebpf.Memory, buffer []byte, i int, element any) ([]byte, error) {
	buffer, err := binary.Append(buffer, binary.LittleEndian, element)
	if err != nil {
		return buffer, err
	}
	_, err = m.WriteAt(buffer, int64(i)*int64(len(buffer)))
	return buffer, err
}

func (t *Target) encode() steerTarget {
	out := steerTarget{
		Macs: t.MACs, GuePort: t.GUEPort, Overhead: t.Overhead, SourceBits: t.SourceBits, Sum: t.Sum,
		Tag: t.Tag, Life: t.Life, Service: t.Service, MaxLen: t.MaxLen, Exit: t.Exit,
	}
	for i := range out.Addrs {
		out.Addrs[i] = binary.LittleEndian.Uint32(t.Addrs[4*i:])
	}
	return out
}

func (s *FastService) encode() steerService {
	out := steerService{Proto: s.Proto, SourceBits: s.SourceBits}
	if len(s.Ports) > MaxFastRanges || len(s.Ports) == 0 {
		return out
	}
	out.Vip = addressOf(s.VIP)
	out.Ranges = uint8(len(s.Ports))
	for i, r := range s.Ports {
		out.Ports[i] = steerPortRange{First: r.First, Last: r.Last}
	}
	if s.Proto == unix.IPPROTO_TCP {
		out.Flags |= serviceTCP
	}
	if s.Keeps {
		out.Flags |= serviceKeeps
	}
	if s.Settles {
		out.Flags |= serviceSettles
	}
	return out
}

// FastWords are what the fast path is told at any time. They are written with sync/atomic.
type FastWords struct {
	Unsettled *uint64 // until when packets of TCP flows whose word is not established are the workers', CLOCK_MONOTONIC ns
	Disturbed *uint64 // not 0: there is a flood or an overload, and no connection proves its source
	// Alive is until when there is a daemon whose workers work, CLOCK_MONOTONIC ns, unless it says so again. What there is nobody to
	// take then is as SetOrphans says.
	Alive *uint64
}

// Words returns the fast path's words. After ShareFlows.
func (s *Steer) Words() FastWords {
	return FastWords{Unsettled: &s.fast.state[fastUnsettled], Disturbed: &s.fast.state[fastDisturbed], Alive: &s.fast.state[fastAlive]}
}

// SetOrphans says what becomes of packets while no daemon runs. After ShareFlows.
func (s *Steer) SetOrphans(o Orphans) {
	then := uint64(xdpPass)
	if o.Drop {
		then = xdpDrop
	}
	atomic.StoreUint64(&s.fast.state[fastOrphanTime], uint64(o.For))
	atomic.StoreUint64(&s.fast.state[fastOrphanThen], then)
}

// What enum xdp_action calls the verdicts.
const (
	xdpDrop = 1
	xdpPass = 2
)

// LookupTable is what the fast path goes by for packets without a word while no daemon runs: of each entry the index of its backend, and of
// each backend the slot.
type LookupTable struct {
	Entries []uint16
	Slots   []uint32
}

// tableLine is how many bytes a line of a table has; as in bpf/orphan.h.
const tableLine = 64

// SetTables gives services, by number, their lookup tables; an empty one takes it away. Any goroutine may call it.
func (s *Steer) SetTables(tables map[int]LookupTable) (err error) {
	f := &s.fast
	f.mu.Lock()
	defer f.mu.Unlock()
	outer := s.maps[steerMapTables]
	var numbers, made []uint32 // made are descriptors
	for number, t := range tables {
		if number >= f.services {
			continue
		}
		if len(t.Entries) == 0 || len(t.Slots) == 0 {
			if err := outer.Delete(uint32(number)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("take the lookup table of service %d away: %w", number, err)
			}
			continue
		}
		m, err := s.newTable(&t)
		if err != nil {
			return fmt.Errorf("lookup table of service %d: %w%s", number, err, privilegeHint(err))
		}
		defer m.Close() // the map that it is in keeps it
		numbers, made = append(numbers, uint32(number)), append(made, uint32(m.FD()))
	}
	if len(numbers) == 0 {
		return nil
	}
	// Each change of such a map waits for running programs; together they wait once.
	if _, err := outer.BatchUpdate(numbers, made, nil); err != nil {
		return fmt.Errorf("set %d lookup tables: %w", len(numbers), err)
	}
	return nil
}

// newTable makes the map of a lookup table.
func (s *Steer) newTable(t *LookupTable) (*ebpf.Map, error) {
	lines := func(n, each int) int { return (n + each - 1) / each * tableLine }
	entries := lines(len(t.Entries), tableLine/2)
	bytes := make([]byte, tableLine+entries+lines(len(t.Slots), tableLine/4))
	binary.LittleEndian.PutUint32(bytes[0:], uint32(len(t.Entries)))
	binary.LittleEndian.PutUint32(bytes[4:], uint32(len(t.Slots)))
	for i, e := range t.Entries {
		binary.LittleEndian.PutUint16(bytes[tableLine+2*i:], e)
	}
	for i, slot := range t.Slots {
		binary.LittleEndian.PutUint32(bytes[tableLine+entries+4*i:], slot)
	}
	spec := s.spec.Maps[steerMapTables].InnerMap.Copy()
	spec.MaxEntries = uint32(len(bytes) / tableLine)
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, err
	}
	memory, err := m.Memory()
	if err == nil {
		_, err = memory.WriteAt(bytes, 0)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// SetExit says which interface of this network namespace the one with this number is; 0: it is gone.
func (s *Steer) SetExit(number, ifindex int) error {
	if ifindex == 0 {
		if err := s.maps[steerMapExits].Delete(uint32(number)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("take exit %d away: %w", number, err)
		}
		return nil
	}
	if err := s.maps[steerMapExits].Put(uint32(number), uint32(ifindex)); err != nil {
		return fmt.Errorf("set exit %d to interface %d: %w", number, ifindex, err)
	}
	return nil
}

// SlotCount returns what the fast path has forwarded to a slot since ShareFlows: packets, and bytes of IP as received. Any goroutine may
// call it.
func (s *Steer) SlotCount(slot int) (packets, bytes uint64) {
	f := &s.fast
	if slot >= f.slots {
		return 0, 0
	}
	for at := 2 * slot; at < len(f.counts); at += 2 * f.slots {
		packets += atomic.LoadUint64(&f.counts[at])
		bytes += atomic.LoadUint64(&f.counts[at+1])
	}
	return packets, bytes
}

// SamplePeriod is how many packets of the fast path a sample stands for; as in bpf/target.h.
const SamplePeriod = 1 << 10

// Samples calls f with the sources of the packets of the fast path that were sampled since it was called last, IPv4 as mapped, big-endian.
// What there are too many of to keep until then is left out. After ShareFlows; one goroutine at a time.
func (s *Steer) Samples(f func(hi, lo uint64)) error {
	r := s.fast.samples
	if r.AvailableBytes() == 0 { // most often: this is no system call
		return nil
	}
	r.SetDeadline(time.Unix(1, 0)) // what is there, and no waiting for more
	var record ringbuf.Record
	for {
		switch err := r.ReadInto(&record); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("read samples of the fast path: %w", err)
		case len(record.RawSample) >= 16:
			f(binary.BigEndian.Uint64(record.RawSample), binary.BigEndian.Uint64(record.RawSample[8:]))
		}
	}
}

// forwarded returns what the fast path has forwarded in all, in packets.
func (f *fast) forwarded() (sum uint64) {
	for at := 0; at < len(f.counts); at += 2 {
		sum += atomic.LoadUint64(&f.counts[at])
	}
	return sum
}

// PinCounters pins the counters in a file in a BPF file system, so that who comes after this process can read with OrphansOf what happened
// while there was none.
func (s *Steer) PinCounters(file string) error {
	if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
		return err
	}
	return s.maps[steerMapStats].Pin(file)
}

// OrphansOf reads from counters that a process before this one has pinned what its programs forwarded while no daemon ran, and what they
// did not, in packets.
func OrphansOf(file string) (forwarded, refused uint64, err error) {
	m, err := ebpf.LoadPinnedMap(file, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, 0, err
	}
	defer m.Close()
	if size := binary.Size(steerCounters{}); int(m.ValueSize()) != size {
		return 0, 0, fmt.Errorf("%s: counters of %d bytes, not %d: they are of another version", file, m.ValueSize(), size)
	}
	var cpus []steerCounters
	if err := m.Lookup(uint32(0), &cpus); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", file, err)
	}
	for i := range cpus {
		forwarded += cpus[i].Orphaned
		refused += cpus[i].NoDaemon
	}
	return forwarded, refused, nil
}
