//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/agent/capability"
)

// Limits of those who ask: one short question each, which no more than a few ask at a time.
const (
	askTime   = 2 * time.Second // for the question, and again for the answer
	askHeader = 4 << 10         // bytes
	askers    = 64              // connections; more are closed
)

// teller is what the agent tells those who ask. cookies is stored by Run's goroutine, and read by the server's; what it points to
// never changes. The rest never changes at all.
type teller struct {
	version string
	vips    []netip.Addr
	cookies atomic.Pointer[capability.Cookies] // nil: none are accepted now
}

func (t *teller) answer() capability.Answer {
	return capability.Answer{Version: t.version, VIPs: t.vips, TimeMS: time.Now().UnixMilli(), Cookies: t.cookies.Load()}
}

// checkListen says what is wrong with Config.Listen.
func checkListen(address string, vips []netip.Addr) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("give ADDRESS:PORT, :PORT for all addresses, or off")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q: give a number from 1 to 65535", port)
	}
	if host == "" {
		return nil
	}
	at, err := netip.ParseAddr(host)
	if err != nil {
		return fmt.Errorf("%q is not an address; give one of this host's, or :PORT for all", host)
	}
	if slices.Contains(vips, at.Unmap()) {
		return errors.New("it is a VIP, where clients come; give an address of this host alone")
	}
	return nil
}

// listener takes the connections of those who may ask, at most `askers` at a time.
type listener struct {
	net.Listener
	vips    []netip.Addr   // where nobody may: clients reach them, through a service with that port
	sources []netip.Prefix // who may, beside the host itself; none: anybody
	slots   chan struct{}  // one element for each connection
}

// listen listens where Config.Listen says.
func listen(address string, vips []netip.Addr, sources []netip.Prefix) (*listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		what := ""
		if errors.Is(err, unix.EADDRINUSE) {
			what = "another program has the port: "
		}
		return nil, fmt.Errorf("%w; %sname another address or port with --listen, or --listen off", err, what)
	}
	return &listener{l, vips, sources, make(chan struct{}, askers)}, nil
}

// Accept returns the next connection of one that may ask; others are closed.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.allowed(c) {
			select {
			case l.slots <- struct{}{}:
				return &slotted{c, sync.OnceFunc(func() { <-l.slots })}, nil
			default:
			}
		}
		c.Close()
	}
}

func (l *listener) allowed(c net.Conn) bool {
	from, at := addrOf(c.RemoteAddr()), addrOf(c.LocalAddr())
	if !from.IsValid() || !at.IsValid() || slices.Contains(l.vips, at) {
		return false
	}
	return len(l.sources) == 0 || from.IsLoopback() || slices.ContainsFunc(l.sources, func(p netip.Prefix) bool { return p.Contains(from) })
}

// addrOf is the address of one end of a TCP connection; the zero Addr if the kernel did not tell it.
func addrOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// slotted is a connection that gives its slot back when it is closed.
type slotted struct {
	net.Conn
	release func()
}

func (s *slotted) Close() error {
	defer s.release()
	return s.Conn.Close()
}

// serve answers those who ask, on goroutines of its own, until stop is called. Whatever goes wrong with it is logged and does not
// concern the rest of the agent.
func (l *listener) serve(answer func() capability.Answer, log *slog.Logger) (stop func()) {
	s := &http.Server{
		Handler: capability.Handler(answer), ReadHeaderTimeout: askTime, ReadTimeout: askTime, WriteTimeout: askTime, MaxHeaderBytes: askHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	s.SetKeepAlivesEnabled(false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("those who ask get no answer any more, and nodes may take the host for one without SYN cookies: start the agent again",
				"listen", l.Addr(), "error", err)
		}
	}()
	return func() {
		s.Close()
		<-done
	}
}
