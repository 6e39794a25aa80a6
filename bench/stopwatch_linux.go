package bench

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/sluice-lb/sluice/testenv"
)

// Stopwatch counts and drops the frames that a [Generator] has stamped ([Traffic.Stamp]), by how long they were under way: from
// when the generator's program made them until they meet the stopwatch, in the driver of the receiving interface. They may have an
// outer IPv4 header by then. Everything else passes.
//
// Both times are the kernel's monotonic clock, so nothing of a program's own adds to what is measured. A smooth generator hands up
// to 64 frames to the device at once, some microseconds after the first was made: that is a part of all times.
type Stopwatch struct {
	objects stopwatchObjects
	link    link.Link
}

// partBits is PART_BITS of stopwatch.c: a time is known to 1 in 2^partBits.
const partBits = 6

// StartStopwatch puts a stopwatch on an interface of the namespace, as [StartSink] does with a sink.
func StartStopwatch(ns *testenv.Namespace, ifname string) (*Stopwatch, error) {
	s := &Stopwatch{}
	err := ns.Do(func() error {
		dev, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		if err := loadStopwatchObjects(&s.objects, nil); err != nil {
			return fmt.Errorf("load the program: %w%s", err, privilegeHint(err))
		}
		s.link, err = link.AttachXDP(link.XDPOptions{Program: s.objects.Stopwatch, Interface: dev.Index, Flags: link.XDPDriverMode})
		if err != nil {
			s.objects.Close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start a stopwatch on %s: %w", ifname, err)
	}
	return s, nil
}

// Times calls f for each time at which frames have arrived, in ascending order, with their number. A time is the middle of what
// the stopwatch cannot tell apart, 1.6 % of it.
func (s *Stopwatch) Times(f func(took time.Duration, frames uint64)) error {
	n := s.objects.Times.MaxEntries()
	cursor, keys := ebpf.MapBatchCursor{}, make([]uint32, n)
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("read the stopwatch: %w", err)
	}
	counts := make([]uint64, int(n)*cpus)
	got, err := s.objects.Times.BatchLookup(&cursor, keys, counts, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which says that these were all
		return fmt.Errorf("read the stopwatch: %w", err)
	}
	for i, key := range keys[:got] {
		var frames uint64
		for _, c := range counts[i*cpus:][:cpus] {
			frames += c
		}
		if frames > 0 {
			f(timeOf(key), frames)
		}
	}
	return nil
}

// Stop takes the stopwatch off the interface. Its counts cannot be read afterwards.
func (s *Stopwatch) Stop() error {
	return errors.Join(s.link.Close(), s.objects.Close())
}

// timeOf is the middle of a bucket; see bucket in stopwatch.c.
func timeOf(bucket uint32) time.Duration {
	const parts = 1 << partBits
	if bucket < parts {
		return time.Duration(bucket)
	}
	shift := bucket/parts - 1
	low := uint64(parts+bucket%parts) << shift
	return time.Duration(low + 1<<shift>>1)
}
