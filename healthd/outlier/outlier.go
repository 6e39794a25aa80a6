package outlier

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"
)

const (
	// maxElapsed is how long there may be between two calls of Observe. After a longer pause nobody knows in which order things came.
	maxElapsed = time.Second

	allowance   = 200 * time.Millisecond // a handshake may take so long before its SYN counts as unanswered
	quiet       = 500 * time.Millisecond // without a handshake, at least, before a backend counts as dead
	longestWait = time.Second            // for a handshake with far clients: longer ones are not reckoned with
	mostYoung   = 16                     // samples of a backend that are kept within it
	fewestSYNs  = 5                      // unanswered ones
	lowestShare = 0.3                    // of SYNs that complete at the others: below it they are no measure
	stillShare  = 0.8                    // of that share they have to complete meanwhile
	mostShare   = 0.99                   // no share is taken for higher

	unreachableTime = time.Second
	fewestErrors    = 3

	fewestEvents   = 30 // SYNs, or handshakes, in the window for a share of them to mean something
	retransmitted  = 0.3
	retransmittedX = 3
	perSYN         = 3 // times a SYN is sent again within the window: after 1, 3 and 7 s
	reset          = 0.5
	resetX         = 5
)

// How improbable something has to be, as -ln of the probability: by what the others did lately, and by what they did meanwhile, which
// is little. See the package's doc for why the first is so much.
var (
	surprise          = -math.Log(1e-9)
	surpriseMeanwhile = -math.Log(1e-3)
)

// State is what a backend takes, as far as the detector is concerned.
type State uint8

// The states.
const (
	Idle State = iota // takes no new flows as file or operator want it, or nothing is known of it: as if it were not there
	In                // takes new flows: it is judged, and others are measured by it
	Out               // down or ejected: it counts against the ceiling
)

// Rule is what a backend is ejected for. Of several the first is named.
type Rule uint8

// The rules.
const (
	NoHop Rule = iota
	Unreachable
	Dead
	Retransmissions
	Resets
)

// String returns the name of the rule: no hop, unreachable, dead, retransmissions or resets.
func (r Rule) String() string {
	return [...]string{"no hop", "unreachable", "dead", "retransmissions", "resets"}[r]
}

// Sample is what has happened at one backend since the last call. Backends without news need none.
type Sample struct {
	Backend       string
	SYNs          uint64 // sent to it, each once however often the client repeats it
	Completed     uint64 // handshakes
	Retransmitted uint64 // SYNs sent again
	Resets        uint64 // by clients, soon after the handshake
	Unreachable   uint64 // ICMP errors from it or about it
	Sources       uint64 // a set: one bit for each source of the SYNs, by its hash
	NoHop         bool   // the node cannot reach it: no route, or no neighbour
}

// Verdict is a backend that is to be ejected.
type Verdict struct {
	Backend  string
	Rule     Rule
	Evidence string // in words, for the operator
	// Held tells that it is not to be ejected after all, since too many are out. It is said once, until a handshake completes.
	Held bool
}

// Settings are those of a service.
type Settings struct {
	// MaxShare is the share of the backends, 0 to 1, that may be out. One may, whatever it is, but never the last that is in.
	MaxShare float64
	BySource bool // flows are chosen by their source alone
}

// Detector watches one service. The backends are made known to it by Set.
type Detector struct {
	settings Settings
	backends map[string]*backend
	in, out  int
	active   []*backend // those about which there may be something to find
	found    []finding

	start time.Time     // of the first Observe
	now   time.Duration // since then, of the last
	empty bool          // nothing has come in since everything was forgotten

	// Of all that are in: what came lately, and sums of all that ever came.
	window window
	total  counts

	// The longest time after the last SYN of a backend that a handshake came, in this minute and the one before.
	slow   [2]time.Duration
	minute time.Duration
}

type backend struct {
	name   string
	state  State
	active bool // in the list
	held   bool // has been told
	noHop  bool // at the last sample

	window  window
	lastSYN time.Duration // when the last sample with SYNs came; 0: there was none
	young   []batch       // the oldest first
	run     run

	errors     uint64 // ICMP, since firstError, without a handshake
	firstError time.Duration
}

// batch is a sample within the allowance.
type batch struct {
	counts
	at      time.Duration // when the time of the sample began: none of its SYNs is older
	sources uint64
	waiting uint64 // of the SYNs, those for which no handshake has come yet
	partial bool   // those are not all, so that their sources are not known
}

// merge adds a later sample, for a caller that has more of them within the allowance than are kept.
func (y *batch) merge(later *batch) {
	y.add(&later.counts)
	y.at = later.at
	y.sources |= later.sources
	y.waiting += later.waiting
	y.partial = y.partial || later.partial
}

// run is the SYNs in a row without a handshake.
type run struct {
	syns    uint64 // 0: none
	sources uint64
	since   time.Duration
	// The detector's total when it began, and what the backend itself has added since.
	before, own counts
}

type finding struct {
	*backend
	rule     Rule
	evidence string
}

// New makes a detector for a service without backends.
func New(s Settings) *Detector {
	return &Detector{settings: s, backends: map[string]*backend{}}
}

// Set says what a backend takes from now on, and makes it known if it is new. Whenever that changes, what has been seen of it is
// forgotten. The detector takes a backend of a Verdict for Out by itself; if that one is not ejected, Set says so.
func (d *Detector) Set(name string, s State) {
	b := d.backends[name]
	if b == nil {
		b = &backend{name: name}
		d.backends[name] = b
	}
	d.set(b, s)
}

// Remove makes d forget a backend.
func (d *Detector) Remove(name string) {
	if b := d.backends[name]; b != nil {
		d.set(b, Idle)
		delete(d.backends, name)
	}
}

func (d *Detector) set(b *backend, s State) {
	if b.state == s {
		return
	}
	for _, of := range []struct {
		state State
		by    int
	}{{b.state, -1}, {s, 1}} {
		switch of.state {
		case In:
			d.in += of.by
		case Out:
			d.out += of.by
		}
	}
	if b.state == In {
		d.window.turn(d.now)
		b.window.turn(d.now)
		d.window.without(&b.window)
	}
	b.state = s
	b.forget()
}

func (b *backend) forget() {
	*b = backend{name: b.name, state: b.state, active: b.active, young: b.young[:0]}
}

// Observe takes what happened since the last call, about a tenth of a second ago, and returns who is to be ejected. now carries the
// monotonic reading of [time.Now]. Samples of backends that are not in are ignored.
//
// While the service is suspended (SYNs are answered on the node), and after a pause, all that was seen is forgotten and nobody is
// judged. The first call only begins.
func (d *Detector) Observe(now time.Time, samples []Sample, suspended bool) []Verdict {
	first := d.start.IsZero()
	if first {
		d.start = now
	}
	last := d.now
	d.now = max(now.Sub(d.start), last)
	if first || suspended || d.now-last > maxElapsed {
		d.forget()
		return nil
	}
	d.window.turn(d.now)
	if minute := d.now.Truncate(time.Minute); minute != d.minute {
		d.slow = [2]time.Duration{0, d.slow[0]}
		d.minute = minute
	}
	for i := range samples {
		if b := d.backends[samples[i].Backend]; b != nil && b.state == In {
			d.take(b, &samples[i], last)
			d.empty = false
		}
	}
	before := d.total
	for _, b := range d.active {
		if b.state == In {
			d.age(b, before)
		}
	}
	d.found = d.found[:0]
	d.active = slices.DeleteFunc(d.active, func(b *backend) bool {
		if b.state == In {
			if rule, evidence, bad := d.judge(b); bad {
				d.found = append(d.found, finding{b, rule, evidence})
			}
		}
		b.noHop = false
		b.active = len(b.young) > 0 || b.run.syns > 0
		return !b.active
	})
	return d.eject()
}

// forget is for all backends.
func (d *Detector) forget() {
	if d.empty {
		return
	}
	for _, b := range d.backends {
		b.forget()
	}
	d.window = window{}
	d.empty = true
}

// take is told of one sample, of the time from since until now.
func (d *Detector) take(b *backend, s *Sample, since time.Duration) {
	if !b.active {
		b.active = true
		d.active = append(d.active, b)
	}
	b.noHop = s.NoHop
	switch {
	case s.SYNs > 0 || s.Retransmitted > 0:
		b.lastSYN = d.now
	case s.Completed > 0 && b.lastSYN > 0:
		// Some client is so far away that its handshake took this long.
		d.slow[0] = max(d.slow[0], min(d.now-b.lastSYN, longestWait))
	}
	y := batch{
		counts: counts{s.SYNs, s.Completed, s.Retransmitted, s.Resets},
		at:     since, sources: s.Sources, waiting: s.SYNs, partial: s.Completed > 0,
	}
	if s.Completed > 0 {
		// Whichever SYNs they answer, the backend lives. SYNs of the same time may be later: those that the handshakes cannot have
		// been for.
		y.waiting -= min(s.SYNs, s.Completed)
		b.run, b.errors, b.held = run{}, 0, false
		for i := range b.young {
			b.young[i].waiting = 0
		}
	} else if s.Unreachable > 0 {
		if d.now-b.firstError > unreachableTime {
			b.errors = 0
		}
		if b.errors == 0 {
			b.firstError = d.now
		}
		b.errors += s.Unreachable
	}
	switch n := len(b.young); {
	case y.counts == counts{}:
	case n == mostYoung:
		b.young[n-1].merge(&y)
	default:
		b.young = append(b.young, y)
	}
}

// age counts what has become older than the allowance, all of it: so there are handshakes of the same time as SYNs. before is the
// total before that.
func (d *Detector) age(b *backend, before counts) {
	old := 0
	for ; old < len(b.young) && d.now-b.young[old].at >= allowance; old++ {
		y := &b.young[old]
		b.window.turn(d.now)
		b.window.add(y.counts, y.sources)
		d.window.add(y.counts, y.sources)
		d.total.add(&y.counts)
		if y.waiting > 0 && b.run.syns == 0 {
			b.run = run{since: y.at, before: before}
		}
		b.run.syns += y.waiting
		if !y.partial {
			b.run.sources |= y.sources
		}
		b.run.own.add(&y.counts)
	}
	b.young = slices.Delete(b.young, 0, old)
	if b.run.syns > 0 && d.now-b.run.since > windowLength {
		b.run = run{} // what the others did so long ago is not known
	}
}

// judge says whether b does worse than the others do.
func (d *Detector) judge(b *backend) (rule Rule, evidence string, bad bool) {
	b.window.turn(d.now)
	if b.noHop {
		return NoHop, "the node cannot reach it: no route or no neighbour", true
	}
	if b.errors >= fewestErrors && d.now-b.firstError <= unreachableTime {
		return Unreachable, fmt.Sprintf("%d ICMP errors say that it is unreachable, and no handshake completed since", b.errors), true
	}
	if share, dead := d.dead(b); dead {
		return Dead, fmt.Sprintf("no handshake of %d SYNs completed, others complete %s", b.run.syns, percent(share)), true
	}
	if d.settings.BySource {
		return 0, "", false
	}
	own := &b.window.sum
	others := d.window.sum
	others.sub(own)
	if a, o := (ratio{own.retransmitted, own.syns}), (ratio{others.retransmitted, others.syns}); a.worse(o, retransmitted, retransmittedX, perSYN) &&
		d.enough(b.window.sources()) {
		return Retransmissions, fmt.Sprintf("%s of %d SYNs were sent again, at the others %s", percent(a.share()), a.of, percent(o.share())), true
	}
	if a, o := (ratio{own.resets, own.completed}), (ratio{others.resets, others.completed}); a.worse(o, reset, resetX, 1) &&
		d.enough(b.window.sources()) {
		return Resets, fmt.Sprintf("clients reset %s of %d connections soon after the handshake, at the others %s",
			percent(a.share()), a.of, percent(o.share())), true
	}
	return 0, "", false
}

// dead also returns the share of SYNs that complete at the others.
func (d *Detector) dead(b *backend) (share float64, dead bool) {
	r := &b.run
	trials := r.syns
	if d.settings.BySource {
		trials = min(trials, uint64(bits.OnesCount64(r.sources)))
	}
	if trials < fewestSYNs || d.now-r.since < max(quiet, 2*d.slow[0], 2*d.slow[1]) || !d.enough(r.sources) {
		return 0, false
	}
	lately, meanwhile := d.window.sum, d.total
	lately.sub(&b.window.sum)
	meanwhile.sub(&r.before)
	meanwhile.sub(&r.own)
	share = min(lately.prompt().likely(), mostShare)
	return share, share >= lowestShare && float64(trials)*-math.Log1p(-share) >= surprise &&
		meanwhile.prompt().share() >= stillShare*share && noneOf(trials, meanwhile.prompt()) >= surpriseMeanwhile
}

// enough says whether something seen with these sources tells about the backend rather than about one client.
func (d *Detector) enough(sources uint64) bool {
	return bits.OnesCount64(sources) >= 2 || sources == d.window.sources()
}

// eject makes verdicts of what was found, the clearest first, as far as the ceiling lets it.
func (d *Detector) eject() (verdicts []Verdict) {
	slices.SortFunc(d.found, func(a, b finding) int { return cmp.Or(cmp.Compare(a.rule, b.rule), cmp.Compare(a.name, b.name)) })
	for _, f := range d.found {
		most := max(1, int(d.settings.MaxShare*float64(d.in+d.out)+1e-9)) // 0.29 × 100 is 28.999…
		v := Verdict{Backend: f.name, Rule: f.rule, Evidence: f.evidence, Held: d.out >= most || d.in <= 1}
		switch {
		case !v.Held:
			d.set(f.backend, Out)
		case f.held:
			continue
		default:
			f.held = true
		}
		verdicts = append(verdicts, v)
	}
	return verdicts
}
