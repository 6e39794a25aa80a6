//go:build linux

package forwarder

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A table is taken over if its words and the directory belong together, and left, with the reason in the log, if anything says
// that they do not. No descriptor is left behind either way.
func TestTableIsTakenOver(t *testing.T) {
	const now = int64(time.Hour)
	keys, err := DeriveKeys([]byte("a seed for tests"))
	if err != nil {
		t.Fatal(err)
	}
	directory := &Directory{Generation: 7, Services: []DirectoryService{{Number: 3, Name: "web"}}}
	for _, c := range []struct {
		name   string
		why    string // in the log; empty: it is taken over
		change func(t *testing.T, before *tableFile, c *NodeConfig, now *int64)
	}{
		{"nothing has changed", "", nil},
		{"the directory is one ahead", "", func(t *testing.T, before *tableFile, c *NodeConfig, _ *int64) {
			d := *directory
			d.Generation++
			if err := before.write(&d); err != nil { // and the process ended before it said so in the label
				t.Fatal(err)
			}
		}},
		{"19 minutes later", "", func(_ *testing.T, _ *tableFile, _ *NodeConfig, now *int64) { *now += int64(19 * time.Minute) }},
		{"21 minutes later", "last swept 21m0s ago", func(_ *testing.T, _ *tableFile, _ *NodeConfig, now *int64) { *now += int64(21 * time.Minute) }},
		{"more flows", "less than the 128.1 KiB asked for", func(_ *testing.T, _ *tableFile, c *NodeConfig, _ *int64) { c.Flows = 5000 }},
		{"fewer flows", "another size", func(_ *testing.T, _ *tableFile, c *NodeConfig, _ *int64) { c.Flows = 100 }},
		{"another seed", "another seed", func(_ *testing.T, _ *tableFile, c *NodeConfig, _ *int64) { c.Keys.Mix++ }},
		{"no directory", "no such file", func(t *testing.T, _ *tableFile, c *NodeConfig, _ *int64) {
			if err := os.Remove(c.DirectoryFile); err != nil {
				t.Fatal(err)
			}
		}},
		{"a directory that is no JSON", "invalid character", func(t *testing.T, _ *tableFile, c *NodeConfig, _ *int64) {
			if err := os.WriteFile(c.DirectoryFile, []byte("slots"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"an older directory, since a newer one could not be written", "number 7", func(t *testing.T, before *tableFile, c *NodeConfig, _ *int64) {
			before.path = filepath.Join(c.DirectoryFile, "not", "there")
			d := *directory
			d.Generation = 8
			before.record(&d)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			open := openFDs(t)
			var log bytes.Buffer
			config := NodeConfig{Keys: keys, Flows: 1000, Log: slog.New(slog.NewTextHandler(&log, nil)), DirectoryFile: filepath.Join(t.TempDir(), "slots.json")}
			before, adopt, err := openTable(&config, now)
			if err != nil || adopt != nil {
				t.Fatal(adopt, err)
			}
			before.record(directory)
			atomic.StoreUint64(&before.words[5], 4711)
			fd, err := unix.FcntlInt(uintptr(before.memory.FD()), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				t.Fatal(err)
			}
			config.TableFD = fd
			later := now
			if c.change != nil {
				c.change(t, before, &config, &later)
			}
			if err := before.memory.Close(); err != nil { // the process before has ended
				t.Fatal(err)
			}
			log.Reset()
			after, adopt, err := openTable(&config, later)
			if err != nil {
				t.Fatal(err)
			}
			if taken := adopt != nil; taken != (c.why == "") || taken != (after.words[5] == 4711) || !strings.Contains(log.String(), c.why) {
				t.Errorf("taken over: %v, word %d, log: %s", taken, after.words[5], log.String())
			}
			if adopt != nil && adopt.Services[0].Name != "web" {
				t.Errorf("directory %+v", adopt)
			}
			if err := after.memory.Close(); err != nil {
				t.Fatal(err)
			}
			if now := openFDs(t); now != open {
				t.Errorf("%d descriptors are open, before it were %d", now, open)
			}
		})
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// Whatever is in the file, adopting it ends in an error or in an engine that takes a configuration and forwards.
func FuzzAdopt(f *testing.F) {
	r := newTestRig(f, 1000)
	data := recording(r)
	r.apply(web(L2, 3))
	r.apply(web(L2, 2))
	f.Add(*data)
	f.Add([]byte(`{"generation":1,"services":[{"number":16383,"name":"a","vip":"192.0.2.10","protocol":6,"table_size":11}],"slots":[{"slot":9,"service":16383,"backend":"x","address":"10.0.0.1","weight":1,"phase":"active"}]}`))
	keys := r.engine.keys
	f.Fuzz(func(t *testing.T, data []byte) {
		d := new(Directory)
		if json.Unmarshal(data, d) != nil {
			return
		}
		for i := range d.Slots {
			d.Slots[i].Slot %= 1 << 12 // as much memory as tests should take
		}
		for i := range d.Services {
			d.Services[i].TableSize %= 1 << 12
		}
		words := make([]uint64, 64)
		for i := range words {
			words[i] = uint64(i)<<32 | uint64(i%8)<<14 | 1
		}
		e, err := NewEngine(EngineConfig{Keys: keys, Words: words, Clock: func() int64 { return int64(time.Hour) }, Adopt: d})
		if err != nil {
			return
		}
		for n := 1; n < 4; n++ {
			if err := e.Apply(Spec{Services: []ServiceSpec{web(L2, n)}}); err != nil {
				t.Fatal(err)
			}
			e.SweepNow()
			e.Stats()
		}
	})
}
