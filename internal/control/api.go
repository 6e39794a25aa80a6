package control

import (
	"time"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/internal/config"
)

// Status is the answer to GET /v1/status: all that a node tells about itself.
type Status struct {
	Node     string       `json:"node"`
	Version  string       `json:"version"`
	PID      int          `json:"pid"`
	Started  time.Time    `json:"started"`
	Ready    bool         `json:"ready"`
	NotReady string       `json:"not_ready,omitempty"` // why, in words; empty when ready
	Config   ConfigStatus `json:"config"`
	Traffic  Traffic      `json:"traffic"`
	Health   HealthStatus `json:"health"`
	// Events are counts since the start, by their kind.
	Events map[string]uint64 `json:"events"`
}

// ConfigStatus is the configuration in force.
type ConfigStatus struct {
	File       string    `json:"file"`
	Hash       string    `json:"hash"`       // config.Config.Hash: names the content
	Generation uint64    `json:"generation"` // 1 at start, one more at each reload that was taken
	Loaded     time.Time `json:"loaded"`
	Warnings   []Problem `json:"warnings,omitempty"`
	// The last reload, when it was refused: the configuration in force is an older one than the file.
	Refused []Problem `json:"refused,omitempty"`
}

// Problem is one thing that is wrong or doubtful in a configuration file.
type Problem = config.Problem

// Traffic is forwarder.Stats with what was dropped under the names of its reasons.
type Traffic struct {
	Steer      forwarder.SteerStats       `json:"steer"`
	Workers    []Worker                   `json:"workers"`
	Interfaces []forwarder.InterfaceStats `json:"interfaces"`
	Services   []Service                  `json:"services"`
	Table      forwarder.TableStats       `json:"table"`
	Shed       []forwarder.ShedStats      `json:"shed,omitempty"`
}

// Worker is one worker's books: received = forwarded + answered + the sum of dropped, at rest.
type Worker struct {
	forwarder.WorkerStats
	Dropped Dropped `json:"dropped"`
}

// Service is one service's traffic and backends.
type Service struct {
	forwarder.ServiceStats
	Dropped  Dropped   `json:"dropped"`
	Backends []Backend `json:"backends"`
	Checked  bool      `json:"checked"` // it has a check, so health decides which backends take traffic
	// Wanted is how many backends file and operator want to take new flows; of these, Quorum.Have are alive.
	Wanted  int    `json:"wanted"`
	Ejected int    `json:"ejected"` // backends that get no new flows for a while, for their traffic
	Quorum  Quorum `json:"quorum"`
	// Health is ignored for it at the moment, since it would leave no backend, or fewer than the panic threshold says.
	FailOpen bool `json:"fail_open"`
	// None of the backends that are alive is ready, or all of them are ejected: that is ignored.
	ReadinessIgnored bool `json:"readiness_ignored"`
	EjectionsIgnored bool `json:"ejections_ignored"`
	// Cookies says of a service with syn_defence auto or cookie whether all backends that take new flows accept SYN cookies:
	// CookiesReady, or why not.
	Cookies string `json:"cookies,omitempty"`
}

// Quorum is how many backends of a service are alive, of those that are wanted, and how many have to be.
type Quorum struct {
	Need int  `json:"need"`
	Have int  `json:"have"`
	Met  bool `json:"met"`
}

// Backend is one backend's traffic, and the three facts about it: what the file wants, what an operator set by hand, and
// what health says. One that is leaving has none of them.
type Backend struct {
	forwarder.BackendStats
	Weight int         `json:"weight"`         // 0: it takes no new flows
	Hand   *HandStatus `json:"hand,omitempty"` // nil when nothing is set by hand
	Health Health      `json:"health"`
	Phase  Phase       `json:"phase"` // the one word for how it stands; empty when it is leaving
	// Switches is how often health has taken it into rotation or out of it since the start.
	Switches uint64       `json:"switches"`
	Probes   []ProbeStats `json:"probes,omitempty"` // of its check and of its readiness check
}

// HandStatus is what an operator has set by hand: a drain, maintenance, or both.
type HandStatus struct {
	Since       time.Time `json:"since,omitzero"`       // of the drain; left out when it is not drained
	Until       time.Time `json:"until,omitzero"`       // when the flows that are left are ended; left out when never
	Cut         bool      `json:"cut"`                  // that time is over
	Maintenance time.Time `json:"maintenance,omitzero"` // since when it is in maintenance; left out when it is not
}

// Drained reports whether a drain is set.
func (h *HandStatus) Drained() bool { return h != nil && !h.Since.IsZero() }

// InMaintenance reports whether maintenance is set.
func (h *HandStatus) InMaintenance() bool { return h != nil && !h.Maintenance.IsZero() }

// MaintenanceRequest is the body of POST /v1/maintenance; the answer is a DrainResult.
type MaintenanceRequest struct {
	Service string `json:"service"`
	Backend string `json:"backend"`
	On      bool   `json:"on"`
}

// DrainRequest is the body of POST /v1/drain, and without Timeout that of POST /v1/undrain.
type DrainRequest struct {
	Service string `json:"service"`
	Backend string `json:"backend"`
	// Timeout is a duration such as 5m, after which flows that are left are ended. Empty: never.
	Timeout string `json:"timeout,omitempty"`
}

// DrainResult is the answer to POST /v1/drain, POST /v1/undrain and POST /v1/maintenance: how the backend stands now.
type DrainResult struct {
	Service string  `json:"service"`
	Backend Backend `json:"backend"`
}

// Dropped is packets by the name of the reason for which they were not forwarded. Reasons that never occurred are
// left out.
type Dropped map[string]uint64

// Total returns the sum over all reasons.
func (d Dropped) Total() uint64 {
	var n uint64
	for _, v := range d {
		n += v
	}
	return n
}

// ReloadResult is the answer to POST /v1/reload that was taken.
type ReloadResult struct {
	Generation uint64    `json:"generation"`
	Hash       string    `json:"hash"`
	Changed    bool      `json:"changed"` // the new configuration differs from the one before
	Warnings   []Problem `json:"warnings,omitempty"`
	// Notes say what of the change does not take effect before the next start.
	Notes []string `json:"notes,omitempty"`
	// Tables are the lookup tables that the change has altered.
	Tables []TableChange `json:"tables,omitempty"`
}

// TableChange is what a reload did to the lookup table of a service.
type TableChange struct {
	Service string `json:"service"`
	Size    int    `json:"size"`  // its entries
	Moved   int    `json:"moved"` // those that name another backend than before
	Least   int    `json:"least"` // those that had to, by the backends and their weights
	Hash    string `json:"hash"`  // names the content: equal on nodes that agree
}

// VersionInfo is the answer to GET /v1/version.
type VersionInfo struct {
	Version string `json:"version"`
	API     string `json:"api"` // "v1"
	Go      string `json:"go"`
}

// ErrorBody is the body of every answer that is not a success.
type ErrorBody struct {
	Error   string    `json:"error"`
	Details []Problem `json:"details,omitempty"` // a configuration that was refused: what is wrong with it
}

// NewTraffic gives s its form on the wire. The result shares no memory with s but the queues of its interfaces,
// the ages of its table, and what is shed.
func NewTraffic(s forwarder.Stats) Traffic {
	t := Traffic{Steer: s.Steer, Interfaces: s.Interfaces, Table: s.Table, Shed: s.Shed}
	for _, w := range s.Workers {
		t.Workers = append(t.Workers, Worker{WorkerStats: w, Dropped: newDropped(&w.Dropped)})
	}
	for _, svc := range s.Services {
		out := Service{ServiceStats: svc, Dropped: newDropped(&svc.Dropped)}
		for _, b := range svc.Backends {
			out.Backends = append(out.Backends, Backend{BackendStats: b, Health: Health{State: StateNone}})
		}
		t.Services = append(t.Services, out)
	}
	return t
}

func newDropped(counts *[packet.NumReasons]uint64) Dropped {
	d := Dropped{}
	for _, r := range packet.Reasons() {
		if counts[r] != 0 {
			d[r.String()] = counts[r]
		}
	}
	return d
}
