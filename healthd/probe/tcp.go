package probe

import (
	"context"

	"github.com/sluice-lb/sluice/internal/config"
)

// tcp connects, and with TLS, something to send or to expect does that too.
func (p *Prober) tcp(ctx context.Context, t *Target) (outcome, error) {
	expected, err := newContent(&t.Check.Expect)
	if err != nil {
		return outcome{}, err
	}
	conn, err := p.open(ctx, t, "")
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	if err := conn.send(t.Check.Send); err != nil {
		return outcome{}, err
	}
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
