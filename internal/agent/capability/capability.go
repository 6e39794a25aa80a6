// Package capability is what an agent on a backend tells about itself to those who ask over the network: the health daemon, and
// `sluice check`. It is HTTP with one path, GET /v1/agent, and JSON; nothing in it is secret, and nothing can be changed by it.
// Both sides are here, so that they agree. It imports neither the agent nor the nodes' configuration.
package capability

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

const (
	// DefaultPort is the TCP port that agents listen on.
	DefaultPort = 9546
	// Path is the only one that is served.
	Path = "/v1/agent"

	maxAnswer = 1 << 20 // bytes
)

// Answer is what an agent tells.
type Answer struct {
	Version string       `json:"version"` // of the program
	VIPs    []netip.Addr `json:"vips"`    // that it takes tunnelled packets for; without those of NAT
	TimeMS  int64        `json:"time_ms"` // the host's time of day, ms since 1970
	// Cookies is nil if it accepts no SYN cookies.
	Cookies *Cookies `json:"cookies,omitempty"`
}

// Cookies is how an agent accepts SYN cookies.
type Cookies struct {
	Version int    `json:"version"` // of how cookies are made: guard.CookieVersion
	Key     string `json:"key"`     // names the secret: guard.CookieKeyID
	IPv4    bool   `json:"ipv4"`
	IPv6    bool   `json:"ipv6"`
	// What the host's sysctls allow to be agreed to in its name.
	WindowScale bool `json:"window_scale"`
	SACK        bool `json:"sack"`
	Timestamps  bool `json:"timestamps"`
	ECN         bool `json:"ecn"`
	// NAT tells which VIP and port a connection to an address of the host was to, before a node rewrote it.
	NAT []Mapping `json:"nat,omitempty"`
}

// Mapping is one address and port of a backend behind a service with forward: nat.
type Mapping struct {
	VIP   netip.AddrPort `json:"vip"`
	Local netip.AddrPort `json:"local"`
}

// String is VIP:PORT=ADDRESS:PORT, as the agent's --nat takes it.
func (m Mapping) String() string { return m.VIP.String() + "=" + m.Local.String() }

// Handler serves what answer returns.
func Handler(answer func() Answer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer()) // an Answer always can be encoded; who has gone needs none
	})
	return mux
}

// client never keeps a connection: agents are asked seldom, and an old connection would hide that a new one is refused.
var client = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, Proxy: nil, MaxResponseHeaderBytes: 1 << 14},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Ask asks the agent at an address. Its errors say in words what an operator has to look at.
func Ask(ctx context.Context, to netip.AddrPort) (Answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+Path, nil)
	if err != nil {
		return Answer{}, err
	}
	response, err := client.Do(request)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Answer{}, fmt.Errorf("nothing listens on %v: sluice-agent does not run there, or without --cookie-seed", to)
	case errors.Is(err, context.DeadlineExceeded):
		return Answer{}, fmt.Errorf("no answer from %v: no agent there, or a firewall", to)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return Answer{}, fmt.Errorf("the agent at %v closes the connection: this host is not among its --source, or too many ask", to)
	case err != nil:
		return Answer{}, fmt.Errorf("ask the agent: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return Answer{}, fmt.Errorf("what listens on %v answers %s to %s: it is no agent", to, response.Status, Path)
	}
	var a Answer
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&a); err != nil {
		return Answer{}, fmt.Errorf("what listens on %v is no agent: %w", to, err)
	}
	return a, nil
}

// Skew is by how much the answering host's time of day is ahead of the asking one's, to within the time that asking took.
func (a *Answer) Skew(now time.Time) time.Duration { return time.UnixMilli(a.TimeMS).Sub(now) }
