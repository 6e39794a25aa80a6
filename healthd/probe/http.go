package probe

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// maxHeader bounds the header of an answer, in bytes.
const maxHeader = 32 << 10

// http asks with GET. A redirect is an answer: where it leads is not the backend's health.
func (p *Prober) http(ctx context.Context, t *Target) (outcome, error) {
	e := &t.Check.Expect
	expected, err := newContent(e)
	if err != nil {
		return outcome{}, err
	}
	req, err := p.request(ctx, t, http.MethodGet, t.Check.Path, nil)
	if err != nil {
		return outcome{}, err
	}
	speak, protocol := speakHTTP1, "" // every server speaks it, whether it says so or not
	if t.Check.Type == config.CheckHTTP2 {
		speak, protocol = speakHTTP2, "h2"
	}
	conn, err := p.open(ctx, t, protocol)
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	resp, err := speak(conn, req)
	if err != nil {
		return outcome{}, err
	}
	defer resp.Body.Close()
	status := fmt.Sprintf("HTTP %d", resp.StatusCode)
	good := e.Status
	if len(good) == 0 {
		good = config.Ranges{"200-399"} // for a check that does not come from a file
	}
	if !good.Holds(resp.StatusCode) {
		return outcome{}, bad(status + ", expected " + strings.Join(good, ", "))
	}
	for _, want := range e.Headers {
		if err := hasHeader(resp.Header, want); err != nil {
			return outcome{}, bad(status + ", but " + err.Error())
		}
	}
	body := io.LimitReader(resp.Body, int64(limit(e)))
	var data []byte
	if expected.any() {
		_, err = io.Copy(io.Discard, body)
	} else {
		data, err = io.ReadAll(body)
	}
	if err != nil {
		return outcome{}, after(status, err)
	}
	if err := expected.check(data); err != nil {
		return outcome{}, bad(status + ", but " + err.Error())
	}
	return weighed(resp.Header, t.Check.WeightHeader, status), nil
}

// request makes a request to t.
func (p *Prober) request(ctx context.Context, t *Target, method, path string, body io.Reader) (*http.Request, error) {
	scheme := "http"
	if t.Check.TLS != nil {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, method, scheme+"://"+t.host()+path, body)
	if err != nil {
		return nil, lack(err.Error())
	}
	req.Header.Set("User-Agent", p.o.UserAgent)
	req.Close = true
	return req, nil
}

// speakHTTP1 makes a request on conn, and reads the header of the answer.
func speakHTTP1(conn *connection, req *http.Request) (*http.Response, error) {
	if err := req.Write(conn); err != nil {
		return nil, after("connected", err)
	}
	in := &io.LimitedReader{R: conn, N: maxHeader}
	r := bufio.NewReader(in)
	const version = "HTTP/"
	begin, err := r.Peek(len(version))
	if len(begin) > 0 && !strings.HasPrefix(version, string(begin)) {
		return nil, bad("the answer is not HTTP: it begins with " + quoted(begin))
	}
	if err != nil {
		return nil, after("connected", err)
	}
	for {
		resp, err := http.ReadResponse(r, req)
		switch {
		case err == nil && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols: // more is to come
		case err == nil:
			in.N = math.MaxInt64 // what is read of the body is bounded by who reads it
			return resp, nil
		case in.N <= 0:
			return nil, bad(fmt.Sprintf("the header of the answer is longer than %d KiB", maxHeader>>10))
		case timedOut(err), ended(err), isErrno(err):
			return nil, after("connected", err)
		default: // net/http has no type for it
			return nil, bad("the answer is not HTTP: " + err.Error())
		}
	}
}

// speakHTTP2 is speakHTTP1 in HTTP/2, without TLS by prior knowledge (RFC 9113, 3.3).
func speakHTTP2(conn *connection, req *http.Request) (*http.Response, error) {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	dial := func(context.Context, string, string) (net.Conn, error) { return conn.Conn, nil }
	// A transport knows how to make connections and keep them. This one has a single one, and ends with it.
	transport := &http.Transport{
		DialContext:            dial,
		DialTLSContext:         dial,
		Protocols:              &protocols,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
	}
	resp, err := transport.RoundTrip(req)
	switch {
	case err == nil:
		return resp, nil
	case timedOut(err), ended(err), isErrno(err):
		return nil, after("connected", err)
	}
	if tlsWords(err, time.Now()) != "" {
		return nil, err
	}
	return nil, bad("the answer is not HTTP/2: " + strings.TrimPrefix(err.Error(), "http2: "))
}

// hasHeader says what is missing, if the header does not have what is wanted: "Name: value", or "Name" for any value.
func hasHeader(h http.Header, want string) error {
	name, value, exact := strings.Cut(want, ":")
	got := h.Values(name)
	switch value = strings.TrimSpace(value); {
	case len(got) == 0:
		return fmt.Errorf("there is no header %s", name)
	case exact && !slices.Contains(got, value):
		return fmt.Errorf("the header %s is %q, expected %q", name, strings.Join(got, ", "), value)
	}
	return nil
}

// weighed is a good answer, with the share that its header asks for. What cannot be had is ignored, aloud: a typing error in a
// header is no reason to take a backend down.
func weighed(h http.Header, name, status string) outcome {
	if name == "" || len(h.Values(name)) == 0 {
		return saw(status)
	}
	n, ok := percent(h.Get(name))
	if !ok {
		return saw(fmt.Sprintf("%s; %s is %q, not 0 to 100, and ignored", status, name, h.Get(name)))
	}
	return outcome{fmt.Sprintf("%s, asks for %d%%", status, n), n}
}
