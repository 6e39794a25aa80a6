package control

import "testing"

func TestPhase(t *testing.T) {
	for _, row := range []struct {
		facts string
		want  Phase
	}{
		{"1-u", PhaseUp},
		{"1-n", PhaseUp},
		{"1-u%50", PhaseUp},
		{"1-q", PhaseUnknown},
		{"1-d", PhaseDown},
		{"1-r", PhaseGoingUp},
		{"1-g", PhaseGoingDown},
		{"1-uy", PhaseUnready},
		{"1-u%0", PhaseUnready},
		{"1-ux", PhaseEjected},
		{"1-nx", PhaseEjected},
		{"1-u@0.5", PhaseSlowStart},

		// Of several, what has to be known first.
		{"1mu", PhaseMaintenance},
		{"0md", PhaseMaintenance},
		{"1du", PhaseDraining},
		{"1dd", PhaseDraining},
		{"1cd", PhaseDraining},
		{"0-d", PhaseDraining},
		{"0-q", PhaseDraining},
		{"1-qxy", PhaseUnknown},
		{"1-dxy", PhaseDown},
		{"1-rx", PhaseGoingUp},
		{"1-gxy", PhaseEjected},
		{"1-gy", PhaseUnready},
		{"1-g@0.5", PhaseGoingDown},
		{"1-uy@0.5", PhaseUnready},
	} {
		if got := facts(row.facts)[0].Phase(); got != row.want {
			t.Errorf("%s: got %s, want %s", row.facts, got, row.want)
		}
	}
}

// What takes flows in its phase is what Admit lets take flows beside one that is up.
func TestPhaseTakes(t *testing.T) {
	for _, hand := range []string{"-", "d", "m"} {
		for _, health := range []string{"u", "g", "d", "r", "q", "n"} {
			for _, more := range []string{"", "x", "y", "xy", "%0", "%40", "@0.5"} {
				list := facts("1-u 1" + hand + health + more)
				admits, _ := Admit(nil, list, Policy{Waited: true})
				if got := admits[1].State().String() == "up"; got != list[1].Phase().Takes() {
					t.Errorf("1%s%s%s: phase %s, takes flows %v", hand, health, more, list[1].Phase(), got)
				}
			}
		}
	}
}
