//go:build linux

package forwarder

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/conntrack"
	"github.com/sluice-lb/sluice/internal/shm"
)

// tableFile is a node's flow table in memory that can outlive the process: the words in a memfd, or in a BPF array that the XDP
// program reads too, with a label behind them, and the directory of slots in a file. Label and file say together whether a successor can go on with the words.
type tableFile struct {
	memory *shm.Memory
	array  *ebpf.Map // that the memory is of; nil: it is a memfd's, and no XDP program can read it
	words  []uint64
	label  []uint64 // one line, behind the words
	path   string   // of the directory; empty: there is none, and nobody goes on
	log    *slog.Logger
}

// Words of the label.
const (
	labelMagic      = iota // tableMagic
	labelKeys              // keyCheck of the keys that the flows were hashed with
	labelGeneration        // of the directory that says what the words mean; the file may be one ahead
	labelSwept             // when the last full sweep ended, CLOCK_MONOTONIC ns
)

// tableMagic is "sluice" and the version of label and directory.
const tableMagic = 0x736c756963650001

// maxUnswept is how long ago the last full sweep may have ended. Beyond it the ages of words say nothing (package conntrack).
const maxUnswept = 20 * time.Minute

// openTable makes the memory of a flow table, or takes a predecessor's, whose descriptor is inherited; 0: there is none. adopt
// is what its words mean; nil: it is empty. A table that cannot be taken is left, and the log says why.
func openTable(c *NodeConfig, now int64) (t *tableFile, adopt *Directory, err error) {
	n, err := conntrack.WordsFor(c.Flows)
	if err != nil {
		return nil, nil, err
	}
	size := int(n)*8 + shm.LineBytes
	t = &tableFile{path: c.DirectoryFile, log: c.Log}
	shared := c.mayFast() && size < maxArray
	if c.TableFD == 0 {
		c.TableFD = pinnedTable(c.Pins)
	}
	if c.TableFD > 0 {
		if adopt, err = t.inherit(c, size, now); err == nil && shared != (t.array != nil) {
			err = t.move(shared, size)
		}
		if err == nil {
			t.log.Info("flow table of the process before", "services", len(adopt.Services), "slots", len(adopt.Slots))
			return t, adopt, nil
		}
		t.log.Warn("the flow table of the process before cannot be used: flows go by hash until they have words again", "error", err)
	}
	if err := t.make(shared, size); err != nil {
		return nil, nil, fmt.Errorf("flow table: %w", err)
	}
	t.label[labelKeys] = keyCheck(c.Keys)
	t.label[labelSwept] = uint64(now)
	t.label[labelMagic] = tableMagic
	return t, nil, nil
}

// maxArray is how many bytes a BPF array has less than.
const maxArray = 1 << 32

// make makes the memory, zero, of a BPF array or of a memfd.
func (t *tableFile) make(array bool, size int) (err error) {
	t.array = nil
	if array {
		t.memory, t.array, err = shm.NewArrayMap("sluice_flows", size/8)
	} else {
		t.memory, err = shm.NewMemfd("sluice-flows", size)
	}
	if err == nil {
		t.divide(size)
	}
	return err
}

// move takes the words to memory of the other kind.
func (t *tableFile) move(array bool, size int) error {
	old := *t
	err := t.make(array, size)
	if err == nil {
		copy(t.memory.Words(), old.memory.Words())
	}
	return errors.Join(err, old.close())
}

// close lets go of the memory.
func (t *tableFile) close() error {
	err := t.memory.Close()
	if t.array != nil {
		err = errors.Join(err, t.array.Close())
	}
	return err
}

func (t *tableFile) divide(size int) {
	words := t.memory.Words()
	t.words, t.label = words[:size/8-shm.LineBytes/8], words[size/8-shm.LineBytes/8:size/8]
}

// inherit maps a predecessor's table and finds out what its words mean. On an error the descriptor is closed.
func (t *tableFile) inherit(c *NodeConfig, size int, now int64) (d *Directory, err error) {
	if t.memory, err = shm.OpenMemfd(c.TableFD, size); err != nil {
		var other error
		if t.memory, t.array, other = shm.OpenArrayMap(c.TableFD); other != nil {
			return nil, errors.Join(err, other, unix.Close(c.TableFD))
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if n := len(t.memory.Bytes()); n != size {
		return nil, fmt.Errorf("it has %d bytes, not %d: flows has changed", n, size)
	}
	t.divide(size)
	age := time.Duration(now - int64(atomic.LoadUint64(&t.label[labelSwept])))
	switch {
	case t.label[labelMagic] != tableMagic:
		return nil, errors.New("it is of another size (flows has changed) or version")
	case t.label[labelKeys] != keyCheck(c.Keys):
		return nil, errors.New("it was made with another seed (group.seed_file has changed)")
	case age < 0 || age > maxUnswept:
		return nil, fmt.Errorf("it was last swept %v ago, at most %v are possible", age.Round(time.Second), maxUnswept)
	}
	data, err := os.ReadFile(t.path)
	if err != nil {
		return nil, fmt.Errorf("read what its slots mean: %w", err)
	}
	d = new(Directory)
	if err := json.Unmarshal(data, d); err != nil {
		return nil, fmt.Errorf("read what its slots mean: %s: %w", t.path, err)
	}
	if g := atomic.LoadUint64(&t.label[labelGeneration]); d.Generation != g && d.Generation != g+1 {
		return nil, fmt.Errorf("%s is number %d of what its slots mean, not %d", t.path, d.Generation, g)
	}
	return d, nil
}

// record keeps what words mean from now on. The file comes first: a process that ends between the two leaves a file that is
// one ahead, which says all that the older one said of slots that words can name.
func (t *tableFile) record(d *Directory) {
	if err := t.write(d); err != nil {
		t.log.Warn("flows will not survive a restart of the daemon", "error", err)
	}
	atomic.StoreUint64(&t.label[labelGeneration], d.Generation) // also if the file is older now: then nobody goes on with it
}

func (t *tableFile) write(d *Directory) error {
	if t.path == "" {
		return nil
	}
	data, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("write what slots mean: %w", err)
	}
	// It has to outlive this process, not the machine, as the table does: no fsync.
	if err := os.WriteFile(t.path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write what slots mean: %w; set state_dir to a directory that can be written", err)
	}
	if err := os.Rename(t.path+".new", t.path); err != nil {
		return fmt.Errorf("write what slots mean: %w", err)
	}
	return nil
}

// swept notes the end of a full sweep.
func (t *tableFile) swept(now int64) { atomic.StoreUint64(&t.label[labelSwept], uint64(now)) }

// keyCheck tells two pairs of keys apart, and nothing about either that a reader of the table's memory could use.
func keyCheck(k Keys) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%x %x", k.Flow, k.Mix)
	return h.Sum64()
}
