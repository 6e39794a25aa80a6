package steer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Source is where replies of a NAT backend come from.
type Source struct {
	Addr        netip.Addr
	Proto       uint8  // 6, TCP, or 17, UDP
	First, Last uint16 // source ports, both included, host order; 0 to 65535: any
}

// endpoint is a pair of address and protocol.
type endpoint struct {
	addr  netip.Addr
	proto uint8
}

func (e endpoint) String() string { return fmt.Sprintf("%s protocol %d", e.addr, e.proto) }

func (e endpoint) key() any { return steerReplyKey{Addr: addressOf(e.addr), Proto: e.proto} }

// portBlock is 256 ports of an endpoint: those with the upper byte n.
type portBlock struct {
	endpoint
	n uint8
}

func (b portBlock) String() string {
	return fmt.Sprintf("%s ports %d to %d", b.endpoint, int(b.n)<<8, int(b.n)<<8|0xff)
}

func (b portBlock) key() any {
	return steerReplyKey{Addr: addressOf(b.addr), Proto: b.proto, Block: uint16(b.n)}
}

// SetReplies makes the sources of replies exactly these, in any order; they may overlap. Packets from them, and ICMP errors
// about packets to them, are steered like packets to VIPs, but for those to the node's own addresses (see [Steer.SetLoops]).
// The fragments of a packet after the first go with the first, if they come after it.
//
// Of the room given to [New], each pair of address and protocol takes one, however long its range of ports. Where a pair
// has several ranges with gaps between them, each 256 ports, aligned, in which it has one take one of as much room again.
//
// Like [Steer.SetVIPs] it writes only the difference: packets from a source that stays are steered throughout. It can be
// called again after an error.
func (s *Steer) SetReplies(sources []Source) error {
	ranges := make(map[endpoint][]PortRange)
	for _, r := range sources {
		switch {
		case !plain(r.Addr):
			return fmt.Errorf("set sources of replies: %q is not a plain IPv4 or IPv6 address", r.Addr)
		case r.Proto != unix.IPPROTO_TCP && r.Proto != unix.IPPROTO_UDP:
			return fmt.Errorf("set sources of replies: %s: protocol %d; only TCP (6) and UDP (17) can be translated",
				r.Addr, r.Proto)
		case r.First > r.Last:
			return fmt.Errorf("set sources of replies: %s: ports %d to %d; the first must not be above the last",
				r.Addr, r.First, r.Last)
		}
		e := endpoint{r.Addr, r.Proto}
		ranges[e] = append(ranges[e], PortRange{r.First, r.Last})
	}
	wantSources, wantBlocks := make(map[endpoint]steerReplySource), make(map[portBlock]steerReplyBlock)
	for e, of := range ranges {
		of = union(of)
		source := steerReplySource{First: of[0].First, Last: of[len(of)-1].Last}
		if len(of) > 1 {
			source.Gaps = 1
			for _, r := range of {
				for n := int(r.First) >> 8; n <= int(r.Last)>>8; n++ {
					k := portBlock{e, uint8(n)}
					b := wantBlocks[k]
					for p := max(int(r.First), n<<8); p <= min(int(r.Last), n<<8|0xff); p++ {
						b.Bits[p>>6&3] |= 1 << (p & 63)
					}
					wantBlocks[k] = b
				}
			}
		}
		wantSources[e] = source
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.sources.fits(wantSources); err != nil {
		return fmt.Errorf("set sources of replies: %w", err)
	}
	if err := s.blocks.fits(wantBlocks); err != nil {
		return fmt.Errorf("set sources of replies: %w; have the backends use ports without gaps", err)
	}
	// Removes come first, so that the new set fits whenever it is small enough. Blocks are there before the source that
	// needs them, and as long as it does.
	if err := s.sources.remove(wantSources); err != nil {
		return err
	}
	if err := s.blocks.put(wantBlocks); err != nil {
		return err
	}
	if err := s.sources.put(wantSources); err != nil {
		return err
	}
	if err := s.blocks.remove(wantBlocks); err != nil {
		return err
	}
	watched := s.watched
	watched.Replies = flag(len(wantSources) > 0)
	return s.watch(watched)
}

// union sorts ranges of ports and joins those that touch or overlap, in place.
func union(ranges []PortRange) []PortRange {
	slices.SortFunc(ranges, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	n := 0
	for _, r := range ranges[1:] {
		if last := &ranges[n].Last; int(r.First) <= int(*last)+1 {
			*last = max(*last, r.Last)
			continue
		}
		n++
		ranges[n] = r
	}
	return ranges[:n+1]
}
