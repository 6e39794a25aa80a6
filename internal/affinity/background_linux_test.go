package affinity

import (
	"testing"

	"golang.org/x/sys/unix"
)

func nice(t *testing.T) int {
	t.Helper()
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	return 20 - raw
}

func TestBackground(t *testing.T) {
	before, within := nice(t), 0
	Background(func() { within = nice(t) })
	if want := min(before+background, 19); within != want {
		t.Errorf("nice %d in the background, want %d", within, want)
	}
	for range 100 { // on whatever threads there are now
		if after := nice(t); after != before {
			t.Fatalf("nice %d afterwards, was %d", after, before)
		}
	}
}

func TestBackgroundPanics(t *testing.T) {
	defer func() {
		if p := recover(); p != "spoilt" {
			t.Errorf("recovered %v, want what f panicked with", p)
		}
	}()
	Background(func() { panic("spoilt") })
	t.Error("went on after a panic")
}
