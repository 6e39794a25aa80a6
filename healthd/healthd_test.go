package healthd

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
)

const (
	firstGood = "up: the first good probe: connected"
	refused   = "down: 3 of 3 probes failed: connection refused"
)

func TestLearnsAndReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1, 2)), newWorld()
		w.set("10.0.0.2", "connection refused")
		start(t, f, w)
		time.Sleep(1100 * time.Millisecond) // one or two probes each: a good one decides, two bad ones do not
		same(t, "after the first probes", f.states(), "web/web-1", firstGood)
		time.Sleep(3 * time.Second)
		same(t, "after three bad ones, at the fast pace", f.states(), "web/web-1", firstGood, "web/web-2", refused)
		time.Sleep(10 * time.Second)
		reports, _ := f.taken()
		if n := len(reports); n > 12 {
			t.Errorf("%d reports in 14 s for two changes", n)
		}
		for i, r := range reports {
			if !strings.HasPrefix(r.Source, "lb1/") || r.Boot != "boot0" || r.Generation != 1 || r.Version != uint64(i+1) || r.Base != uint64(i) {
				t.Errorf("report %d: %+v", i, r)
			}
		}
		if since := f.health("web/web-2").Since; time.Since(since) > 14*time.Second || since.IsZero() {
			t.Errorf("down since %v", since)
		}
		s := f.stat("web/web-1", false)
		if s.Good < 4 || s.Bad != 0 || s.P50 < 2900 || s.P99 > 3600 || time.Since(s.Last) > 13*time.Second {
			t.Errorf("statistics: %+v", s)
		}
		if s := f.stat("web/web-2", false); s.Bad < 4 || s.Good != 0 || s.LastError != "connection refused" {
			t.Errorf("statistics: %+v", s)
		}
	})
}

// A change reaches the forwarder at once and alone; without news a sign of life comes every two seconds.
func TestNewsAtOnceAndHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1, 2, 3)), newWorld()
		start(t, f, w)
		time.Sleep(20 * time.Second)
		reports, times := f.taken()
		for i := 5; i < len(times); i++ {
			if gap := times[i].Sub(times[i-1]); gap != heartbeat {
				t.Errorf("%v between two reports without news, want %v", gap, heartbeat)
			}
			if len(reports[i].Backends) != 0 {
				t.Errorf("a sign of life with %v", reports[i].Backends)
			}
		}
		w.set("10.0.0.1", "HTTP 503")
		time.Sleep(10 * time.Second)
		if got := f.health("web/web-1"); got.State != control.StateDown || got.Evidence != "3 of 3 probes failed: HTTP 503" || got.Cause != control.CauseProbe {
			t.Errorf("after it broke: %+v", got)
		}
		all, times := f.taken()
		for i := len(reports); i < len(all); i++ {
			r := all[i]
			if len(r.Backends) > 1 || len(r.Backends) == 1 && r.Backends[0].Backend != "web-1" {
				t.Errorf("report %d tells of more than what changed: %+v", i, r.Backends)
			}
			if b := r.Backends; len(b) == 1 && b[0].State == control.StateDown {
				if late := times[i].Sub(b[0].Since); late > 10*time.Millisecond {
					t.Errorf("the news came %v late", late)
				}
				return
			}
		}
		t.Error("it was never reported down")
	})
}

func TestReloadTouchesOnlyWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1, 2, 3)), newWorld()
		w.set("10.0.0.1", "connection refused")
		start(t, f, w)
		time.Sleep(10 * time.Second)
		same(t, "to begin with", f.states(), "web/web-1", refused, "web/web-2", firstGood, "web/web-3", firstGood)

		// The check goes to another port, where 2 fails; 3 goes; 4 comes; 5 comes and is dead.
		other := web(1, 2, 4, 5)
		other.Check = check(81)
		w.set("10.0.0.2:81", "HTTP 404")
		w.set("10.0.0.5", "no answer within 1s")
		f.reload(other)
		synctest.Wait()
		time.Sleep(time.Millisecond)
		same(t, "right after the reload", f.states(), "web/web-1", refused, "web/web-2", firstGood)
		gone := w.count("10.0.0.3:80")
		time.Sleep(10 * time.Second)
		same(t, "a while later", f.states(), "web/web-1", refused, "web/web-2", "down: 3 of 3 probes failed: HTTP 404",
			"web/web-4", firstGood, "web/web-5", "down: 3 of 3 probes failed: no answer within 1s")
		if n := w.count("10.0.0.3:80"); n != gone {
			t.Errorf("a backend that was removed was probed %d times more", n-gone)
		}

		// A reload that leaves the probe as it is does not disturb it.
		before := w.count("10.0.0.1:81")
		for range 5 {
			other.Check = check(81)
			other.Check.Fall++
			f.reload(other)
			time.Sleep(2 * time.Second)
		}
		if n := w.count("10.0.0.1:81") - before; n < 4 || n > 6 {
			t.Errorf("a backend that stayed was probed %d times in 10 s", n)
		}

		// A new address under an old name is a new backend: nothing is known about it.
		moved := web(1)
		moved.Backends[0].Address = moved.Backends[0].Address.Next().Next().Next().Next().Next().Next()
		w.set(moved.Backends[0].Address.String(), "connection refused")
		f.change(func() { f.list, f.gen, f.known = []control.TargetService{moved}, f.gen+1, map[string]control.Health{} })
		time.Sleep(50 * time.Millisecond)
		same(t, "after the move", f.states())

		f.reload()
		total := w.total()
		time.Sleep(5 * time.Second)
		if w.total() != total {
			t.Error("probes go on without targets")
		}
	})
}

// A forwarder that starts again gets everything known with the first report, long before any new probe could decide.
func TestForwarderStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1, 2)), newWorld()
		w.set("10.0.0.2", "connection refused")
		logs := start(t, f, w)
		time.Sleep(10 * time.Second)

		f.change(func() { f.gone = true })
		time.Sleep(time.Minute)
		if probes := w.count("10.0.0.1:80"); probes < 30 {
			t.Errorf("%d probes while the forwarder was gone, want them to go on", probes)
		}
		f.mu.Lock()
		if f.asked > 80 {
			t.Errorf("asked %d times in a minute", f.asked)
		}
		f.mu.Unlock()
		if n := strings.Count(logs.String(), "level=WARN"); n > 4 {
			t.Errorf("%d warnings about one missing forwarder:\n%s", n, logs)
		}

		f.change(func() { f.gone, f.boot, f.gen = false, 1, 1; f.forget() })
		time.Sleep(maxBackoff + 10*time.Millisecond)
		same(t, "a second after the start", f.states(), "web/web-1", firstGood, "web/web-2", refused)
	})
}

// A forwarder that was replaced while the question for targets hangs on the old process is noticed by the refused report.
func TestForwarderReplacedWhileTheQuestionHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1)), newWorld()
		start(t, f, w)
		time.Sleep(5 * time.Second)
		f.mu.Lock()
		f.boot++ // and nobody is told
		f.forget()
		f.mu.Unlock()
		time.Sleep(heartbeat + 500*time.Millisecond)
		same(t, "after the next report", f.states(), "web/web-1", firstGood)
	})
}

// Whoever does not know whether a report was taken tells everything anew.
func TestAnswerLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1, 2)), newWorld()
		start(t, f, w)
		time.Sleep(5 * time.Second)
		f.change(func() { f.loses = true })
		w.set("10.0.0.1", "connection refused")
		time.Sleep(10 * time.Second)
		f.change(func() { f.loses = false })
		w.set("10.0.0.1", "")
		time.Sleep(10 * time.Second)
		same(t, "after lost answers", f.states(), "web/web-1", "up: 2 good probes: connected", "web/web-2", firstGood)
	})
}

// While another health daemon reports, this one says so once, goes on probing, and takes over when it may.
func TestAnotherReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1)), newWorld()
		f.other = true
		logs := start(t, f, w)
		time.Sleep(time.Minute)
		if n := strings.Count(logs.String(), "lb1/1111 reports already"); n != 1 {
			t.Errorf("said %d times that another one reports", n)
		}
		f.change(func() { f.other = false })
		time.Sleep(maxBackoff + 10*time.Millisecond)
		same(t, "when it may", f.states(), "web/web-1", firstGood)
	})
}

// Probes that this node could not make change nothing, however many they are.
func TestProbesThatCouldNotBeMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1, 2)), newWorld()
		w.set("10.0.0.2", "connection refused")
		start(t, f, w)
		time.Sleep(10 * time.Second)
		w.set("10.0.0.1", "no file descriptors")
		w.set("10.0.0.2", "no file descriptors")
		time.Sleep(time.Minute)
		same(t, "without file descriptors", f.states(), "web/web-1", firstGood, "web/web-2", refused)
	})
}

// Readiness and what a backend asks for never make it dead.
func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := web(1, 2)
		s.Readiness = check(8080)
		f, w := newFake(s), newWorld()
		w.set("10.0.0.2:8080", "HTTP 503")
		w.asks["10.0.0.1"] = 40
		start(t, f, w)
		time.Sleep(10 * time.Second)
		one, two := f.health("web/web-1"), f.health("web/web-2")
		if one.State != control.StateUp || one.Unready != "" || one.Asks == nil || *one.Asks != 40 {
			t.Errorf("ready, and asks for 40 %%: %+v", one)
		}
		if two.State != control.StateUp || two.Unready != "3 of 3 probes failed: HTTP 503" {
			t.Errorf("not ready: %+v", two)
		}
		if s := f.stat("web/web-2", true); s.Bad < 4 {
			t.Errorf("statistics of readiness: %+v", s)
		}
		w.set("10.0.0.2:8080", "")
		time.Sleep(5 * time.Second)
		if two = f.health("web/web-2"); two.Unready != "" {
			t.Errorf("ready again: %+v", two)
		}
	})
}

// A machine that several services have in common, with equal checks, is probed once; each judges by itself.
func TestSharedProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var services []control.TargetService
		for i := range 10 {
			s := web(1, 2)
			s.Name = fmt.Sprint("s", i)
			s.Check.Fall = 1 + i
			services = append(services, s)
		}
		other := web(1)
		other.Name, other.Check.Timeout = "other", other.Check.Timeout/2
		f, w := newFake(append(services, other)...), newWorld()
		start(t, f, w)
		time.Sleep(20 * time.Second)
		if n := w.count("10.0.0.2:80"); n < 9 || n > 12 {
			t.Errorf("%d probes in 20 s of a backend of ten services", n)
		}
		if n := w.count("10.0.0.1:80"); n < 18 || n > 24 {
			t.Errorf("%d probes in 20 s of a backend with two kinds of checks", n)
		}
		w.set("10.0.0.2", "HTTP 500")
		time.Sleep(4 * time.Second) // one probe within 2.2 s, then one each half second: four at least, and fewer than ten
		if a, b := f.health("s0/web-2").State, f.health("s9/web-2").State; a != control.StateDown || b != control.StateGoingDown {
			t.Errorf("with fall: 1 %s, with fall: 10 %s", a, b)
		}
		f.reload(services[9])
		time.Sleep(10 * time.Second)
		if b := f.health("s9/web-2").State; b != control.StateDown {
			t.Errorf("after the others have gone: %s", b)
		}
	})
}

// A probe that takes its whole timeout does not lengthen the interval.
func TestSlowProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1)), newWorld()
		w.took = time.Second
		start(t, f, w)
		time.Sleep(20 * time.Second)
		if n := w.count("10.0.0.1:80"); n < 9 || n > 12 {
			t.Errorf("%d probes in 20 s, one is due every 2 s", n)
		}
	})
}
