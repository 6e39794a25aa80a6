package control

import (
	"net/netip"
	"time"

	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/internal/config"
)

// Health is what the health daemon says about a backend.
type Health struct {
	State    State     `json:"state"`
	Since    time.Time `json:"since,omitzero"`     // when the state began
	Cause    Cause     `json:"cause,omitempty"`    // what decided it
	Evidence string    `json:"evidence,omitempty"` // what the deciding probes saw, in words
	// Unready says why the backend is to get no new flows, though it lives: what its readiness check saw. Empty: it is ready.
	Unready string `json:"unready,omitempty"`
	// Asks is the percentage, 0 to 100, of its share of new flows that the backend's last answer asked for; nil: it has not asked.
	Asks *int `json:"asks,omitempty"`
	// EjectedMS is for how many more milliseconds the backend gets no new flows since its traffic looked bad, which Ejected puts
	// into words. 0: it is not ejected.
	EjectedMS int64  `json:"ejected_ms,omitempty"`
	Ejected   string `json:"ejected,omitempty"`
}

// State is what health says about whether a backend lives.
type State string

// The states of health. Reports do not carry StateUnknown, and StateNone only of a service without a check.
const (
	StateUnknown   State = "unknown" // nothing is known yet
	StateUp        State = "up"
	StateGoingDown State = "going_down" // up, but the last probes were bad
	StateDown      State = "down"
	StateGoingUp   State = "going_up" // down, but the last probes were good
	StateNone      State = "none"     // the service has no check
)

// Alive reports whether a backend in state s may take traffic.
func (s State) Alive() bool { return s == StateUp || s == StateGoingDown || s == StateNone }

// Cause is what brought about a change.
type Cause string

// The causes of changes.
const (
	CauseProbe     Cause = "probe"     // of the check
	CauseReadiness Cause = "readiness" // a probe of the readiness check
	CauseWeight    Cause = "weight"    // the backend asked for another share
	CausePassive   Cause = "passive"   // its traffic
	CauseOperator  Cause = "operator"  // somebody, by hand
	CauseConfig    Cause = "config"    // a reload
	CauseTime      Cause = "time"      // something was over
	CauseHealth    Cause = "health"    // what health says of all backends of a service together
	CauseTraffic   Cause = "traffic"   // what came in for a service, such as a flood
)

// HealthStatus tells where the node's knowledge of health comes from.
type HealthStatus struct {
	Source   string    `json:"source"`            // who reported last; empty when nobody has since the start
	Version  uint64    `json:"version"`           // of what it reported
	Reported time.Time `json:"reported,omitzero"` // when; left out when nobody has since the start
	AgeMS    int64     `json:"age_ms"`            // milliseconds since then, or since the start
	Stale    bool      `json:"stale"`             // there is something to check and nobody reports: the last known health is in use
	Restored int       `json:"restored"`          // backends of which only what was on disk at the start is known
	Unsaved  string    `json:"unsaved,omitempty"` // why health could not be written to disk, or empty
}

// BackendHealth is one backend of one service in a HealthReport.
type BackendHealth struct {
	Service string `json:"service"`
	Backend string `json:"backend"`
	Health
}

// Targets is the answer to GET /v1/health/targets: what a health daemon is to look at.
type Targets struct {
	Boot       string          `json:"boot"`       // random at each start of the daemon
	Generation uint64          `json:"generation"` // grows when anything here changes
	Tunnel     TargetTunnel    `json:"tunnel"`
	Services   []TargetService `json:"services"` // those with a check, or whose traffic is looked at
	Agents     []string        `json:"agents"`   // addresses and ports of agents to ask what they can: "10.0.0.11:9546"
}

// TargetTunnel is what outer headers have in common.
type TargetTunnel struct {
	GUEPort     uint16 `json:"gue_port"`
	GUEChecksum bool   `json:"gue_checksum"`
	// Outer sources are taken from these prefixes; left out: the node's own address towards the backend.
	SourceIPv4 *netip.Prefix `json:"source_ipv4,omitempty"`
	SourceIPv6 *netip.Prefix `json:"source_ipv6,omitempty"`
}

// TargetService is a service whose backends are probed, or whose traffic is looked at.
type TargetService struct {
	Name      string          `json:"name"`
	VIP       netip.Addr      `json:"vip"`
	Protocol  string          `json:"protocol"`
	Forward   string          `json:"forward"`
	Scheduler string          `json:"scheduler"`
	Check     *config.Check   `json:"check,omitempty"`
	Readiness *config.Check   `json:"readiness,omitempty"`
	Passive   config.Passive  `json:"passive"`
	Backends  []TargetBackend `json:"backends"`
}

// TargetBackend is one backend of a TargetService.
type TargetBackend struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"` // its own
	// Out says that file or operator want it to take no new flows: it is probed, but its traffic is not looked at.
	Out bool `json:"out,omitempty"`
}

// HealthReport is the body of PUT /v1/health. With Base 0 it is everything that a health daemon knows: what it leaves out keeps what
// was known about it. Else it is what has changed since version Base of the same source, which has to be what the daemon has taken
// last (409 otherwise: send everything). Sending one twice has the effect of sending it once. Backends that the configuration
// does not have are ignored. One without anything in it is a sign of life.
type HealthReport struct {
	Boot       string `json:"boot"`       // of the Targets that it answers; 409 when the daemon has another
	Generation uint64 `json:"generation"` // likewise; an older one is fine
	// Source names the sender, and is another one each time the sender starts: "lb1/4f2a". While one source reports, another one is
	// refused (423).
	Source   string          `json:"source"`
	Base     uint64          `json:"base"`
	Version  uint64          `json:"version"` // of what the daemon knows with it; above Base
	Backends []BackendHealth `json:"backends,omitempty"`
	// Probes are statistics, of some backends in each report, and of all in some ten seconds.
	Probes []ProbeStats `json:"probes,omitempty"`
	// Agents is what agents answered: of each of Targets.Agents that was asked, the last. What those said that it leaves out holds.
	Agents []AgentReport `json:"agents,omitempty"`
}

// ProbeStats is how the last probes of a backend went: those of its check or of its readiness check.
type ProbeStats struct {
	Service   string    `json:"service"`
	Backend   string    `json:"backend"`
	Readiness bool      `json:"readiness,omitempty"`
	Good      uint64    `json:"good"` // probes since healthd began with it
	Bad       uint64    `json:"bad"`
	Last      time.Time `json:"last,omitzero"`
	LastError string    `json:"last_error,omitempty"` // what the last bad one saw
	// Latency of the good ones of the last minutes, in microseconds, at these percentiles. 0: there were none.
	P50 uint32 `json:"p50_us"`
	P90 uint32 `json:"p90_us"`
	P99 uint32 `json:"p99_us"`
}

// AgentReport is what an agent says that it can.
type AgentReport struct {
	Agent  string            `json:"agent"`           // as in Targets.Agents
	Error  string            `json:"error,omitempty"` // why there is no answer; then all the rest is empty
	SkewMS int64             `json:"skew_ms"`         // by how much its clock is ahead of the asking one's, milliseconds
	Answer capability.Answer `json:"answer"`
}

// HealthAnswer is the answer to a HealthReport that was taken.
type HealthAnswer struct {
	Boot       string `json:"boot"`
	Generation uint64 `json:"generation"` // above the report's: the targets have changed, ask again
}
