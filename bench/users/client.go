//go:build linux

package users

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/affinity"
	"github.com/sluice-lb/sluice/testenv"
)

// client makes HTTP requests at a fixed rate, evenly spaced, on connections that stay. A request is due at its time, whether or
// not those before it are answered, and how long it took is counted from then; so a system that stalls cannot hide the requests
// that it kept from being made. It is one thread on one core, with ppoll, since the timers of Go's runtime are too coarse.
type client struct {
	ns          *testenv.Namespace
	core        int
	to          netip.AddrPort
	connections int
}

// conn is a connection of a client.
type conn struct {
	fd       int
	response int           // bytes of an answer: always the same file
	got      int           // of the answer that it waits for
	due      time.Duration // since the start, of the request that it has made
	busy     bool
}

const (
	answerLimit = 5 * time.Second
	pageRequest = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
)

// run makes rate requests a second for a time. failed are those that were not answered well, or not within five seconds after
// the end.
func (c *client) run(ctx context.Context, rate float64, d time.Duration) (took []time.Duration, failed int, err error) {
	err = c.ns.Do(func() (err error) {
		restore, err := ownCore(c.core)
		if err != nil {
			return err
		}
		defer restore()
		conns := make([]conn, c.connections)
		for i := range conns {
			conns[i].fd = -1
		}
		defer func() {
			for _, conn := range conns {
				if conn.fd >= 0 {
					_ = unix.Close(conn.fd)
				}
			}
		}()
		for i := range conns {
			if err := c.open(&conns[i]); err != nil {
				return fmt.Errorf("connection %d to %v: %w", i+1, c.to, err)
			}
		}
		took, failed, err = pace(ctx, conns, rate, d)
		return err
	})
	return took, failed, err
}

// ownCore moves the calling thread, which is locked, to a core with exact timers, until restore is called.
func ownCore(core int) (restore func(), err error) {
	before, err := affinity.Allowed()
	if err != nil {
		return nil, err
	}
	if err := affinity.Pin(core); err != nil {
		return nil, err
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	return func() {
		_ = affinity.Pin(before...)
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // 0: the default
	}, nil
}

// open connects and makes a first request, which tells how long answers are.
func (c *client) open(n *conn) (err error) {
	n.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	limit := unix.NsecToTimeval(int64(answerLimit))
	err = errors.Join(
		unix.SetsockoptTimeval(n.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptTimeval(n.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptInt(n.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	if err != nil {
		return err
	}
	if err := unix.Connect(n.fd, &unix.SockaddrInet4{Port: int(c.to.Port()), Addr: c.to.Addr().As4()}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if _, err := unix.Write(n.fd, []byte(pageRequest)); err != nil {
		return fmt.Errorf("first request: %w", err)
	}
	var buf [4096]byte
	for n.got = 0; n.response == 0 || n.got < n.response; {
		read, err := unix.Read(n.fd, buf[n.got:])
		if err == nil && read == 0 {
			err = errors.New("it was closed, or the answer is too long")
		}
		if err != nil {
			return fmt.Errorf("first answer: %w", err)
		}
		n.got += read
		if n.response, err = answerLength(buf[:n.got]); err != nil {
			return err
		}
	}
	return unix.SetNonblock(n.fd, true)
}

// answerLength returns how many bytes an answer has by its head; 0: the head is not complete.
func answerLength(b []byte) (int, error) {
	head, _, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	if !ok {
		return 0, nil
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("answer begins %q, expected status 200", head[:min(len(head), 40)])
	}
	for line := range bytes.Lines(head) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			return len(head) + 4 + n, err
		}
	}
	return 0, errors.New("answer without Content-Length")
}

// pacer is a run of a client, on connections that are open.
type pacer struct {
	conns  []conn
	fds    []unix.PollFd // of the connections, in their order; -1: it is closed
	idle   []int         // connections without a request, the longest idle first, so that all are used
	start  time.Time
	open   int // connections that are not closed
	took   []time.Duration
	failed int
}

// pace makes the requests.
func pace(ctx context.Context, conns []conn, rate float64, d time.Duration) (took []time.Duration, failed int, err error) {
	total := max(1, int(rate*d.Seconds()))
	due := func(i int) time.Duration { return time.Duration(float64(i) / rate * float64(time.Second)) }
	p := pacer{conns: conns, open: len(conns), took: make([]time.Duration, 0, total)}
	for i := range conns {
		p.fds = append(p.fds, unix.PollFd{Fd: int32(conns[i].fd), Events: unix.POLLIN})
		p.idle = append(p.idle, i)
	}
	p.start = time.Now()
	for made := 0; len(p.took)+p.failed < total && p.open > 0; {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		now := time.Since(p.start)
		if now > d+answerLimit {
			break
		}
		for made < total && len(p.idle) > 0 && due(made) <= now {
			p.ask(due(made))
			made++
		}
		wait := 100 * time.Millisecond
		if made < total && len(p.idle) > 0 {
			wait = min(wait, max(0, due(made)-time.Since(p.start)))
		}
		timeout := unix.NsecToTimespec(int64(wait))
		if _, err := unix.Ppoll(p.fds, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return nil, 0, fmt.Errorf("poll: %w", err)
		}
		for i := range p.fds {
			if p.fds[i].Revents != 0 {
				p.hear(i)
			}
		}
	}
	return p.took, total - len(p.took), nil // those that could not be made have failed, too
}

// ask makes a request on the connection that is idle for longest.
func (p *pacer) ask(due time.Duration) {
	i := p.idle[0]
	p.idle = append(p.idle[:0], p.idle[1:]...)
	c := &p.conns[i]
	c.due, c.got, c.busy = due, 0, true
	if _, err := unix.Write(c.fd, []byte(pageRequest)); err != nil {
		p.drop(i)
	}
}

// hear reads what there is on a connection.
func (p *pacer) hear(i int) {
	c := &p.conns[i]
	var buf [4096]byte
	n, err := unix.Read(c.fd, buf[:])
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if err != nil || n == 0 || !c.busy || c.got+n > c.response {
		p.drop(i)
		return
	}
	if c.got += n; c.got == c.response {
		p.took = append(p.took, time.Since(p.start)-c.due)
		c.busy = false
		p.idle = append(p.idle, i)
	}
}

// drop gives a connection up, which fails the request on it. No other is opened in its place.
func (p *pacer) drop(i int) {
	if c := &p.conns[i]; c.busy {
		p.failed++
	} else {
		p.idle = slices.DeleteFunc(p.idle, func(j int) bool { return j == i })
	}
	p.fds[i].Fd = -1
	p.open--
}
