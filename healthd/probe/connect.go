package probe

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/config"
)

// attempts is how often a probe tries to connect, or sends a datagram, at equal distances within its timeout.
const attempts = 3

// connection is a connection to a backend. Reads and writes end when the context of its probe does.
type connection struct {
	net.Conn          // what to speak through: TLS, or the same as below
	below    net.Conn // what to close
	release  func() bool
}

// Close resets the connection. TLS is not told: its farewell could wait for a backend that does not read.
func (c *connection) Close() error {
	c.release()
	return c.below.Close()
}

// open connects to t by TCP, and with TLS if its check says so. protocol is that of ALPN, or empty.
func (p *Prober) open(ctx context.Context, t *Target, protocol string) (*connection, error) {
	c, err := hedged(ctx, 1, t.timeout()/attempts, func(ctx context.Context, _ int) (net.Conn, error) { return p.dial(ctx, "tcp", t) })
	if err != nil {
		return nil, err
	}
	conn := bound(ctx, c)
	if t.Check.TLS == nil {
		return conn, nil
	}
	if err := p.secure(ctx, t, conn, protocol); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// secure shakes hands. In TLS 1.3 a backend that refuses the client's certificate says so only after that, to whoever reads on.
func (p *Prober) secure(ctx context.Context, t *Target, conn *connection, protocol string) error {
	c, err := p.tls.config(t)
	if err != nil {
		return err
	}
	if protocol != "" {
		c.NextProtos = []string{protocol}
	}
	secured := tls.Client(conn.below, c)
	if err := secured.HandshakeContext(ctx); err != nil {
		return after("connected, TLS handshake begun", err)
	}
	if protocol != "" && secured.ConnectionState().NegotiatedProtocol != protocol {
		return bad("the backend does not offer HTTP/2 over TLS (ALPN " + protocol + ")")
	}
	conn.Conn = secured
	return nil
}

// dial makes one attempt to connect.
func (p *Prober) dial(ctx context.Context, network string, t *Target) (net.Conn, error) {
	switch {
	case t.Check.Via == config.ViaTunnel && t.Dial == nil:
		return nil, lack("via: tunnel is not available here; it needs CAP_NET_RAW (AmbientCapabilities= of the unit)")
	case t.Check.Via == config.ViaTunnel:
		return t.Dial(ctx, network)
	}
	kind := unix.SOCK_STREAM
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	return connect(ctx, kind, 0, t.probed())
}

// bound ties what is read and written to ctx.
func bound(ctx context.Context, c net.Conn) *connection {
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	return &connection{c, c, context.AfterFunc(ctx, func() { _ = c.SetDeadline(longAgo) })}
}

// hedged makes so many attempts at once, and another beside them each time that pause has passed, as many as attempts in all; attempt is
// told which one it is, from 0. It returns the first connection, or the first error: a backend that refuses one
// refuses all. What comes later is closed.
func hedged(ctx context.Context, atOnce int, pause time.Duration, attempt func(ctx context.Context, n int) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type end struct {
		conn net.Conn
		err  error
	}
	ends := make(chan end)
	started := 0
	start := func() {
		n := started
		started++
		go func() {
			conn, err := attempt(ctx, n)
			select {
			case ends <- end{conn, err}:
			case <-ctx.Done():
				if err == nil {
					conn.Close()
				}
			}
		}()
	}
	for range atOnce {
		start()
	}
	again := time.NewTicker(max(pause, time.Millisecond))
	defer again.Stop()
	for {
		select {
		case e := <-ends:
			return e.conn, e.err
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-again.C:
			if started < attempts {
				start()
			}
		}
	}
}
