package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// Daemon is what the server serves. Its methods are called from many goroutines at once.
type Daemon interface {
	Status() Status
	// Reload reads the configuration file again. A file that is refused is a *config.Error, and changes nothing.
	Reload(ctx context.Context) (ReloadResult, error)
	// Targets, Report, Release and Events are those of a Book.
	Targets(ctx context.Context, boot string, generation uint64) Targets
	Report(r HealthReport) (HealthAnswer, error)
	Release(source string)
	Events(ctx context.Context, boot string, after uint64, f EventFilter) Events
	// Health is Book.Detail, with the traffic.
	Health(f EventFilter) (HealthDetail, error)
	// Signals sends how connections to backends fare until ctx ends or send returns an error, which it returns then.
	Signals(ctx context.Context, send func(SignalsLine) error) error
	// Drain, Undrain and Maintenance are those of a Book, and return how the backend stands then.
	Drain(service, backend string, timeout time.Duration) (Backend, error)
	Undrain(service, backend string) (Backend, error)
	Maintenance(service, backend string, on bool) (Backend, error)
	// Flows counts the flows that f leaves in. A service or backend that is unknown is an *APIError.
	Flows(f FlowFilter) (FlowsReport, error)
	// Flow tells what becomes of the next packet of a flow.
	Flow(q FlowQuery) (FlowReport, error)
	// TopSources returns the n sources, or less, that have done most of something lately: flows, syns or packets.
	TopSources(by string, n int) TopReport
}

const (
	apiVersion    = "v1"
	maxWait       = time.Minute // longest wait for new targets, and for events
	maxReportBody = 96 << 20    // 2^18 backends with evidence
	maxHeader     = 16 << 10
	readTimeout   = 10 * time.Second
	writeTimeout  = maxWait + 30*time.Second
	idleTimeout   = 2 * time.Minute
)

// Server serves the local API.
type Server struct {
	daemon  Daemon
	version string
	log     *slog.Logger
	http    http.Server
	stop    context.CancelFunc // ends waiting requests
	maxBody int64              // bytes of a report
	sources sources
	// streams has room for as many as may follow signals at once.
	streams chan struct{}
}

// NewServer returns a server of d, in a daemon of the given version.
func NewServer(d Daemon, version string, log *slog.Logger) *Server {
	base, stop := context.WithCancel(context.Background())
	s := &Server{daemon: d, version: version, log: log, stop: stop, maxBody: maxReportBody, streams: make(chan struct{}, maxStreams)}
	s.sources.of = map[net.Conn]string{}
	s.sources.gone = func(source string) {
		if base.Err() == nil { // else it is the server that closes connections
			d.Release(source)
		}
	}
	s.http = http.Server{
		Handler: s.Handler(), BaseContext: func(net.Listener) context.Context { return base },
		ConnContext: withConn, ConnState: s.sources.state,
		ReadHeaderTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	return s
}

// Serve answers requests on l until Shutdown, and returns nil then.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the control API: %w", err)
	}
	return nil
}

// Shutdown closes the listener and lets requests end until ctx does. Those that wait for new targets end at once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// route is one thing that the API can do.
type route struct {
	method, path string
	handle       func(http.ResponseWriter, *http.Request) (answer any, err error)
}

func (s *Server) routes() []route {
	return []route{
		{http.MethodGet, "/v1/status", s.status},
		{http.MethodPost, "/v1/reload", s.reload},
		{http.MethodGet, "/v1/health/targets", s.targets},
		{http.MethodGet, "/v1/health", s.health},
		{http.MethodPut, "/v1/health", s.report},
		{http.MethodGet, "/v1/health/signals", s.signals},
		{http.MethodGet, "/v1/events", s.events},
		{http.MethodPost, "/v1/drain", s.drain},
		{http.MethodPost, "/v1/undrain", s.undrain},
		{http.MethodPost, "/v1/maintenance", s.maintenance},
		{http.MethodGet, "/v1/flows", s.flows},
		{http.MethodGet, "/v1/flows/one", s.flow},
		{http.MethodGet, "/v1/flows/top", s.top},
		{http.MethodGet, "/v1/version", s.versionInfo},
	}
}

// Handler returns what answers requests, for tests and for other listeners.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	methods := map[string][]string{}
	for _, r := range s.routes() {
		methods[r.path] = append(methods[r.path], r.method)
		mux.HandleFunc(r.method+" "+r.path, func(w http.ResponseWriter, req *http.Request) {
			// For the body. Not http.Server.ReadTimeout, which would also end requests that wait.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout))
			answer, err := r.handle(w, req)
			switch {
			case errors.Is(err, errStreamed):
			case err != nil:
				s.fail(w, err)
			default:
				write(w, http.StatusOK, answer)
			}
		})
	}
	for path, of := range methods {
		mux.HandleFunc(path, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Allow", strings.Join(of, ", "))
			s.fail(w, &APIError{Code: http.StatusMethodNotAllowed, Message: req.Method + " " + path + ": only " + strings.Join(of, " and ") + " is possible"})
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		s.fail(w, &APIError{Code: http.StatusNotFound, Message: "no such path; docs/openapi.yaml has those that there are"})
	})
	return mux
}

// write sends an answer. An error means that the client has gone, to whom nothing can be said.
func write(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

// fail sends an error under the status code that its kind has.
func (s *Server) fail(w http.ResponseWriter, err error) {
	code, body := http.StatusInternalServerError, ErrorBody{Error: err.Error()}
	var api *APIError
	var refused *config.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &api):
		code = api.Code
	case errors.As(err, &refused):
		code, body = http.StatusUnprocessableEntity, ErrorBody{Error: "the configuration is refused; the one before stays in force", Details: refused.Problems}
	case errors.Is(err, ErrBoot), errors.Is(err, ErrResync):
		code = http.StatusConflict
	case errors.As(err, &tooLarge):
		code = http.StatusRequestEntityTooLarge
	default:
		s.log.Error("control API", "error", err)
	}
	write(w, code, body)
}

// badRequest is an error of the client's.
func badRequest(format string, args ...any) error {
	return &APIError{Code: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}

func (s *Server) status(http.ResponseWriter, *http.Request) (any, error) {
	return s.daemon.Status(), nil
}

func (s *Server) reload(_ http.ResponseWriter, r *http.Request) (any, error) {
	return s.daemon.Reload(r.Context())
}

func (s *Server) versionInfo(http.ResponseWriter, *http.Request) (any, error) {
	return VersionInfo{Version: s.version, API: apiVersion, Go: strings.TrimPrefix(runtime.Version(), "go")}, nil
}
