package forwarder

import "github.com/sluice-lb/sluice/forwarder/packet"

// Counts is an amount of traffic.
type Counts struct {
	Packets uint64 `json:"packets"` // frames
	Bytes   uint64 `json:"bytes"`   // IP bytes as received: without Ethernet header, padding and outer headers
}

// Stats is a reading of everything the engine counts. Counters only grow while the process lives.
type Stats struct {
	Steer      SteerStats       `json:"steer"`
	Workers    []WorkerStats    `json:"workers"`
	Interfaces []InterfaceStats `json:"interfaces"`
	Services   []ServiceStats   `json:"services"`
	Table      TableStats       `json:"table"`
	// Shed is what the XDP programs drop now since the workers cannot take all; none in calm times.
	Shed []ShedStats `json:"shed,omitempty"`
}

// SteerStats is what the XDP programs counted on all interfaces: ToVIPs + Replies = Redirected + Forwarded + NoExit + NoDaemon +
// NoSocket + Loops + Denied + Banned + Shed.
type SteerStats struct {
	ToVIPs     uint64 `json:"to_vips"`    // packets whose destination is a VIP, or that of the packet inside
	Replies    uint64 `json:"replies"`    // packets from NAT backends, and ICMP errors about packets to these
	Loops      uint64 `json:"loops"`      // dropped because an encapsulated packet came to this node, or back to it
	Redirected uint64 `json:"redirected"` // given to an AF_XDP socket
	NoSocket   uint64 `json:"no_socket"`  // dropped because their queue has no socket
	Denied     uint64 `json:"denied"`     // dropped because their source is denied
	Banned     uint64 `json:"banned"`     // dropped because their source was far over its limit
	Shed       uint64 `json:"shed"`       // dropped because the workers cannot take all, and their source has proved nothing
	Forwarded  uint64 `json:"forwarded"`  // sent to their backends by the fast path
	NoExit     uint64 `json:"no_exit"`    // dropped there, because the interface that they were to leave by is gone
	NoDaemon   uint64 `json:"no_daemon"`  // not forwarded because no daemon ran, or its workers stood still
	Orphaned   uint64 `json:"orphaned"`   // of forwarded, those while no daemon ran
}

// WorkerStats is one worker's books. At rest Received = Forwarded + Answered + Held + Σ Dropped, and the frames that its
// sockets sent = Forwarded + Answered + Generated + Continued.
type WorkerStats struct {
	ID        int      `json:"id"`
	CPU       int      `json:"cpu"`       // the core it is pinned to; -1 when it is not
	Received  uint64   `json:"received"`  // frames
	Forwarded uint64   `json:"forwarded"` // frames
	Answered  uint64   `json:"answered"`  // frames that the worker answered itself: echo requests to a VIP
	Generated uint64   `json:"generated"` // frames sent beyond these: ICMP errors and resets to senders, copies, fragments
	Replies   uint64   `json:"replies"`   // of the forwarded, those from NAT backends to clients
	Continued uint64   `json:"continued"` // frames sent of packets that are longer than a frame, beside their first
	Held      uint64   `json:"held"`      // fragments that wait now for the first of their datagram
	NewFlows  uint64   `json:"new_flows"` // words inserted or replaced
	Restarts  uint64   `json:"restarts"`  // times it was started again after a panic
	Heartbeat int64    `json:"heartbeat"` // CLOCK_MONOTONIC ns of its last turn
	Observed  Observed `json:"observed"`
	// Dropped is indexed by packet.Reason; None stays zero.
	Dropped [packet.NumReasons]uint64 `json:"-"`
	Frames  int                       `json:"frames"` // of its UMEM
}

// Observed is packets that were over a limit whose action is to observe, and went on.
type Observed struct {
	Source  uint64 `json:"source"`
	Service uint64 `json:"service"`
	Node    uint64 `json:"node"`
}

// InterfaceStats is one configured interface and its sockets.
type InterfaceStats struct {
	Name   string       `json:"name"`
	Up     bool         `json:"up"`
	Attach string       `json:"attach"` // native | generic | detached
	Queues []QueueStats `json:"queues"`
	// FastPath says whether the XDP program forwards packets of known flows that arrive here; FastPathCause why not.
	FastPath      bool   `json:"fast_path"`
	FastPathCause string `json:"fast_path_cause,omitempty"`
	Problem       string `json:"problem,omitempty"` // what is wrong and what is being done, or empty
	// Closed sums up the sockets that were closed when the interface went away.
	Closed SocketStats `json:"closed"`
}

// QueueStats is the AF_XDP socket of one queue.
type QueueStats struct {
	Queue  int    `json:"queue"`
	Worker int    `json:"worker"`
	Mode   string `json:"mode"` // zerocopy | copy, as the kernel says
	SocketStats
}

// SocketStats is what a socket counted, in frames, and the kernel for it (XDP_STATISTICS).
type SocketStats struct {
	Received uint64 `json:"received"`
	Sent     uint64 `json:"sent"`

	RXDropped   uint64 `json:"rx_dropped"`
	RXInvalid   uint64 `json:"rx_invalid"`
	RXRingFull  uint64 `json:"rx_ring_full"`
	FillEmpty   uint64 `json:"fill_empty"`
	TXInvalid   uint64 `json:"tx_invalid"`
	TXRingEmpty uint64 `json:"tx_ring_empty"`
}

// ServiceStats is one service's traffic.
type ServiceStats struct {
	Name      string `json:"name"`
	VIP       string `json:"vip"`
	Protocol  string `json:"protocol"`
	Ports     string `json:"ports"`
	Forward   string `json:"forward"`
	Scheduler string `json:"scheduler"`
	TableSize int    `json:"table_size"` // entries of the lookup table
	TableHash string `json:"table_hash"` // names its content: equal on nodes that choose alike
	Flows     uint64 `json:"flows"`      // words naming its backends, now
	// NoFastPath says why its packets are the workers' everywhere; empty: those of known flows go by the fast path where an interface
	// uses it.
	NoFastPath string         `json:"no_fast_path,omitempty"`
	Forwarded  Counts         `json:"forwarded"`
	NewFlows   uint64         `json:"new_flows"`
	Defence    DefenceStats   `json:"defence"`
	Backends   []BackendStats `json:"backends"`
	// Dropped is indexed by packet.Reason: packets that matched the service and were not forwarded.
	Dropped [packet.NumReasons]uint64 `json:"-"`
}

// DefenceStats is a service's defence against floods of SYNs.
type DefenceStats struct {
	Mode       string `json:"mode"`   // off | auto | challenge | cookie
	Active     bool   `json:"active"` // SYNs are answered by the node now
	Answer     string `json:"answer"` // what they are answered with, if they are: challenge | cookie
	Switches   uint64 `json:"switches"`
	SYNs       uint64 `json:"syns"`       // of flows without a usable word, while there is a defence
	Challenged uint64 `json:"challenged"` // of these
	Proofs     uint64 `json:"proofs"`     // answers to these: resets, or cookies that came back
}

// BackendStats is one backend of one service.
type BackendStats struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Slot    uint32 `json:"slot"`
	Leaving bool   `json:"leaving"` // no longer configured; its flows go on
	Admit   string `json:"admit"`   // up | draining | down | cut
	// Fraction is the share of new flows that it takes of those that are meant for it, when it is up: 1 but in a slow start.
	Fraction  float64 `json:"fraction"`
	Hop       string  `json:"hop"` // ready | no_route | no_neighbour
	Forwarded Counts  `json:"forwarded"`
	NewFlows  uint64  `json:"new_flows"`
	Flows     uint64  `json:"flows"` // words naming it, now
	// LongestIdle is for how long, at the last full sweep, one of its flows had had no packet.
	LongestIdle float64 `json:"longest_idle_seconds"`
	// How new connections fare at it, of a service on TCP. Where a worker has more SYNs to remember than it can, these are a
	// sample; those that the node answers itself are not among them.
	SYNs          uint64 `json:"syns"`               // but those sent again
	Handshakes    uint64 `json:"handshakes"`         // of these, those that the client went on with
	Retransmitted uint64 `json:"retransmitted_syns"` // SYNs sent again, within seconds
	Resets        uint64 `json:"early_resets"`       // of clients, within seconds of the handshake
	// Unreachable is ICMP errors which say that packets cannot reach it, or that it does not take them; never any with l2,
	// where they go to the client.
	Unreachable uint64 `json:"unreachable"`
}

// TableStats is the flow table.
type TableStats struct {
	Words       uint64     `json:"words"` // capacity in words; half of it is the number of flows it is meant for
	Bytes       uint64     `json:"bytes"`
	HugePages   bool       `json:"huge_pages"`
	Flows       uint64     `json:"flows"`       // words of all services, now
	Probation   uint64     `json:"probation"`   // words in this state at the last full sweep
	Established uint64     `json:"established"` // likewise
	Closing     uint64     `json:"closing"`     // likewise
	Expired     uint64     `json:"expired"`     // words that the last full sweep freed
	Ages        []AgeCount `json:"ages"`        // live words at the last full sweep, by how long they had had no packet
	Inserted    uint64     `json:"inserted"`
	Refused     uint64     `json:"refused"` // inserts that found no word to take: the flow goes by hash
	Evicted     Evictions  `json:"evicted"`
}

// AgeCount is the number of words that have idled for less than a time, and not for less than that of the AgeCount before.
type AgeCount struct {
	Below float64 `json:"below_seconds"` // 0 for the last one: it has no bound
	Flows uint64  `json:"flows"`
}

// Evictions is how often an insert into two full lines took the place of a word, by what that was.
type Evictions struct {
	Expired     uint64 `json:"expired"` // its time was over; no flow lost anything
	Closing     uint64 `json:"closing"`
	Probation   uint64 `json:"probation"`
	Established uint64 `json:"established"` // idle for more than five minutes
}

// Live is the number of evictions that took a word whose time was not over.
func (v Evictions) Live() uint64 { return v.Closing + v.Probation + v.Established }
