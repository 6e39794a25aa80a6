package conformance

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/xsk"
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
	sent := uint64(0)
	for _, e := range c.in {
		if e.pause > 0 {
			time.Sleep(e.pause)
		}
		for q, x := range r.file.config.Interfaces {
			for range e.times {
				if x.Name == e.iface && e.pause == 0 {
					if !r.nic.Deliver(q, e.raw) {
						t.Fatal("the NIC took no frame")
					}
					sent++
				}
			}
		}
	}
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
