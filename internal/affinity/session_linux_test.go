package affinity

import "testing"

func TestSessionNice(t *testing.T) {
	for text, want := range map[string]struct {
		nice    int
		grouped bool
		err     bool
	}{
		"/autogroup-25 nice 0\n":   {0, true, false},
		"/autogroup-25 nice -20\n": {-20, true, false},
		"":                         {}, // no autogroups, or the process is in a cgroup that somebody made
		"\n":                       {},
		"/autogroup-25":            {err: true},
		"/autogroup-25 nice low":   {err: true},
	} {
		nice, grouped, err := sessionNice(text)
		if nice != want.nice || grouped != want.grouped || (err != nil) != want.err {
			t.Errorf("%q: %d, %v, %v, want %+v", text, nice, grouped, err, want)
		}
	}
}

func TestNiceSession(t *testing.T) {
	undo, err := NiceSession(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
}
