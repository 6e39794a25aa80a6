package conformance

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/xsk"
)

// engineRig replays cases through the engine alone: a worker between queues that are slices, on a clock that moves only when
// the worker sleeps. A case has a worker of its own; flow table and fragments are the file's.
type engineRig struct {
	file   *file
	engine *forwarder.Engine
	now    atomic.Int64
	queues []*sliceQueue
	memory []byte
	free   []uint64 // chunks that are nobody's
	stop   atomic.Bool
	await  []event // what has not come in yet
}

const (
	chunks     = 512
	chunkSize  = xsk.ChunkSize
	chunkStart = 288 // where received frames begin in a chunk
)

func newEngineRig(t *testing.T, f *file) *engineRig {
	r := &engineRig{file: f, memory: make([]byte, chunks*chunkSize)}
	r.now.Store(int64(time.Hour))
	r.engine = f.newEngine(t, r.now.Load)
	for i := range chunks {
		r.free = append(r.free, uint64(i*chunkSize))
	}
	for _, x := range f.config.Interfaces {
		r.queues = append(r.queues, &sliceQueue{rig: r, iface: x.Name})
	}
	return r
}

// sliceQueue is the Port of one interface.
type sliceQueue struct {
	rig   *engineRig
	iface string
	rx    []xsk.Desc
	sent  [][]byte
}

func (q *sliceQueue) Receive(batch []xsk.Desc) int {
	n := copy(batch, q.rx)
	q.rx = q.rx[n:]
	return n
}

func (q *sliceQueue) Transmit(batch []xsk.Desc) int {
	for _, d := range batch {
		q.sent = append(q.sent, append([]byte(nil), q.rig.memory[d.Addr:d.Addr+uint64(d.Len)]...))
	}
	q.Recycle(batch)
	return len(batch)
}

func (q *sliceQueue) Recycle(batch []xsk.Desc) {
	for _, d := range batch {
		q.rig.free = append(q.rig.free, d.Addr&^(chunkSize-1))
	}
}

func (q *sliceQueue) Backlog() (waiting, size int) { return 0, 1 }

func (q *sliceQueue) Spare() (addr uint64, ok bool) {
	n := len(q.rig.free)
	if n == 0 {
		return 0, false
	}
	addr = q.rig.free[n-1] + chunkStart
	q.rig.free = q.rig.free[:n-1]
	return addr, true
}

func (q *sliceQueue) Wake() error { return nil }

// deliver lets the time of a pause pass, or puts the next frames of the case into the queues, up to a pause.
func (r *engineRig) deliver(t *testing.T) {
	if r.await[0].pause > 0 {
		r.now.Add(int64(r.await[0].pause))
		r.await = r.await[1:]
		return
	}
	for ; len(r.await) > 0 && r.await[0].pause == 0; r.await = r.await[1:] {
		e := r.await[0]
		for _, q := range r.queues {
			if q.iface != e.iface {
				continue
			}
			for range e.times {
				addr, ok := q.Spare()
				if !ok {
					t.Fatal("no free chunk")
				}
				copy(r.memory[addr:], e.raw)
				q.rx = append(q.rx, xsk.Desc{Addr: addr, Len: uint32(len(e.raw))})
			}
		}
	}
}

// wait stands for sleeping: time passes, and if the worker waits for nothing it is given the next frames, or told to end.
func (r *engineRig) wait(t *testing.T, d time.Duration) error {
	if len(r.await) > 0 {
		r.deliver(t)
		return nil
	}
	r.now.Add(int64(d))
	if d > 100*time.Millisecond { // it sleeps less when it has something in hand
		r.stop.Store(true)
	}
	return nil
}

func (r *engineRig) replay(t *testing.T, c *testCase) result {
	var io forwarder.WorkerIO
	io.Memory = r.memory
	io.Wait = func(d time.Duration) error { return r.wait(t, d) }
	for i, q := range r.queues {
		q.sent = nil
		io.Queues = append(io.Queues, forwarder.Queue{Port: q, Interface: i})
	}
	before := engineBooks(t, r.engine)
	w := r.engine.NewWorker(io)
	r.await = c.in
	r.stop.Store(false)
	r.deliver(t)
	if err := w.Run(&r.stop, func(err error) { t.Error(err) }); err != nil {
		t.Error(err)
	}
	res := result{out: map[string][][]byte{}, books: engineBooks(t, r.engine).minus(before)}
	for _, q := range r.queues {
		res.out[q.iface] = q.sent
	}
	seen := map[uint64]bool{}
	for _, a := range r.free {
		if seen[a] {
			t.Errorf("chunk %d was given back twice", a/chunkSize)
		}
		seen[a] = true
	}
	if len(r.free) != chunks {
		t.Errorf("%d of %d chunks were given back", len(r.free), chunks)
	}
	return res
}
