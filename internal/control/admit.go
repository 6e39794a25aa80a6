package control

import "github.com/sluice-lb/sluice/maglev"

// Hand is what an operator has set for a backend by hand.
type Hand uint8

// What the hand can have set.
const (
	HandNone  Hand = iota // nothing
	HandDrain             // no new flows; those that it has go on
	HandCut               // a drain whose time is over: the flows that it still has are ended
)

// Facts are what is known about a backend, from three sources that know nothing of each other.
type Facts struct {
	Weight int   // from the file; 0 takes no new flows
	Hand   Hand  // from the operator
	Health State // from the health daemon; StateNone when the service has no check
	// Rising tells how far the backend is through its slow start, 0 to 1; 1 also when it has none.
	Rising float64
}

// wanted says whether file and operator want the backend to take new flows.
func (f *Facts) wanted() bool { return f.Weight > 0 && f.Hand == HandNone }

// alive says whether health lets it take traffic. What nothing is known of takes none.
func (f *Facts) alive() bool { return f.Health == StateUp || f.Health == StateNone }

// leastShare is the share of new flows with which a slow start begins.
const leastShare = 0.1

// Admit is the one rule by which the facts about the backends of a service become what these take, and whether the
// service fails open. waited tells that the first three intervals of its check are over, or that it has none.
//
//   - A drain whose time is over is a cut.
//   - Else health decides who is down, also among those that are to take no new flows: their flows cannot go on either.
//   - A backend of which nothing is known yet takes no new flow. It is down, but for those first intervals: flows that it
//     has from before, through a daemon that was started again or another node, go on.
//   - Else a backend that is drained, or has weight 0, is draining.
//   - Else it is up, with all new flows or, in its slow start, a growing share from a tenth. The shares are relative to
//     the largest: a service whose backends all come back together refuses nobody.
//
// If health would leave a service none of the backends that file and operator want to take flows, and there are such,
// health is ignored for these, and they take all. A service of which all are drained by hand or have weight 0 stays
// without: that is what was asked for.
func Admit(facts []Facts, waited bool) (admits []maglev.Admit, failOpen bool) {
	failOpen = waited && failing(facts)
	largest := 0.0
	for i := range facts {
		if f := &facts[i]; f.wanted() && f.alive() {
			largest = max(largest, f.share())
		}
	}
	admits = make([]maglev.Admit, len(facts))
	for i := range facts {
		f := &facts[i]
		switch {
		case f.Hand == HandCut:
			admits[i] = maglev.MakeAdmit(maglev.Cut, 0)
		case f.wanted() && failOpen:
			admits[i] = maglev.MakeAdmit(maglev.Up, maglev.All)
		case f.Health == StateUnknown && !waited:
			admits[i] = maglev.MakeAdmit(maglev.Draining, 0)
		case !f.alive():
			admits[i] = maglev.MakeAdmit(maglev.Down, 0)
		case !f.wanted():
			admits[i] = maglev.MakeAdmit(maglev.Draining, 0)
		default:
			admits[i] = maglev.MakeAdmit(maglev.Up, uint32(f.share()/largest*maglev.All))
		}
	}
	return admits, failOpen
}

// failing says whether health leaves none of the backends that are wanted, of which there are some.
func failing(facts []Facts) bool {
	some := false
	for i := range facts {
		if f := &facts[i]; f.wanted() {
			if f.alive() {
				return false
			}
			some = true
		}
	}
	return some
}

// share is the share of new flows that a backend in its slow start may have.
func (f *Facts) share() float64 { return max(leastShare, min(f.Rising, 1)) }
