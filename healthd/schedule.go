package healthd

import (
	"container/heap"
	"context"
	"math"
	mathrand "math/rand/v2"
	"sync"
	"time"
)

// schedule runs probes when they are due. It has one goroutine, and as many more as there have been probes under way at once; what
// waits costs a place in a heap.
//
// Probes are spread evenly: each one has a phase of its own within its interval, a multiple of the golden ratio, which no
// number of probes brings together, and returns to it after a time at the fast pace. Jitter moves single probes about it.
type schedule struct {
	ctx  context.Context // of all probes
	base time.Time       // what phases count from
	// run makes a probe, and says whether the next one is to come fast. It ends soon after ctx.
	run func(ctx context.Context, m *monitor) (fast bool)
	// most is how many probes may be under way at once; what is due then waits, and crowded is called when that begins.
	most    int
	crowded func()

	mu      sync.Mutex
	waiting dueHeap
	phases  float64 // handed out so far
	running int
	waits   bool          // something that is due waits for a place
	todo    chan *monitor // to a goroutine that has nothing to do: its stack has grown already
	wake    chan struct{} // capacity 1: the first in waiting has changed, or a place is free
	ended   sync.WaitGroup
}

// dueHeap has the monitor that is due first at its beginning.
type dueHeap []*monitor

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
func (h *dueHeap) Push(x any) {
	m := x.(*monitor)
	m.place = len(*h)
	*h = append(*h, m)
}
func (h *dueHeap) Pop() any {
	old := *h
	m := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	m.place = nowhere
	return m
}

// nowhere is the place of a monitor that does not wait: its probe is under way, or it was removed.
const nowhere = -1

func newSchedule(ctx context.Context, most int, run func(context.Context, *monitor) bool, crowded func()) *schedule {
	return &schedule{ctx: ctx, base: time.Now(), run: run, most: most, crowded: crowded, todo: make(chan *monitor), wake: make(chan struct{}, 1)}
}

// add puts monitors into the schedule. Their first probes come soon, but not all at once.
func (s *schedule) add(list []*monitor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, m := range list {
		s.phases++
		_, m.phase = math.Modf(s.phases * (math.Phi - 1))
		window := min(m.interval(), max(firstProbe, time.Duration(len(list))*time.Second/firstRate))
		m.due = now.Add(time.Duration(m.phase * float64(window)))
		m.ctx, m.stop = context.WithCancel(s.ctx)
		heap.Push(&s.waiting, m)
	}
	signal(s.wake)
}

// remove takes a monitor out of the schedule, and gives up its probe if one is under way.
func (s *schedule) remove(m *monitor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.stop()
	if m.place != nowhere {
		heap.Remove(&s.waiting, m.place)
	}
}

// hurry brings the next probe of a monitor forward to its fast pace, since something speaks against one of its backends.
func (s *schedule) hurry(m *monitor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if soon := time.Now().Add(m.fastInterval()); m.place != nowhere && soon.Before(m.due) {
		m.due = soon
		heap.Fix(&s.waiting, m.place)
		signal(s.wake)
	}
}

// serve runs probes until its context is done, and returns when the last one has ended.
func (s *schedule) serve() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(s.start())
		select {
		case <-s.ctx.Done():
			s.ended.Wait()
			return
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// start starts what is due, and says how long it is until something else will be.
func (s *schedule) start() (wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.waiting) > 0 {
		m := s.waiting[0]
		if wait := m.due.Sub(now); wait > 0 {
			return wait
		}
		if s.running >= s.most {
			if !s.waits {
				s.waits = true
				s.crowded()
			}
			return time.Hour // until a place is free
		}
		heap.Pop(&s.waiting)
		s.running++
		s.waits = s.waits && s.running > s.most/2
		select {
		case s.todo <- m:
		default:
			s.ended.Go(func() { s.work(m) })
		}
	}
	return time.Hour
}

// work makes the probe of m, and then of whichever monitor it is given, until the schedule's context is done.
func (s *schedule) work(m *monitor) {
	for {
		s.probe(m)
		select {
		case <-s.ctx.Done():
			return
		case m = <-s.todo:
		}
	}
}

func (s *schedule) probe(m *monitor) {
	began := time.Now()
	fast := s.run(m.ctx, m)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	if m.ctx.Err() == nil {
		m.due = s.next(m, began, time.Now(), fast)
		heap.Push(&s.waiting, m)
	}
	if s.running == s.most-1 || m.place == 0 {
		signal(s.wake)
	}
}

// next says when the probe of a monitor is due after one that began at a time and has ended now: an interval later, about its
// phase, or sooner if it is to be fast; never before the one has ended.
func (s *schedule) next(m *monitor, began, now time.Time, fast bool) time.Time {
	spread := (2*mathrand.Float64() - 1) * float64(m.check.Jitter) / 100
	due := began.Add(time.Duration((1 + spread) * float64(m.fastInterval())))
	if interval := m.interval(); !fast {
		phase := time.Duration(m.phase * float64(interval))
		turns := (began.Sub(s.base) - phase + interval/2) / interval // until the point of the grid next to began
		due = s.base.Add((turns+1)*interval + phase + time.Duration(spread*float64(interval)))
	}
	if due.Before(now) {
		return now
	}
	return due
}
