package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// eventually waits until f holds, for what another process or goroutine does in its own time.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in 20 s: %s", what)
		}
	}
}

// A health daemon that has died makes room at once: the end of its connections says so.
func TestWriterThatDiesMakesRoom(t *testing.T) {
	d, _, first := serve(t)
	targets, err := first.Targets(t.Context(), "", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	send := func(c *Client, source string, base, version uint64) error {
		_, err := c.Report(t.Context(), HealthReport{Boot: targets.Boot, Source: source, Base: base, Version: version})
		return err
	}
	if err := send(first, "lb1/1", 0, 1); err != nil {
		t.Fatal(err)
	}
	if err := send(first, "lb1/1", 7, 8); !errors.Is(err, ErrResync) {
		t.Errorf("changes since something else: %v", err)
	}
	// A question for targets over another connection is the same health daemon's.
	asking, stop := context.WithCancel(t.Context())
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _ = first.Targets(asking, targets.Boot, targets.Generation, time.Minute)
	}()
	second := NewClient(first.socket)
	defer second.Close()
	var failed *APIError
	if err := send(second, "lb1/2", 0, 1); !errors.As(err, &failed) || failed.Code != http.StatusLocked || !strings.Contains(failed.Message, "lb1/1 reports already") {
		t.Errorf("a second one: %v", err)
	}
	if n := func() int { d.mu.Lock(); defer d.mu.Unlock(); return len(d.events.ring) }(); n != 2 {
		t.Errorf("%d events", n)
	}
	stop()
	<-asked
	first.Close()
	eventually(t, "the second may report", func() bool { return send(second, "lb1/2", 0, 1) == nil })
	if err := send(first, "lb1/1", 0, 2); !errors.As(err, &failed) || failed.Code != http.StatusLocked {
		t.Errorf("the first, back again: %v", err)
	}
}

// As long as one of its connections is open, a health daemon is there.
func TestWriterWithOneConnectionLeft(t *testing.T) {
	var gone []string
	s := sources{of: map[net.Conn]string{}, gone: func(source string) { gone = append(gone, source) }}
	use := func(source string) net.Conn {
		c, other := net.Pipe()
		t.Cleanup(func() { c.Close(); other.Close() })
		r, _ := http.NewRequestWithContext(withConn(t.Context(), c), "GET", "/", nil)
		s.uses(r, source)
		return c
	}
	a, b, c, none := use("one"), use("one"), use("two"), use("")
	for i, row := range []struct {
		conn  net.Conn
		state http.ConnState
		gone  string
	}{
		{a, http.StateIdle, ""}, {a, http.StateClosed, ""}, {none, http.StateClosed, ""}, {c, http.StateClosed, "two"}, {b, http.StateClosed, "two one"},
		{b, http.StateClosed, "two one"},
	} {
		s.state(row.conn, row.state)
		if got := strings.Join(gone, " "); got != row.gone {
			t.Errorf("%d: gone %q, want %q", i, got, row.gone)
		}
	}
	if len(s.of) != 0 {
		t.Errorf("left behind: %v", s.of)
	}
}

func TestEventsAndHealthOverTheWire(t *testing.T) {
	d, _, c := serve(t)
	begin := time.Now()
	none, err := c.Events(t.Context(), "", 0, EventFilter{}, 50*time.Millisecond)
	if err != nil || len(none.Events) != 0 || time.Since(begin) < 50*time.Millisecond {
		t.Fatalf("got %+v, %v", none, err)
	}
	go func() {
		time.Sleep(50 * time.Millisecond)
		bad := says("b", StateDown)
		bad.Evidence = "connection refused"
		_, _ = d.Report(HealthReport{Boot: d.boot, Source: "s", Version: 1, Backends: []BackendHealth{says("a", StateUp), bad}})
	}()
	e, err := c.Events(t.Context(), none.Boot, none.Last, EventFilter{"web", "b"}, 30*time.Second)
	if err != nil || len(e.Events) != 1 || e.Events[0].To != "down" || e.Events[0].Evidence != "connection refused" || e.Boot != none.Boot {
		t.Errorf("got %+v, %v", e, err)
	}
	r, err := c.Maintenance(t.Context(), "web", "b", true)
	if err != nil || !r.Backend.Hand.InMaintenance() || r.Backend.Phase != PhaseMaintenance || r.Backend.Flows != 7 {
		t.Errorf("maintenance: %+v, %v", r, err)
	}
	h, err := c.Health(t.Context(), EventFilter{"web", "b"})
	if err != nil || len(h.Services) != 1 || len(h.Backends) != 1 || len(h.Backends[0].History) != 2 || h.Health.Source != "s" {
		t.Errorf("health: %+v, %v", h, err)
	}
	if want := "tcp port 80; ; every 2s, 0s while it changes, timeout 1s, rise 2, fall 3"; h.Services[0].Check != want {
		t.Errorf("check %q", h.Services[0].Check)
	}
	if r, err = c.Maintenance(t.Context(), "web", "b", false); err != nil || r.Backend.Hand != nil {
		t.Errorf("out of maintenance: %+v, %v", r, err)
	}
}

func TestHealthRequestsThatAreRefused(t *testing.T) {
	_, s, _ := serve(t)
	for _, row := range []struct {
		method, target, body string
		code                 int
		text                 string
	}{
		{"GET", "/v1/health?service=wbe", "", 404, `no service \"wbe\"; there is web`},
		{"GET", "/v1/health?service=web&backend=z", "", 404, `no backend \"z\"; it has a, b`},
		{"GET", "/v1/health?backend=a", "", 400, "without a service"},
		{"GET", "/v1/health?name=web", "", 400, `found \"name\"`},
		{"GET", "/v1/events?after=x", "", 400, `after: found \"x\"`},
		{"GET", "/v1/events?wait=1", "", 400, `wait: found \"1\"`},
		{"GET", "/v1/events?from=1", "", 400, `found \"from\"`},
		{"GET", "/v1/maintenance", "", 405, "only POST"},
		{"POST", "/v1/maintenance", `{"service":"web","backend":"a"}`, 400, "expected true or false"},
		{"POST", "/v1/maintenance", `{"service":"web","backend":"a","on":"yes"}`, 400, "cannot unmarshal"},
		{"POST", "/v1/maintenance", `{"service":"web","backend":"z","on":true}`, 404, "it has a, b"},
		{"POST", "/v1/health/signals", "", 405, "only GET"},
	} {
		if w := request(s, row.method, row.target, row.body); w.Code != row.code || !strings.Contains(w.Body.String(), row.text) {
			t.Errorf("%s %s: got %d %s, want %d %s", row.method, row.target, w.Code, w.Body, row.code, row.text)
		}
	}
}

func TestSignalsOverTheWire(t *testing.T) {
	d, s, c := serve(t)
	enough := errors.New("enough")
	counted := false
	err := c.Signals(t.Context(), func(l SignalsLine) error {
		if len(l.Backends) > 0 {
			if want := (BackendSignals{Service: "web", Backend: "a", SYNs: 3, Completed: 2, HopReady: true}); l.Backends[0] != want || !slices.Equal(l.Suspended, []string{"dns"}) {
				t.Errorf("got %+v", l)
			}
			return enough
		}
		if !counted { // after the sign of life: what was counted before is nobody's
			counted = true
			d.reader.count("web", "dns")
		}
		return nil
	})
	if err != enough {
		t.Errorf("got %v", err)
	}

	// Four may follow, and not a fifth, until one goes.
	eventually(t, "the first has gone", func() bool { return len(s.streams) == 0 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begun, ended := make(chan struct{}, maxStreams), make(chan error, maxStreams)
	for range maxStreams {
		go func() {
			first := true
			ended <- c.Signals(ctx, func(SignalsLine) error {
				if first {
					begun <- struct{}{}
				}
				first = false
				return nil
			})
		}()
	}
	for range maxStreams {
		<-begun
	}
	var failed *APIError
	if err := c.Signals(ctx, nil); !errors.As(err, &failed) || failed.Code != http.StatusServiceUnavailable {
		t.Errorf("a fifth: %v", err)
	}
	cancel()
	for range maxStreams {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	eventually(t, "there is room again", func() bool {
		return c.Signals(t.Context(), func(SignalsLine) error { return enough }) == enough
	})
}

// flood is a reader that always has much to tell.
type flood struct{ *daemon }

func (f flood) Signals(ctx context.Context, send func(SignalsLine) error) error {
	line := SignalsLine{Suspended: []string{}, Backends: make([]BackendSignals, 1000)}
	for ctx.Err() == nil {
		if err := send(line); err != nil {
			return err
		}
	}
	return nil
}

// A client that leaves its lines unread is cut off.
func TestSignalsThatNobodyReads(t *testing.T) {
	d, s, c := serve(t)
	s.daemon, s.patience = flood{d}, time.Second
	conn, err := net.Dial("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /v1/health/signals HTTP/1.1\r\nHost: x\r\n\r\n")
	if line, err := bufio.NewReaderSize(conn, 16).ReadString('\n'); err != nil || !strings.Contains(line, "200 OK") {
		t.Fatalf("%q, %v", line, err)
	}
	if len(s.streams) != 1 {
		t.Errorf("%d streams", len(s.streams))
	}
	eventually(t, "it is cut off", func() bool { return len(s.streams) == 0 })
}

// The end of the daemon ends the signals, and is not waited for.
func TestShutdownEndsSignals(t *testing.T) {
	_, s, c := serve(t)
	begun, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() {
		ended <- c.Signals(t.Context(), func(SignalsLine) error { begun <- struct{}{}; return nil })
	}()
	<-begun
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "signals") {
		t.Errorf("got %v", err)
	}
}
