package control

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/maglev"
)

// facts reads a list of facts: weight, hand (- none, d drain, c cut), health (u, d, q unknown, n no check), and how far
// risen, such as "100-u 0du 100-u@0.3".
func facts(text string) (list []Facts) {
	for _, field := range strings.Fields(text) {
		f := Facts{Rising: 1}
		var rest string
		fmt.Sscanf(field, "%d%s", &f.Weight, &rest)
		f.Hand = map[byte]Hand{'-': HandNone, 'd': HandDrain, 'c': HandCut}[rest[0]]
		f.Health = map[byte]State{'u': StateUp, 'd': StateDown, 'q': StateUnknown, 'n': StateNone}[rest[1]]
		fmt.Sscanf(rest[2:], "@%g", &f.Rising)
		list = append(list, f)
	}
	return list
}

// shown writes admit words: the fraction in percent for one that is up, else down, draining or cut.
func shown(admits []maglev.Admit) string {
	var list []string
	for _, a := range admits {
		switch a.State() {
		case maglev.Up:
			list = append(list, fmt.Sprint((a.Fraction()*100+maglev.All/2)/maglev.All))
		default:
			list = append(list, a.State().String())
		}
	}
	return strings.Join(list, " ")
}

func TestAdmit(t *testing.T) {
	for _, row := range []struct {
		name, facts string
		waited      bool
		want        string
		failOpen    bool
	}{
		{"all up", "1-u 1-u 1-u", true, "100 100 100", false},
		{"one down", "1-u 1-d 1-u", true, "100 down 100", false},
		{"one unknown beside one that is up", "1-u 1-q", true, "100 down", false},
		{"one up of many", "1-d 1-d 1-u 1-q", true, "down down 100 down", false},
		{"no check", "1-n 1-n", false, "100 100", false},
		{"no backend", "", true, "", false},

		{"all down", "1-d 1-d 1-d", true, "100 100 100", true},
		{"all unknown", "1-q 1-q", true, "100 100", true},
		{"down and unknown", "1-d 1-q", true, "100 100", true},
		{"a single one down", "1-d", true, "100", true},
		{"all unknown, not long ago", "1-q 1-q", false, "draining draining", false},
		{"all down, not long ago", "1-d 1-d", false, "down down", false},
		{"one up, not long ago", "1-q 1-u", false, "draining 100", false},

		{"weight 0", "100-u 0-u 100-n", true, "100 draining 100", false},
		{"drained by hand", "100-u 100du 100-u", true, "100 draining 100", false},
		{"drained, and its time is over", "100-u 100cu 100-u", true, "100 cut 100", false},
		{"drained and down", "100-u 100dd 0-d", true, "100 down down", false},
		{"drained and unknown", "100-u 100dq 0-q", true, "100 down down", false},
		{"cut and down", "100-u 100cd 0cq", true, "100 cut cut", false},
		{"drained and weight 0", "100-u 0du", true, "100 draining", false},
		{"the largest weight", "65535-u 1-u", true, "100 100", false},

		{"all drained by hand", "100du 100dn 100cu", true, "draining draining cut", false},
		{"all of weight 0", "0-u 0-n", true, "draining draining", false},
		{"all drained or of weight 0, and down", "100dd 0-d", true, "down down", false},
		{"all that are wanted are down, one is drained and up", "100-d 100-q 100du", true, "100 100 draining", true},
		{"all that are wanted are down, others drained and down", "100-d 100dd 0-d 100cd", true, "100 down down cut", true},
		{"drained and unknown, not long ago", "100-u 100dq 0-q", false, "100 draining draining", false},
		{"all that are wanted are down, not long ago", "100-d 100du", false, "down draining", false},

		{"one at the begin of its slow start", "1-u 1-u@0", true, "100 10", false},
		{"one in its slow start", "1-u 1-u@0.42", true, "100 42", false},
		{"a single one in its slow start", "1-u@0.1", true, "100", false},
		{"all at the begin", "1-u@0 1-u@0 1-u@0", true, "100 100 100", false},
		{"all in their slow start", "1-u@0.5 1-u@0.25", true, "100 50", false},
		{"others drained or down do not count", "1-u@0.5 1-u@0.25 1du 0-u 1-d", true, "100 50 draining draining down", false},
		{"fail open knows no slow start", "1-d@0.5 1-q@0.1", true, "100 100", true},
		{"drained in its slow start", "1-u 1du@0.5", true, "100 draining", false},
	} {
		admits, failOpen := Admit(facts(row.facts), row.waited)
		if got := shown(admits); got != row.want || failOpen != row.failOpen {
			t.Errorf("%s: got %s %v, want %s %v", row.name, got, failOpen, row.want, row.failOpen)
		}
	}
}

// What holds whatever the facts are.
func TestAdmitProperties(t *testing.T) {
	states := []State{StateUp, StateDown, StateUnknown, StateNone}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		list := make([]Facts, r.IntN(8))
		for i := range list {
			list[i] = Facts{Weight: r.IntN(3), Hand: Hand(max(0, r.IntN(6)-3)), Health: states[r.IntN(len(states))], Rising: min(1, 2*r.Float64())}
		}
		waited := r.IntN(4) > 0
		admits, failOpen := Admit(list, waited)
		wrong := func(format string, args ...any) {
			t.Fatalf("%+v (waited %v) gives %s, fail open %v: %s", list, waited, shown(admits), failOpen, fmt.Sprintf(format, args...))
		}
		wanted, alive, largest := 0, 0, uint32(0)
		for i, f := range list {
			up := admits[i].State() == maglev.Up
			isWanted := f.Weight > 0 && f.Hand == HandNone
			isAlive := f.Health == StateUp || f.Health == StateNone
			if up {
				largest = max(largest, admits[i].Fraction())
			}
			if isWanted {
				wanted++
			}
			if isWanted && isAlive {
				alive++
			}
			switch {
			case up && !isWanted:
				wrong("%d is taken out by hand or weight, and up", i)
			case (f.Hand == HandCut) != (admits[i].State() == maglev.Cut):
				wrong("%d: cut is what the hand says, and only that", i)
			case isWanted && isAlive && !up:
				wrong("%d is wanted and healthy, and not up", i)
			case up && !isAlive && !failOpen:
				wrong("%d is up against what health says", i)
			case up && admits[i].Fraction() < maglev.All/10:
				wrong("%d is up with next to nothing", i)
			case failOpen && isWanted && admits[i] != maglev.MakeAdmit(maglev.Up, maglev.All):
				wrong("%d does not take all", i)
			case f.Health == StateUnknown && !waited && f.Hand != HandCut && admits[i].State() != maglev.Draining:
				wrong("%d: its flows may be from before the start", i)
			case f.Health == StateUnknown && !waited:
			case !isWanted && f.Hand != HandCut && !isAlive && admits[i].State() != maglev.Down:
				wrong("%d: the flows of one that is down cannot go on", i)
			case !isWanted && f.Hand != HandCut && isAlive && admits[i].State() != maglev.Draining:
				wrong("%d: its flows are to go on", i)
			}
		}
		if want := waited && wanted > 0 && alive == 0; failOpen != want {
			wrong("%d wanted and %d of them healthy", wanted, alive)
		}
		if (alive > 0 || failOpen) && largest != maglev.All {
			wrong("no backend takes all new flows")
		}
	}
}
