package healthd

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// With a thousand backends the first probes are spread, and so are those of every later second.
func TestProbesSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		numbers := make([]int, 1000)
		for i := range numbers {
			numbers[i] = i
		}
		f, w := newFake(web(numbers...)), newWorld()
		start(t, f, w)
		var counts []int
		for range 600 { // a minute
			before := w.total()
			time.Sleep(100 * time.Millisecond)
			counts = append(counts, w.total()-before)
		}
		if most := slices.Max(counts[:10]); most > 150 {
			t.Errorf("%d of 1000 first probes within 100 ms", most)
		}
		least, most := slices.Min(counts[30:]), slices.Max(counts[30:])
		if least < 20 || most > 90 { // 50 on average
			t.Errorf("%d to %d probes of 1000 in 100 ms, with one each 2 s", least, most)
		}
		if n := w.total(); n < 29_500 || n > 31_500 {
			t.Errorf("%d probes of 1000 backends in a minute, one every 2 s", n)
		}
		if got := len(f.states()); got != 1000 {
			t.Errorf("%d backends reported", got)
		}
		t.Logf("%d to %d probes in 100 ms", least, most)
	})
}

// No more probes are under way at once than may be; what is due waits and is not lost.
func TestMostProbesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		numbers := make([]int, 400) // 200 probes a second, of a second each, where 100 may be under way
		for i := range numbers {
			numbers[i] = i
		}
		f, w := newFake(web(numbers...)), newWorld()
		w.took = time.Second
		logs := start(t, f, w)
		time.Sleep(20 * time.Second)
		w.mu.Lock()
		most := w.most
		w.mu.Unlock()
		if most != 100 {
			t.Errorf("%d probes at once, 100 may be", most)
		}
		if n := strings.Count(logs.String(), "others come late"); n != 1 {
			t.Errorf("said %d times that probes come late", n)
		}
		if n := w.total(); n < 1900 || n > 2000 {
			t.Errorf("%d probes in 20 s, at most 100 a second", n)
		}
		if n := len(f.states()); n != 400 {
			t.Errorf("%d of 400 backends are known", n)
		}
	})
}

// After some time at the fast pace a monitor returns to its phase.
func TestPhase(t *testing.T) {
	m := &monitor{check: check(80), phase: 0.25}
	m.check.Jitter = 0
	s := newSchedule(context.Background(), 1, nil, nil)
	at := s.base.Add(17*time.Second + 123*time.Millisecond)
	for _, row := range []struct {
		took, want time.Duration
		fast       bool
	}{
		{100 * time.Millisecond, 500 * time.Millisecond, true},
		{900 * time.Millisecond, 900 * time.Millisecond, true},
		{100 * time.Millisecond, 18_500*time.Millisecond - 17_123*time.Millisecond, false},
		{3 * time.Second, 3 * time.Second, false},
	} {
		if got := s.next(m, at, at.Add(row.took), row.fast).Sub(at); got != row.want {
			t.Errorf("a probe that took %v, fast %v: the next one %v after it, want %v", row.took, row.fast, got, row.want)
		}
	}
	for range 100 {
		next := s.next(m, at, at, false)
		if gap := next.Sub(at); gap < time.Second || gap > 3*time.Second {
			t.Fatalf("%v between two probes", gap)
		}
		at = next
	}
	if _, phase := math.Modf(at.Sub(s.base).Seconds() / 2); math.Abs(phase-0.25) > 1e-6 {
		t.Errorf("phase %v", phase)
	}
}

// Failures in the time of a pause do not count, also when they are seen before the clock has beaten again.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pulse{base: time.Now()}
		ctx, cancel := context.WithCancel(t.Context())
		var told []time.Duration
		done := make(chan struct{})
		go func() { p.serve(ctx, func(gap time.Duration) { told = append(told, gap) }); close(done) }()
		time.Sleep(3 * time.Second)
		before := time.Now()
		if p.pausedSince(before.Add(-time.Second)) {
			t.Error("a pause without one")
		}
		cancel() // a process that is stopped
		<-done
		time.Sleep(time.Minute)
		if !p.pausedSince(before) || !p.pausedSince(time.Now()) {
			t.Error("no pause before the clock beats again")
		}
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		go p.serve(ctx, func(gap time.Duration) { told = append(told, gap) })
		time.Sleep(2 * beat)
		synctest.Wait()
		if !p.pausedSince(before) {
			t.Error("no pause after it")
		}
		if p.pausedSince(time.Now()) {
			t.Error("the pause lasts")
		}
	})
}

func TestLatencies(t *testing.T) {
	var l latencies
	if l.percentile(0.5) != 0 {
		t.Error("a percentile of nothing")
	}
	for i := range 100 {
		l.add(time.Duration(i+1) * time.Millisecond)
	}
	for _, row := range []struct{ share, want float64 }{{0.5, 50_000}, {0.9, 90_000}, {0.99, 99_000}, {1, 100_000}} {
		if got := float64(l.percentile(row.share)); got < row.want || got > row.want*1.13 {
			t.Errorf("percentile %v: %v µs, want %v", row.share, got, row.want)
		}
	}
	for range 1000 { // what was before is forgotten
		l.add(200 * time.Microsecond)
	}
	if got := l.percentile(0.99); got < 200 || got > 225 {
		t.Errorf("after a thousand of 200 µs: %d µs", got)
	}
	l.add(time.Hour)
	l.add(0)
}
