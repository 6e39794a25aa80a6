package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/config"
)

// daemon is what a test serves.
type daemon struct {
	*Book
	status Status
	reload error
	flow   FlowReport
	asked  []any // of flows: filters, queries and numbers
	reader signalReader
}

func (d *daemon) Status() Status { return d.status }

func (d *daemon) Reload(context.Context) (ReloadResult, error) {
	return ReloadResult{Generation: 2, Hash: "abc", Changed: true, Notes: []string{"later"}}, d.reload
}

// serve runs a server on a socket of its own, and returns it with a client.
func serve(t *testing.T) (*daemon, *Server, *Client) {
	t.Helper()
	log, _ := newLog()
	d := &daemon{Book: NewBook("", log)}
	commit(d.Book, service("web", true, "a", "b"))
	s := NewServer(d, "1.2.3", log)
	path := filepath.Join(t.TempDir(), "run", "control.sock")
	l, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	c := NewClient(path)
	t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket is still there")
		}
	})
	return d, s, c
}

func TestStatusOverTheWire(t *testing.T) {
	d, _, c := serve(t)
	var stats forwarder.Stats
	stats.Steer = forwarder.SteerStats{ToVIPs: 12, Redirected: 11, NoSocket: 1}
	worker := forwarder.WorkerStats{ID: 3, Received: 11, Forwarded: 4}
	worker.Dropped[packet.NoRoute], worker.Dropped[packet.TooBig] = 5, 2
	stats.Workers = []forwarder.WorkerStats{worker}
	svc := forwarder.ServiceStats{Name: "web", Backends: []forwarder.BackendStats{{Name: "a", NewFlows: 7}, {Name: "b"}}}
	svc.Dropped[packet.NoBackend] = 9
	stats.Services = []forwarder.ServiceStats{svc}
	stats.Interfaces = []forwarder.InterfaceStats{{Name: "eth0", Queues: []forwarder.QueueStats{{Queue: 1, Mode: "copy"}}}}
	d.status = Status{Node: "lb1", Version: "1.2.3", PID: 42, Started: time.Unix(1_000_000, 0).UTC(), Ready: true, Traffic: NewTraffic(stats)}
	report(t, d.Book, 1, says("a", StateUp), BackendHealth{"web", "b", Health{State: StateDown, Since: time.Unix(5, 0).UTC(), Evidence: "connection refused"}})
	d.Fill(&d.status)

	got, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := (Dropped{"no_route": 5, "too_big": 2}); !reflect.DeepEqual(got.Traffic.Workers[0].Dropped, want) {
		t.Errorf("worker dropped %v, want %v", got.Traffic.Workers[0].Dropped, want)
	}
	if got.Traffic.Workers[0].Dropped.Total() != 7 || got.Traffic.Workers[0].Received != 11 {
		t.Errorf("worker %+v", got.Traffic.Workers[0])
	}
	web := got.Traffic.Services[0]
	if web.Dropped["no_backend"] != 9 || !web.Checked || web.FailOpen || len(web.Backends) != 2 || web.Backends[0].NewFlows != 7 {
		t.Errorf("service %+v", web)
	}
	if h := web.Backends[1].Health; h != (Health{State: StateDown, Since: time.Unix(5, 0).UTC(), Evidence: "connection refused"}) {
		t.Errorf("health %+v", h)
	}
	if got.Health.Source != "test" || got.Node != "lb1" || got.PID != 42 || !got.Started.Equal(d.status.Started) {
		t.Errorf("status %+v", got)
	}
}

func TestReloadOverTheWire(t *testing.T) {
	d, _, c := serve(t)
	if r, err := c.Reload(t.Context()); err != nil || r.Generation != 2 || !r.Changed || len(r.Notes) != 1 {
		t.Errorf("got %+v, %v", r, err)
	}

	_, _, d.reload = config.Parse("sluice.yaml", []byte("interfaces: 5\n"))
	_, err := c.Reload(t.Context())
	var refused *config.Error
	if !errors.As(err, &refused) || err.Error() != d.reload.Error() {
		t.Errorf("got %v, want the list of problems\n%v", err, d.reload)
	}

	d.reload = errors.New("read config: gone")
	_, err = c.Reload(t.Context())
	var failed *APIError
	if !errors.As(err, &failed) || failed.Code != 500 || failed.Message != "read config: gone" {
		t.Errorf("got %v", err)
	}
}

// A reload reaches a health daemon at once, and a report the Book.
func TestHealthOverTheWire(t *testing.T) {
	d, _, c := serve(t)
	first, err := c.Targets(t.Context(), "", 0, 0)
	if err != nil || len(first.Services) != 1 || first.Services[0].Check.Interval != config.Duration(2*time.Second) {
		t.Fatalf("got %+v, %v", first, err)
	}
	begin := time.Now()
	same, err := c.Targets(t.Context(), first.Boot, first.Generation, 50*time.Millisecond)
	if err != nil || same.Generation != first.Generation || time.Since(begin) < 50*time.Millisecond {
		t.Errorf("got %+v after %v, %v", same, time.Since(begin), err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		commit(d.Book, service("web", true, "a", "b", "c"))
	}()
	next, err := c.Targets(t.Context(), first.Boot, first.Generation, 30*time.Second)
	if err != nil || len(next.Services[0].Backends) != 3 {
		t.Errorf("got %+v, %v", next, err)
	}

	answer, err := c.Report(t.Context(), HealthReport{Boot: first.Boot, Generation: 1, Source: "s", Version: 1, Backends: []BackendHealth{says("b", StateUp)}})
	if err != nil || answer.Generation != next.Generation || answer.Boot != first.Boot || d.takes() != "b" {
		t.Errorf("got %+v, %v; takes %s", answer, err, d.takes())
	}
	if _, err = c.Report(t.Context(), HealthReport{Boot: "old", Source: "s", Version: 2}); !errors.Is(err, ErrBoot) {
		t.Errorf("an old boot: %v", err)
	}
	var failed *APIError
	if _, err = c.Report(t.Context(), HealthReport{Boot: first.Boot}); !errors.As(err, &failed) || failed.Code != 400 {
		t.Errorf("a bad report: %v", err)
	}
}

func TestVersionOverTheWire(t *testing.T) {
	_, _, c := serve(t)
	if v, err := c.Version(t.Context()); err != nil || v.Version != "1.2.3" || v.API != "v1" || v.Go == "" {
		t.Errorf("got %+v, %v", v, err)
	}
}

// request asks s without a socket.
func request(s *Server, method, target, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(method, target, strings.NewReader(body)))
	return w
}

func TestRequestsThatAreRefused(t *testing.T) {
	d, s, _ := serve(t)
	s.maxBody = 1000
	for _, row := range []struct {
		method, target, body string
		code                 int
		text                 string
	}{
		{"GET", "/", "", 404, "no such path"},
		{"GET", "/v2/status", "", 404, "no such path"},
		{"GET", "/v1/status/", "", 404, "no such path"},
		{"POST", "/v1/status", "", 405, "only GET"},
		{"GET", "/v1/reload", "", 405, "only POST"},
		{"POST", "/v1/health", "{}", 405, "only GET and PUT"},
		{"GET", "/v1/health/targets?wait=soon", "", 400, `wait: found "soon"`},
		{"GET", "/v1/health/targets?wait=-1s", "", 400, `wait: found "-1s"`},
		{"GET", "/v1/health/targets?generation=x", "", 400, `generation: found "x"`},
		{"GET", "/v1/health/targets", "body", 400, "found a body"},
		{"PUT", "/v1/health", "", 400, "health report: EOF"},
		{"PUT", "/v1/health", "[]", 400, "cannot unmarshal array"},
		{"PUT", "/v1/health", `{"boot":"` + d.boot + `","source":"s","version":1,"backends":[{"service":"web","backend":"a","state":"sick"}]}`, 400, `state "sick"`},
		{"PUT", "/v1/health", `{"boot":"old","source":"s","version":1}`, 409, "earlier start"},
		{"GET", "/v1/drain", "", 405, "only POST"},
		{"POST", "/v1/drain", "", 400, "drain: EOF"},
		{"POST", "/v1/drain", `{"service":"web","backend":"a","time_out":"5m"}`, 400, `unknown field "time_out"`},
		{"POST", "/v1/drain", `{"service":"web","backend":"a","timeout":"soon"}`, 400, `timeout: found "soon"`},
		{"POST", "/v1/drain", `{"service":"web","backend":"a","timeout":"-1s"}`, 400, `timeout: found "-1s"`},
		{"POST", "/v1/drain", `{"service":"` + strings.Repeat("x", maxRequestBody) + `"}`, 413, "too large"},
		{"POST", "/v1/drain", `{"service":"web","backend":"z"}`, 404, `no backend "z"; it has a, b`},
		{"POST", "/v1/undrain", `{"service":"wbe","backend":"a"}`, 404, `no service "wbe"; there is web`},
		{"POST", "/v1/undrain", `{"service":"web","backend":"a","timeout":"5m"}`, 400, "undrain has no timeout"},
		{"POST", "/v1/flows", "", 405, "only GET"},
		{"GET", "/v1/flows?state=old", "", 400, `state: found "old"`},
		{"GET", "/v1/flows?servcie=web", "", 400, `query: found "servcie", expected only service, backend, state`},
		{"GET", "/v1/flows?service=%zz", "", 400, "query: "},
		{"GET", "/v1/flows?service=wbe", "", 404, `no service "wbe"`},
		{"GET", "/v1/flows/one", "", 400, `source: found ""`},
		{"GET", "/v1/flows/one?source=10.0.0.1", "", 400, `source: found "10.0.0.1"`},
		{"GET", "/v1/flows/one?source=10.0.0.1:5&destination=web:80", "", 400, `destination: found "web:80"`},
		{"GET", "/v1/flows/one?source=10.0.0.1:5&destination=[fd00::1]:80&protocol=tcp", "", 400, "of one family"},
		{"GET", "/v1/flows/one?source=[fd00::2]:5&destination=[fd00::1%25eth0]:80&protocol=tcp", "", 400, "without a zone"},
		{"GET", "/v1/flows/one?source=10.0.0.1:5&destination=10.0.0.2:80&protocol=6", "", 400, `protocol: found "6"`},
		{"GET", "/v1/flows/top?n=0", "", 400, `n: found "0", expected a number from 1 to 1000`},
		{"GET", "/v1/flows/top?n=many", "", 400, `n: found "many"`},
		{"GET", "/v1/flows/top?by=weight", "", 400, `by: found "weight", expected flows, syns or packets`},
		{"PUT", "/v1/health", `{"boot":"` + strings.Repeat("x", 1000) + `"}`, 413, "too large"},
	} {
		w := request(s, row.method, row.target, row.body)
		var body ErrorBody
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Errorf("%s %s: not JSON: %s", row.method, row.target, w.Body)
		}
		if w.Code != row.code || !strings.Contains(body.Error, row.text) || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: got %d %q, want %d %q", row.method, row.target, w.Code, body.Error, row.code, row.text)
		}
	}
}

// The end of the daemon does not wait for a health daemon that waits for targets.
func TestShutdownEndsWaitingRequests(t *testing.T) {
	_, s, c := serve(t)
	first, err := c.Targets(t.Context(), "", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := c.Targets(t.Context(), first.Boot, first.Generation, time.Minute)
		done <- err
	}()
	time.Sleep(100 * time.Millisecond) // so that it waits
	begin := time.Now()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("shutdown took %v", took)
	}
	<-done
}

// A client that sends half a request and nothing more does not keep others out.
func TestClientThatStalls(t *testing.T) {
	_, _, c := serve(t)
	conn, err := net.Dial("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
	if _, err := c.Version(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestClientWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for name, path := range map[string]string{"missing": filepath.Join(dir, "none.sock"), "dead": dead} {
		_, err := NewClient(path).Status(t.Context())
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "is sluice running?") || strings.Contains(err.Error(), "http://") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A daemon that hangs does not hang its clients.
func TestClientOfDaemonThatHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := NewClient(path).Status(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer from "+path) {
		t.Errorf("got %v", err)
	}
}

func TestClientOfSomethingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/status" {
			io.WriteString(w, "<html>")
			return
		}
		http.Error(w, "no", http.StatusTeapot)
	})}
	go s.Serve(l)
	defer s.Close()
	c := NewClient(path)
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "of one version?") {
		t.Errorf("got %v", err)
	}
	var failed *APIError
	if _, err := c.Version(t.Context()); !errors.As(err, &failed) || failed.Code != http.StatusTeapot {
		t.Errorf("got %v", err)
	}
}

func TestSocketMode(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := Listen(path, fmt.Sprint(os.Getgid()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if gid := info.Sys().(*syscall.Stat_t).Gid; gid != uint32(os.Getgid()) {
		t.Errorf("group %d", gid)
	}
}

func TestSocketOfLivingDaemonIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Listen(path, "")
	if want := fmt.Sprintf("another sluice is running (pid %d)", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the refused one removed the socket: %v", err)
	}
	l.Close()
	again, err := Listen(path, "")
	if err != nil {
		t.Fatalf("after the end of the first: %v", err)
	}
	again.Close()
}

// TestSocketHolder is no test but the process that TestSocketOfKilledDaemonIsReplaced kills.
func TestSocketHolder(t *testing.T) {
	path := os.Getenv("SLUICE_TEST_SOCKET")
	if path == "" {
		return
	}
	if _, err := Listen(path, ""); err != nil {
		t.Fatal(err)
	}
	fmt.Println("listening")
	time.Sleep(time.Minute)
}

func TestSocketOfKilledDaemonIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	holder := exec.Command(os.Args[0], "-test.run=^TestSocketHolder$")
	holder.Env = append(os.Environ(), "SLUICE_TEST_SOCKET="+path)
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer holder.Wait()
	defer holder.Process.Kill()
	if _, err := io.ReadFull(out, make([]byte, len("listening"))); err != nil {
		t.Fatal(err)
	}
	_, err = Listen(path, "")
	if want := fmt.Sprintf("another sluice is running (pid %d)", holder.Process.Pid); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("while it lives: got %v, want %s", err, want)
	}
	holder.Process.Kill()
	holder.Wait()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("this test needs the dead one's socket: %v", err)
	}
	l, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestSocketInTheWay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, ""); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "mine" {
		t.Error("a file that is not ours was touched")
	}
	if _, err := Listen(filepath.Join(t.TempDir(), "c.sock"), "no-such-group"); err == nil || !strings.Contains(err.Error(), "control.group") {
		t.Errorf("got %v", err)
	}
}
