package verdict

import "time"

// State is what liveness probes say about a backend.
type State uint8

// The states.
const (
	Unknown   State = iota // no probe has decided anything yet
	Up                     // alive
	GoingDown              // alive, but the last probes were bad, fewer than Fall
	Down                   // dead
	GoingUp                // dead, but the last probes were good, not yet enough
)

// String returns unknown, up, going_down, down or going_up.
func (s State) String() string {
	switch s {
	case Up:
		return "up"
	case GoingDown:
		return "going_down"
	case Down:
		return "down"
	case GoingUp:
		return "going_up"
	}
	return "unknown"
}

// Alive says whether the backend can take traffic as far as liveness goes. One that is unknown is neither alive nor dead.
func (s State) Alive() bool { return s == Up || s == GoingDown }

// Dead says whether the backend can take no traffic at all.
func (s State) Dead() bool { return s == Down || s == GoingUp }

// Settings are how a backend is judged.
type Settings struct {
	Rise, Fall int // probes in a row; less than 1 counts as 1
	// ReadyRise and ReadyFall are the same for readiness. ReadyRise 0: there is no readiness check, and the backend is ready.
	ReadyRise, ReadyFall int
	// Interval is the time between probes of a backend that is going up. It bounds what Damped costs; 0: nothing does but the
	// factor of 16.
	Interval time.Duration
	Damped   bool // flap damping
	// Eject is how long the first ejection lasts, Longest how long any. Eject 0: outliers are not ejected.
	Eject, Longest time.Duration
}

// Event is what can happen to a backend: [Probe], [Readiness], [Outlier], [Tick] or [Reconfigured].
type Event interface{ event() }

// Answer is what one probe saw.
type Answer struct {
	Good bool
	// Nothing tells that the probe failed for want of something on this node. It says nothing about the backend, and changes
	// nothing.
	Nothing bool
	// Weight is the share of its usual new flows that the backend asks for, in percent, if HasWeight says so. A good answer
	// without one asks for 100. Bad answers leave the weight as it is.
	Weight    int
	HasWeight bool
	Evidence  string // in words, for the operator
}

type (
	// Probe is a liveness probe's answer.
	Probe Answer
	// Readiness is a readiness probe's answer. It is ignored while the Settings have no readiness check.
	Readiness Answer
	// Outlier says that the dataplane sees new flows fail at the backend and not at others.
	Outlier struct{ Evidence string }
	// Tick says that time has passed: an ejection may be over.
	Tick struct{}
	// Reconfigured brings other Settings. The verdicts stay; probes in a row are counted anew, for another check may have made
	// them. A readiness check that is gone leaves a backend that is ready; one that is new leaves a backend that is alive ready
	// until it says otherwise.
	Reconfigured struct{ Settings Settings }
)

func (Probe) event()        {}
func (Readiness) event()    {}
func (Outlier) event()      {}
func (Tick) event()         {}
func (Reconfigured) event() {}

// Cause is what a transition comes from.
type Cause string

// The causes.
const (
	CauseProbe     Cause = "probe"
	CauseReadiness Cause = "readiness"
	CausePassive   Cause = "passive" // an ejection, or its end
	CauseWeight    Cause = "weight"
	CauseConfig    Cause = "config"
)

// Transition is a change that an operator wants to hear of: from now on the backend takes other traffic than before. From and To
// are one of unknown, up, not ready, ejected and down, or weights such as "weight 50". What is only on its way (GoingDown, GoingUp)
// makes none: a log that has each lost probe is read by nobody.
type Transition struct {
	From, To string
	Cause    Cause
	Evidence string
	At       time.Time // the now of the event
}

// View is what is known of a backend, as it looks from outside. Two can be compared by ==.
type View struct {
	State    State
	Since    time.Time // since when it is alive or dead; zero while it is neither
	Evidence string    // for State
	// Decided is false while there is nothing to be told: no verdict of the probes yet, or a backend that is alive whose readiness
	// is not known yet. What was known before holds.
	Decided       bool
	Ready         bool
	ReadyEvidence string
	Weight        int // percent, 0 to 100
	// EjectedUntil is when an ejection ends, zero when there is none.
	EjectedUntil    time.Time
	EjectedEvidence string
}

// View returns what is known of b, as of its last event.
func (b *Backend) View() View {
	return View{
		State: b.state, Since: b.since, Evidence: b.evidence,
		Decided: b.state.Dead() || b.state.Alive() && b.ready != undecided,
		Ready:   b.ready == ready, ReadyEvidence: b.readyEvidence,
		Weight:       b.weight(),
		EjectedUntil: b.until, EjectedEvidence: b.ejectedEvidence,
	}
}

// Fast says whether something is about to be decided, so that probes should come at the faster pace.
func (b *Backend) Fast() bool {
	switch b.state {
	case Up:
		return b.ready == undecided || b.readyStreak > 0
	case Down:
		return false
	}
	return true
}
