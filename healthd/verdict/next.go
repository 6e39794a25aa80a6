package verdict

import (
	"fmt"
	"math"
	"time"
)

const (
	halfLife    = 5 * time.Minute // in which a fall counts half as much
	mostFalls   = 5               // more are not counted: after five, Rise is doubled four times, and that is enough
	longestRise = 5 * time.Minute // damping makes no backend wait longer for its good probes
	weightStep  = 10              // percent: smaller changes of a weight make no transition; servers that measure load have one at each probe
)

// readiness is what readiness probes say.
type readiness uint8

const (
	undecided readiness = iota
	ready
	notReady
)

// Backend is what is known about one backend. It is a value: Next returns another one. New makes the first.
type Backend struct {
	settings Settings
	now      time.Time // of the last event

	state    State
	since    time.Time
	evidence string
	failure  string // what the last bad probe saw
	streak   int    // probes in a row that speak against the verdict

	sum float64 // of falls, each halved every halfLife
	// The undamped rule, while damping keeps the backend down: whether it would have come up, and the bad probes in a row since.
	hidden    bool
	hiddenBad int

	ready         readiness
	readyEvidence string
	readyStreak   int

	probeWeight, readyWeight int // percent, of the last good answers
	toldWeight               int // the one that transitions have told of

	until           time.Time // an ejection's end; zero: none
	ejectedEvidence string
	lasts           time.Duration // the ejection
	level           int           // how often the next one is to be doubled
	ended           time.Time     // when the last one ended
}

// New returns a backend of which nothing is known.
func New(s Settings) Backend {
	b := Backend{settings: s, probeWeight: 100, readyWeight: 100, toldWeight: 100}
	if s.ReadyRise <= 0 {
		b.ready = ready
	}
	return b
}

// Next returns what b becomes by e at the time now. If that is something an operator wants to hear of, ok is true and t tells it.
func (b Backend) Next(e Event, now time.Time) (next Backend, t Transition, ok bool) {
	if now.Before(b.now) {
		now = b.now
	}
	from := b.word()
	over := b.pass(now)
	passed := b.word()
	var cause Cause
	var evidence, asks string
	switch e := e.(type) {
	case Probe:
		if !e.Nothing {
			b.probe(Answer(e), now)
		}
		cause, evidence, asks = CauseProbe, b.evidence, "the liveness probe's answer: "+e.Evidence
	case Readiness:
		if !e.Nothing && b.settings.ReadyRise > 0 {
			b.readinessProbe(Answer(e))
		}
		cause, evidence, asks = CauseReadiness, b.readyEvidence, "the readiness probe's answer: "+e.Evidence
	case Outlier:
		b.eject(e.Evidence, now)
		cause, evidence = CausePassive, b.ejectedEvidence
	case Reconfigured:
		evidence = b.reconfigure(e.Settings, now)
		cause, asks = CauseConfig, evidence
	}
	to := b.word()
	switch {
	case to != passed:
	case passed != from:
		cause, evidence = CausePassive, over
	case to == wordUp && b.weightNews():
		t = Transition{From: weightWord(b.toldWeight), To: weightWord(b.weight()), Cause: CauseWeight, Evidence: asks, At: now}
		b.toldWeight = b.weight()
		return b, t, true
	default:
		return b, Transition{}, false
	}
	switch {
	case to == wordEjected && cause != CausePassive:
		evidence += "; " + b.ejectedEvidence
	case to == wordNotReady && cause != CauseReadiness:
		evidence += "; not ready: " + b.readyEvidence
	case to == wordUp && b.weightNews():
		evidence += "; " + weightWord(b.weight())
		b.toldWeight = b.weight()
	}
	return b, Transition{From: from, To: to, Cause: cause, Evidence: evidence, At: now}, true
}

// What transitions lead from and to.
const (
	wordUnknown  = "unknown"
	wordUp       = "up"
	wordNotReady = "not ready"
	wordEjected  = "ejected"
	wordDown     = "down"
)

// word says in one word what the backend takes. The graver fact goes first. A service without check has backends that stay
// Unknown, and they can be ejected.
func (b *Backend) word() string {
	switch {
	case b.state.Dead():
		return wordDown
	case !b.until.IsZero():
		return wordEjected
	case b.state == Unknown || b.ready == undecided:
		return wordUnknown
	case b.ready == notReady:
		return wordNotReady
	}
	return wordUp
}

func weightWord(percent int) string { return fmt.Sprint("weight ", percent) }

func (b *Backend) weight() int { return min(b.probeWeight, b.readyWeight) }

// weightNews says whether the weight is far enough from the one that was told. That no new flow comes at all is always news.
func (b *Backend) weightNews() bool {
	w := b.weight()
	return w != b.toldWeight && (w == 0 || b.toldWeight == 0 || max(w-b.toldWeight, b.toldWeight-w) >= weightStep)
}

// pass lets time pass until now. over is in words what ends by that.
func (b *Backend) pass(now time.Time) (over string) {
	if b.sum > 0 {
		b.sum *= math.Exp2(-now.Sub(b.now).Seconds() / halfLife.Seconds())
	}
	b.now = now
	if !b.until.IsZero() && !now.Before(b.until) {
		over = fmt.Sprintf("the ejection is over after %v", b.lasts)
		b.endEjection(b.until)
	}
	return over
}

func (b *Backend) probe(a Answer, now time.Time) {
	if a.Good {
		b.probeWeight = a.weight()
		b.goodProbe(a, now)
		return
	}
	b.badProbe(a, now)
	b.failure = a.Evidence
}

// weight returns the percentage that a good answer asks for.
func (a *Answer) weight() int {
	if !a.HasWeight {
		return 100
	}
	return max(0, min(a.Weight, 100))
}

func (b *Backend) goodProbe(a Answer, now time.Time) {
	switch b.state {
	case Unknown:
		// It is new, nothing speaks against it, and somebody waits for it.
		b.decide(Up, "the first good probe: "+a.Evidence, now)
	case GoingDown:
		b.evidence = fmt.Sprintf("good again after %s: %s", count(b.streak, "bad probe"), a.Evidence)
		b.state, b.streak = Up, 0
	case Down, GoingUp:
		b.streak++
		rise := max(b.settings.Rise, 1)
		need, why := b.need(rise), ""
		if need > rise {
			why = ", since it fell " + b.lately()
		}
		if b.streak >= rise {
			b.hidden = true
		}
		b.hiddenBad = 0
		switch {
		case b.streak < need:
			b.state, b.evidence = GoingUp, fmt.Sprintf("%d of %s%s: %s", b.streak, count(need, "good probe"), why, a.Evidence)
		case why != "":
			b.decide(Up, fmt.Sprintf("came back: %s were needed%s: %s", count(b.streak, "good probe"), why, a.Evidence), now)
		default:
			b.decide(Up, fmt.Sprintf("%s: %s", count(b.streak, "good probe"), a.Evidence), now)
		}
	}
}

func (b *Backend) badProbe(a Answer, now time.Time) {
	fall := max(b.settings.Fall, 1)
	switch b.state {
	case Unknown, Up, GoingDown:
		b.streak++
		evidence := fmt.Sprintf("%d of %s failed: %s", b.streak, count(fall, "probe"), a.Evidence)
		switch {
		case b.streak >= fall:
			if b.state != Unknown {
				b.fell()
			}
			b.decide(Down, evidence, now)
		case b.state == Unknown:
			b.evidence = evidence
		default:
			b.state, b.evidence = GoingDown, evidence
		}
	case GoingUp:
		b.evidence = fmt.Sprintf("bad again after %s: %s", count(b.streak, "good probe"), a.Evidence)
		b.state, b.streak = Down, 0
		b.hide(fall)
	case Down:
		if a.Evidence != b.failure {
			b.evidence = "still failing: " + a.Evidence
		}
		b.hide(fall)
	}
}

func (b *Backend) decide(s State, evidence string, now time.Time) {
	b.state, b.since, b.evidence = s, now, evidence
	b.streak, b.hidden, b.hiddenBad = 0, false, 0
}

// hide counts a bad probe of a backend that is down: enough of them are a fall, if the undamped rule had it up again.
func (b *Backend) hide(fall int) {
	if !b.hidden {
		return
	}
	if b.hiddenBad++; b.hiddenBad >= fall {
		b.fell()
		b.hidden, b.hiddenBad = false, 0
	}
}

func (b *Backend) fell() { b.sum = min(b.sum+1, mostFalls) }

// falls is how many falls there were of late.
func (b *Backend) falls() int { return int(math.Round(b.sum)) }

func (b *Backend) lately() string {
	if n := b.falls(); n < mostFalls {
		return fmt.Sprintf("%d times lately", n)
	}
	return fmt.Sprintf("%d times or more lately", mostFalls)
}

// need is how many good probes in a row bring a backend up that is down.
func (b *Backend) need(rise int) int {
	n := b.falls()
	if !b.settings.Damped || n < 2 {
		return rise
	}
	most := math.MaxInt
	if b.settings.Interval > 0 {
		most = int(longestRise / b.settings.Interval)
	}
	// Rise may be any number: compared before it is multiplied.
	factor := 1 << (n - 1)
	if rise > most/factor {
		return max(rise, most)
	}
	return rise * factor
}

func (b *Backend) readinessProbe(a Answer) {
	if a.Good {
		b.readyWeight = a.weight()
	}
	rise, fall := b.settings.ReadyRise, max(b.settings.ReadyFall, 1)
	if a.Good == (b.ready == ready) && b.ready != undecided {
		b.readyStreak = 0
		return
	}
	if b.ready == undecided && a.Good {
		rise = 1
	}
	b.readyStreak++
	switch {
	case a.Good && b.readyStreak >= rise:
		b.ready, b.readyEvidence = ready, fmt.Sprintf("%s: %s", count(b.readyStreak, "good probe"), a.Evidence)
	case !a.Good && b.readyStreak >= fall:
		b.ready, b.readyEvidence = notReady, fmt.Sprintf("%d of %s failed: %s", b.readyStreak, count(fall, "probe"), a.Evidence)
	default:
		return
	}
	b.readyStreak = 0
}

// eject takes the backend out for a time, unless it is out already. One that is dead takes nothing anyway, and what is seen of it
// are flows from before.
func (b *Backend) eject(evidence string, now time.Time) {
	if b.settings.Eject <= 0 || b.state.Dead() || !b.until.IsZero() {
		return
	}
	longest := max(b.settings.Longest, b.settings.Eject)
	if b.level > 0 {
		b.level -= min(b.level, int(now.Sub(b.ended)/longest))
	}
	b.lasts = b.settings.Eject
	for range b.level {
		if b.lasts > longest/2 {
			b.lasts = longest
			break
		}
		b.lasts *= 2
	}
	if b.lasts < longest {
		b.level++
	}
	b.until = now.Add(b.lasts)
	b.ejectedEvidence = fmt.Sprintf("ejected for %v: %s", b.lasts, evidence)
}

func (b *Backend) endEjection(at time.Time) {
	b.until, b.ejectedEvidence, b.lasts, b.ended = time.Time{}, "", 0, at
}

// reconfigure says in words what a change of the verdict comes from, if there is one.
func (b *Backend) reconfigure(s Settings, now time.Time) (evidence string) {
	had, has := b.settings.ReadyRise > 0, s.ReadyRise > 0
	b.settings = s
	b.streak, b.readyStreak, b.hidden, b.hiddenBad = 0, 0, false, 0
	switch b.state {
	case Unknown:
		b.evidence = ""
	case GoingDown:
		b.state, b.evidence = Up, "its check has changed"
	case GoingUp:
		b.state, b.evidence = Down, "its check has changed"
	}
	switch {
	case had && !has:
		b.ready, b.readyEvidence, b.readyWeight = ready, "", 100
		evidence = "the readiness check was removed"
	case !had && has && b.state.Alive():
		b.readyEvidence = "not checked yet since there is a readiness check"
	case !had && has:
		b.ready = undecided
	}
	if s.Eject <= 0 && !b.until.IsZero() {
		b.endEjection(now)
		evidence = "outliers are no longer ejected"
	}
	return evidence
}

// count says how many of something there are.
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
