// Package probe makes one probe of one backend, of every kind that a check can be: tcp, http, https, http2, grpc, udp, dns, ping,
// exec and agent. It knows nothing of intervals, of what came before, or of who hears about it.
//
// A probe sees what a new client would see: it has a connection of its own, which is reset at its end, so that nothing of it
// stays in TIME_WAIT here or at the backend. Its timeout covers everything, from the first SYN to the last byte, and every read
// is bounded, so that a backend that drips, or never stops, costs no more than one that is silent.
//
// A lost SYN is sent again after a second, which is the whole of a usual timeout. So a third of the timeout after an attempt to
// connect another one starts beside it, at most three in all, and the first that succeeds is used; datagrams are sent again in
// the same way. Some loss is not a backend's failure.
//
// What a probe fails for is either the backend's doing, or the node's: then [Result.Nothing] is set, and it says nothing about the
// backend. Either way there is one line of words for the operator.
//
// Connections are sockets made here (socket_linux.go), or come from [Target.Dial] for checks that go the way data goes. HTTP/1.1
// is spoken over them with [http.ReadResponse], HTTP/2 with [http.Transport]. gRPC's one call is a POST over HTTP/2 with two
// small messages, made and read here: the library for it would add 6 MB to the 9 MB of sluice-healthd, and brings its own ideas
// of when to connect again, and of what went wrong.
//
// Programs of exec checks are run through the program itself, see [Exec].
package probe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sluice-lb/sluice/internal/config"
)

// Target is a backend, and how to probe it.
type Target struct {
	Service, Backend string
	Address          netip.Addr // the backend's own
	VIP              netip.Addr // what is probed on the backend with via: tunnel
	Check            *config.Check
	// Dial connects to the VIP on the backend the way data goes, for checks with via: tunnel; the network is tcp or udp. Errors
	// wrap those of system calls; a connection resets when it is closed. nil: such a probe gives Nothing.
	Dial func(ctx context.Context, network string) (net.Conn, error)
}

// probed is the address and port that the probe is for.
func (t *Target) probed() netip.AddrPort {
	if t.Check.Via == config.ViaTunnel {
		return netip.AddrPortFrom(t.VIP, t.Check.Port)
	}
	return netip.AddrPortFrom(t.Address, t.Check.Port)
}

// host is what the backend is called in HTTP.
func (t *Target) host() string {
	if t.Check.Host != "" {
		return t.Check.Host
	}
	return t.probed().String()
}

// timeout covers all of a probe.
func (t *Target) timeout() time.Duration { return time.Duration(t.Check.Timeout) }

// Result is what a probe saw.
type Result struct {
	Good     bool
	Nothing  bool          // it failed for want of something on this node, and says nothing about the backend; never with Good
	Evidence string        // for the operator: one short line, never empty
	Asks     int           // percent of its share of new flows that the backend asks for, 0 to 100; -1: it did not ask
	Latency  time.Duration // from the start of the probe to its result
}

// Options are what all probes have in common.
type Options struct {
	// UserAgent is the header of HTTP requests.
	UserAgent string
}

// Prober makes probes. Any number of goroutines may use it.
type Prober struct {
	o     Options
	tls   tlsCache
	execs chan struct{} // a place for each program that runs
}

// New returns a Prober. It holds no descriptors and no goroutines between probes.
func New(o Options) *Prober {
	return &Prober{o: o, execs: make(chan struct{}, maxExecs)}
}

// outcome is what a good probe saw.
type outcome struct {
	evidence string
	asks     int // as in Result
}

// saw is the outcome of a backend that asks for nothing.
func saw(evidence string) outcome { return outcome{evidence, -1} }

// Probe makes one probe of t, and returns soon after the check's timeout at the latest, or after ctx is done. A program may wait as
// long again for its turn.
func (p *Prober) Probe(ctx context.Context, t *Target) Result {
	start := time.Now()
	within, cancel := ctx, context.CancelFunc(func() {})
	if t.Check.Type != config.CheckExec && !t.glances() { // their time is their own: a program's begins when there is a place for it
		within, cancel = context.WithTimeout(ctx, t.timeout())
	}
	defer cancel()
	good, err := p.probe(within, t)
	r := Result{Good: err == nil, Latency: time.Since(start), Asks: -1}
	switch {
	case err == nil:
		r.Evidence, r.Asks = good.evidence, good.asks
	case over(ctx):
		r.Nothing, r.Evidence = true, "the probe was given up"
	default:
		r.Nothing, r.Evidence = failure(err, t.timeout())
	}
	r.Evidence = oneLine(r.Evidence)
	return r
}

// over reports whether ctx is done, or about to be: sockets may notice its deadline first.
func over(ctx context.Context) bool {
	deadline, limited := ctx.Deadline()
	return ctx.Err() != nil || limited && !time.Now().Before(deadline)
}

func (p *Prober) probe(ctx context.Context, t *Target) (outcome, error) {
	switch t.Check.Type {
	case config.CheckTCP:
		if t.glances() {
			return p.glance(ctx, t)
		}
		return p.tcp(ctx, t)
	case config.CheckHTTP, config.CheckHTTPS, config.CheckHTTP2:
		return p.http(ctx, t)
	case config.CheckGRPC:
		return p.grpc(ctx, t)
	case config.CheckUDP:
		return p.udp(ctx, t)
	case config.CheckDNS:
		return p.dns(ctx, t)
	case config.CheckPing:
		return p.ping(ctx, t)
	case config.CheckExec:
		return p.exec(ctx, t)
	case config.CheckAgent:
		return p.agent(ctx, t)
	}
	// A newer daemon may know more types.
	return outcome{}, lack(fmt.Sprintf("checks of type %q are not known to this sluice-healthd: update it", t.Check.Type))
}

// maxEvidence is how long evidence may be, in bytes: what backends and programs say is in it.
const maxEvidence = 240

// oneLine makes text of anywhere fit for a line of a log or table.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) { // which a newline and a broken byte are not
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.TrimSpace(s)
	if len(s) > maxEvidence {
		s = strings.ToValidUTF8(s[:maxEvidence], "") + "…"
	}
	return s
}

// quoted is the beginning of an answer, for evidence.
func quoted(data []byte) string {
	const most = 60
	if len(data) > most {
		return strconv.Quote(string(data[:most])) + "…"
	}
	return strconv.Quote(string(data))
}
