package control

import "net/netip"

// FlowFilter says which flows a FlowsReport counts. Empty fields leave all in.
type FlowFilter struct {
	Service string
	Backend string
	State   string // probation | established | closing
}

// FlowQuery names one flow, as its packets to the VIP do.
type FlowQuery struct {
	Source      netip.AddrPort // the client
	Destination netip.AddrPort // the VIP
	Protocol    string         // tcp | udp
}

// FlowsReport is the answer to GET /v1/flows: the flows that have words in the flow table, counted in one walk through it
// while workers go on. A flow that comes or goes meanwhile may be counted or not.
type FlowsReport struct {
	WalkedWords uint64           `json:"walked_words"` // all of the table's, also those in use by nobody
	TookMS      float64          `json:"took_ms"`
	States      FlowStates       `json:"states"`
	Ages        []AgeBucket      `json:"ages"` // of all flows that are counted
	Services    []FlowsOfService `json:"services"`
}

// FlowStates is flows by the state of their words.
type FlowStates struct {
	Probation   uint64 `json:"probation"`   // only seen within one tick of 2.15 s
	Established uint64 `json:"established"` // seen in more than one
	Closing     uint64 `json:"closing"`     // TCP: a FIN or RST was seen
}

// AgeBucket is how many flows have idled for up to so long, and longer than those of the bucket before.
type AgeBucket struct {
	UpToSeconds float64 `json:"up_to_seconds"` // 0: the rest, in the last
	Flows       uint64  `json:"flows"`
}

// FlowsOfService is the flows of one service.
type FlowsOfService struct {
	Service  string           `json:"service"`
	Flows    uint64           `json:"flows"`
	Backends []FlowsOfBackend `json:"backends"`
}

// FlowsOfBackend is the flows of one backend of a service.
type FlowsOfBackend struct {
	Backend string `json:"backend"`
	Address string `json:"address"`
	Takes   string `json:"takes"`   // up | draining | down | cut
	Leaving bool   `json:"leaving"` // no longer configured; its flows go on
	Flows   uint64 `json:"flows"`
	FlowStates
	LongestIdleSeconds float64  `json:"longest_idle_seconds"`
	Ages               []uint64 `json:"ages"` // flows by the buckets of the report
}

// FlowReport is the answer to GET /v1/flows/one: what becomes of a flow's next packet.
type FlowReport struct {
	Found   bool   `json:"found"`   // it has a word
	Service string `json:"service"` // whose flow it is; empty when no service has its destination
	// What its word says.
	Backend          string  `json:"backend,omitempty"`
	Address          string  `json:"address,omitempty"`
	State            string  `json:"state,omitempty"` // probation | established | closing
	IdleSeconds      float64 `json:"idle_seconds"`
	ExpiresInSeconds float64 `json:"expires_in_seconds"` // without another packet
	Slot             uint32  `json:"slot"`
	Line             uint64  `json:"line"` // of the table: where the word is, or would be first
	// Without a word: where a packet that opens the flow would go, and any other. Left out where there is no backend.
	Opens     *FlowTarget `json:"opens,omitempty"`
	Continues *FlowTarget `json:"continues,omitempty"`
}

// FlowTarget is the backend that a packet would be given.
type FlowTarget struct {
	Backend string `json:"backend"`
	Address string `json:"address"`
}

// TopReport is the answer to GET /v1/flows/top: which sources have done most of something lately: put words into the flow
// table, sent SYNs of flows without one to services with a defence, or sent packets, estimated from samples.
type TopReport struct {
	WindowSeconds float64     `json:"window_seconds"`
	Sources       []TopSource `json:"sources"` // the most first
}

// TopSource is one source and how often it did that in the window. They are counted in bounded memory, so not exactly.
type TopSource struct {
	Source  string  `json:"source"`  // an IPv4 address, or an IPv6 prefix of 64 bits
	Inserts uint64  `json:"inserts"` // words, SYNs or packets; no less than there were
	Error   uint64  `json:"error"`   // by how much that may be too high at most
	Share   float64 `json:"share"`   // of all inserts in the window, 0 to 1
}
