package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// APIError is an answer that is not a success.
type APIError struct {
	Code    int // HTTP status
	Message string
}

// Error returns the message.
func (e *APIError) Error() string { return e.Message }

const (
	answerTimeout = 10 * time.Second // of a request that does not wait
	reloadTimeout = time.Minute
	maxAnswer     = 256 << 20 // a status of 2^18 backends
)

// Client speaks to a daemon on this machine. It keeps a connection open between calls and makes a new one when the
// daemon has started again.
type Client struct {
	socket string
	http   http.Client
	source atomic.Value // string: of the last report, if there was one
}

// NewClient returns a client of the daemon whose socket is at path. It connects at the first call.
func NewClient(path string) *Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		MaxIdleConnsPerHost: 3, // one waits for targets, one reports, one follows signals
		IdleConnTimeout:     idleTimeout / 2,
	}
	return &Client{socket: path, http: http.Client{Transport: transport}}
}

// Close closes connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns what the daemon tells about itself.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "/v1/status", nil, &s, answerTimeout)
}

// Version returns the daemon's version.
func (c *Client) Version(ctx context.Context) (v VersionInfo, err error) {
	return v, c.call(ctx, http.MethodGet, "/v1/version", nil, &v, answerTimeout)
}

// Reload makes the daemon read its configuration file again. A file that it refuses is a *config.Error.
func (c *Client) Reload(ctx context.Context) (r ReloadResult, err error) {
	return r, c.call(ctx, http.MethodPost, "/v1/reload", nil, &r, reloadTimeout)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode != http.StatusOK {
		return failure(resp, answer)
	}
	if err := json.NewDecoder(answer).Decode(out); err != nil {
		return fmt.Errorf("read the answer of %s: %w; are daemon and client of one version?", c.socket, err)
	}
	// What is left is a line end. Read, it lets the connection be used again.
	_, _ = io.Copy(io.Discard, answer)
	return nil
}

// send asks, and returns an answer whose body the caller closes.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://sluice"+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	return resp, nil
}

// failure returns the error that the daemon meant.
func failure(resp *http.Response, answer io.Reader) error {
	var body ErrorBody
	if err := json.NewDecoder(answer).Decode(&body); err != nil || body.Error == "" {
		body.Error = resp.Status
	}
	switch {
	case resp.StatusCode == http.StatusConflict && body.Error == ErrResync.Error():
		return ErrResync
	case resp.StatusCode == http.StatusConflict: // also in other words: after ErrBoot, too, everything is sent
		return ErrBoot
	case resp.StatusCode == http.StatusUnprocessableEntity && len(body.Details) > 0:
		return &config.Error{Problems: body.Details}
	}
	return &APIError{Code: resp.StatusCode, Message: body.Error}
}

// explain says what to do when the daemon cannot be reached.
func (c *Client) explain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // without "Get http://sluice/…", which nobody has typed
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w; is sluice running? systemctl status sluice tells, and --socket names another socket", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; run as root or as a member of control.group", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer from %s in time: %w", c.socket, err)
	}
	return fmt.Errorf("ask %s: %w", c.socket, err)
}
