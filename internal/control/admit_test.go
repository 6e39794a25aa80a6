package control

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sluice-lb/sluice/maglev"
)

// facts reads a list of facts: weight, hand (- none, d drain, c cut, m maintenance), health (u up, g going down, d down, r going
// up, q unknown, n no check), then of what there is: x ejected, y unready, %asks, @how far risen. Such as "100-u 0du 100-ux%50@0.3".
func facts(text string) (list []Facts) {
	for _, field := range strings.Fields(text) {
		f := Facts{Rising: 1}
		var rest string
		fmt.Sscanf(field, "%d%s", &f.Weight, &rest)
		f.Hand = map[byte]Hand{'d': HandDrain, 'c': HandCut}[rest[0]]
		f.Maintenance = rest[0] == 'm'
		f.Health = map[byte]State{
			'u': StateUp, 'g': StateGoingDown, 'd': StateDown, 'r': StateGoingUp, 'q': StateUnknown, 'n': StateNone,
		}[rest[1]]
		rest = rest[2:]
		f.Ejected, f.Unready = strings.HasPrefix(rest, "x"), strings.Contains(rest, "y")
		if _, text, ok := strings.Cut(rest, "%"); ok {
			f.Asks = new(int)
			fmt.Sscanf(text, "%d", f.Asks)
		}
		if _, text, ok := strings.Cut(rest, "@"); ok {
			fmt.Sscanf(text, "%g", &f.Rising)
		}
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
		admits, v := Admit(nil, facts(row.facts), Policy{Waited: row.waited})
		if got := shown(admits); got != row.want || v.FailOpen != row.failOpen {
			t.Errorf("%s: got %s %v, want %s %v", row.name, got, v.FailOpen, row.want, row.failOpen)
		}
	}
}

// Readiness, what backends ask for, ejections, and when they are ignored.
func TestAdmitReadiness(t *testing.T) {
	const none, open, noReadiness, noEjections, neither = "", "fail open", "readiness ignored", "ejections ignored", "both ignored"
	for _, row := range []struct{ name, facts, want, ignored string }{
		{"on their way", "1-g 1-r 1-u", "100 down 100", none},
		{"all going down", "1-g 1-g", "100 100", none},
		{"all going up", "1-r 1-r", "100 100", open},
		{"in maintenance", "1-u 1mu 1md 1mq", "100 draining down down", none},
		{"all in maintenance", "1mu 1mu", "draining draining", none},
		{"the only one that is wanted is down, others in maintenance", "1-d 1mu 1mu", "100 draining draining", open},

		{"one unready", "1-u 1-uy 1-g", "100 draining 100", none},
		{"one unready and down", "1-u 1-dy", "100 down", none},
		{"all unready", "1-uy 1-uy", "100 100", noReadiness},
		{"all that live are unready", "1-uy 1-d 1-gy", "100 down 100", noReadiness},
		{"all unready, not long ago one unknown", "1-uy 1-q", "100 down", noReadiness},
		{"those that are ready are drained", "1-uy 1du 1mu 0-u", "100 draining draining draining", noReadiness},

		{"one ejected", "1-u 1-ux", "100 draining", none},
		{"one ejected and down", "1-u 1-dx", "100 down", none},
		{"all ejected", "1-ux 1-ux", "100 100", noEjections},
		{"all that live are ejected", "1-ux 1-d", "100 down", noEjections},
		{"ejected without a check", "1-nx 1-n", "draining 100", none},
		{"one ejected, the others unready", "1-ux 1-uy", "draining 100", noReadiness},
		{"all ejected, one ready", "1-ux 1-uxy", "100 draining", noEjections},
		{"all ejected and unready", "1-uxy 1-uxy", "100 100", neither},
		{"all down and ejected", "1-dx 1-dy", "100 100", open},

		{"asks for half", "1-u 1-u%50", "100 50", none},
		{"all ask for the same", "1-u%20 1-u%20", "100 100", none},
		{"relative to the largest", "1-u%20 1-u%80", "25 100", none},
		{"asks for nothing", "1-u 1-u%0", "100 draining", none},
		{"all ask for nothing", "1-u%0 1-u%0", "100 100", noReadiness},
		{"one asks for nothing, one unready", "1-u%0 1-uy%30", "100 30", noReadiness},
		{"asks in its slow start", "1-u 1-u%50@0.5", "100 25", none},
		{"asks for one percent at the begin of its slow start", "1-u 1-u%1@0", "100 0", none},
		{"going down, and asks", "1-u 1-g%30", "100 30", none},
	} {
		admits, v := Admit(nil, facts(row.facts), Policy{Waited: true})
		ignored := map[Verdict]string{
			{FailOpen: true}: open, {ReadinessIgnored: true}: noReadiness, {EjectionsIgnored: true}: noEjections,
			{ReadinessIgnored: true, EjectionsIgnored: true}: neither,
		}[Verdict{FailOpen: v.FailOpen, ReadinessIgnored: v.ReadinessIgnored, EjectionsIgnored: v.EjectionsIgnored}]
		if got := shown(admits); got != row.want || ignored != row.ignored {
			t.Errorf("%s: got %s (%s), want %s (%s)", row.name, got, ignored, row.want, row.ignored)
		}
	}
}

// Below the threshold, health, readiness and ejections are ignored together.
func TestAdmitPanics(t *testing.T) {
	for _, row := range []struct {
		name, facts string
		threshold   int
		want        string
		failOpen    bool
	}{
		{"at the threshold", "1-u 1-d", 50, "100 down", false},
		{"below it", "1-u 1-d 1-d", 50, "100 100 100", true},
		{"going down lives, going up does not", "1-g 1-r 1-r", 50, "100 100 100", true},
		{"also the unready, the ejected, and those in a slow start", "1-uy 1-ux 1-u@0.1 1-d 1-d", 70, "100 100 100 100 100", true},
		{"drained ones and those in maintenance do not count", "1-u 1-d 1md 1dd 0-d", 50, "100 down down down down", false},
		{"nor do those of which nothing is known", "1-u 1-q 1-q 1-q", 50, "100 down down down", false},
		{"but they take flows, too", "1-u 1-d 1-d 1-q", 50, "100 100 100 100", true},
		{"all have to live", "1-u 1-u 1-d", 100, "100 100 100", true},
		{"without a threshold one is enough", "1-u 1-d 1-d 1-d 1-d", 0, "100 down down down down", false},
		{"drained ones stay so", "1-u 1-d 1-d 1du 1cu 0-u", 50, "100 100 100 draining cut draining", true},
	} {
		admits, v := Admit(nil, facts(row.facts), Policy{Waited: true, PanicThreshold: row.threshold})
		if got := shown(admits); got != row.want || v.FailOpen != row.failOpen {
			t.Errorf("%s: got %s %v, want %s %v", row.name, got, v.FailOpen, row.want, row.failOpen)
		}
		if _, v := Admit(nil, facts(row.facts), Policy{PanicThreshold: row.threshold}); v.FailOpen {
			t.Errorf("%s: fails open before the time is over", row.name)
		}
	}
}

// What holds whatever the facts are.
func TestAdmitProperties(t *testing.T) {
	states := []State{StateUp, StateGoingDown, StateDown, StateGoingUp, StateUnknown, StateNone}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		list := make([]Facts, r.IntN(8))
		for i := range list {
			list[i] = Facts{
				Weight: r.IntN(3), Hand: Hand(max(0, r.IntN(6)-3)), Maintenance: r.IntN(8) == 0, Health: states[r.IntN(len(states))],
				Unready: r.IntN(3) == 0, Ejected: r.IntN(3) == 0, Rising: min(1, 2*r.Float64()),
			}
			if r.IntN(3) == 0 {
				asks := max(0, r.IntN(150)-49)
				list[i].Asks = &asks
			}
		}
		policy := Policy{Waited: r.IntN(4) > 0, PanicThreshold: max(0, r.IntN(201)-100)}
		waited := policy.Waited
		admits, v := Admit(nil, list, policy)
		wrong := func(format string, args ...any) {
			t.Fatalf("%+v (%+v) gives %s, %+v: %s", list, policy, shown(admits), v, fmt.Sprintf(format, args...))
		}
		wanted, alive, lost, up, largest := 0, 0, 0, 0, uint32(0)
		for i, f := range list {
			state := admits[i].State()
			isWanted := f.Weight > 0 && f.Hand == HandNone && !f.Maintenance
			isAlive := f.Health == StateUp || f.Health == StateNone || f.Health == StateGoingDown
			isFine := isAlive && !f.Ejected && !f.Unready && (f.Asks == nil || *f.Asks > 0)
			if state == maglev.Up {
				up++
				largest = max(largest, admits[i].Fraction())
			}
			if isWanted {
				wanted++
				alive += one(isAlive)
				lost += one(f.Health == StateDown || f.Health == StateGoingUp)
			}
			switch {
			case state == maglev.Up && !isWanted:
				wrong("%d is taken out by hand or weight, and up", i)
			case (f.Hand == HandCut) != (state == maglev.Cut):
				wrong("%d: cut is what the hand says, and only that", i)
			case isWanted && isFine && state != maglev.Up:
				wrong("%d is wanted and fine, and not up", i)
			case state == maglev.Up && !isAlive && !v.FailOpen:
				wrong("%d is up against what health says", i)
			case state == maglev.Up && f.Ejected && !v.FailOpen && !v.EjectionsIgnored:
				wrong("%d is up, and ejected", i)
			case state == maglev.Up && !isFine && !v.FailOpen && !v.EjectionsIgnored && !v.ReadinessIgnored:
				wrong("%d is up, and not ready", i)
			case state == maglev.Up && admits[i].Fraction() == 0:
				wrong("%d is up with nothing", i)
			case v.FailOpen && isWanted && admits[i] != maglev.MakeAdmit(maglev.Up, maglev.All):
				wrong("%d does not take all", i)
			case f.Health == StateUnknown && !waited && f.Hand != HandCut && state != maglev.Draining:
				wrong("%d: its flows may be from before the start", i)
			case f.Health == StateUnknown && !waited:
			case !isWanted && f.Hand != HandCut && !isAlive && state != maglev.Down:
				wrong("%d: the flows of one that is down cannot go on", i)
			case isAlive && f.Hand != HandCut && state != maglev.Draining && state != maglev.Up:
				wrong("%d: its flows are to go on", i)
			}
		}
		if v.Wanted != wanted || v.Alive != alive || v.Lost != lost {
			wrong("%d wanted, %d alive, %d lost", wanted, alive, lost)
		}
		if want := waited && wanted > 0 && (alive == 0 || alive*100 < policy.PanicThreshold*(alive+lost)); v.FailOpen != want {
			wrong("%d wanted, %d of them alive, %d lost", wanted, alive, lost)
		}
		// Whatever is reported, a service with a backend that is wanted has one that takes all flows.
		if wanted > 0 && (waited || alive > 0) && (up == 0 || largest != maglev.All) {
			wrong("no backend takes all new flows")
		}
		if v.FailOpen && (v.EjectionsIgnored || v.ReadinessIgnored) {
			wrong("when health is ignored as a whole, nothing else has to be")
		}
	}
}

// Admit is called for each change, and appends to what the caller has.
func TestAdmitAllocates(t *testing.T) {
	list, admits := facts("1-u 1-d 1-ux 1-uy 1-u%50 1-u@0.5"), make([]maglev.Admit, 0, 6)
	if n := testing.AllocsPerRun(100, func() { admits, _ = Admit(admits[:0], list, Policy{Waited: true}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
