package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Targets returns what is to be probed. If boot and generation name what the caller has, the daemon answers when there
// is something newer, or after wait (at most a minute) with the same.
func (c *Client) Targets(ctx context.Context, boot string, generation uint64, wait time.Duration) (t Targets, err error) {
	query := url.Values{"boot": {boot}, "generation": {strconv.FormatUint(generation, 10)}, "wait": {wait.String()}}
	if source, ok := c.source.Load().(string); ok { // the daemon is to know that this connection is the reporter's, too
		query.Set("source", source)
	}
	return t, c.call(ctx, http.MethodGet, "/v1/health/targets?"+query.Encode(), nil, &t, wait+answerTimeout)
}

// Report tells the daemon what is known about health. After ErrBoot, which means that it has started again since the
// targets that the report answers, and after ErrResync everything is to be sent. While another health daemon reports, the
// error is an *APIError with code 423.
func (c *Client) Report(ctx context.Context, r HealthReport) (a HealthAnswer, err error) {
	c.source.Store(r.Source)
	return a, c.call(ctx, http.MethodPut, "/v1/health", &r, &a, answerTimeout)
}

// Health returns everything about the health of the services and backends that f leaves in.
func (c *Client) Health(ctx context.Context, f EventFilter) (d HealthDetail, err error) {
	return d, c.call(ctx, http.MethodGet, "/v1/health?"+f.query().Encode(), nil, &d, answerTimeout)
}

// Events returns what has happened after an event of the daemon's start boot; see Book.Events. It waits, at most a minute,
// until there is something.
func (c *Client) Events(ctx context.Context, boot string, after uint64, f EventFilter, wait time.Duration) (e Events, err error) {
	query := f.query()
	query.Set("boot", boot)
	query.Set("after", strconv.FormatUint(after, 10))
	query.Set("wait", wait.String())
	return e, c.call(ctx, http.MethodGet, "/v1/events?"+query.Encode(), nil, &e, wait+answerTimeout)
}

func (f EventFilter) query() url.Values {
	query := url.Values{}
	if f.Service != "" {
		query.Set("service", f.Service)
	}
	if f.Backend != "" {
		query.Set("backend", f.Backend)
	}
	return query
}

// Maintenance puts a backend into maintenance, or ends that, and returns how it stands then; see Book.Maintenance.
func (c *Client) Maintenance(ctx context.Context, service, backend string, on bool) (r DrainResult, err error) {
	return r, c.call(ctx, http.MethodPost, "/v1/maintenance", &MaintenanceRequest{service, backend, on}, &r, answerTimeout)
}

// Signals calls each with how connections to backends fare, until ctx ends, each returns an error, which is returned then, or
// the daemon ends. A line comes twice a second at least; without one for some seconds the daemon counts as gone. Who does not
// come back from each for some seconds is cut off.
func (c *Client) Signals(ctx context.Context, each func(SignalsLine) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(answerTimeout, func() { cancel(context.DeadlineExceeded) })
	defer silence.Stop()
	resp, err := c.send(ctx, http.MethodGet, "/v1/health/signals", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return failure(resp, io.LimitReader(resp.Body, maxAnswer))
	}
	lines := json.NewDecoder(resp.Body)
	for {
		var line SignalsLine
		if err := lines.Decode(&line); err != nil {
			switch {
			case errors.Is(err, io.EOF):
				return fmt.Errorf("%s has ended the signals", c.socket)
			case ctx.Err() != nil:
				return fmt.Errorf("signals of %s: %w", c.socket, context.Cause(ctx))
			}
			return fmt.Errorf("signals of %s: %w", c.socket, err)
		}
		silence.Reset(answerTimeout)
		if err := each(line); err != nil {
			return err
		}
	}
}
