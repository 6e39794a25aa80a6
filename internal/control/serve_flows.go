package control

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

const (
	maxRequestBody = 64 << 10 // of requests that name one thing
	defaultTop     = 20
	maxTop         = 1000
)

// decode reads a request's body into v. A field that is not known is refused: it may have meant something.
func decode(w http.ResponseWriter, r *http.Request, what string, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return err
		}
		return badRequest("%s: %v", what, err)
	}
	return nil
}

func (s *Server) drain(w http.ResponseWriter, r *http.Request) (any, error) {
	var q DrainRequest
	if err := decode(w, r, "drain", &q); err != nil {
		return nil, err
	}
	timeout := time.Duration(0)
	if q.Timeout != "" {
		var err error
		if timeout, err = time.ParseDuration(q.Timeout); err != nil || timeout < 0 {
			return nil, badRequest("timeout: found %q, expected a duration such as 5m, or none", q.Timeout)
		}
	}
	b, err := s.daemon.Drain(q.Service, q.Backend, timeout)
	if err != nil {
		return nil, err
	}
	return DrainResult{q.Service, b}, nil
}

func (s *Server) undrain(w http.ResponseWriter, r *http.Request) (any, error) {
	var q DrainRequest
	if err := decode(w, r, "undrain", &q); err != nil {
		return nil, err
	}
	if q.Timeout != "" {
		return nil, badRequest("timeout: found %q, expected none: undrain has no timeout", q.Timeout)
	}
	b, err := s.daemon.Undrain(q.Service, q.Backend)
	if err != nil {
		return nil, err
	}
	return DrainResult{q.Service, b}, nil
}

// flows answers with all flows, or with ?service=web&backend=web-1&state=established with those.
func (s *Server) flows(_ http.ResponseWriter, r *http.Request) (any, error) {
	query, err := parameters(r, "service", "backend", "state")
	if err != nil {
		return nil, err
	}
	f := FlowFilter{Service: query.Get("service"), Backend: query.Get("backend"), State: query.Get("state")}
	if !slices.Contains([]string{"", "probation", "established", "closing"}, f.State) {
		return nil, badRequest("state: found %q, expected probation, established or closing", f.State)
	}
	return s.daemon.Flows(f)
}

// flow answers ?source=198.51.100.7:4711&destination=192.0.2.10:80&protocol=tcp.
func (s *Server) flow(_ http.ResponseWriter, r *http.Request) (any, error) {
	query, err := parameters(r, "source", "destination", "protocol")
	if err != nil {
		return nil, err
	}
	q := FlowQuery{Protocol: query.Get("protocol")}
	if q.Source, err = netip.ParseAddrPort(query.Get("source")); err != nil {
		return nil, badRequest("source: found %q, expected an address and a port such as 198.51.100.7:4711 or [2001:db8::7]:4711", query.Get("source"))
	}
	if q.Destination, err = netip.ParseAddrPort(query.Get("destination")); err != nil {
		return nil, badRequest("destination: found %q, expected an address and a port such as 192.0.2.10:80 or [2001:db8::10]:80", query.Get("destination"))
	}
	q.Source, q.Destination = unmap(q.Source), unmap(q.Destination)
	switch {
	case q.Source.Addr().Is4() != q.Destination.Addr().Is4():
		return nil, badRequest("source %s and destination %s: expected addresses of one family", q.Source, q.Destination)
	case q.Source.Addr().Zone() != "" || q.Destination.Addr().Zone() != "":
		return nil, badRequest("source %s and destination %s: expected addresses without a zone", q.Source, q.Destination)
	case q.Protocol != string(config.TCP) && q.Protocol != string(config.UDP):
		return nil, badRequest("protocol: found %q, expected tcp or udp", q.Protocol)
	}
	return s.daemon.Flow(q)
}

// unmap returns an IPv4 address for one that is mapped into IPv6: flows know no others.
func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// top answers with the first 20 sources, or with ?n=100 with so many; of flows, or with ?by=syns or packets of these.
func (s *Server) top(_ http.ResponseWriter, r *http.Request) (any, error) {
	query, err := parameters(r, "by", "n")
	if err != nil {
		return nil, err
	}
	n := defaultTop
	if text := query.Get("n"); text != "" {
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > maxTop {
			return nil, badRequest("n: found %q, expected a number from 1 to %d", text, maxTop)
		}
	}
	by := cmp.Or(query.Get("by"), "flows")
	if !slices.Contains([]string{"flows", "syns", "packets", "prefixes"}, by) {
		return nil, badRequest("by: found %q, expected flows, syns or packets", by)
	}
	return s.daemon.TopSources(by, n), nil
}

// parameters returns the query of a request. It refuses one that is not known: left out, it would give another answer
// than was asked for.
func parameters(r *http.Request, known ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("query: %v", err)
	}
	for name := range query {
		if !slices.Contains(known, name) {
			return nil, badRequest("query: found %q, expected only %s", name, some(known))
		}
	}
	return query, nil
}
