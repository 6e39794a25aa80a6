package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// DefaultACLEntries is the room for entries of access lists that [New] makes if told none. An entry takes memory, some 100
// bytes in the kernel, only if there is one.
const DefaultACLEntries = 1 << 20

// maxACLEntries keeps twice as many below what the kernel counts in 32 bits.
const maxACLEntries = 1 << 30

// maxDestinations is the room for prefixes of ports that have a list, for all destinations together.
const maxDestinations = 1 << 16

// ACL says which sources may send packets to VIPs.
type ACL struct {
	Global []Entry // about packets to all VIPs, whatever they are
	Lists  []List  // about packets to one destination, after Global has let them through
}

// Entry allows or denies the sources in a prefix. Of the entries of a list that contain a source, that with the longest
// prefix decides. A source in none is allowed.
type Entry struct {
	Prefix netip.Prefix // bits beyond its length do not count
	Deny   bool
}

// List is the entries about TCP or UDP packets to some ports of a VIP. Fragments without ports and ICMP packets are no
// list's.
type List struct {
	Name    string // unique; a list that keeps its name over a change keeps its entries in the kernel
	VIP     netip.Addr
	Proto   uint8       // 6, TCP, or 17, UDP
	Ports   []PortRange // no port may be in two lists of the same VIP and protocol
	Entries []Entry
}

// PortRange is ports from First to Last, both included, host order.
type PortRange struct{ First, Last uint16 }

// acl is the access lists in force.
type acl struct {
	mu           sync.Mutex
	sources      trie
	destinations trie
	ids          map[string]uint32 // of the lists by name; 0 is the global one
	lastID       uint32
	generation   uint64 // in force
	word         *ebpf.Memory
	programs     *programs

	// What a change that failed has left in the kernel. It alters no answer, but has to go before the next change.
	leftover []func() error
}

func (a *acl) open(maps map[string]*ebpf.Map, room int) (err error) {
	a.sources = newTrie(maps[steerMapAcl], "entry of an access list", room)
	a.destinations = newTrie(maps[steerMapAclDestinations], "ports with an access list", maxDestinations)
	if a.word, err = maps[aclData].Memory(); err != nil {
		return fmt.Errorf("map the generation of the access lists: %w", err)
	}
	return nil
}

// resolved is an ACL as the two tries have it.
type resolved struct {
	sources, destinations []rule
	ids                   map[string]uint32
	lastID                uint32
}

// SetACL puts access lists in force; nil is none. Entries that stay are not touched. The change is seen at once: each packet
// is judged wholly by the lists before or wholly by those after, and when SetACL returns no more by those before. It takes
// as long as writing the difference, and twice until all CPUs have finished the packets at hand (some 10 ms each).
//
// On an error the lists before stay in force. Any goroutine may call it.
func (s *Steer) SetACL(a *ACL) error {
	s.acl.mu.Lock()
	defer s.acl.mu.Unlock()
	if a == nil {
		a = &ACL{}
	}
	want, err := s.acl.resolve(a)
	if err != nil {
		return fmt.Errorf("set access lists: %w", err)
	}
	if err := s.changeACL(want); err != nil {
		return fmt.Errorf("set access lists: %w; those before stay in force", err)
	}
	return nil
}

func (s *Steer) changeACL(want *resolved) error {
	a := &s.acl
	if err := a.settle(); err != nil {
		return err
	}
	next := a.generation + 1
	sources := makePlan(a.sources.have, want.sources, uint32(next))
	destinations := makePlan(a.destinations.have, want.destinations, uint32(next))
	if sources.empty() && destinations.empty() {
		a.ids, a.lastID = want.ids, want.lastID
		return nil
	}

	// While both sets are there, programs look for what either has.
	before, after := refusals(a.sources.have, a.destinations.have), refusals(want.sources, want.destinations)
	err := s.refuse(before|after, 0)
	if err == nil {
		err = a.sources.put(sources.puts, sources.values)
	}
	if err == nil {
		err = a.destinations.put(destinations.puts, destinations.values)
	}
	if err == nil {
		err = a.begin(next)
	}
	if err != nil {
		a.leftover = append(a.leftover,
			func() error { return a.sources.undo(sources) },
			func() error { return a.destinations.undo(destinations) },
			func() error { return s.refuse(before, byACL|byLists) })
		return errors.Join(err, a.settle())
	}
	a.sources.have, a.destinations.have = want.sources, want.destinations
	a.ids, a.lastID = want.ids, want.lastID

	// From here on the new lists are in force whatever happens: what fails now is done before the next change.
	a.leftover = append(a.leftover,
		a.programs.wait,
		func() error { return a.sources.remove(sources.removes) },
		func() error { return a.destinations.remove(destinations.removes) },
		func() error { return s.refuse(after, byACL|byLists) })
	_ = a.settle()
	return nil
}

// begin makes a generation the one in force, once all CPUs see what was written for it (see bpf/acl.h).
func (a *acl) begin(generation uint64) error {
	if err := a.programs.wait(); err != nil {
		return err
	}
	// An aligned word, which copy writes at once: no program sees a part of it.
	var word [8]byte
	binary.NativeEndian.PutUint64(word[:], generation)
	if _, err := a.word.WriteAt(word[:], 0); err != nil {
		return fmt.Errorf("begin generation %d: %w", generation, err)
	}
	a.generation = generation
	return nil
}

// settle does what an earlier change has left to do, in its order.
func (a *acl) settle() error {
	for len(a.leftover) > 0 {
		if err := a.leftover[0](); err != nil {
			return err
		}
		a.leftover = a.leftover[1:]
	}
	a.leftover = nil
	return nil
}

func refusals(sources, destinations []rule) (bits uint32) {
	if len(sources) > 0 {
		bits = byACL
	}
	if len(destinations) > 0 {
		bits |= byLists
	}
	return bits
}

// resolve checks an ACL and makes it rules. It changes nothing.
func (a *acl) resolve(from *ACL) (*resolved, error) {
	r := &resolved{ids: make(map[string]uint32, len(from.Lists)), lastID: a.lastID}
	size := len(from.Global)
	for _, l := range from.Lists {
		size += len(l.Entries)
	}
	r.sources = make([]rule, 0, size)
	if err := r.addEntries(0, from.Global); err != nil {
		return nil, err
	}
	for i := range from.Lists {
		l := &from.Lists[i]
		if _, twice := r.ids[l.Name]; twice || l.Name == "" {
			return nil, fmt.Errorf("list %q: every list needs a name of its own", l.Name)
		}
		id, known := a.ids[l.Name]
		if !known {
			r.lastID++
			id = r.lastID
		}
		r.ids[l.Name] = id
		if err := r.addList(id, l); err != nil {
			return nil, fmt.Errorf("list %q: %w", l.Name, err)
		}
	}
	if err := r.sort(); err != nil {
		return nil, err
	}
	return r, errors.Join(a.sources.fits(r.sources), a.destinations.fits(r.destinations))
}

func (r *resolved) addEntries(list uint32, entries []Entry) error {
	for _, e := range entries {
		if !e.Prefix.IsValid() || !plain(e.Prefix.Addr()) {
			return fmt.Errorf("%q is not a plain IPv4 or IPv6 prefix", e.Prefix)
		}
		r.sources = append(r.sources, rule{sourceKey(list, e.Prefix.Masked()), uint32(flag(e.Deny))})
	}
	return nil
}

func (r *resolved) addList(id uint32, l *List) error {
	switch {
	case !plain(l.VIP):
		return fmt.Errorf("%q is not a plain IPv4 or IPv6 address", l.VIP)
	case l.Proto != unix.IPPROTO_TCP && l.Proto != unix.IPPROTO_UDP:
		return fmt.Errorf("%s: protocol %d; only TCP (6) and UDP (17) have ports", l.VIP, l.Proto)
	case len(l.Ports) == 0:
		return fmt.Errorf("%s: no ports; for all of them say 0 to 65535", l.VIP)
	}
	for _, p := range l.Ports {
		if p.First > p.Last {
			return fmt.Errorf("%s: ports %d to %d; the first must not be above the last", l.VIP, p.First, p.Last)
		}
	}
	if len(l.Entries) == 0 {
		return nil // programs need not look for it
	}
	for _, key := range destinationKeys(l.VIP, l.Proto, l.Ports) {
		r.destinations = append(r.destinations, rule{key, id})
	}
	return r.addEntries(id, l.Entries)
}

// sort brings the rules into order and drops doubles. It refuses those that contradict each other.
func (r *resolved) sort() error {
	order := func(a, b rule) int { return a.compare(b.trieKey) }
	slices.SortFunc(r.sources, order)
	slices.SortFunc(r.destinations, order)
	for i := 1; i < len(r.sources); i++ {
		if a, b := r.sources[i-1], r.sources[i]; a.trieKey == b.trieKey && a.value != b.value {
			list, prefix := a.source()
			return fmt.Errorf("%s: %s is both allowed and denied", r.name(list), prefix)
		}
	}
	r.sources = slices.Compact(r.sources)
	for i := 1; i < len(r.destinations); i++ {
		if a, b := r.destinations[i-1], r.destinations[i]; a.contains(b.trieKey) { // ranges of one list are joined
			vip, proto, port := b.destination()
			return fmt.Errorf("%s and %s are both about %s protocol %d port %d", r.name(a.value), r.name(b.value), vip, proto, port)
		}
	}
	return nil
}

func (r *resolved) name(list uint32) string {
	for name, id := range r.ids {
		if id == list {
			return fmt.Sprintf("list %q", name)
		}
	}
	return "the global list"
}

const listBits = 32 // before the address in a source's key

// sourceKey is struct acl_key of the program.
func sourceKey(list uint32, p netip.Prefix) trieKey {
	k := trieKey{Bits: uint32(listBits + p.Bits())}
	family := uint32(0)
	if p.Addr().Is6() {
		family = 1
	}
	binary.BigEndian.PutUint32(k.Data[:], list<<1|family)
	copy(k.Data[listBits/8:], p.Addr().AsSlice())
	return k
}

// source is the list and the prefix of a source's key.
func (k trieKey) source() (list uint32, p netip.Prefix) {
	list = binary.BigEndian.Uint32(k.Data[:])
	addr := netip.AddrFrom16([16]byte(k.Data[listBits/8:]))
	if list&1 == 0 {
		addr = netip.AddrFrom4([4]byte(k.Data[listBits/8:]))
	}
	return list >> 1, netip.PrefixFrom(addr, int(k.Bits)-listBits)
}

// destinationKey is struct destination of the program, of a single port.
func destinationKey(vip netip.Addr, proto uint8, port uint16) trieKey {
	k := trieKey{Bits: 8 * keyBytes}
	addr := vip.As16()
	copy(k.Data[:], addr[:])
	k.Data[16] = proto
	binary.BigEndian.PutUint16(k.Data[18:], port)
	return k
}

func (k trieKey) destination() (vip netip.Addr, proto uint8, port uint16) {
	return netip.AddrFrom16([16]byte(k.Data[:])).Unmap(), k.Data[16], binary.BigEndian.Uint16(k.Data[18:])
}
