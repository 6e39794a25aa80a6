package control

import (
	"net/netip"
	"time"
)

// EventFilter says which events are told. Empty fields leave all in.
type EventFilter struct {
	Service string
	Backend string
}

// Events is the answer to GET /v1/events: what has happened, the oldest first. The daemon remembers the last 4096 since it
// started.
type Events struct {
	Boot   string  `json:"boot"`   // random at each start of the daemon: event numbers begin anew
	Last   uint64  `json:"last"`   // number of the last event that was looked at: what to ask for next is after it
	Missed uint64  `json:"missed"` // events after the one that was asked for that are no longer known, of any kind
	Events []Event `json:"events"`
}

// HealthDetail is the answer to GET /v1/health: everything about the health of services and their backends.
type HealthDetail struct {
	Health   HealthStatus    `json:"health"`
	Services []ServiceHealth `json:"services"`
	Backends []BackendDetail `json:"backends"`
}

// ServiceHealth is the health of one service as a whole.
type ServiceHealth struct {
	Name             string     `json:"name"`
	VIP              netip.Addr `json:"vip"`
	Check            string     `json:"check,omitempty"`     // as configured, in words; empty: there is none
	Readiness        string     `json:"readiness,omitempty"` // likewise
	Passive          string     `json:"passive"`             // what becomes of backends whose traffic looks bad, in words
	PanicThreshold   int        `json:"panic_threshold"`     // percent
	FailOpen         bool       `json:"fail_open"`
	ReadinessIgnored bool       `json:"readiness_ignored"`
	EjectionsIgnored bool       `json:"ejections_ignored"`
	Quorum           Quorum     `json:"quorum"`
	Wanted           int        `json:"wanted"`
	Ejected          int        `json:"ejected"`
	// Phases is how many backends are in each phase; phases in which none is are left out.
	Phases map[Phase]int `json:"phases"`
}

// BackendDetail is everything about the health of one backend.
type BackendDetail struct {
	Service  string       `json:"service"`
	Backend  string       `json:"backend"`
	Address  netip.Addr   `json:"address"`
	Phase    Phase        `json:"phase"`
	Since    time.Time    `json:"since,omitzero"` // of the phase; left out where that is not known
	Why      string       `json:"why,omitempty"`  // it is in the phase, in words
	Health   Health       `json:"health"`
	Hand     *HandStatus  `json:"hand,omitempty"` // nil when nothing is set by hand
	Admit    string       `json:"admit"`          // up | draining | down | cut
	Fraction float64      `json:"fraction"`       // of the new flows meant for it that it takes, when it is up
	Weight   int          `json:"weight"`
	Flows    uint64       `json:"flows"` // words naming it, now
	Switches uint64       `json:"switches"`
	Probes   []ProbeStats `json:"probes"`
	History  []Event      `json:"history"` // the last eight events about it, the oldest first
}

// SignalsLine is one line of the answer to GET /v1/health/signals: how connections to backends fared since the line before.
type SignalsLine struct {
	ElapsedMS int64 `json:"elapsed_ms"` // since the line before; in the first, since the request
	// Suspended are services whose SYNs the node answers itself, so that their counts tell nothing.
	Suspended []string         `json:"suspended"`
	Backends  []BackendSignals `json:"backends"` // those of which something was counted, or that cannot be reached
}

// BackendSignals is how new connections to a backend fared, as the packets of clients show.
type BackendSignals struct {
	Service       string `json:"service"`
	Backend       string `json:"backend"`
	SYNs          uint64 `json:"syns"`          // that open a connection, sent to it
	Completed     uint64 `json:"completed"`     // handshakes
	Retransmitted uint64 `json:"retransmitted"` // SYNs that were sent again
	Resets        uint64 `json:"resets"`        // by clients, soon after the handshake
	Unreachable   uint64 `json:"unreachable"`   // ICMP errors that say so of it
	Sources       uint64 `json:"sources"`       // a set of 64 bits: a bit for each source of SYNs, by its hash
	HopReady      bool   `json:"hop_ready"`     // there is a route to it, and its next hop answers
}
