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
	news      chan struct{}
}

func newSignalReader() *signalReader { return &signalReader{news: make(chan struct{}, 1)} }

func (r *signalReader) News() <-chan struct{} { return r.news }

func (r *signalReader) tell() {
	select {
	case r.news <- struct{}{}:
	default:
	}
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
	r.tell()
}

// Ten lines a second come while anything is counted, and for a while after it; else two, and one at once when something else
// is suspended.
func TestFollowSignals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := newSignalReader()
		r.count("before anybody asked")
		lines := make(chan SignalsLine, 1000)
		ended := make(chan error, 1)
		go func() { ended <- FollowSignals(ctx, r, func(l SignalsLine) error { lines <- l; return nil }) }()
		// after waits, and returns the lines that have come.
		after := func(wait time.Duration) (list []SignalsLine) {
			time.Sleep(wait)
			synctest.Wait()
			for len(lines) > 0 {
				list = append(list, <-lines)
			}
			return list
		}
		got := after(2050 * time.Millisecond)
		if len(got) != 4 || got[0].ElapsedMS != 500 || got[0].Backends == nil || got[0].Suspended == nil || len(got[0].Backends) != 0 {
			t.Errorf("signs of life in 2 s: %+v", got)
		}
		r.count("web")
		got = after(100 * time.Millisecond)
		want := SignalsLine{ElapsedMS: 100, Suspended: []string{}, Backends: []BackendSignals{{Service: "web", Backend: "a", SYNs: 3, Completed: 2, HopReady: true}}}
		if len(got) != 1 || !reflect.DeepEqual(got[0], want) {
			t.Errorf("soon after it was counted: %+v", got)
		}
		if got = after(busyFor); len(got) != int(busyFor/signalsEvery) || len(got[0].Backends) != 0 {
			t.Errorf("%d lines in the %v after that", len(got), busyFor)
		}
		if got = after(2 * time.Second); len(got) != 4 {
			t.Errorf("%d signs of life in 2 s when it is quiet again", len(got))
		}
		r.mu.Lock()
		r.suspended = []string{"web"}
		r.mu.Unlock()
		r.tell()
		if got = after(signalsEvery); len(got) != 1 || !reflect.DeepEqual(got[0].Suspended, []string{"web"}) {
			t.Errorf("suspended: %+v", got)
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
