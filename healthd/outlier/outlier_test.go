package outlier

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// rig drives a detector of backends a, b, c … by hand.
type rig struct {
	t     *testing.T
	d     *Detector
	names []string
	now   time.Time
	told  []string // verdicts: backend, rule, held
	last  Verdict
}

func newRig(t *testing.T, s Settings, backends int) *rig {
	r := &rig{t: t, d: New(s), now: time.Now()}
	for i := range backends {
		r.names = append(r.names, string(rune('a'+i)))
		r.d.Set(r.names[i], In)
	}
	r.d.Observe(r.now, nil, false)
	return r
}

func (r *rig) observe(suspended bool, samples ...Sample) {
	r.now = r.now.Add(period)
	for _, v := range r.d.Observe(r.now, samples, suspended) {
		text := fmt.Sprint(v.Backend, " ", v.Rule)
		if v.Held {
			text += " held"
		}
		r.told, r.last = append(r.told, text), v
	}
}

// run lets n periods pass in which each backend that is not named has what healthy has, the others what f returns.
func (r *rig) run(n int, f func(name string) (Sample, bool)) {
	r.t.Helper()
	for range n {
		var samples []Sample
		for _, name := range r.names {
			s, other := f(name)
			if !other {
				s = healthy
			}
			s.Backend = name
			samples = append(samples, s)
		}
		r.observe(false, samples...)
	}
}

// healthy is a tenth of a second of 20 SYN/s from two sources.
var healthy = Sample{SYNs: 2, Completed: 2, Sources: 0b101}

func only(name string, s Sample) func(string) (Sample, bool) {
	return func(n string) (Sample, bool) { return s, n == name }
}

func all(s Sample) func(string) (Sample, bool) {
	return func(string) (Sample, bool) { return s, true }
}

func (r *rig) want(list ...string) {
	r.t.Helper()
	if got, want := strings.Join(r.told, ", "), strings.Join(list, ", "); got != want {
		r.t.Errorf("%s, want %s", got, want)
	}
	r.told = nil
}

var quarter = Settings{MaxShare: 0.25}

// Each rule, at its limits. Ten seconds of health go before, with four backends.
func TestRules(t *testing.T) {
	silent := Sample{SYNs: 2, Sources: 0b101}
	for _, c := range []struct {
		name     string
		settings Settings
		before   Sample // of all
		then     Sample // of a
		others   Sample
		periods  int
		want     string // verdicts
		evidence string
	}{
		{"dead", quarter, healthy, silent, healthy, 10, "a dead", "no handshake of 8 SYNs completed, others complete 99 %"},
		{"dead, not yet", quarter, healthy, silent, healthy, 4, "", ""},
		{"one SYN is no news", quarter, healthy, Sample{SYNs: 1, Completed: 1, Sources: 1}, healthy, 100, "", ""},
		{"from one source of several", quarter, healthy, Sample{SYNs: 2, Sources: 0b100}, healthy, 30, "", ""},
		{"from the only source there is", quarter, Sample{SYNs: 2, Completed: 2, Sources: 1}, Sample{SYNs: 2, Sources: 1},
			Sample{SYNs: 2, Completed: 2, Sources: 1}, 10, "a dead", "no handshake of 8 SYNs completed, others complete 99 %"},
		{"by source, two sources", Settings{MaxShare: 0.25, BySource: true}, healthy, silent, healthy, 30, "", ""},
		{"by source, five sources", Settings{MaxShare: 0.25, BySource: true}, healthy, Sample{SYNs: 2, Sources: 0b11111}, healthy, 10,
			"a dead", "no handshake of 8 SYNs completed, others complete 99 %"},
		{"the others are silent too", quarter, healthy, silent, silent, 30, "", ""},
		{"others complete a quarter", quarter, Sample{SYNs: 4, Completed: 1, Sources: 0b101}, silent, Sample{SYNs: 4, Completed: 1, Sources: 0b101}, 90, "", ""},
		{"others complete half", quarter, Sample{SYNs: 4, Completed: 2, Sources: 0b101}, silent, Sample{SYNs: 4, Completed: 2, Sources: 0b101}, 30,
			"a dead", "no handshake of 30 SYNs completed, others complete 50 %"},
		{"no traffic at the others", quarter, healthy, silent, Sample{}, 30, "", ""},

		{"two ICMP errors", quarter, healthy, Sample{Unreachable: 2}, healthy, 1, "", ""},
		{"three ICMP errors", quarter, healthy, Sample{Unreachable: 3}, healthy, 1, "a unreachable", "3 ICMP errors say that it is unreachable, and no handshake completed since"},
		{"one ICMP error after another", quarter, healthy, Sample{Unreachable: 1}, healthy, 3, "a unreachable", "3 ICMP errors say that it is unreachable, and no handshake completed since"},
		{"ICMP errors and handshakes", quarter, healthy, Sample{Unreachable: 3, SYNs: 1, Completed: 1}, healthy, 30, "", ""},
		{"without TCP", quarter, Sample{}, Sample{Unreachable: 3}, Sample{}, 1, "a unreachable", "3 ICMP errors say that it is unreachable, and no handshake completed since"},

		{"no hop", quarter, healthy, Sample{NoHop: true}, healthy, 1, "a no hop", "the node cannot reach it: no route or no neighbour"},

		{"sent again", quarter, healthy, Sample{SYNs: 2, Completed: 2, Retransmitted: 1, Sources: 0b101}, healthy, 100, "a retransmissions", "32 % of 182 SYNs were sent again, at the others 0 %"},
		{"sent again everywhere", quarter, healthy, Sample{SYNs: 2, Completed: 2, Retransmitted: 1, Sources: 0b101},
			Sample{SYNs: 2, Completed: 2, Retransmitted: 1, Sources: 0b101}, 200, "", ""},
		{"sent again by one source", quarter, Sample{SYNs: 2, Completed: 2, Sources: 0b1}, Sample{SYNs: 2, Completed: 2, Retransmitted: 1, Sources: 0b1},
			Sample{SYNs: 2, Completed: 2, Sources: 0b11}, 200, "", ""},
		{"sent again, by source", Settings{MaxShare: 0.25, BySource: true}, healthy, Sample{SYNs: 2, Completed: 2, Retransmitted: 1, Sources: 0xff}, healthy, 200, "", ""},

		{"reset", quarter, healthy, Sample{SYNs: 2, Completed: 2, Resets: 2, Sources: 0b101}, healthy, 100, "a resets", "clients reset 54 % of 182 connections soon after the handshake, at the others 0 %"},
		{"half reset", quarter, healthy, Sample{SYNs: 2, Completed: 2, Resets: 1, Sources: 0b101}, healthy, 200, "", ""},
		{"reset everywhere", quarter, healthy, Sample{SYNs: 2, Completed: 2, Resets: 2, Sources: 0b101}, Sample{SYNs: 2, Completed: 2, Resets: 2, Sources: 0b101}, 200, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.settings, 4)
			r.run(100, all(c.before))
			for range c.periods {
				r.run(1, func(name string) (Sample, bool) {
					if name == "a" {
						return c.then, true
					}
					return c.others, true
				})
			}
			if got := strings.Join(r.told, ", "); got != c.want || r.last.Evidence != c.evidence {
				t.Errorf("%q: %q, want %q: %q", got, r.last.Evidence, c.want, c.evidence)
			}
		})
	}
}

// No more are ejected than the ceiling lets, counting those that are down, and never the last. What is held back is said once.
func TestCeiling(t *testing.T) {
	for _, c := range []struct {
		share              float64
		backends, down     int
		idle, bad, ejected int
	}{
		{0.25, 4, 0, 0, 4, 1},
		{0.25, 8, 0, 0, 8, 2},
		{0.25, 8, 1, 0, 7, 1},
		{0.25, 8, 2, 0, 6, 0},
		{0.25, 8, 0, 4, 4, 1},
		{0.25, 7, 0, 0, 7, 1},
		{0.29, 100, 0, 0, 60, 29},
		{0.1, 2, 0, 0, 1, 1},
		{1, 3, 0, 0, 3, 2},
		{1, 1, 0, 0, 1, 0},
		{0, 5, 0, 0, 2, 1},
		{0, 2, 1, 0, 1, 0},
	} {
		d := New(Settings{MaxShare: c.share})
		now := time.Now()
		var samples []Sample
		for i := range c.backends {
			name := fmt.Sprintf("web-%03d", i)
			state := In
			switch {
			case i < c.down:
				state = Out
			case i < c.down+c.idle:
				state = Idle
			case i < c.down+c.idle+c.bad:
				samples = append(samples, Sample{Backend: name, NoHop: true})
			}
			d.Set(name, state)
		}
		d.Observe(now, nil, false)
		ejected, held := 0, 0
		for i := 1; i < 5; i++ {
			for _, v := range d.Observe(now.Add(time.Duration(i)*period), samples, false) {
				if v.Held {
					held++
				} else {
					ejected++
				}
			}
		}
		if ejected != c.ejected || held != c.bad-c.ejected {
			t.Errorf("%+v: %d ejected, %d held back", c, ejected, held)
		}
	}
}

// The clearest signs go first when not all can be ejected.
func TestClearestFirst(t *testing.T) {
	r := newRig(t, quarter, 4)
	r.observe(false, Sample{Backend: "a", Unreachable: 5}, Sample{Backend: "c", NoHop: true}, Sample{Backend: "b", NoHop: true})
	r.want("b no hop", "c no hop held", "a unreachable held")
}

// A backend that is back starts afresh, and one that is ejected neither spoils what the others are measured by nor is judged.
func TestBackAgain(t *testing.T) {
	r := newRig(t, quarter, 4)
	r.run(100, all(healthy))
	r.run(10, only("a", Sample{SYNs: 2, Sources: 0b101}))
	r.want("a dead")
	if got := r.d.window.sum; got.syns > got.completed {
		t.Errorf("after the ejection the others have %+v", got)
	}
	r.run(100, only("a", Sample{SYNs: 2, Sources: 0b101}))
	r.want()
	r.d.Set("a", In)
	r.run(4, only("a", Sample{SYNs: 2, Sources: 0b101}))
	r.want()
	r.run(3, only("a", Sample{SYNs: 2, Sources: 0b101}))
	r.want("a dead")
	r.d.Set("a", In)
	r.run(100, all(healthy))
	r.want()
	r.d.Remove("a")
	r.run(20, only("a", Sample{SYNs: 2, Sources: 0b101}))
	r.want()
	if r.d.in != 3 || r.d.out != 0 {
		t.Errorf("%d in, %d out", r.d.in, r.d.out)
	}
}

// While SYNs are answered on the node, and after a pause, nothing is judged, and nothing from before counts.
func TestForgets(t *testing.T) {
	silent := Sample{Backend: "a", SYNs: 2, Sources: 0b101}
	r := newRig(t, quarter, 4)
	r.run(100, all(healthy))
	r.run(4, only("a", silent))
	r.observe(true, Sample{Backend: "a", NoHop: true}, silent)
	r.run(3, only("a", silent))
	r.want()

	r = newRig(t, quarter, 4)
	r.run(100, all(healthy))
	r.run(4, only("a", silent))
	r.now = r.now.Add(maxElapsed)
	r.observe(false, silent, silent, silent)
	r.run(3, only("a", silent))
	r.want()
	r.run(60, only("a", silent)) // and learns anew
	r.want("a dead")
}

// Handshakes that take longer than the quiet time are waited for, once one has been seen.
func TestPauseOfFarClients(t *testing.T) {
	r := newRig(t, quarter, 4)
	r.run(100, all(healthy))
	r.run(1, only("a", Sample{SYNs: 3, Sources: 0b101})) // the last before a pause
	r.run(6, only("a", Sample{}))
	r.run(1, only("a", Sample{Completed: 3}))
	r.run(13, only("a", Sample{SYNs: 2, Sources: 0b101})) // twice the 0.7 s that it took
	r.want()
	r.run(2, only("a", Sample{SYNs: 2, Sources: 0b101}))
	r.want("a dead")
}

// What is improbable, against sums of exact probabilities.
func TestProbabilities(t *testing.T) {
	for _, c := range []struct {
		n, others, events uint64
		want              float64 // probability that none of n is among the events
	}{{1, 1, 1, 1.0 / 2}, {5, 12, 12, 1.0 / 6188}, {2, 3, 1, 3.0 / 5}, {3, 0, 0, 1}, {3, 4, 0, 1}, {3, 4, 9, 1.0 / 35}} {
		if got := math.Exp(-noneOf(c.n, ratio{c.events, c.others})); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("none of %d, others %d of %d: %v, want %v", c.n, c.events, c.others, got, c.want)
		}
	}
	// Chernoff's bound is above the probability, and not by far.
	for _, c := range []struct {
		n, k int
		q    float64
	}{{30, 10, 0.05}, {200, 61, 0.1}, {40, 40, 0.5}, {50, 26, 0.1}} {
		exact := 0.0
		for k := c.k; k <= c.n; k++ {
			exact += math.Exp(choose(float64(c.n), float64(k)) + float64(k)*math.Log(c.q) + float64(c.n-k)*math.Log1p(-c.q))
		}
		bound := math.Exp(-float64(c.n) * divergence(float64(c.k)/float64(c.n), c.q))
		if bound < exact*(1-1e-9) || bound > 30*exact {
			t.Errorf("%d of %d at %v: bound %v, exactly %v", c.k, c.n, c.q, bound, exact)
		}
	}
}

// check holds what must always be so in a detector.
func (d *Detector) check(t *testing.T) {
	t.Helper()
	in, out := 0, 0
	var sum counts
	d.window.turn(d.now)
	for _, b := range d.backends {
		b.window.turn(d.now)
		sum.add(&b.window.sum)
		switch b.state {
		case In:
			in++
		case Out:
			out++
		}
		if b.state != In && (len(b.young) > 0 || b.window.sum != counts{} || b.run.syns > 0) {
			t.Fatalf("%s is not in: %+v", b.name, b)
		}
		if len(b.young) > mostYoung {
			t.Fatalf("%s keeps %d samples", b.name, len(b.young))
		}
		var own counts
		for i := range b.window.buckets {
			own.add(&b.window.buckets[i].counts)
		}
		if own != b.window.sum {
			t.Fatalf("%s: buckets hold %+v, the sum is %+v", b.name, own, b.window.sum)
		}
	}
	if in != d.in || out != d.out {
		t.Fatalf("%d in, %d out, counted %d, %d", in, out, d.in, d.out)
	}
	if sum != d.window.sum {
		t.Fatalf("backends have %+v, all %+v", sum, d.window.sum)
	}
	if len(d.active) > len(d.backends)+8 {
		t.Fatalf("%d active of %d", len(d.active), len(d.backends))
	}
}

// drive does what the bytes say, and holds the rules that no input may break.
func drive(t *testing.T, next func() (byte, bool)) (verdicts int) {
	const backends = 6
	d := New(Settings{MaxShare: 0.5})
	now := time.Now()
	names := make([]string, backends)
	for i := range names {
		names[i] = fmt.Sprint("b", i)
		d.Set(names[i], In)
	}
	d.Observe(now, nil, false)
	var samples []Sample
	for {
		c, ok := next()
		if !ok {
			return verdicts
		}
		name := names[int(c>>4)%backends]
		switch c & 15 {
		case 0:
			d.Set(name, In)
		case 1:
			d.Set(name, Out)
		case 2:
			d.Set(name, Idle)
		case 3:
			d.Remove(name)
		case 4, 5, 6, 7, 8:
			samples = append(samples, Sample{Backend: name, SYNs: uint64(c & 7), Completed: uint64(c>>4) & 3, Sources: uint64(c) * 37})
		case 9:
			samples = append(samples, Sample{Backend: name, SYNs: 9, Retransmitted: 30, Resets: uint64(c), Sources: ^uint64(0)})
		case 10:
			samples = append(samples, Sample{Backend: name, Unreachable: 2})
		case 11:
			samples = append(samples, Sample{Backend: name, NoHop: true})
		default:
			d.check(t)
			most := max(1, int(0.5*float64(d.in+d.out)))
			in, out := d.in, d.out
			now = now.Add(time.Duration(c>>4) * 40 * time.Millisecond)
			ejected := 0
			for _, v := range d.Observe(now, samples, c&15 == 15 && c>>4 == 3) {
				if v.Evidence == "" {
					t.Fatalf("%+v", v)
				}
				if !v.Held {
					ejected++
				}
			}
			verdicts += ejected
			if ejected > 0 && (out+ejected > most || in-ejected < 1) {
				t.Fatalf("%d ejected, %d were in, %d out", ejected, in, out)
			}
			d.check(t)
			samples = samples[:0]
		}
	}
}

// Twenty thousand random steps break no rule.
func TestRandomSteps(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	n := 0
	verdicts := drive(t, func() (byte, bool) {
		n++
		return byte(r.Uint32()), n < 20_000
	})
	t.Logf("%d ejections", verdicts)
	if verdicts < 50 {
		t.Error("too few for the test to mean something")
	}
}

func FuzzObserve(f *testing.F) {
	f.Add([]byte{0x04, 0x14, 0x2c, 0x0b, 0x1c, 0x00, 0x2d})
	f.Fuzz(func(t *testing.T, script []byte) {
		drive(t, func() (c byte, ok bool) {
			if len(script) == 0 {
				return 0, false
			}
			c, script = script[0], script[1:]
			return c, true
		})
	})
}

// A caller that comes more often than every tenth of a second makes a backend keep no more samples, and none is lost.
func TestManySamplesWithinTheAllowance(t *testing.T) {
	d := New(quarter)
	now := time.Now()
	d.Set("a", In)
	d.Observe(now, nil, false)
	one := Sample{Backend: "a", SYNs: 1, Sources: 1}
	for i := range 1000 {
		d.Observe(now.Add(time.Duration(i)*time.Millisecond/10), []Sample{one, one}, false)
		d.check(t)
	}
	d.Observe(now.Add(900*time.Millisecond), nil, false)
	if got := d.window.sum.syns; got != 2000 {
		t.Errorf("%d SYNs counted of 2000", got)
	}
}

// A call without findings allocates nothing.
func TestObserveAllocatesNothing(t *testing.T) {
	d := New(quarter)
	now := time.Now()
	var samples []Sample
	for i := range 100 {
		s := healthy
		s.Backend = fmt.Sprint("web-", i)
		d.Set(s.Backend, In)
		samples = append(samples, s)
	}
	step := func() {
		now = now.Add(period)
		d.Observe(now, samples, false)
	}
	for range 20 {
		step()
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A reading that has news of few backends costs little, however many there are, and allocates nothing.
func BenchmarkObserve10k(b *testing.B) {
	for _, news := range []int{0, 10, 100, 10_000} {
		b.Run(fmt.Sprint(news, " with news"), func(b *testing.B) {
			d := New(quarter)
			now := time.Now()
			samples := make([]Sample, news)
			for i := range 10_000 {
				name := fmt.Sprint("web-", i)
				d.Set(name, In)
				if i < news {
					samples[i] = healthy
					samples[i].Backend = name
				}
			}
			d.Observe(now, nil, false)
			for range 20 {
				now = now.Add(period)
				d.Observe(now, samples, false)
			}
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(period)
				d.Observe(now, samples, false)
			}
		})
	}
}
