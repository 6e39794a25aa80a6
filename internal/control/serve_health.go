package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

const (
	maxStreams = 4 // clients that follow signals at once
	// streamTimeout is how long a client of a stream may leave lines unread.
	streamTimeout = 5 * time.Second
)

// errStreamed is the error of a handler that has answered already.
var errStreamed = errors.New("answered line by line")

// sources knows which connections health daemons use, so that it is seen when one has gone.
type sources struct {
	gone func(source string) // told when the last connection of a source is closed

	mu sync.Mutex
	of map[net.Conn]string
}

// connKey is under what the context of a request has its connection.
type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// uses notes that a request of a source came over a connection.
func (s *sources) uses(r *http.Request, source string) {
	c, ok := r.Context().Value(connKey{}).(net.Conn)
	if !ok || source == "" || len(source) > maxSource {
		return // no connection: a test's request
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of[c] = source
}

// state is told by the HTTP server of each connection.
func (s *sources) state(c net.Conn, state http.ConnState) {
	if state != http.StateClosed {
		return
	}
	s.mu.Lock()
	source, was := s.of[c]
	delete(s.of, c)
	for _, other := range s.of {
		was = was && other != source
	}
	s.mu.Unlock()
	if was {
		s.gone(source)
	}
}

// targets answers at once, or with ?wait=30s&boot=B&generation=N when there is something newer than that.
func (s *Server) targets(w http.ResponseWriter, r *http.Request) (any, error) {
	query, ctx, cancel, err := waiting(w, r, "generation", "source")
	if err != nil {
		return nil, err
	}
	defer cancel()
	generation, err := number(query, "generation")
	if err != nil {
		return nil, err
	}
	s.sources.uses(r, query.Get("source"))
	return s.daemon.Targets(ctx, query.Get("boot"), generation), nil
}

// events answers at once, or with ?wait=30s&boot=B&after=N when there is an event after that.
func (s *Server) events(w http.ResponseWriter, r *http.Request) (any, error) {
	query, ctx, cancel, err := waiting(w, r, "after", "service", "backend")
	if err != nil {
		return nil, err
	}
	defer cancel()
	after, err := number(query, "after")
	if err != nil {
		return nil, err
	}
	return s.daemon.Events(ctx, query.Get("boot"), after, EventFilter{query.Get("service"), query.Get("backend")}), nil
}

// waiting returns the query of a request that may wait, with wait, boot and the parameters that are named, and a context that
// ends with the wait.
func waiting(w http.ResponseWriter, r *http.Request, known ...string) (url.Values, context.Context, context.CancelFunc, error) {
	if r.ContentLength != 0 {
		return nil, nil, nil, badRequest("found a body, expected none")
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	query, err := parameters(r, append(known, "wait", "boot")...)
	if err != nil {
		return nil, nil, nil, err
	}
	wait := time.Duration(0)
	if text := query.Get("wait"); text != "" {
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 {
			return nil, nil, nil, badRequest("wait: found %q, expected a duration such as 30s", text)
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), min(wait, maxWait))
	return query, ctx, cancel, nil
}

// number returns a parameter; 0 without one.
func number(query url.Values, name string) (n uint64, err error) {
	if text := query.Get(name); text != "" {
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			return 0, badRequest("%s: found %q, expected a number", name, text)
		}
	}
	return n, nil
}

func (s *Server) report(w http.ResponseWriter, r *http.Request) (any, error) {
	var report HealthReport
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, s.maxBody)).Decode(&report); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, err
		}
		return nil, badRequest("health report: %v", err)
	}
	s.sources.uses(r, report.Source)
	answer, err := s.daemon.Report(report)
	var api *APIError
	if err != nil && !errors.Is(err, ErrBoot) && !errors.Is(err, ErrResync) && !errors.As(err, &api) {
		return nil, badRequest("%v", err)
	}
	return answer, err
}

// health answers with all services, or with ?service=web&backend=web-1 with these.
func (s *Server) health(_ http.ResponseWriter, r *http.Request) (any, error) {
	query, err := parameters(r, "service", "backend")
	if err != nil {
		return nil, err
	}
	f := EventFilter{query.Get("service"), query.Get("backend")}
	if f.Backend != "" && f.Service == "" {
		return nil, badRequest("backend: found %q without a service, expected both", f.Backend)
	}
	return s.daemon.Health(f)
}

// signals answers with a line of JSON after the other, until the client closes the connection or leaves them unread.
func (s *Server) signals(w http.ResponseWriter, r *http.Request) (any, error) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		return nil, &APIError{Code: http.StatusServiceUnavailable, Message: fmt.Sprintf("%d clients follow signals already; no more may", maxStreams)}
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	begun := false
	err := s.daemon.Signals(r.Context(), func(line SignalsLine) error {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		if err := control.SetWriteDeadline(time.Now().Add(streamTimeout)); err != nil {
			return err
		}
		if err := json.NewEncoder(w).Encode(line); err != nil {
			return err
		}
		return control.Flush()
	})
	if err != nil && !begun {
		return nil, err
	}
	return nil, errStreamed
}

func (s *Server) maintenance(w http.ResponseWriter, r *http.Request) (any, error) {
	var q struct {
		MaintenanceRequest
		On *bool `json:"on"`
	}
	if err := decode(w, r, "maintenance", &q); err != nil {
		return nil, err
	}
	if q.On == nil {
		return nil, badRequest("on: found nothing, expected true or false")
	}
	b, err := s.daemon.Maintenance(q.Service, q.Backend, *q.On)
	if err != nil {
		return nil, err
	}
	return DrainResult{q.Service, b}, nil
}
