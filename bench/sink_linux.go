package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/sluice-lb/sluice/testenv"
)

// Sink counts and drops the frames that an interface receives, before the kernel's stack sees them. Only what makes a
// link work passes, uncounted: frames to group addresses, ARP, and IPv6 neighbour and router discovery, so that others can
// resolve the interface's addresses and the kernel's chatter does not blur the counts.
type Sink struct {
	objects sinkObjects
	link    link.Link
}

// Destination is where frames went, as their outer headers say. MAC tells backends apart that share a VIP.
type Destination struct {
	MAC      [6]byte
	Addr     netip.Addr // zero for what is not IP
	Protocol uint8      // IPv4's protocol or IPv6's next header
}

// Tally is an amount of traffic.
type Tally struct {
	Packets uint64
	Bytes   uint64 // from the Ethernet header on, without the checksum
}

// StartSink puts the sink on an interface of the namespace. It runs in the driver (native XDP); an interface that has
// another program is refused.
func StartSink(ns *testenv.Namespace, ifname string) (*Sink, error) {
	s := &Sink{}
	err := ns.Do(func() error {
		dev, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		if err := loadSinkObjects(&s.objects, nil); err != nil {
			return fmt.Errorf("load the program: %w%s", err, privilegeHint(err))
		}
		s.link, err = link.AttachXDP(link.XDPOptions{Program: s.objects.Sink, Interface: dev.Index, Flags: link.XDPDriverMode})
		if err != nil {
			s.objects.Close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start a sink on %s: %w", ifname, err)
	}
	return s, nil
}

// Total returns everything counted so far.
func (s *Sink) Total() (Tally, error) {
	var perCPU []sinkTally
	if err := s.objects.Total.Lookup(uint32(0), &perCPU); err != nil {
		return Tally{}, fmt.Errorf("read the sink's total: %w", err)
	}
	return addUp(perCPU), nil
}

// Destinations returns what was counted for each destination. Beyond 4,096 destinations further ones are in the total
// alone.
func (s *Sink) Destinations() (map[Destination]Tally, error) {
	var (
		key    sinkDestination
		perCPU []sinkTally
		all    = make(map[Destination]Tally)
	)
	it := s.objects.Destinations.Iterate()
	for it.Next(&key, &perCPU) {
		all[key.destination()] = addUp(perCPU)
	}
	// A dump that is overtaken by inserts starts over by itself, and gives up at last.
	if err := it.Err(); err != nil {
		if errors.Is(err, ebpf.ErrIterationAborted) {
			return nil, fmt.Errorf("read the sink's destinations: %w; ask when there are fewer new ones", err)
		}
		return nil, fmt.Errorf("read the sink's destinations: %w", err)
	}
	return all, nil
}

// Stop takes the sink off the interface. Its counts cannot be read afterwards.
func (s *Sink) Stop() error {
	return errors.Join(s.link.Close(), s.objects.Close())
}

func addUp(perCPU []sinkTally) (t Tally) {
	for _, c := range perCPU {
		t.Packets += c.Packets
		t.Bytes += c.Bytes
	}
	return t
}

func (k *sinkDestination) destination() Destination {
	var b [16]byte
	for i, w := range k.Address {
		binary.LittleEndian.PutUint32(b[4*i:], w)
	}
	d := Destination{MAC: k.Mac, Protocol: k.Protocol}
	switch k.Version {
	case 4:
		d.Addr = netip.AddrFrom4([4]byte(b[:4]))
	case 6:
		d.Addr = netip.AddrFrom16(b)
	}
	return d
}
