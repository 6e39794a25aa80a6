package steer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// programs are those that run on all interfaces, as far as one can wait for them.
type programs struct{ inner, outer *ebpf.Map }

func (p *programs) open() (err error) {
	one := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	if p.inner, err = ebpf.NewMap(one); err != nil {
		return fmt.Errorf("make a map to wait with: %w", err)
	}
	p.outer, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: one})
	if err != nil {
		return fmt.Errorf("make a map of maps to wait with: %w", err)
	}
	return nil
}

func (p *programs) close() error {
	return errors.Join(p.inner.Close(), p.outer.Close()) // those that are there
}

// wait returns when no program runs any more that began before. The kernel does that for us when a map in a map is
// replaced (maybe_wait_bpf_programs in kernel/bpf/syscall.c); membarrier(2) would too, but not with nohz_full.
func (p *programs) wait() error {
	if err := p.outer.Put(uint32(0), p.inner); err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	return nil
}
