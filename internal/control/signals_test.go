package control

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// signalReader is what a test has counted.
type signalReader struct {
	mu        sync.Mutex
	backends  []BackendSignals
	suspended []string
}

func (r *signalReader) Read() ([]BackendSignals, []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.backends
	r.backends = nil
	return list, r.suspended
}

func (r *signalReader) count(service string, suspended ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backends, r.suspended = []BackendSignals{{Service: service, Backend: "a", SYNs: 3, Completed: 2, HopReady: true}}, suspended
}

// A line comes soon after something was counted, and else each second.
func TestFollowSignals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := &signalReader{}
		r.count("before anybody asked")
		lines := make(chan SignalsLine, 100)
		ended := make(chan error, 1)
		go func() { ended <- FollowSignals(ctx, r, func(l SignalsLine) error { lines <- l; return nil }) }()
		time.Sleep(2050 * time.Millisecond)
		if len(lines) != 2 {
			t.Fatalf("%d signs of life in 2 s", len(lines))
		}
		if l := <-lines; l.ElapsedMS != 1000 || l.Backends == nil || l.Suspended == nil || len(l.Backends) != 0 {
			t.Errorf("a sign of life: %+v", l)
		}
		<-lines
		r.count("web")
		time.Sleep(100 * time.Millisecond)
		want := SignalsLine{ElapsedMS: 100, Suspended: []string{}, Backends: []BackendSignals{{Service: "web", Backend: "a", SYNs: 3, Completed: 2, HopReady: true}}}
		if l := <-lines; !reflect.DeepEqual(l, want) {
			t.Errorf("got %+v", l)
		}
		time.Sleep(300 * time.Millisecond)
		r.mu.Lock()
		r.suspended = []string{"web"}
		r.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
		if l := <-lines; l.ElapsedMS != 400 || !reflect.DeepEqual(l.Suspended, []string{"web"}) {
			t.Errorf("suspended: %+v", l)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}

		full := errors.New("nobody reads")
		if err := FollowSignals(t.Context(), r, func(SignalsLine) error { return full }); err != full {
			t.Errorf("got %v", err)
		}
	})
}
