package healthd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// result is what one probe saw.
type result struct {
	good     bool
	nothing  bool   // the probe failed for want of something on this node: it says nothing about the backend
	evidence string // in words, for the operator
}

const (
	// maxBody is how much of an answer's body is read: enough for any health page, and an endless one ends there.
	maxBody = 64 << 10
	// maxHeader bounds the header of an answer.
	maxHeader = 32 << 10
)

// prober makes probes. Each one has a connection of its own, so that it sees what a new client would see. It may be
// used by any number of goroutines.
type prober struct {
	dialer    net.Dialer
	client    http.Client
	userAgent string
}

func newProber(userAgent string) *prober {
	p := &prober{userAgent: userAgent}
	p.dialer.KeepAlive = -1
	// A backend's clients speak plain TCP to it through the forwarder, and so does the probe.
	p.dialer.SetMultipathTCP(false)
	p.client = http.Client{
		Transport: &http.Transport{
			DialContext:            p.dial,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeader,
		},
		// A redirect is an answer (it is below 400); where it leads is not the backend's health.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return p
}

// dial connects. The connection is reset when it is closed, not shut down in order: a thousand backends probed every
// two seconds would otherwise leave 30,000 sockets in TIME_WAIT.
func (p *prober) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := p.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // only costs the TIME_WAIT
	}
	return conn, nil
}

// probe makes one probe of addr, within the check's timeout, which covers everything from the first SYN to the last
// byte. addr is the backend's own address with the check's port.
func (p *prober) probe(ctx context.Context, addr netip.AddrPort, check config.Check) result {
	timeout := time.Duration(check.Timeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var evidence string
	var err error
	if check.Type == config.CheckHTTP {
		evidence, err = p.get(ctx, addr, check.Path)
	} else {
		evidence, err = p.connect(ctx, addr)
	}
	if err != nil {
		return failure(err, timeout)
	}
	return result{good: true, evidence: evidence}
}

func (p *prober) connect(ctx context.Context, addr netip.AddrPort) (evidence string, err error) {
	conn, err := p.dial(ctx, "tcp", addr.String())
	if err != nil {
		return "", err
	}
	_ = conn.Close()
	return "connected", nil
}

// statusError is an answer of an HTTP server that is not a good one.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("HTTP %d", int(e)) }

func (p *prober) get(ctx context.Context, addr netip.AddrPort, path string) (evidence string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr.String()+path, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", p.userAgent)
	resp, err := p.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, maxBody); err != nil && err != io.EOF {
		return "", err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return "", statusError(resp.StatusCode)
	}
	return statusError(resp.StatusCode).Error(), nil
}

// failure puts an error into words. The address is left out: the report names the backend anyway.
func failure(err error, timeout time.Duration) result {
	for _, local := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, local) {
			return result{nothing: true, evidence: fmt.Sprintf("this node cannot probe: %v", local)}
		}
	}
	var status statusError
	var neterr net.Error
	var urlerr *url.Error
	switch {
	case errors.As(err, &status):
		return result{evidence: status.Error()}
	case errors.Is(err, context.Canceled):
		return result{nothing: true, evidence: "the probe was given up"}
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &neterr) && neterr.Timeout():
		return result{evidence: fmt.Sprintf("no answer within %v", timeout)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return result{evidence: "connection refused"}
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return result{evidence: "connection reset by the backend"}
	case errors.Is(err, syscall.EHOSTUNREACH):
		return result{evidence: "no route to host"}
	case errors.Is(err, syscall.ENETUNREACH):
		return result{evidence: "network unreachable"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return result{evidence: "connection closed before the answer was complete"}
	case errors.As(err, &urlerr):
		err = urlerr.Err
	}
	if strings.Contains(err.Error(), "malformed") { // net/http has no error values for it
		return result{evidence: "the answer is not HTTP"}
	}
	return result{evidence: err.Error()}
}
