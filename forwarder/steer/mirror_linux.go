package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// mirror is a BPF hash or trie, and what it holds. Nobody else writes the map, so only differences need to be written:
// what stays is found by the program at every moment.
type mirror[K, V comparable] struct {
	kernel *ebpf.Map
	room   int
	what   string      // an element, for errors
	key    func(K) any // as the kernel has it
	have   map[K]V
}

func newMirror[K, V comparable](kernel *ebpf.Map, what string, key func(K) any) mirror[K, V] {
	return mirror[K, V]{kernel: kernel, room: int(kernel.MaxEntries()), what: what, key: key, have: make(map[K]V)}
}

// set makes it exactly want. Removes come first, so that a set fits whenever it is small enough. After an error the same set can be given
// again.
func (m *mirror[K, V]) set(want map[K]V) error {
	if err := m.fits(want); err != nil {
		return err
	}
	if err := m.remove(want); err != nil {
		return err
	}
	return m.put(want)
}

// fits refuses a set of more elements than there may be.
func (m *mirror[K, V]) fits(want map[K]V) error {
	if len(want) > m.room {
		return fmt.Errorf("%d × %s, but room for %d", len(want), m.what, m.room)
	}
	return nil
}

// remove takes out all that is not in want.
func (m *mirror[K, V]) remove(want map[K]V) error {
	for k := range m.have {
		if _, stays := want[k]; stays {
			continue
		}
		if err := m.kernel.Delete(m.key(k)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove %s %v: %w", m.what, k, err)
		}
		delete(m.have, k)
	}
	return nil
}

// put writes all that is in want and not yet there.
func (m *mirror[K, V]) put(want map[K]V) error {
	for k, v := range want {
		if have, there := m.have[k]; there && have == v {
			continue
		}
		if err := m.kernel.Put(m.key(k), v); err != nil {
			return fmt.Errorf("add %s %v: %w", m.what, k, err)
		}
		m.have[k] = v
	}
	return nil
}

// plain reports whether an address is one that a packet can have.
func plain(a netip.Addr) bool { return a.IsValid() && a.Zone() == "" && !a.Is4In6() }

// addressOf returns an address as the program has it, IPv4 as v4-mapped.
func addressOf(a netip.Addr) (out steerAddress) {
	b := a.As16()
	for i := range out.Word {
		out.Word[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}
