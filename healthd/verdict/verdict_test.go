package verdict

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

var settings = Settings{
	Rise: 2, Fall: 3, ReadyRise: 2, ReadyFall: 2, Interval: time.Second, Damped: true,
	Eject: 20 * time.Second, Longest: 5 * time.Minute,
}

// liveness is settings without a readiness check.
func liveness(rise, fall int) Settings {
	s := settings
	s.Rise, s.Fall, s.ReadyRise, s.ReadyFall = rise, fall, 0, 0
	return s
}

// events are what a letter of a script stands for.
var events = map[rune]Event{
	'g': Probe{Good: true, Evidence: "HTTP 200"},
	'b': Probe{Evidence: "HTTP 500"},
	'n': Probe{Nothing: true, Evidence: "no descriptors"},
	'G': Readiness{Good: true, Evidence: "READY"},
	'B': Readiness{Evidence: "BUSY"},
	'N': Readiness{Nothing: true, Evidence: "no descriptors"},
	'o': Outlier{Evidence: "no handshake of 14 SYNs completed"},
	't': Tick{},
	'w': Probe{Good: true, Weight: 50, HasWeight: true, Evidence: "50%"},
	'v': Probe{Good: true, Weight: 45, HasWeight: true, Evidence: "45%"},
	'0': Probe{Good: true, Weight: -7, HasWeight: true, Evidence: "drain"},
	'W': Readiness{Good: true, Weight: 30, HasWeight: true, Evidence: "30%"},
	'h': Readiness{Good: true, Weight: 900, HasWeight: true, Evidence: "900%"},
}

// start is a time as a daemon has it.
var start = time.Now()

// play lets the events of a script happen, a second apart; '+' lets a minute pass before the next.
func play(t *testing.T, b Backend, at *time.Time, script string) (Backend, []Transition) {
	t.Helper()
	var all []Transition
	for _, r := range script {
		if r == '+' {
			*at = at.Add(time.Minute)
			continue
		}
		*at = at.Add(time.Second)
		e, known := events[r]
		switch r {
		case 'c':
			e, known = Reconfigured{b.settings}, true
		case 'l': // liveness alone
			e, known = Reconfigured{liveness(b.settings.Rise, b.settings.Fall)}, true
		case 'r': // readiness too
			e, known = Reconfigured{settings}, true
		case 'x': // no ejections
			s := b.settings
			s.Eject = 0
			e, known = Reconfigured{s}, true
		}
		if !known {
			t.Fatalf("script %q: nothing is known of %q", script, r)
		}
		next, tr, ok := b.Next(e, *at)
		if ok {
			all = append(all, tr)
		}
		b = next
	}
	return b, all
}

// outside is a short form of a view.
func outside(b Backend) string {
	v := b.View()
	s := v.State.String()
	if !v.Ready {
		s += " unready"
	}
	if !v.EjectedUntil.IsZero() {
		s += " ejected"
	}
	if v.Weight != 100 {
		s += fmt.Sprint(" ", v.Weight)
	}
	return s
}

// Every event in every state. A script leads into the state, an event follows, and what is there then is compared, with the
// transition that tells of it: from, to, cause.
func TestEveryEventInEveryState(t *testing.T) {
	states := []struct{ name, script string }{
		{"unknown", "G"}, {"up", "Gg"}, {"going_down", "Ggb"}, {"down", "Ggbbb"}, {"going_up", "Ggbbbg"},
		{"unready", "GgBB"}, {"ejected", "Ggo"}, {"ejected and down", "Ggobbb"}, {"undecided", "g"},
	}
	want := map[string]map[string]string{
		"unknown": {
			"g": "up: unknown, up, probe", "b": "unknown", "bbb": "down: unknown, down, probe", "n": "unknown",
			"G": "unknown", "BB": "unknown unready", "N": "unknown", "o": "unknown ejected: unknown, ejected, passive",
			"t": "unknown", "c": "unknown", "l": "unknown", "w": "up 50: unknown, up, probe", "W": "unknown 30",
		},
		"up": {
			"g": "up", "b": "going_down", "bbb": "down: up, down, probe", "n": "up",
			"G": "up", "BB": "up unready: up, not ready, readiness", "N": "up", "o": "up ejected: up, ejected, passive",
			"t": "up", "c": "up", "l": "up", "w": "up 50: weight 100, weight 50, weight", "W": "up 30: weight 100, weight 30, weight",
		},
		"going_down": {
			"g": "up", "b": "going_down", "bb": "down: up, down, probe", "n": "going_down",
			"G": "going_down", "BB": "going_down unready: up, not ready, readiness", "N": "going_down",
			"o": "going_down ejected: up, ejected, passive",
			"t": "going_down", "c": "up", "l": "up", "w": "up 50: weight 100, weight 50, weight", "W": "going_down 30: weight 100, weight 30, weight",
		},
		"down": {
			"g": "going_up", "gg": "up: down, up, probe", "b": "down", "n": "down",
			"G": "down", "BB": "down unready", "N": "down", "o": "down",
			"t": "down", "c": "down", "l": "down", "w": "going_up 50", "ww": "up 50: down, up, probe", "W": "down 30",
		},
		"going_up": {
			"g": "up: down, up, probe", "b": "down", "n": "going_up",
			"G": "going_up", "BB": "going_up unready", "N": "going_up", "o": "going_up",
			"t": "going_up", "c": "down", "l": "down", "w": "up 50: down, up, probe", "W": "going_up 30",
		},
		"unready": {
			"g": "up unready", "b": "going_down unready", "bbb": "down unready: not ready, down, probe", "n": "up unready",
			"G": "up unready", "GG": "up: not ready, up, readiness", "B": "up unready", "N": "up unready",
			"o": "up unready ejected: not ready, ejected, passive",
			"t": "up unready", "c": "up unready", "l": "up: not ready, up, config", "w": "up unready 50", "W": "up unready 30",
		},
		"ejected": {
			"g": "up ejected", "b": "going_down ejected", "bbb": "down ejected: ejected, down, probe", "n": "up ejected",
			"G": "up ejected", "BB": "up unready ejected", "N": "up ejected", "o": "up ejected",
			"t": "up ejected", "+t": "up: ejected, up, passive", "+n": "up: ejected, up, passive", "+b": "going_down: ejected, up, passive",
			"+o": "up ejected: ejected, ejected, passive", "BB+t": "up unready: ejected, not ready, passive",
			"c": "up ejected", "l": "up ejected", "x": "up: ejected, up, config", "w": "up ejected 50", "W": "up ejected 30",
			"w+t": "up 50: ejected, up, passive",
		},
		"ejected and down": {
			"g": "going_up ejected", "gg": "up ejected: down, ejected, probe", "b": "down ejected", "n": "down ejected",
			"G": "down ejected", "BB": "down unready ejected", "N": "down ejected", "o": "down ejected",
			"t": "down ejected", "+t": "down", "+gg": "up: down, up, probe", "c": "down ejected", "l": "down ejected",
			"x": "down", "w": "going_up ejected 50", "W": "down ejected 30",
		},
		"undecided": {
			"g": "up unready", "b": "going_down unready", "bbb": "down unready: unknown, down, probe", "n": "up unready",
			"G": "up: unknown, up, readiness", "B": "up unready", "BB": "up unready: unknown, not ready, readiness", "N": "up unready",
			"o": "up unready ejected: unknown, ejected, passive", "t": "up unready", "c": "up unready",
			"l": "up: unknown, up, config", "w": "up unready 50", "W": "up 30: unknown, up, readiness",
		},
	}
	for _, s := range states {
		for script, result := range want[s.name] {
			t.Run(s.name+" "+script, func(t *testing.T) {
				at := start
				b, _ := play(t, New(settings), &at, s.script)
				b, told := play(t, b, &at, script)
				got := outside(b)
				for _, tr := range told {
					got += fmt.Sprintf(": %s, %s, %s", tr.From, tr.To, tr.Cause)
					if tr.At != at || tr.Evidence == "" {
						t.Errorf("at %v, with evidence %q", tr.At, tr.Evidence)
					}
				}
				if got != result {
					t.Errorf("%s, want %s", got, result)
				}
			})
		}
	}
}

// What operators read.
func TestEvidence(t *testing.T) {
	for _, c := range []struct {
		settings Settings
		script   string
		state    string // the view's evidence
		told     string // the last transition's
	}{
		{liveness(2, 3), "b", "1 of 3 probes failed: HTTP 500", ""},
		{liveness(2, 3), "g", "the first good probe: HTTP 200", "the first good probe: HTTP 200"},
		{liveness(2, 3), "w", "the first good probe: 50%", "the first good probe: 50%; weight 50"},
		{liveness(2, 3), "gbb", "2 of 3 probes failed: HTTP 500", "the first good probe: HTTP 200"},
		{liveness(2, 3), "gbbg", "good again after 2 bad probes: HTTP 200", "the first good probe: HTTP 200"},
		{liveness(2, 3), "gbbb", "3 of 3 probes failed: HTTP 500", "3 of 3 probes failed: HTTP 500"},
		{liveness(2, 3), "gbbbbbb", "3 of 3 probes failed: HTTP 500", "3 of 3 probes failed: HTTP 500"},
		{liveness(2, 3), "gbbbg", "1 of 2 good probes: HTTP 200", "3 of 3 probes failed: HTTP 500"},
		{liveness(2, 3), "gbbbgb", "bad again after 1 good probe: HTTP 500", "3 of 3 probes failed: HTTP 500"},
		{liveness(2, 3), "gbbbgg", "2 good probes: HTTP 200", "2 good probes: HTTP 200"},
		{liveness(1, 1), "gb", "1 of 1 probe failed: HTTP 500", "1 of 1 probe failed: HTTP 500"},
		{liveness(1, 1), "gbgbg", "1 of 2 good probes, since it fell 2 times lately: HTTP 200", "1 of 1 probe failed: HTTP 500"},
		{liveness(1, 1), "gbgbggbggggb" + "gggggggg", "came back: 8 good probes were needed, since it fell 4 times lately: HTTP 200",
			"came back: 8 good probes were needed, since it fell 4 times lately: HTTP 200"},
		{liveness(2, 3), "gv", "the first good probe: HTTP 200", "the liveness probe's answer: 45%"},
		{liveness(2, 3), "go", "the first good probe: HTTP 200", "ejected for 20s: no handshake of 14 SYNs completed"},
		{liveness(2, 3), "go+o", "the first good probe: HTTP 200", "ejected for 40s: no handshake of 14 SYNs completed"},
		{liveness(2, 3), "go+t", "the first good probe: HTTP 200", "the ejection is over after 20s"},
		{liveness(2, 3), "gobbbgg", "2 good probes: HTTP 200", "2 good probes: HTTP 200; ejected for 20s: no handshake of 14 SYNs completed"},
		{settings, "GgBB", "the first good probe: HTTP 200", "2 of 2 probes failed: BUSY"},
		{settings, "GgbbbBBgg", "2 good probes: HTTP 200", "2 good probes: HTTP 200; not ready: 2 of 2 probes failed: BUSY"},
		{settings, "GgBBl", "the first good probe: HTTP 200", "the readiness check was removed"},
		{settings, "Ggox", "the first good probe: HTTP 200", "outliers are no longer ejected"},
	} {
		at := start
		b, told := play(t, New(c.settings), &at, c.script)
		last := ""
		if len(told) > 0 {
			last = told[len(told)-1].Evidence
		}
		if got := b.View().Evidence; got != c.state || last != c.told {
			t.Errorf("%s:\n%s\n%s, want\n%s\n%s", c.script, got, last, c.state, c.told)
		}
	}
}

// A backend that fails in another way than before says so, and remains down since when it was.
func TestAnotherFailureWhileDown(t *testing.T) {
	at := start
	b, _ := play(t, New(liveness(2, 3)), &at, "gbbb")
	since := b.View().Since
	b, _, told := b.Next(Probe{Evidence: "connection refused"}, at.Add(time.Second))
	if v := b.View(); told || v.Evidence != "still failing: connection refused" || v.Since != since {
		t.Errorf("%+v", v)
	}
}

// Which pace is wanted, and what there is to be told.
func TestFastAndDecided(t *testing.T) {
	for _, c := range []struct {
		settings      Settings
		script        string
		fast, decided bool
	}{
		{liveness(2, 3), "", true, false},
		{liveness(2, 3), "bb", true, false},
		{liveness(2, 3), "bbb", false, true},
		{liveness(2, 3), "g", false, true},
		{liveness(2, 3), "gb", true, true},
		{liveness(2, 3), "gbbb", false, true},
		{liveness(2, 3), "gbbbg", true, true},
		{liveness(2, 3), "gr", false, true},     // alive: ready until the new check says otherwise
		{liveness(2, 3), "bbbrgg", true, false}, // dead: not before it has said so
		{settings, "g", true, false},
		{settings, "gB", true, false},
		{settings, "gBB", false, true},
		{settings, "gG", false, true},
		{settings, "gGB", true, true},
		{settings, "gBBG", true, true},
		{settings, "bbb", false, true},
	} {
		at := start
		b, _ := play(t, New(c.settings), &at, c.script)
		if b.Fast() != c.fast || b.View().Decided != c.decided {
			t.Errorf("%q: fast %v, decided %v", c.script, b.Fast(), b.View().Decided)
		}
	}
}

// Weights are absolute, bounded, and the lower of two; small steps are not told one by one.
func TestWeights(t *testing.T) {
	for _, c := range []struct {
		script string
		weight int
		told   string // the transitions of weights
	}{
		{"g", 100, ""},
		{"gw", 50, "100>50"},
		{"gwwww", 50, "100>50"},
		{"gwv", 45, "100>50"},
		{"gwg", 100, "100>50 50>100"},
		{"gwb", 50, "100>50"},
		{"gwn", 50, "100>50"},
		{"gv0", 0, "100>45 45>0"},
		{"gW", 30, "100>30"},
		{"gWw", 30, "100>30"},
		{"gwW", 30, "100>50 50>30"},
		{"gWG", 100, "100>30 30>100"},
		{"gWB", 30, "100>30"},
		{"gh", 100, ""},
		{"gWwl", 50, "100>30 30>50"},
	} {
		at := start
		b, _ := play(t, New(settings), &at, "G")
		b, told := play(t, b, &at, c.script)
		var list []string
		for _, tr := range told {
			if tr.Cause == CauseWeight {
				list = append(list, strings.ReplaceAll(tr.From+">"+tr.To, "weight ", ""))
			}
		}
		if got := strings.Join(list, " "); b.View().Weight != c.weight || got != c.told {
			t.Errorf("%s: %d, told %q, want %d, %q", c.script, b.View().Weight, got, c.weight, c.told)
		}
	}
}

// Ejections last longer each time, up to the longest, and one level less for each longest that passes without one.
func TestEjectionsGrowAndAreForgotten(t *testing.T) {
	s := liveness(2, 3)
	at := start
	b, _, _ := New(s).Next(events['g'], at)
	eject := func() time.Duration {
		next, _, ok := b.Next(events['o'], at)
		if b = next; !ok {
			t.Fatal("not ejected")
		}
		d := b.View().EjectedUntil.Sub(at)
		at = b.View().EjectedUntil
		if b, _, ok = b.Next(Tick{}, at.Add(-1)); ok {
			t.Fatal("ended too early")
		}
		if b, _, ok = b.Next(Tick{}, at); !ok || !b.View().EjectedUntil.IsZero() {
			t.Fatal("not ended")
		}
		return d
	}
	for i, want := range []time.Duration{20, 40, 80, 160, 300, 300} {
		if got := eject(); got != want*time.Second {
			t.Errorf("ejection %d lasted %v, want %v s", i+1, got, int(want))
		}
	}
	for _, c := range []struct {
		calm, want time.Duration
	}{{s.Longest - 1, 300 * time.Second}, {s.Longest, 160 * time.Second}, {2 * s.Longest, 80 * time.Second}, {time.Hour, 20 * time.Second}} {
		at = at.Add(c.calm)
		if got := eject(); got != c.want {
			t.Errorf("after %v without one the ejection lasted %v, want %v", c.calm, got, c.want)
		}
	}
}

// The rule of before, when there was nothing but rise and fall.
func TestRiseAndFall(t *testing.T) {
	for _, c := range []struct {
		rise, fall int
		script     string
		want       string // after each: ? unknown, u up, d going down, D down, U going up
	}{
		{5, 1, "b", "D"},
		{2, 3, "bbgbbb", "??uddD"},
		{2, 3, "gbbgbbb", "udduddD"},
		{2, 3, "bbbgbgbgg", "??DUDUDUu"},
		{0, 0, "bg", "Du"},
	} {
		at := start
		b := New(liveness(c.rise, c.fall))
		got := ""
		for _, r := range c.script {
			b, _ = play(t, b, &at, string(r))
			got += map[State]string{Unknown: "?", Up: "u", GoingDown: "d", Down: "D", GoingUp: "U"}[b.View().State]
		}
		if got != c.want {
			t.Errorf("rise %d, fall %d, %s: %s, want %s", c.rise, c.fall, c.script, got, c.want)
		}
	}
}

// A clock that goes backwards changes nothing: not what is decided, and no ejection gets longer.
func TestTimeGoesBackwards(t *testing.T) {
	b, _, _ := New(liveness(2, 3)).Next(events['g'], start)
	b, _, _ = b.Next(events['o'], start)
	until := b.View().EjectedUntil
	b, tr, ok := b.Next(events['0'], start.Add(-time.Hour))
	if v := b.View(); ok || v.EjectedUntil != until || v.Weight != 0 {
		t.Errorf("%+v, told %v %+v", v, ok, tr)
	}
	b, tr, _ = b.Next(Tick{}, until)
	if want := "the ejection is over after 20s; weight 0"; tr.Evidence != want {
		t.Errorf("%q, want %q", tr.Evidence, want)
	}
}
