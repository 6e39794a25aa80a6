package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
)

// MaxBans is how many sources can be banned at once.
const MaxBans = 1 << 16

// ErrTooManyBans is the error of [Steer.Ban] while [MaxBans] other sources are banned.
var ErrTooManyBans = fmt.Errorf("%d sources are banned, and there is room for no more", MaxBans)

// bans is the sources banned, in the kernel and here. Nobody else writes the map.
type bans struct {
	mu           sync.Mutex
	kernel       *ebpf.Map
	bits4, bits6 int
	until        map[netip.Addr]int64 // by masked address
}

// Ban has packets to VIPs from a source dropped and counted until a time, in ns of CLOCK_MONOTONIC. The source is all
// addresses that have the first bits of addr in common with it (see [Steer.SetBanBits]). It may end some 10 ms late, which is
// how coarse the programs' clock is. Of two bans of a source the one
// that ends later counts. A ban that has ended takes up room until [Steer.ExpireBans]; without room the error is
// [ErrTooManyBans]. Any goroutine may call it.
func (s *Steer) Ban(addr netip.Addr, until int64) error {
	b := &s.bans
	b.mu.Lock()
	defer b.mu.Unlock()
	source, err := b.source(addr)
	if err != nil {
		return fmt.Errorf("ban: %w", err)
	}
	before, there := b.until[source]
	switch {
	case until <= before:
		return nil
	case !there && len(b.until) >= MaxBans:
		return fmt.Errorf("ban %s: %w", source, ErrTooManyBans)
	}
	if err := b.kernel.Put(addressOf(source), uint64(until)); err != nil {
		return fmt.Errorf("ban %s: %w", source, err)
	}
	b.until[source] = until
	return s.refuse(byBans, 0)
}

// Unban ends the ban of the source that addr is one of, if there is one. Any goroutine may call it.
func (s *Steer) Unban(addr netip.Addr) error {
	s.bans.mu.Lock()
	defer s.bans.mu.Unlock()
	source, err := s.bans.source(addr)
	if err != nil {
		return fmt.Errorf("unban: %w", err)
	}
	if _, there := s.bans.until[source]; !there {
		return nil
	}
	return s.unban(source)
}

// ExpireBans forgets the bans that have ended at a time, in ns of CLOCK_MONOTONIC, and returns how many are left. The
// programs drop nothing by a ban that has ended: this only makes room. On an error the rest is left for the next time. Any
// goroutine may call it.
func (s *Steer) ExpireBans(now int64) (left int, err error) {
	s.bans.mu.Lock()
	defer s.bans.mu.Unlock()
	for source, until := range s.bans.until {
		if until <= now {
			if err = s.unban(source); err != nil {
				break
			}
		}
	}
	return len(s.bans.until), err
}

// unban takes a ban away. The caller holds bans.mu.
func (s *Steer) unban(source netip.Addr) error {
	if err := s.bans.kernel.Delete(addressOf(source)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("unban %s: %w", source, err)
	}
	delete(s.bans.until, source)
	if len(s.bans.until) > 0 {
		return nil
	}
	return s.refuse(0, byBans)
}

// SetBanBits says how many bits of an address make a source: 1 to 32 for IPv4, 1 to 128 for IPv6; at first 32 and 64. A
// change ends all bans. Any goroutine may call it.
func (s *Steer) SetBanBits(ipv4, ipv6 int) error {
	if ipv4 < 1 || ipv4 > 32 || ipv6 < 1 || ipv6 > 128 {
		return fmt.Errorf("ban sources of %d bits for IPv4 and %d for IPv6; there can be 1 to 32, and 1 to 128", ipv4, ipv6)
	}
	b := &s.bans
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bits4 == ipv4 && b.bits6 == ipv6 {
		return nil
	}
	for source := range b.until {
		if err := s.unban(source); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	watched := s.watched
	var mask [16]byte
	for i := range ipv6 {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	for i := range watched.BanMasks.Ipv6.Word {
		watched.BanMasks.Ipv6.Word[i] = binary.NativeEndian.Uint32(mask[4*i:])
	}
	binary.BigEndian.PutUint32(mask[:], ^uint32(0)<<(32-ipv4))
	watched.BanMasks.Ipv4 = binary.NativeEndian.Uint32(mask[:])
	if err := s.watch(watched); err != nil {
		return err
	}
	b.bits4, b.bits6, b.until = ipv4, ipv6, make(map[netip.Addr]int64)
	return nil
}

// source is what of an address names the source.
func (b *bans) source(addr netip.Addr) (netip.Addr, error) {
	if !plain(addr) {
		return addr, fmt.Errorf("%q is not a plain IPv4 or IPv6 address", addr)
	}
	bits := b.bits6
	if addr.Is4() {
		bits = b.bits4
	}
	p, err := addr.Prefix(bits)
	return p.Addr(), err
}
