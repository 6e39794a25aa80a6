package healthd

import (
	"fmt"
	"testing"
)

func TestHysteresis(t *testing.T) {
	for _, c := range []struct {
		rise, fall int
		start      verdict
		probes     string // g good, b bad
		want       string // the verdict after each: ? unknown, u up, d down
	}{
		{2, 3, unknown, "g", "u"},
		{2, 3, unknown, "bbb", "??d"},
		{2, 3, unknown, "bbg", "??u"},
		{2, 3, unknown, "bbgbbb", "??uuud"},
		{5, 1, unknown, "b", "d"},
		{2, 3, up, "ggg", "uuu"},
		{2, 3, up, "bbgbbb", "uuuuud"},
		{2, 3, up, "bbb", "uud"},
		{2, 1, up, "b", "d"},
		{2, 3, down, "bbb", "ddd"},
		{2, 3, down, "gg", "du"},
		{2, 3, down, "gbgbgg", "dddddu"},
		{1, 1, down, "gbgb", "udud"},
		{3, 2, up, "bbggbggg", "uddddddu"},
		{2, 3, down, "ggbbgbbb", "duuuuuud"},
		{0, 0, up, "bg", "du"},
	} {
		t.Run(fmt.Sprintf("%v rise %d fall %d %s", c.start, c.rise, c.fall, c.probes), func(t *testing.T) {
			h := hysteresis{verdict: c.start}
			got := ""
			for _, p := range c.probes {
				h = h.next(p == 'g', c.rise, c.fall)
				got += map[verdict]string{unknown: "?", up: "u", down: "d"}[h.verdict]
			}
			if got != c.want {
				t.Errorf("verdicts %s, want %s", got, c.want)
			}
		})
	}
}

// Whatever the probes: a verdict changes only after as many probes in a row as asked for, and then always.
func FuzzHysteresis(f *testing.F) {
	f.Add([]byte("ggbbgbgbbbbgggg"), 2, 3)
	f.Add([]byte("b"), 1, 1)
	f.Fuzz(func(t *testing.T, probes []byte, rise, fall int) {
		if rise < 1 || fall < 1 {
			return
		}
		var h hysteresis
		goods, bads := 0, 0
		for i, p := range probes {
			good := p%2 == 1
			if good {
				goods, bads = goods+1, 0
			} else {
				goods, bads = 0, bads+1
			}
			before := h.verdict
			h = h.next(good, rise, fall)
			want := before
			switch {
			case good && (before == unknown || before == down && goods >= rise):
				want = up
			case !good && before != down && bads >= fall:
				want = down
			}
			if h.verdict != want {
				t.Fatalf("probe %d of %q, rise %d fall %d: %v after %v, want %v", i, probes, rise, fall, h.verdict, before, want)
			}
		}
	})
}
