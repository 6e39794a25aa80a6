package control

import "github.com/sluice-lb/sluice/maglev"

// Hand is how an operator has drained a backend by hand.
type Hand uint8

// What the hand can have set.
const (
	HandNone  Hand = iota // nothing
	HandDrain             // no new flows; those that it has go on
	HandCut               // a drain whose time is over: the flows that it still has are ended
)

// Facts are what is known about a backend, from three sources that know nothing of each other.
type Facts struct {
	Weight int // from the file; 0 takes no new flows
	// From the operator.
	Hand        Hand
	Maintenance bool // no new flows, and it counts neither as wanted nor as lost
	// From the health daemon.
	Health  State // StateNone when the service has no check
	Unready bool  // its readiness check says that it is to get no new flows
	Asks    *int  // the percentage of its share that it asks for; nil: all of it
	Ejected bool  // its traffic looked bad a short time ago
	// Rising tells how far the backend is through its slow start, 0 to 1; 1 also when it has none.
	Rising float64
}

// wanted says whether file and operator want the backend to take new flows.
func (f *Facts) wanted() bool { return f.Weight > 0 && f.Hand == HandNone && !f.Maintenance }

// ready says whether the backend itself wants new flows.
func (f *Facts) ready() bool { return !f.Unready && (f.Asks == nil || *f.Asks > 0) }

// lost says whether health has found that it does not live. What nothing is known of is neither alive nor lost.
func (f *Facts) lost() bool { return f.Health == StateDown || f.Health == StateGoingUp }

// leastShare is the share of new flows with which a slow start begins.
const leastShare = 0.1

// share is the share of new flows that a backend may have, by its slow start and by what it asks for. One that asks for
// nothing, and gets flows all the same, gets them like one that has not asked.
func (f *Facts) share() float64 {
	share := max(leastShare, min(f.Rising, 1))
	if f.Asks != nil && *f.Asks > 0 {
		share *= float64(min(*f.Asks, 100)) / 100
	}
	return share
}

// Policy is what a service adds to the facts about its backends.
type Policy struct {
	// Waited tells that the first three intervals of its check are over, or that it has none.
	Waited bool
	// PanicThreshold is the percentage of the wanted backends that have to be alive for health to count; 0: one has to.
	PanicThreshold int
}

// Verdict is what Admit finds out about a service as a whole.
type Verdict struct {
	Wanted int // backends that file and operator want to take new flows
	Alive  int // those of them that live
	Lost   int // those of them that do not; of the others nothing is known
	// FailOpen: health is ignored, and with it readiness and ejections.
	FailOpen bool
	// EjectionsIgnored: all that are alive are ejected. ReadinessIgnored: none of those that are left is ready.
	EjectionsIgnored bool
	ReadinessIgnored bool
}

// Admit is the one rule by which the facts about the backends of a service become what these take. It appends that to
// admits, in the order of facts.
//
//   - A drain whose time is over is a cut.
//   - Else health decides who is down, also among those that are to take no new flows: their flows cannot go on either. One
//     that is going down is alive, one that is going up is not.
//   - A backend of which nothing is known yet takes no new flow. It is down, but for those first intervals: flows that it
//     has from before, through a daemon that was started again or another node, go on.
//   - Else a backend that is drained, in maintenance, or has weight 0, is draining. So is one that is ejected, and one that
//     is not ready or asks for nothing.
//   - Else it is up, with all new flows or, in its slow start, a growing share from a tenth, or the share that it asks for.
//     The shares are relative to the largest: a service whose backends all come back together refuses nobody.
//
// Each kind of bad news counts only as long as it leaves somebody. If all that are alive are ejected, ejections are
// ignored; if then none is ready, readiness is. If health would leave none of the backends that are wanted, or fewer than
// the panic threshold says, all of that is ignored, and those that are wanted take all flows. Backends of which nothing is
// known are left out of that share. A service of which all are drained by hand or have weight 0 stays without: that is
// what was asked for.
func Admit(admits []maglev.Admit, facts []Facts, p Policy) ([]maglev.Admit, Verdict) {
	v := judge(facts, p)
	largest := 0.0
	for i := range facts {
		if f := &facts[i]; v.takes(f) {
			largest = max(largest, f.share())
		}
	}
	for i := range facts {
		f := &facts[i]
		a := maglev.MakeAdmit(maglev.Draining, 0)
		switch {
		case f.Hand == HandCut:
			a = maglev.MakeAdmit(maglev.Cut, 0)
		case f.wanted() && v.FailOpen:
			a = maglev.MakeAdmit(maglev.Up, maglev.All)
		case f.Health == StateUnknown && !p.Waited:
		case !f.Health.Alive():
			a = maglev.MakeAdmit(maglev.Down, 0)
		case v.takes(f):
			a = maglev.MakeAdmit(maglev.Up, uint32(f.share()/largest*maglev.All))
		}
		admits = append(admits, a)
	}
	return admits, v
}

// judge counts, and says what is ignored.
func judge(facts []Facts, p Policy) (v Verdict) {
	standing, ready, readyEjected := 0, 0, 0
	for i := range facts {
		f := &facts[i]
		if !f.wanted() {
			continue
		}
		v.Wanted++
		switch {
		case f.lost():
			v.Lost++
		case !f.Health.Alive():
		case f.Ejected:
			v.Alive++
			readyEjected += one(f.ready())
		default:
			v.Alive++
			standing++
			ready += one(f.ready())
		}
	}
	v.FailOpen = p.Waited && v.Wanted > 0 && (v.Alive == 0 || v.Alive*100 < p.PanicThreshold*(v.Alive+v.Lost))
	if v.FailOpen || v.Alive == 0 {
		return v
	}
	if standing == 0 {
		v.EjectionsIgnored, ready = true, readyEjected
	}
	v.ReadinessIgnored = ready == 0
	return v
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// takes says whether a backend takes new flows while health counts.
func (v *Verdict) takes(f *Facts) bool {
	return f.wanted() && f.Health.Alive() && (!f.Ejected || v.EjectionsIgnored) && (f.ready() || v.ReadinessIgnored)
}

// failing says whether health leaves none of the backends that are wanted, of which there are some.
func (v *Verdict) failing() bool { return v.Wanted > 0 && v.Alive == 0 }

// ignores says whether something bad is ignored, so that backends take flows which would not otherwise.
func (v *Verdict) ignores() bool { return v.FailOpen || v.EjectionsIgnored || v.ReadinessIgnored }
