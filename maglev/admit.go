package maglev

import "fmt"

// Admit is an admit word: what a backend takes now. The state is in bits 0 and 1, the fraction in bits 2 to 18. The
// zero word is a backend that is down.
type Admit uint32

// AdmitState is the state in an admit word.
type AdmitState uint8

// The states. Only a backend that is up takes new flows.
const (
	Down     AdmitState = iota // takes nothing
	Draining                   // takes packets of the flows it has
	Up                         // takes everything, and of new flows the fraction of the word
	Cut                        // takes nothing, and the flows it still has are ended; in choosing it is like Down
)

// All is the fraction of a backend that takes every new flow.
const All = 1 << 16

// MakeAdmit returns the word of a backend in state s that takes fraction/65536 of the new flows for which it is a
// candidate. A fraction above All counts as All.
func MakeAdmit(s AdmitState, fraction uint32) Admit {
	return Admit(s&3) | Admit(min(fraction, All))<<2
}

// State returns the state in the word.
func (a Admit) State() AdmitState { return AdmitState(a & 3) }

// Fraction returns the fraction of new flows, from 0 to All. It means something only in state Up.
func (a Admit) Fraction() uint32 { return uint32(a >> 2) }

// takesNew says whether the backend takes the new flow with this mix: it is up, and its fraction exceeds sixteen bits
// of the mix that Table.at does not use. The same bits decide at every fraction, so a growing fraction only adds flows.
func (a Admit) takesNew(mix uint64) bool {
	return a.State() == Up && uint32(mix&0xffff) < a.Fraction()
}

// holds says whether the backend takes packets of the flows it has: it is up or draining.
func (a Admit) holds() bool { return a.State() == Up || a.State() == Draining }

// open says whether the backend takes new flows at all: it is up, and its fraction is not zero.
func (a Admit) open() bool { return a.State() == Up && a.Fraction() > 0 }

// String returns the name of the state: down, draining, up or cut.
func (s AdmitState) String() string {
	switch s {
	case Down:
		return "down"
	case Draining:
		return "draining"
	case Up:
		return "up"
	case Cut:
		return "cut"
	}
	return fmt.Sprintf("admit state(%d)", uint8(s))
}
