package control

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// walkTimeout is for an answer that takes a walk through the flow table.
const walkTimeout = time.Minute

// Drain takes a backend out by hand, and returns how it stands then; see Book.Drain. A timeout of 0 is none.
func (c *Client) Drain(ctx context.Context, service, backend string, timeout time.Duration) (r DrainResult, err error) {
	q := DrainRequest{Service: service, Backend: backend}
	if timeout != 0 {
		q.Timeout = timeout.String()
	}
	return r, c.call(ctx, http.MethodPost, "/v1/drain", &q, &r, answerTimeout)
}

// Undrain takes back what Drain did.
func (c *Client) Undrain(ctx context.Context, service, backend string) (r DrainResult, err error) {
	return r, c.call(ctx, http.MethodPost, "/v1/undrain", &DrainRequest{Service: service, Backend: backend}, &r, answerTimeout)
}

// Flows returns how many flows there are, by service, backend, state and age.
func (c *Client) Flows(ctx context.Context, f FlowFilter) (r FlowsReport, err error) {
	query := url.Values{}
	for name, value := range map[string]string{"service": f.Service, "backend": f.Backend, "state": f.State} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return r, c.call(ctx, http.MethodGet, "/v1/flows?"+query.Encode(), nil, &r, walkTimeout)
}

// Flow returns what becomes of the next packet of one flow.
func (c *Client) Flow(ctx context.Context, q FlowQuery) (r FlowReport, err error) {
	query := url.Values{"source": {q.Source.String()}, "destination": {q.Destination.String()}, "protocol": {q.Protocol}}
	return r, c.call(ctx, http.MethodGet, "/v1/flows/one?"+query.Encode(), nil, &r, answerTimeout)
}

// TopSources returns the n sources, 1 to 1000, that have done most of something lately: flows with a word, syns or packets.
func (c *Client) TopSources(ctx context.Context, by string, n int) (r TopReport, err error) {
	query := url.Values{"by": {by}, "n": {strconv.Itoa(n)}}
	return r, c.call(ctx, http.MethodGet, "/v1/flows/top?"+query.Encode(), nil, &r, answerTimeout)
}
