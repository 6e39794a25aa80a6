//go:build linux

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/testenv"
)

// webServerEnv makes the test binary a web server instead: a process that can be killed, stopped, and told what to do.
const webServerEnv = "SLUICE_TEST_WEB_SERVER" // its name, and the ports on which it listens

// serveWeb answers every request with the server's name, and does what its standard input says:
//
//	listen 8080, close 8080    a port is opened or closed; connections that were accepted go on
//	status /health 500         the status code of a path, 200 at first
//
// Each line is acknowledged by the number of lines done so far.
func serveWeb(spec string) int {
	words := strings.Fields(spec)
	var mu sync.Mutex
	status := map[string]int{}
	listeners := map[string]net.Listener{}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		code := cmp.Or(status[r.URL.Path], http.StatusOK)
		mu.Unlock()
		w.Header().Set("Connection", "close")
		w.WriteHeader(code)
		fmt.Fprintln(w, words[0])
	})}
	do := func(words []string) (err error) {
		switch {
		case len(words) == 2 && words[0] == "listen":
			var config net.ListenConfig
			config.SetMultipathTCP(false)
			if listeners[words[1]], err = config.Listen(context.Background(), "tcp", ":"+words[1]); err != nil {
				return err
			}
			go func(l net.Listener) { _ = server.Serve(l) }(listeners[words[1]])
			return nil
		case len(words) == 2 && words[0] == "close":
			return listeners[words[1]].Close()
		case len(words) == 3 && words[0] == "status":
			mu.Lock()
			defer mu.Unlock()
			status[words[1]], err = strconv.Atoi(words[2])
			return err
		}
		return errors.New("no such command")
	}
	run := func(words []string, done int) bool {
		if err := do(words); err != nil {
			fmt.Fprintf(os.Stderr, "%q: %v\n", words, err)
			return false
		}
		fmt.Printf("done %d.\n", done)
		return true
	}
	for _, port := range words[1:] {
		if !run([]string{"listen", port}, 0) {
			return 1
		}
	}
	fmt.Println("serving.")
	commands := bufio.NewScanner(os.Stdin)
	for done := 1; commands.Scan(); done++ {
		if !run(strings.Fields(commands.Text()), done) {
			return 1
		}
	}
	return 0
}

// webServer is such a process on a backend.
type webServer struct {
	backend *rigBackend
	ports   []int
	process *testenv.Process
	input   *os.File
	done    int // commands
}

// serveOn starts a web server on every backend, by name.
func (s *system) serveOn(ports ...int) map[string]*webServer {
	s.t.Helper()
	servers := map[string]*webServer{}
	for _, b := range s.backends {
		w := &webServer{backend: b, ports: ports}
		if err := w.start(); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { w.input.Close() })
		servers[b.name] = w
	}
	return servers
}

func (w *webServer) start() error {
	spec := []string{w.backend.name}
	for _, p := range w.ports {
		spec = append(spec, strconv.Itoa(p))
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	input, commands, err := os.Pipe()
	if err != nil {
		return err
	}
	defer input.Close()
	if w.input != nil {
		w.input.Close() // of the process before
	}
	w.input, w.done = commands, 0
	w.process, err = w.backend.Start(testenv.Cmd{Path: self, Env: []string{webServerEnv + "=" + strings.Join(spec, " ")}, Stdin: input})
	if err != nil {
		return err
	}
	return w.process.WaitOutput(10*time.Second, "serving.")
}

// do gives the server a command, and waits until it is done.
func (w *webServer) do(command string) error {
	w.done++
	if _, err := fmt.Fprintln(w.input, command); err != nil {
		return fmt.Errorf("tell the server of %s %q: %w", w.backend.name, command, err)
	}
	return w.process.WaitOutput(10*time.Second, fmt.Sprintf("done %d.", w.done))
}

// each does the same with one port after the other.
func (w *webServer) each(command string, ports ...int) error {
	for _, p := range ports {
		if err := w.do(command + " " + strconv.Itoa(p)); err != nil {
			return err
		}
	}
	return nil
}

// A client that has waited so long for an answer takes the connection for lost, or for slow.
const (
	lostAfter = 2 * time.Second
	slowAfter = 500 * time.Millisecond
)

// attempt is one request on a connection of its own.
type attempt struct {
	began   time.Time
	took    time.Duration
	backend string // who has answered
	err     error  // why the connection was lost
}

func (r *attempt) slow() bool { return r.err == nil && r.took >= slowAfter }

// steadyLoad is clients that make requests at a fixed rate, whatever becomes of them.
type steadyLoad struct {
	stop     context.CancelFunc
	ended    chan struct{}
	mu       sync.Mutex
	requests []attempt
}

// startLoad requests /name so many times a second from the sources of the client in turn, until stop or wait.
func (s *system) startLoad(to netip.AddrPort, rate int) *steadyLoad {
	ctx, stop := context.WithCancel(context.Background())
	l := &steadyLoad{stop: stop, ended: make(chan struct{})}
	sources := slices.Clone(s.net.Sources4)
	go func() {
		defer close(l.ended)
		var under sync.WaitGroup
		defer under.Wait()
		next := time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			time.Sleep(time.Until(next)) // what is late is made up for
			next = next.Add(time.Second / time.Duration(rate))
			dialer := &testenv.Dialer{Namespace: s.net.Client, Source: sources[i%len(sources)]}
			under.Go(func() {
				r := attempt{began: time.Now()}
				r.backend, r.err = ask(dialer, to)
				r.took = time.Since(r.began)
				l.mu.Lock()
				defer l.mu.Unlock()
				l.requests = append(l.requests, r)
			})
		}
	}()
	s.t.Cleanup(func() { l.wait() })
	return l
}

// ask makes a connection and a request, and returns who has answered.
func ask(d *testenv.Dialer, to netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lostAfter)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/name", nil)
	if err != nil {
		return "", err
	}
	if err := r.Write(conn); err != nil {
		return "", err
	}
	in := bufio.NewReader(conn)
	answer, err := http.ReadResponse(in, r)
	if err != nil {
		return "", err
	}
	name, err := bufio.NewReader(answer.Body).ReadString('\n')
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return strings.TrimSpace(name), err
}

// wait stops the load, and returns all requests in the order in which they began.
func (l *steadyLoad) wait() []attempt {
	l.stop()
	<-l.ended
	slices.SortFunc(l.requests, func(a, b attempt) int { return a.began.Compare(b.began) })
	return l.requests
}

// answeredBy tells when a backend was first asked, at that time or later, with success.
func (l *steadyLoad) answeredBy(backend string, since time.Time) (first time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.requests {
		if r.err == nil && r.backend == backend && !r.began.Before(since) && (first.IsZero() || r.began.Before(first)) {
			first = r.began
		}
	}
	return first
}

// losses is what went wrong in some time.
type losses struct {
	requests, lost, slow int
	lastLost, lastSlow   time.Time // when the last one of them began
	why                  map[string]int
}

// lossesBetween counts the requests that began in a time.
func lossesBetween(requests []attempt, from, to time.Time) losses {
	n := losses{why: map[string]int{}}
	for i := range requests {
		r := &requests[i]
		if r.began.Before(from) || !r.began.Before(to) {
			continue
		}
		n.requests++
		switch {
		case r.err != nil:
			n.lost, n.lastLost = n.lost+1, r.began
			n.why[lossWords(r.err)]++
		case r.slow():
			n.slow, n.lastSlow = n.slow+1, r.began
		}
	}
	return n
}

// lossWords is an error without the addresses.
func lossWords(err error) string {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "no answer"
	}
	words := strings.Split(err.Error(), ": ")
	return words[len(words)-1]
}
