package probe

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/config"
)

// glances says whether a SYN-ACK is all that a check wants.
func (t *Target) glances() bool {
	c := t.Check
	return c.Type == config.CheckTCP && c.Via != config.ViaTunnel && c.TLS == nil && c.Send == "" && c.Expect.Body == "" && c.Expect.BodyRegexp == ""
}

// longestGlance is how long a glance may wait without looking at its context.
const longestGlance = time.Second

// glance is tcp for such a check. It is what ten thousand backends are probed by each other second, so it is done with as
// little as can be: an answer that comes soon costs no further goroutine and no context. One that does not is hedged like all
// others.
func (p *Prober) glance(ctx context.Context, t *Target) (outcome, error) {
	soon := min(t.timeout()/attempts, longestGlance)
	first, pending, err := begin(unix.SOCK_STREAM, 0, t.probed(), true)
	if pending {
		_ = first.SetWriteDeadline(time.Now().Add(soon))
		err = first.await()
	}
	switch {
	case err == nil:
		return saw("connected"), first.Close()
	case !pending:
		return outcome{}, err
	case !errors.Is(err, os.ErrDeadlineExceeded):
		first.Close()
		return outcome{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout()-soon)
	defer cancel()
	conn, err := hedged(ctx, 2, t.timeout()/attempts, func(ctx context.Context, n int) (net.Conn, error) {
		s, pending, err := first, true, error(nil)
		if n > 0 {
			s, pending, err = begin(unix.SOCK_STREAM, 0, t.probed(), true)
		}
		return s.finish(ctx, pending, err)
	})
	if err != nil {
		return outcome{}, err
	}
	return saw("connected"), conn.Close()
}

// tcp connects, and with TLS, something to send or to expect does that too.
func (p *Prober) tcp(ctx context.Context, t *Target) (outcome, error) {
	expected, err := newContent(&t.Check.Expect)
	if err != nil {
		return outcome{}, err
	}
	conn, err := p.address(ctx, t)
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	if expected.any() {
		if t.Check.TLS != nil {
			return saw("connected with TLS"), nil
		}
		return saw("connected"), nil
	}
	if err := expected.arrives(ctx, conn, limit(&t.Check.Expect)); err != nil {
		return outcome{}, after("connected", err)
	}
	return saw("connected, answer has " + expected.words), nil
}

// address connects to t, and sends what its check has to send.
func (p *Prober) address(ctx context.Context, t *Target) (*connection, error) {
	conn, err := p.open(ctx, t, "")
	if err != nil {
		return nil, err
	}
	if err := conn.send(t.Check.Send); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// send writes what a check has to send, if anything.
func (c *connection) send(text string) error {
	data, err := config.Bytes(text)
	if err != nil {
		return lack("send: " + err.Error())
	}
	if len(data) == 0 {
		return nil
	}
	if _, err := c.Write(data); err != nil {
		return after("connected", err)
	}
	return nil
}
