package healthd

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
)

// daemon is a forwarder's control side for real: the health book behind the server on a unix socket. Only the traffic
// is missing.
type daemon struct {
	control.Daemon // nothing that healthd asks for
	book           *control.Book
	cancel         context.CancelFunc
	stopped        chan struct{}
}

func (d *daemon) Targets(ctx context.Context, boot string, generation uint64) control.Targets {
	return d.book.Targets(ctx, boot, generation)
}

func (d *daemon) Release(source string) { d.book.Release(source) }

func (d *daemon) Report(r control.HealthReport) (control.HealthAnswer, error) {
	return d.book.Report(r)
}

func (d *daemon) Signals(ctx context.Context, _ func(control.SignalsLine) error) error {
	<-ctx.Done()
	return nil
}

func startDaemon(t *testing.T, socket string, services []config.Service) *daemon {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	d := &daemon{book: control.NewBook("", log), stopped: make(chan struct{})}
	d.book.Prepare(&config.Config{Services: services}).Commit()
	l, err := control.Listen(socket, "")
	if err != nil {
		t.Fatal(err)
	}
	server := control.NewServer(d, "test", log)
	var ctx context.Context
	ctx, d.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(d.stopped)
		go func() {
			<-ctx.Done()
			if err := server.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
		}()
		if err := server.Serve(l); err != nil {
			t.Error(err)
		}
		l.Close()
	}()
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) stop() {
	d.cancel()
	<-d.stopped
}

// health is what the forwarder knows about a backend.
func (d *daemon) health(backend string) control.Health {
	s := control.Status{Traffic: control.Traffic{Services: []control.Service{{
		ServiceStats: forwarder.ServiceStats{Name: "web"},
		Backends:     []control.Backend{{BackendStats: forwarder.BackendStats{Name: backend}}},
	}}}}
	d.book.Fill(&s)
	return s.Traffic.Services[0].Backends[0].Health
}

func (d *daemon) await(t *testing.T, backend string, state control.State, evidence string) {
	t.Helper()
	start := time.Now()
	for {
		got := d.health(backend)
		if got.State == state && got.Evidence == evidence {
			t.Logf("%s: %v after %v", backend, state, time.Since(start).Round(time.Millisecond))
			return
		}
		if time.Since(start) > 5*time.Second {
			t.Fatalf("%s: %+v, want %v, %q", backend, got, state, evidence)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// The real client, server, book and probes: a backend dies, the forwarder starts again, a backend is added.
func TestWithTheControlAPI(t *testing.T) {
	// A listener on 127.0.0.1; on 127.0.0.2 nobody listens.
	ok := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	t.Cleanup(ok.Close)
	service := func(backends ...config.Backend) []config.Service {
		return []config.Service{{
			Name: "web", VIP: netip.MustParseAddr("192.0.2.10"), Protocol: config.TCP, Quorum: 1,
			Check: &config.Check{Type: config.CheckHTTP, Port: uint16(ok.Listener.Addr().(*net.TCPAddr).Port), Via: config.ViaDirect, Path: "/",
				Expect: config.Expect{Status: config.Ranges{"200"}}, Interval: config.Duration(100 * time.Millisecond),
				FastInterval: config.Duration(100 * time.Millisecond), Timeout: config.Duration(50 * time.Millisecond), Rise: 2, Fall: 2},
			Backends: backends,
		}}
	}
	good := config.Backend{Name: "good", Address: netip.MustParseAddr("127.0.0.1")}
	dead := config.Backend{Name: "dead", Address: netip.MustParseAddr("127.0.0.2")}
	late := config.Backend{Name: "late", Address: netip.MustParseAddr("127.0.0.1")}

	socket := filepath.Join(t.TempDir(), "control.sock")
	client := control.NewClient(socket)
	logs := &logBook{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	d := New(client, Options{Name: "lb1", Version: "test", MostProbes: 10, Log: slog.New(slog.NewTextHandler(logs, nil))})
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		client.Close()
		if t.Failed() {
			t.Logf("log:\n%s", logs)
		}
	})
	time.Sleep(200 * time.Millisecond) // healthd is there first, and waits
	if !strings.Contains(logs.String(), "is sluice running?") {
		t.Errorf("nothing says that the forwarder is missing:\n%s", logs)
	}

	first := startDaemon(t, socket, service(good, dead))
	first.await(t, "good", control.StateUp, "the first good probe: HTTP 200")
	first.await(t, "dead", control.StateDown, "2 of 2 probes failed: connection refused")
	first.stop()

	second := startDaemon(t, socket, service(good, dead))
	since := first.health("dead").Since
	second.await(t, "dead", control.StateDown, "2 of 2 probes failed: connection refused")
	if got := second.health("dead").Since; !got.Equal(since) {
		t.Errorf("the new forwarder was told that it is down since %v, it is since %v", got, since)
	}
	second.await(t, "good", control.StateUp, "the first good probe: HTTP 200")
	second.book.Prepare(&config.Config{Services: service(good, dead, late)}).Commit()
	second.await(t, "late", control.StateUp, "the first good probe: HTTP 200")
}
