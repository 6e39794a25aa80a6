package conformance

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/internal/config"
)

// memoryRig replays cases through a worker that runs, with real rings and real time, on a NIC in memory; each of its queues
// is an interface.
type memoryRig struct {
	file   *file
	engine *forwarder.Engine
	nic    *xsk.MemoryNIC
}

func newMemoryRig(t *testing.T, f *file) *memoryRig {
	clock, err := forwarder.NewClock()
	if err != nil {
		t.Fatal(err)
	}
	r := &memoryRig{file: f, engine: f.newEngine(t, clock)}
	o := xsk.Options{Audit: true, FillSize: 512, CompletionSize: 512, RXSize: 256, TXSize: 256}
	o.Frames = o.FramesFor(len(f.config.Interfaces))
	if r.nic, err = xsk.NewMemoryNIC(o, len(f.config.Interfaces)); err != nil {
		t.Fatal(err)
	}
	u := r.nic.Umem()
	io := forwarder.WorkerIO{Memory: u.Memory(), Wait: u.Wait}
	for i, s := range r.nic.Sockets() {
		io.Queues = append(io.Queues, forwarder.Queue{Port: s, Interface: i})
	}
	w := r.engine.NewWorker(io)
	var stop atomic.Bool
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(&stop, func(err error) { t.Error(err) }); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop.Store(true)
		running.Wait()
		if at, err := u.Audit(); err != nil || at.Worker != 0 {
			t.Errorf("frames: %+v, %v", at, err)
		}
		u.Close()
	})
	return r
}

func (r *memoryRig) replay(t *testing.T, c *testCase) result {
	before := engineBooks(t, r.engine)
	res := result{out: map[string][][]byte{}}
	collect := func() {
		for q, x := range r.file.config.Interfaces {
			r.nic.Collect(q, func(f []byte) { res.out[x.Name] = append(res.out[x.Name], append([]byte(nil), f...)) })
		}
	}
	// Frames that follow each other come together, as in a burst: what is held is sent on between the worker's batches, so that
	// which frames are in one of them decides about the order of what leaves.
	const burst = 64
	sent, from, together := uint64(0), 0, [][]byte(nil)
	deliver := func() {
		if n := r.nic.DeliverBatch(from, together); n != len(together) {
			t.Fatalf("the NIC took %d frames of %d", n, len(together))
		}
		sent += uint64(len(together))
		together = together[:0]
	}
	for _, e := range c.in {
		if e.pause > 0 {
			deliver()
			time.Sleep(e.pause)
			continue
		}
		q := slices.IndexFunc(r.file.config.Interfaces, func(x config.Interface) bool { return x.Name == e.iface })
		if q != from {
			deliver()
			from = q
		}
		for range e.times {
			if together = append(together, e.raw); len(together) == burst {
				deliver()
			}
		}
	}
	deliver()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		collect()
		res.books = engineBooks(t, r.engine).minus(before)
		if res.books.received >= sent && res.books.held == 0 && res.books.balanced() && r.quiet(res) || time.Now().After(end) {
			break
		}
	}
	return res
}

// quiet says whether everything that was sent has been collected.
func (r *memoryRig) quiet(res result) bool {
	n := uint64(0)
	for _, frames := range res.out {
		n += uint64(len(frames))
	}
	return n >= res.books.forwarded+res.books.answered+res.books.generated
}
