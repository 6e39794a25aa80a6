package steer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// batch is how many elements a system call writes.
const batch = 4096

// trie is a longest-prefix trie in the kernel, and what it holds.
type trie struct {
	kernel *ebpf.Map
	room   int
	what   string // an element, for errors
	have   []rule // in force, sorted

	single bool // the kernel has no batches for tries (before Linux 5.13)
	writes int  // elements written and removed, for tests
}

func newTrie(kernel *ebpf.Map, what string, room int) trie {
	return trie{kernel: kernel, what: what, room: room}
}

func (t *trie) fits(now []rule) error {
	if len(now) > t.room {
		return fmt.Errorf("%d × %s, but room for %d", len(now), t.what, t.room)
	}
	return nil
}

// put writes elements. On an error some of them may be written.
func (t *trie) put(keys []trieKey, values []trieValue) error {
	for len(keys) > 0 {
		n := min(len(keys), batch)
		err := t.putBatch(keys[:n], values[:n])
		if err != nil {
			return fmt.Errorf("add %s: %w", t.what, err)
		}
		t.writes += n
		keys, values = keys[n:], values[n:]
	}
	return nil
}

func (t *trie) putBatch(keys []trieKey, values []trieValue) error {
	if !t.single {
		_, err := t.kernel.BatchUpdate(keys, values, nil)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
		t.single = true
	}
	for i := range keys {
		if err := t.kernel.Put(&keys[i], &values[i]); err != nil {
			return err
		}
	}
	return nil
}

// remove takes elements out, as far as they are there.
func (t *trie) remove(keys []trieKey) error {
	for len(keys) > 0 {
		n := min(len(keys), batch)
		if t.single {
			n = 1
		}
		done, err := n, error(nil)
		if n > 1 {
			done, err = t.kernel.BatchDelete(keys[:n], nil)
		} else {
			err = t.kernel.Delete(&keys[0])
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			done = min(done+1, n) // the one that is not there
		case errors.Is(err, ebpf.ErrNotSupported) && !t.single:
			t.single = true
			done = 0
		case err != nil:
			return fmt.Errorf("remove %s: %w", t.what, err)
		}
		t.writes += done
		keys = keys[done:]
	}
	return nil
}

// undo takes the puts of a plan back, as far as they were written.
func (t *trie) undo(p *plan) error {
	return errors.Join(t.remove(p.added), t.put(p.changed, p.restored))
}
