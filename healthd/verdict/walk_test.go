package verdict

import (
	"math/rand/v2"
	"testing"
	"time"
)

// walker keeps its own count of what has happened, and holds each step of a Backend against what must always be so.
type walker struct {
	b         Backend
	now       time.Time
	good, bad int // liveness probes in a row
	ready     int // good readiness probes in a row; negative: bad ones
	probed    bool
}

func (w *walker) step(t *testing.T, e Event, d time.Duration) (Transition, bool) {
	t.Helper()
	before, s := w.b.View(), w.b.settings
	w.now = w.now.Add(d)
	next, tr, told := w.b.Next(e, w.now)
	if again, tr2, told2 := w.b.Next(e, w.now); again != next || tr2 != tr || told2 != told {
		t.Fatalf("%#v twice: %+v and %+v", e, next, again)
	}
	w.b = next
	after := next.View()
	alike := func(what string, same bool) {
		t.Helper()
		if !same {
			t.Fatalf("%#v changes %s: %+v, then %+v", e, what, before, after)
		}
	}
	state := before.State == after.State && before.Since == after.Since && before.Evidence == after.Evidence
	readiness := before.Ready == after.Ready && before.ReadyEvidence == after.ReadyEvidence
	ejection := before.EjectedUntil == after.EjectedUntil || after.EjectedUntil.IsZero() && !w.now.Before(before.EjectedUntil)
	switch e := e.(type) {
	case Probe:
		alike("readiness", readiness)
		alike("the ejection", ejection)
		if e.Nothing {
			alike("the state", state)
			break
		}
		if e.Good {
			w.good, w.bad = w.good+1, 0
		} else {
			w.good, w.bad = 0, w.bad+1
			alike("the weight", before.Weight == after.Weight)
		}
		rise := s.Rise
		if !w.probed && before.State == Unknown {
			rise = 1
		}
		if after.State.Dead() && !before.State.Dead() && w.bad < s.Fall || !after.State.Dead() && before.State.Dead() && w.good < rise {
			t.Fatalf("%v after %v with %d good, %d bad in a row", after.State, before.State, w.good, w.bad)
		}
		if before.State.Alive() && after.State.Alive() != (w.bad < s.Fall) {
			t.Fatalf("%v after %d bad probes", after.State, w.bad)
		}
		if bound := 16 * s.Rise; before.State.Dead() && w.good >= bound && !after.State.Alive() {
			t.Fatalf("still %v after %d good probes", after.State, w.good)
		}
		w.probed = w.probed || after.State != Unknown
	case Readiness:
		alike("the state", state)
		alike("the ejection", ejection)
		if e.Nothing {
			alike("readiness", readiness)
			break
		}
		if e.Good {
			w.ready = max(w.ready, 0) + 1
		} else {
			w.ready = min(w.ready, 0) - 1
		}
		if s.ReadyRise <= 0 {
			alike("readiness", readiness)
		} else if before.Ready && !after.Ready && w.ready > -s.ReadyFall {
			t.Fatalf("not ready after %d", w.ready)
		}
	case Outlier:
		alike("the state", state)
		alike("readiness", readiness)
	case Tick:
		alike("the state", state)
		alike("readiness", readiness)
		alike("the ejection", ejection)
	case Reconfigured:
		alike("alive", before.State.Alive() == after.State.Alive() && before.State.Dead() == after.State.Dead())
		w.good, w.bad, w.ready = 0, 0, 0
	}
	if after.Weight < 0 || after.Weight > 100 {
		t.Fatalf("weight %d", after.Weight)
	}
	if left := after.EjectedUntil.Sub(w.now); !after.EjectedUntil.IsZero() && (left <= 0 || left > 24*time.Hour) {
		t.Fatalf("an ejection that lasts for another %v", left)
	}
	if falls := w.b.falls(); falls < 0 || falls > mostFalls {
		t.Fatalf("%d falls", falls)
	}
	if told && (tr.At != w.now || tr.Evidence == "" || tr.Cause == "") {
		t.Fatalf("%+v at %v", tr, w.now)
	}
	if !told && before.Decided && after.Decided && (before.State.Dead() != after.State.Dead() ||
		!after.State.Dead() && before.EjectedUntil.IsZero() != after.EjectedUntil.IsZero()) {
		t.Fatalf("nothing told of %+v, then %+v", before, after)
	}
	return tr, told
}

// fresh is settings as an operator might have them, and some that none would.
func fresh(r *rand.Rand) Settings {
	return Settings{
		Rise: 1 + r.IntN(4), Fall: 1 + r.IntN(4), ReadyRise: r.IntN(4), ReadyFall: 1 + r.IntN(3),
		Interval: time.Duration(r.IntN(3000)) * time.Millisecond, Damped: r.IntN(2) == 0,
		Eject: time.Duration(r.IntN(3)) * 10 * time.Second, Longest: time.Duration(r.IntN(300)) * time.Second,
	}
}

// A hundred thousand random events break no rule.
func TestRandomWalk(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	w := &walker{b: New(settings), now: start}
	told, badShare := 0, 0.3
	answer := func() Answer {
		return Answer{Good: r.Float64() >= badShare, Nothing: r.IntN(20) == 0, Weight: r.IntN(140) - 20, HasWeight: r.IntN(2) == 0, Evidence: "evidence"}
	}
	seen := map[State]int{}
	ejections := 0
	for range 100_000 {
		if r.IntN(200) == 0 {
			badShare = r.Float64()
		}
		var e Event
		switch k := r.IntN(100); {
		case k < 60:
			e = Probe(answer())
		case k < 80:
			e = Readiness(answer())
		case k < 85:
			e = Outlier{"evidence"}
		case k < 99:
			e = Tick{}
		default:
			e = Reconfigured{fresh(r)}
		}
		tr, ok := w.step(t, e, time.Duration(r.ExpFloat64()*float64(time.Second)))
		seen[w.b.View().State]++
		if ok {
			told++
			if tr.To == wordEjected {
				ejections++
			}
		}
	}
	t.Logf("100000 events, %d transitions, %d to ejected, events that ended in each state: %v", told, ejections, seen)
	if len(seen) < 4 || ejections == 0 {
		t.Error("the walk saw too little")
	}
}

// FuzzNext breaks no rule by any events: of each byte, the low four bits choose one, the others how long it takes.
func FuzzNext(f *testing.F) {
	f.Add([]byte("gggbbbgggooott"), uint64(1))
	f.Add([]byte{0, 1, 1, 1, 0, 0, 8, 0xfa, 9, 0xf0}, uint64(7))
	f.Fuzz(func(t *testing.T, script []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		w := &walker{b: New(fresh(r)), now: start}
		for _, c := range script {
			var e Event
			switch c & 15 {
			case 0, 2, 3:
				e = Probe{Good: true, Evidence: "good"}
			case 1, 4:
				e = Probe{Evidence: "bad"}
			case 5:
				e = Probe{Nothing: true, Evidence: "nothing"}
			case 6:
				e = Probe{Good: true, Weight: int(int8(c)), HasWeight: true, Evidence: "weight"}
			case 7:
				e = Readiness{Good: true, Evidence: "good"}
			case 8, 9:
				e = Readiness{Evidence: "bad"}
			case 10:
				e = Readiness{Good: true, Weight: int(c), HasWeight: true, Evidence: "weight"}
			case 11, 12:
				e = Outlier{"outlier"}
			case 13:
				e = Tick{}
			default:
				e = Reconfigured{fresh(r)}
			}
			w.step(t, e, time.Duration(1<<(c>>4))*50*time.Millisecond)
		}
	})
}

// flap probes every interval for a time, and counts the transitions.
func flap(s Settings, interval, d time.Duration, good func(at time.Duration) bool) (transitions int, last Backend) {
	b := New(s)
	for at := time.Duration(0); at < d; at += interval {
		next, _, ok := b.Next(Probe{Good: good(at), Evidence: "evidence"}, start.Add(at))
		if ok {
			transitions++
		}
		b = next
	}
	return transitions, b
}

// A backend that goes up and down comes to rest, down, and comes back when it has stopped. Without damping it never rests.
func TestFlappingComesToRest(t *testing.T) {
	for _, c := range []struct {
		name       string
		rise, fall int
		interval   time.Duration // of probes
		half       time.Duration // it is up for so long, then as long down
		most       int           // transitions in ten minutes
	}{
		{"each second, rise 1, fall 1", 1, 1, time.Second, time.Second, 6},
		{"each second, rise 2, fall 1, probed twice a second", 2, 1, 500 * time.Millisecond, time.Second, 6},
		{"every 5 s, rise 2, fall 3", 2, 3, time.Second, 5 * time.Second, 6},
		{"every 20 s, rise 2, fall 3", 2, 3, time.Second, 20 * time.Second, 14},
	} {
		s := liveness(c.rise, c.fall)
		s.Interval = c.interval
		good := func(at time.Duration) bool { return at/c.half%2 == 0 }
		damped, b := flap(s, c.interval, 10*time.Minute, good)
		s.Damped = false
		undamped, _ := flap(s, c.interval, 10*time.Minute, good)
		s.Damped = true
		var back time.Duration
		for ok := false; !ok; back += c.interval {
			b, _, ok = b.Next(Probe{Good: true}, start.Add(10*time.Minute+back))
			if back > longestRise {
				t.Fatalf("%s: not back after %v", c.name, back)
			}
		}
		t.Logf("%s, for 10 minutes: %d transitions, %d without damping; back after %v", c.name, damped, undamped, back)
		if damped > c.most || undamped < 2*damped {
			t.Errorf("%s: %d transitions, want at most %d; %d without damping", c.name, damped, c.most, undamped)
		}
	}
}

// Three of ten probes bad at random is no reason for much: with fall 3 a backend falls now and then.
func TestRandomlyBadProbes(t *testing.T) {
	for _, bad := range []float64{0.1, 0.3, 0.5} {
		var counts, alive [2]int
		for i, damped := range []bool{true, false} {
			r := rand.New(rand.NewPCG(3, 4))
			s := liveness(2, 3)
			s.Interval, s.Damped = 2*time.Second, damped
			b := New(s)
			for at := time.Duration(0); at < time.Hour; at += s.Interval {
				next, _, ok := b.Next(Probe{Good: r.Float64() >= bad, Evidence: "evidence"}, start.Add(at))
				if ok {
					counts[i]++
				}
				if b = next; b.View().State.Alive() {
					alive[i]++
				}
			}
		}
		t.Logf("%.0f %% bad probes, rise 2, fall 3, every 2 s, an hour: %d transitions, alive for %d %%; without damping %d, %d %%",
			100*bad, counts[0], alive[0]*100/1800, counts[1], alive[1]*100/1800)
		if counts[0] > counts[1] {
			t.Errorf("%d transitions with damping, %d without", counts[0], counts[1])
		}
	}
}

// A backend that fell once, or is started again every ten minutes by a deploy, comes back after Rise good probes.
func TestDeploysAreNotPunished(t *testing.T) {
	s := liveness(2, 3)
	b, now := New(s), start
	b, _, _ = b.Next(Probe{Good: true}, now)
	for deploy := range 50 {
		now = now.Add(10 * time.Minute)
		for range 5 {
			b, _, _ = b.Next(Probe{}, now)
			now = now.Add(time.Second)
		}
		for i := 1; i <= s.Rise; i++ {
			b, _, _ = b.Next(Probe{Good: true}, now)
			now = now.Add(time.Second)
		}
		if got := b.View().State; got != Up {
			t.Fatalf("deploy %d: %v after %d good probes, %d flaps", deploy+1, got, s.Rise, b.falls())
		}
	}
}

// However long the interval, damping does not make a backend wait for more than five minutes, nor for fewer probes than Rise.
func TestDampingIsBounded(t *testing.T) {
	for _, c := range []struct {
		rise     int
		interval time.Duration
		want     int
	}{{2, time.Second, 32}, {2, 10 * time.Second, 30}, {2, time.Minute, 5}, {2, time.Hour, 2}, {1000, time.Second, 1000}, {3, 0, 48}, {1 << 62, time.Second, 1 << 62}} {
		s := liveness(c.rise, 1)
		s.Interval = c.interval
		b := New(s)
		b.sum = mostFalls
		if got := b.need(c.rise); got != c.want {
			t.Errorf("rise %d every %v: %d good probes needed, want %d", c.rise, c.interval, got, c.want)
		}
	}
}
