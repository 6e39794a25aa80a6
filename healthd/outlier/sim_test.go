package outlier

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

const period = 100 * time.Millisecond

// world is a service with its clients, in time steps of one period. What it does not say is healthy.
type world struct {
	r        *rand.Rand
	d        *Detector
	bySource bool
	names    []string
	rate     float64   // SYNs per second to each backend, on average
	weights  []float64 // of backends, 1 on average; nil: all alike
	rtt      func(w *world) time.Duration
	load     func(w *world, at time.Duration) float64 // factor of the rate; nil: 1
	lost     float64                                  // share of SYNs that get lost and are sent again after a second
	spoofed  float64                                  // share of SYNs that nobody completes, each from another source
	resets   float64                                  // share of connections that clients reset soon
	outage   func(at time.Duration, source int) bool  // whether a client gets no answer
	burst    func(w *world, at time.Duration) int     // SYNs of one scanner within this period

	// What is wrong with backend 0 from fails on; 0: nothing.
	fails             time.Duration
	silent            bool    // answers no SYN
	lossy, resetShare float64 // shares of its SYNs and connections

	at      time.Duration
	scanner int
	future  [64][]Sample // what comes in one of the next periods
	start   time.Time
}

func near(w *world) time.Duration  { return time.Duration(20+40*w.r.Float64()) * time.Millisecond }
func ocean(w *world) time.Duration { return time.Duration(150+100*w.r.Float64()) * time.Millisecond }
func far(w *world) time.Duration   { return time.Duration(580+40*w.r.Float64()) * time.Millisecond }

// mixed has a fifth of the clients far away.
func mixed(w *world) time.Duration {
	if w.r.IntN(5) == 0 {
		return far(w)
	}
	return near(w)
}

func newWorld(seed uint64, backends int, rate float64) *world {
	w := &world{r: rand.New(rand.NewPCG(seed, 1)), rate: rate, rtt: near, start: time.Now()}
	for i := range backends {
		w.names = append(w.names, fmt.Sprint("web-", i))
	}
	return w
}

func (w *world) begin() {
	w.d = New(Settings{MaxShare: 0.25, BySource: w.bySource})
	for _, name := range w.names {
		w.d.Set(name, In)
	}
	for i := range w.future {
		w.future[i] = w.period()
	}
	w.d.Observe(w.start, nil, false)
}

func (w *world) period() []Sample {
	s := make([]Sample, len(w.names))
	for i := range s {
		s[i].Backend = w.names[i]
	}
	return s
}

func (w *world) poisson(mean float64) int {
	if mean > 30 {
		return max(0, int(math.Round(mean+math.Sqrt(mean)*w.r.NormFloat64())))
	}
	limit, p := math.Exp(-mean), w.r.Float64()
	n := 0
	for ; p > limit; n++ {
		p *= w.r.Float64()
	}
	return n
}

// when is what happens at a time from the present period on.
func (w *world) when(at time.Duration, backend int) *Sample {
	return &w.future[int(at/period)%len(w.future)][backend]
}

// syn is one client's SYN, that arrives at the time at.
func (w *world) syn(backend, source int, at time.Duration, answers bool) {
	s := w.when(at, backend)
	s.SYNs++
	s.Sources |= 1 << (source & 63)
	rtt := w.rtt(w)
	broken := w.fails > 0 && backend == 0 && at+rtt/2 >= w.fails
	switch {
	case !answers:
		return // who sends such SYNs does not wait for answers either
	case w.outage != nil && w.outage(at, source) || broken && w.silent:
		w.when(at+time.Second, backend).Retransmitted++
		w.when(at+3*time.Second, backend).Retransmitted++
		return
	}
	lost, resets := w.lost, w.resets
	if broken {
		lost, resets = max(lost, w.lossy), max(resets, w.resetShare)
	}
	for wait := time.Second; w.r.Float64() < lost && wait < 5*time.Second; wait *= 2 {
		at += wait
		w.when(at, backend).Retransmitted++
	}
	w.when(at+rtt, backend).Completed++
	if w.r.Float64() < resets {
		w.when(at+rtt, backend).Resets++
	}
}

// backendOf is where a source's flows go, if not all over.
func (w *world) backendOf(source, otherwise int) int {
	if w.bySource {
		return int(uint64(source) * 0x9e3779b97f4a7c15 >> 40 % uint64(len(w.names)))
	}
	return otherwise
}

// step lets one period pass.
func (w *world) step() []Verdict {
	load := 1.0
	if w.load != nil {
		load = w.load(w, w.at)
	}
	for i := range w.names {
		weight := 1.0
		if w.weights != nil {
			weight = w.weights[i]
		}
		for range w.poisson(w.rate * load * weight * period.Seconds()) {
			at := w.at + time.Duration(w.r.Int64N(int64(period)))
			source := int(500 * math.Pow(w.r.Float64(), 3)) // some have more connections than others
			w.syn(w.backendOf(source, i), source, at, true)
		}
		for range w.poisson(w.rate * load * weight * period.Seconds() * w.spoofed / (1 - w.spoofed)) {
			source := w.r.IntN(1 << 30)
			w.syn(w.backendOf(source, i), source, w.at+time.Duration(w.r.Int64N(int64(period))), false)
		}
	}
	if w.burst != nil {
		for range w.burst(w, w.at) {
			w.syn(w.backendOf(w.scanner, w.r.IntN(len(w.names))), w.scanner, w.at+time.Duration(w.r.Int64N(int64(period))), false)
		}
	}
	now := int(w.at/period) % len(w.future)
	samples := w.future[now]
	w.future[now] = w.period()
	w.at += period
	return w.d.Observe(w.start.Add(w.at), slices.DeleteFunc(samples, func(s Sample) bool { return s == Sample{Backend: s.Backend} }), false)
}

// bursts of a scanner: all of n SYNs, evenly within d, about every ten seconds.
func bursts(n int, d time.Duration) func(w *world, at time.Duration) int {
	left := 0
	each := max(1, n*int(period)/int(d))
	return func(w *world, at time.Duration) int {
		if left == 0 && w.r.Float64() < period.Seconds()/10 {
			left, w.scanner = n, w.r.IntN(1<<30)
		}
		now := min(left, each)
		left -= now
		return now
	}
}

// every says for the first part of each whole.
func every(whole, part time.Duration) func(at time.Duration, source int) bool {
	return func(at time.Duration, source int) bool { return at%whole < part }
}

// hours is how long the simulations of healthy services run, each. SLUICE_SIM_HOURS=100 for the long form.
func hours(t *testing.T) float64 {
	text := os.Getenv("SLUICE_SIM_HOURS")
	switch {
	case raceEnabled:
		return 0.02
	case text == "":
		return 0.25
	}
	h, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Whatever clients do, healthy backends stay: where the long form finds a false ejection in many hours, it is said how many may be.
func TestHealthyBackendsStay(t *testing.T) {
	h := hours(t)
	onOff := func(w *world, at time.Duration) float64 {
		if at%(20*time.Second) < 10*time.Second {
			return 0
		}
		return 1
	}
	for _, c := range []struct {
		name    string
		set     func(w *world)
		allowed float64 // false ejections in an hour of a service
	}{
		{"ordinary traffic", func(w *world) {}, 0},
		{"5 % spoofed SYNs", func(w *world) { w.spoofed = 0.05 }, 0},
		{"30 % spoofed SYNs", func(w *world) { w.spoofed = 0.3 }, 0.02}, // ten SYNs of one other backend are not much to know r from
		{"60 % spoofed SYNs", func(w *world) { w.spoofed = 0.6 }, 0},
		{"95 % spoofed SYNs", func(w *world) { w.spoofed = 0.95 }, 0},
		{"scanner, 40 SYNs in 0.1 s", func(w *world) { w.burst = bursts(40, period) }, 0},
		{"scanner, 100 SYNs in 0.1 s", func(w *world) { w.burst = bursts(100, period) }, 0},
		{"scanner, 100 SYNs in 1 s", func(w *world) { w.burst = bursts(100, time.Second) }, 0},
		{"scanner, 1000 SYNs in 5 s", func(w *world) { w.burst = bursts(1000, 5*time.Second) }, 0},
		{"clients across an ocean", func(w *world) { w.rtt = ocean }, 0},
		{"far clients", func(w *world) { w.rtt = far }, 0},
		{"far clients, traffic off and on", func(w *world) { w.rtt, w.load = far, onOff }, 0},
		{"far clients, uneven weights", func(w *world) {
			w.rtt, w.weights = far, make([]float64, len(w.names))
			for i := range w.weights {
				w.weights[i] = 0.2
			}
			w.weights[0] = float64(len(w.names))
		}, 0.02}, // by source: a pause of SYNs, and no handshake just before its end
		{"a fifth of the clients far, traffic in bursts", func(w *world) {
			w.rtt, w.load = mixed, func(w *world, at time.Duration) float64 {
				if w.r.IntN(20) == 0 {
					return 20
				}
				return 0
			}
		}, 0},
		{"a fifth of the clients far, traffic off and on", func(w *world) { w.rtt, w.load = mixed, onOff }, 0},
		{"a fifth of the clients far, 5 % spoofed, a scanner", func(w *world) { w.rtt, w.spoofed, w.burst = mixed, 0.05, bursts(100, time.Second) }, 0},
		{"5 % of SYNs lost everywhere", func(w *world) { w.lost = 0.05 }, 0},
		{"5 % spoofed, and 5 % of SYNs lost everywhere", func(w *world) { w.spoofed, w.lost = 0.05, 0.05 }, 0},
		{"40 % of SYNs lost everywhere", func(w *world) { w.lost = 0.4 }, 0},
		{"40 % reset everywhere", func(w *world) { w.resets = 0.4 }, 0},
		{"no client gets an answer for 1 of 20 s", func(w *world) { w.outage = every(20*time.Second, time.Second) }, 0},
		{"no client gets an answer for 10 of 60 s", func(w *world) { w.outage = every(time.Minute, 10*time.Second) }, 0},
		{"half the clients get no answer for 10 of 30 s", func(w *world) {
			w.outage = func(at time.Duration, source int) bool { return source%2 == 0 && at%(30*time.Second) < 10*time.Second }
		}, 0.1}, // of 120 such outages: as one begins, all SYNs of one backend may be of that half by chance
		{"uneven weights, 5 % spoofed", func(w *world) {
			w.spoofed, w.weights = 0.05, make([]float64, len(w.names))
			for i := range w.weights {
				w.weights[i] = 0.1
			}
			w.weights[0] = float64(len(w.names))
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var figures []string
			all := 0
			for i, kind := range []struct {
				backends int
				rate     float64 // per backend
				bySource bool
			}{{4, 20, false}, {4, 5, false}, {2, 1, false}, {12, 0.2, false}, {4, 20, true}} {
				w := newWorld(uint64(i), kind.backends, kind.rate)
				w.bySource = kind.bySource
				c.set(w)
				w.begin()
				wrong := 0
				for w.at < time.Duration(h*float64(time.Hour)) {
					for _, v := range w.step() {
						if wrong++; wrong < 5 {
							t.Logf("after %v, %s, %d backends, %v SYN/s each, by source %v: %+v", w.at, c.name, kind.backends, kind.rate, kind.bySource, v)
						}
						w.d.Set(v.Backend, In)
					}
				}
				all += wrong
				figures = append(figures, fmt.Sprintf("%d×%v: %d", kind.backends, kind.rate, wrong))
			}
			if float64(all) > c.allowed*h*5 {
				t.Errorf("%d false ejections in %v h", all, 5*h)
			}
			t.Logf("%s, %v h each; backends × SYN/s: false ejections: %v, the last by source", c.name, h, figures)
		})
	}
}

// A backend that answers no more is out within a second, at 20 SYN/s.
func TestDeadBackendIsOutSoon(t *testing.T) {
	h := hours(t)
	for _, c := range []struct {
		name     string
		backends int
		rate     float64
		spoofed  float64
		bySource bool
		p99      time.Duration // 0: only shown
	}{
		{"2 backends", 2, 20, 0, false, 900 * time.Millisecond},
		{"4 backends", 4, 20, 0, false, 900 * time.Millisecond},
		{"16 backends", 16, 20, 0, false, 900 * time.Millisecond},
		{"4 backends", 4, 100, 0, false, 900 * time.Millisecond},
		{"4 backends", 4, 1000, 0, false, 900 * time.Millisecond},
		{"4 backends, 5 % spoofed", 4, 20, 0.05, false, 0},
		{"4 backends, 30 % spoofed", 4, 20, 0.3, false, 0},
		{"4 backends", 4, 5, 0, false, 0},
		{"4 backends, by source", 4, 20, 0, true, 0},
	} {
		runs := max(300, int(300*h))
		if raceEnabled {
			runs = 20
		}
		var took []time.Duration
		for i := range runs {
			w := newWorld(uint64(i), c.backends, c.rate)
			w.spoofed, w.bySource, w.silent = c.spoofed, c.bySource, true
			w.fails = 11*time.Second + time.Duration(w.r.Int64N(int64(time.Second)))
			w.begin()
			for found := false; !found && w.at < w.fails+30*time.Second; {
				for _, v := range w.step() {
					if found = true; v.Backend != "web-0" || v.Rule != Dead || w.at < w.fails {
						t.Errorf("at %v, failed at %v: %+v", w.at, w.fails, v)
					}
					took = append(took, w.at-w.fails)
				}
			}
		}
		slices.Sort(took)
		at := func(p float64) time.Duration { return took[int(p*float64(len(took)-1))].Round(time.Millisecond) }
		t.Logf("%s, %v SYN/s each: %d of %d found; after %v at least, median %v, p90 %v, p99 %v, most %v",
			c.name, c.rate, len(took), runs, at(0), at(0.5), at(0.9), at(0.99), at(1))
		if len(took) < runs {
			t.Errorf("%s, %v SYN/s each: %d of %d found", c.name, c.rate, len(took), runs)
		}
		if c.p99 > 0 && !raceEnabled && at(0.99) >= c.p99 {
			t.Errorf("%s, %v SYN/s each: p99 %v, want less than %v", c.name, c.rate, at(0.99), c.p99)
		}
	}
}

// A lossy path, and a server that clients get away from, are found within the window.
func TestLossAndResetsAreFound(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(w *world)
		rule Rule
	}{
		{"a third of the SYNs lost", func(w *world) { w.lossy = 0.35 }, Retransmissions},
		{"a third of the SYNs lost, 2 % elsewhere", func(w *world) { w.lossy, w.lost = 0.35, 0.02 }, Retransmissions},
		{"80 % reset", func(w *world) { w.resetShare = 0.8 }, Resets},
		{"80 % reset, 5 % elsewhere", func(w *world) { w.resetShare, w.resets = 0.8, 0.05 }, Resets},
	} {
		var took []time.Duration
		for i := range 50 {
			w := newWorld(uint64(i), 4, 20)
			w.fails = 15 * time.Second
			c.set(w)
			w.begin()
			for found := false; !found && w.at < w.fails+30*time.Second; {
				for _, v := range w.step() {
					if found = true; v.Backend != "web-0" || v.Rule != c.rule {
						t.Errorf("%s, at %v: %+v", c.name, w.at, v)
					}
					took = append(took, w.at-w.fails)
					if i == 0 {
						t.Logf("%s: %s", c.name, v.Evidence)
					}
				}
			}
		}
		slices.Sort(took)
		if len(took) < 50 {
			t.Fatalf("%s: found in %d of 50", c.name, len(took))
		}
		t.Logf("%s: found after %v at least, median %v, at most %v", c.name, took[0], took[25], took[49])
	}
}

// If all fare alike, it is not the backends.
func TestAllAlike(t *testing.T) {
	w := newWorld(1, 4, 20)
	w.begin()
	w.outage = func(at time.Duration, source int) bool { return at > 10*time.Second }
	for w.at < time.Minute {
		if v := w.step(); len(v) > 0 {
			t.Fatalf("at %v: %+v", w.at, v)
		}
	}
}
