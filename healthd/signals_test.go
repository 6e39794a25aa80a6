package healthd

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
)

// traffic sends lines of a service with four backends, ten a second, of which each gets two SYNs a line; completed says of each how
// many of these are answered.
func traffic(f *fake, lasts time.Duration, suspended []string, line func(i int) control.BackendSignals) {
	for range int(lasts / (100 * time.Millisecond)) {
		time.Sleep(100 * time.Millisecond)
		l := control.SignalsLine{ElapsedMS: 100, Suspended: suspended}
		for i := 1; i <= 4; i++ {
			b := line(i)
			b.Service, b.Backend = "web", fmt.Sprint("web-", i)
			l.Backends = append(l.Backends, b)
		}
		f.lines <- l
	}
}

func fine(int) control.BackendSignals {
	return control.BackendSignals{SYNs: 2, Completed: 2, Sources: 0b1011, HopReady: true}
}

// silent makes one backend answer nothing.
func silent(n int) func(int) control.BackendSignals {
	return func(i int) control.BackendSignals {
		b := fine(i)
		if i == n {
			b.Completed = 0
		}
		return b
	}
}

// A backend that answers no SYN is ejected within a second, longer each time, and is back by itself; its probes are good all the
// while.
func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1, 2, 3, 4)), newWorld()
		start(t, f, w)
		traffic(f, 5*time.Second, nil, fine)
		began := time.Now()
		traffic(f, time.Second, nil, silent(3))
		h := f.health("web/web-3")
		if h.State != control.StateUp || h.EjectedMS <= 9000 || h.EjectedMS > 10_000 || !strings.Contains(h.Ejected, "SYNs completed") {
			t.Fatalf("a second after it fell silent: %+v", h)
		}
		reports, times := f.taken()
		for i, r := range reports {
			for _, b := range r.Backends {
				if b.EjectedMS > 0 {
					t.Logf("ejected after %v: %s", times[i].Sub(began), b.Ejected)
				}
			}
		}
		for i := 1; i <= 4; i++ {
			if h := f.health(fmt.Sprint("web/web-", i)); i != 3 && h.EjectedMS > 0 {
				t.Errorf("web-%d: %+v", i, h)
			}
		}
		traffic(f, 10*time.Second, nil, fine)
		if h := f.health("web/web-3"); h.EjectedMS != 0 || h.Ejected != "" {
			t.Fatalf("after the ejection: %+v", h)
		}
		traffic(f, 2*time.Second, nil, silent(3))
		if h := f.health("web/web-3"); h.EjectedMS <= 17_000 || h.EjectedMS > 20_000 {
			t.Errorf("the second time: %+v", h)
		}
	})
}

// Nobody is ejected while the service's SYNs are answered by the node, if all fall silent alike, or if passive is off; with observe it is
// only told.
func TestNoEjection(t *testing.T) {
	for _, row := range []struct {
		name      string
		mode      config.PassiveMode
		suspended []string
		line      func(int) control.BackendSignals
		told      bool
	}{
		{"suspended", config.PassiveEject, []string{"web"}, silent(3), false},
		{"all alike", config.PassiveEject, nil, func(i int) control.BackendSignals { b := fine(i); b.Completed = 0; return b }, false},
		{"off", config.PassiveOff, nil, silent(3), false},
		{"observe", config.PassiveObserve, nil, silent(3), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := web(1, 2, 3, 4)
				s.Passive.Mode = row.mode
				f, w := newFake(s), newWorld()
				logs := start(t, f, w)
				traffic(f, 3*time.Second, row.suspended, fine)
				traffic(f, 3*time.Second, row.suspended, row.line)
				for i := 1; i <= 4; i++ {
					h := f.health(fmt.Sprint("web/web-", i))
					if h.EjectedMS != 0 || (h.Ejected != "") != (row.told && i == 3) {
						t.Errorf("web-%d: %+v", i, h)
					}
				}
				if n := strings.Count(logs.String(), "passive.mode is observe"); n > 1 || (n == 1) != row.told {
					t.Errorf("said %d times", n)
				}
			})
		})
	}
}

// A backend that the node has no way to is ejected, but not before its neighbour can have been resolved; and a service without
// check has ejections too.
func TestNoWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := web(1, 2, 3, 4)
		s.Check = nil
		f, w := newFake(s), newWorld()
		start(t, f, w)
		traffic(f, 2*time.Second, nil, fine)
		noWay := func(i int) control.BackendSignals {
			b := fine(i)
			if i == 2 {
				b = control.BackendSignals{}
			}
			return b
		}
		traffic(f, 400*time.Millisecond, nil, noWay)
		if h := f.health("web/web-2"); h.EjectedMS != 0 {
			t.Errorf("after 0.4 s: %+v", h)
		}
		traffic(f, 400*time.Millisecond, nil, noWay)
		if h := f.health("web/web-2"); h.EjectedMS == 0 || h.State != control.StateNone || !strings.Contains(h.Ejected, "cannot reach it") {
			t.Errorf("after 0.8 s: %+v", h)
		}
	})
}

// A reload keeps ejections, and forgets those of backends that go.
func TestEjectionOverReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFake(web(1, 2, 3, 4)), newWorld()
		start(t, f, w)
		traffic(f, 3*time.Second, nil, fine)
		traffic(f, time.Second, nil, silent(3))
		f.reload(web(1, 2, 3, 4, 5))
		time.Sleep(time.Second)
		if h := f.health("web/web-3"); h.EjectedMS == 0 {
			t.Errorf("after a reload: %+v", h)
		}
		f.reload(web(1, 2, 4))
		time.Sleep(time.Second)
		f.reload(web(1, 2, 3, 4))
		time.Sleep(2 * time.Second)
		if h := f.health("web/web-3"); h.EjectedMS != 0 || h.State != control.StateUp {
			t.Errorf("gone and back: %+v", h)
		}
	})
}
