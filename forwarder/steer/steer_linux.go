package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// sharedData is the section of the global variables that all interfaces have in common.
const sharedData = ".data.shared"

// aclData is that of the generation of the access lists.
const aclData = ".data.acl"

// sharedMaps are what the programs on all interfaces have in common.
var sharedMaps = []string{
	steerMapVips, steerMapOwn, steerMapReplySources, steerMapReplyBlocks, steerMapReplyDatagrams, steerMapStats, sharedData,
	steerMapAcl, steerMapAclDestinations, aclData, steerMapBans, steerMapShed, steerMapShedCounts, steerMapProved,
	steerMapFlows, steerMapAdmits, steerMapFastpath, steerMapTargets, steerMapServices, steerMapSlotCounts, steerMapExits,
	steerMapServed, steerMapTables, steerMapSamples,
}

// Steer is what the programs on all interfaces share: the set of VIPs, the sources of replies, the node's own addresses,
// the access lists, the bans, what is shed, and the counters.
type Steer struct {
	spec *ebpf.CollectionSpec // the program, with its shared maps sized; copied for each interface
	maps map[string]*ebpf.Map // the shared ones

	programs programs

	mu      sync.Mutex // over what follows, and what writes the maps
	watched steerWatched
	vips    mirror[netip.Addr, uint8]
	own     mirror[netip.Prefix, uint8]
	sources mirror[endpoint, steerReplySource]
	blocks  mirror[portBlock, steerReplyBlock]

	// Each has a lock of its own, taken before mu: a change of long lists delays nothing else.
	acl      acl
	bans     bans
	shedding sync.Mutex
	shed     mirror[trieKey, steerShedValue]
	fast     fast
}

// Stats is what the programs counted on all interfaces since New.
// ToVIPs + Replies = Redirected + Forwarded + NoExit + NoDaemon + NoSocket + Loops + Denied + Banned + Shed.
type Stats struct {
	// Packets whose destination is a VIP. A packet in a loop, which has the VIP as destination inside its outer headers,
	// is one of them.
	ToVIPs     uint64
	Replies    uint64 // packets that NAT backends sent, and ICMP errors about what was sent to them
	Loops      uint64 // packets that went round in circles, dropped
	Redirected uint64 // packets given to an AF_XDP socket
	NoSocket   uint64 // packets dropped because their queue has no socket
	Denied     uint64 // packets dropped because a list denies their source (see SetACL)
	Banned     uint64 // packets dropped because their source is banned (see Ban)
	Shed       uint64 // packets dropped because the workers cannot take all (see SetShed)
	Forwarded  uint64 // packets sent to their backends by the fast path (see PublishFast)
	NoExit     uint64 // packets dropped there because the interface that they were to leave by is gone
	NoDaemon   uint64 // packets not forwarded because no daemon ran (see Orphans)
	Orphaned   uint64 // of Forwarded, those while no daemon ran
}

// New makes the shared maps, with room for maxVIPs addresses, for maxReplies pairs of address and protocol from which
// replies come (see [Steer.SetReplies]), and for maxACL entries of all access lists together (see [Steer.SetACL]; 0:
// [DefaultACLEntries]). No frame is touched before [Steer.Attach].
func New(maxVIPs, maxReplies, maxACL int) (_ *Steer, err error) {
	if maxVIPs < 1 || maxReplies < 1 {
		return nil, fmt.Errorf("new steer: room for %d VIPs and %d sources of replies; at least 1 of each is needed",
			maxVIPs, maxReplies)
	}
	if maxACL < 0 || maxACL > maxACLEntries {
		return nil, fmt.Errorf("new steer: room for %d entries of access lists; at most %d can be", maxACL, maxACLEntries)
	}
	if maxACL == 0 {
		maxACL = DefaultACLEntries
	}
	spec, err := loadSteer()
	if err != nil {
		return nil, fmt.Errorf("read the steering program: %w", err)
	}
	spec.Maps[steerMapVips].MaxEntries = uint32(maxVIPs)
	spec.Maps[steerMapReplySources].MaxEntries = uint32(maxReplies)
	// While the set changes, old and new blocks are there together.
	spec.Maps[steerMapReplyBlocks].MaxEntries = uint32(2 * maxReplies)

	// Likewise; and the one more lets old kernels (before Linux 6.13) replace an element of a trie that is full.
	spec.Maps[steerMapAcl].MaxEntries = uint32(2*maxACL + 1)
	spec.Maps[steerMapAclDestinations].MaxEntries = 2*maxDestinations + 1

	// Loading the program would ask for that by itself, and refuse a map without.
	spec.Maps[sharedData].Flags |= unix.BPF_F_MMAPABLE
	spec.Maps[aclData].Flags |= unix.BPF_F_MMAPABLE

	s := &Steer{spec: spec, maps: make(map[string]*ebpf.Map)}
	for _, name := range sharedMaps {
		if s.maps[name], err = ebpf.NewMap(spec.Maps[name]); err != nil {
			delete(s.maps, name)
			s.Close()
			return nil, fmt.Errorf("make the map %s of %d elements: %w%s",
				name, spec.Maps[name].MaxEntries, err, privilegeHint(err))
		}
	}
	s.vips = newMirror[netip.Addr, uint8](s.maps[steerMapVips], "VIP", func(a netip.Addr) any { return addressOf(a) })
	s.own = newMirror[netip.Prefix, uint8](s.maps[steerMapOwn], "own prefix", prefixKey)
	s.sources = newMirror[endpoint, steerReplySource](s.maps[steerMapReplySources], "source of replies", endpoint.key)
	s.blocks = newMirror[portBlock, steerReplyBlock](s.maps[steerMapReplyBlocks], "reply ports", portBlock.key)
	s.blocks.room = maxReplies
	s.acl.programs = &s.programs
	if err := errors.Join(s.programs.open(), s.acl.open(s.maps, maxACL)); err != nil {
		s.Close()
		return nil, fmt.Errorf("new steer: %w", err)
	}
	s.bans.kernel = s.maps[steerMapBans]
	s.shed = newMirror[trieKey, steerShedValue](s.maps[steerMapShed], "destination to shed", func(k trieKey) any { return k })
	if err := s.SetBanBits(32, 64); err != nil {
		s.Close()
		return nil, fmt.Errorf("new steer: %w", err)
	}
	return s, nil
}

// Close lets go of the shared maps. Links stay attached, with the VIPs they have, until they are closed themselves.
func (s *Steer) Close() (err error) {
	err = s.programs.close()
	for _, m := range s.fast.memory {
		err = errors.Join(err, m.Close())
	}
	if s.fast.samples != nil {
		err = errors.Join(err, s.fast.samples.Close())
	}
	for _, m := range s.maps {
		err = errors.Join(err, m.Close())
	}
	return err
}

// SetVIPs makes the set of VIPs exactly addrs, in any order; doubles count once. Only the difference is written: packets
// to an address that was in the set and stays are steered throughout. Either everything is applied, or an error says
// which address was not; then calling it again with the same addresses does the rest.
func (s *Steer) SetVIPs(addrs []netip.Addr) error {
	want := make(map[netip.Addr]uint8, len(addrs))
	for _, a := range addrs {
		if !plain(a) {
			return fmt.Errorf("set VIPs: %q is not a plain IPv4 or IPv6 address", a)
		}
		want[a] = 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.vips.set(want); err != nil {
		return fmt.Errorf("set VIPs: %w", err)
	}
	return nil
}

// SetLoops says what the node's own addresses are: those that it has, and those that it uses as the source of outer
// headers. A packet to a VIP that is found inside IPIP, or inside GUE to UDP port guePort (variant 1; 0: none), in a packet
// from or to one of them is dropped and counted. Any other tunnelled packet is left to the stack, and so is a reply to one
// of them: what a NAT backend says to the node itself answers a health probe of the node.
//
// Like [Steer.SetVIPs] it writes only the difference, and can be called again after an error.
func (s *Steer) SetLoops(own []netip.Prefix, guePort uint16) error {
	want := make(map[netip.Prefix]uint8, len(own))
	for _, p := range own {
		if !p.IsValid() || !plain(p.Addr()) {
			return fmt.Errorf("set own addresses: %q is not a plain IPv4 or IPv6 prefix", p)
		}
		want[p.Masked()] = 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.own.set(want); err != nil {
		return fmt.Errorf("set own addresses: %w", err)
	}
	watched := s.watched
	watched.Own, watched.GuePort = flag(len(want) > 0), guePort
	return s.watch(watched)
}

func prefixKey(p netip.Prefix) any {
	key := steerPrefix{Bits: uint32(p.Bits()), Addr: addressOf(p.Addr())}
	if p.Addr().Is4() {
		key.Bits += 96 // v4-mapped
	}
	return key
}

// watch tells the programs what to look for beyond VIPs. The caller holds mu.
func (s *Steer) watch(w steerWatched) error {
	if w == s.watched {
		return nil
	}
	if err := s.maps[sharedData].Put(uint32(0), w); err != nil {
		return fmt.Errorf("tell the steering programs what to look for: %w", err)
	}
	s.watched = w
	return nil
}

// What of a packet to a VIP the programs look at before they take it; as in bpf/steer.c.
const (
	byBans  = 1
	byACL   = 2
	byLists = 4
	byShed  = 8
)

// refuse changes what they look at: first the bits clear are cleared, then the bits set are set.
func (s *Steer) refuse(set, clear uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	watched := s.watched
	watched.Refusals = watched.Refusals&^clear | set
	return s.watch(watched)
}

func flag(on bool) uint8 {
	if on {
		return 1
	}
	return 0
}

// Stats sums the counters of all CPUs. They only grow. While frames arrive they may be of slightly different instants;
// at rest they balance.
func (s *Steer) Stats() (Stats, error) {
	var perCPU []steerCounters
	if err := s.maps[steerMapStats].Lookup(uint32(0), &perCPU); err != nil {
		return Stats{}, fmt.Errorf("read the steering counters: %w", err)
	}
	var sum Stats
	for _, c := range perCPU {
		sum.ToVIPs += c.ToVips
		sum.Replies += c.Replies
		sum.Loops += c.Loops
		sum.Redirected += c.Redirected
		sum.NoSocket += c.NoSocket
		sum.Denied += c.Denied
		sum.Banned += c.Banned
		sum.Shed += c.Shed
		sum.NoExit += c.NoExit
		sum.NoDaemon += c.NoDaemon
		sum.Orphaned += c.Orphaned
	}
	sum.Forwarded = s.fast.forwarded()
	sum.ToVIPs += sum.Forwarded
	return sum, nil
}

// privilegeHint names the likely cause of a refusal.
func privilegeHint(err error) string {
	if errors.Is(err, os.ErrPermission) {
		return "; needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (run as root)"
	}
	return ""
}
