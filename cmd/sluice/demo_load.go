//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-lb/sluice/testenv"
)

const (
	clients      = 8                     // goroutines, each with one request at a time
	pace         = 10 * time.Millisecond // from one request of a client to the next
	longLived    = 30                    // connections that stay open
	longLivedGap = 200 * time.Millisecond
	requestLimit = 3 * time.Second
)

// load is HTTP traffic from the client's namespace: requests that each open a connection, and connections that stay open.
// Its methods may be called from any goroutine.
type load struct {
	running sync.WaitGroup

	mu      sync.Mutex
	total   counted
	recent  []time.Duration // latencies since the last call of latencies
	brokeAt map[string]int  // long-lived connections that broke, by the backend that they were at
	long    map[string]int  // those that are open
}

// counted is what happened in some stretch of time.
type counted struct {
	requests, failed int
	by               map[string]int // requests by the backend that answered
}

func (c counted) share(backend string) float64 {
	return float64(c.by[backend]) / float64(max(1, c.requests-c.failed))
}

// startLoad starts the traffic; it ends with ctx.
func startLoad(ctx context.Context, client *testenv.Namespace, sources []netip.Addr) *load {
	l := &load{total: counted{by: map[string]int{}}, brokeAt: map[string]int{}, long: map[string]int{}}
	for i := range clients {
		dialer := &testenv.Dialer{Namespace: client, Source: sources[i%len(sources)]}
		l.running.Go(func() { l.shortRequests(ctx, dialer) })
	}
	for i := range longLived {
		dialer := &testenv.Dialer{Namespace: client, Source: sources[i%len(sources)]}
		l.running.Go(func() { l.longConnection(ctx, dialer) })
	}
	return l
}

func (l *load) wait() { l.running.Wait() }

// vipOf returns the VIP of a source's family.
func vipOf(source netip.Addr) netip.AddrPort {
	vip := demoVIPs[0]
	if source.Is6() {
		vip = demoVIPs[1]
	}
	return netip.AddrPortFrom(vip, 80)
}

func (l *load) shortRequests(ctx context.Context, dialer *testenv.Dialer) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		start := time.Now()
		backend, err := request(ctx, dialer)
		if ctx.Err() != nil {
			return
		}
		l.count(backend, err, time.Since(start))
	}
}

// request makes one request on a connection of its own.
func request(ctx context.Context, dialer *testenv.Dialer) (backend string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", vipOf(dialer.Source).String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return get(conn, bufio.NewReader(conn), "close")
}

// get makes one request on an open connection and returns the name of the backend that answered.
func get(conn net.Conn, r *bufio.Reader, connection string) (backend string, err error) {
	if err := conn.SetDeadline(time.Now().Add(requestLimit)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: demo\r\nConnection: %s\r\n\r\n", connection); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(resp.Status)
	}
	return resp.Header.Get("X-Backend"), nil
}

func (l *load) count(backend string, err error, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total.requests++
	if err != nil {
		l.total.failed++
		return
	}
	l.total.by[backend]++
	l.recent = append(l.recent, took)
}

// longConnection keeps one connection open and makes a request on it now and then. When it breaks, it opens another.
func (l *load) longConnection(ctx context.Context, dialer *testenv.Dialer) {
	for ctx.Err() == nil {
		conn, err := dialer.DialContext(ctx, "tcp", vipOf(dialer.Source).String())
		if err != nil {
			_ = pause(ctx, longLivedGap)
			continue
		}
		l.serveLong(ctx, conn)
		conn.Close()
	}
}

func (l *load) serveLong(ctx context.Context, conn net.Conn) {
	at, r := "", bufio.NewReader(conn)
	for {
		backend, err := get(conn, r, "keep-alive")
		l.mu.Lock()
		switch {
		case err != nil && at != "" && ctx.Err() == nil:
			l.brokeAt[at]++
			l.long[at]--
		case err == nil && at == "":
			at = backend
			l.long[at]++
		}
		l.mu.Unlock()
		if err != nil || pause(ctx, longLivedGap) != nil {
			return
		}
	}
}

// broken returns how many long-lived connections have broken: those of one backend, and those of all others.
func (l *load) broken(backend string) (mine, others int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for b, n := range l.brokeAt {
		if b == backend {
			mine += n
		} else {
			others += n
		}
	}
	return mine, others
}

// longAt returns how many long-lived connections are open, by backend.
func (l *load) longAt() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.long)
}

// window counts from now until its end is called.
func (l *load) window() *window { return &window{l, l.now(), time.Now()} }

type window struct {
	load   *load
	before counted
	start  time.Time
}

func (l *load) now() counted {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.total
	c.by = maps.Clone(c.by)
	return c
}

// end returns what happened since the window began.
func (w *window) end() counted {
	c := w.load.now()
	c.requests -= w.before.requests
	c.failed -= w.before.failed
	for b, n := range w.before.by {
		c.by[b] -= n
	}
	return c
}

// latencies returns the median and the 99th percentile since the last call.
func (l *load) latencies() (p50, p99 time.Duration) {
	l.mu.Lock()
	all := l.recent
	l.recent = nil
	l.mu.Unlock()
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100]
}

// demoBackendCommand is the web server that the demo's backends run.
func demoBackendCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:    "backend",
		Short:  "The web server of the demo's backends",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			listen := net.ListenConfig{}
			listen.SetMultipathTCP(false)
			l, err := listen.Listen(c.Context(), "tcp", ":80")
			if err != nil {
				return err
			}
			return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Backend", name)
				fmt.Fprintf(w, "hello from %s\n", name)
			}))
		},
	}
	c.Flags().StringVar(&name, "name", "", "what the server calls itself")
	return c
}
