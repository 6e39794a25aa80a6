package affinity

import (
	"runtime"
	"slices"
	"testing"
)

func TestPin(t *testing.T) {
	before, err := Allowed()
	if err != nil || len(before) == 0 {
		t.Fatal(before, err)
	}
	t.Cleanup(func() {
		if err := PinAll(before...); err != nil {
			t.Error(err)
		}
	})
	last := before[len(before)-1]
	now := make(chan []int)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := Pin(last); err != nil {
			t.Error(err)
		}
		cpus, _ := Allowed()
		now <- cpus
	}()
	if got := <-now; !slices.Equal(got, []int{last}) {
		t.Errorf("pinned to %d: may use %v", last, got)
	}
	if err := PinAll(before[0]); err != nil {
		t.Fatal(err)
	}
	if got, err := Allowed(); err != nil || !slices.Equal(got, before[:1]) {
		t.Errorf("all threads pinned to %d: this one may use %v, %v", before[0], got, err)
	}
	if err := Pin(); err == nil {
		t.Error("pinned to no CPU")
	}
}
