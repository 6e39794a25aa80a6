//go:build linux

package churn

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/bench/report"
	"github.com/sluice-lb/sluice/bench/rig"
	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/xsk"
	"github.com/sluice-lb/sluice/internal/affinity"
)

const (
	// Packets a second that are offered. A feeder gives the worker what is due each time that it wakes up, as a NIC that holds its
	// interrupts back, and at most feedMost of it.
	feedRate  = 200_000
	feedPause = 50 * time.Microsecond
	feedMost  = 256

	latencyServices = 10
	latencyFlows    = 1000
	// The longest time that is told from longer ones, and the digits that histograms keep.
	longest = 10 * time.Second
	digits  = 3
	// settle is how long a new event goes on before packets count for it.
	settle = 20 * time.Millisecond
)

func latencyTable(ctx context.Context, o *Options) (report.Table, error) {
	t := report.Table{
		Name:  "churn-latency",
		Title: "Time of a packet in the worker, from its arrival in the RX ring to the TX ring, while something happens beside it",
		Rule: fmt.Sprintf("The worker has a core to itself and does not sleep; all other threads of the process, the feeder's and what happens included, share the "+
			"other cores, and what happens is in the background there (nice 10), as in the daemon. %d packets a second, one clock reading for each burst and each batch. %d services of %d backends. rebuild: a weight changes, again "+
			"and again, and with it a lookup table; reload: the whole configuration is read and applied; sweep: the flow table is swept without a pause; "+
			"gc: garbage is made and collected, likewise.", feedRate, latencyServices, o.Backends),
		Metric: "p99.99 of the time in the worker", Unit: "µs",
	}
	cores, err := divideCores()
	if err != nil {
		return t, err
	}
	defer cores.restore()
	t.Notes = append(t.Notes, cores.note, "waited_percent is for how much of the time the worker could have run, but another program had its core: "+
		"where it is not next to 0, that is what the times tell of.")
	l, err := newLatency(o, cores)
	if err != nil {
		return t, err
	}
	defer l.close()
	events := l.events(o)
	sums := make([]*hdrhistogram.Histogram, len(events))
	t.Rows = make([]report.Row, len(events))
	for i, e := range events {
		t.Rows[i].Labels = []report.Label{{Name: "during", Value: e.name}}
		if i > 0 {
			t.Rows[i].Reference = events[0].name
		}
		sums[i] = newHistogram()
	}
	happened, waited := make([]int, len(events)), make([]time.Duration, len(events))
	for range o.Rounds {
		for i, e := range events {
			seen, err := l.during(ctx, e, o.Duration)
			if err != nil {
				return t, fmt.Errorf("during %s: %w", e.name, err)
			}
			t.Rows[i].Rounds = append(t.Rows[i].Rounds, micros(seen.times.ValueAtQuantile(99.99)))
			sums[i].Merge(seen.times)
			happened[i] += seen.happened
			waited[i] += seen.waited
		}
	}
	for i, h := range sums {
		t.Rows[i].Extra = map[string]float64{
			"p50": micros(h.ValueAtQuantile(50)), "p99": micros(h.ValueAtQuantile(99)), "p99_9": micros(h.ValueAtQuantile(99.9)),
			"max": micros(h.Max()), "packets": float64(h.TotalCount()), "events": float64(happened[i]),
			"waited_percent": 100 * waited[i].Seconds() / (o.Duration * time.Duration(o.Rounds)).Seconds(),
		}
	}
	return t, nil
}

func micros(nanos int64) float64 { return float64(nanos) / 1000 }

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(longest), digits) }

// latency is a worker that runs, with a feeder and a sink.
type latency struct {
	rig     *rig.Rig
	port    *stampedPort
	start   time.Time // of the clock of stamps
	stop    atomic.Bool
	running sync.WaitGroup
	ended   atomic.Pointer[error] // of the worker
	waits   string                // the file that says how long that has waited for its core
}

func newLatency(o *Options, cores *cores) (*latency, error) {
	l := &latency{start: time.Now()}
	var err error
	l.rig, err = rig.New(rig.Options{
		Family: "v4", Mode: forwarder.IPIP, Services: latencyServices, Backends: o.Backends, Flows: o.Flows,
		Port: func(s *xsk.Socket) forwarder.Port {
			l.port = &stampedPort{Socket: s, start: l.start}
			return l.port
		},
		Wait: func(time.Duration) error { return nil },
	})
	if err != nil {
		return nil, err
	}
	l.port.memory = l.rig.NIC.Umem().Memory()
	if want := 3; runtime.GOMAXPROCS(0) < want { // a worker's, and two as the daemon has them
		runtime.GOMAXPROCS(want)
	}
	thread := make(chan int, 1)
	l.running.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its affinity with it
		cores.bindWorker()
		thread <- unix.Gettid()
		if err := l.rig.Worker.Run(&l.stop, func(error) {}); err != nil {
			l.ended.Store(&err)
		}
	})
	l.running.Go(l.feed)
	l.waits = fmt.Sprintf("/proc/self/task/%d/schedstat", <-thread)
	return l, nil
}

func (l *latency) close() {
	l.stop.Store(true)
	l.running.Wait()
	l.rig.Close()
}

// feed gives the worker packets, and takes away what it sends, until the end.
func (l *latency) feed() {
	frames := make([][]byte, latencyFlows)
	for i := range frames {
		frames[i] = l.rig.Frame(uint32(i), rig.ACK, false)
	}
	last, next := time.Now(), 0
	for !l.stop.Load() {
		time.Sleep(feedPause)
		now := time.Now()
		due := min(int(now.Sub(last).Seconds()*feedRate), feedMost)
		if due == 0 {
			continue
		}
		last = now
		some := frames[next:min(len(frames), next+due)]
		next = (next + len(some)) % len(frames)
		stamp := uint64(time.Since(l.start))
		for _, f := range some {
			binary.LittleEndian.PutUint64(f[stampAt:], stamp)
		}
		l.rig.NIC.DeliverBatch(0, some)
		l.rig.NIC.Collect(0, nil)
	}
}

// A stamp lies where a segment has its sequence and acknowledgement numbers, which nobody on its way looks at: at so many bytes from
// the beginning of the frame, and before the end of the packet.
const (
	stampAt     = 14 + 20 + 4
	stampBefore = 20 - 4
)

// stampedPort is a socket that records how long ago the frames that it sends have arrived.
type stampedPort struct {
	*xsk.Socket
	memory []byte
	start  time.Time
	record atomic.Pointer[hdrhistogram.Histogram] // into which; nil: nowhere
}

// Transmit implements forwarder.Port.
func (p *stampedPort) Transmit(batch []xsk.Desc) int {
	n := p.Socket.Transmit(batch)
	h := p.record.Load()
	if h == nil {
		return n
	}
	now := int64(time.Since(p.start))
	for i := range batch[:n] {
		d := &batch[i]
		stamp := binary.LittleEndian.Uint64(p.memory[d.Addr+uint64(d.Len)-stampBefore:])
		_ = h.RecordValue(min(now-int64(stamp), int64(longest))) // in range, so it cannot fail
	}
	return n
}

// event is something that happens beside the worker.
type event struct {
	name string
	once func() error // does it once; nil: nothing happens
}

func (l *latency) events(o *Options) []event {
	engine, weight := l.rig.Engine, uint16(100)
	yaml := configuration(l.rig.Spec(weight))
	return []event{
		{"quiet", nil},
		{"rebuild", func() error {
			weight ^= 1
			return engine.Apply(l.rig.Spec(weight))
		}},
		{"reload", func() error {
			spec, err := o.Load(yaml)
			if err != nil {
				return err
			}
			return engine.Apply(spec)
		}},
		{"sweep", func() error { engine.SweepNow(); return nil }},
		{"gc", func() error {
			garbage = make([][]byte, 1<<10)
			for i := range garbage {
				garbage[i] = make([]byte, 1<<10)
			}
			runtime.GC()
			return nil
		}},
	}
}

// garbage is what the event gc collects the next time.
var garbage [][]byte

// waited is how long the worker's thread has been ready to run, but another one had its core; see schedstats in the kernel's
// documentation.
func (l *latency) waited() (d time.Duration) {
	var ran time.Duration
	if data, err := os.ReadFile(l.waits); err == nil {
		_, _ = fmt.Sscan(string(data), &ran, &d)
	}
	return d
}

// outcome is what was seen during an event.
type outcome struct {
	times    *hdrhistogram.Histogram // of packets, ns
	happened int                     // how often it did
	waited   time.Duration           // of the worker for its core
}

// during records packets while an event happens again and again.
func (l *latency) during(ctx context.Context, e event, duration time.Duration) (out outcome, err error) {
	var stop atomic.Bool
	failed := make(chan error, 1)
	go func() {
		var err error
		affinity.Background(func() { // as the daemon does
			for e.once != nil && err == nil && !stop.Load() {
				if err = e.once(); err == nil {
					out.happened++
				}
			}
		})
		failed <- err
	}()
	time.Sleep(settle)
	out.times = newHistogram()
	before := l.waited()
	l.port.record.Store(out.times)
	select {
	case <-time.After(duration):
	case <-ctx.Done():
	}
	l.rig.Worker.Do(func() { l.port.record.Store(nil) }) // afterwards the worker is done with the histogram
	out.waited = l.waited() - before
	stop.Store(true)
	err = <-failed
	switch {
	case err != nil:
	case ctx.Err() != nil:
		err = ctx.Err()
	case l.ended.Load() != nil:
		err = *l.ended.Load()
	case out.times.TotalCount() == 0:
		err = errors.New("no packet came through the worker")
	}
	return out, err
}

// configuration is the YAML that a daemon would read to get spec.
func configuration(spec forwarder.Spec) []byte {
	var b strings.Builder
	b.WriteString("node: bench\ngroup: {seed_file: /dev/null, peers: 1}\ninterfaces: [{name: eth0}]\nservices:\n")
	for i := range spec.Services {
		s := &spec.Services[i]
		fmt.Fprintf(&b, "  - name: %s\n    vip: %v\n    protocol: tcp\n    ports: %d\n    forward: %v\n    backends:\n", s.Name, s.VIP, s.Ports[0].First, s.Mode)
		for _, k := range s.Backends {
			fmt.Fprintf(&b, "      - {name: %s, address: %v, weight: %d}\n", k.Name, k.Address, k.Weight)
		}
	}
	return []byte(b.String())
}
