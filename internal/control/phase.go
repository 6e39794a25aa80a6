package control

// Phase is the one word for how a backend stands.
type Phase string

// The phases.
const (
	PhaseMaintenance Phase = "maintenance" // by hand: it is worked on, and nobody is to be alarmed
	PhaseDraining    Phase = "draining"    // by hand, or by weight 0: no new flows, whatever health says
	PhaseUnknown     Phase = "unknown"     // nothing is known of it yet
	PhaseDown        Phase = "down"        // its check fails
	PhaseGoingUp     Phase = "going_up"    // the last probes were good, but not enough of them
	PhaseEjected     Phase = "ejected"     // its traffic looks bad: no new flows for a while
	PhaseUnready     Phase = "unready"     // it lives, and its readiness check fails or it asks for nothing
	PhaseGoingDown   Phase = "going_down"  // the last probes were bad, but not enough of them
	PhaseSlowStart   Phase = "slow_start"  // up, with a growing share of new flows
	PhaseUp          Phase = "up"
)

// Phase says how a backend stands. Of several words that would do, it is the one that an operator has to know first:
// what was set by hand explains everything else; then whether it lives; then what keeps new flows from it; and only then
// what may come, or passes by itself.
func (f *Facts) Phase() Phase {
	switch {
	case f.Maintenance:
		return PhaseMaintenance
	case !f.wanted():
		return PhaseDraining
	}
	return f.condition()
}

// condition is Phase without what hand and file say: what probes, traffic and time have made of the backend.
func (f *Facts) condition() Phase {
	switch {
	case f.Health == StateUnknown:
		return PhaseUnknown
	case f.Health == StateDown:
		return PhaseDown
	case f.Health == StateGoingUp:
		return PhaseGoingUp
	case f.Ejected:
		return PhaseEjected
	case !f.ready():
		return PhaseUnready
	case f.Health == StateGoingDown:
		return PhaseGoingDown
	case f.Rising < 1:
		return PhaseSlowStart
	}
	return PhaseUp
}

// Takes reports whether a backend in phase p is in rotation: it takes new flows, unless the service ignores more than p.
func (p Phase) Takes() bool { return p == PhaseUp || p == PhaseSlowStart || p == PhaseGoingDown }
